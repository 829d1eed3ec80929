r"""Dictionaries: functions whose combinations become eigenfunctions.

=== ==============================
n   points
p   functions of the dictionary
d   features
=== ==============================
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any, Protocol

import numpy as np

from gpukoop.arrays import Array, namespace, points, to_host, unchecked
from gpukoop.draws import check_count
from gpukoop.kernels.formula.profile import AbstractKernel
from gpukoop.operator import check_tol
from gpukoop.spectrum.bandwidth import resolve_scale
from gpukoop.spectrum.base import check_kernel
from gpukoop.spectrum.nystroem import Coordinates, choose_landmarks, coordinates

# Sources where the user does not say: more change no eigenvalue by more than the noise of the pairs.
DEFAULT_LANDMARKS = 1_000
# Coordinates looked at: sigma falls below every reg long before.
COORDINATES = 200
# Samples whose gradients calibrate the diffusivity: 2 per cent at most.
CALIBRATION = 5_000


class Dictionary(Protocol):
    """What GeneratorEDMD asks of a user's functions; the Hessian only for the general form.

    ``slope(X, w)`` -> (n, d), the gradient of ``features(X) @ w``, is used where it is offered.
    """

    def features(self, X: Array) -> Array:
        """Return the functions at points, (n, p)."""

    def gradient(self, X: Array) -> Array:
        """Return their gradients, (n, p, d)."""

    def hessian(self, X: Array) -> Array:
        """Return their second derivatives, (n, p, d, d)."""


class Monomials:
    """All monomials of total degree up to ``degree``, the constant first.

    Parameters
    ----------
    degree : int
        Highest total degree, at least 1.

    Examples
    --------
    >>> import numpy as np
    >>> Monomials(2).features(np.array([[2.0, 3.0]]))
    array([[1., 2., 3., 4., 6., 9.]])
    """

    def __init__(self, degree: int) -> None:
        self.degree = check_count(degree, "degree")

    def __repr__(self) -> str:
        return f"Monomials({self.degree})"

    def exponents(self, d: int) -> np.ndarray:
        """Return the exponents, (p, d), by degree."""
        rows = [
            np.bincount(np.array(axes, int), minlength=d)
            for degree in range(self.degree + 1)
            for axes in combinations_with_replacement(range(d), degree)
        ]
        return np.array(rows, int)

    def features(self, X: Array) -> Array:
        """Return the monomials, (n, p)."""
        return self._power(X, self.exponents(X.shape[1]))

    def gradient(self, X: Array) -> Array:
        """Return their gradients, (n, p, d)."""
        E, xp = self.exponents(X.shape[1]), namespace(X)
        return xp.stack([self._derivative(X, E, (a,)) for a in range(X.shape[1])], axis=2)

    def hessian(self, X: Array) -> Array:
        """Return their second derivatives, (n, p, d, d)."""
        E, xp, axes = self.exponents(X.shape[1]), namespace(X), range(X.shape[1])
        rows = [xp.stack([self._derivative(X, E, (a, b)) for b in axes], axis=2) for a in axes]
        return xp.stack(rows, axis=2)

    def _derivative(self, X: Array, E: np.ndarray, axes: tuple[int, ...]) -> Array:
        factor, E = np.ones(len(E)), E.copy()
        for a in axes:
            factor *= E[:, a]
            # Where the exponent was 0 the factor is 0, too, and x^-1 must not be asked at x = 0.
            E[:, a] = np.maximum(E[:, a] - 1, 0)
        return self._power(X, E) * namespace(X).asarray(factor, dtype=X.dtype)

    def _power(self, X: Array, E: np.ndarray) -> Array:
        xp = namespace(X)
        return xp.prod(X[:, None, :] ** xp.asarray(E), axis=2)


class Powers:
    """Powers of each coordinate alone, the first to the ``degree``-th: no function mixes two coordinates.

    In principal components they hold mean and variance of every one: 2 p functions where all monomials of degree two are
    p (p + 3) / 2, so that fields of a thousand cells can be learned from.

    Parameters
    ----------
    coordinates : fitted coordinates
        With ``transform`` and ``vjp``, such as ``LinearCoordinates("pca").fit(X)``; what they do not see is not moved.
    degree : int, default=2
        Highest power.

    Examples
    --------
    >>> import numpy as np, gpukoop as gk
    >>> X = np.random.default_rng(0).normal(size=(200, 5))
    >>> Powers(gk.spectrum.LinearCoordinates("pca").fit(X)).features(X).shape
    (200, 10)
    """

    def __init__(self, coordinates: Any, degree: int = 2) -> None:
        self.coordinates, self.degree = coordinates, check_count(degree, "degree")

    def __repr__(self) -> str:
        return f"Powers({self.coordinates!r}, {self.degree})"

    def features(self, X: Array) -> Array:
        """Return the powers, (n, degree * p), those of the first degree first."""
        G = self.coordinates.transform(X)
        return namespace(G).concatenate([G**k for k in range(1, self.degree + 1)], axis=1)

    def gradient(self, X: Array) -> Array:
        """Return their gradients, (n, degree * p, d)."""
        xp = namespace(X)
        G = self.coordinates.transform(X)
        axes = xp.eye(G.shape[1], dtype=G.dtype)
        slopes = [k * G[:, :, None] ** (k - 1) * axes for k in range(1, self.degree + 1)]
        along = xp.concatenate(slopes, axis=1)  # (n, degree * p, p)
        return xp.stack(
            [self.coordinates.vjp(X, along[:, j]) for j in range(along.shape[1])], axis=1
        )

    def slope(self, X: Array, w: Array) -> Array:
        """Return the gradient of ``features @ w``, (n, d), without the gradients of all features."""
        G = self.coordinates.transform(X)
        w = w.reshape(self.degree, G.shape[1])
        along = sum((k * w[k - 1]) * G ** (k - 1) for k in range(1, self.degree + 1))
        return self.coordinates.vjp(X, along)


@dataclass(frozen=True)
class DictionaryFunctions:
    """Functions features(z) @ W - offset: the counterpart of RatioFunctions for a user's dictionary."""

    dictionary: Any
    W: np.ndarray
    offset: np.ndarray
    n_features: int

    @property
    def n_modes(self) -> int:
        """Number of functions, r."""
        return self.W.shape[1]

    def transform(self, Z: Any) -> Array:
        """Return the functions at ``Z``, (n, r)."""
        Z, home = points(Z, "Z", n_features=self.n_features, other="the fitted X")
        xp = namespace(Z)
        return home.restore(
            self.dictionary.features(Z) @ xp.asarray(self.W) - xp.asarray(self.offset)
        )

    def gradient(self, Z: Any, c: Any = None) -> Array:
        """Return their gradients, (n, r, d), or with ``c`` that of sum_k c_k phi_k, (n, d)."""
        Z, home = points(Z, "Z", n_features=self.n_features, other="the fitted X")
        xp = namespace(Z)
        W = xp.asarray(self.W)
        if c is not None:
            W = (W @ xp.asarray(c))[:, None]
            # One combination without the (n, p, d) array of all gradients, where a dictionary knows how.
            if hasattr(self.dictionary, "slope"):
                return home.restore(self.dictionary.slope(Z, W[:, 0]))
        slopes = xp.einsum("npd,pr->nrd", self.dictionary.gradient(Z), W)
        return home.restore(slopes if c is None else slopes[:, 0])

    def moments(self, Z: Any) -> np.ndarray:
        """Return the means of the functions over ``Z``, (r,)."""
        return to_host(namespace(Z).asarray(self.transform(Z))).mean(axis=0)


