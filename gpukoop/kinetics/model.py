"""The fitted model that every question about states, features and forecasts is put to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from gpukoop.arrays import Array, to_host
from gpukoop.draws import RandomState, check_count, check_flag, check_positive, random_generator
from gpukoop.fitted import check_columns, remember_columns, whole
from gpukoop.kinetics.blocks import band, resamples, timescales_of
from gpukoop.kinetics.equilibrium import drift, equilibrium_ratio, warn_of_drift
from gpukoop.kinetics.learning import Learned, Material, unfitted
from gpukoop.kinetics.reweighted import Reweighted
from gpukoop.kinetics.timescales import check_confidence, warn_of_few_blocks
from gpukoop.parameters import check_shared
from gpukoop.persistence import PersistentEstimator


class KineticModel(ClassNamePrefixFeaturesOutMixin, TransformerMixin, PersistentEstimator):
    """Slow modes of trajectories at one lag, with what is needed for error bars.

    Parameters
    ----------
    estimator : KernelEDMD, optional
        Unfitted, reversible; ten modes by default.
    lag : int
        In frames: where :func:`implied_timescales` have become flat.
    frame_time : float
        Time between two frames, in the unit that all times shall have.
    reweight : bool
        Whether to weight pairs so that their law becomes the stationary one: for many short runs that start elsewhere.
        The weights are learned from the pairs and are as good as these cover the stationary law.
    n_bootstrap : int
        Resamples of blocks behind every band.
    confidence : float
        Of each band.
    random_state : int, Generator, RandomState or None
        Landmarks (of the default estimator) and resamples.

    Attributes
    ----------
    estimator_ : KernelEDMD
        Fitted: ``transform`` gives the eigenfunctions.
    timescales_, timescales_lower_, timescales_upper_ : ndarrays of shape (r,)
        Descending, with their bands.
    lag_time_ : float
    n_blocks_ : int
        Blocks that are resampled, see :mod:`gpukoop.kinetics.blocks`.
    drift_p_value_ : float
        Chance of a difference between the first and second halves of the runs as large as that seen, if they were in
        equilibrium; nan where there are too few blocks to say.

    Examples
    --------
    >>> import numpy as np, gpukoop as gk
    >>> X, _ = gk.datasets.double_well(20_000, lag_time=0.1, random_state=0)
    >>> estimator = gk.KernelEDMD(n_components=3, n_landmarks=100, random_state=0)
    >>> model = gk.kinetics.KineticModel(estimator, lag=5, frame_time=0.1).fit(X)
    >>> exact = 1 / gk.datasets.exact("double_well")["eigenvalues"][0]
    >>> bool(model.timescales_lower_[0] < exact < model.timescales_upper_[0])
    True
    """

    def __init__(
        self,
        estimator: Any = None,
        *,
        lag: int = 1,
        frame_time: float = 1.0,
        reweight: bool = False,
        n_bootstrap: int = 100,
        confidence: float = 0.95,
        random_state: RandomState = 0,
    ) -> None:
        self.estimator = estimator
        self.lag = lag
        self.frame_time = frame_time
        self.reweight = reweight
        self.n_bootstrap = n_bootstrap
        self.confidence = confidence
        self.random_state = random_state

    @whole
    def fit(self, trajectories: Any, y: None = None) -> KineticModel:
        """Learn the modes.

        Parameters
        ----------
        trajectories : array of shape (n, d), or list of such arrays of different lengths
            Kept by reference: memory-mapped runs are read again by :func:`chapman_kolmogorov` and :func:`occupancy`.
        y : None
            Ignored.

        Returns
        -------
        self

        Warns
        -----
        RuntimeWarning
            If the runs drift, so that they cannot have started in equilibrium, and ``reweight`` is False; or if they are
            fewer than five blocks.
        """
        self._check_parameters()
        lag = int(self.lag)
        self.lag_time_ = lag * float(self.frame_time)
        material = Material(trajectories, unfitted(self.estimator, self.random_state), lag)
        remember_columns(self, *material.runs)
        learned = material.learn(material.moments([lag])[lag], lag)
        self._ratio = None
        if self.reweight:
            first, self._ratio = learned, equilibrium_ratio(learned)
            learned = material.learn(material.moments([lag], self._ratio)[lag], lag)
            learned = replace(learned, basis=Reweighted.of(material, lag, first, learned))
        self._material, self._learned = material, learned
        self.estimator_ = material.estimator._adopt(
            material.base, learned.modes, material.estimator.seen(material.seen), self.lag_time_
        )
        self.n_blocks_ = len(learned.blocks)
        self._counts = resamples(
            self.n_blocks_, self.n_bootstrap, random_generator(self.random_state)
        )
        r = len(learned.modes.mu)
        self.timescales_ = timescales_of(learned.modes.mu, self.lag_time_)
        drawn = np.array([learned.basis.mu(r, c) for c in self._counts])
        self.timescales_lower_, self.timescales_upper_ = self._band(
            self.timescales_, timescales_of(drawn, self.lag_time_)
        )
        warn_of_few_blocks(self.n_blocks_)
        self.phi_ = to_host(self.estimator_.transform(material.seen)).astype(float)
        self.drift_p_value_ = drift(
            self.phi_, material.lengths, self.timescales_[0] / self.frame_time
        )
        if not self.reweight:
            warn_of_drift(self.drift_p_value_)
        return self

    def transform(self, X: Any) -> Array:
        """Return the eigenfunctions at points, of mean 0 and variance 1 under the law of the frames.

        Parameters
        ----------
        X : array of shape (n, d)
            Points.

        Returns
        -------
        array of shape (n, r)
            Library and device of X.
        """
        check_is_fitted(self)
        self._check_parameters()
        check_columns(self, X)
        return self.estimator_.transform(X)

    @property
    def _n_features_out(self) -> int:  # names the columns of ``transform`` for scikit-learn
        return int(self.phi_.shape[1])

    def _check_parameters(self) -> None:
        check_shared(self)
        unfitted(self.estimator, self.random_state)
        check_count(self.lag, "lag")
        check_positive(self.frame_time, "frame_time")
        check_count(self.n_bootstrap, "n_bootstrap", least=2)
        check_confidence(self.confidence)
        check_flag(self.reweight, "reweight")

    def weights(self) -> np.ndarray:
        """Return the weights, of mean 1, of the frames that ``phi_`` is known at: 1 unless ``reweight``."""
        fitted(self)
        if self._ratio is None:
            return np.ones(len(self.phi_))
        values = self._material.functions.transform(self._material.seen).astype(float)
        w = to_host(self._ratio(values))
        return w / w.mean()

    def _band(self, value: np.ndarray, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return band(value, drawn, self.n_blocks_, self._learned.c, self.confidence)


def fitted(model: Any) -> Learned:
    """Return what a fitted model has learned; raise if it is none."""
    if not isinstance(model, KineticModel):
        raise TypeError(f"model is {model!r}, expected a fitted KineticModel")
    check_is_fitted(model, "estimator_")
    model._check_parameters()
    learned: Learned = model._learned
    return learned
