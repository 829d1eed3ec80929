"""What all baselines share: checked samples in units of their columns, draws brought back to the user's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from gpukoop.arrays import Array, like, to_host
from gpukoop.centring import centred
from gpukoop.draws import RandomState, check_count
from gpukoop.estimators.verdict import JudgedMixin
from gpukoop.fitted import framed, own_points, remember_columns, whole
from gpukoop.flow.loop import seed_from
from gpukoop.parameters import check_shared
from gpukoop.persistence import PersistentEstimator

# Samples on which a scale is chosen, and scales tried between a fiftieth of Silverman's and twice it.
JUDGES, SCALES = 2_000, np.geomspace(0.02, 2.0, 14)


class AbstractBaseline(JudgedMixin, PersistentEstimator, ABC):
    """A sampler with scikit-learn's face that learns from samples alone."""

    random_state: RandomState
    _standardises = True

    @abstractmethod
    def _check_parameters(self) -> None:
        """Raise if a parameter is out of range."""
        check_shared(self)

    @abstractmethod
    def _learn(self, X: np.ndarray, rng: np.random.Generator) -> None:
        """Learn from samples whose columns have deviation 1."""

    @abstractmethod
    def _draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Return n draws in the units of ``_learn``."""

    @whole
    def fit(self, X: Any, y: None = None) -> Any:
        """Learn from samples.

        Parameters
        ----------
        X : array of shape (m, d)
        y : None
            Ignored.

        Returns
        -------
        self
        """
        self._check_parameters()
        native, self._home = own_points(X, "X")
        remember_columns(self, X)
        self.X_, self.n_features_in_ = native, int(native.shape[1])
        self.mean_, x = centred(to_host(native))
        # Of a constant column 0: what is drawn there is left out. Where no column has a width, that of all is 1.
        self.width_ = x.std(axis=0) if x.any() else np.ones(x.shape[1])
        if not np.isfinite(self.width_).all():
            raise ValueError(
                "X has entries so large that squares leave the range of float64: rescale them"
            )
        self._learn(x / np.where(self.width_ > 0, self.width_, 1.0), self._stream(None))
        return self

    @framed
    def sample(self, n_samples: int = 1, random_state: RandomState = None) -> Array:
        """Return new samples, (n_samples, d), in the library of X.

        Parameters
        ----------
        n_samples : int
        random_state : None, int, Generator or RandomState
            None takes the estimator's.
        """
        check_is_fitted(self, "width_")
        self._check_parameters()
        n = check_count(n_samples, "n_samples")
        Z = self.mean_ + self.width_ * self._draw(n, self._stream(random_state))
        return self._home.restore(like(Z, self.X_))

    def _stream(self, random_state: RandomState) -> np.random.Generator:
        chosen = self.random_state if random_state is None else random_state
        return np.random.default_rng(seed_from(chosen))


def likeliest_scale(X: np.ndarray, rng: np.random.Generator) -> float:
    """Return the scale of a Gaussian kernel density under which held-out halves of the samples are likeliest."""
    from gpukoop.kernels.formula.catalogue import Gaussian

    rows = rng.permutation(len(X))[: 2 * JUDGES]
    A, B = X[rows[::2]], X[rows[1::2]]
    if len(B) == 0:
        return 1.0
    d = X.shape[1]
    silverman = (4 / ((d + 2) * len(A))) ** (1 / (d + 4))
    zero = np.zeros(len(A))
    found = [
        (float((Gaussian(s)(B, A).logsumexp(zero) - d * np.log(s)).mean()), s)
        for s in silverman * SCALES
    ]
    return float(max(found)[1])
