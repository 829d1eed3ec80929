r"""Entropic transport between clouds: potentials, barycentric maps and the debiased divergence, streamed.

========== =============================================
Z, X       clouds (n, d), (m, d) with weights a, b
f, g       dual potentials (n,), (m,)
eps        blur^2; the cost is c = |x - y|^2 / 2
S          soft minimum, (S g)_i = -eps log sum_j b_j exp((g_j - c_ij) / eps)
========== =============================================

exp(-c / eps) is the Gaussian of scale blur, so every half-step is one log-sum-exp of a KernelOperator and the
barycentric map is Z + eps grad LSE from the same pass: no n x m array exists.

References
----------
.. [1] J. Feydy et al., Interpolating between Optimal Transport and MMD using Sinkhorn Divergences, arXiv 1810.08278.
.. [2] D. G. Anderson, Iterative procedures for nonlinear integral equations, J. ACM 12, 1965 (acceleration).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gpukoop.arrays import Array, like, namespace, to_host
from gpukoop.flow.descent import mean, uniform
from gpukoop.kernels.formula.catalogue import Gaussian

# Annealing multiplies the blur by this at each level: .5 gives negative divergences, .9 doubles the passes.
SCALING = 0.8
# Accelerated iterations at each level at most, fewer where the columns fit to LEVEL_ERROR. With four plain ones, clusters of
# unequal mass start the last level so far off that no number of iterations mends it: .02 in 4 of 16 draws, here 1e-6 in all.
PER_LEVEL = 16
LEVEL_ERROR = 1e-3
# Residuals that Anderson's acceleration combines; more help little and condition badly.
WINDOW = 15
# Weights of an extrapolation that sum to more than this in modulus amplify rounding: the plain step is taken.
STEEP = 1e4


@dataclass(frozen=True)
class Problem:
    """One transport problem at one blur: the soft minimum both ways.

    ``weights`` are (n,) and (m,), sum 1. ``options`` are ``backend`` and ``tol`` of the sums.
    """

    Z: Array
    X: Array
    log_a: Array
    log_b: Array
    options: dict[str, Any]

    def diameter(self) -> float:
        """Return the diagonal of the box around both clouds; raise if the costs leave the range of their dtype."""
        size = diameter(self.Z, self.X)
        largest = float(np.finfo(self.Z.dtype).max)
        if not size < np.sqrt(largest) / 4:
            raise ValueError(
                f"particles and samples are up to {size:.3g} apart, and the square of that leaves the range of "
                f"{self.Z.dtype}: rescale them, or start the particles near the samples"
            )
        return size

    def to_rows(self, g: Array, blur: float) -> Array:
        """Return S g at the rows Z, (n,)."""
        eps = blur**2
        K = Gaussian(blur)(self.Z, self.X, **self.options)
        return -eps * K.logsumexp(g / eps + self.log_b)

    def to_columns(self, f: Array, blur: float) -> Array:
        """Return S f at the columns X, (m,)."""
        eps = blur**2
        K = Gaussian(blur)(self.X, self.Z, **self.options)
        return -eps * K.logsumexp(f / eps + self.log_a)

    def barycentre(self, g: Array, blur: float) -> tuple[Array, Array]:
        """Return S g and the barycentric map T z_i = sum_j P_ij x_j / a_i of the plan with exact rows."""
        eps = blur**2
        value, slope = Gaussian(blur)(self.Z, self.X, **self.options).logsumexp_and_gradient(
            g / eps + self.log_b
        )
        return -eps * value, self.Z + eps * slope

    def feasible_map(self, found: Potentials, blur: float) -> Array:
        r"""Return the barycentric map of a plan whose marginals are exact, converged or not.

        Columns that carry too much are scaled down, and what then is missing goes from all rows to all columns alike:
        the mean of the map is the mean of X to rounding, so that the law of the means holds at every blur. One pass.

        References
        ----------
        .. [1] J. Altschuler, J. Weed, P. Rigollet, Near-linear time approximation algorithms for optimal transport via
           Sinkhorn iteration, arXiv 1705.09634, algorithm 2.
        """
        xp = namespace(self.Z)
        eps = blur**2
        reduced = xp.minimum(found.g, found.image)
        image, target = self.barycentre(reduced, blur)
        filled = xp.exp(xp.minimum((found.f - image) / eps, 0.0))
        # A cloud with itself is reduced on both sides: its column sums are its row sums.
        symmetric = self.X is self.Z
        if symmetric:
            filled = xp.exp(xp.minimum((reduced - image) / eps, 0.0))
        gap = (reduced - (image if symmetric else found.image)).astype(float) / eps
        weight = xp.exp(self.log_b.astype(float))
        missing = xp.where(weight > 0, -weight * xp.expm1(xp.minimum(gap, 0.0)), 0.0)
        total = float(missing.sum())
        if not total > 0:
            return target
        spare = like((missing / total) @ self.X.astype(float), self.Z)
        return spare + filled[:, None] * (target - spare)


@dataclass(frozen=True)
class Potentials:
    """Potentials f = S g and g, the image S f, the marginal error they leave, and the iterations they took."""

    f: Array
    g: Array
    image: Array
    error: float
    n_iter: int


def problem(
    Z: Array, X: Array, a: Array | None = None, b: Array | None = None, **options: Any
) -> Problem:
    """Return the transport problem between two clouds, uniform weights by default."""
    xp = namespace(Z)
    with np.errstate(divide="ignore"):
        log_a = xp.log(uniform(Z) if a is None else a)
        log_b = xp.log(uniform(X) if b is None else b)
    return Problem(Z, X, log_a, log_b, options)


def blurs(diameter: float, blur: float, scaling: float = SCALING) -> list[float]:
    """Return the annealing schedule from the diameter of the clouds down to, not including, ``blur``."""
    levels = []
    level = diameter
    while level > blur:
        levels.append(level)
        level *= scaling
    return levels


def diameter(*clouds: Array) -> float:
    """Return the diagonal of the box around all clouds."""
    low = np.min([to_host(c.min(axis=0)) for c in clouds], axis=0).astype(float)
    high = np.max([to_host(c.max(axis=0)) for c in clouds], axis=0).astype(float)
    with np.errstate(over="ignore"):
        return float(np.hypot.reduce(high - low))  # no square on the way


def solve(
    p: Problem,
    blur: float,
    *,
    n_iter: int,
    tol: float,
    start: Array | None = None,
    scaling: float = SCALING,
) -> Potentials:
    r"""Return the potentials of a problem at one blur.

    Parameters
    ----------
    p : Problem
    blur : float
        sqrt(eps), in the units of the points.
    n_iter : int
        Upper bound of the iterations after annealing; each is two passes over n m pairs.
    tol : float
        Stop when the columns of the plan miss their weights by less than this in total (its rows are exact).
    start : array of shape (m,), optional
        g to start from, such as that of the previous step; without it the blur is annealed from the diameter.

    Notes
    -----
    The fixed point g = S S g is iterated with Anderson acceleration, kept only while it helps: at blur 1/30 of the
    width some 10^3 plain iterations become 10^2.
    """
    g = namespace(p.log_b).zeros_like(p.log_b) if start is None else start
    weight = namespace(g).exp(p.log_b)

    def at(level: float, g: Array, n_iter: int, tol: float) -> Potentials:
        def improved(g: Array) -> tuple[Array, Array]:
            f = p.to_rows(g, level)
            return f, p.to_columns(f, level)

        return _accelerated(improved, g, weight, level**2, n_iter, tol)

    if start is None:
        for level in blurs(p.diameter(), blur, scaling):
            g = at(level, g, PER_LEVEL, LEVEL_ERROR).image
    return at(blur, g, n_iter, tol)


def solve_symmetric(
    p: Problem,
    blur: float,
    *,
    n_iter: int,
    tol: float,
    start: Array | None = None,
    scaling: float = SCALING,
) -> Potentials:
    """Return the potential f = g of a cloud with itself: f <- (f + S f) / 2, one pass over n^2 pairs each."""
    f = namespace(p.log_a).zeros_like(p.log_a) if start is None else start
    if start is None:
        for level in blurs(p.diameter(), blur, scaling):
            f = (f + p.to_rows(f, level)) / 2
    weight = namespace(f).exp(p.log_a)
    eps = blur**2
    used = 0
    while True:
        used += 1
        improved = p.to_rows(f, blur)
        error = _marginal_error(f, improved, weight, eps)
        if error <= tol or used >= n_iter:
            return Potentials(f, f, improved, error, used)
        f = (f + improved) / 2


def _marginal_error(g: Array, improved: Array, weight: Array, eps: float) -> float:
    """Return sum_j |column sum - b_j| of the plan whose rows are exact: column j is b_j exp((g - S f)_j / eps)."""
    xp = namespace(g)
    gap = xp.where(weight > 0, (g - improved).astype(float) / eps, 0.0)
    return mean(xp.abs(xp.expm1(xp.minimum(gap, 50.0))), weight)


def _accelerated(
    improved: Callable[[Array], tuple[Array, Array]],
    g: Array,
    weight: Array,
    eps: float,
    n_iter: int,
    tol: float,
) -> Potentials:
    """Iterate g <- improved(g)[1] with Anderson's acceleration; ``improved`` returns S g and S S g."""
    xp = namespace(g)
    past: deque[tuple[Array, Array]] = deque(maxlen=WINDOW)
    best: Potentials | None = None
    used = 0
    while True:
        used += 1
        f, plain = improved(g)
        error = _marginal_error(g, plain, weight, eps)
        if best is None or error < best.error:
            best = Potentials(f, g, plain, error, used)
        if error <= tol or used >= n_iter:
            return replace(best, n_iter=used)
        if error > 2 * best.error and past:
            # An extrapolation went astray: return to the best point, by plain steps.
            past.clear()
            g = best.image
            continue
        residual = xp.where(weight > 0, plain - g, 0.0)
        # Potentials are free up to a constant, which must not enter the least squares.
        residual = residual - mean(residual, weight)
        past.append((plain, residual))
        g = plain if len(past) < 2 else _extrapolated(past, weight)


def _extrapolated(past: deque[tuple[Array, Array]], weight: Array) -> Array:
    xp = namespace(weight)
    plain, residual = past[-1]
    root = xp.sqrt(weight)
    steps = xp.stack([(residual - r) * root for _, r in list(past)[:-1]], axis=1)
    gram = to_host(steps.T @ steps).astype(float)
    right = to_host(steps.T @ (residual * root)).astype(float)
    gram += 1e-12 * np.trace(gram) * np.eye(len(gram))
    try:
        gamma = np.linalg.solve(gram, right)
    except np.linalg.LinAlgError:
        return plain
    if not np.abs(gamma).sum() < STEEP:
        return plain
    for (own, _), c in zip(list(past)[:-1], gamma, strict=True):
        plain = plain - float(c) * (past[-1][0] - own)
    return plain


def transport_value(p: Problem, found: Potentials) -> float:
    """Return OT_eps = <a, f> + <b, g> at potentials whose marginals have converged."""
    xp = namespace(found.f)
    a, b = xp.exp(p.log_a), xp.exp(p.log_b)
    return mean(xp.where(a > 0, found.f, 0.0), a) + mean(xp.where(b > 0, found.g, 0.0), b)
