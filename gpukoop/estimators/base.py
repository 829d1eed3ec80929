"""What all flow estimators share: the scikit-learn face, transport, sampling. No mathematics."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted

from gpukoop.arrays import Array, Home, like, to_host
from gpukoop.centring import centred
from gpukoop.draws import check_count
from gpukoop.estimators.motion import POINTS, barely_moved
from gpukoop.estimators.verdict import JudgedMixin
from gpukoop.estimators.weights import host_weight, law_rows
from gpukoop.fitted import framed, own_points, remember_columns
from gpukoop.flow.identity import identity
from gpukoop.flow.loop import Callback, Outcome, State, Step, run_flow, seed_from
from gpukoop.parameters import check_points
from gpukoop.persistence import PersistentEstimator

# What a flow towards other samples has left.
FLOWN = (
    "n_iter_",
    "converged_",
    "history_",
    "report_",
    "X_held_out_",
    "_ended",
    "_on_law",
    "_settled",
    "_silent",
)


class AbstractFlowEstimator(JudgedMixin, PersistentEstimator, ABC):
    """A flow with scikit-learn's face: ``fit`` learns the target, ``transport`` moves particles towards it.

    Subclasses store their parameters in ``__init__``, set ``X_`` (native array), ``n_features_in_`` and ``backend_`` in
    ``fit`` (see :meth:`_remember`) and say in :meth:`_plan` what one step is.
    """

    backend: str | None
    random_state: Any
    verbose: int

    @abstractmethod
    def _plan(self, Z: Array, n_iter: int | None, seed: int) -> tuple[Step, State, int, float]:
        """Return the step, the first state, the number of steps and the step size (for messages)."""

    @abstractmethod
    def _check_parameters(self) -> Any:
        """Raise if a parameter is out of range: asked by ``fit`` and by every verb after it, for ``set_params`` comes between."""

    def _remember(self, X: Any, name: str = "X") -> Array:
        """Validate the samples and keep a copy of them; the first line of every ``fit``."""
        native, home = own_points(X, name)
        remember_columns(self, X)
        for flown in FLOWN:
            self.__dict__.pop(flown, None)
        self.X_ = native
        self.n_features_in_ = int(native.shape[1])
        self._home: Home = home
        return native

    @property
    def _target(self) -> Array:
        """The samples, in the columns in which particles move."""
        return self.X_

    def _check_points(self, Z: Any, name: str = "Z") -> tuple[Array, Home]:
        return check_points(self, Z, name)

    def transport(
        self,
        Z: Any,
        n_iter: int | None = None,
        callback: Callback | None = None,
        *,
        checkpoint: str | Path | None = None,
        checkpoint_every: int | None = None,
    ) -> Array:
        """Move particles by the flow and return where they end.

        Parameters
        ----------
        Z : array of shape (n, d)
            Where the particles start; not changed.
        n_iter : int, optional
            Number of steps; the estimator's own number by default.
        callback : callable, optional
            ``callback(i, particles)`` after step i = 0, 1, ...; returning True stops.
        checkpoint : path, optional
            State of the run, written atomically. If the file is there, the run that wrote it continues and ends with
            the same bits as one never interrupted.
        checkpoint_every : int, optional
            Steps between two writes; a twentieth of the run by default.

        Returns
        -------
        array of shape (n, d)
            Library, device and dtype of ``Z``.

        Raises
        ------
        ValueError
            If ``Z`` is no finite (n, d) array, or a checkpoint is damaged or of another run.
        NotFittedError
            If ``fit`` was not called.

        Warns
        -----
        ConvergenceWarning
            If a step makes a particle infinite; the last finite particles are returned. If the estimator's own number of steps
            moved the particles less than a hundredth of their way.

        Notes
        -----
        Sets ``n_iter_``, ``converged_`` and ``history_``. May be called any number of times.
        """
        native, home = self._check_points(Z)
        if n_iter is not None:
            check_count(n_iter, "n_iter", least=0)
        seed = seed_from(self.random_state)
        start = like(native, self.X_)
        # A run of no steps returns its start, which must not be the caller's array.
        step, state, steps, size = self._plan(start.copy(), n_iter, seed)
        outcome: Outcome = run_flow(
            step,
            state,
            steps,
            seed=seed,
            step_size=size,
            callback=callback,
            checkpoint=checkpoint,
            checkpoint_every=checkpoint_every,
            fingerprint=self._fingerprint(native, steps) if checkpoint is not None else "",
            verbose=self.verbose,
            description=type(self).__name__,
        )
        history = self._closed(step, outcome, seed)
        self.n_iter_, self.history_ = outcome.n_iter, history
        self.converged_ = outcome.converged  # no entry of __dict__ where the verdict decides
        if n_iter is None and not outcome.message and outcome.n_iter == steps > 0:
            law = law_rows(self._target, getattr(self, "sample_weight_", None), POINTS)
            reason = barely_moved(start, outcome.particles, law)
            if reason:
                warnings.warn(f"{type(self).__name__} {reason}", ConvergenceWarning, stacklevel=2)
        return home.restore(like(outcome.particles, native))

    def _closed(self, step: Step, outcome: Outcome, seed: int) -> dict[str, np.ndarray]:
        """Return the history of a run that has ended."""
        return outcome.history

    @framed
    def sample(
        self,
        n_samples: int = 1,
        random_state: Any = None,
        *,
        checkpoint: str | Path | None = None,
        checkpoint_every: int | None = None,
    ) -> Array:
        """Draw starting points, move them by the flow and return where they end.

        Parameters
        ----------
        n_samples : int
            Number of particles, at least 1.
        random_state : None, int, Generator or RandomState
            Seed of the draw; None takes the estimator's ``random_state``.
        checkpoint, checkpoint_every : path and int, optional
            See :meth:`transport`; the same start must be drawn again, so one of the two ``random_state`` is needed.

        Returns
        -------
        array of shape (n_samples, d)
            Library and device of the samples given to ``fit``; a frame with its columns if ``fit`` was given one.
        """
        check_is_fitted(self)
        self._check_parameters()
        n = check_count(n_samples, "n_samples")
        chosen = self.random_state if random_state is None else random_state
        if checkpoint is not None and chosen is None:
            raise ValueError(
                "checkpoint= continues a run only from the same start: pass random_state= too"
            )
        rng = np.random.default_rng(seed_from(chosen))
        start = self._home.restore(self._start(n, rng))
        return self.transport(start, checkpoint=checkpoint, checkpoint_every=checkpoint_every)

    def _start(self, n: int, rng: np.random.Generator) -> Array:
        """Draw from the normal law with the mean and covariance of the samples, on the host."""
        w = host_weight(getattr(self, "sample_weight_", None))
        mean, X = centred(to_host(self.X_))
        if w is None:
            share = np.full((len(X), 1), 1 / max(1, len(X) - 1))
        else:
            share = w[:, None] / max(1 - (w**2).sum(), 1 / len(X))
            mean, X = mean + w @ X, X - w @ X
        # Rows of a QR factor stand for the square root of the covariance, also when it is singular.
        root = np.linalg.qr(X * np.sqrt(share), mode="r")
        return like(mean + rng.standard_normal((n, len(root))) @ root, self.X_)

    def _fingerprint(self, Z: Array, n_iter: int) -> str:
        """Return what decides a run: everything that was set or learned, the start and the number of steps."""
        left_out = {*FLOWN, "backend_", "verbose", "_home"} - {"X_held_out_"}
        decides = {name: value for name, value in self.__dict__.items() if name not in left_out}
        return identity((type(self).__qualname__, decides, Z, n_iter))
