"""What the MMD, Wasserstein and JKO estimators share: energies in ``history_``, and generators. No mathematics."""

from __future__ import annotations

import math
from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from gpukoop.arrays import Array, like, points, to_host
from gpukoop.draws import check_count
from gpukoop.estimators.base import AbstractFlowEstimator
from gpukoop.estimators.columns import ColumnsMixin
from gpukoop.estimators.start import check_init, drawn_start
from gpukoop.estimators.weights import host_weight, law_rows
from gpukoop.fitted import framed
from gpukoop.flow.descent import Field, begin, explicit, width
from gpukoop.flow.graphs import Repeated
from gpukoop.flow.loop import Callback, Info, Outcome, State, Step, run_flow, seed_from
from gpukoop.flow.memory import Kept
from gpukoop.flow.training import StagewiseTrainer, Trainer
from gpukoop.kernels.formula.catalogue import Riesz
from gpukoop.kernels.formula.lengths import mean_and_lengths
from gpukoop.kernels.formula.profile import AbstractKernel
from gpukoop.maps.base import AbstractMap
from gpukoop.maps.regression import check_persistence
from gpukoop.maps.stages import StagewiseMap
from gpukoop.operator import median_scale
from gpukoop.parameters import check_shared

# Rows that stand for weighted samples where distances are looked at.
MEDIAN_ROWS = 2_000
# Numbers in the data's own units, or as they stand.
UNITS = ("data", "absolute")


class Recorder:
    """Passes a step of a field on and remembers what the next one would start from, for the energy after the last step."""

    def __init__(self, step: Step, field: Field) -> None:
        self.step, self.field = step, field
        self.kept = Kept()

    def __call__(self, state: State, rng: np.random.Generator) -> tuple[State, Info]:
        """Take the step."""
        following, info = self.step(state, rng)
        stays = info.diverged or info.converged
        self.kept = (state if stays else following).memory.kept
        return following, info


