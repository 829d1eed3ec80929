"""Densities fitted to samples and drawn from."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpukoop.baselines.base import AbstractBaseline, likeliest_scale
from gpukoop.checks import check_length
from gpukoop.draws import RandomState, check_count


class KernelDensity(AbstractBaseline):
    """Draws of a Gaussian kernel density: samples drawn anew, plus noise of one scale.

    Parameters
    ----------
    scale : "auto" or float
        Deviation of the noise in units of the columns' deviations; "auto" is the one under which held-out samples are likeliest.
    random_state : int, Generator, RandomState or None

    Attributes
    ----------
    scale_ : float

    Examples
    --------
    >>> X = np.random.default_rng(0).normal(size=(300, 2))
    >>> gk.baselines.KernelDensity(random_state=0).fit(X).sample(5).shape
    (5, 2)
    """

    def __init__(self, scale: Any = "auto", random_state: RandomState = None) -> None:
        self.scale = scale
        self.random_state = random_state

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if not (isinstance(self.scale, str) and self.scale == "auto"):
            check_length(self.scale, "scale")

    def _learn(self, X: np.ndarray, rng: np.random.Generator) -> None:
        self._samples = X
        auto = isinstance(self.scale, str)
        self.scale_ = likeliest_scale(X, rng) if auto else float(self.scale)

    def _draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        rows = rng.integers(len(self._samples), size=n)
        return self._samples[rows] + self.scale_ * rng.standard_normal((n, self._samples.shape[1]))


class GaussianMixture(AbstractBaseline):
    """Draws of scikit-learn's Gaussian mixture with full covariances; the BIC chooses the number of components.

    Parameters
    ----------
    n_components : int, default=10
        Most components tried, at most a tenth of the samples.
    random_state : int, Generator, RandomState or None

    Attributes
    ----------
    mixture_ : sklearn.mixture.GaussianMixture
    """

    def __init__(self, n_components: int = 10, random_state: RandomState = None) -> None:
        self.n_components = n_components
        self.random_state = random_state

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_count(self.n_components, "n_components")

    def _learn(self, X: np.ndarray, rng: np.random.Generator) -> None:
        from sklearn import mixture

        if len(X) < 2:
            raise ValueError("X has 1 sample, expected at least 2: a mixture has widths")
        seed = int(rng.integers(2**31))
        most = max(1, min(self.n_components, len(X) // 10))
        fitted = [mixture.GaussianMixture(k, random_state=seed).fit(X) for k in range(1, most + 1)]
        self.mixture_ = min(fitted, key=lambda model: model.bic(X))

    def _draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        # scikit-learn's sample draws from the mixture's own seed, whatever is asked
        k = rng.choice(len(self.mixture_.weights_), size=n, p=self.mixture_.weights_)
        Z = rng.standard_normal((n, self.mixture_.means_.shape[1]))
        roots = np.linalg.cholesky(self.mixture_.covariances_)
        return self.mixture_.means_[k] + np.einsum("nij,nj->ni", roots[k], Z)
