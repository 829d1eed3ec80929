"""Figures of a generator: its images side by side, and how its training went."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gpukoop.arrays import Array
from gpukoop.draws import check_count
from gpukoop.plot.canvas import Where, new_figure, written
from gpukoop.plot.curves import plain_axes
from gpukoop.plot.panels import INK, START

MOST = 2_500  # beyond, an image has a few pixels of the figure


def pictures(images: Array, *, columns: int | None = None, path: Where | None = None) -> Any:
    """Return a figure of images side by side, row by row.

    Parameters
    ----------
    images : array of shape (n, height, width) or (n, height, width, colours)
        One colour is drawn grey, three are red, green and blue. The smallest number is black and the largest white; integers
        keep the range of their type.
    columns : int, optional
        Images in a row; by default as many as rows.
    path : path, optional
        Where to write the figure.

    Returns
    -------
    matplotlib.figure.Figure
    """
    stack = np.asarray(images)
    if stack.ndim == 3:
        stack = stack[..., None]
    if stack.ndim != 4 or 0 in stack.shape or stack.shape[3] not in (1, 3):
        raise ValueError(
            f"images has shape {np.shape(images)}, expected (n, height, width) or (n, height, width, 1 or 3)"
        )
    if stack.dtype.kind not in "fiub" or not np.isfinite(stack).all():
        raise ValueError("images holds something else than finite real numbers")
    n, height, width, _ = stack.shape
    if n > MOST:
        raise ValueError(f"images has {n} images, expected at most {MOST}: images[:{MOST}]")
    across = math.ceil(math.sqrt(n)) if columns is None else check_count(columns, "columns")
    down = -(-n // across)
    grid = np.zeros((down * across, height, width, stack.shape[3]))
    grid[:n] = _shades(stack)
    whole = grid.reshape(down, across, height, width, -1).swapaxes(1, 2)
    whole = whole.reshape(down * height, across * width, -1)
    side = 9.0 / max(whole.shape[:2])
    figure = new_figure(whole.shape[1] * side, whole.shape[0] * side)
    figure.set_layout_engine("none")  # images up to the edge
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.imshow(
        whole if whole.shape[2] == 3 else whole[..., 0],
        cmap="gray",
        vmin=0,
        vmax=1,
        interpolation="nearest",
    )
    return written(figure, path)


def training(history: Mapping[str, Array], *, path: Where | None = None) -> Any:
    """Return a figure of a generator's ``history_``: objective and held-out distance, against steps and wall-clock.

    Parameters
    ----------
    history : mapping
        ``history_`` of a fitted :class:`gpukoop.Generator`.
    path : path, optional
        Where to write the figure.

    Returns
    -------
    matplotlib.figure.Figure
    """
    if not isinstance(history, Mapping) or not {"energy", "seconds"} <= set(history):
        raise TypeError(
            f"history is of type {type(history).__name__}, expected history_ of a fitted Generator"
        )
    energy, seconds = (np.asarray(history[name], dtype=float) for name in ("energy", "seconds"))
    if not len(energy):
        raise ValueError("history is empty: the generator has not taken a step")
    looks = np.asarray(history.get("step", []), dtype=int)
    figure = new_figure(8.0, 3.2 * (1 + bool(len(looks))))
    rows: list[tuple[str, np.ndarray, np.ndarray]] = [
        ("objective on the batch", np.arange(1, len(energy) + 1), energy)
    ]
    if len(looks):
        rows.append(
            (
                "distance to held-out samples\n(1: as good as data)",
                looks,
                np.asarray(history["distance"]),
            )
        )
    for i, (name, at, values) in enumerate(rows):
        for j, (label, x) in enumerate((("step", at), ("seconds", seconds[at - 1]))):
            axes = plain_axes(figure, label, name if j == 0 else "", (len(rows), 2, 2 * i + j + 1))
            axes.plot(x, values, "-", color=INK if i == 0 else START, linewidth=1)
            if (values > 0).all():
                axes.set_yscale("log")
    return written(figure, path)


def _shades(stack: np.ndarray) -> np.ndarray:
    """Return pixels in [0, 1]."""
    if stack.dtype.kind in "iu":
        low, high = 0.0, float(np.iinfo(stack.dtype).max)
    else:
        low, high = float(stack.min()), float(stack.max())
    return (stack - low) / (high - low or 1.0)
