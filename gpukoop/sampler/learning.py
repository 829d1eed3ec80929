"""What a fit does: moments for every slab and class, the choice of the ridge, the one-step map.

:class:`Learner` holds what was learned and can go on learning.
"""

from __future__ import annotations

import logging
import math
from typing import Any, final

import numpy as np

from gpukoop.arrays import Array, namespace, to_host
from gpukoop.blas import one_thread
from gpukoop.progress import bar
from gpukoop.sampler.choice import REG_DEFAULT, by_held_out, by_trajectories
from gpukoop.sampler.clock import Frame
from gpukoop.sampler.distillation import distilled, distilled_recipes
from gpukoop.sampler.evolution import Evolution, Stage
from gpukoop.sampler.lifting import Lift, row_blocks
from gpukoop.sampler.moments import Moments, assemble
from gpukoop.sampler.recipe import FEW_POINTS, Recipe, build_lift
from gpukoop.sampler.solves import ridge
from gpukoop.sampler.teacher import AbstractTeacher
from gpukoop.sampler.triples import Triples

_log = logging.getLogger("gpukoop")

# Triples per feature, at least and, however many points there are, at most. With velocities conditioned on the batch 60 do in
# two dimensions; beyond 200 the error of the dictionary is all that is left.
TRIPLES_PER_FEATURE = (100, 200)
# Of few points: half as many features and 40 triples a feature take .18 to .40 of the CPU time and end somewhat further from
# points that were not learned from (energy distance; moons .0064 after .0050, breast cancer .065 after .060, wine .125 after .124).
TRIPLES_OF_FEW = (40, 200)
# Beyond this many numbers the moments of all classes and bins keep fewer bins: 512 MB.
MOMENT_ENTRIES = 2**26


def _seed(*path: int) -> int:
    return int(np.random.SeedSequence(path).generate_state(1, np.uint64)[0] >> np.uint64(1))


