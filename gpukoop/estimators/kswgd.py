"""KSWGD as an estimator: the spectrum of the samples' generator, and particles that follow it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning

from gpukoop.arrays import Array, like, points
from gpukoop.estimators import spectra
from gpukoop.estimators.base import AbstractFlowEstimator
from gpukoop.estimators.kept import kept
from gpukoop.estimators.killing import WeightedByKilling
from gpukoop.estimators.kswgd_parameters import check_kswgd, langevin_rate
from gpukoop.estimators.motion import not_arrived, were_far
from gpukoop.estimators.start import drawn_start
from gpukoop.estimators.verdict import ConvergedByVerdict, set_aside
from gpukoop.estimators.weights import check_weight, effective_size
from gpukoop.fitted import check_columns, whole
from gpukoop.flow.kswgd import Pushed, make_step
from gpukoop.flow.kswgd_dictionary import make_dictionary_step
from gpukoop.flow.lifted import in_coordinates, projected
from gpukoop.flow.loop import Callback, State, Step
from gpukoop.lagged import pairs_of_runs

# Share of the steps that follow the coarse spectrum, if there is one.
COARSE_FRACTION = 0.5


class KSWGD(
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    WeightedByKilling,
    ConvergedByVerdict,
    AbstractFlowEstimator,
):
    r"""Koopman spectral Wasserstein gradient descent: new samples from the law behind samples or pairs.

    Learns eigenfunctions phi_k and eigenvalues lambda_k of the positive Langevin generator from data and moves
    particles by :math:`v = -\sum_k (c_k/\lambda_k) \nabla\varphi_k`, c_k the mean of phi_k under the particles, until all
    means vanish. No density or score of the law is needed.

    Parameters
    ----------
    spectrum : None, "diffusion", "edmd" or a fitted spectrum
        Where the spectrum comes from: a diffusion map of the samples, reversible EDMD of the pairs. None means
        "edmd" if ``fit`` is given ``successors``, else "diffusion". A fitted :class:`gpukoop.GeneratorEDMD` may have any
        dictionary; for a nearly normal law of many columns take ``gk.spectrum.Powers`` of its principal components.
    kernel : kernel, optional
        Positive radial kernel; ``Gaussian("auto")`` by default.
    n_components : int, optional
        Modes r. What the first r modes do not see is not moved. None means 64, or half the number of samples, or as
        many as the kernel resolves, whichever is least.
    lag_time : float
        Time between X and its successors, in the unit the eigenvalues shall have (per that unit).
    n_landmarks : int, optional
        Sources of the kernel sums; None takes all samples. A step costs O(n * n_landmarks).
    coordinates : "auto", None, "standardize", "whiten", "pca", "tica", object or torch module
        g of k(g(x), g(y)), as in :class:`gpukoop.DiffusionMap`; "tica" needs pairs. The particles' g follows the flow, and each
        moves no more than that needs; the start looks for neighbours there. With "standardize" no column's unit matters.
        "auto" standardises where mean absolute deviations of columns differ more than five times, unless ``project`` or a kernel
        with a scale for each feature says what a distance is. ``spectrum_.coordinates_`` is what was taken.
    step_size : float
        LAWGD time of a step; below 2.
    total_time : float
        LAWGD time of the flow; moments fall as exp(-time). ``n_iter = total_time / step_size``.
    project : callable, optional
        (n, d) -> (n, d), the nearest point of the manifold the law lives on.
    init : "data", "gaussian", "mixture" or callable
        Where :meth:`sample` starts. "data": at samples drawn anew with noise of the size and shape of their neighbourhoods, as
        far from the nearest sample as unseen ones (:mod:`gpukoop.flow.start`). The normal law with the mean and covariance of
        X; a Gaussian mixture whose size the BIC chooses; or ``init(n, rng) -> (n, d)``.
    coarse : "auto", True or False
        Particles outside the data: let up to half of the time follow a diffusion map of the samples at least 1.5 times as
        wide, which reaches them; ``coarse_`` is the map taken, or None. "auto" does so unless the spectrum is itself a
        diffusion map with a kernel at least 1/1.5 as wide as the median rule. False is the plain single-spectrum flow.
    langevin : float
        Langevin time that passes in a unit of LAWGD time at the start of the flow, in multiples of 1 / lambda_r, falling linearly to zero at its end; 0 is
        the deterministic flow. What the modes do not see stays in the particles of a deterministic flow: holes of the
        start shrink but never close. With ``langevin`` a mode with eigenvalue lambda beyond the last decays by
        exp(-langevin * (lambda / lambda_r) * total_time / 2), and the particles end as evenly spread as independent draws or better
        (measured: quadruple well, 10^5 samples, 100 modes, .02 in absolute units: sliced W2 to the law .0075, at 0 .0126, independent draws
        .0079). From .5 to 1 is a good choice, from far outside up to 5. The flow
        then uses all its time: it does not stop early.
    units : "data" or "absolute"
        "absolute": ``langevin`` is a number in the square of the units of X.
    tol : float, optional
        Accuracy of kernel sums; None is rounding accuracy.
    validation_fraction : float
        Share of the samples that nothing is learned from and that judge the particles; 0 keeps none, and so do fewer than
        200 samples and a spectrum that is already fitted.
    backend, verbose : str, optional, and int
        Who computes; 1: a progress bar with the time left.
    random_state : None, int, Generator or RandomState
        Landmarks and starting points.

    Attributes
    ----------
    eigenvalues_ : array of shape (r,)
        Of the positive generator, ascending, the constant left out.
    spectrum_ : fitted spectrum
        Eigenfunctions, their gradients, ``scale_``.
    coarse_ : fitted spectrum or None
        The wide spectrum of the first half of the time.
    carried_ : array of bool of shape (r,)
        Modes that at least 30 samples carry (a fiftieth of few samples); the others are never pushed.
    backend_ : str
        Who computes the sums of a step.
    report_ : gpukoop.verdict.Report
        After the first :meth:`sample` of at least 20 particles: whether they are on the law of the data.
    X_held_out_ : array or None
        The samples kept aside.
    n_iter_, converged_, history_ : int, bool, dict
        After a flow. ``converged_`` is the verdict of :meth:`diagnose` on its last particles, at most 2,000 of them, whatever the
        moments say. ``history_`` holds ``moments`` (steps, r), ``dissipation`` = sum c_k^2, root mean square ``displacement``, the
        share of ``limited`` steps, and the number of ``far`` particles that were pulled towards the data.

    Notes
    -----
    A mode whose mean has never been above its sampling noise sqrt(1/n + 1/m) is left alone: what it would push is chance,
    and particles that are already draws of the law stay so.

    Cost of a step: three passes over n x m pairs, O(n + m) temporary memory. A particle moves at most one
    scale a step. A particle so far away that the kernel underflows moves one scale a step straight towards the
    nearest samples; that is no LAWGD step, and it is counted in ``history_["far"]`` and warned about.

    References
    ----------
    .. [1] Xu, Li, Fujisawa, Cheng, Marzouk, Ishikawa, arXiv 2512.18837. .. [2] Chewi et al., arXiv 2006.02509, section 4.

    Examples
    --------
    >>> import numpy as np, gpukoop as gk
    >>> X = np.random.default_rng(0).normal(size=(500, 2))
    >>> flow = gk.KSWGD(n_components=10, random_state=0).fit(X)
    >>> flow.sample(100).shape
    (100, 2)
    """

    def __init__(
        self,
        spectrum: Any = None,
        kernel: Any = None,
        n_components: int | None = None,
        lag_time: float = 1.0,
        n_landmarks: int | None = None,
        coordinates: Any = "auto",
        step_size: float = 0.05,
        total_time: float = 8.0,
        project: Callable[[Array], Array] | None = None,
        init: Any = "data",
        coarse: Any = "auto",
        langevin: float = 0.0,
        units: str = "data",
        tol: float | None = None,
        validation_fraction: float = 0.1,
        backend: str | None = None,
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.spectrum = spectrum
        self.kernel = kernel
        self.n_components = n_components
        self.lag_time = lag_time
        self.n_landmarks = n_landmarks
        self.coordinates = coordinates
        self.step_size = step_size
        self.total_time = total_time
        self.project = project
        self.init = init
        self.coarse = coarse
        self.langevin = langevin
        self.units = units
        self.tol = tol
        self.validation_fraction = validation_fraction
        self.backend = backend
        self.random_state = random_state
        self.verbose = verbose

    @whole
    @kept
    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        successors: Any = None,
        sample_weight: Any = None,
        lag: int | None = None,
        frame_time: float = 1.0,
        checkpoint: str | Path | None = None,
    ) -> KSWGD:
        """Learn the spectrum of the generator from samples, pairs or trajectories.

        Parameters
        ----------
        X : array of shape (m, d)
            Samples of the law. With ``lag`` a trajectory of successive frames, or a list of such arrays of different
            lengths: no pair joins two of them.
        y : ignored
            scikit-learn's convention; a two-dimensional y is an error, because successors were probably meant.
        successors : array of shape (m, d), optional
            X one ``lag_time`` later.
        sample_weight : array of shape (m,), optional
            Weights >= 0 of samples, uniform by default; pairs have none. No samples are then kept aside.
        lag, frame_time : int, float, optional
            Frames from a state to its successor, and the time between two frames; they replace ``lag_time``.
        checkpoint : path, optional
            What was learned is written there, and the same call later reads it. A pickle: name only files that you trust.

        Returns
        -------
        KSWGD
            Itself.
        """
        ndim = y.ndim if hasattr(y, "ndim") else np.asarray(y, dtype=object).ndim
        if ndim > 1:
            raise ValueError(
                f"y has shape {np.shape(y)}: y is ignored; states one lag later are passed as successors="
            )
        self._check_parameters()
        lag_time = self.lag_time
        if lag is not None:
            X, successors, lag_time = pairs_of_runs(X, successors, lag, frame_time)
        native = self._remember(X)
        Y = None
        if successors is not None and sample_weight is not None:
            raise ValueError("sample_weight= goes with samples, pairs have no weights: drop one")
        self.X_, self.sample_weight_ = check_weight(sample_weight, native)
        native = self.X_
        if successors is not None:
            check_columns(self, successors)
            Y, _ = points(successors, "successors", n_features=native.shape[1])
            if len(Y) != len(native):
                raise ValueError(
                    f"successors has {len(Y)} rows, X has {len(native)}: row i must be X[i] one lag later"
                )
            Y = like(Y, native)
        learned = self.spectrum is None or isinstance(self.spectrum, str)
        if learned and self.sample_weight_ is None:
            native, Y, aside = set_aside(native, Y, self.validation_fraction)
            self.X_, self.X_held_out_ = native, aside
        self.spectrum_ = spectra.spectrum_of(self, native, Y, lag_time)
        self.eigenvalues_ = self.spectrum_.eigenvalues_
        self.carried_ = spectra.carried(self.spectrum_, native, self.sample_weight_)
        self.coarse_ = spectra.coarse_spectrum_of(self, native, self.spectrum_)
        self.backend_ = spectra.backend_of(self.spectrum_, native, self._options())
        return self

    def _options(self) -> dict[str, Any]:
        return {"backend": self.backend, "tol": self.tol}

    def _check_parameters(self) -> None:
        check_kswgd(self)

    def _plan(self, Z: Array, n_iter: int | None, seed: int) -> tuple[Step, State, int, float]:
        steps = self._steps() if n_iter is None else n_iter
        kappa = langevin_rate(self)
        coordinates = self.spectrum_.coordinates_
        if spectra.of_a_dictionary(self.spectrum_):
            step = make_dictionary_step(
                self.spectrum_,
                step_size=float(self.step_size),
                n_samples=effective_size(self.sample_weight_, len(self.X_)),
                trusted=self.carried_,
                project=self.project,
            )
            return step, State(Z, memory=Pushed()), steps, float(self.step_size)
        step = make_step(
            self.spectrum_,
            step_size=float(self.step_size),
            coarse=self.coarse_,
            coarse_iter=0 if self.coarse_ is None else round(COARSE_FRACTION * steps),
            langevin=kappa,
            n_iter=steps,
            # Langevin motion disturbs every mode for as long as it lasts, so every mode is held.
            n_samples=None if self.langevin else effective_size(self.sample_weight_, len(self.X_)),
            trusted=self.carried_,
            project=self.project if coordinates is None else None,
            **self._options(),
        )
        if coordinates is not None:
            step = in_coordinates(step, coordinates, self.project)
        return step, State(Z, memory=Pushed()), steps, float(self.step_size)

    def _steps(self) -> int:
        return math.ceil(self.total_time / self.step_size - 1e-9)

    def transport(
        self,
        Z: Any,
        n_iter: int | None = None,
        callback: Callback | None = None,
        *,
        checkpoint: str | Path | None = None,
        checkpoint_every: int | None = None,
    ) -> Array:
        """Move particles along the spectrum; see :meth:`~gpukoop.estimators.base.AbstractFlowEstimator.transport`."""
        moved = super().transport(
            Z, n_iter, callback, checkpoint=checkpoint, checkpoint_every=checkpoint_every
        )
        self._arrived(moved)
        reason = not_arrived(self.history_.get("limited", np.zeros(0))) if n_iter is None else ""
        if reason:
            warnings.warn(f"KSWGD {reason}", ConvergenceWarning, stacklevel=2)
        reason = were_far(self.history_.get("far", np.zeros(0)))
        if reason:
            warnings.warn(reason, RuntimeWarning, stacklevel=2)
        return moved

    def _start(self, n: int, rng: np.random.Generator) -> Array:
        Z = drawn_start(self, n, rng, super()._start, self.spectrum_.coordinates_)
        return Z if self.project is None else projected(self.project, Z)

    def transform(self, X: Any) -> Array:
        """Return the eigenfunctions at X, (n, r): mean 0 and variance 1 under the samples."""
        native, home = self._check_points(X, "X")
        return home.restore(like(self.spectrum_.transform(like(native, self.X_)), native))

    @property
    def _n_features_out(self) -> int:  # names the columns of ``transform`` for scikit-learn
        return len(self.eigenvalues_)
