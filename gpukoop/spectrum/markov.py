r"""The Markov matrix of a diffusion map in symmetric form, lazy.

.. math:: q_l = \sum_{l'} k(x_l, x_{l'}) p_{l'}, \quad w = p\, q^{-\alpha}, \quad D = w\,(K w), \quad
          S = D^{-1/2} \mathrm{diag}(w)\, K\, \mathrm{diag}(w)\, D^{-1/2}

S has eigenvalues in [0, 1] for a positive definite kernel; the largest, 1, belongs to :math:`D^{1/2}` and is subtracted here,
so that the iteration spends nothing on it. :math:`u = D^{-1/2} s` are the right eigenvectors of the Markov matrix.
"""

from __future__ import annotations

import numpy as np

from gpukoop.arrays import Array, namespace
from gpukoop.kernels.formula.profile import AbstractKernel
from gpukoop.operator import KernelOperator
from gpukoop.spectrum.bandwidth import isolation_limit, kernel_at_zero

# The extension multiplies by 1 / sigma: below this it is noise wherever there are no samples.
SMALLEST_SIGMA = 1e-4


def sampling_weights(K: KernelOperator, p: Array, alpha: float) -> tuple[Array, Array]:
    """Return q = K @ p and w = q ** -alpha for the rows of K, float64, w rescaled to mean 1."""
    q = (K @ p).astype(float)
    w = q**-alpha
    return q, w / w.mean()


def isolated(kernel: AbstractKernel, X: Array, p: Array, q: Array) -> Array:
    """Return the mask of samples that are their own Markov state: k(x, x) p / q above .3."""
    return kernel_at_zero(kernel, X) * p.astype(float) / q > isolation_limit(len(X))


class MarkovOperator:
    """S minus its trivial pair, as an operator for ``eigsh``.

    Parameters
    ----------
    K : KernelOperator
        Symmetric, positive kernel.
    w : array of shape (m,)
        Positive float64 weights.

    Attributes
    ----------
    D : array of shape (m,)
        Float64.
    reference : array
        Says to ``eigsh`` where the operator works.
    """

    def __init__(self, K: KernelOperator, w: Array) -> None:
        xp = namespace(w)
        self.K, self.shape, self.dtype = K, K.shape, K.dtype
        # Row sums of the symmetric matrix w K w: D^-1/2 (w K w) D^-1/2 has the spectrum of the Markov matrix and orthogonal
        # vectors.
        self.D = w * (K @ w.astype(K.dtype)).astype(float)
        self.reference = self.D
        self.half = (w / xp.sqrt(self.D)).astype(K.dtype)
        root = xp.sqrt(self.D / self.D.sum())
        self.trivial = root.astype(K.dtype)

    def matmat(self, V: Array) -> Array:
        """Return (S - s_0 s_0^T) @ V."""
        out = self.half[:, None] * (self.K @ (self.half[:, None] * V))
        # The constant is known exactly, so it is taken off instead of found: an eigensolver would spend its best vector on
        # it.
        return out - self.trivial[:, None] * (self.trivial @ V)

    def matvec(self, v: Array) -> Array:
        """Return (S - s_0 s_0^T) @ v."""
        return self.matmat(v.reshape(-1, 1))[:, 0]

    def right_vectors(self, s: Array) -> Array:
        """Return u = D^-1/2 s, float64, scaled to D-weighted second moment 1 over the samples."""
        xp = namespace(s)
        return s.astype(float) * xp.sqrt(self.D.sum() / self.D)[:, None]


def eigenvalues_of_generator(sigma: np.ndarray, eps: float, rule: str) -> np.ndarray:
    """Return -2 log(sigma) / eps ("log") or 2 (1 - sigma) / eps ("linear"), at least rounding."""
    # A mode that never decays in the data still gets a finite timescale, which later divisions need.
    floor = 2 * np.finfo(np.float64).eps / eps
    rate = -np.log(sigma) if rule == "log" else 1.0 - sigma
    return np.maximum(2 * rate / eps, floor)
