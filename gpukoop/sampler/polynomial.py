r"""Polynomials in x times Chebyshev polynomials in t, and the endpoint map of a Gaussian.

===  ==============================================================
y    (x - centre) / half_width, in [-1, 1] for most points
p    total degree in x
K    degree in t, of Chebyshev polynomials T_k(2 t - 1)
===  ==============================================================
"""

from __future__ import annotations

from itertools import combinations_with_replacement
from types import ModuleType
from typing import Any, final

import numpy as np

from gpukoop.arrays import Array, namespace
from gpukoop.checks import real_array
from gpukoop.draws import check_count
from gpukoop.fusion import fused
from gpukoop.sampler.lifting import AbstractFeatures, Constant, blockwise_product, column

# Half-width of the box that a monomial sees as [-1, 1], as a quantile on either side.
QUANTILE = 0.01
MAX_TERMS = 20_000
LARGEST_LOG = 700.0  # of a float64


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
        d = check_count(n_coordinates, "n_coordinates")
        self.degree = check_count(degree, "degree", least=0)
        self.time_degree = check_count(time_degree, "time_degree", least=0)
        self.centre, self.half_width = (
            _box_side(centre, "centre", d),
            _box_side(half_width, "half_width", d),
        )
        if not (self.half_width > 0).all():
            raise ValueError(f"half_width is {half_width}: pass numbers > 0")
        reach = (1 + np.abs(self.centre).max()) / self.half_width.min()
        if not (self.degree + 1) * np.log(reach + 1) < LARGEST_LOG:
            raise ValueError(
                f"centre={centre} over half_width={half_width} to the power {self.degree} leaves the range of float64"
            )
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
        self._keep = Constant(np.flatnonzero(keep.ravel()))
        self._box = Constant([self.centre, self.half_width])
        # All monomials of one degree at once: (their columns, the parents', the coordinates).
        self._degrees: list[tuple[slice, Constant, Constant]] = []
        first = 1
        for p in range(1, self.degree + 1):
            count = len(list(combinations_with_replacement(range(d), p)))
            parents, axes = np.array(self._recurrence[first - 1 : first - 1 + count], int).T
            self._degrees.append((slice(first, first + count), Constant(parents), Constant(axes)))
            first += count

    @property
    def n_features(self) -> int:
        """M."""
        return len(self._keep.values)

    def _monomials(self, x: Array, u: Array | None) -> tuple[Array, Array]:
        """Return the monomials and, given u, their derivatives along it, (n, p) each."""
        xp = namespace(x)
        centre, width = self._box.beside(x)
        y = (x - centre) / width
        moving = None if u is None else u / width
        values = xp.ones((len(x), len(self._recurrence) + 1), dtype=x.dtype)
        rates = values if u is None else xp.zeros_like(values)
        for into, parents, axes in self._degrees:
            parent, axis = parents.beside(x, np.int64), axes.beside(x, np.int64)
            left, right = values[:, parent], y[:, axis]
            values[:, into] = left * right
            if moving is not None:
                rates[:, into] = _leibniz(rates[:, parent], right, left, moving[:, axis])
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
            T[:, k], dT[:, k] = _three_terms(
                c, T[:, k - 1], T[:, k - 2], dT[:, k - 1], dT[:, k - 2]
            )
        return T, dT

    def _kept(self, products: Array) -> Array:
        return products.reshape(len(products), -1)[:, self._keep.beside(products, np.int64)]

    def features(self, x: Array, t: Any) -> Array:
        """Return the products that are not in the head of the lift."""
        A, T = self._monomials(x, None)[0], self._chebyshev(x, t)[0]
        return self._kept(A[:, :, None] * T[:, None, :])

    def features_and_jvp(self, x: Array, t: Any, u: Array) -> tuple[Array, Array]:
        """Return the products and their derivatives along (u, 1)."""
        values, rates = self._monomials(x, u)
        T, dT = self._chebyshev(x, t)
        A, dA = values[:, :, None], rates[:, :, None]
        T, dT = T[:, None, :], dT[:, None, :]
        return self._kept(A * T), self._kept(_leibniz(dA, T, A, dT))

    def product(self, x: Array, t: Any, P: Array) -> Array:
        """Return the products times P; at one time for all points time belongs to the weights."""
        if np.ndim(t) != 0:
            return blockwise_product(self, x, t, P)
        xp = namespace(x)
        at = self._chebyshev(np.zeros((1, 1)), float(t))[0][0]
        rows = len(self._recurrence) + 1
        whole = xp.zeros((rows * len(at), P.shape[1]), P.dtype)
        whole[self._keep.beside(x, np.int64)] = P
        weights = xp.asarray(at, dtype=P.dtype) @ whole.reshape(rows, len(at), -1)
        return self._monomials(x, None)[0] @ weights


