r"""Local sums on an NVIDIA GPU: a block of targets visits a list of tiles, with the guarantee of :mod:`~gpukoop.kernels.cells`.

A cell of the sources is the tile that a block stages, a cell of the targets the rows that a block owns. Two passes:

1. a product over the few tiles that may matter most to a block, with the absolute values of the weights. What a
   target collects there, :math:`a_i`, is at most its full sum of absolute values;
2. what was asked, over every tile J but those with

.. math:: W_J \, e(q_J) \;\le\; \frac{\mathrm{tol}}{C} \, \min_{i \text{ in the block}} a_i .

At most C tiles are left out, C their number: what is missing is at most tol times the sum of absolute values of every
target of the block. The CPU decides while it sums; here the lists are ready before the launch, because a decision
inside the loop would cost it a second sum a pair and a vote of the block at a barrier. So a list costs the loop
over pairs nothing, and no result depends on the order of threads.

Everything is in logarithms, so that weights such as exp(1e4) pass. On CuPy arrays the host reads two things: the extent of
the sources, which decides whether there is anything to leave out, and the lengths of the lists.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np

from gpukoop.kernels.arrays import Array
from gpukoop.kernels.cells import (
    MIN_CELLS,
    MIN_TARGETS,
    SHARE,
    Envelope,
    arrange,
    boxes,
    half_squared,
    in_cells,
    squared_gaps,
)
from gpukoop.kernels.cuda.pairs.plan import Part, Plan, Sizes
from gpukoop.kernels.cuda.pairs.rates import exact_cost, listed_cost
from gpukoop.kernels.cuda.specification import WIDEST_TILE
from gpukoop.kernels.formula.profile import AbstractKernel, trace
from gpukoop.kernels.operation import PRODUCT
from gpukoop.kernels.reference import evaluate, squared_distances

Keep = Callable[[Array, Array], Array]

# Below, ordering the points (some 500 short array operations, 10 to 30 ms) takes as long as all pairs: derived,
# not measured.
MIN_PAIRS = 2**36
NEAR = 16  # tiles of the first pass: twice what a block of 1024 targets covers of its own kind
SAMPLE = 256  # targets and sources whose pairs say what share of all matters
ENTRIES = 2**22  # pairs of cells whose bounds are in memory at once, some 200 MB with temporaries
LOWEST = -1e300  # of a maximum that is subtracted: -inf - -inf would be nan


def possible(sizes: Sizes) -> bool:
    """Return whether sums of these sizes may leave tiles out; whether they do depends on the points.

    The gradient of a log-sum-exp has no bound here: what is left out is small beside the sum, not beside a
    gradient that may vanish.
    """
    operation, c = sizes.operation, sizes.clouds
    if sizes.tol is None or (operation.log and operation.slope) or c.d > WIDEST_TILE:
        return False
    return c.n * c.m >= MIN_PAIRS and c.n >= MIN_TARGETS


def make_local(
    kernel: AbstractKernel,
    sizes: Sizes,
    X: Array,
    Y: Array,
    V: Array,
    engine: Any,
    once: bool = False,
) -> LocalSums | None:
    """Return the local sums of a request, or None where nothing would be saved; ``engine`` runs plans.

    ``once`` says that exact sums would visit each pair of one cloud once.
    """
    operation, c, tol = sizes.operation, sizes.clouds, sizes.tol
    if tol is None or not possible(sizes):
        return None
    # Ordered points are copies; that much of the tolerance is left to the forms of q.
    apart = replace(c, same=False)
    sizes = replace(sizes, clouds=apart, tol=(1 - SHARE) * tol, listed=True)
    plan = Plan(kernel, sizes)
    if c.m < MIN_CELLS * min(part.shape.tile for part in plan.parts):
        return None
    scale = None
    if operation.slope:
        scale = max(radial.length for _, radial in kernel.terms)
    bounds = [Envelope(part.trace, scale, operation.log) for part in plan.parts]
    half = float(half_squared(Y))
    if not all(bound.decays(half, tol) for bound in bounds):
        return None
    share = visited(kernel, X, Y, V, tol, operation.log, engine.xp)
    if listed_cost(share) >= exact_cost(once):
        return None
    first = Plan(kernel, replace(sizes, operation=PRODUCT)) if scale else plan
    return LocalSums(first, plan, bounds, X, Y, V, tol, engine)


def visited(
    kernel: AbstractKernel,
    X: Array,
    Y: Array,
    V: Array,
    tol: float,
    exponent: bool,
    xp: ModuleType,
) -> float:
    """Return the share of pairs that matter, from a sample: those with w_j k_ij above ``tol`` times their row's mean.

    That is the rule of the lists for tiles of one source, so it is the least that lists could visit. Waits for the device once.
    """
    i = xp.asarray(np.linspace(0, len(X) - 1, SAMPLE).astype(int))
    # Between the sampled targets where X is Y: a point says nothing about its neighbourhood.
    j = xp.asarray(np.linspace(0, len(Y) - 1, 2 * SAMPLE + 1).astype(int)[1::2])
    weights = V[j].reshape(SAMPLE, -1).astype(float)
    if exponent:
        weights = xp.exp(weights - xp.maximum(weights.max(axis=0), LOWEST))
    weights = abs(weights)
    terms = xp.zeros((SAMPLE, SAMPLE))
    q = squared_distances(X[i], Y[j])
    for of in (trace(radial) for _, radial in kernel.terms):
        phi = evaluate(of.phi, q * of.prescale**2, of.symbols, of.values)
        terms = terms + abs(phi)
    terms = terms * weights.max(axis=1)
    return float((terms > tol * terms.mean(axis=1, keepdims=True)).mean())


class LocalSums:
    """One reduction over lists of tiles: ``plan``, after the sums of absolute values of the plan ``first``."""

    def __init__(
        self,
        first: Plan,
        plan: Plan,
        bounds: list[Envelope],
        X: Array,
        Y: Array,
        V: Array,
        tol: float,
        engine: Any,
    ) -> None:
        self.first, self.plan, self.tol, self.engine = first, plan, tol, engine
        self.xp = xp = engine.xp
        self.exponent = plan.sizes.operation.log
        self.order = arrange(X, min(part.rows_of_block for part in plan.parts), xp).order
        sources = arrange(Y, min(part.shape.tile for part in plan.parts), xp).order
        self.X, self.Y, self.V = X[self.order], Y[sources], V[sources]
        weights = self.V.reshape(len(Y), -1).T.astype(float)
        logs = weights if self.exponent else _log(abs(weights), xp)

        def pairs(plan: Plan) -> list[Pairs]:
            each = zip(plan.parts, bounds, strict=True)
            return [Pairs(part, bound, self.X, self.Y, logs, xp) for part, bound in each]

        self.near = pairs(first)
        self.far = self.near if first is plan else pairs(plan)

    def run(self) -> Any:
        """Return the result."""
        size = self.V if self.exponent else abs(self.V)
        outs = self._sums(self.first, size, [p.nearest for p in self.near])
        rules = []
        for near, far in zip(self.near, self.far, strict=True):
            sums = near.part.read(outs)["value"].T.astype(float)  # (t, n)
            if not self.exponent:
                sums = _log(abs(sums), self.xp)
            rules.append(far.rule(sums, SHARE * self.tol))
        outs = self._sums(self.plan, self.V, rules)
        result = self.plan.unpack(outs, self.xp, self.V.ndim == 1)
        if isinstance(result, tuple):
            return tuple(self._restore(a) for a in result)
        return self._restore(result)

    def _sums(self, plan: Plan, weights: Array, rules: list[Keep]) -> dict[str, Array]:
        """Run a plan over the lists that rules make; return its buffers."""
        buffers = plan.pack(self.X, self.Y, weights, self.xp)
        for pairs, keep in zip(self.near if plan is self.first else self.far, rules, strict=True):
            names = (pairs.part.name(name) for name in ("bounds", "visits"))
            buffers.update(zip(names, pairs.lists(keep), strict=True))
        self.engine.run(plan, buffers)
        return buffers

    def _restore(self, result: Array) -> Array:
        out = self.xp.empty_like(result)
        out[self.order] = result
        return out


class Pairs:
    """The pairs of blocks and tiles of one part of a plan, and which of them are visited.

    ``bound`` is e, ``X`` and ``Y`` are in order, ``logs`` (t, m) the logarithms of the absolute weights. A rule
    gets the rows of pairs of some blocks, their numbers and log e, and returns where to keep them.
    """

    def __init__(
        self, part: Part, bound: Envelope, X: Array, Y: Array, logs: Array, xp: ModuleType
    ) -> None:
        self.part, self.bound, self.xp = part, bound, xp
        self.targets = boxes(X, part.rows_of_block, xp)
        self.sources = boxes(Y, part.shape.tile, xp)
        cells = in_cells(logs, part.shape.tile, xp)  # (t, n_cells, tile)
        cells[:, -1, part.shape.tile - (-len(Y) % part.shape.tile) :] = -math.inf  # no copies
        self.masses = _log_sum(cells, xp)  # (t, n_cells)

    def nearest(self, blocks: Array, level: Array) -> Array:
        """Keep the :data:`NEAR` tiles that may matter most; of several columns each counts alike."""
        xp, masses = self.xp, self.masses
        masses = masses - xp.maximum(masses.max(1), LOWEST)[:, None]
        masses = _log_sum(masses.T, xp)
        score = xp.where(masses == -math.inf, -math.inf, level + xp.maximum(masses, LOWEST))
        kept, row = xp.zeros(level.shape, bool), xp.arange(len(blocks))
        for _ in range(NEAR):
            best = score.argmax(1)
            kept[row, best] |= score[row, best] > -math.inf
            score[row, best] = -math.inf
        return kept

    def rule(self, sums: Array, tol: float) -> Keep:
        """Return the rule that leaves out at most ``tol`` exp(sums), the sums of absolute values (t, n)."""
        xp, masses = self.xp, self.masses
        sums = xp.where(xp.isfinite(sums), sums, -math.inf)  # what overflowed bounds nothing
        least = in_cells(sums, self.part.rows_of_block, xp).min(2)  # (t, n_blocks)
        share = math.log(tol / masses.shape[1])

        def keep(blocks: Array, level: Array) -> Array:
            kept = xp.zeros(level.shape, bool)
            for mass, low in zip(masses, least[:, blocks], strict=True):
                kept |= (mass > -math.inf) & (
                    level > share + low[:, None] - xp.maximum(mass, LOWEST)
                )
            return kept

        return keep

    def lists(self, keep: Keep) -> tuple[Array, Array]:
        """Return where the list of every block and split starts, and the lists one after another."""
        xp, (low, high) = self.xp, self.targets
        counts, tiles = [], []
        step = max(1, ENTRIES // len(self.sources[0]))
        for start in range(0, len(low), step):
            blocks = xp.arange(start, min(start + step, len(low)))
            level = self.bound(squared_gaps(low[blocks], high[blocks], *self.sources, xp), xp)
            kept = keep(blocks, level if self.bound.logarithm else _log(level, xp))
            counts.append(kept.sum(1))
            tiles.append(xp.nonzero(kept)[1].astype(xp.uint32))
        count = xp.concatenate(counts)
        ends, splits = xp.cumsum(count), self.part.splits
        starts = (ends - count)[:, None] + count[:, None] * xp.arange(splits) // splits
        places = xp.concatenate([starts.ravel(), ends[-1:]]).astype(xp.uint64)
        return places, xp.concatenate([*tiles, xp.zeros(1, xp.uint32)])  # never empty


def _log(values: Array, xp: ModuleType) -> Array:
    with np.errstate(divide="ignore"):
        return xp.log(values)


def _log_sum(values: Array, xp: ModuleType) -> Array:
    """Return log sum exp over the last axis, -inf of nothing but -inf."""
    largest = xp.maximum(values.max(-1), LOWEST)
    return largest + _log(xp.exp(values - largest[..., None]).sum(-1), xp)
