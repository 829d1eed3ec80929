r"""Regularised divergence flows: DrMMD, between MMD and chi-squared, and KALE, between MMD and Kullback-Leibler.

========= ======================================================
l         regularization: infinity is MMD, 0 the divergence
a (m,)    E_Z k(X, z) - E_X k(X, x)
f         E_Z k(., z) - E_X k(., x), the witness
K         K_XX / m in KALE
========= ======================================================

DrMMD costs one linear solve a step, KALE a Newton iteration, both with the fixed Gram matrix of the samples, and
n (n + 2 m) pairs.

References
----------
.. [1] Z. Chen, A. Mustafi, P. Glaser, A. Korba, A. Gretton, B. Sriperumbudur, (De)-regularized Maximum Mean Discrepancy
   Gradient Flow, arXiv 2409.14980.
.. [2] P. Glaser, M. Arbel, A. Gretton, KALE Flow, arXiv 2106.08929; S. Neumayer, V. Stein, G. Steidl, N. Rux,
   Wasserstein Gradient Flows for Moreau Envelopes of f-Divergences in RKHS, arXiv 2402.04613.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpukoop.arrays import Array, namespace
from gpukoop.blas import one_thread
from gpukoop.flow.descent import Field, Motion, mean, uniform
from gpukoop.flow.gram import (
    CG_TOL,
    LARGEST_DENSE,
    Gram,
    LandmarkSolver,
    RidgeSolver,
    conjugate_gradient,
)
from gpukoop.flow.memory import Kept
from gpukoop.kernels.formula.profile import AbstractKernel

# Dense Newton systems up to this size are factored; beyond, conjugate gradients with the dense or lazy Gram matrix.
NEWTON_DENSE = 500
NEWTON_ITER = 100
HALVINGS = 40
# exp(u) of a density ratio: beyond this the Newton step is cut.
LARGEST_LOG = 500.0
# The rounding of the witness is divided by the regularization: below so many eps everything is done in float64.
WIDE = 20_000.0


def _wide(X: Array, regularization: float) -> Array:
    """Return the samples, in float64 where the rounding of their dtype would show."""
    return X.astype(float) if regularization < WIDE * float(np.finfo(X.dtype).eps) else X


def drmmd_field(
    kernel: AbstractKernel,
    X: Array,
    *,
    regularization: float,
    landmarks: Array | None = None,
    **options: Any,
) -> Field:
    r"""Return the field of the DrMMD flow towards X.

    .. math:: E = \frac{1 + \lambda}{\lambda} \big( MMD^2 - a^\top (K_{XX} + m \lambda)^{-1} a \big), \qquad
              v = -2 \frac{1 + \lambda}{\lambda} \nabla \big( E_Z k(\cdot, z) - E_X k(\cdot, x) - k(\cdot, X) \alpha \big)

    Parameters
    ----------
    kernel : kernel
        Positive definite.
    X : array of shape (m, d)
    regularization : float
        lambda > 0.
    landmarks : array of shape (q, d), optional
        Nystroem approximation of the covariance operator, projected on their span: E stays at least MMD^2.

    Notes
    -----
    Not halved: for large lambda E tends to MMD^2. Stable for step_size about 0.1 lambda and below.
    """
    dtype, lam = X.dtype, float(regularization)
    factor = (1 + lam) / lam
    X = _wide(X, lam)
    b = uniform(X)
    # Where the witness is solved with. Samples do not move, so their own sums are made once and not a step.
    places = X if landmarks is None else landmarks.astype(X.dtype)
    towards_self = kernel(X, **options) @ b
    at_places = towards_self if landmarks is None else kernel(places, X, **options) @ b
    e_xx = mean(towards_self, b)
    if landmarks is None:
        solver: Any = RidgeSolver(kernel, X, lam, **options)
    else:
        solver = LandmarkSolver(kernel, X, lam, landmarks)

    def field(Z: Array, kept: Kept, rng: np.random.Generator, iteration: int) -> Motion:
        Z = Z.astype(X.dtype, copy=False)
        a = uniform(Z)
        zz, own = kernel(Z, **options).value_and_gradient(a)
        seen = kernel(places, Z, **options) @ a
        gap = seen - at_places
        if landmarks is None:
            with one_thread(len(X) ** 2):
                alpha = solver.solve(gap, kept.coefficients)
            # MMD's witness with corrected weights: both parts are one pass over the samples.
            slope = own - kernel(Z, X, **options).gradient(b + alpha)
            cross = mean(seen, b)
        else:
            alpha = solver.solve(gap)
            zx, towards = kernel(Z, X, **options).value_and_gradient(b)
            slope = own - towards - kernel(Z, places, **options).gradient(alpha)
            cross = mean(zx)
        energy = factor * (mean(zz) + e_xx - 2 * cross - float((gap * alpha).sum()))
        velocity = (-2 * factor * slope).astype(dtype, copy=False)
        return Motion(velocity, energy, kept=Kept(coefficients=alpha))

    return field


class Kale:
    r"""KALE between particles and samples, and its Newton solver.

    .. math:: \frac{KALE}{1 + \lambda} = \min_{p \ge 0} \frac1m \sum_j (p_j \log p_j - p_j + 1)
              + \frac{1}{2 \lambda} \Big| \frac1m \sum_j p_j k(x_j, \cdot) - m_\mu \Big|^2

    p = exp(u) solves u + (K p - b) / lambda = 0, b = E_Z k(X, z).
    """

    def __init__(
        self, kernel: AbstractKernel, X: Array, regularization: float, **options: Any
    ) -> None:
        self.kernel, self.lam, self.options = kernel, float(regularization), options
        self.dtype, self.X = X.dtype, _wide(X, self.lam)
        self.gram = Gram(kernel, self.X, **options)

    def density(self, seen: Array, start: Array | None = None) -> Array:
        """Return u, the logarithm of the optimal density ratio at the samples, (m,)."""
        xp = namespace(seen)
        u = seen * 0.0 if start is None else start
        residual = self._residual(u, seen)
        size = float(xp.abs(residual).max())
        # The residual is divided by lambda, and so is its rounding: no iteration gets below that.
        goal = 20 * float(np.finfo(seen.dtype).eps) * (1 + float(xp.abs(seen).max()) / self.lam)
        for _ in range(NEWTON_ITER):
            if size <= goal:
                break
            direction = self._newton(u, residual)
            step, improved = 1.0, False
            for _ in range(HALVINGS):
                trial = u + step * direction
                if float(trial.max()) < LARGEST_LOG:
                    there = self._residual(trial, seen)
                    # A smaller residual is asked, not a smaller objective: near the root the objective is flat to rounding.
                    with np.errstate(over="ignore"):  # a wild trial, and inf is no improvement
                        improved = float((there**2).sum()) < float((residual**2).sum())
                    if improved:
                        break
                step /= 2
            if not improved:
                break
            u, residual = trial, there
            size = float(xp.abs(residual).max())
        return u

    def _residual(self, u: Array, seen: Array) -> Array:
        return u + (self.gram @ namespace(u).exp(u) - seen) / self.lam

    def _newton(self, u: Array, residual: Array) -> Array:
        """Return du with (I + K diag(p) / l) du = -residual, through the symmetric form in y = p^(1/2) du."""
        xp = namespace(u)
        # Symmetrised by the square root of the ratio, so that the system is positive definite whatever the ratio is.
        root = xp.exp(u / 2)
        right = -root * residual
        if len(u) <= NEWTON_DENSE and self.gram.dense is not None:
            system = xp.eye(len(u)) + (root[:, None] * self.gram.dense * root) / self.lam
            y = xp.linalg.solve(system, right)
        else:
            tol = max(CG_TOL, 10 * float(np.finfo(u.dtype).eps))
            y = conjugate_gradient(
                lambda v: v + root * (self.gram @ (root * v)) / self.lam, right, tol=tol
            )
        # du = y / root would divide by a density that underflows far from the particles.
        return -residual - (self.gram @ (root * y)) / self.lam

    def __call__(self, Z: Array, kept: Kept, rng: Any = None, iteration: int = 0) -> Motion:
        """Return the velocity and KALE at the particles."""
        xp, Z = namespace(Z), Z.astype(self.X.dtype, copy=False)
        a, m, lam = uniform(Z), len(self.X), self.lam
        zz, own = self.kernel(Z, **self.options).value_and_gradient(a)
        seen = self.kernel(self.X, Z, **self.options) @ a
        with one_thread(m * m):
            u = self.density(seen, kept.log_density)
        p = xp.exp(u)
        squared = mean(zz) - 2 * mean(p * seen) + mean(p * (self.gram @ p))
        # p log p - p + 1 without cancellation where p is near 1.
        energy = (1 + lam) * (mean(p * u - xp.expm1(u)) + squared / (2 * lam))
        slope = own - self.kernel(Z, self.X, **self.options).gradient(p / m)
        velocity = (-(1 + lam) / lam * slope).astype(self.dtype, copy=False)
        return Motion(velocity, energy, kept=Kept(log_density=u))


def kale_field(kernel: AbstractKernel, X: Array, *, regularization: float, **options: Any) -> Field:
    """Return the field of the KALE flow towards X; for large lambda KALE tends to MMD^2 / 2, for small to KL."""
    return Kale(kernel, X, regularization, **options)


__all__ = ["LARGEST_DENSE", "Kale", "drmmd_field", "kale_field"]
