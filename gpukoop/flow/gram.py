r"""The fixed Gram matrix of the samples, K_XX, and solves with it: dense, streamed or by landmarks.

K_XX does not move with the particles: up to 4,000 samples it is factored once, beyond it is never formed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpukoop.arrays import Array, namespace
from gpukoop.kernels.formula.profile import AbstractKernel

# A Cholesky factor of so many samples takes a second and 128 MB; larger Gram matrices stay lazy.
LARGEST_DENSE = 4_000
CG_TOL = 1e-10
CG_ITER = 2_000
# Rows of K(X, landmarks) held at once when its Gram matrix is summed.
ROWS = 2**14


class Gram:
    """Products with K_XX / m: a dense matrix up to 4,000 samples, a lazy operator beyond."""

    def __init__(self, kernel: AbstractKernel, X: Array, **options: Any) -> None:
        self.m = len(X)
        self.operator = kernel(X, **options)
        self.dense = self.operator.to_dense() / self.m if self.m <= LARGEST_DENSE else None

    def __matmul__(self, v: Array) -> Array:
        """Return K v / m."""
        return self.operator @ v / self.m if self.dense is None else self.dense @ v


def conjugate_gradient(
    product: Any, right: Array, start: Array | None = None, tol: float = CG_TOL
) -> Array:
    """Solve A x = right, A symmetric positive definite, to ``tol`` relative to the right-hand side."""
    x = right * 0.0 if start is None else start
    r = right - product(x) if start is not None else right
    p, rr = r, float((r * r).sum())
    limit = (tol**2) * float((right * right).sum())
    for _ in range(CG_ITER):
        if rr <= limit:
            break
        q = product(p)
        step = rr / float((p * q).sum())
        x = x + step * p
        r = r - step * q
        before, rr = rr, float((r * r).sum())
        p = r + (rr / before) * p
    return x


class RidgeSolver:
    r"""Solves :math:`(K_{XX} + m \lambda) \alpha = a` for many a.

    Parameters
    ----------
    kernel, X
        The samples' kernel.
    regularization : float
        lambda.

    Notes
    -----
    Cholesky once for m <= 4,000, conjugate gradients with warm starts beyond; their condition number is at most
    (k(0) + lambda) / lambda.
    """

    def __init__(
        self, kernel: AbstractKernel, X: Array, regularization: float, **options: Any
    ) -> None:
        self.ridge = len(X) * regularization
        self.factor: Array | None = None
        self.gram = Gram(kernel, X, **options)
        xp = namespace(X)
        if self.gram.dense is not None:
            # In float64: the rounding of a float32 Gram matrix makes it indefinite by more than a small ridge.
            K = kernel(X.astype(float)).to_dense()
            self.factor = xp.linalg.cholesky(K + self.ridge * xp.eye(len(X)))

    def solve(self, a: Array, start: Array | None = None) -> Array:
        """Return alpha, (m,); ``start`` is the last one, where the solver iterates."""
        if self.factor is not None:
            return self._triangular(a.astype(float)).astype(a.dtype)
        m, gram = len(a), self.gram
        tol = max(CG_TOL, 10 * float(np.finfo(a.dtype).eps))
        return conjugate_gradient(lambda v: m * (gram @ v) + self.ridge * v, a, start, tol)

    def _triangular(self, right: Array) -> Array:
        xp = namespace(right)
        if xp is np:
            from scipy.linalg import cho_solve

            return cho_solve((self.factor, True), right)
        from cupyx.scipy.linalg import solve_triangular

        half = solve_triangular(self.factor, right, lower=True)
        return solve_triangular(self.factor, half, lower=True, trans="T")


class LandmarkSolver:
    r"""Solves with the covariance of the samples as seen from landmarks L.

    .. math:: \gamma = K_{LL}^+ S (S + m \lambda K_{LL})^{-1} f(L), \qquad S = K_{LX} K_{XL}

    The function :math:`\sum_l \gamma_l k(\cdot, l)` is :math:`\Sigma_L (\Sigma_L + \lambda)^{-1} f`, with the covariance
    operator projected on both sides: what of f the landmarks do not span passes unchanged. Were only K_XX replaced by its
    Nystroem approximation, that part would be divided by lambda, and the divergence fall below zero without bound.

    Notes
    -----
    One pass of q m values and q^2 m operations; then q^2 a solve. In float64 whatever the dtype of the samples.
    """

    def __init__(
        self, kernel: AbstractKernel, X: Array, regularization: float, landmarks: Array
    ) -> None:
        xp = namespace(X)
        L = landmarks.astype(float)
        values, vectors = xp.linalg.eigh(kernel(L).to_dense())
        # Landmarks that lie together span less than their number: such directions are rounding.
        keep = values > len(L) * float(np.finfo(float).eps) * values[-1]
        white = vectors[:, keep] / xp.sqrt(values[keep])
        covariance = xp.zeros((white.shape[1],) * 2)
        for start in range(0, len(X), ROWS):
            features = kernel(X[start : start + ROWS].astype(float), L).to_dense() @ white
            covariance += features.T @ features
        sizes, turned = xp.linalg.eigh(covariance)
        sizes = xp.maximum(sizes, 0.0)
        # Kept as factors: their product has entries so large that gamma would be a difference of its roundings.
        self.basis, self.shrink = white @ turned, sizes / (sizes + len(X) * regularization)

    def solve(self, a: Array) -> Array:
        """Return gamma, (q,), from the values of f at the landmarks."""
        return (self.basis @ (self.shrink * (self.basis.T @ a.astype(float)))).astype(a.dtype)
