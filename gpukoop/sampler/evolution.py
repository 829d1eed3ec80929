r"""From moments to operators: the generator, the SAT solve, its inverse, the denoiser, and their chain over slabs.

All solves are on the host in float64; D <= 4096 is cheap there. B_a and B_b are moments at the ends of a slab, M the
mean of g^T L g over it, length = b - a in clock time, C the decoder.

=============  ====================================================================================
generator      (S + lam I) A = M, columns 0 and 1 overwritten by what is known exactly
sat            (B_b - length M + lam I) c = B_b C, the endpoint map u = g c: L u = 0, u(., b) = x
sat_inverse    (length M + B_a + lam I) c = B_a C, its inverse: L u = 0, u(., a) = x
denoiser       (B + lam I) c = E[g^T x1] at one time
=============  ====================================================================================

Energy identity, exact if length (M + M^T) = B_b - B_a: E_a|u|^2 + E_b|u - x|^2 + 2 lam |c|^2 = E_b|x|^2. So SAT cannot
blow up, and what is missing from the second moment of its output is the misfit at the end and the ridge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.linalg import LinAlgError, cho_factor, cho_solve, eigh

from gpukoop.arrays import Array, namespace
from gpukoop.sampler.expm import expm_action
from gpukoop.sampler.lifting import Lift
from gpukoop.sampler.moments import Moments

# Singular values below this share of the largest are dropped where reg = 0.
LSTSQ_CUT = 1e-13


def ridge(moments: Moments, reg: float) -> float:
    r"""Return :math:`\lambda = \mathrm{reg} \cdot \mathrm{tr} S / D`, a ridge in the units of the moments."""
    return float(reg) * float(np.trace(moments.host("S"))) / moments.n_features


def _solve(Q: np.ndarray, R: np.ndarray, lam: float, *, definite: bool = False) -> np.ndarray:
    """Solve (Q + lam I) c = R; with lam = 0 the minimum-norm least-squares solution."""
    if lam == 0:
        return np.linalg.lstsq(Q, R, rcond=LSTSQ_CUT)[0]
    shifted = Q + lam * np.eye(len(Q))
    if definite:
        try:
            return cho_solve(cho_factor(shifted, lower=True), R)
        except LinAlgError:
            pass  # rounding made it indefinite: the general solve below is as good
    return np.linalg.solve(shifted, R)


def symmetrized(slope: np.ndarray, Ba: np.ndarray, Bb: np.ndarray) -> np.ndarray:
    r"""Return slope = length M made to obey summation by parts, length (M + M^T) = B_b - B_a, exactly.

    It makes the energy identity exact in the sample, and costs 8 % of accuracy at N = 10^5, more below.
    """
    return (slope - slope.T) / 2 + (Bb - Ba) / 2


def generator(moments: Moments, lift: Lift, lam: float) -> np.ndarray:
    r"""Return the Koopman generator of least squares, :math:`A = (S + \lambda I)^{-1} M`, (D, D), per clock time.

    The column of the constant is 0 and that of time is set to what L gives exactly: the ridge would bend it (0.018 at
    lam = 1e-6).
    """
    M = moments.slope(moments.n_bins) / moments.length
    A = _solve(moments.host("S"), M, lam, definite=True)
    A[:, 0] = 0.0
    A[:, 1] = lift.time_column
    return A


def sat(
    moments: Moments, lift: Lift, lam: float, *, upto: int | None = None, symmetrize: bool = False
) -> np.ndarray:
    r"""Return c of the endpoint map, :math:`x_b \approx g(x_a, a)\, c`, (D, d), by summation by parts.

    .. math:: (B_b - (b-a) M + \lambda I)\, c = B_b C

    Parameters
    ----------
    moments : Moments
    lift : Lift
    lam : float
        Ridge, >= 0; 0 is the minimum-norm solution.
    upto : int, optional
        Edge b of the map; the end of the slab by default.
    symmetrize : bool
        Impose summation by parts on the sampled moments.

    Notes
    -----
    Cost: 2/3 D^3 flops, no exponential. The symmetric part of the matrix is (B_a + B_b)/2 + lam I, so lam > 0 makes it
    uniquely solvable whatever the dictionary.
    """
    k = moments.n_bins if upto is None else upto
    slope, B = moments.slope(k), moments.host("B", k)
    if symmetrize:
        slope = symmetrized(slope, moments.host("B", 0), B)
    return _solve(B - slope, B[:, lift.coordinates], lam)


def sat_inverse(
    moments: Moments, lift: Lift, lam: float, *, symmetrize: bool = False
) -> np.ndarray:
    r"""Return c of the inverse map, :math:`x_a \approx g(x_b, b)\, c`, (D, d).

    .. math:: ((b-a) M + B_a + \lambda I)\, c = B_a C

    Differs from exp(-A), which amplifies every decaying mode and is not used.
    """
    slope, B = moments.slope(moments.n_bins), moments.host("B", 0)
    if symmetrize:
        slope = symmetrized(slope, B, moments.host("B", moments.n_bins))
    return _solve(slope + B, B[:, lift.coordinates], lam)


def denoiser(moments: Moments, lam: float, end: str) -> np.ndarray:
    """Return c of the denoiser E[x1 | x_t] = g(x_t, t) c at end "a" or "b" of the slab, by plain ridge, (D, d)."""
    k = 0 if end == "a" else moments.n_bins
    return _solve(moments.host("B", k), moments.host(f"Y{end}"), lam, definite=True)


def energy_ratio(moments: Moments, lift: Lift, c: np.ndarray) -> float:
    r"""Return :math:`E_a|g c|^2 / E_b|x|^2`: below 1 by the misfit and the ridge; 1 for data without extent."""
    output = float(np.einsum("ij,ik,kj->", c, moments.host("B", 0), c))
    Bb = moments.host("B", moments.n_bins)
    size = float(np.diag(Bb)[lift.coordinates].sum())
    return output / size if size > 0 else 1.0


def growth_bound(moments: Moments, lam: float) -> float:
    r"""Return :math:`\omega_S = \tfrac12 \lambda_{\max}((B_b - B_a)/(b-a), S + \lambda I)`.

    It bounds the exponential, ||exp(tA)|| <= exp(t omega_S) in the norm of S + lam I, up to the sampling error of
    summation by parts. Cost: one symmetric eigenproblem.
    """
    jump = (moments.host("B", moments.n_bins) - moments.host("B", 0)) / moments.length
    D = moments.n_features
    floor = max(lam, 1e-12 * float(np.trace(moments.host("S"))) / D)
    S = moments.host("S") + floor * np.eye(D)
    return 0.5 * float(eigh(jump, S, eigvals_only=True, subset_by_index=[D - 1, D - 1])[0])


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
            self.backward = sat_inverse(moments, lift, lam, symmetrize=options.symmetrize)
        self.maps = np.stack(maps)  # (K+1, D, d)

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
        self.stages = stages
        self.shortcut = shortcut
        self.clock = stages[0].lift.clock
        self.energy_ratio = stages[-1].energy_ratio

    def transport(self, x: Array, t: float = 1.0, projector: np.ndarray | None = None) -> Array:
        """Return base points at path time t, (n, d); ``projector`` (D, D) restricts a single stage to some modes."""
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