class AbstractParticleFlow(ColumnsMixin, AbstractFlowEstimator):
    """A flow given by a velocity field, of particles or, with ``generator``, of a map."""

    n_iter: int
    units: str
    init: Any
    unit_: float
    generator: Any = None
    persistence: float = 1
    momentum: float = 0.0

    @abstractmethod
    def _field(self, batch_size: int | None) -> Field:
        """Return the velocity field towards the samples, coupled in batches if a size is given."""

    @abstractmethod
    def _length(self) -> float:
        """Return the step size."""

    @property
    def _batch(self) -> int | None:
        return getattr(self, "batch_size", None)

    def _particle_step(self, field: Field) -> Step:
        return explicit(field, step_size=self._length(), momentum=float(self.momentum))

    def _plan(self, Z: Array, n_iter: int | None, seed: int) -> tuple[Step, State, int, float]:
        steps = int(self._steps()) if n_iter is None else int(n_iter)
        field = self._field(self._batch)
        recorder = Recorder(self._particle_step(field), field)
        step = Repeated(recorder) if self._repeats else recorder
        return step, begin(Z, self._target), steps, self._length()

    @property
    def _repeats(self) -> bool:
        """Whether every step is the same function of particles and momentum, and draws nothing."""
        return False

    def _steps(self) -> int:
        return self.n_iter

    def _in_units(self, value: float, power: float) -> float:
        """Return a number that is given in powers of the unit of length, in the units of the data."""
        return float(value) if self.units == "absolute" else float(value) * self.unit_**power

    def _kernel_step(self, value: float, kernel: AbstractKernel) -> float:
        """Return a step size for half the squared MMD: in scale^2 of the kernel, of Riesz kernels in unit^(2 - exponent)."""
        if isinstance(kernel, Riesz):
            return self._in_units(value, 2 - kernel.exponent)
        scale = mean_and_lengths(kernel.terms[0][1].scale)[0]
        return float(value) if self.units == "absolute" else float(value) * scale**2

    def _start(self, n: int, rng: np.random.Generator) -> Array:
        """Draw starting points as ``init`` says."""
        return drawn_start(self, n, rng, super()._start)

    def _check_common(self) -> None:
        check_shared(self)
        check_init(self.init)
        check_choice(self.units, "units", UNITS)
        check_persistence(self.persistence)
        if self.generator is not None:
            if not isinstance(self.generator, AbstractMap):
                raise TypeError(
                    f"generator is {self.generator!r}, expected a map such as gpukoop.maps.RandomFeatureMap()"
                )
        if self._batch is not None:
            check_count(self._batch, "batch_size")

    def _check_y(self, y: Any) -> None:
        if y is not None and getattr(y, "ndim", 1) > 1:
            raise ValueError(
                f"y has shape {np.shape(y)}: y is ignored; particles go to transport(Z), weights to sample_weight="
            )

    def _finish_fit(self, source: Any) -> None:
        """Train the generator, if there is one, on latent points: standard normal draws or ``source``."""
        if self.generator is None:
            if source is not None:
                raise ValueError(
                    "source= are the latent points of a generator: pass generator= too"
                )
            return
        seed = seed_from(self.random_state)
        if source is None:
            rng = np.random.default_rng([seed, 1])
            pool = like(rng.standard_normal(self.X_.shape), self.X_)
            self._latent = None
        else:
            native, _ = points(source, "source", n_features=self.n_features_in_)
            pool = self._latent = like(native, self.X_)
        self._train(pool, int(self._steps()), seed, None)

    def _train(self, pool: Array, n_iter: int, seed: int, callback: Callback | None) -> Array:
        started = self.generator.start(pool)
        trainer: Any
        if isinstance(started, StagewiseMap):
            field = self._field(self._batch)
            trainer = StagewiseTrainer(
                self._particle_step(field), started, pool, n_iter, persistence=math.inf
            )
        else:
            field = self._regressed_field(self._batch)
            trainer = Trainer(
                field,
                started,
                pool,
                step_size=self._length(),
                persistence=check_persistence(self.persistence),
                batch_size=self._batch,
            )
        recorder = Recorder(trainer.step, field)
        outcome = run_flow(
            recorder,
            trainer.begin(begin(pool, self._target)),
            n_iter,
            seed=seed,
            step_size=self._length(),
            callback=callback,
            verbose=self.verbose,
            description=type(self).__name__,
        )
        history = self._closed(recorder, outcome, seed)
        self.__dict__.update(
            generator_=trainer.generator,
            n_iter_=outcome.n_iter,
            converged_=outcome.converged,
            history_=history,
        )
        return outcome.particles

    def _regressed_field(self, batch_size: int | None) -> Field:
        """Return the field for particles that a map moves: it never keeps a pairing."""
        return self._field(batch_size)

    def _closed(self, step: Step, outcome: Outcome, seed: int) -> dict[str, np.ndarray]:
        """Add the energy of the final particles, so that ``history_["energy"]`` has n_iter_ + 1 entries."""
        history = outcome.history
        energies = history.get("energy", np.zeros(0))
        recorder = step.step if isinstance(step, Repeated) else step
        if isinstance(recorder, Recorder) and len(energies) == outcome.n_iter:
            rng = np.random.default_rng([seed, outcome.n_iter])
            last = recorder.field(outcome.particles, recorder.kept, rng, outcome.n_iter)
            history["energy"] = np.append(energies, float(last.energy))
        return history

    def transport(
        self,
        Z: Any,
        n_iter: int | None = None,
        callback: Callback | None = None,
        *,
        checkpoint: str | Path | None = None,
        checkpoint_every: int | None = None,
    ) -> Array:
        """Move particles by the flow, or latent points by the trained generator.

        Parameters
        ----------
        Z : array of shape (n, d)
            Where the particles start; with a generator, latent points.
        n_iter : int, optional
            Number of steps. With a generator: None evaluates the map trained by ``fit``; a number trains it anew from
            the identity on the latent points Z.
        callback, checkpoint, checkpoint_every : optional
            See :meth:`~gpukoop.estimators.base.AbstractFlowEstimator.transport`; a generator takes no checkpoint.

        Returns
        -------
        array of shape (n, d)
            Library, device and dtype of ``Z``.
        """
        if self.generator is None and self.columns_ is None:
            return super().transport(
                Z, n_iter, callback, checkpoint=checkpoint, checkpoint_every=checkpoint_every
            )
        native, home = self._check_points(Z)
        self._check_columns_kept()
        if self.generator is None:
            moved = super().transport(
                self._seen(native),
                n_iter,
                self._watching(callback),
                checkpoint=checkpoint,
                checkpoint_every=checkpoint_every,
            )
            return home.restore(like(self._back(moved), native))
        self._refuse_checkpoint(checkpoint, checkpoint_every)
        pool = like(native, self.X_)
        if n_iter is None:
            return home.restore(like(self.generator_(pool), native))
        check_count(n_iter, "n_iter", least=0)
        moved = self._train(pool, int(n_iter), seed_from(self.random_state), callback)
        return home.restore(like(moved, native))

    @staticmethod
    def _refuse_checkpoint(*given: Any) -> None:
        if any(value is not None for value in given):
            raise ValueError(
                "checkpoint= continues runs of particles; a generator is trained in one go: drop it"
            )

    @framed
    def sample(
        self,
        n_samples: int = 1,
        random_state: Any = None,
        *,
        checkpoint: str | Path | None = None,
        checkpoint_every: int | None = None,
    ) -> Array:
        """Draw new points: particles moved from where ``init`` says, or the generator at fresh latent points.

        Parameters
        ----------
        n_samples : int
            Number of points, at least 1.
        random_state : None, int, Generator or RandomState
            Seed of the draw; None takes the estimator's ``random_state``.
        checkpoint, checkpoint_every : path and int, optional
            See :meth:`transport`; the same start must be drawn again, so one of the two ``random_state`` is needed.

        Returns
        -------
        array of shape (n_samples, d)
            Library and device of the samples given to ``fit``; a frame with its columns if ``fit`` was given one.
        """
        if self.generator is None:
            return super().sample(
                n_samples, random_state, checkpoint=checkpoint, checkpoint_every=checkpoint_every
            )
        self._check_columns_kept()
        self._refuse_checkpoint(checkpoint, checkpoint_every)
        check_is_fitted(self)
        self._check_parameters()
        n = check_count(n_samples, "n_samples")
        chosen = self.random_state if random_state is None else random_state
        rng = np.random.default_rng([seed_from(chosen), 2])
        if self._latent is None:
            Y = like(rng.standard_normal((n, self.n_features_in_)), self.X_)
        else:
            Y = self._latent[rng.integers(len(self._latent), size=n)]
        return self._home.restore(self.generator_(Y))


def unit_length(X: Array, weight: Array | None = None) -> float:
    """Return the root mean square deviation of a column of the samples, the unit of lengths; 1 where they do not differ."""
    w = host_weight(weight)
    if w is None:
        return width(X) / math.sqrt(X.shape[1]) or 1.0
    x = to_host(X).astype(float)
    reach = float(np.abs(x).max()) or 1.0  # a unit in which no square leaves the range
    x = x / reach - w @ (x / reach)
    return reach * math.sqrt(float((w @ x**2).mean())) or 1.0


def resolved(kernel: AbstractKernel, X: Array, weight: Array | None = None) -> AbstractKernel:
    """Return the kernel with numeric scales, from the samples; as many rows of weighted ones as their weights say."""
    if not kernel.resolved and len(X) < 2:
        raise ValueError(
            f"{kernel!r} takes its scale from the distances of the samples, but n_samples=1: pass the scale as a number"
        )
    return kernel.resolve(lambda rule: median_scale(law_rows(X, weight, MEDIAN_ROWS)))


def check_choice(value: Any, name: str, known: tuple[str, ...]) -> str:
    """Return one of the known words, or raise with all of them."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")
    return str(value)
