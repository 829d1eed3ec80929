r"""Transport between small clouds with the costs in memory: what a batch of a generator's training asks for.

========== ==================================================================
C (n, m)   costs |z_i - x_j|^2 / 2
w, u       reference (m,), and the row maxima of w_j - C_ij / eps
M (n, m)   exp(w_j - C_ij / eps - u_i), between 0 and 1
========== ==================================================================

.. math:: \log \sum_j e^{b_j - C_{ij} / \epsilon} = u_i + \log \sum_j M_{ij}\, e^{b_j - w_j}

so that, while b stays near the reference, a half-step is one matrix-vector product and no exponential of a pair. The reference
follows b when it has moved too far for the dtype (stabilised scaling).

References
----------
.. [1] B. Schmitzer, Stabilized Sparse Scaling Algorithms for Entropy Regularized Transport Problems, arXiv 1610.06519.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpukoop.arrays import Array, is_cupy
from gpukoop.flow.descent import log_uniform
from gpukoop.flow.sinkhorn import Problem

# Costs of so many pairs are kept at most: 16 MB in float32.
LARGEST_DENSE = 2**22
# b may leave its reference by so much: what then was rounded to zero, e^-87 of a row's largest term, is still e^-57 of it.
FARTHEST = 30.0
# A sum this much larger than all that may have been rounded to zero has its digits.
LOST = 1e9
# In so few dimensions sums of squared differences are as quick as a product of matrices, and exact.
FEW_FEATURES = 4


@dataclass
class Reference:
    """The matrix M at one blur, and what it was made from."""

    blur: float
    w: np.ndarray
    u: np.ndarray
    M: np.ndarray


@dataclass(frozen=True)
class DenseProblem(Problem):
    """A transport problem between host clouds whose costs are kept."""

    costs: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False)
    references: list[Reference] = field(default_factory=list, repr=False)

    def rows(self, b: Array, blur: float) -> Array:
        """Return log sum_j k(z_i, x_j) exp(b_j), (n,)."""
        at = self._reference(b, blur)
        with np.errstate(divide="ignore"):
            # M holds exp(w - c - u): one product of a matrix with a vector instead of n m exponentials.
            return at.u + np.log(at.M @ np.exp(b - at.w))

    def columns(self, a: Array, blur: float) -> Array:
        """Return log sum_i k(z_i, x_j) exp(a_i), (m,)."""
        at = self._reference(None, blur)
        exponent = a + at.u
        # One maximum serves all columns, which is why some may underflow and are looked at one by one below.
        top = exponent.max()
        weights = np.exp(exponent - top)
        total = weights @ at.M
        with np.errstate(divide="ignore"):
            found = np.log(total) + (top - at.w)
        # Columns that no row's maximum sees: what M has rounded to zero may be all of them.
        unseen = ~(total > LOST * np.finfo(total.dtype).tiny * weights.sum()) & np.isfinite(at.w)
        if unseen.any():
            found[unseen] = _logsumexp((a[:, None] - self.costs[:, unseen] / blur**2).T)
        return found

    def rows_and_slope(self, b: Array, blur: float) -> tuple[Array, Array]:
        """Return log sum_j k(z_i, x_j) exp(b_j) and its gradient in z_i."""
        at = self._reference(b, blur)
        weights = np.exp(b - at.w)
        total = at.M @ weights
        # The slope of a soft minimum is the mean of the samples under its weights less the point.
        mean = (at.M @ (weights[:, None] * self.X)) / total[:, None]
        return at.u + np.log(total), (mean - self.Z) / blur**2

    def _reference(self, b: np.ndarray | None, blur: float) -> Reference:
        """Return the matrix at a blur whose reference is near b; without b, the one that is there."""
        at = self.references[-1] if self.references else None
        if at is not None and at.blur == blur:
            if b is None:
                return at
            with np.errstate(invalid="ignore"):  # samples without weight: -inf less -inf
                moved = np.abs(b - at.w)
            if not np.nanmax(moved, initial=0.0) > FARTHEST:
                return at
        w = self.log_b if b is None else b
        exponent = w - self.costs / self.costs.dtype.type(blur**2)
        # The largest term of every row becomes one, so no row is lost whatever its distance.
        u = exponent.max(axis=1)
        exponent -= u[:, None]
        made = Reference(
            blur, np.where(np.isfinite(w), w, 0.0).astype(w.dtype), u, np.exp(exponent)
        )
        if not np.isfinite(w).all():
            made.M[:, ~np.isfinite(w)] = 0
        self.references[:] = [made]
        return made


def _logsumexp(exponent: np.ndarray) -> np.ndarray:
    top = exponent.max(axis=1)
    return top + np.log(np.exp(exponent - top[:, None]).sum(axis=1))


def is_small(Z: Array, X: Array, options: dict[str, Any]) -> bool:
    """Return whether the costs of all pairs may be kept, and nobody asked for somebody else to sum."""
    return (
        not is_cupy(Z)
        and len(Z) * len(X) <= LARGEST_DENSE
        and not any(value is not None for value in options.values())
    )


def dense_problem(
    Z: np.ndarray, X: np.ndarray, a: np.ndarray | None = None, b: np.ndarray | None = None
) -> DenseProblem:
    """Return the transport problem between two clouds of the host, costs computed: n m d operations and n m numbers."""
    if Z.shape[1] <= FEW_FEATURES:
        costs = sum((Z[:, k, None] - X[:, k]) ** 2 for k in range(Z.shape[1])) / 2
    else:
        centre = X.mean(axis=0)
        z, x = Z - centre, X - centre
        # Rounding of the product may give a small negative square, whose cost would attract.
        costs = np.maximum(
            (z**2).sum(axis=1)[:, None] / 2 + (x**2).sum(axis=1) / 2 - z @ x.T, Z.dtype.type(0)
        )
        if X is Z:
            np.fill_diagonal(costs, 0)
    with np.errstate(divide="ignore"):
        log_a = log_uniform(Z) if a is None else np.log(a)
        log_b = log_uniform(X) if b is None else np.log(b)
    return DenseProblem(Z, X, log_a, log_b, {}, costs=np.ascontiguousarray(costs))
