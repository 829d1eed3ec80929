r"""Local sums on an NVIDIA GPU: a block of targets visits a list of tiles, with the guarantee of :mod:`~gpukoop.kernels.cells`.

A cell of the sources is the tile that a block stages, a cell of the targets the rows that a block owns. Two passes:

1. over the few tiles that may matter most to a block, with the absolute values of the weights. What a target collects
   there, :math:`a_i`, is at most its full sum of absolute values;
2. over every tile J but those with

.. math:: W_J \, e(q_J) \;\le\; \frac{\mathrm{tol}}{C} \, \min_{i \text{ in the block}} a_i .

At most C tiles are left out, C their number: what is missing is at most tol times the sum of absolute values of every
target of the block. The CPU decides while it sums; here the lists are ready before the launch, because a decision
inside the loop would cost it a second sum a pair and a vote of the block at a barrier. Both passes run the
same code, so a list costs the loop over pairs nothing, and no result depends on the order of threads.

Everything is in logarithms, so that weights such as exp(1e4) pass. On CuPy arrays the host reads two things: the extent of
the sources, which decides whether there is anything to leave out, and the lengths of the lists.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from gpukoop.kernels.cells import (
    MIN_CELLS,
    MIN_TARGETS,
    SHARE,
    Envelope,
    arrange,
    half_squared,
    in_cells,
    squared_gaps,
)
from gpukoop.kernels.part_cuda import Part
from gpukoop.kernels.plan_cuda import Plan
from gpukoop.kernels.profile import AbstractKernel
from gpukoop.kernels.source_cuda import WIDEST_TILE

Array = Any

# Below, ordering the points (some 500 short array operations, 10 to 30 ms) takes as long as all pairs. Derived, not measured.
MIN_PAIRS = 2**36
NEAR = 16  # tiles of the first pass: twice what a block of 1024 targets covers of its own kind
ENTRIES = 2**22  # pairs of cells whose bounds are in memory at once, some 200 MB with temporaries
OPS = {"product": "product", "gradient": "value_and_gradient", "value_and_gradient": "value_and_gradient", "logsumexp": "logsumexp"}  # fmt: skip


def make_local(
    kernel: AbstractKernel,
    op: str,
    X: Array,
    Y: Array,
    V: Array,
    tol: float | None,
    xp: ModuleType = np,
    **options: Any,
) -> LocalSums | None:
    """Return the local sums of a request, or None where nothing would be saved; ``options`` are those of a plan.

    A gradient is computed with the value, whose sums its bound needs. The gradient of a log-sum-exp is not bounded: what
    is left out is small beside the sum, not beside a gradient that may vanish.
    """
    (n, d), m = X.shape, len(Y)
    if tol is None or op not in OPS or n * m < MIN_PAIRS or n < MIN_TARGETS or d > WIDEST_TILE:
        return None
    t = 1 if V.ndim == 1 else V.shape[1]
    exact = (1 - SHARE) * tol  # left to the forms of q
    plan = Plan(kernel, OPS[op], n, m, d, t, X.dtype.name, tol=exact, listed=True, **options)
    tiles = {(part.shape.tile, part.shape.targets) for part in plan.parts}
    if len(tiles) > 1 or m < MIN_CELLS * plan.parts[0].shape.tile:
        return None
    scale = None
    if "gradient" in op:
        scale = max(float(radial.scale) for _, radial in kernel.terms)
    bounds = [Envelope(part.trace, scale, "logsumexp" in op) for part in plan.parts]
    half = float(half_squared(Y))
    if not all(bound.decays(half, tol) for bound in bounds):
        return None
    return LocalSums(plan, op, bounds, X, Y, V, tol, xp)


class LocalSums:
    """One reduction over lists of tiles; points and weights are in k-d order, results in the caller's."""

    def __init__(
        self,
        plan: Plan,
        op: str,
        bounds: list[Envelope],
        X: Array,
        Y: Array,
        V: Array,
        tol: float,
        xp: ModuleType,
    ) -> None:
        self.plan, self.op, self.bounds, self.xp = plan, op, bounds, xp
        shape = plan.parts[0].shape
        self.tile, self.rows = shape.tile, plan.sizes.block * shape.targets
        self.targets, self.sources = arrange(X, self.rows, xp), arrange(Y, self.tile, xp)
        self.X, self.Y, self.V = X[self.targets.order], Y[self.sources.order], V[self.sources.order]
        self.exponent = "logsumexp" in op
        self.masses = self._masses()
        self.share = math.log(SHARE * tol / len(self.masses))

    def run(self, compute: Callable[[Plan, dict[str, Array]], dict[str, Array]]) -> Any:
        """Return the result; ``compute`` launches a plan on its buffers and returns the outputs among them."""
        outs = compute(self.plan, self.near())
        found = compute(self.plan, self.far(outs))
        result = self.plan.unpack(found, self.xp)
        if self.op == "gradient":
            result = result[1]
        if isinstance(result, tuple):
            return tuple(self._restore(a) for a in result)
        return self._restore(result)

    def near(self) -> dict[str, Array]:
        """Return the buffers of the first pass: absolute values, and the tiles that may matter most."""
        size = self.V if self.exponent else abs(self.V)
        masses = self.masses
        if masses.shape[1] > 1:  # every column counts, whatever its size
            with np.errstate(divide="ignore"):
                largest = self.xp.maximum(masses.max(0), -1e300)
                masses = self.xp.log(self.xp.exp(masses - largest).sum(1))[:, None]
        weightless = masses[:, 0] == -math.inf

        def keep(level: Array, start: int) -> Array:
            score = self.xp.where(weightless, -math.inf, level + masses[:, 0])
            kept = self.xp.zeros(level.shape, bool)
            box = self.xp.arange(len(level))
            for _ in range(NEAR):
                best = score.argmax(1)
                kept[box, best] |= score[box, best] > -math.inf
                score[box, best] = -math.inf
            return kept

        return self._pack(size, [keep for _ in self.bounds])

    def far(self, outs: dict[str, Array]) -> dict[str, Array]:
        """Return the buffers of the second pass, given the outputs of the first."""
        return self._pack(self.V, [self._rule(part, outs) for part in self.plan.parts])

    def _rule(self, part: Part, outs: dict[str, Array]) -> Callable[[Array, int], Array]:
        """Return which pairs of cells are kept: ``keep(level, start)`` for the blocks of targets from ``start``."""
        xp = self.xp
        found = part.unpack(outs, xp)["value"].T.astype(float)  # (t, n)
        if self.exponent:
            found = xp.where(xp.isfinite(found), found, -math.inf)
        else:
            with np.errstate(divide="ignore"):
                found = xp.log(xp.where(xp.isfinite(found), abs(found), 0.0))
        least = in_cells(found, self.rows, xp).min(2)  # (t, n_boxes)

        def keep(level: Array, start: int) -> Array:
            room = xp.full(level.shape, math.inf)
            for mass, low in zip(self.masses.T, least[:, start : start + len(level)], strict=True):
                with np.errstate(invalid="ignore"):
                    left = self.share + low[:, None] - mass
                room = xp.minimum(room, xp.where(mass == -math.inf, math.inf, left))
            return level > room

        return keep

    def _masses(self) -> Array:
        """Return the logarithms of sum abs(v) over the cells, (n_cells, t)."""
        xp = self.xp
        with np.errstate(divide="ignore"):
            V = self.V.reshape(len(self.V), -1).T.astype(float)
            V = V if self.exponent else xp.log(abs(V))
        cells = in_cells(V, self.tile, xp)  # (t, n_cells, tile)
        filled = cells.shape[1] * self.tile - V.shape[1]
        if filled:
            cells[:, -1, self.tile - filled :] = -math.inf
        largest = xp.maximum(cells.max(2), -1e300)  # -inf - -inf would be nan
        with np.errstate(divide="ignore"):
            return (largest + xp.log(xp.exp(cells - largest[:, :, None]).sum(2))).T

    def _pack(self, weights: Array, keeps: list[Callable[[Array, int], Array]]) -> dict[str, Array]:
        buffers = self.plan.pack(self.X, self.Y, weights, self.xp)
        for part, bound, keep in zip(self.plan.parts, self.bounds, keeps, strict=True):
            names = part.name("bounds"), part.name("visits")
            buffers.update(zip(names, self._lists(part.splits, bound, keep), strict=True))
        return buffers

    def _lists(
        self, splits: int, bound: Envelope, keep: Callable[[Array, int], Array]
    ) -> tuple[Array, Array]:
        """Return where the list of every block and split starts, and the lists one after another."""
        xp, targets = self.xp, self.targets
        counts, tiles = [], []
        step = max(1, ENTRIES // len(self.sources.low))
        for start in range(0, len(targets.low), step):
            boxes = slice(start, start + step)
            gaps = squared_gaps(targets.low[boxes], targets.high[boxes], self.sources, xp)
            level = bound(gaps, xp)
            if not self.exponent:
                with np.errstate(divide="ignore"):
                    level = xp.log(level)
            kept = keep(level, start)
            counts.append(kept.sum(1))
            tiles.append(xp.nonzero(kept)[1].astype(xp.uint32))
        count = xp.concatenate(counts)
        ends = xp.cumsum(count)
        starts = (ends - count)[:, None] + count[:, None] * xp.arange(splits) // splits
        places = xp.concatenate([starts.ravel(), ends[-1:]]).astype(xp.uint64)
        return places, xp.concatenate([*tiles, xp.zeros(1, xp.uint32)])  # never empty

    def _restore(self, result: Array) -> Array:
        out = self.xp.empty_like(result)
        out[self.targets.order] = result
        return out
