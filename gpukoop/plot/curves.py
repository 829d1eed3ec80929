"""Figures of numbers: the spectrum of an operator, the history of a flow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gpukoop.arrays import Array, native_array, to_host
from gpukoop.draws import check_positive
from gpukoop.plot.canvas import Where, new_figure, written
from gpukoop.plot.panels import INK, START, quiet

RULE = "#d5dbe0"


def spectrum(eigenvalues: Array, exact: Array | None = None, *, path: Where | None = None) -> Any:
    """Return a figure of eigenvalues, with the exact ones as lines behind them.

    Parameters
    ----------
    eigenvalues : array of shape (r,)
        Real ones are drawn against their index; complex ones in the complex plane.
    exact : array of shape (k,), optional
        Compared in order.
    path : path, optional
        Where to write the figure.

    Returns
    -------
    matplotlib.figure.Figure
    """
    found = _vector(eigenvalues, "eigenvalues")
    truth = None if exact is None else _vector(exact, "exact")
    if np.iscomplexobj(found) or (truth is not None and np.iscomplexobj(truth)):
        return _complex_spectrum(found, truth, path)
    figure = new_figure(6.0, 3.6)
    axes = plain_axes(figure, "index k", r"eigenvalue $\lambda_k$")
    k = np.arange(1, len(found) + 1)
    if truth is not None:
        truth = truth[: len(found)]
        at = k[: len(truth)]
        axes.hlines(truth, at - 0.42, at + 0.42, color=START, linewidth=2, label="exact")
    axes.vlines(k, 0, found, color=RULE, linewidth=1, zorder=0)
    axes.plot(k, found, "o", color=INK, markersize=4, label="estimated")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlim(0.2, len(found) + 0.8)
    axes.set_ylim(min(0.0, 1.05 * found.min()), None)
    if truth is not None:
        axes.legend(frameon=False, fontsize=9)
    return written(figure, path)


def _complex_spectrum(found: np.ndarray, truth: np.ndarray | None, path: Where | None) -> Any:
    figure = new_figure(4.6, 4.2)
    axes = plain_axes(figure, "real part", "imaginary part")
    axes.axhline(0, color=RULE, linewidth=1, zorder=0)
    axes.axvline(0, color=RULE, linewidth=1, zorder=0)
    if truth is not None:
        ring: dict[str, Any] = {"markersize": 9, "fillstyle": "none", "color": START}
        axes.plot(truth.real, truth.imag, "o", label="exact", **ring)
    axes.plot(found.real, found.imag, "o", color=INK, markersize=4, label="estimated")
    if truth is not None:
        axes.legend(frameon=False, fontsize=9)
    return written(figure, path)


def history(
    history: Mapping[str, Array], *, step_size: float | None = None, path: Where | None = None
) -> Any:
    """Return a figure of a flow's ``history_``: one panel for each quantity, on a logarithmic axis where it is positive.

    Parameters
    ----------
    history : mapping of str to arrays of shape (n_iter,) or (n_iter, r)
        Such as ``history_`` of a fitted flow: "energy", "moments", "dissipation", "displacement". A matrix is
        drawn as the absolute values of its columns, from dark (first) to light (last).
    step_size : float, optional
        Makes the horizontal axis time instead of steps.
    path : path, optional
        Where to write the figure.

    Returns
    -------
    matplotlib.figure.Figure
    """
    if not isinstance(history, Mapping):
        raise TypeError(
            f"history is of type {type(history).__name__}, expected a mapping: pass history_ of a flow after "
            "transport or sample"
        )
    series = {name: _host_series(values, name) for name, values in history.items()}
    series = {name: values for name, values in series.items() if len(values)}
    if not series:
        raise ValueError("history is empty: pass history_ of a flow after transport or sample")
    unit = 1.0 if step_size is None else check_positive(step_size, "step_size")
    columns = 2 if len(series) == 4 else min(3, len(series))
    rows = math.ceil(len(series) / columns)
    figure = new_figure(4.0 * columns, 2.9 * rows)
    for i, (name, values) in enumerate(series.items()):
        label = "step" if step_size is None else "time"
        axes = plain_axes(figure, label, "", (rows, columns, i + 1))
        axes.set_title(name, fontsize=11, color=INK, loc="left")
        t = np.arange(len(values)) * unit
        if values.ndim == 2:
            import matplotlib

            shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, values.shape[1]))
            for column, shade in zip(np.abs(values).T[::-1], shades[::-1], strict=True):
                axes.plot(t, column, color=shade, linewidth=0.9, alpha=0.8)
            axes.set_title(f"|{name}|", fontsize=11, color=INK, loc="left")
        else:
            axes.plot(t, values, color=INK, linewidth=1.4)
        size = np.abs(values) if values.ndim == 2 else values
        # a zero at the end of a run is no reason to give up the decades above it
        if (size >= 0).all() and np.mean(size > 0) > 0.5:
            axes.set_yscale("log", nonpositive="mask")
        axes.grid(axis="y", color="#e6eaed", linewidth=0.7)
    return written(figure, path)


def plain_axes(figure: Any, x: str, y: str, layout: tuple[int, int, int] = (1, 1, 1)) -> Any:
    """Return axes of a figure with labels and nothing else."""
    axes = figure.add_subplot(*layout)
    quiet(axes)
    axes.set_xlabel(x, fontsize=9, color=INK)
    axes.set_ylabel(y, fontsize=9, color=INK)
    return axes


def _vector(values: Array, name: str) -> np.ndarray:
    vector = to_host(native_array(values, name)[0])
    if vector.dtype.kind not in "fciu":
        raise TypeError(
            f"{name} has dtype {vector.dtype}: pass the eigenvalues_ of a fitted spectrum"
        )
    if vector.ndim != 1 or not len(vector) or not np.isfinite(vector).all():
        raise ValueError(
            f"{name} has shape {vector.shape}: pass finite numbers of shape (r,), at least one"
        )
    return vector


def _host_series(values: Array, name: str) -> np.ndarray:
    native = to_host(native_array(values, f"history[{name!r}]")[0])
    if native.dtype.kind not in "fiub":
        raise TypeError(f"history[{name!r}] has dtype {native.dtype}, expected real numbers")
    series = native.astype(float)
    if series.ndim not in (1, 2):
        raise ValueError(
            f"history[{name!r}] has shape {series.shape}, expected (n_iter,) or (n_iter, r)"
        )
    return series
