r"""The system :math:`A = K + \mu I` of a symmetric operator K: its checks, its products and the shift in it."""

from __future__ import annotations

from copy import copy
from typing import Any

import numpy as np

from gpukoop.algebra import AbstractOperator, Identity
from gpukoop.algebra.base import product
from gpukoop.algebra.combination import Combination
from gpukoop.arrays import Array, namespace, native_array, same_memory, to_host
from gpukoop.dispatch import choose
from gpukoop.draws import check_positive
from gpukoop.kernels.operation import PRODUCT
from gpukoop.operator import KernelOperator

# Of |u' K w| between random vectors: rounding and approximate sums stay below, a matrix that is not symmetric does not.
_ASYMMETRY = 1e-3
# Of Fourier sums in the place of exact ones: as good as double precision makes them, since their cost hardly depends on it.
_FOURIER = 1e-12


class System:
    """K + ridge I, its shift apart from K.

    Parameters
    ----------
    K : operator of shape (n, n)
        Symmetric. Multiples of the identity in it join the ridge.
    ridge : float >= 0

    Attributes
    ----------
    exact : bool
        Whether products are those of K, and not of :meth:`by_fourier`.
    """

    exact = True

    def __init__(self, K: Any, ridge: float, rng: np.random.Generator) -> None:
        if not isinstance(K, AbstractOperator):
            raise TypeError(
                f"K is of type {type(K).__name__}, expected a lazy operator such as gpukoop.Gaussian(1.0)(X)"
            )
        n, m = K.shape
        if n != m:
            raise ValueError(
                f"K has shape {K.shape}, expected a square one: kernel(X) is the operator of X with itself"
            )
        self.shift = check_positive(ridge, "ridge", zero=True)
        self.K = K
        if isinstance(K, Combination):
            shifts = [c for c, A in K.terms if isinstance(A, Identity)]
            rest = [(c, A) for c, A in K.terms if not isinstance(A, Identity)]
            if shifts and rest:
                self.shift += sum(shifts)
                self.K = rest[0][1] if len(rest) == 1 and rest[0][0] == 1 else Combination.of(rest)
        self.n = n
        self.xp = namespace(K.reference)
        self._check_symmetry(rng)

    def _check_symmetry(self, rng: np.random.Generator) -> None:
        K = self.K
        if isinstance(K, KernelOperator) and same_memory(K.X, K.Y):
            return
        probes = self.xp.asarray(rng.normal(size=(self.n, 2)), dtype=K.dtype)
        cross = to_host(probes.T @ product(K, probes)).astype(float)
        size = float(np.abs(cross).max())
        if abs(cross[0, 1] - cross[1, 0]) > _ASYMMETRY * size:
            raise ValueError(
                "K is not symmetric: conjugate gradients and Lanczos need K[i, j] = K[j, i], as kernel(X) has"
            )

    def __matmul__(self, V: Array) -> Array:
        """Return (K + ridge I) V in float64."""
        return product(self.K, V).astype(float) + self.shift * V

    def by_fourier(self) -> System | None:
        """Return this system with Fourier sums of :math:`10^{-12}` for exact ones, or None where those are not cheaper.

        A backend or a tolerance that the user chose stays. Nothing promises that the sums are good enough: residuals of the
        system itself say so.
        """
        K = self.K
        if not isinstance(K, KernelOperator) or K.tol is not None or K.backend is not None:
            return None
        if K.dtype != np.float64:
            return None
        quick = K._with(tol=_FOURIER)
        if choose(quick.request(PRODUCT, 1), None).backend != "fourier":
            return None
        twin = copy(self)
        # By name, so that rows which miss the tolerance stay as they are: an exact product for each iteration is what this avoids.
        twin.exact = False
        twin.K = quick._with(backend="fourier")
        return twin

    def columns(self, index: np.ndarray) -> Array:
        """Return some columns of K in float64, (n, q)."""
        part = self.K[:, index].to_dense()
        return native_array(part, "K")[0].astype(float)

    def diagonal(self) -> Array:
        """Return the diagonal of K in float64."""
        return native_array(self.K.diagonal(), "K.diagonal()")[0].astype(float)
