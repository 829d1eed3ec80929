r"""Complex eigenfunctions, kept as real kernel sums: \varphi = (f_1 ... f_s) B with real f and complex B.

Eigenfunctions of a real operator come in conjugate pairs, f_1 + i f_2 and f_1 - i f_2, so r of them need r real sums.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gpukoop.arrays import Array, namespace, to_host
from gpukoop.kernels.formula.profile import AbstractKernel
from gpukoop.operator import KernelOperator
from gpukoop.spectrum.ratio import RatioFunctions


@dataclass(frozen=True)
class RotatingFunctions:
    """Complex combinations of ratio functions.

    Parameters
    ----------
    parts : RatioFunctions
        s real functions.
    blend : ndarray of shape (s, r)
        Complex coefficients.
    """

    parts: RatioFunctions
    blend: np.ndarray

    @classmethod
    def of_modes(
        cls, base: RatioFunctions, W: np.ndarray, mean: np.ndarray, covariance: np.ndarray
    ) -> RotatingFunctions:
        """Return functions of mean 0 and mean square modulus 1 from complex combinations W of base functions."""
        # the same bits for both of a conjugate pair, so that their parts are found to be equal
        variance = sum(((covariance @ part) * part).sum(axis=0) for part in (W.real, W.imag))
        both = np.concatenate([W.real, W.imag], axis=1) / np.sqrt(np.tile(variance, 2))  # (p, 2 r)
        # A conjugate pair has two real functions and not four: half of the kernel sums.
        kept, blend = _without_repeats(both)
        parts = base.combined(kept)
        xp = namespace(parts.Psi)
        parts = replace(parts, offset=xp.asarray(mean @ kept, dtype=parts.Psi.dtype))
        r = W.shape[1]
        return cls(parts, blend[:, :r] + 1j * blend[:, r:])

    @property
    def n_modes(self) -> int:
        """Number of functions, r."""
        return self.blend.shape[1]

    @property
    def kernel(self) -> AbstractKernel:
        """Of the sums."""
        return self.parts.kernel

    @property
    def sources(self) -> Array:
        """Points of the sums, (m, d)."""
        return self.parts.sources

    @property
    def Psi(self) -> Array:
        """Complex numerators, (m, r)."""
        return self._blended(self.parts.Psi)

    @property
    def w(self) -> Array:
        """Denominator, (m,)."""
        return self.parts.w

    @property
    def offset(self) -> Array:
        """Complex means, (r,)."""
        return self._blended(self.parts.offset)

    def operator(self, Z: Array) -> KernelOperator:
        """Return the lazy (n, m) operator from the sources to ``Z``."""
        return self.parts.operator(Z)

    def of(self, columns: np.ndarray) -> RotatingFunctions:
        """Return some of the functions, and the parts that they use."""
        blend = self.blend[:, columns]
        used = np.flatnonzero(np.abs(blend).max(axis=1))
        return RotatingFunctions(self.parts.of(used), blend[used])

    def transform(self, Z: Any) -> Array:
        """Return the functions at ``Z``, (n, r) complex; one product with s + 1 columns."""
        return self._blended(self.parts.transform(Z))

    def gradient(self, Z: Any, c: Any = None) -> Array:
        """Return all gradients (n, r, d), or with ``c`` of shape (r,) that of sum_k c_k phi_k, (n, d); complex."""
        if c is None:
            slopes = self.parts.gradient(Z)
            xp = namespace(slopes)
            return xp.swapaxes(self._blended(xp.swapaxes(slopes, 1, 2)), 1, 2)
        if np.shape(c) != (self.n_modes,):
            raise ValueError(
                f"c has shape {np.shape(c)}, expected ({self.n_modes},): one coefficient per mode"
            )
        mixed = self.blend @ to_host(c)
        # Kernel sums are real on every backend; complex ones are two of them.
        real, imaginary = (self.parts.gradient(Z, part) for part in (mixed.real, mixed.imag))
        return real + 1j * imaginary

    def moments(self, Z: Any) -> np.ndarray:
        """Return the means of the functions over ``Z``, (r,) complex."""
        return self.parts.moments(Z) @ self.blend

    def _blended(self, values: Array) -> Array:
        """Return values @ blend, (..., s) to (..., r), at the precision of the values."""
        xp = namespace(values)
        kind = np.result_type(values.dtype, np.complex64)
        return values @ xp.asarray(self.blend.astype(kind))


def _without_repeats(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return distinct columns up to sign, and the matrix that makes the given ones of them; zeros are left out."""
    kept: list[np.ndarray] = []
    blend = np.zeros((columns.shape[1], columns.shape[1]))
    for k, column in enumerate(columns.T):
        if not column.any():
            continue
        for i, other in enumerate(kept):
            # Equal to the last bit, which `of_modes` has arranged: a tolerance could merge two slow modes that are merely
            # alike.
            if (column == other).all() or (column == -other).all():
                blend[i, k] = 1.0 if (column == other).all() else -1.0
                break
        else:
            blend[len(kept), k] = 1.0
            kept.append(column)
    return np.stack(kept, axis=1), blend[: len(kept)]


def whole_pairs(mu: np.ndarray, kept: np.ndarray, r: int) -> np.ndarray:
    """Return the first r of the kept modes, or one fewer where the last would miss its conjugate."""
    first = kept[:r]
    if np.iscomplexobj(mu) and len(first):
        last = mu[first[-1]]
        # Half of a pair is no real function and no rotation: better one mode fewer than asked.
        if last.imag != 0 and not (mu[first[:-1]] == last.conj()).any():
            return first[:-1]
    return first
