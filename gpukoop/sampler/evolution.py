"""Slabs as stages, from noise to data and back, and their chain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from scipy.interpolate import CubicSpline

from gpukoop.arrays import Array, namespace
from gpukoop.checks import check_kind
from gpukoop.draws import check_positive
from gpukoop.sampler.expm import ExponentialOverflow, expm_action
from gpukoop.sampler.lifting import Lift
from gpukoop.sampler.moments import Moments
from gpukoop.sampler.solves import (
    check_parts,
    denoiser,
    energy_ratio,
    generator,
    sat,
    sat_inverse,
)

SOLVERS, FINALS = ("sat", "exponential"), ("none", "jump", "finish")


@final
@dataclass(frozen=True)
class Options:
    """How a slab becomes a stage.

    Parameters
    ----------
    solver : "sat" or "exponential"
    symmetrize : bool
    final : "none", "jump" or "finish"
        Whether the end is reached by the flow, by one denoiser call from the start of the slab (jump and denoise), or by
        the flow and a denoiser call at its end (log clock).
    """

    solver: str = "sat"
    symmetrize: bool = False
    final: str = "none"

    def __post_init__(self) -> None:
        for name, known in (("solver", SOLVERS), ("final", FINALS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        check_kind(self.symmetrize, bool, "symmetrize")


@final
class Stage:
    """One slab: the maps from its start to its bin edges, and back from its end.

    Parameters
    ----------
    lift : Lift
    moments : Moments
    lam : float
    options : Options
    ends_only : bool
        Leave out the maps to the inner edges: enough to score a ridge.
    """

    def __init__(
        self,
        lift: Lift,
        moments: Moments,
        lam: float,
        options: Options,
        *,
        ends_only: bool = False,
    ) -> None:
        check_parts(moments, lam, lift)
        check_kind(options, Options, "options")
        self.lift, self.slab, self.options = lift, moments.slab, options
        K = moments.n_bins
        self.edges = np.array([moments.edge(k) for k in range(K + 1)])
        inner = range(K, K + 1) if ends_only else range(1, K + 1)
        self.generator: np.ndarray | None = None
        maps = [lift.decoder]
        if options.solver == "exponential":
            self.generator = generator(moments, lift, lam)
            maps.append(expm_action(self.generator, lift.decoder, moments.length))
            self.edges = self.edges[[0, -1]]
        else:
            maps += [sat(moments, lift, lam, upto=k, symmetrize=options.symmetrize) for k in inner]
            self.edges = self.edges[[0, *inner]]
        self.energy_ratio = energy_ratio(moments, lift, maps[-1])
        if options.final == "jump":
            maps[-1] = denoiser(moments, lam, "a")
        self.finish = denoiser(moments, lam, "b") if options.final == "finish" else None
        if not ends_only:
            self.backward = self._backward(moments, lam)
        self.maps = np.stack(maps)  # (K+1, D, d)

    def _backward(self, moments: Moments, lam: float) -> np.ndarray:
        """Return P with x(a) = g(x_b, b) P, (D, d); of NaN where exp(-A) overflows."""
        lift = self.lift
        if self.generator is None or not lift.autonomous:
            return sat_inverse(moments, lift, lam, symmetrize=self.options.symmetrize)
        # No combination of features of x alone is carried backwards at every time, and exp(-A) is exact where they span a space
        # that A keeps.
        try:
            return expm_action(self.generator, lift.decoder, -moments.length)
        except ExponentialOverflow:
            return np.full_like(lift.decoder, np.nan)

    def matrix(self, s: float) -> np.ndarray:
        """Return P with x(s) = g(x_a, a) P, (D, d): exact in s for the exponential, a cubic spline between edges for SAT."""
        if s >= self.edges[-1]:
            return self.maps[-1]
        if self.generator is not None:
            return expm_action(self.generator, self.lift.decoder, s - self.slab[0])
        if len(self.edges) == 2:
            share = (s - self.slab[0]) / (self.slab[1] - self.slab[0])
            return (1 - share) * self.maps[0] + share * self.maps[1]
        return CubicSpline(self.edges, self.maps)(s)

    def forward(
        self, x: Array, s: float | None = None, projector: np.ndarray | None = None
    ) -> Array:
        """Return points of the start of the slab at clock time s, its end by default."""
        P = self.maps[-1] if s is None else self.matrix(s)
        if projector is not None:
            P = projector @ P
        xp = namespace(x)
        clock = self.lift.clock
        moved = self.lift.product(x, float(clock.time(self.slab[0])), xp.asarray(P))
        if s is None and self.finish is not None:
            return self.lift.product(
                moved, float(clock.time(self.slab[1])), xp.asarray(self.finish)
            )
        return moved

    def inverse(self, x: Array) -> Array:
        """Return points of the end of the slab at its start."""
        t = float(self.lift.clock.time(self.slab[1]))
        return self.lift.product(x, t, namespace(x).asarray(self.backward))


@final
class Evolution:
    """The chain of stages from noise to data; between two stages the points are decoded and lifted again.

    Without the new lift the product of the slabs' matrices would stay linear in g(x0, 0) and nothing would be gained.

    Parameters
    ----------
    stages : list of Stage
        Adjacent slabs.
    shortcut : (Lift, array of shape (D, d)), optional
        A one-step map to the end that was distilled from the stages.
    """

    def __init__(
        self, stages: list[Stage], shortcut: tuple[Lift, np.ndarray] | None = None
    ) -> None:
        if (
            not isinstance(stages, list)
            or not stages
            or not all(isinstance(s, Stage) for s in stages)
        ):
            raise TypeError(f"stages is {stages!r}, expected a list of Stage")
        self.stages = stages
        self.shortcut = shortcut
        self.clock = stages[0].lift.clock
        self.energy_ratio = stages[-1].energy_ratio

    def transport(self, x: Array, t: float = 1.0, projector: np.ndarray | None = None) -> Array:
        """Return base points at path time t, (n, d); ``projector`` (D, D) restricts a single stage to some modes."""
        if check_positive(t, "t", zero=True) > 1:
            raise ValueError(f"t is {t}: pass a time in [0, 1]")
        if t >= 1 and self.shortcut is not None:
            return self._short(x)
        s = self.clock.clock_time(t)
        for stage in self.stages:
            if s <= stage.slab[0] and t < 1:
                break
            inside = None if t >= 1 or s >= stage.slab[1] else s
            x = stage.forward(x, inside, projector)
        return x

    def _short(self, x: Array) -> Array:
        if self.shortcut is None:
            return x
        lift, P = self.shortcut
        return lift.product(x, 0.0, namespace(x).asarray(P))

    def trajectory(self, x: Array, times: np.ndarray) -> Array:
        """Return base points at each path time, (times, n, d); with one stage all times are one product."""
        xp = namespace(x)
        out = xp.empty((len(times), *x.shape), dtype=x.dtype)
        base = x
        clock_times = np.array([self.clock.clock_time(float(t)) for t in times])
        for stage in self.stages:
            a, b = stage.slab
            inner = [
                i
                for i, (s, t) in enumerate(zip(clock_times, times, strict=True))
                if a < s < b and t < 1
            ]
            if inner:
                P = np.concatenate([stage.matrix(float(clock_times[i])) for i in inner], axis=1)
                moved = stage.lift.product(x, float(self.clock.time(a)), xp.asarray(P))
                out[inner] = moved.reshape(len(x), len(inner), -1).transpose(1, 0, 2)
            for i in np.flatnonzero((clock_times <= a) & (clock_times > a - 1e-15) & (times < 1)):
                out[int(i)] = x
            x = stage.forward(x)
        for i in np.flatnonzero((times >= 1) | (clock_times >= self.stages[-1].slab[1])):
            out[int(i)] = x if self.shortcut is None else self._short(base)
        return out

    def inverse(self, x: Array) -> Array:
        """Return points of the end at the beginning, (n, d)."""
        for stage in reversed(self.stages):
            x = stage.inverse(x)
        return x
