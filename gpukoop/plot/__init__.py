"""Figures of particles, spectra and histories; matplotlib is optional and imported when first needed.

Every function returns a matplotlib ``Figure`` that belongs to no window (``IPython.display.Image(png(figure))``
shows it, ``figure.savefig`` saves it); a file is written only for ``path=``, whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpukoop.arrays import Array, points, to_host
from gpukoop.draws import check_count
from gpukoop.plot import panels
from gpukoop.plot.canvas import (
    Where,
    new_figure,
    png,
    require_fields,
    require_matplotlib,
    save,
    written,
)
from gpukoop.plot.curves import history, spectrum
from gpukoop.plot.kinetics import chapman_kolmogorov, implied_timescales
from gpukoop.plot.pictures import pictures, training
from gpukoop.plot.verdict import verdict

__all__ = [
    "chapman_kolmogorov",
    "demo",
    "flow_animation",
    "history",
    "implied_timescales",
    "particles",
    "pictures",
    "png",
    "require_matplotlib",
    "spectrum",
    "training",
    "verdict",
]


def particles(
    *frames: Array,
    density: str | Callable[[np.ndarray], np.ndarray] | None = None,
    data: Array | None = None,
    coordinates: Sequence[int] | None = None,
    bounds: Any = None,
    titles: Sequence[str] | None = None,
    path: Where | None = None,
) -> Any:
    """Return a figure of particles: start, flow, end, and beside them the data or the exact density.

    Parameters
    ----------
    *frames : arrays of shape (n, d)
        One cloud alone; or start and end; or start, any number of clouds in between, and end. With the same
        particles in all of them a panel shows their paths. A single array (times, n, d) is taken apart.
    density : str or callable, optional
        The exact law: a name of :func:`gpukoop.datasets.density`, or (k, c) -> (k,) in the c <= 2 coordinates
        shown. It colours the points, underlies them, and has the last panel in two dimensions.
    data : array of shape (m, d), optional
        What the particles were learnt from; gets a panel of its own.
    coordinates : up to three ints, optional
        Columns to show; by default all of d <= 3, else the first two.
    bounds : (low, high) or one pair a coordinate, optional
        Limits shared by all panels; by default all but 0.2 per cent of the points. Points beyond are counted in
        the corner of their panel.
    titles : sequence of str, optional
        One for each panel.
    path : path, optional
        Where to write the figure: .png, .pdf, .svg or .jpg.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ImportError
        Without matplotlib.
    """
    clouds, view = _view(frames, density, data, coordinates, bounds)
    shown: list[tuple[str, Callable[[Any], Any]]] = []
    cloud = panels.draw_cloud
    size = f"{len(clouds[0]):,} particles"
    if len(clouds) > 1:
        shown.append((f"start, {size}", lambda axes: cloud(axes, view, clouds[0], panels.START)))
        shown.append(("flow", lambda axes: panels.draw_paths(axes, view, clouds)))
    last = "end" if len(clouds) > 1 else size
    shown.append((last, lambda axes: cloud(axes, view, clouds[-1])))
    if data is not None:
        Z = _host(data, "data", clouds[0].shape[1])
        shown.append((f"data, {len(Z):,} points", lambda axes: cloud(axes, view, Z, panels.FAINT)))
    if view.values is not None and len(view.coordinates) == 2:
        shown.append(("exact density", lambda axes: panels.draw_density(axes, view)))
    if titles is not None and len(titles) != len(shown):
        raise ValueError(f"titles has {len(titles)} entries, the figure has {len(shown)} panels")
    sides = np.ptp(view.box, axis=1)
    shape = {1: 0.8, 2: sides[-1] / sides[0], 3: 0.8}[len(view.coordinates)]
    figure = new_figure(3.5 * len(shown), 3.6 * min(shape, 2.0) + 0.35)
    for i, (title, draw) in enumerate(shown):
        axes = panels.new_panel(
            figure, (1, len(shown), i + 1), view, titles[i] if titles else title
        )
        if i and len(view.coordinates) == 2:
            axes.tick_params(labelleft=False)
        draw(axes)
    if len(view.coordinates) == 1:
        bars = [
            axes for axes, (title, _) in zip(figure.axes, shown, strict=True) if title != "flow"
        ]
        top = max(axes.get_ylim()[1] for axes in bars)
        for axes in bars:
            axes.set_ylim(0, top)
    return written(figure, path)


def demo(result: Any) -> Any:
    """Return the figure of a demonstration: its start, midway and end beside the exact density of its law.

    Parameters
    ----------
    result : object
        What ``gpukoop demo`` computed: frames, the name of the law, titles.

    Returns
    -------
    matplotlib.figure.Figure
    """
    require_fields(result, "result", "start halfway particles law", "a demonstration")
    return particles(result.start, result.halfway, result.particles, density=result.law)


def flow_animation(
    frames: Sequence[Array],
    path: Where,
    *,
    density: str | Callable[[np.ndarray], np.ndarray] | None = None,
    coordinates: Sequence[int] | None = None,
    bounds: Any = None,
    fps: int = 20,
) -> Path:
    """Write an animation of particles, and return its path.

    Parameters
    ----------
    frames : sequence of arrays (n, d), or array of shape (times, n, d)
        The particles at successive times.
    path : path
        ``.gif``, or ``.mp4`` where ffmpeg is installed. Written whole or not at all.
    density, coordinates, bounds
        As in :func:`particles`.
    fps : int, default=20
        Frames a second; the last one stays for a second.

    Returns
    -------
    pathlib.Path
        Where the file is.

    Notes
    -----
    Cost: about 0.1 s a frame of 20,000 particles.
    """
    from gpukoop.plot.animation import encode

    if not hasattr(frames, "__len__") or isinstance(frames, str):
        raise TypeError(
            f"frames is of type {type(frames).__name__}, expected a list of arrays (n, d)"
        )
    clouds, view = _view(tuple(frames), density, None, coordinates, bounds)
    path = Path(path)
    rate = check_count(fps, "fps")
    figure = new_figure(4.4, 4.6)

    def drawn(i: int) -> np.ndarray:
        figure.clear()
        axes = panels.new_panel(figure, (1, 1, 1), view, f"{i + 1} / {len(clouds)}")
        panels.draw_cloud(axes, view, clouds[i])
        figure.canvas.draw()
        return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()

    save(
        path,
        lambda: encode((drawn(i) for i in range(len(clouds))), path.suffix.lower(), rate),
        (".gif", ".mp4"),
    )
    return path


def _view(
    frames: tuple[Array, ...],
    density: str | Callable[[np.ndarray], np.ndarray] | None,
    data: Array | None,
    coordinates: Sequence[int] | None,
    bounds: Any,
) -> tuple[list[np.ndarray], panels.View]:
    """Return the clouds on the host, and what their panels share."""
    require_matplotlib()
    if len(frames) == 1 and getattr(frames[0], "ndim", 2) == 3:
        frames = tuple(frames[0])
    if not frames:
        raise ValueError("there are no particles to draw: pass at least one array of shape (n, d)")
    first = _host(frames[0], "frames[0]")
    d = first.shape[1]
    clouds = [first] + [_host(Z, f"frames[{i}]", d) for i, Z in enumerate(frames[1:], start=1)]
    columns = tuple(coordinates) if coordinates is not None else tuple(range(d if d <= 3 else 2))
    if not 1 <= len(columns) <= 3 or not all(
        isinstance(c, int | np.integer) and 0 <= c < d for c in columns
    ):
        raise ValueError(f"coordinates is {coordinates!r}: pass one to three columns out of {d}")
    if isinstance(density, str):
        from gpukoop import datasets

        name = density
        if columns != tuple(range(d)):
            raise ValueError(
                f"density={name!r} is a law of all {d} features: pass a callable of the ones shown"
            )
        density = lambda Z: datasets.density(name, Z)
    if density is not None and len(columns) == 3:
        raise ValueError("density is drawn in one or two dimensions: choose two coordinates")
    extra = [] if data is None else [_host(data, "data", d)]
    return clouds, panels.View(clouds + extra, columns, bounds, density)


def _host(Z: Array, name: str, n_features: int | None = None) -> np.ndarray:
    native, _ = points(Z, name, n_features=n_features, other="frames[0]")
    return to_host(native).astype(float, copy=False)
