"""What every fitted spectrum of the room offers, whatever it was learned from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from gpukoop.arrays import Array, points, to_host
from gpukoop.draws import RandomState, check_count
from gpukoop.fitted import check_columns
from gpukoop.kernels.formula.catalogue import Gaussian
from gpukoop.kernels.formula.lengths import mean_and_lengths
from gpukoop.kernels.formula.profile import AbstractKernel
from gpukoop.parameters import check_shared
from gpukoop.persistence import PersistentEstimator
from gpukoop.spectrum.coordinates import check_coordinates
from gpukoop.spectrum.nystroem import LANDMARKS
from gpukoop.spectrum.ratio import RatioFunctions
from gpukoop.spectrum.rotating import RotatingFunctions

# The default kernel: a Gaussian whose scale is found from the samples.
AUTO = Gaussian("auto")


class AbstractSpectrum(ClassNamePrefixFeaturesOutMixin, TransformerMixin, PersistentEstimator, ABC):
    """Eigenvalues of the positive generator and eigenfunctions in ratio form.

    Attributes
    ----------
    eigenvalues_ : ndarray of shape (r,)
        Of -Laplacian + grad V . grad, ascending, the constant left out; on the host in float64.
    functions_ : RatioFunctions
        phi_k(z) = (K Psi_k)(z) / (K w)(z) - offset_k.
    kernel_, sources_, Psi_, w_, offset_
        Its parts.
    diffusivity_ : float
        a of the diffusion whose eigenvalues these are, <grad phi_k, a grad phi_k> = lambda_k: 1 for a diffusion map.
    coordinates_ : coordinates or None
        g: functions, kernel and sources are those of g(x).
    """

    n_components: int
    n_landmarks: int | None
    backend: str | None
    tol: float | None
    random_state: RandomState
    functions_: Any
    eigenvalues_: np.ndarray
    n_features_in_: int
    coordinates_: Any = None

    @abstractmethod
    def fit(self, X: Any, y: None = None) -> AbstractSpectrum:
        """Learn the spectrum from samples."""

    def transform(self, X: Any) -> Array:
        """Return the eigenfunctions at points, mean 0 and variance 1 under the training samples.

        Parameters
        ----------
        X : array of shape (n, d)

        Returns
        -------
        array of shape (n, r)
            In the library and on the device of X.

        Notes
        -----
        Cost: one product with r + 1 columns.
        """
        self._check(X)
        if self.coordinates_ is None:
            return self.functions_.transform(X)
        native, home = points(X, "X")
        return home.restore(self.functions_.transform(self.coordinates_.transform(native)))

    def gradient(self, X: Any, c: Any = None) -> Array:
        """Return gradients of the eigenfunctions, or of one combination of them.

        Parameters
        ----------
        X : array of shape (n, d)
        c : array of shape (r,), optional
            With it the result is the gradient of sum_k c_k phi_k, from one pass with two columns.

        Returns
        -------
        array of shape (n, r, d), or (n, d) with ``c``
            0 where a target is so far from all samples that the kernel underflows.
        """
        self._check(X)
        if self.coordinates_ is None:
            return self.functions_.gradient(X, c)
        native, home = points(X, "X")
        slopes = self.functions_.gradient(self.coordinates_.transform(native), c)
        # One combination is one vector-Jacobian product; all gradients would need the whole Jacobian at every point.
        back = self.coordinates_.gradients if c is None else self.coordinates_.vjp
        return home.restore(back(native, slopes))

    def moments(self, X: Any) -> np.ndarray:
        """Return the means of the eigenfunctions over points, (r,) on the host, from two one-column passes."""
        self._check(X)
        return self.functions_.moments(self.seen(points(X, "X")[0]))

    def seen(self, X: Array) -> Array:
        """Return native points as kernel and functions see them: g(X), or X where there are no coordinates."""
        return X if self.coordinates_ is None else self.coordinates_.transform(X)

    def _check(self, X: Any) -> None:
        check_is_fitted(self, "functions_")
        self._check_parameters()
        check_columns(self, X)
        shape: tuple[int, ...] = getattr(X, "shape", ())
        if len(shape) == 2 and shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {shape[1]} features, but {type(self).__name__} is expecting {self.n_features_in_} features "
                "as input: the columns of the X it was fitted to"
            )

    @property
    def timescales_(self) -> np.ndarray:
        """Relaxation times 1 / Re ``eigenvalues_``, (r,), in the unit of time of the eigenvalues."""
        return 1.0 / np.real(self.eigenvalues_)

    @property
    def _n_features_out(self) -> int:
        """Number of modes; names the columns of ``transform`` for scikit-learn."""
        return len(self.eigenvalues_)

    def _check_parameters(self) -> None:
        """Raise if a parameter is out of range: asked by ``fit`` and by every verb after it, for ``set_params`` comes between."""
        check_shared(self)
        check_count(self.n_components, "n_components")
        check_coordinates(getattr(self, "coordinates", None))
        given = self.get_params(deep=False)
        check_kernel(given["kernel"])
        landmarks = given["landmarks"]
        if not isinstance(landmarks, str) or landmarks not in LANDMARKS:
            raise ValueError(f"unknown landmarks {landmarks!r}; known are {', '.join(LANDMARKS)}")
        if self.n_landmarks is not None:
            check_count(self.n_landmarks, "n_landmarks", least=2)

    def _store(
        self, functions: RatioFunctions | RotatingFunctions, eigenvalues: np.ndarray
    ) -> None:
        self.functions_ = functions
        self.kernel_, self.sources_ = functions.kernel, functions.sources
        self.Psi_, self.w_, self.offset_ = functions.Psi, functions.w, functions.offset
        # A number also where each feature has a scale: flows shorten their steps to it.
        self.scale_ = mean_and_lengths(functions.kernel.terms[0][1].scale)[0]
        self.eigenvalues_ = eigenvalues
        if self.coordinates_ is None:
            self.n_features_in_ = functions.sources.shape[1]
        # Asked with the columns that transform will send, since the choice of backend depends on their number.
        operator = functions.operator(functions.sources)
        self.backend_ = operator.explain("product", t=len(eigenvalues) + 1).backend


def check_kernel(kernel: Any) -> None:
    """Raise unless the kernel can make a Markov matrix."""
    if not isinstance(kernel, AbstractKernel):
        raise TypeError(f"kernel is {kernel!r}, expected a kernel such as Gaussian('auto')")
    if not kernel.positive:
        raise ValueError(
            f"{kernel!r} takes values <= 0, expected a positive kernel such as Gaussian('auto'): its row sums "
            "are the probabilities of a Markov matrix"
        )


def check_samples(X: Array, n_components: int) -> None:
    """Raise unless n_components eigenfunctions can be learned from these samples."""
    n = len(X)
    if n < 2:
        raise ValueError(f"X has {n} sample, expected at least 2: a spectrum compares samples")
    if n_components >= n:
        raise ValueError(
            f"n_components is {n_components}, X has {n} samples: ask for at most {n - 1} eigenfunctions "
            "(the constant is left out)"
        )
    # No kernel tells equal samples apart: the Markov matrix has rank one, which later reads as a failure of the eigensolver.
    if bool((X == X[:1]).all()):
        raise ValueError("all samples of X are equal: their law has no spectrum to learn")


def mean_and_variance(phi: Array, p: Array) -> tuple[np.ndarray, np.ndarray]:
    """Return weighted mean and variance of columns, on the host; p sums to one."""
    mean = p @ phi
    return to_host(mean), to_host(p @ (phi - mean) ** 2)
