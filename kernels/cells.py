r"""Which tiles of sources a block of targets may leave out, with a guaranteed error.

Points are put in k-d order, so that consecutive ones are neighbours; a cell is ``size`` of them in their box.
Let :math:`W_J = \sum_{j \in J} |v_j|` and let e(q) bound every pair at squared distance q or more. A block of
targets visits the cells of the sources in the order of their distance, and stops as soon as

.. math:: \sum_{J \text{ not visited}} W_J \, e(q_J) \;\le\; \mathrm{tol} \cdot
          \min_i \sum_{j \text{ visited}} |v_j| \, |k(x_i, y_j)|,

with q_J the squared distance of the boxes. The left side is at least what is left out, the right side at most tol times
the full sum of absolute values of every target of the block: the bound holds for each result, whatever the data. Points
that are far from everything simply never stop early.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gpukoop.kernels.printers import NumPyPrinter
from gpukoop.kernels.profile import Trace

Array = Any

MIN_TARGETS, MIN_CELLS = 4096, 16  # below, sorting and bounds cost more than they save
BLOCK = 128  # targets that visit the same cells
SHARE = 0.25  # of the tolerance; the rest is for the exponential and rounding
FAR = 0.01  # of the tolerance: a kernel that does not decay to this within the cloud is summed in full

# Squared distances at which the bound is tabulated: the step in q is 1 percent.
_GRID = np.concatenate([[0.0], np.geomspace(1e-8, 1e8, 3700)])
_BETWEEN = 1.001  # a smooth maximum between two grid points exceeds both by less


@dataclass(frozen=True)
class Cells:
    """Points in k-d order: ``X[order]`` has the boxes low to high, of ``size`` consecutive points each."""

    order: Array  # (n,)
    low: Array  # (n_cells, d)
    high: Array  # (n_cells, d)


def arrange(X: Array, size: int) -> Cells:
    """Return the cells of X: halved along the longest side, at a multiple of ``size``, until they fit.

    Cost: n log2(n / size) operations.
    """
    order = np.arange(len(X))
    stack = [(0, len(X))]
    while stack:
        start, stop = stack.pop()
        if stop - start <= size:
            continue
        part = order[start:stop]
        points = X[part]
        axis = int(np.argmax(points.max(0) - points.min(0)))
        half = -(-(stop - start) // (2 * size)) * size
        order[start:stop] = part[np.argpartition(points[:, axis], half)]
        stack += [(start, start + half), (start + half, stop)]
    starts = np.arange(0, len(X), size)
    arranged = X[order]
    return Cells(
        order, np.minimum.reduceat(arranged, starts), np.maximum.reduceat(arranged, starts)
    )


def squared_gaps(low: Array, high: Array, cells: Cells) -> Array:
    """Return squared distances between boxes, (n_boxes, n_cells), never more than between their points."""
    total = np.zeros((len(low), len(cells.low)))
    for k in range(low.shape[1]):
        below = cells.low[None, :, k].astype(float) - high[:, None, k]
        above = low[:, None, k].astype(float) - cells.high[None, :, k]
        total += np.maximum(np.maximum(below, above), 0.0) ** 2
    return total


class Envelope:
    """e(q): bounds phi, and scale times the size of the gradient, at squared distance q and beyond.

    ``trace`` is that of the kernel, ``scale`` the length in which its gradient is measured, None for sums
    without gradient.
    """

    def __init__(self, trace: Trace, scale: float | None) -> None:
        bound = np.abs(self._values(trace, trace.phi))
        if scale is not None:
            slope = np.abs(self._values(trace, trace.dphi))
            with np.errstate(invalid="ignore"):
                size = 2 * trace.prescale * scale * slope * np.sqrt(_GRID)
            bound = np.maximum(bound, size)
        bound[~np.isfinite(bound)] = np.inf
        self.table = _BETWEEN * np.maximum.accumulate(bound[::-1])[::-1]
        self.factor = trace.prescale**2

    @staticmethod
    def _values(trace: Trace, tree: Any) -> Array:
        printer = NumPyPrinter()
        result = printer.print(tree)
        scope = {"np": np, "q": _GRID, **dict(zip(trace.symbols, trace.values, strict=True))}
        with np.errstate(all="ignore"):
            exec("\n".join([*printer.lines, f"result = {result}"]), scope)
        return np.broadcast_to(np.asarray(scope["result"], float), _GRID.shape).copy()

    def __call__(self, squared: Array) -> Array:
        """Return the bound for squared distances in the units of the points."""
        below = np.searchsorted(_GRID, squared * self.factor, side="right") - 1
        return self.table[np.minimum(below, len(self.table) - 1)]


def visits(
    low: Array, high: Array, cells: Cells, weights: Array, bound: Envelope
) -> tuple[Array, Array]:
    """Return the cells in the order of their distance, and what each and all later ones may contribute.

    Parameters
    ----------
    low, high : array of shape (n_boxes, d)
        Boxes of the blocks of targets.
    cells : Cells
        Of the sources.
    weights : array of shape (n_cells,)
        Sums of abs(v) over the cells.
    bound : Envelope

    Returns
    -------
    order, remaining : arrays of shape (n_boxes, n_cells), int32 and float64
    """
    squared = squared_gaps(low, high, cells)
    order = np.argsort(squared, axis=1)
    each = weights[order] * bound(np.take_along_axis(squared, order, axis=1))
    remaining = np.cumsum(each[:, ::-1], axis=1)[:, ::-1]
    return order.astype(np.int32), np.ascontiguousarray(remaining)


@dataclass(frozen=True)
class Plan:
    """Cells of targets and sources, and the bound that decides which pairs of them are left out."""

    targets: Cells
    sources: Cells
    weights: Array
    bound: Envelope
    tol: float
    block: int = BLOCK
    rows: int = 8 * BLOCK

    def visits(self, start: int, stop: int) -> tuple[Array, Array]:
        """Return the visits of the blocks of targets ``start`` to ``stop``."""
        boxes = slice(start // self.block, -(-stop // self.block))
        low, high = self.targets.low[boxes], self.targets.high[boxes]
        return visits(low, high, self.sources, self.weights, self.bound)


def make_plan(
    trace: Trace, scale: float | None, X: Array, Y: Array, V: Array, size: int, tol: float
) -> Plan | None:
    """Return the plan for cells of ``size`` sources, or None where it would save nothing."""
    if len(X) < MIN_TARGETS or len(Y) < MIN_CELLS * size:
        return None
    bound = Envelope(trace, scale)
    half = float(np.square((Y.max(0) - Y.min(0)) / 2, dtype=float).sum())
    if not bound(np.array(half)) < FAR * tol:
        return None
    sources = arrange(Y, size)
    absolute = np.abs(V[sources.order, 0]).astype(float)
    weights = np.add.reduceat(absolute, np.arange(0, len(Y), size))
    return Plan(arrange(X, BLOCK), sources, weights, bound, SHARE * tol)