@final
class Learner:
    """Moments of every slab and class, the operators solved from them, and the ridge that was chosen.

    Parameters
    ----------
    recipe : Recipe
    teacher : teacher or None
    seed : int

    Attributes
    ----------
    lifts : list of Lift
        One for each slab.
    moments : dict
        label -> list of Moments, one for each slab; the label None is that of all points.
    frames : dict
        label -> Frame. Each class has its own, so that a narrow class is as easy as a wide one.
    evolutions : dict
        label -> Evolution.
    reg, reg_path : float, list of (reg, score)
    """

    def __init__(self, recipe: Recipe, teacher: AbstractTeacher | None, seed: int) -> None:
        self.recipe, self.teacher, self.seed = recipe, teacher, seed
        self.lifts: list[Lift] = []
        self.moments: dict[Any, list[Moments]] = {}
        self.sizes: dict[Any, int] = {}
        self.ratios: dict[Any, float] = {}
        self.evolutions: dict[Any, Evolution] = {}
        self.reg_path: list[tuple[float, float]] = []
        self.reg = math.nan
        self.guide: Learner | None = None
        if recipe.distill:
            self.recipe, guide = distilled_recipes(recipe)
            self.one_step = recipe
            self.guide = Learner(guide, teacher, _seed(seed, 1))

    def prepare(self, frames: dict[Any, Frame], groups: dict[Any, Array]) -> None:
        """Fix frames and dictionaries; everything later is linear in the moments.

        The dictionary is shared: of the points of all classes, each in its frame, where there are classes.
        """
        self.frames = frames
        self.frame = frames[None]
        parts = [data for label, data in groups.items() if label is not None] or [groups[None]]
        data = parts[0] if len(parts) == 1 else namespace(parts[0]).concatenate(parts)
        self.empty = data[:0]  # library and device of what is learned
        self.lifts = [
            build_lift(self.recipe, data, slab, np.random.default_rng([self.seed, j]), len(parts))
            for j, slab in enumerate(self.recipe.slabs)
        ]
        _log.debug("lift: %s features", [lift.n_features for lift in self.lifts])
        if self.guide is not None:
            self.guide.prepare(frames, groups)

    def accumulate(self, groups: dict[Any, Array]) -> None:
        """Add the triples of these points, (n_k, d) for each label, each in its frame."""
        if self.guide is not None:
            self.guide.accumulate(groups)
        n_bins = self._bins(len(groups))
        wanted: dict[tuple[Any, int], int] = {}
        for label, data in groups.items():
            slabs = self.moments.setdefault(label, [])
            self.sizes[label] = self.sizes.get(label, 0) + len(data)
            for j, (slab, lift) in enumerate(zip(self.recipe.slabs, self.lifts, strict=True)):
                # Later points of a stream weigh as much as the first ones.
                ratio = self._triples(lift, len(data), len(groups[None]))
                ratio = self.ratios.setdefault((label, j), ratio)
                wanted[label, j] = max(1, round(ratio * len(data)))
                if len(slabs) <= j:
                    size = lift.n_features, lift.n_coordinates
                    slabs.append(Moments(slab, *size, n_bins, self.recipe.ends(j)))
        progress = bar(sum(wanted.values()), "KoopmanSampler", self.recipe.verbose)
        with progress:
            for (label, j), count in wanted.items():
                moments = self.moments[label][j]
                key = 0 if label is None else 1 + list(self.moments).index(label)
                triples = Triples(groups[label], self.teacher, _seed(self.seed, key, j))

                def shown(m: Moments, zero: int = progress.n - moments.count) -> None:
                    progress.update(zero + m.count - progress.n)

                assemble(
                    self.lifts[j], triples, moments.count + count, moments=moments, callback=shown
                )

    def _triples(self, lift: Lift, n: int, total: int) -> float:
        """Return triples per data point of a class of n among ``total`` points."""
        if self.recipe.n_triples is not None:
            return self.recipe.n_triples / total
        low, high = TRIPLES_OF_FEW if total < FEW_POINTS else TRIPLES_PER_FEATURE
        return min(max(low * lift.n_features, n), high * lift.n_features) / n

    def _bins(self, n_groups: int) -> int:
        K = max(1, self.recipe.n_bins // len(self.recipe.slabs))
        # In the log clock the path moves most in the first seventh of the window.
        K = 2 * K if self.recipe.clock.log and K > 1 else K
        largest = max(lift.n_features for lift in self.lifts)
        while K > 1 and n_groups * len(self.lifts) * 2 * K * largest**2 > MOMENT_ENTRIES:
            K //= 2
        return K

    def pooled(self) -> list[Moments]:
        """Return the moments of all points, one for each slab."""
        return self.moments[None]

    def _shape(self) -> list[Moments]:
        """Return the mean over classes of their moments, each in its frame: the shape that small classes are moved to."""
        classes = [label for label in self.moments if label is not None]
        total = sum(self.sizes[label] for label in classes)
        result = []
        for j in range(len(self.lifts)):
            parts = [
                self.moments[label][j].scaled(
                    self.sizes[label] / total / self.moments[label][j].count
                )
                for label in classes
            ]
            result.append(parts[0].pooled(parts[1:]))
        return result

    def solve(self, reg: float | str, data: Array, held_out: Array | None = None) -> None:
        """Choose the ridge if it is "auto", by these points in the frame, and solve every slab of every class."""
        with one_thread(16 * max(lift.n_features for lift in self.lifts) ** 2):
            self._solve(reg, data, held_out)

    def _solve(self, reg: float | str, data: Array, held_out: Array | None) -> None:
        pooled = self.pooled()
        if self.guide is not None:
            self.guide.solve(reg, data, held_out)
            self.reg, self.reg_path = self.guide.reg, self.guide.reg_path
        elif isinstance(reg, str):
            self.reg = self._choose(data, held_out)
        else:
            self.reg = float(reg)
        self.evolutions = {None: self._evolution(pooled, self.reg)}
        self.single = self.evolutions[None]
        if self.guide is not None:
            chain = self.guide.evolutions[None]
            self.evolutions = {None: distilled(self.one_step, chain, self.empty, self.seed)}
        if len(self.moments) == 1:
            return
        shape = self._shape()
        for label, slabs in self.moments.items():
            if label is not None:
                blended = [
                    self._shrunk(own, mix, self.sizes[label])
                    for own, mix in zip(slabs, shape, strict=True)
                ]
                self.evolutions[label] = self._evolution(blended, self.reg)

    @staticmethod
    def _shrunk(own: Moments, mix: Moments, size: int) -> Moments:
        """Move a class of n points towards the common shape with weight 1 / (1 + n): one point says little alone."""
        w = 1.0 / (1.0 + size)
        return own.scaled(1 - w).pooled([mix.scaled(w * own.count / mix.count)])

    def _evolution(self, slabs: list[Moments], reg: float, ends_only: bool = False) -> Evolution:
        stages = [
            Stage(lift, m, ridge(m, reg), self.recipe.options(j), ends_only=ends_only)
            for j, (lift, m) in enumerate(zip(self.lifts, slabs, strict=True))
        ]
        return Evolution(stages)

    def _endpoints(self, reg: float, base: Array) -> Array:
        return self._evolution(self.pooled(), reg, ends_only=True).transport(base)

    def _choose(self, data: Array, held_out: Array | None) -> float:
        """Return the best ridge of the path, which it keeps; see ``gpukoop.sampler.choice``."""
        backend = self.recipe.backend
        if self.recipe.solver == "exponential":
            self.reg_path = by_trajectories(self._endpoints, self.teacher, data, self.seed, backend)
        elif held_out is not None:
            self.reg_path = by_held_out(self._endpoints, held_out, self.seed, backend)
        else:
            self.reg_path = []
            return REG_DEFAULT
        return min(self.reg_path, key=lambda row: row[1])[0]

    def error(self, data: Array) -> float:
        """Return the root mean square distance of endpoints from those of the exact flow with the ridge that was chosen."""
        chosen = (self.teacher, data, self.seed, self.recipe.backend)
        path = self.reg_path or by_trajectories(self._endpoints, *chosen, regs=(self.reg,))
        return min(score for _, score in path)


def certificate(learner: Learner, data: Array, n_triples: int = 4096) -> float:
    r"""Return a bound on the root mean square error of the one-step map, in units of the frame.

    .. math:: \mathrm{RMSE} \le (E_b |u - x|^2)^{1/2} + (b - a) (E |L u|^2)^{1/2}, \qquad u = g c

    Safe but loose, by a factor of 100 and more; without a teacher the second term is over-estimated, never under-estimated.
    nan if the map is not one SAT stage.
    """
    stage = learner.single.stages[0]
    if learner.guide is not None or len(learner.lifts) > 1 or stage.generator is not None:
        return math.nan
    triples = Triples(data, learner.teacher, _seed(learner.seed, 2**31))
    xp = namespace(data)
    c = xp.asarray(stage.maps[-1])
    walk = triples.walk(0, 1, n_triples)
    a, b = stage.slab
    clock = stage.lift.clock
    t = xp.asarray(clock.time(a + (b - a) * walk.uniform[0]))
    end = float(clock.time(b))
    x, last = walk.at(t), walk.at(end)
    u = triples.velocity(walk, x, t)
    sums: Any = 0.0
    for rows in row_blocks(n_triples, stage.lift.n_features, data):
        rate = stage.lift.lift_and_generate(x[rows], t[rows], u[rows])[1]
        off = stage.lift.lift(last[rows], end) @ c - last[rows]
        sums = sums + xp.stack([(off**2).sum(), ((rate @ c) ** 2).sum()])
    misfit, slope = to_host(sums).tolist()
    return math.sqrt(misfit / n_triples) + (b - a) * math.sqrt(slope / n_triples)
