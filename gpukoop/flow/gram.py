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
# Jitter of the landmark system, relative to its trace, in roundings.
JITTER = 10.0


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
    landmarks : array of shape (q, d), optional
        Nystroem: K_XX is replaced by K_XL K_LL^+ K_LX; one pass of q^2 m operations, O(q^2) memory.

    Notes
    -----
    Without landmarks: Cholesky once for m <= 4,000, conjugate gradients with warm starts beyond; their condition
    number is at most (k(0) + lambda) / lambda.
    """

    def __init__(
        self,
        kernel: AbstractKernel,
        X: Array,
        regularization: float,
        landmarks: Array | None = None,
        **options: Any,
    ) -> None:
        self.ridge = len(X) * regularization
        self.cross: Any = None
        self.factor: Array | None = None
        self.gram = None
        xp = namespace(X)
        if landmarks is not None:
            self.cross = kernel(X, landmarks, **options)
            # In float64: the rounding of a float32 Gram matrix makes it indefinite by far more than the jitter.
            L = landmarks.astype(float)
            inner = kernel(L).to_dense()
            squares = inner * 0.0
            for start in range(0, len(X), ROWS):
                B = kernel(X[start : start + ROWS].astype(float), L).to_dense()
                squares += B.T @ B
            system = self.ridge * inner + squares
            eps = float(np.finfo(float).eps)
            system += JITTER * eps * float(xp.trace(system)) * xp.eye(len(system))
            self.factor = xp.linalg.cholesky(system)
        else:
            self.gram = Gram(kernel, X, **options)
            if self.gram.dense is not None:
                K = kernel(X.astype(float)).to_dense()
                self.factor = xp.linalg.cholesky(K + self.ridge * xp.eye(len(X)))

    def solve(self, a: Array, start: Array | None = None) -> Array:
        """Return alpha, (m,); ``start`` is the last one, where the solver iterates."""
        right = a.astype(float)
        if self.cross is not None:
            inner = self._triangular(self.cross.T @ a)
            return ((right - self.cross @ inner) / self.ridge).astype(a.dtype)
        if self.factor is not None:
            return self._triangular(right).astype(a.dtype)
        m, gram = len(a), self.gram
        tol = max(CG_TOL, 10 * float(np.finfo(a.dtype).eps))
        return conjugate_gradient(lambda v: m * (gram @ v) + self.ridge * v, a, start, tol)

    def _triangular(self, right: Array) -> Array:
        xp = namespace(right)
        if xp is np:
            from scipy.linalg import cho_solve

            return cho_solve((self.factor, True), right.astype(float))
        from cupyx.scipy.linalg import solve_triangular

        half = solve_triangular(self.factor, right.astype(float), lower=True)
        return solve_triangular(self.factor, half, lower=True, trans="T")
