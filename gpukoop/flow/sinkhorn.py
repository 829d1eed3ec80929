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

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpukoop.arrays import Array, is_cupy, namespace, to_host
from gpukoop.blas import one_thread
from gpukoop.flow.acceleration import WINDOW, Anderson
from gpukoop.flow.descent import log_uniform
from gpukoop.fusion import fused
from gpukoop.kernels.formula.catalogue import Gaussian
from gpukoop.operator import KernelOperator

# Annealing multiplies the blur by this at each level: .5 gives negative divergences, .9 doubles the passes.
SCALING = 0.8
# Accelerated iterations at each level at most, fewer where the columns fit to LEVEL_ERROR. With four plain ones, clusters of
# unequal mass start the last level so far off that no number of iterations mends it: .02 in 4 of 16 draws, here 1e-6 in all.
PER_LEVEL = 16
LEVEL_ERROR = 1e-3
# Iterations of a cloud with itself between two looks at the error, on a device: a look makes the host wait.
LOOK_EVERY = 10


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
    kept: dict[float, KernelOperator] = field(default_factory=dict, repr=False)

    def operator(self, blur: float) -> KernelOperator:
        """Return the kernel of the transport at a blur: the last one is kept, with what it has learned of the clouds."""
        if blur not in self.kept:
            # One level at a time: annealing never goes back, and an operator holds packed copies of both clouds.
            self.kept.clear()
            self.kept[blur] = Gaussian(blur)(self.Z, self.X, **self.options)
        return self.kept[blur]

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
        return -(blur**2) * self.rows(g / blur**2 + self.log_b, blur)

    def to_columns(self, f: Array, blur: float) -> Array:
        """Return S f at the columns X, (m,)."""
        return -(blur**2) * self.columns(f / blur**2 + self.log_a, blur)

    def rows(self, b: Array, blur: float) -> Array:
        """Return log sum_j k(z_i, x_j) exp(b_j), (n,): -S g / eps for b = g / eps + log_b."""
        return self.operator(blur).logsumexp(b)

    def columns(self, a: Array, blur: float) -> Array:
        """Return log sum_i k(z_i, x_j) exp(a_i), (m,): -S f / eps for a = f / eps + log_a."""
        return self.operator(blur).T.logsumexp(a)

    def rows_and_slope(self, b: Array, blur: float) -> tuple[Array, Array]:
        """Return log sum_j k(z_i, x_j) exp(b_j), (n,), and its gradient in z_i, (n, d)."""
        return self.operator(blur).logsumexp_and_gradient(b)

    def feasible_map(self, found: Potentials, blur: float) -> Array:
        r"""Return the barycentric map of a plan whose marginals are exact, converged or not.

        Columns that carry too much are scaled down, and what then is missing goes from all rows to all columns alike:
        the mean of the map is the mean of X to rounding, so that the law of the means holds at every blur. One pass.

        References
        ----------
        .. [1] J. Altschuler, J. Weed, P. Rigollet, Near-linear time approximation algorithms for optimal transport via
           Sinkhorn iteration, arXiv 1705.09634, algorithm 2.
        """
        eps = blur**2
        reduced, b = _reduced(found.g, found.image, self.log_b, eps)
        value, slope = self.rows_and_slope(b, blur)
        # A cloud with itself is reduced on both sides: its column sums are its row sums.
        symmetric = self.X is self.Z
        filled = _filled(reduced if symmetric else found.f, value, eps)
        image = -eps * value if symmetric else found.image
        missing = _missing(reduced, image, self.log_b, eps)
        total = missing.sum()
        spare = (missing @ self.X.astype(float)) / namespace(self.Z).where(total > 0, total, 1.0)
        moved = _feasible(self.Z, slope, filled[:, None], spare, total, eps)
        return moved.astype(self.Z.dtype, copy=False)


@fused
def _reduced(xp: Any, g: Any, image: Any, log_b: Any, eps: float) -> Any:
    reduced = xp.minimum(g, image)
    return reduced, reduced / eps + log_b


@fused
def _filled(xp: Any, f: Any, value: Any, eps: float) -> Any:
    return xp.exp(xp.minimum(f / eps + value, 0.0))


@fused
def _missing(xp: Any, reduced: Any, image: Any, log_b: Any, eps: float) -> Any:
    weight = xp.exp(log_b.astype(np.float64))
    gap = (reduced - image).astype(np.float64) / eps
    return xp.where(weight > 0, -weight * xp.expm1(xp.minimum(gap, 0.0)), 0.0)


@fused
def _feasible(xp: Any, Z: Any, slope: Any, filled: Any, spare: Any, total: Any, eps: float) -> Any:
    target = Z + eps * slope
    return xp.where(total > 0, spare + filled * (target - spare), target)


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
    """Return the transport problem between two clouds, uniform weights by default.

    Small clouds on the host keep their costs (:mod:`.sinkhorn_dense`) unless ``backend`` or ``tol`` says who shall sum.
    """
    from gpukoop.flow.sinkhorn_dense import dense_problem, is_small

    if is_small(Z, X, options):
        return dense_problem(Z, X, a, b)
    xp = namespace(Z)
    with np.errstate(divide="ignore"):
        log_a = log_uniform(Z) if a is None else xp.log(a)
        log_b = log_uniform(X) if b is None else xp.log(b)
    return Problem(Z, X, log_a, log_b, options)


