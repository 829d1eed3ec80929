"""The only loop over time: every flow hands it a state and a pure step.

A flow is a :class:`State` (what the next step needs), an :class:`Info` (what it measured) and a function
``step(state, rng) -> (state, info)``. The loop adds what all flows share: history, progress, callbacks, stopping,
the detection of divergence, and checkpoints from which a killed run continues to the same bits.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from gpukoop.arrays import Array, is_cupy, namespace, to_host
from gpukoop.draws import RandomState, check_function, random_generator
from gpukoop.flow.checkpoint import Checkpoint
from gpukoop.flow.leaps import Leaps
from gpukoop.progress import bar

# Steps on a device between two looks of the host, which then waits for all that is queued.
LOOK_EVERY = 10


@dataclass(frozen=True)
class State:
    """What a step starts from.

    Attributes
    ----------
    particles : array of shape (n, d)
    iteration : int
        Steps taken.
    memory : dataclass, optional
        Arrays that the next step needs (momentum, potentials): see :mod:`gpukoop.flow.memory`.
    watched : bool
        False on a device where the host does not look at single steps: a step that can do without leaves its decisions
        to ``Info.doubt``.
    """

    particles: Array
    iteration: int = 0
    memory: Any = None
    watched: bool = True


@dataclass(frozen=True)
class Info:
    """What a step measured, at the particles it started from.

    Attributes
    ----------
    measures : dict of str to float or array
        One entry of ``history_`` each.
    converged : bool
        The particles the step started from need no further step; the step is not taken.
    diverged : str
        Non-empty: why the flow must stop, and what to change.
    doubt : array of shape (), optional
        Of a step that was not watched: whether it must be taken again with the host watching.
    """

    measures: dict[str, Any]
    converged: bool = False
    diverged: str = ""
    doubt: Array | None = None


class Step(Protocol):
    """One step of a flow, pure: the same state and generator give the same result."""

    def __call__(self, state: State, rng: np.random.Generator) -> tuple[State, Info]:
        """Return the next state and what was measured at the current one."""


Callback = Callable[[int, Array], Any]


@dataclass(frozen=True)
class Outcome:
    """What a run of the loop leaves: the last finite particles and how it ended."""

    particles: Array
    n_iter: int
    converged: bool
    history: dict[str, np.ndarray]
    message: str


def run_flow(
    step: Step,
    state: State,
    n_iter: int,
    *,
    seed: int,
    step_size: float,
    callback: Callback | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int | None = None,
    fingerprint: str = "",
    verbose: int = 0,
    description: str = "flow",
    look_every: int = LOOK_EVERY,
) -> Outcome:
    """Run ``step`` up to ``n_iter`` times and return the last finite particles.

    Parameters
    ----------
    step : Step
        Pure step.
    state : State
        Where to start.
    n_iter : int
        Upper bound of the steps.
    seed : int
        Root of the random numbers; step i draws from its own stream (seed, i), so that a run that
        continues from a checkpoint draws the same numbers.
    step_size : float
        Named in the message when the flow diverges.
    callback : callable, optional
        ``callback(i, particles)`` after step i = 0, 1, ...; returning True stops, any other value does not. The particles
        are read-only.
    checkpoint, checkpoint_every : path and int, optional
        Write the state atomically every so many steps (and at the end); a file that is there already is
        continued. See :class:`gpukoop.flow.checkpoint.Checkpoint`.
    fingerprint : str
        What must agree between a checkpoint and the run that continues it.
    verbose : int
        1 and more: a progress bar with the time left, when standard error is a terminal.
    look_every : int
        Steps on a device that are queued before the host looks at them; with a callback or a checkpoint, and on the host,
        it looks at each.

    Warns
    -----
    ConvergenceWarning
        If the flow diverges; the message names the step and what to change, and the last finite
        particles are kept.
    """
    if callback is not None:
        check_function(callback, "callback", "callback(i, particles)")
    history: dict[str, list[Any]] = {}
    keeper = None
    if checkpoint is not None:
        every = max(1, n_iter // 20) if checkpoint_every is None else checkpoint_every
        keeper = Checkpoint(checkpoint, fingerprint, every)
        state, history, seed = keeper.begin(state, seed)
    elif checkpoint_every is not None:
        raise ValueError(
            "checkpoint_every needs checkpoint=PATH: where should the state be written?"
        )
    converged, message = False, ""
    # A callback and a checkpoint want every step's particles, so the host looks at each of them.
    ahead = look_every if is_cupy(state.particles) and callback is None and keeper is None else 1
    watch_until = state.iteration
    leaps = Leaps(step, ahead, seed)
    progress = bar(n_iter, description, verbose, initial=state.iteration)
    with progress:
        while state.iteration < n_iter:
            i = state.iteration
            if ahead > 1 and i >= watch_until:
                leapt = leaps.take(state, min(ahead, n_iter - i))
                if leapt is not None:
                    state, measured = leapt
                    for name in measured[0]:
                        history.setdefault(name, []).extend(m[name] for m in measured)
                    progress.update(len(measured))
                    continue
                # The steps that were in doubt are taken again one by one, with the same generators: whatever they find, they
                # say it in words.
                watch_until = i + ahead
            # A generator for each step, from seed and number: a run that continues from a file draws what it would have
            # drawn.
            following, info = step(state, np.random.default_rng([seed, i]))
            # Before the state is taken over: the particles returned are the last that were finite.
            message = info.diverged or _not_finite(following.particles)
            if message:
                message = f"step {i} of {n_iter} diverged: {message}"
                break
            for name, value in info.measures.items():
                history.setdefault(name, []).append(_plain(value))
            # Measured and not moved: the history has one entry more than there were steps.
            if info.converged:
                converged = True
                break
            state = replace(following, iteration=i + 1)
            progress.update()
            if keeper is not None:
                keeper.keep(state, history, seed)
            answer = None if callback is None else callback(i, _shown(state.particles))
            # Only True stops a run: many functions return something that merely counts as true.
            if isinstance(answer, bool | np.bool_) and answer:
                message = f"stopped by the callback after step {i}"
                break
    if keeper is not None:
        keeper.write(state, history, seed)
    if "diverged" in message:
        warnings.warn(
            f"{message} The particles before it are returned; use a smaller step_size (now {step_size:g}).",
            ConvergenceWarning,
            stacklevel=3,
        )
    arrays = {name: _gathered(values) for name, values in history.items()}
    return Outcome(state.particles, state.iteration, converged, arrays, message)


def _gathered(values: list[Any]) -> np.ndarray:
    """Return one measure of all steps on the host, by one copy of those that are still on a device."""
    waiting = [v for v in values if is_cupy(v)]
    if not waiting:
        return np.array(values)
    # Stacked on the device first: a copy for each number would wait thousands of times.
    fetched = iter(to_host(namespace(waiting[0]).stack(waiting)).astype(float))
    return np.array([next(fetched) if is_cupy(v) else v for v in values])


def _plain(value: Any) -> Any:
    return to_host(value).copy() if hasattr(value, "shape") else float(value)


def _shown(particles: Array) -> Array:
    """Return what a callback may look at: writing into it is an error on the host and without effect on a device."""
    if is_cupy(particles):
        return particles.copy()
    view = particles.view()
    # A callback that moved particles would move them without the flow's knowing.
    view.flags.writeable = False
    return view


def _not_finite(particles: Array) -> str:
    xp = namespace(particles)
    if bool(xp.isfinite(particles).all()):
        return ""
    bad = int((~xp.isfinite(particles)).any(axis=1).sum())
    return f"{bad} of {len(particles)} particles are no longer finite."


def seed_from(random_state: RandomState) -> int:
    """Return the seed of one run; the caller's stream is undisturbed (see ``draws.random_generator``)."""
    return int(random_generator(random_state).integers(2**62))
