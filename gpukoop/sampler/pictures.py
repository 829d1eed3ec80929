"""Pictures of a fitted sampler: operator, spectrum, modes, trajectories; and sheets of images. Needs matplotlib."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from gpukoop.arrays import to_host
from gpukoop.checks import real_array
from gpukoop.draws import check_count
from gpukoop.files import write_atomically

N_MODES = 3
GRID = 60
DOTS = 130


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "pictures need matplotlib, which is not installed: pip install gpukoop[plot]"
        ) from error
    # No pyplot: the figure belongs to no window and to no global list.
    return Figure(figsize=(width, height), layout="constrained")


def _written(figure: Any, path: str | Path | None) -> Any:
    if path is not None:
        stream = io.BytesIO()
        figure.savefig(stream, format=Path(path).suffix[1:] or "png", dpi=DOTS, facecolor="white")
        write_atomically(Path(path), stream.getvalue())
    return figure


def picture(sampler: Any, path: str | Path | None = None, *, n_trajectories: int = 100) -> Any:
    """Return a figure with operator, spectrum, leading modes and trajectories of a fitted sampler.

    Parameters
    ----------
    sampler : KoopmanSampler
        Fitted.
    path : path, optional
        Also written there.
    n_trajectories : int

    Returns
    -------
    matplotlib Figure
        Modes are drawn in two coordinates and where the report accepts them; otherwise the reason stands in their place.
    """
    if not callable(getattr(sampler, "spectral_report", None)):
        raise TypeError(
            f"sampler is of type {type(sampler).__name__}, expected a fitted KoopmanSampler"
        )
    n_trajectories = check_count(n_trajectories, "n_trajectories")
    report = sampler.spectral_report()
    figure = _figure(12.0, 7.0)
    axes = figure.subplots(2, 3)
    A = np.abs(sampler.generator_)
    shown = axes[0, 0].imshow(np.log10(np.maximum(A, 1e-6 * A.max())), cmap="magma")
    figure.colorbar(shown, ax=axes[0, 0], shrink=0.8)
    axes[0, 0].set_title("generator, log10 |A|")
    values = report.eigenvalues
    axes[0, 1].scatter(values.real, values.imag, s=8, color="#0868ac")
    axes[0, 1].axvline(0.0, color="0.7", lw=0.8)
    axes[0, 1].axvline(report.numerical_abscissa, color="0.7", lw=0.8, ls="--")
    axes[0, 1].set(title=f"spectrum, cond(V) = {report.condition:.1e}", xlabel="Re", ylabel="Im")
    _draw_trajectories(axes[0, 2], sampler, n_trajectories)
    for k, ax in enumerate(axes[1]):
        _draw_mode(ax, sampler, report, k)
    return _written(figure, path)


def _draw_trajectories(ax: Any, sampler: Any, n: int) -> None:
    d = sampler.n_latent_
    Z = np.random.default_rng(0).standard_normal((n, d)).astype(sampler.X_.dtype)
    states = to_host(sampler.trajectory(Z, np.linspace(0.0, 1.0, 21)))
    if states.shape[2] == 1:
        ax.plot(np.linspace(0.0, 1.0, 21), states[:, :, 0], color="0.6", lw=0.5)
    else:
        ax.plot(states[:, :, 0], states[:, :, 1], color="0.6", lw=0.5)
        ax.scatter(states[-1, :, 0], states[-1, :, 1], s=8, color="#e34a33", zorder=3)
        ax.set_aspect("equal")
    ax.set_title("trajectories")


def _draw_mode(ax: Any, sampler: Any, report: Any, k: int) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    if not report.modal or sampler.n_latent_ != 2 or k >= len(report.eigenvalues):
        words = (
            "modes are drawn in two coordinates" if report.modal else report.reason.split(":")[0]
        )
        ax.text(0.5, 0.5, words, ha="center", va="center", wrap=True, fontsize=8)
        return
    side = np.linspace(-2.5, 2.5, GRID)
    points = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    # An eigenvector of the quotient is a function up to constants and time.
    P = np.concatenate([np.zeros((2, 1)), report.modes[:, k : k + 1].real])
    mode = to_host(sampler.lift_.product(points, 0.0, P)).reshape(GRID, GRID)
    ax.contourf(side, side, mode, levels=20, cmap="RdBu_r")
    ax.set_title(f"mode {k + 1}: lambda = {report.eigenvalues[k]:.3g}")


def images(
    samples: Any,
    path: str | Path | None = None,
    *,
    shape: tuple[int, int] | None = None,
    n_columns: int = 10,
) -> Any:
    """Return a sheet of images, one for each row of ``samples``.

    Parameters
    ----------
    samples : array of shape (n, height * width)
    path : path, optional
        Also written there.
    shape : (height, width), optional
        Square by default.
    n_columns : int

    Returns
    -------
    matplotlib.figure.Figure
    """
    rows = real_array(samples, "samples", (None, None))
    n_columns = check_count(n_columns, "n_columns")
    if rows.size == 0:
        raise ValueError(f"samples has shape {rows.shape}: pass at least one image")
    if shape is not None:
        shape = check_count(shape[0], "shape"), check_count(shape[1], "shape")
    else:
        side = round(rows.shape[1] ** 0.5)
        shape = (side, side)
    if shape[0] * shape[1] != rows.shape[1]:
        raise ValueError(
            f"samples has shape {rows.shape}, which are no images of {shape[0]} x {shape[1]} pixels: pass shape="
        )
    n_rows = -(-len(rows) // n_columns)
    sheet = np.full((n_rows * n_columns, *shape), np.nan)
    sheet[: len(rows)] = rows.reshape(-1, *shape)
    grid = sheet.reshape(n_rows, n_columns, *shape).transpose(0, 2, 1, 3)
    figure = _figure(0.6 * n_columns, 0.6 * n_rows * shape[0] / shape[1])
    ax = figure.subplots()
    low, high = np.quantile(rows, [0.02, 0.995])  # single bright pixels would grey the rest
    ax.imshow(
        grid.reshape(n_rows * shape[0], n_columns * shape[1]), cmap="gray_r", vmin=low, vmax=high
    )
    ax.set_axis_off()
    return _written(figure, path)
