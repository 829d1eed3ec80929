"""GeneratorEDMD: the spectrum of a generator from samples and the known coefficients of the diffusion."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np

from gpukoop.arrays import Array, namespace, to_host
from gpukoop.draws import RandomState, check_count, random_generator
from gpukoop.fitted import own_part, own_points, remember_columns, whole
from gpukoop.kernels.formula.profile import AbstractKernel
from gpukoop.lagged import pairs_of_runs, runs_of
from gpukoop.spectrum.base import AUTO, AbstractSpectrum, check_samples
from gpukoop.spectrum.coefficients import Coefficient, Diffusivity, drift_of
from gpukoop.spectrum.dictionary import (
    Dictionary,
    DictionaryFunctions,
    calibrate,
    check_reg,
    diffusion_dictionary,
)
from gpukoop.spectrum.nystroem import Landmarks
from gpukoop.spectrum.whitening import regress, whitened_pencil

# Numbers (b, p, d) of gradients held at once.
BLOCK_NUMBERS = 2**22
# sigma_min of "auto": exact derivatives carry no noise of pairs, so more coordinates are affordable.
AUTO_REG = 0.05
# Directions of the dictionary that the samples do not span.
CUT = 1e-10
# Eigenvalues below this share of the largest are the constant.
ZERO = 1e-10


class GeneratorEDMD(AbstractSpectrum):
    r"""Spectrum of a generator in a dictionary, from samples of any law (general) or of its own law (reversible).

    Reversible, without a drift:

    .. math:: E_{ij} = \mathrm{mean}\, \nabla\psi_i \cdot a\, \nabla\psi_j, \quad C_{ij} = \mathrm{cov}(\psi_i, \psi_j), \quad
              E y = \lambda\, C y, \quad a = s s^T / 2

    General, with a drift b:

    .. math:: A = \arg\min \sum_l |\psi(x_l) A - (L \psi)(x_l)|^2, \quad L u = b \cdot \nabla u + a : \nabla^2 u, \quad
              \lambda = -\mathrm{eig}(A)

    Parameters
    ----------
    dictionary : "diffusion" or Dictionary
        "diffusion": diffusion coordinates of landmarks, reversible form only. Otherwise an object with ``features(X)`` (n, p),
        ``gradient(X)`` (n, p, d) and, for the general form, ``hessian(X)`` (n, p, d, d), such as
        :class:`gpukoop.spectrum.Monomials`.
    n_components : int
        r, at most so many eigenfunctions beside the constant.
    kernel, n_landmarks, landmarks
        Of the diffusion coordinates, as in ``KernelEDMD``.
    reg : float or "auto"
        Their smallest sigma; "auto" is .05.
    backend, tol
        Of every kernel sum.
    random_state : int, Generator, RandomState or None
        Landmarks; drawn on the host.

    Attributes
    ----------
    eigenvalues_ : ndarray of shape (r,)
        Of the positive generator, by real part; complex if any is, which only the general form can give.
    eigenvectors_ : ndarray of shape (p, r)
        Combinations of the dictionary.
    diffusivity_ : float
        a, or its calibration lambda_1 / mean |grad phi_1|^2 where it is no constant number.
    functions_
        Eigenfunctions with mean 0 and variance 1 over X. With diffusion coordinates also ``sources_``, ``Psi_``, ``w_``,
        ``offset_``, see :class:`gpukoop.spectrum.base.AbstractSpectrum`.

    Notes
    -----
    Cost: n M pairs with p columns and gradients, O(n p^2). The reversible form is Rayleigh-Ritz: with infinite data
    eigenvalues are reached from above. The general form needs no stationary samples.

    References
    ----------
    .. [1] S. Klus, F. Nueske, S. Peitz, J.-H. Niemann, C. Clementi, C. Schuette, Data-driven approximation of the Koopman
       generator, Physica D 406, 2020, sections 3.1 and 3.3.

    Examples
    --------
    >>> import numpy as np, gpukoop as gk
    >>> X = np.random.default_rng(0).normal(size=(100, 1))
    >>> fitted = gk.spectrum.GeneratorEDMD(gk.spectrum.Monomials(4), n_components=4).fit(X, drift=lambda x: -x)
    >>> fitted.eigenvalues_.round(6)
    array([1., 2., 3., 4.])
    """

    def __init__(
        self,
        dictionary: Literal["diffusion"] | Dictionary = "diffusion",
        n_components: int = 32,
        *,
        kernel: AbstractKernel = AUTO,
        n_landmarks: int | None = None,
        landmarks: Landmarks = "uniform",
        reg: float | Literal["auto"] = "auto",
        backend: str | None = None,
        tol: float | None = None,
        random_state: RandomState = None,
    ) -> None:
        self.dictionary = dictionary
        self.n_components = n_components
        self.kernel = kernel
        self.n_landmarks = n_landmarks
        self.landmarks = landmarks
        self.reg = reg
        self.backend = backend
        self.tol = tol
        self.random_state = random_state

    @whole
    def fit(
        self,
        X: Any,
        y: None = None,
        *,
        drift: Coefficient = None,
        diffusion: Coefficient = None,
        lag: int | None = None,
        frame_time: float = 1.0,
    ) -> GeneratorEDMD:
        """Learn the spectrum.

        Parameters
        ----------
        X : array of shape (n, d)
            Samples; of the stationary law if there is no drift. With ``lag`` a trajectory of successive frames, or a list of
            such arrays of different lengths.
        y : None
            Ignored.
        drift : callable or array of shape (n, d), optional
            b of dX = b dt + s dW, at the samples. Without it the diffusion is taken as reversible.
        diffusion : float, array of shape (d,), (d, d), (n, d) or (n, d, d), or callable, optional
            s; the default sqrt(2) is overdamped Langevin at temperature 1. For n = d an array of shape (d, d) is a matrix.
        lag : int, optional
            Frames over which increments of trajectories stand for the coefficients that are not given: drift (y - x) / t
            (a dictionary of the user's only), diffusivity (y - x) (y - x)^T / 2t. The error is of the order of t.
        frame_time : float
            Time between two frames; t = lag * frame_time.

        Returns
        -------
        self
        """
        if lag is not None:
            runs = runs_of(X, "X")
            remember_columns(self, *runs)
            X, Y, t = pairs_of_runs(X, None, lag, frame_time)
            if drift is None and not isinstance(self.dictionary, str):
                # Euler-Maruyama read backwards: noisy at every sample, right in the mean that the regression takes.
                drift = (Y - X) / t
            if diffusion is None:
                # An increment as a matrix of one column: s s^T is its outer product, whose mean is twice the diffusion, as 2
                # a should be.
                diffusion = _one_column((Y - X) / t**0.5)
        else:
            remember_columns(self, X)
            X, _ = own_points(X, "X")
        self._check_parameters()
        r = check_count(self.n_components, "n_components")
        check_samples(X, 1)
        a = Diffusivity(diffusion, X)
        if isinstance(self.dictionary, str):
            if drift is not None:
                raise ValueError(
                    "drift= needs second derivatives, which dictionary='diffusion' lacks: leave drift out (the reversible "
                    "form needs samples of the law only), or pass a dictionary such as Monomials(3)"
                )
            self._fit_coordinates(X, r, a)
        else:
            self._check_dictionary(*() if drift is None else ("hessian",))
            self._fit_dictionary(X, r, a, drift)
        return self

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_reg(self.reg)
        self._check_dictionary()

    def _check_dictionary(self, *more: str) -> None:
        """Raise unless the dictionary is known, or has the methods needed."""
        needed = ("features", "gradient", *more)
        if isinstance(self.dictionary, str):
            if self.dictionary != "diffusion":
                raise ValueError(
                    f"unknown dictionary {self.dictionary!r}: pass 'diffusion' or an object such as Monomials(3)"
                )
        elif not all(callable(getattr(self.dictionary, name, None)) for name in needed):
            raise TypeError(
                f"dictionary is {self.dictionary!r}, expected 'diffusion' or an object with the methods "
                f"{', '.join(needed)}, such as Monomials(3)"
            )

    def _fit_coordinates(self, X: Array, r: int, a: Diffusivity) -> None:
        reg = check_reg(self.reg)
        rng = random_generator(self.random_state)
        base = diffusion_dictionary(self, self.kernel, X, r, AUTO_REG if reg is None else reg, rng)
        functions = base.functions
        blocks = _blocks(X, functions.Psi.shape[1])
        pieces = ((functions.transform(X[b]), functions.gradient(X[b]), a(b)) for b in blocks)
        values, W, mean, variance = _dirichlet(pieces, len(X), r)
        self.n_isolated_ = base.n_isolated
        self.eigenvectors_ = W
        self._store(functions.combined(W).normalised(mean, variance), values)
        self.diffusivity_ = a.number or calibrate(self.functions_, X, float(values[0]))

    def _fit_dictionary(self, X: Array, r: int, a: Diffusivity, drift: Coefficient) -> None:
        dictionary: Any = own_part(self.dictionary)  # a refit of the user's changes nothing here
        width = dictionary.features(X[:1]).shape[1]
        blocks = _blocks(X, width * (1 if drift is None else X.shape[1]))
        if drift is None:
            even = a.number  # no matrix for what is a number: of a thousand columns it would take most of the time
            pieces = (
                (dictionary.features(X[b]), dictionary.gradient(X[b]), even or a(b)) for b in blocks
            )
            values, W, mean, variance = _dirichlet(pieces, len(X), r)
        else:
            b_of = drift_of(drift, X)
            A = regress(_generator_rows(dictionary, X[b], b_of(b), a(b)) for b in blocks)
            values, W = _modes(A, r)
            mean, variance = _law(dictionary, X, W, _blocks(X, width))
        self.eigenvectors_, self.eigenvalues_ = W, values
        self.n_features_in_ = X.shape[1]
        spread = np.sqrt(variance)
        self.functions_ = DictionaryFunctions(dictionary, W / spread, mean / spread, X.shape[1])
        # No kernel and no scale here: the size of the cloud is the longest step that a flow should take.
        self.scale_ = float(to_host(X).astype(float).std(axis=0).max()) * X.shape[1] ** 0.5
        self.diffusivity_ = a.number or calibrate(self.functions_, X, float(values[0].real))


def _one_column(s: Array) -> Array:
    """Return matrices (n, d, d) whose first columns are the rows of s and whose others are 0."""
    out = namespace(s).zeros((*s.shape, s.shape[1]), s.dtype)
    out[:, :, 0] = s
    return out


def _blocks(X: Array, width: int) -> list[slice]:
    size = max(1, BLOCK_NUMBERS // (width * X.shape[1]))
    return [slice(start, start + size) for start in range(0, len(X), size)]


def _dirichlet(
    pieces: Iterable[tuple[Array, Array, Any]], n: int, r: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return eigenvalues, combinations, and mean and variance of these, of the form E y = lambda C y."""
    first: Any = 0.0
    second: Any = 0.0
    energy: Any = 0.0
    for psi, slopes, a in pieces:
        xp = namespace(psi)
        psi, slopes = psi.astype(float), slopes.astype(float)
        # A number stays a number: a matrix of it would multiply every gradient by mostly zeros.
        flux = slopes * a if np.ndim(a) == 0 else slopes @ a  # (b, p, d)
        first = first + to_host(psi.sum(axis=0))
        second = second + to_host(psi.T @ psi)
        energy = energy + to_host(xp.tensordot(slopes, flux, axes=([0, 2], [0, 2])))
    mean = np.asarray(first) / n
    C = np.asarray(second) / n - np.outer(mean, mean)
    # Columns of size one: the cut then compares directions and not units.
    size = np.sqrt(np.maximum(np.diag(C), np.finfo(float).tiny))
    size[np.diag(C) <= CUT * np.diag(np.asarray(second)) / n] = np.inf  # the constant
    negative, W = whitened_pencil(
        -np.asarray(energy) / n / np.outer(size, size), C / np.outer(size, size), CUT
    )
    values, W = -negative[:r], W[:, :r] / size[:, None]
    return np.maximum(values, np.finfo(float).tiny), W, mean @ W, np.ones(len(values))


def _generator_rows(dictionary: Any, X: Array, b: Array, a: Array) -> tuple[np.ndarray, np.ndarray]:
    """Return features and the generator of the features at points, (b, p) each, on the host."""
    xp = namespace(X)
    slopes, curvature = dictionary.gradient(X), dictionary.hessian(X)
    L = (slopes * b[:, None, :]).sum(axis=2)
    L = L + (curvature * (a if a.ndim == 2 else a[:, None])).sum(axis=(2, 3))
    return tuple(to_host(xp.asarray(G)).astype(float) for G in (dictionary.features(X), L))  # type: ignore[return-value]


def _modes(A: np.ndarray, r: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the eigenvalues of -A by real part and their vectors, without the constant."""
    theta, W = np.linalg.eig(A)
    values = -theta
    order = np.lexsort((values.imag, values.real))
    order = order[np.abs(values[order]) > ZERO * np.abs(values).max()][:r]
    values, W = values[order], W[:, order]
    if np.abs(values.imag).max(initial=0.0) <= ZERO * np.abs(values).max(initial=1.0):
        return values.real, W.real
    return values, W


def _law(
    dictionary: Any, X: Array, W: np.ndarray, blocks: list[slice]
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance of features @ W over the samples; 1 where a function is constant."""
    values = [to_host(dictionary.features(X[b])) @ W for b in blocks]
    mean = sum(v.sum(axis=0) for v in values) / len(X)
    variance = sum((np.abs(v - mean) ** 2).sum(axis=0) for v in values) / len(X)
    return mean, np.where(variance > 0, variance, 1.0)