def check_reg(reg: Any) -> float | None:
    """Return ``reg``, None for "auto"; raise unless it is in (0, 1)."""
    if isinstance(reg, str) and reg == "auto":
        return None
    if isinstance(reg, bool) or not isinstance(reg, int | float | np.floating) or not 0 < reg < 1:
        raise ValueError(
            f"reg is {reg!r}, expected 'auto' or a number in (0, 1): the smallest eigenvalue sigma of the "
            "diffusion coordinates that enter"
        )
    return float(reg)


@unchecked()  # who calls has looked at the points
def diffusion_dictionary(
    spectrum: Any,
    kernel: AbstractKernel,
    X: Array,
    n_modes: int,
    smallest: float,
    rng: np.random.Generator,
) -> Coordinates:
    """Return diffusion coordinates with sigma >= ``smallest`` on landmarks of X, as a spectrum's parameters say."""
    check_tol(spectrum.tol)
    check_kernel(kernel)
    options: dict[str, Any] = {"backend": spectrum.backend, "tol": spectrum.tol}
    size = spectrum.n_landmarks
    size = min(len(X), DEFAULT_LANDMARKS if size is None else check_count(size, "n_landmarks", 2))
    # With the number of landmarks: the scale that resolves n_modes depends on how many sources there will be.
    kernel = resolve_scale(kernel, X, n_modes, rng, size, **options)
    rows = np.arange(len(X))
    if size < len(X):
        rows = choose_landmarks(X, size, spectrum.landmarks, kernel, rng, **options)
    p = namespace(X).ones(len(X), X.dtype)
    even = spectrum.landmarks == "uniform" or size == len(X)
    # More than can enter, so that where to cut is decided by `reg` and not by what was computed.
    count = max(COORDINATES, 4 * n_modes)
    base = coordinates(kernel, X, p, count, rows, 0.5, rng, even=even, **options)
    kept = coordinates_above(base.sigma, smallest)
    return Coordinates(base.sigma[:kept], base.functions.of(np.arange(kept)), base.n_isolated)


def coordinates_above(sigma: np.ndarray, smallest: float) -> int:
    """Return how many coordinates have sigma >= ``smallest``, at least one."""
    if not len(sigma):
        raise ValueError(
            "no diffusion coordinate is left: the scale of the kernel is far larger than the samples' spread "
            "(lower it, or use 'auto'), or there are too few samples or landmarks"
        )
    return max(1, int((sigma >= smallest).sum()))


@unchecked()  # who calls has looked at the points
def calibrate(functions: Any, X: Array, eigenvalue: float) -> float:
    """Return a = lambda_1 / mean |grad phi_1|^2 over at most 5,000 evenly spread samples."""
    xp = namespace(X)
    # Evenly spread and not drawn: a fit has the same diffusivity every time.
    rows = X[:: max(1, len(X) // CALIBRATION)]
    first = np.zeros(functions.n_modes)
    first[0] = 1.0
    slopes = xp.abs(functions.gradient(rows, xp.asarray(first, dtype=X.dtype)))
    # lambda = a E|grad phi|^2 for a function of variance 1 (Dirichlet form): with phi and lambda known it gives a.
    return eigenvalue / float((slopes.astype(float) ** 2).sum(axis=1).mean())
