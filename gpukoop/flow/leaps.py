"""Steps on a device that are queued before the host looks at them, and replayed as a graph where they repeat."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import Any, final

import numpy as np

from gpukoop.arrays import Array, is_cupy, namespace, unchecked
from gpukoop.flow.graphs import Recording, Repeated
from gpukoop.flow.memory import named, refilled

logger = logging.getLogger("gpukoop")

PARTICLES, DOUBT, MEASURES = "particles", "doubt", "measures"


@final
class Leaps:
    """Leaps of up to ``length`` steps from one look of the host to the next.

    Parameters
    ----------
    step : Step
        One that is :class:`gpukoop.flow.graphs.Repeated` is queued for a leap, which compiles what it launches, then recorded,
        and replayed from there on.
    length : int
    seed : int
        As in the loop.

    Attributes
    ----------
    queued, replayed : int
        Whole leaps taken launch by launch, and those that were one launch of a graph.
    refused : str
        Why nothing is recorded; empty as long as something may be.
    """

    def __init__(self, step: Any, length: int, seed: int) -> None:
        self.step, self.length, self.seed = step, length, seed
        self.queued = self.replayed = 0
        self.refused = Recording.missing()
        if not isinstance(step, Repeated):
            # Noise drawn on the host or a schedule in the iteration would be frozen into the graph with the numbers of one
            # step.
            self.refused = "steps are not known to repeat"
        self._recording: Recording | None = None
        self._layout: list[dict[str, Any]] = []

    def take(self, state: Any, count: int) -> tuple[Any, list[dict[str, Any]]] | None:
        """Return the state ``count`` steps later and what they measured, or None if they must be watched: one look in all."""
        if self._repeats(state, count):
            found = self._recording(_arrays(state))  # type: ignore[misc]
            self.replayed += 1
            # The one wait of a leap. In doubt the leap is thrown away whole and taken again step by step, watched: results do
            # not depend on it.
            if bool(found.pop(DOUBT)):
                return None
            measured = [_unpacked(of, found[MEASURES]) for of in self._layout]
            last = replace(
                state,
                particles=found.pop(PARTICLES),
                iteration=state.iteration + count,
                memory=_with(state.memory, found),
            )
            return last, measured
        leapt = self._run(state, count)
        if leapt is None or bool(leapt[2]):
            return None
        if isinstance(self.step, Repeated) and state.iteration >= self.step.first:
            # Only whole leaps count, since the graph holds exactly `length` steps.
            self.queued += count == self.length
        return replace(leapt[0], watched=True), leapt[1]

    def _run(self, state: Any, count: int) -> tuple[Any, list[dict[str, Any]], Array] | None:
        """Queue the steps and return the last state, their measures and whether one is in doubt; None if one says stop."""
        xp, doubts, measured = namespace(state.particles), [], []
        # Unwatched steps neither look at their energy nor stop: what they would have said is in their doubt.
        at = replace(state, watched=False)
        with unchecked():
            for i in range(state.iteration, state.iteration + count):
                following, info = self.step(at, np.random.default_rng([self.seed, i]))
                if info.converged or info.diverged:
                    return None
                if info.doubt is not None:
                    doubts.append(info.doubt)
                measured.append(info.measures)
                at = replace(following, iteration=i + 1, watched=False)
            # A particle that is no longer finite stays so: the last ones tell of all.
            doubts.append(~xp.isfinite(at.particles).all())
            return at, measured, xp.stack(doubts).any()

    def _repeats(self, state: Any, count: int) -> bool:
        """Return whether this leap can be replayed; the second whole one is recorded first."""
        if self.refused or count != self.length or not self.queued:
            return False
        if self._recording is None:
            try:
                self._recording = Recording(
                    lambda arrays: self._traced(state, arrays), _arrays(state)
                )
            except RuntimeError as error:  # of the device: what was launched may not be recorded
                self.refused = str(error)
                logger.debug("steps are queued, not recorded: %s", error)
                return False
        return self._recording.fits(_arrays(state))

    def _traced(self, state: Any, arrays: dict[str, Array]) -> dict[str, Array]:
        """Run a leap on the arrays of a recording, and note where its measures lie."""
        own = {name: a for name, a in arrays.items() if name != PARTICLES}
        start = replace(state, particles=arrays[PARTICLES], memory=_with(state.memory, own))
        leapt = self._run(start, self.length)
        if leapt is None:
            raise RuntimeError("a step ended the flow")
        last, measured, doubt = leapt
        before, after = named(start.memory), named(last.memory)
        # A replay repeats launches, not Python: what changes on the host would stay as it was when it was recorded.
        same = before.keys() == after.keys() and all(
            is_cupy(a) or a is before[name] for name, a in after.items()
        )
        if not same:
            raise RuntimeError("what a step remembers changes on the host")
        parts: list[Array] = []
        self._layout = [_packed(measures, parts) for measures in measured]
        xp = namespace(last.particles)
        return {**_arrays(last), DOUBT: doubt, MEASURES: xp.concatenate(parts)}


def _arrays(state: Any) -> dict[str, Array]:
    """Return the particles and what else of a state is on the device."""
    memory = {name: a for name, a in named(state.memory).items() if is_cupy(a)}
    return {PARTICLES: state.particles, **memory}


def _with(memory: Any, arrays: dict[str, Array]) -> Any:
    """Return a memory with these arrays in place of its own, by name."""
    return refilled(memory, {name: arrays.get(name, a) for name, a in named(memory).items()})


def _packed(measures: dict[str, Any], parts: list[Array]) -> dict[str, Any]:
    """Append what is on the device to ``parts`` and return where it lies: (start, stop, shape) in place of it."""
    layout = {}
    for name, value in measures.items():
        layout[name] = value
        if is_cupy(value):
            start = sum(part.size for part in parts)
            # All measures of a leap in one array, so that reading the history copies once.
            parts.append(value.reshape(-1).astype(float))
            layout[name] = slice(start, start + math.prod(value.shape)), value.shape
    return layout


def _unpacked(layout: dict[str, Any], values: Array) -> dict[str, Any]:
    """Return measures from where they lie."""
    return {
        name: values[at[0]].reshape(at[1]) if isinstance(at, tuple) else at
        for name, at in layout.items()
    }
