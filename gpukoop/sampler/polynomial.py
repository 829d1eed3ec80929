r"""Polynomials in x times Chebyshev polynomials in t, and the endpoint map of a Gaussian.

===  ==============================================================
y    (x - centre) / half_width, in [-1, 1] for most points
p    total degree in x
K    degree in t, of Chebyshev polynomials T_k(2 t - 1)
===  ==============================================================
"""

from __future__ import annotations

from itertools import combinations_with_replacement
from typing import Any, final

import numpy as np

from gpukoop.arrays import Array, namespace
from gpukoop.sampler.lifting import AbstractFeatures, blockwise_product, column

# Half-width of the box that a monomial sees as [-1, 1], as a quantile on either side.
QUANTILE = 0.01
MAX_TERMS = 20_000


@final
class PolynomialFeatures(AbstractFeatures):
    r"""Monomials of total degree <= p in x times Chebyshev polynomials of degree <= K in t.

    .. math:: \varphi_{\alpha k}(x, t) = y^\alpha\, T_k(2t - 1), \qquad |\alpha| \le p, \; k \le K

    Differs from the full product in that 1, t and the bare coordinates are left out: the lift has them, and twice
    would make every moment singular. Exact for affine fields (K = 0 if they do not depend on time).

    Parameters
    ----------
    n_coordinates : int
        d.
    degree : int
        p >= 0.
    time_degree : int
        K >= 0.
    centre, half_width : arrays of shape (d,), optional
        The box; 0 and 1 by default.

    Notes
    -----
    Cost: n C(d+p, p) (K+1) products, the derivative by the recurrences of both factors. Meant for d <= 3 beyond
    degree 1.
    """

    def __init__(
        self,
        n_coordinates: int,
        degree: int,
        time_degree: int,
        *,
        centre: Any = 0.0,
        half_width: Any = 1.0,
    ) -> None:
        d = n_coordinates
        self.degree, self.time_degree = int(degree), int(time_degree)
        self.centre = np.broadcast_to(np.asarray(centre, dtype=float), (d,))
        self.half_width = np.broadcast_to(np.asarray(half_width, dtype=float), (d,))
        # A monomial is one coordinate times an earlier monomial: (parent, coordinate) in order of degree.
        index: dict[tuple[int, ...], int] = {(): 0}
        self._recurrence: list[tuple[int, int]] = []
        for p in range(1, self.degree + 1):
            for word in combinations_with_replacement(range(d), p):
                self._recurrence.append((index[word[:-1]], word[-1]))
                index[word] = len(index)
                if len(index) * (self.time_degree + 1) > MAX_TERMS:
                    raise ValueError(
                        f"degree={degree} in {d} coordinates with time_degree={time_degree} is more than "
                        f"{MAX_TERMS} features: lower degree, or use dictionary='nystroem'"
                    )
        keep = np.ones((len(index), self.time_degree + 1), dtype=bool)
        keep[0, :2] = False  # 1 and t
        keep[1 : d + 1, 0] = False  # x, of the monomials of degree 1
        self._keep = np.flatnonzero(keep.ravel())

    @property
    def n_features(self) -> int:
        """M."""
        return len(self._keep)

    def _monomials(self, x: Array, u: Array | None) -> tuple[Array, Array | None]:
        xp = namespace(x)
        width = xp.asarray(self.half_width, dtype=x.dtype)
        y = (x - xp.asarray(self.centre, dtype=x.dtype)) / width
        values = xp.ones((len(x), len(self._recurrence) + 1), dtype=x.dtype)
        rates = None if u is None else xp.zeros_like(values)
        for i, (parent, axis) in enumerate(self._recurrence, start=1):
            values[:, i] = values[:, parent] * y[:, axis]
            if rates is not None and u is not None:
                moving = u[:, axis] / width[axis]
                rates[:, i] = rates[:, parent] * y[:, axis] + values[:, parent] * moving
        return values, rates

    def _chebyshev(self, x: Array, t: Any) -> tuple[Array, Array]:
        """Return T_k(2t - 1) and its derivative in t, (n, K+1)."""
        xp = namespace(x)
        c = 2 * column(t, x)[:, 0] - 1
        T = xp.ones((len(x), self.time_degree + 1), dtype=x.dtype)
        dT = xp.zeros_like(T)
        if self.time_degree > 0:
            T[:, 1], dT[:, 1] = c, 2.0
        for k in range(2, self.time_degree + 1):
            T[:, k] = 2 * c * T[:, k - 1] - T[:, k - 2]
            dT[:, k] = 4 * T[:, k - 1] + 2 * c * dT[:, k - 1] - dT[:, k - 2]
        return T, dT

    def _outer(self, A: Array, T: Array) -> Array:
        return (A[:, :, None] * T[:, None, :]).reshape(len(A), -1)[:, self._keep]

    def features(self, x: Array, t: Any) -> Array:
        """Return the products that are not in the head of the lift."""
        return self._outer(self._monomials(x, None)[0], self._chebyshev(x, t)[0])

    def features_and_jvp(self, x: Array, t: Any, u: Array) -> tuple[Array, Array]:
        """Return the products and their derivatives along (u, 1)."""
        values, rates = self._monomials(x, u)
        T, dT = self._chebyshev(x, t)
        return self._outer(values, T), self._outer(rates, T) + self._outer(values, dT)

    def product(self, x: Array, t: Any, P: Array) -> Array:
        """Return the products times P, block by block."""
        return blockwise_product(self, x, t, P)


