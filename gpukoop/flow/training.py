r"""Persistent training: a generator is regressed on the particles that a flow moves.

========== ======================================================
y (p, d)   pool of latent points
G          generator, particles are G(y)
zeta       frozen targets G(y) + h v(G(y))
K          persistence: gradient steps on the same targets
========== ======================================================

K = 1 is the generator step of a W2-GAN, K = infinity the natural-gradient direction (parametric JKO).

References
----------
.. [1] Y.-J. Huang, Z. Malik, Generative Modeling by Minimizing the Wasserstein-2 Loss, arXiv 2406.13619.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from gpukoop.arrays import Array
from gpukoop.flow.descent import Field, row_rms
from gpukoop.flow.loop import Info, State, Step
from gpukoop.flow.memory import Memory

# Targets so many widths of the clouds away are no regression problem but a step size that diverges.
FAR = 10.0


class Trainer:
    """Training of a generator as a step of the loop; ``generator`` is the map after the last step.

    Parameters
    ----------
    velocity : Field
        The flow, at the particles of a batch.
    generator : started map
        Anything with ``__call__``, ``regress``, ``parameters`` and ``with_parameters``.
    pool : array of shape (p, d)
        Latent points.
    step_size : float
        h of the flow's step towards the frozen targets.
    persistence : float
        K; infinity is the ridge limit.
    batch_size : int, optional
        Latent points of a step, drawn anew each time; all by default.
    """

    def __init__(
        self,
        velocity: Field,
        generator: Any,
        pool: Array,
        *,
        step_size: float,
        persistence: float,
        batch_size: int | None = None,
    ) -> None:
        self.velocity, self.generator, self.pool = velocity, generator, pool
        self.step_size, self.persistence = step_size, persistence
        self.batch_size = None if batch_size is None or batch_size >= len(pool) else batch_size

    def begin(self, state: State) -> State:
        """Return the first state: the parameters travel with it."""
        memory = replace(state.memory, parameters=self.generator.parameters)
        return State(state.particles, memory=memory)

    def step(self, state: State, rng: np.random.Generator) -> tuple[State, Info]:
        """Take one flow step from G(y) and regress the generator on it."""
        before: Memory = state.memory
        generator = self.generator.with_parameters(before.parameters)
        y, Z = self.pool, state.particles
        kept = before.kept
        if self.batch_size is not None:
            rows = rng.choice(len(y), self.batch_size, replace=False)
            y, Z = y[rows], Z[rows]
            # Other rows of the pool every time: what belongs to single particles would be that of the last batch.
            kept = kept.for_others()
        motion = self.velocity(Z, kept, rng, state.iteration)
        zeta = Z + self.step_size * motion.velocity
        wide, moved = before.width, row_rms(zeta - Z)
        diverged = ""
        if not np.isfinite(motion.energy):
            diverged = "the energy is no longer finite."
        elif not moved <= FAR * wide:
            diverged = f"its targets lie {moved:.3g} away, while the clouds are {wide:.3g} wide."
        if diverged:
            # The state as it was: the generator of a run that diverged is its last good one.
            return state, Info({"energy": motion.energy}, diverged=diverged)
        generator = generator.regress(y, zeta, self.persistence)
        # All of the pool, whatever the batch: the particles of the next step are what the generator now makes.
        following = generator(self.pool)
        self.generator = generator
        measures = {
            "energy": motion.energy,
            "displacement": row_rms(following - state.particles),
            "regression_error": row_rms(zeta - generator(y)),
            **motion.measures,
        }
        after = replace(before, kept=motion.kept, parameters=generator.parameters)
        return State(following, memory=after), Info(measures)


class StagewiseTrainer:
    """Training of a stage-wise map: particles move freely for a block of steps, then the next stage replaces them.

    Stages grow, so they live here and not in the loop's state.
    """

    def __init__(
        self,
        step: Step,
        generator: Any,
        pool: Array,
        n_iter: int,
        *,
        persistence: float = float("inf"),
    ) -> None:
        self.inner, self.generator, self.pool = step, generator, pool
        self.n_iter, self.persistence = n_iter, persistence

    def begin(self, state: State) -> State:
        """Return the first state."""
        return state

    def step(self, state: State, rng: np.random.Generator) -> tuple[State, Info]:
        """Take one step; at the end of a block regress the next stage on it and replace the particles."""
        following, info = self.inner(state, rng)
        done = state.iteration + 1
        if not info.diverged and (done % self.generator.block_size == 0 or done == self.n_iter):
            self.generator = self.generator.regress(
                self.pool, following.particles, self.persistence
            )
            replaced = self.generator(self.pool)
            # What the stage could not represent; the next block starts from there, so errors do not add up unseen.
            error = row_rms(replaced - following.particles)
            info = Info({**info.measures, "regression_error": error}, False, info.diverged)
            return State(replaced, memory=following.memory.for_others()), info
        return following, Info({**info.measures, "regression_error": 0.0}, False, info.diverged)
