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

import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from gpukoop.kernels.arrays import Array
from gpukoop.kernels.formula.derivative import swings
from gpukoop.kernels.formula.printers import NumPyPrinter
from gpukoop.kernels.formula.profile import Trace

MIN_TARGETS, MIN_CELLS = 4096, 16  # below, sorting and bounds cost more than they save
BLOCK = 128  # targets that visit the same cells
SHARE = 0.25  # of the tolerance; the rest is for the exponential and rounding
FAR = 0.01  # of the tolerance: a kernel that does not decay to this within the cloud is summed in full

# Squared distances at which the bound is tabulated: the step in q is 1 percent.
_GRID = np.concatenate([[0.0], np.geomspace(1e-8, 1e8, 3700)])
_BETWEEN = 1.001  # a smooth maximum between two grid points exceeds both by less
_BELOW_ONE = 1.0 - 2.0**-20  # so that a number plus a share of one does not reach the next number


@dataclass(frozen=True)
class Cells:
    """Points in k-d order: ``X[order]`` has the boxes low to high, of ``size`` consecutive points each."""

    order: Array  # (n,)
    low: Array  # (n_cells, d)
    high: Array  # (n_cells, d)


def in_cells(values: Array, size: int, xp: ModuleType = np) -> Array:
    """Return ``values`` (..., n) as (..., n_cells, size), the last cell filled up with copies of the last one."""
    *head, n = values.shape
    if n % size:
        filling = xp.broadcast_to(values[..., -1:], (*head, -n % size))
        values = xp.concatenate([values, filling], axis=-1)
    return values.reshape(*head, -1, size)


def arrange(X: Array, size: int, xp: ModuleType = np) -> Cells:
    """Return the cells of X: halved along the longest side, at a multiple of ``size``, until they fit.

    All parts of a level are sorted at once, by their number plus the place of a point within its part, so that a
    GPU runs some twenty array operations a level. How many points a part has depends on n alone: nothing is read
    back. Cost: log2(n / size) sorts of n numbers.
    """
    n = len(X)
    order, points = xp.arange(n), xp.ascontiguousarray(X.T)
    place = xp.arange(n)
    firsts, counts = np.array([0]), np.array([-(-n // size)])  # parts, in cells
    while True:
        cells = in_cells(points, size, xp)
        lowest, highest = cells.min(2), cells.max(2)  # (d, n_cells)
        if counts.max() == 1:
            return Cells(order, lowest.T, highest.T)
        members = firsts[:, None] + np.minimum(np.arange(counts.max()), counts[:, None] - 1)
        members = xp.asarray(members)
        low = lowest[:, members].min(2).astype(float)  # (d, n_parts)
        side = highest[:, members].max(2) - low
        axis, number = side.argmax(0), xp.arange(len(firsts))
        low, side = low[axis, number], side[axis, number]
        part = xp.asarray(np.repeat(np.arange(len(firsts)), counts))[place // size]
        share = (points[axis[part], place] - low[part]) / xp.where(side > 0, side, 1.0)[part]
        moved = xp.argsort(part + _BELOW_ONE * share)
        order, points = order[moved], xp.take(points, moved, axis=1)
        half = -(-counts // 2)
        firsts = np.stack([firsts, firsts + half], 1).ravel()
        counts = np.stack([half, counts - half], 1).ravel()
        firsts, counts = firsts[counts > 0], counts[counts > 0]


def boxes(X: Array, size: int, xp: ModuleType = np) -> tuple[Array, Array]:
    """Return low and high of every ``size`` consecutive points, (n_cells, d)."""
    cells = in_cells(X.T, size, xp)
    return cells.min(2).T, cells.max(2).T


def squared_gaps(low: Array, high: Array, lows: Array, highs: Array, xp: ModuleType = np) -> Array:
    """Return squared distances between boxes, (n_boxes, n_cells), never more than between their points."""
    total = xp.zeros((len(low), len(lows)))
    for k in range(low.shape[1]):
        below = lows[None, :, k].astype(float) - high[:, None, k]
        above = low[:, None, k].astype(float) - highs[None, :, k]
        total += xp.maximum(xp.maximum(below, above), 0.0) ** 2
    return total


class Envelope:
    """e(q): bounds phi, and scale times the size of the gradient, at squared distance q and beyond.

    ``trace`` is that of the kernel, ``scale`` the length in which its gradient is measured, None for sums
    without gradient. ``logarithm`` bounds log phi instead, which does not underflow.
    """

    def __init__(self, trace: Trace, scale: float | None, logarithm: bool = False) -> None:
        self.logarithm = logarithm
        if logarithm:
            bound = self._values(trace, trace.log_phi) + math.log(_BETWEEN)
        else:
            bound = _BETWEEN * np.abs(self._values(trace, trace.phi))
        if scale is not None:
            slope = np.abs(self._values(trace, trace.dphi))
            with np.errstate(invalid="ignore"):
                size = 2 * trace.prescale * scale * slope * np.sqrt(_GRID)
            bound = np.maximum(bound, _BETWEEN * size)
        # Between two points of the grid a cosine may do anything, so nothing may be left out.
        bound[~np.isfinite(bound) | swings(trace.phi)] = np.inf
        self.table = np.maximum.accumulate(bound[::-1])[::-1]
        self.factor = trace.prescale**2

    @staticmethod
    def _values(trace: Trace, tree: Any) -> Array:
        printer = NumPyPrinter()
        result = printer.print(tree)
        scope = {"np": np, "q": _GRID, **dict(zip(trace.symbols, trace.values, strict=True))}
        with np.errstate(all="ignore"):
            exec("\n".join([*printer.lines, f"result = {result}"]), scope)
        return np.broadcast_to(np.asarray(scope["result"], float), _GRID.shape).copy()

    def __call__(self, squared: Array, xp: ModuleType = np) -> Array:
        """Return the bound for squared distances in the units of the points."""
        grid, table = xp.asarray(_GRID), xp.asarray(self.table)
        below = xp.searchsorted(grid, squared * self.factor, side="right") - 1
        return table[xp.minimum(below, len(table) - 1)]

    def decays(self, half: float, tol: float) -> bool:
        """Return whether the kernel all but vanishes within the squared distance ``half``."""
        near, far = self.table[1], self(np.array(half))  # not at 0, where a slope may be infinite
        return bool(far - near < math.log(FAR * tol) if self.logarithm else far < FAR * tol * near)


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
    squared = squared_gaps(low, high, cells.low, cells.high)
    order = np.argsort(squared, axis=1)
    each = weights[order] * bound(np.take_along_axis(squared, order, axis=1))
    remaining = np.cumsum(each[:, ::-1], axis=1)[:, ::-1]
    return order.astype(np.int32), np.ascontiguousarray(remaining)


def half_squared(Y: Array) -> Array:
    """Return the squared distance from the centre of the box of Y to its corners."""
    return (((Y.max(0) - Y.min(0)).astype(float) / 2) ** 2).sum()


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
    if not bound.decays(float(half_squared(Y)), tol):
        return None
    sources = arrange(Y, size)
    absolute = np.abs(V[sources.order, 0]).astype(float)
    weights = np.add.reduceat(absolute, np.arange(0, len(Y), size))
    return Plan(arrange(X, BLOCK), sources, weights, bound, SHARE * tol)
