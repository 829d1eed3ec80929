"""What all flow estimators share: the scikit-learn face, transport, sampling. No mathematics."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from gpukoop.arrays import Array, Home, like, points, to_host
from gpukoop.draws import check_count
from gpukoop.estimators.verdict import JudgedMixin
from gpukoop.flow.loop import Callback, Outcome, State, Step, run_flow, seed_from

# What a flow towards other samples has left.
FLOWN = ("n_iter_", "converged_", "history_", "report_", "X_held_out_", "_ended", "_on_law")


class AbstractFlowEstimator(JudgedMixin, BaseEstimator, ABC):
    """A flow with scikit-learn's face: ``fit`` learns the target, ``transport`` moves particles towards it.

    Subclasses store their parameters in ``__init__``, set ``X_`` (native array), ``n_features_in_`` and ``backend_`` in
    ``fit`` (see :meth:`_remember`) and say in :meth:`_plan` what one step is.
    """

    random_state: Any
    verbose: int

    @abstractmethod
    def _plan(self, Z: Array, n_iter: int | None, seed: int) -> tuple[Step, State, int, float]:
        """Return the step, the first state, the number of steps and the step size (for messages)."""

    def _remember(self, X: Any, name: str = "X") -> Array:
        """Validate the samples and keep them; the first line of every ``fit``."""
        native, home = points(X, name)
        for flown in FLOWN:
            self.__dict__.pop(flown, None)
        self.X_ = native
        self.n_features_in_ = int(native.shape[1])
        self._home: Home = home
        return native

    def _check_points(self, Z: Any, name: str = "Z") -> tuple[Array, Home]:
        check_is_fitted(self)
        native, home = points(Z, name)
        if native.shape[1] != self.n_features_in_:
            raise ValueError(
                f"{name} has {native.shape[1]} features, but {type(self).__name__} is expecting "
                f"{self.n_features_in_} features as input: the columns of the X it was fitted to"
            )
        return native, home

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
            If a step makes a particle infinite; the last finite particles are returned.

        Notes
        -----
        Sets ``n_iter_``, ``converged_`` and ``history_``. May be called any number of times.
        """
        native, home = self._check_points(Z)
        if n_iter is not None:
            check_count(n_iter, "n_iter", least=0)
        seed = seed_from(self.random_state)
        step, state, steps, size = self._plan(like(native, self.X_), n_iter, seed)
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
        self.n_iter_, self.converged_ = outcome.n_iter, outcome.converged
        self.history_ = outcome.history
        return home.restore(like(outcome.particles, native))

    def sample(self, n_samples: int = 1, random_state: Any = None) -> Array:
        """Draw starting points, move them by the flow and return where they end.

        Parameters
        ----------
        n_samples : int
            Number of particles, at least 1.
        random_state : None, int, Generator or RandomState
            Seed of the draw; None takes the estimator's ``random_state``.

        Returns
        -------
        array of shape (n_samples, d)
            Library and device of the samples given to ``fit``.

        Warns
        -----
        ConvergenceWarning
            If the first sample of 100 particles or more after a fit is off the law of the data; ``report_`` says why.
        """
        check_is_fitted(self)
        n = check_count(n_samples, "n_samples")
        chosen = self.random_state if random_state is None else random_state
        rng = np.random.default_rng(seed_from(chosen))
        Z = self.transport(self._home.restore(self._start(n, rng)))
        self._judge(Z)
        return Z

    def _start(self, n: int, rng: np.random.Generator) -> Array:
        """Draw from the normal law with the mean and covariance of the samples, on the host."""
        X = to_host(self.X_).astype(float)
        centred = X - X.mean(axis=0)
        # Rows of a QR factor stand for the square root of the covariance, also when it is singular.
        root = np.linalg.qr(centred / np.sqrt(max(1, len(X) - 1)), mode="r")
        return like(X.mean(axis=0) + rng.standard_normal((n, len(root))) @ root, self.X_)

    def _fingerprint(self, Z: Array, n_iter: int) -> str:
        digest = hashlib.sha256()
        for array in (self.X_, Z):
            digest.update(np.ascontiguousarray(to_host(array)).tobytes())
        params = {k: v for k, v in self.get_params(deep=False).items() if k not in ("verbose",)}
        return f"{type(self).__name__} {_stable(params)} {n_iter} {digest.hexdigest()}"


def _stable(params: dict[str, Any]) -> str:
    """Text of the parameters that is the same in every process: no memory addresses."""
    parts = []
    for name, value in sorted(params.items()):
        text = repr(value)
        if callable(value) or " at 0x" in text:
            text = getattr(value, "__qualname__", type(value).__qualname__)
        parts.append(f"{name}={text}")
    return ", ".join(parts)
