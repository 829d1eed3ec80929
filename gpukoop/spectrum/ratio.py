r"""Eigenfunctions in ratio form, the one shape that every spectrum of this room has and the flow uses.

.. math:: \varphi_k(z) = \frac{(K \Psi_k)(z)}{(K w)(z)} - o_k, \qquad K = k(z, X)

=== =========== ========================================
n   targets     rows of ``Z``
m   sources     rows of ``sources``, ``Psi`` and entries of ``w``
r   modes       columns of ``Psi``, the constant left out
=== =========== ========================================

The weights :math:`P(z, l) = k(z, x_l) w_l / (K w)(z)` sum to one, so a function is an average of
:math:`\Psi_{lk} / w_l` over the sources. Far from all of them the denominator underflows; there P is the nearest
source and the gradient is 0, which is the limit of the formula.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gpukoop.arrays import Array, Home, namespace, points, to_host, vector
from gpukoop.checks import unit_clouds
from gpukoop.kernels.formula.profile import AbstractKernel
from gpukoop.operator import KernelOperator

# Numbers in one block of gradients (n, r + 1, d): 64 MB in float64.
BLOCK_NUMBERS = 2**23


def lowest_denominator(w: Array) -> float:
    """Return the K w up to which a target is far: below, terms that matter relative to the sum are subnormal numbers."""
    limits = np.finfo(w.dtype)
    return float(limits.tiny) / float(limits.eps) * float(w.max())


def quotient_slope(value: Array, slope: Array, own: Array, B: Array) -> Array:
    """Return the gradient of value / B by the quotient rule, given ``slope``, that of the value, and ``own``, that of B."""
    # value / B first: value * own / B^2 would square a small denominator and underflow in float32.
    return (slope - (value / B) * own) / B


def centred(Q: Array, w: Array) -> Array:
    """Return Q (m, t) with multiples of w taken off: (K Q) / (K w) shifts by a constant, and float32 keeps its digits."""
    return Q - w[:, None] * (Q / w[:, None]).mean(axis=0)


@dataclass(frozen=True)
class RatioFunctions:
    """Functions phi_k(z) = (K Psi_k)(z) / (K w)(z) - offset_k.

    Parameters
    ----------
    kernel : kernel
        Positive, with numeric scales.
    sources : array of shape (m, d)
    Psi : array of shape (m, r)
    w : array of shape (m,)
        Positive.
    offset : array of shape (r,)
    backend, tol
        Passed to every operator.
    """

    kernel: AbstractKernel
    sources: Array
    Psi: Array
    w: Array
    offset: Array
    backend: str | None = None
    tol: float | None = None

    @property
    def n_modes(self) -> int:
        """Number of functions, r."""
        return self.Psi.shape[1]

    def operator(self, Z: Array) -> KernelOperator:
        """Return the lazy (n, m) operator from the sources to ``Z``."""
        return KernelOperator(self.kernel, Z, self.sources, backend=self.backend, tol=self.tol)

    def of(self, columns: np.ndarray) -> RatioFunctions:
        """Return some of the functions."""
        index = namespace(self.Psi).asarray(columns)
        return replace(self, Psi=self.Psi[:, index], offset=self.offset[index])

    def combined(self, Y: np.ndarray) -> RatioFunctions:
        """Return the functions sum_j Y_jk phi_j, before any offset: those of ``Psi @ Y``."""
        xp, dtype = namespace(self.Psi), self.Psi.dtype
        Psi = (self.Psi.astype(float) @ xp.asarray(Y)).astype(dtype)
        zero = xp.zeros(Psi.shape[1], dtype)
        return replace(self, Psi=Psi, offset=zero)

    def normalised(self, mean: np.ndarray, variance: np.ndarray) -> RatioFunctions:
        """Return functions of mean 0 and variance 1, given both of the ratio without its offset."""
        xp, dtype = namespace(self.Psi), self.Psi.dtype
        spread = np.sqrt(variance)
        return replace(
            self,
            Psi=(self.Psi / xp.asarray(spread)).astype(dtype),
            offset=xp.asarray(mean / spread, dtype=dtype),
        )

    def native(self, Z: Any) -> tuple[Array, Home]:
        """Return ``Z`` as checked points, and the way back to its library."""
        return points(Z, "Z", n_features=self.sources.shape[1], other="the fitted X")

    def transform(self, Z: Any) -> Array:
        """Return the functions at ``Z``, (n, r); one product with r + 1 columns."""
        Z, home = self.native(Z)
        return home.restore(self._values(Z))

    def _values(self, Z: Array) -> Array:
        xp = namespace(Z)
        # Numerators and denominator in one pass: they share distances and exponentials.
        out = self.operator(Z) @ xp.concatenate([self.Psi, self.w[:, None]], axis=1)
        B, far = self._denominator(out[:, -1])
        phi = out[:, :-1] / B[:, None] - self.offset
        if far is not None:
            # The limit of the ratio far away: the nearest source outweighs all others by any factor.
            phi[far] = (self.Psi / self.w[:, None] - self.offset)[self._nearest(Z[far])]
        return phi

    def gradient(self, Z: Any, c: Any = None) -> Array:
        """Return all gradients (n, r, d), or with ``c`` of shape (r,) that of sum_k c_k phi_k, (n, d)."""
        Z, home = self.native(Z)
        xp = namespace(Z)
        if c is not None:
            return home.restore(self._combined(Z, c))
        n, d = Z.shape
        r = self.Psi.shape[1]
        out = xp.empty((n, r, d), np.result_type(Z.dtype, self.Psi.dtype))
        for rows in _rows(n, (r + 1) * d):
            out[rows] = self._quotient(Z[rows], self.Psi)
        return home.restore(out)

    def _combined(self, Z: Array, c: Any) -> Array:
        c = vector(c, "c", self.Psi.shape[1], self.Psi, "coefficient per mode")
        return self._quotient(Z, (self.Psi @ c)[:, None])[:, 0]

    def _quotient(self, Z: Array, Q: Array) -> Array:
        """Return the gradient of (K Q) / (K w), (n, t, d), by the quotient rule."""
        xp = namespace(Z)
        columns = xp.concatenate([centred(Q, self.w), self.w[:, None]], axis=1)
        value, grad = self.operator(Z).value_and_gradient(columns)
        B, far = self._denominator(value[:, -1])
        out = quotient_slope(value[:, :-1, None], grad[:, :-1], grad[:, -1:], B[:, None, None])
        if far is not None:
            # As a function that is constant far away has it.
            out[far] = 0.0
        return out

    def moments(self, Z: Any) -> np.ndarray:
        """Return the means of the functions over ``Z``, (r,) on the host in float64.

        Two passes with one column each, (K w) and its transpose; neither (n, m) nor (n, r) is formed. A target
        far from all sources counts as its nearest source.
        """
        Z, _ = self.native(Z)
        xp = namespace(Z)
        n = len(Z)
        K = self.operator(Z)
        B, far = self._denominator(K @ self.w)
        inverse = 1.0 / (B * n)
        if far is not None:
            inverse[far] = 0.0
        p = (K.T @ inverse).astype(float)  # (m,)
        if far is not None:
            nearest, counts = np.unique(self._nearest(Z[far]), return_counts=True)
            index = xp.asarray(nearest)
            # All the mass of a far target on its nearest source, the same limit as in `transform`.
            p[index] += xp.asarray(counts / n) / self.w[index]
        return to_host(self.Psi.T.astype(float) @ p) - to_host(self.offset).astype(float)

    def far(self, Z: Any) -> np.ndarray:
        """Return a mask (n,) on the host of targets so far away that the denominator underflows."""
        Z, _ = self.native(Z)
        far = self._denominator(self.operator(Z) @ self.w)[1]
        return np.zeros(len(Z), bool) if far is None else to_host(far)

    def nearest(self, Z: Any) -> Array:
        """Return the nearest source of every target, (n, d)."""
        Z, home = self.native(Z)
        return home.restore(self.sources[self._nearest(Z)])

    def _denominator(self, B: Array) -> tuple[Array, Array | None]:
        """Return B, safe to divide by, and the mask of rows where it has underflowed, None if there is none."""
        xp = namespace(B)
        far = lowest_denominator(self.w) >= B
        if not bool(far.any()):
            return B, None
        return xp.where(far, 1.0, B).astype(B.dtype), far

    def _nearest(self, Z: Array) -> Array:
        # A handful of rows: a tree on the host, in place of a pass over all pairs.
        from scipy.spatial import cKDTree

        (sources, targets), _ = unit_clouds(to_host(self.sources), to_host(Z))  # no square is inf
        index = cKDTree(sources).query(targets)[1]
        return namespace(Z).asarray(index)


def _rows(n: int, width: int) -> Iterator[slice]:
    size = max(1, BLOCK_NUMBERS // width)
    for start in range(0, n, size):
        yield slice(start, min(n, start + size))
