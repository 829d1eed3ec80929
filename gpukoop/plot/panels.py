"""One panel of a figure: a cloud, the paths of a flow, a density, in one, two or three dimensions.

Drawn with matplotlib's objects only: no pyplot, no display, no global state.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

INK = "#22303c"
FAINT = "#8a97a3"
START = "#c8553d"
COLOURS = "viridis_r"  # light where little mass is, so that a density fades into the page
PALEST = 0.12  # of the colour map, for points: the lightest colours vanish on white
GRID = 160  # nodes an axis of a drawn density
BINS = 48  # of the histogram that colours points by their own density
PATHS = 350  # particles whose paths are drawn
PIECES = 16  # of a path at least, so that its colour changes along the way also between two clouds
LIFT = 0.7  # exponent of a relative density before it is coloured: keeps thin regions apart
Density = Callable[[np.ndarray], np.ndarray]


class View:
    """What all panels of a figure share: the coordinates shown, their limits, the exact density.

    Parameters
    ----------
    clouds : list of arrays of shape (n_i, d)
        They decide the limits: all but 0.2 per cent of the points, and a margin.
    coordinates : tuple of ints
        One, two or three columns.
    bounds : (low, high) or one pair a coordinate, optional
        Overrides the limits.
    density : callable, optional
        (k, c) -> (k,) in the shown coordinates; drawn for one or two of them.
    """

    def __init__(
        self,
        clouds: list[np.ndarray],
        coordinates: tuple[int, ...],
        bounds: Any = None,
        density: Density | None = None,
    ) -> None:
        self.coordinates = list(coordinates)
        self.density = density if len(coordinates) < 3 else None
        if bounds is None:
            shown = np.concatenate([self.of(Z) for Z in clouds])
            low, high = np.quantile(shown, [0.001, 0.999], axis=0)
            if len(coordinates) > 1:  # a flat cloud still gets a panel half as high as wide
                middle, side = (low + high) / 2, np.max(high - low) or 1.0
                wide = np.maximum(high - low, 0.5 * side)
                low, high = middle - wide / 2, middle + wide / 2
            margin = 0.08 * np.where(high > low, high - low, 1.0)
            bounds = np.stack([low - margin, high + margin], axis=1)
        box = np.asarray(bounds, dtype=float)
        if box.shape not in ((2,), (len(coordinates), 2)) or not (box[..., 0] < box[..., 1]).all():
            raise ValueError(
                f"bounds is {bounds!r}: pass (low, high), or one such pair for each of "
                f"{len(coordinates)} coordinates"
            )
        self.box = np.broadcast_to(box, (len(coordinates), 2))
        self.nodes = [np.linspace(low, high, GRID) for low, high in self.box]
        self.values = None
        if self.density is not None:
            mesh = np.stack(np.meshgrid(*self.nodes), axis=-1).reshape(-1, len(coordinates))
            self.values = np.asarray(self.density(mesh), dtype=float).reshape(
                (GRID,) * len(coordinates)
            )

    def of(self, Z: np.ndarray) -> np.ndarray:
        """Return the shown coordinates of a cloud."""
        return Z[:, self.coordinates]

    def heights(self, Z: np.ndarray) -> np.ndarray:
        """Return in [0, 1] how dense the law is at the points, or the cloud itself where no law is known."""
        shown = self.of(Z)
        if len(self.coordinates) == 3:
            height = shown[:, 2] - self.box[2, 0]
            return np.clip(height / np.ptp(self.box[2]), 0, 1)
        if self.density is not None and self.values is not None:
            return np.clip(self.density(shown) / (self.values.max() or 1.0), 0, 1)
        from scipy.ndimage import gaussian_filter

        count, *edges = np.histogramdd(
            shown, bins=BINS, range=[(low, high) for low, high in self.box]
        )
        smooth = gaussian_filter(count, 1.5)
        cell = [
            np.clip(np.searchsorted(e, c) - 1, 0, BINS - 1)
            for e, c in zip(edges[0], shown.T, strict=True)
        ]
        return smooth[tuple(cell)] / (smooth.max() or 1.0)

    def outside(self, Z: np.ndarray) -> int:
        """Return how many points the limits leave out."""
        shown = self.of(Z)
        return int(np.any((shown < self.box[:, 0]) | (shown > self.box[:, 1]), axis=1).sum())


def new_panel(figure: Any, layout: tuple[int, int, int], view: View, title: str) -> Any:
    """Return axes with the shared limits, equal aspect and a quiet frame."""
    solid = len(view.coordinates) == 3
    axes = figure.add_subplot(*layout, projection="3d" if solid else None)
    axes.set_title(title, fontsize=11, color=INK, loc="center" if solid else "left")
    axes.set_xlim(*view.box[0])
    if solid:
        axes.set_ylim(*view.box[1])
        axes.set_zlim(*view.box[2])
        axes.set_box_aspect(np.ptp(view.box, axis=1), zoom=1.45)
        axes.set_axis_off()
        axes.view_init(elev=38, azim=-60)
        return axes
    quiet(axes)
    if len(view.coordinates) == 2:
        axes.set_ylim(*view.box[1])
        axes.set_aspect("equal")
    else:
        axes.set_yticks([])
    return axes


def quiet(axes: Any) -> None:
    """Thin the frame and the ticks."""
    for side in axes.spines.values():
        side.set_color("#c5ccd3")
        side.set_linewidth(0.8)
    axes.tick_params(which="both", length=0, labelsize=8, labelcolor=FAINT)
    axes.locator_params(nbins=5)


def draw_cloud(axes: Any, view: View, Z: np.ndarray, colour: str | None = None) -> Any:
    """Draw points, coloured by density unless a colour is given, over the contours of the law."""
    missing = view.outside(Z)
    if missing:
        text = axes.text2D if len(view.coordinates) == 3 else axes.text
        text(
            0.98,
            0.02,
            f"{missing:,} outside",
            transform=axes.transAxes,
            ha="right",
            fontsize=8,
            color=FAINT,
        )
    if len(view.coordinates) == 1:
        return _draw_histogram(axes, view, Z, colour)
    draw_contours(axes, view)
    look: dict[str, Any] = {
        "s": point_size(len(Z)),
        "linewidths": 0,
        "alpha": 0.8 if len(Z) < 3_000 else 0.6,
    }
    look["rasterized"] = True
    shown = view.of(Z)
    if colour is not None:
        return axes.scatter(*shown.T, color=colour, **look)
    heights = view.heights(Z)
    order = np.argsort(heights)  # the densest on top
    return axes.scatter(*shown[order].T, c=shades(heights[order]), **look)


def point_size(n: int) -> float:
    """Return a marker area, in square points, at which n points fill a panel without hiding each other."""
    return float(np.clip(9_000 / n, 0.9, 14.0))


def shades(heights: np.ndarray) -> np.ndarray:
    """Return colours (n, 4) for relative densities in [0, 1]."""
    import matplotlib

    return matplotlib.colormaps[COLOURS](PALEST + (1 - PALEST) * heights**LIFT)


def draw_contours(axes: Any, view: View) -> None:
    """Draw thin contours of the law in two dimensions."""
    if view.values is not None and len(view.coordinates) == 2 and view.values.max() > 0:
        levels = view.values.max() * np.array([0.08, 0.3, 0.6, 0.9])
        axes.contour(
            *view.nodes,
            view.values,
            levels=levels,
            colors=FAINT,
            linewidths=0.5,
            alpha=0.7,
            zorder=0,
        )


def draw_density(axes: Any, view: View) -> None:
    """Draw the exact density: shades in two dimensions, a curve on the line."""
    if view.values is None:
        return
    if len(view.coordinates) == 1:
        axes.fill_between(view.nodes[0], view.values, color=INK, alpha=0.15, linewidth=0)
        axes.plot(view.nodes[0], view.values, color=INK, linewidth=1.2)
        axes.set_ylim(0, 1.15 * view.values.max())
        return
    extent = (*view.box[0], *view.box[1])
    shade = (view.values / (view.values.max() or 1.0)) ** LIFT
    axes.imshow(
        shade,
        origin="lower",
        extent=extent,
        cmap=fading(),
        vmin=0,
        vmax=1,
        interpolation="bilinear",
        interpolation_stage="rgba",
    )
    axes.set_aspect("equal")


def fading() -> Any:
    """Return the colour map of the points, faded to white at its pale end."""
    import matplotlib
    from matplotlib.colors import ListedColormap

    table = matplotlib.colormaps[COLOURS](np.linspace(PALEST, 1, 256))
    ramp = np.sin(math.pi / 2 * np.minimum(1.0, np.linspace(0, 1, 256) / 0.4))[:, None]
    table[:, :3] = ramp * table[:, :3] + (1 - ramp)
    return ListedColormap(table)


def draw_paths(axes: Any, view: View, frames: list[np.ndarray]) -> None:
    """Draw how particles travel: paths of some from pale start to dark end, and where all are midway."""
    sizes = {len(Z) for Z in frames}
    if len(view.coordinates) == 1:
        _draw_paths_over_time(axes, frames, view)
        return
    draw_contours(axes, view)
    if len(frames) > 2:
        middle = view.of(frames[(len(frames) - 1) // 2])
        axes.scatter(
            *middle.T,
            s=point_size(len(middle)),
            color="#b9c3cc",
            linewidths=0,
            alpha=0.5,
            rasterized=True,
        )
    if len(sizes) > 1:
        return  # the clouds are not the same particles
    n = sizes.pop()
    chosen = np.random.default_rng(0).choice(n, min(n, PATHS), replace=False)
    paths = _finer(np.stack([view.of(Z)[chosen] for Z in frames]))  # (times, chosen, c)
    if len(view.coordinates) == 3:
        Lines = import_module("mpl_toolkits.mplot3d.art3d").Line3DCollection
    else:
        from matplotlib.collections import LineCollection as Lines
    segments = np.stack([paths[:-1], paths[1:]], axis=2).reshape(-1, 2, len(view.coordinates))
    age = np.repeat((np.arange(len(paths) - 1) + 0.5) / (len(paths) - 1), len(chosen))
    lines = Lines(segments, colors=_from_start_to_end()(age), linewidths=0.6, alpha=0.75)
    axes.add_collection(lines)
    axes.scatter(*paths[-1].T, s=5, color="#30246b", linewidths=0, zorder=3)


def _finer(paths: np.ndarray) -> np.ndarray:
    """Return paths (times, n, c) with at least PIECES straight pieces."""
    between = math.ceil(PIECES / (len(paths) - 1))
    time = np.linspace(0, len(paths) - 1, between * (len(paths) - 1) + 1)
    before = np.minimum(time.astype(int), len(paths) - 2)
    share = (time - before)[:, None, None]
    return (1 - share) * paths[before] + share * paths[before + 1]


def _from_start_to_end() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("start to end", [START, "#c9a7b8", "#30246b"])


def _draw_histogram(axes: Any, view: View, Z: np.ndarray, colour: str | None) -> Any:
    bins = int(np.clip(math.sqrt(len(Z)), 12, 80))
    shown = view.of(Z)[:, 0]
    inside = np.mean((shown >= view.box[0, 0]) & (shown <= view.box[0, 1])) or 1.0
    heights, edges = np.histogram(shown, bins=bins, range=tuple(view.box[0]), density=True)
    bars = axes.stairs(heights * inside, edges, fill=True, color=colour or "#3b7a8f", alpha=0.75)
    if view.values is not None:
        axes.plot(view.nodes[0], view.values, color=INK, linewidth=1.0)
    return bars


def _draw_paths_over_time(axes: Any, frames: list[np.ndarray], view: View) -> None:
    n = min(len(Z) for Z in frames)
    chosen = np.linspace(0, n - 1, min(n, 120)).astype(int)
    order = np.argsort(view.of(frames[0])[:n, 0])[chosen]
    paths = np.stack([view.of(Z)[order, 0] for Z in frames])
    axes.plot(paths, np.linspace(0, 1, len(frames)), color="#30246b", linewidth=0.5, alpha=0.5)
    axes.set_ylim(0, 1)
    axes.set_ylabel("time", fontsize=8, color=FAINT)