def quantile_box(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return centre and half-width of the box that holds most points, (d,) each; a flat side has width 1."""
    low, high = np.quantile(x, [QUANTILE, 1 - QUANTILE], axis=0)
    half = (high - low) / 2
    return (low + high) / 2, np.where(half > 0, half, 1.0)


@final
class EndpointFeatures(AbstractFeatures):
    r"""Where the flow towards a Gaussian would carry each point: d features that make Gaussian data exact.

    .. math:: e_i = m_i + \sqrt{s_i}\, \frac{x_i - t m_i}{\sigma_i(t)}, \qquad
              \sigma_i^2 = (1-t)^2 + t^2 s_i

    in the eigenbasis (m_i, s_i) of mean and covariance. e is constant along the flow towards N(m, S).

    Parameters
    ----------
    mean : array of shape (d,)
    covariance : array of shape (d, d)
        Directions without variance stay finite: s_i is at least 1e-12 of the largest.
    """

    def __init__(self, mean: np.ndarray, covariance: np.ndarray) -> None:
        values, self.basis = np.linalg.eigh(np.atleast_2d(covariance))
        self.values = np.maximum(values, 1e-12 * max(float(values[-1]), 1e-300))
        self.mean = np.asarray(mean, dtype=float) @ self.basis

    @property
    def n_features(self) -> int:
        """One per coordinate, d."""
        return len(self.mean)

    def features(self, x: Array, t: Any) -> Array:
        """Return e(x, t)."""
        return self.features_and_jvp(x, t, namespace(x).zeros_like(x))[0]

    def features_and_jvp(self, x: Array, t: Any, u: Array) -> tuple[Array, Array]:
        """Return e and its derivative along (u, 1)."""
        xp = namespace(x)
        basis, m, s = (xp.asarray(a, dtype=x.dtype) for a in (self.basis, self.mean, self.values))
        t = column(t, x)
        variance = (1 - t) ** 2 + t**2 * s
        sigma = xp.sqrt(variance)
        offset = x @ basis - t * m
        growth = (t * s - (1 - t)) / variance
        values = m + xp.sqrt(s) * offset / sigma
        return values, xp.sqrt(s) * (u @ basis - m - offset * growth) / sigma

    def product(self, x: Array, t: Any, P: Array) -> Array:
        """Return e(x, t) @ P."""
        return blockwise_product(self, x, t, P)