@fused
def _leibniz(xp: ModuleType, da: Array, b: Array, a: Array, db: Array) -> Array:
    return da * b + a * db


@fused
def _three_terms(
    xp: ModuleType, c: Array, T1: Array, T0: Array, D1: Array, D0: Array
) -> tuple[Array, Array]:
    return 2 * c * T1 - T0, 4 * T1 + 2 * c * D1 - D0


def _box_side(value: Any, name: str, d: int) -> np.ndarray:
    side = real_array(value, name)
    if side.ndim > 1 or side.size not in (1, d):
        raise ValueError(f"{name} has shape {side.shape}, expected a number or ({d},)")
    return np.broadcast_to(side, (d,))


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
        mean = np.atleast_1d(real_array(mean, "mean"))
        covariance = np.atleast_2d(real_array(covariance, "covariance"))
        d = len(mean)
        if mean.shape != (d,) or d == 0 or covariance.shape != (d, d):
            raise ValueError(
                f"mean {mean.shape} and covariance {covariance.shape} do not fit: expected (d,) and (d, d)"
            )
        # Rounding may have made a flat direction slightly negative: nothing is asked of the sign.
        if not np.isfinite(np.trace(covariance)):
            raise ValueError(
                "covariance has entries that leave the range of float64: rescale the data"
            )
        values, self.basis = np.linalg.eigh(covariance)
        self.values = np.maximum(values, 1e-12 * max(float(values[-1]), 1e-300))
        self.mean = mean @ self.basis
        self._basis = Constant(self.basis)
        self._law = Constant([self.mean, self.values, np.sqrt(self.values)])

    @property
    def n_features(self) -> int:
        """One per coordinate, d."""
        return len(self.mean)

    def features(self, x: Array, t: Any) -> Array:
        """Return e(x, t)."""
        t = t if np.ndim(t) == 0 else column(t, x)
        return _endpoint(x @ self._basis.beside(x), t, *self._law.beside(x))

    def features_and_jvp(self, x: Array, t: Any, u: Array) -> tuple[Array, Array]:
        """Return e and its derivative along (u, 1)."""
        basis, law = self._basis.beside(x), self._law.beside(x)
        t = t if np.ndim(t) == 0 else column(t, x)
        turned = x @ basis
        return _endpoint(turned, t, *law), _endpoint_rate(turned, u @ basis, t, *law)

    def product(self, x: Array, t: Any, P: Array) -> Array:
        """Return e(x, t) @ P."""
        return blockwise_product(self, x, t, P)


@fused
def _endpoint(xp: ModuleType, x: Array, t: Any, m: Array, s: Array, root: Array) -> Array:
    return m + root * (x - t * m) / xp.sqrt((1.0 - t) * (1.0 - t) + t * t * s)


@fused
def _endpoint_rate(
    xp: ModuleType, x: Array, u: Array, t: Any, m: Array, s: Array, root: Array
) -> Array:
    variance = (1.0 - t) * (1.0 - t) + t * t * s
    growth = (t * s - (1.0 - t)) / variance
    return root * (u - m - (x - t * m) * growth) / xp.sqrt(variance)