def blurs(diameter: float, blur: float, scaling: float = SCALING) -> list[float]:
    """Return the annealing schedule from the diameter of the clouds down to, not including, ``blur``."""
    levels = []
    level = diameter
    while level > blur:
        # From blunt to sharp (Kosowsky, Yuille 1994): at the diameter one iteration finds potentials that serve as the next
        # start.
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
    # An iteration asks BLAS for products of microseconds: on a busy machine its threads take a thousand times that.
    with one_thread(WINDOW * len(p.log_b)):
        if start is None:
            for level in blurs(p.diameter(), blur, scaling):
                g = _accelerated(p, level, g, PER_LEVEL, LEVEL_ERROR).image
        return _accelerated(p, blur, g, n_iter, tol)


def _accelerated(p: Problem, blur: float, g: Array, n_iter: int, tol: float) -> Potentials:
    """Iterate g <- S S g with Anderson's acceleration; potentials travel in units of eps, as the sums take them."""
    eps = blur**2
    history = Anderson(p.log_b)
    best: tuple[float, Array, Array, Array] | None = None
    used, b = 0, g / eps + p.log_b
    while True:
        used += 1
        # Gauss-Seidel: columns see the new rows, which halves the iterations of updating both from the old ones.
        log_rows = p.rows(b, blur)
        log_columns = p.columns(p.log_a - log_rows, blur)
        with np.errstate(invalid="ignore"):  # columns without weight: -inf less -inf, and left out
            plain, *rows = _compared(b, log_columns, p.log_b)
        error = history.add(plain, *rows)
        if best is None or error < best[0]:
            best = error, log_rows, b, plain
        if error <= tol or used >= n_iter:
            error, log_rows, b, plain = best
            with np.errstate(invalid="ignore"):
                g = _potential(b, plain, p.log_b, eps)
            return Potentials(-eps * log_rows, g, eps * plain, error, used)
        if error > 2 * best[0] and len(history) > 1:
            # An extrapolation went astray: return to the best point, by plain steps.
            history.forget()
            b = best[3] + p.log_b
            continue
        b = history.extrapolated()


@fused
def _compared(xp: Any, b: Any, log_columns: Any, log_b: Any) -> Any:
    """Return S S g, its residual, and the error of each column, both times the root of the weights."""
    plain = -log_columns
    weighs = log_b > -np.inf
    root = xp.exp(0.5 * log_b.astype(np.float64))
    residual = xp.where(weighs, (plain - (b - log_b)).astype(np.float64), 0.0)
    return plain, root * residual, root * xp.abs(xp.expm1(xp.minimum(-residual, 50.0)))


@fused
def _potential(xp: Any, b: Any, plain: Any, log_b: Any, eps: float) -> Any:
    return eps * xp.where(log_b > -np.inf, b - log_b, plain)


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
    with one_thread(len(p.log_a)):
        f = namespace(p.log_a).zeros_like(p.log_a) if start is None else start
        if start is None:
            for level in blurs(p.diameter(), blur, scaling):
                # Averaging is what converges for a cloud with itself: S alone swings between two potentials.
                f = (f + p.to_rows(f, level)) / 2
        eps = blur**2
        u = f / eps
        look = LOOK_EVERY if is_cupy(u) else 1
        used, a = 0, u + p.log_a
        while True:
            used += 1
            log_rows = p.rows(a, blur)
            # More iterations than needed never hurt, so a device is asked every tenth one.
            if used % look == 0 or used >= n_iter:
                error = float(_marginal_error(u, log_rows, p.log_a))
                if error <= tol or used >= n_iter:
                    return Potentials(eps * u, eps * u, -eps * log_rows, error, used)
            u, a = _middle(u, log_rows, p.log_a)


@fused
def _middle(xp: Any, u: Any, log_rows: Any, log_a: Any) -> Any:
    middle = (u - log_rows) / 2
    return middle, middle + log_a


@fused
def _marginal_error(xp: Any, u: Any, log_rows: Any, log_a: Any) -> Any:
    """Return sum_i |row sum - a_i| of the symmetric plan: row i is a_i exp(u_i + log_rows_i)."""
    weight = xp.exp(log_a.astype(np.float64))
    gap = xp.where(weight > 0, (u + log_rows).astype(np.float64), 0.0)
    return xp.sum(weight * xp.abs(xp.expm1(xp.minimum(gap, 50.0))))


def transport_value(p: Problem, found: Potentials) -> float:
    """Return OT_eps = <a, f> + <b, g> at potentials whose marginals have converged."""
    return _pairing(found.f, p.log_a) + _pairing(found.g, p.log_b)


@fused
def _pairing(xp: Any, f: Any, log_weight: Any) -> Any:
    weight = xp.exp(log_weight.astype(np.float64))
    return xp.sum(xp.where(weight > 0, f, 0.0) * weight)
