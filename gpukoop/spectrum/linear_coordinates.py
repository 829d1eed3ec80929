r"""Coordinates in which a kernel measures distances: :math:`k(g(x), g(y))`.

=== ==============================================
X   points (n, d)
g   coordinates, (n, d) -> (n, p)
J   derivative of g at a point, (p, d)
u   unit: geometric mean of the columns' deviations
=== ==============================================

Gradients come back through the vector-Jacobian product :math:`J^T v`. A flow moves g by :math:`\dot g`, and the particle by
:math:`J^+ \dot g`, the shortest motion that does so: what g does not see stays where it is. Differs from moving the particle
by :math:`J^T \dot g`, which is as fast as J is steep, so that moments of the modes would no longer decay as they should.

References
----------
.. [1] F. Noe, C. Clementi, Kinetic distance and kinetic maps from molecular dynamics simulation, J. Chem. Theory Comput. 11,
   2015, eq. 21.
.. [2] G. Perez-Hernandez et al., Identification of slow molecular order parameters for Markov model construction, J. Chem.
   Phys. 139, 2013 (TICA).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from gpukoop.arrays import (
    Array,
    Home,
    like,
    namespace,
    native_array,
    points,
    require_finite,
    to_host,
)
from gpukoop.centring import centred
from gpukoop.checks import masses
from gpukoop.draws import check_count
from gpukoop.fitted import check_columns, remember_columns, whole
from gpukoop.persistence import PersistentEstimator

METHODS = ("standardize", "whiten", "pca", "tica")
# Principal components that hold this share of the variance are kept.
EXPLAINED = 0.99
# Directions of a covariance below this share of its largest eigenvalue are rounding.
CUT = 1e-12
# A component that is damped so much more than the slowest, exp(-3), is left to the particles: it relaxes in a quarter of its time.
LEAST_WEIGHT = 0.05
# Functions of the ranks of one component that find its timescale; they see wells, and no tails.
LEGENDRE = 5


class AbstractCoordinates(ABC):
    """Coordinates of native points: values, gradients back, motions back."""

    invertible = False

    @abstractmethod
    def transform(self, X: Array) -> Array:
        """Return g(X), (n, p)."""

    @abstractmethod
    def vjp(self, X: Array, G: Array) -> Array:
        """Return J^T g for rows of G, (n, p) -> (n, d)."""

    @abstractmethod
    def lift(self, X: Array, motion: Array) -> Array:
        """Return X + J^+ motion, (n, d)."""

    def gradients(self, X: Array, G: Array) -> Array:
        """Return J^T g for gradients of r functions, (n, r, p) -> (n, r, d)."""
        return namespace(G).stack([self.vjp(X, G[:, k]) for k in range(G.shape[1])], axis=1)


class LinearCoordinates(
    AbstractCoordinates, ClassNamePrefixFeaturesOutMixin, TransformerMixin, PersistentEstimator
):
    r"""Linear coordinates :math:`g(x) = (x - m) A` learned from samples or pairs.

    Parameters
    ----------
    method : {"standardize", "whiten", "pca", "tica"}
        Columns over their deviations; the covariance made the identity; principal components; slow components of pairs, each
        scaled by :math:`e^{-t_1 / t_k}`, t_k its relaxation time: distances are those after the slowest component has relaxed.
        "standardize", "whiten" and "tica" keep the unit u of the data.
    n_components : int, optional
        p; by default all, those that hold .99 of the variance ("pca"), or those that relax in no less than a quarter of the
        slowest time ("tica").

    Attributes
    ----------
    mean_ : ndarray of shape (d,)
    matrix_ : ndarray of shape (d, p)
        A.
    timescales_ : ndarray of shape (p,)
        "tica": relaxation times in lags, descending.

    Notes
    -----
    Cost O(m d^2 + d^3). A relaxation time is that of the best function of one component alone: wells relax more slowly than their
    linear coordinate shows.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(500, 2)) * [1.0, 100.0]
    >>> LinearCoordinates("standardize").fit_transform(X).std(axis=0).round(1)
    array([9.9, 9.9])
    """

    def __init__(self, method: str = "standardize", n_components: int | None = None) -> None:
        self.method = method
        self.n_components = n_components

    @whole
    def fit(
        self, X: Any, y: Any = None, *, successors: Any = None, sample_weight: Any = None
    ) -> LinearCoordinates:
        """Learn the coordinates; ``successors`` is X one lag later, for "tica", and weights of samples (m,) enter all moments."""
        self._check_parameters()
        remember_columns(self, X, successors)
        native = to_host(points(X, "X")[0])
        if sample_weight is None:
            p = np.full(len(native), 1 / len(native))
        else:
            if self.method == "tica":
                raise ValueError(
                    "sample_weight= goes with samples, the pairs of coordinates='tica' have no weights: drop one"
                )
            p = masses(sample_weight, "sample_weight", len(native))
            native, p = native[p > 0], p[p > 0]
        self.mean_, x = centred(native, None if sample_weight is None else p)
        self.n_features_in_ = x.shape[1]
        size = float(np.abs(x).max()) or 1.0  # a unit in which no square leaves the range
        # Everything below is homogeneous in x, so the unit cancels at the end; squares of 1e200 would not.
        x = x / size
        rows = x * np.sqrt(p)[:, None]  # whose squares sum to the moments
        deviation = np.linalg.norm(rows, axis=0)
        unit = math.exp(np.log(deviation[deviation > 0]).mean()) if deviation.any() else 1.0
        if self.method == "standardize":
            # Times their geometric mean: scales of kernels stay in the units of the features.
            A = np.diag(unit / np.where(deviation > 0, deviation, unit))
        elif self.method == "tica":
            if successors is None:
                raise ValueError(
                    "coordinates='tica' are learned from pairs: pass successors=Y, X one lag later, or use 'whiten'"
                )
            later = to_host(points(successors, "successors", n_features=x.shape[1])[0]).astype(
                float
            )
            if len(later) != len(x):
                raise ValueError(
                    f"successors has {len(later)} rows, X has {len(x)}: row i must be X[i] one lag later"
                )
            A = unit * self._slow(x, (later - self.mean_) / size)
        else:
            A = self._principal(rows, unit)
        self.matrix_ = A if self.n_components is None else A[:, : self.n_components]
        self._back = np.linalg.pinv(self.matrix_)
        return self

    def _check_parameters(self) -> None:
        if not isinstance(self.method, str) or self.method not in METHODS:
            raise ValueError(
                f"the method of coordinates must be one of {', '.join(map(repr, METHODS))}, got {self.method!r}"
            )
        if self.n_components is not None:
            check_count(self.n_components, "n_components")

    def _principal(self, rows: np.ndarray, unit: float) -> np.ndarray:
        # Of the points and not of their covariance, which would square the range of the deviations.
        _, s, V = np.linalg.svd(rows, full_matrices=False)
        kept = s**2 > CUT * s[0] ** 2 if s[0] > 0 else np.arange(len(s)) == 0
        s, V = s[kept], V[kept].T
        if self.method == "whiten" and len(s) == rows.shape[1] and self.n_components is None:
            # Triangular, so that the coordinates stay when columns are stretched; principal ones turn.
            L = np.linalg.cholesky(rows.T @ rows)
            return unit * np.linalg.inv(L).T
        if self.method == "whiten":
            return unit * V / np.where(s > 0, s, 1.0)
        if self.n_components is not None:
            return V
        share = np.cumsum(s**2) / max((s**2).sum(), np.finfo(float).tiny)
        return V[:, : 1 + int((share < EXPLAINED).sum())]

    def _slow(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return TICA components of unit variance times their weights, slowest first, (d, p)."""
        both = np.concatenate([x, y])
        centre = both.mean(axis=0)
        _, s, V = np.linalg.svd((both - centre) / math.sqrt(len(both)), full_matrices=False)
        kept = s**2 > CUT * s[0] ** 2
        W = V[kept].T / s[kept]
        a, b = (x - centre) @ W, (y - centre) @ W
        # Symmetrised over time in whitened coordinates: real components, as those of a reversible process are.
        U = np.linalg.eigh(a.T @ b + b.T @ a)[1]
        times = np.array([_relaxation_time(a @ w, b @ w) for w in U.T])
        order = np.argsort(-times)
        times, A = times[order], (W @ U)[:, order]
        # The slowest has weight 1; faster ones are damped as they relax, so distances measure what stays apart in time.
        weight = np.exp(1.0 - times[0] / times)
        kept = weight >= LEAST_WEIGHT if self.n_components is None else np.ones(len(times), bool)
        self.timescales_ = times[kept]
        return A[:, kept] * weight[kept]

    @property
    def invertible(self) -> bool:  # type: ignore[override]
        """Whether nothing of a point is lost."""
        return self.matrix_.shape[0] == self.matrix_.shape[1]

    def transform(self, X: Any) -> Array:
        """Return (X - m) A, (n, p)."""
        check_is_fitted(self, "matrix_")
        self._check_parameters()
        check_columns(self, X)
        x, home = points(X, "X", n_features=self.n_features_in_, other="the fitted X")
        return home.restore((x - like(self.mean_, x)) @ like(self.matrix_, x))

    @property
    def _n_features_out(self) -> int:
        """p; names the columns of ``transform`` for scikit-learn."""
        return int(self.matrix_.shape[1])

    def inverse(self, G: Any) -> Array:
        """Return the points with these coordinates, those nearest to the mean if there are many, (n, d)."""
        g, home = self._inside(G, "G")
        return home.restore(like(self.mean_, g) + g @ like(self._back, g))

    def vjp(self, X: Any, G: Any) -> Array:
        """Return G A^T, (n, d)."""
        g, home = self._inside(G, "G")
        self._beside(X, g, "G")
        return home.restore(g @ like(self.matrix_, g).T)

    def gradients(self, X: Any, G: Any) -> Array:
        """Return G A^T, (n, r, d)."""
        return self.vjp(X, G)

    def lift(self, X: Any, motion: Any) -> Array:
        """Return X + motion A^+, (n, d)."""
        step = self._inside(motion, "motion")[0]
        x, home = self._beside(X, step, "motion")
        return home.restore(x + like(step, x) @ like(self._back, x))

    def _beside(self, X: Any, G: Array, name: str) -> tuple[Array, Home]:
        """Return points, checked, as many as there are rows of G."""
        check_columns(self, X)
        x, home = points(X, "X", n_features=self.n_features_in_, other="the fitted X")
        if len(x) != len(G):
            raise ValueError(f"{name} has {len(G)} rows, X has {len(x)}: one row per point")
        return x, home

    def _inside(self, G: Any, name: str) -> tuple[Array, Home]:
        """Return coordinates or gradients in them, checked, and their home."""
        check_is_fitted(self, "matrix_")
        self._check_parameters()
        native, home = native_array(G, name)
        if native.dtype.kind not in "fiub":
            raise TypeError(f"{name} has dtype {native.dtype}, expected real numbers")
        if native.ndim not in (2, 3) or native.shape[-1] != self._n_features_out:
            raise ValueError(
                f"{name} has shape {tuple(native.shape)}, expected (n, {self._n_features_out}): one column per coordinate"
            )
        if not len(native):
            raise ValueError(f"{name} has shape {tuple(native.shape)}: pass at least one row")
        require_finite(native, name)
        if not native.dtype.isnative:
            native = native.astype(native.dtype.newbyteorder("="))
        # whole numbers would make whole numbers of the matrix
        return native.astype(float) if native.dtype.kind in "iub" else native, home


def _relaxation_time(a: np.ndarray, b: np.ndarray) -> float:
    """Return -1 / log(mu) in lags, mu of the slowest polynomial of the ranks of one component."""
    ordered = np.sort(np.concatenate([a, b]))
    # Ranks, since a linear function of a component hardly sees jumps between two wells inside heavy tails.
    rank = [2 * np.searchsorted(ordered, z, side="right") / len(ordered) - 1 for z in (a, b)]
    P, Q = (np.polynomial.legendre.legvander(r, LEGENDRE)[:, 1:] for r in rank)
    mean = (P.mean(axis=0) + Q.mean(axis=0)) / 2
    P, Q = P - mean, Q - mean
    # The ridge keeps a component of few distinct values, whose polynomials depend on each other, factorisable.
    half = np.linalg.cholesky(P.T @ P + Q.T @ Q + 1e-9 * len(P) * np.eye(LEGENDRE))
    inner = np.linalg.solve(half, np.linalg.solve(half, P.T @ Q + Q.T @ P).T)
    mu = float(np.clip(np.linalg.eigvalsh((inner + inner.T) / 2)[-1], 1e-6, 1 - 1e-9))
    return -1.0 / math.log(mu)
