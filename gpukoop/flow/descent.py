"""What all explicit flows share: a velocity field, the step along it, and the detection of too large a step.

A flow of this family is a :class:`Field`: it says, for particles Z (n, d), which velocity each one has and what the
energy is. :func:`explicit` makes it a step of the loop; :mod:`gpukoop.flow.training` makes it the training of a map.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from gpukoop.arrays import Array, is_cupy, like, namespace, to_host
from gpukoop.flow.loop import Info, State, Step
from gpukoop.flow.memory import Kept, Memory
from gpukoop.fusion import fused

# No flow towards the samples needs to pass so many widths of both clouds from their centre; half of it happens
# with momentum.
THROWN = 4.0
# Particles that move less than so many roundings of the width of the clouds have arrived.
ARRIVED = 4.0


@dataclass(frozen=True)
class Motion:
    """What a field says about particles.

    Attributes
    ----------
    velocity : array of shape (n, d)
        -n dF/dz_i, the Wasserstein gradient: the factor n makes the speed independent of the number of particles.
    energy : float
        F at the particles; on a device an array of shape () that the host has not waited for.
    measures : dict
        Further entries of ``history_``.
    kept : Kept
        What the next step may start from (potentials, couplings).
    """

    velocity: Array
    energy: float
    measures: dict[str, Any] = field(default_factory=dict)
    kept: Kept = field(default_factory=Kept)


class Field(Protocol):
    """A velocity field, pure: the same arguments give the same motion."""

    def __call__(self, Z: Array, kept: Kept, rng: np.random.Generator, iteration: int) -> Motion:
        """Return the velocity and the energy of the particles Z."""


def extent(*clouds: Array) -> np.ndarray:
    """Return (width, centre...), (1 + d,): the root mean square distance of all clouds from their common centre."""
    # Clouds count alike however many points they have: a thousand particles far off are as far as ten.
    centres = [to_host(c.mean(axis=0)).astype(float) for c in clouds]
    centre = sum(centres) / len(clouds)
    with np.errstate(over="ignore", invalid="ignore"):
        squares = [
            float(to_host(c.var(axis=0)).astype(float).sum()) + float(((own - centre) ** 2).sum())
            for c, own in zip(clouds, centres, strict=True)
        ]
    if not np.isfinite(squares).all():
        raise ValueError(
            "particles or samples are so far apart that squares of their distances are no finite numbers: rescale them, or "
            "pass them as float64"
        )
    return np.concatenate([[np.sqrt(np.mean(squares))], np.atleast_1d(centre)])


def width(*clouds: Array) -> float:
    """Return the root mean square distance of the points of all clouds from their common centre."""
    return float(extent(*clouds)[0])


def row_rms(A: Array) -> float:
    """Return the root mean square length of the rows of A."""
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.sqrt(to_host((A.astype(float) ** 2).sum(axis=1).mean())))


def begin(Z: Array, X: Array) -> State:
    """Return the first state of an explicit flow of Z towards X."""
    return State(Z, memory=Memory(extent(Z, X)))


def too_far(
    energy_there: Callable[[], float], energy: float, moved: float, thrown: float, wide: float
) -> str:
    """Return why a step diverges, or "".

    Parameters
    ----------
    energy_there, energy : callable and float
        The energy after the step, computed only if it is asked for, and before.
    moved, thrown, wide : float
        Root mean square step, distance from the common centre of both clouds after it, and width of the clouds.

    Notes
    -----
    A step that carries the particles farther than both clouds are wide is checked before it is taken, so that the
    particles kept are those before it: it is fine if it lowers the energy (particles may start far away). The energy of
    a bounded kernel falls even when the particles are thrown out of its sight; that is seen from where they land.
    """
    if not np.isfinite(moved):
        return "the velocity is no longer finite."
    if thrown > THROWN * wide:
        return f"it would throw the particles {thrown:.3g} from the centre of both clouds, which are {wide:.3g} wide."
    # Looking at the energy costs another pass; a step shorter than the clouds are wide is watched by the next one's energy.
    if moved <= wide:
        return ""
    raised = energy_there()
    if raised <= energy:
        return ""
    return (
        f"it would move the particles by {moved:.3g}, while the clouds are {wide:.3g} wide, and raise the energy "
        f"from {energy:.3g} to {raised:.3g}."
    )


def explicit(velocity: Field, *, step_size: float, momentum: float = 0.0) -> Step:
    r"""Return the explicit step :math:`z_i \leftarrow z_i + h G_i`, :math:`G \leftarrow v + \mu G`.

    Parameters
    ----------
    velocity : Field
        v and F at the particles.
    step_size : float
        h, multiplies the plain velocity.
    momentum : float
        mu in [0, 1); 0 is the plain flow.

    Notes
    -----
    ``history_`` holds the ``energy`` F, the ``dissipation`` mean \|v_i\|^2 = -dF/dt of the continuous flow, and the root
    mean square ``displacement`` of the step.
    """

    def step(state: State, rng: np.random.Generator) -> tuple[State, Info]:
        if not state.watched:
            return _queued(velocity, state, rng, step_size, momentum)
        Z = state.particles
        before: Memory = state.memory
        motion = velocity(Z, before.kept, rng, state.iteration)
        energy = float(motion.energy)
        direction = _carried(motion.velocity, before, momentum)
        memory = replace(before, kept=motion.kept, momentum=direction if momentum else None)
        with np.errstate(over="ignore", invalid="ignore"):
            move = step_size * direction
            following = Z + move
        moved = row_rms(move)
        wide, centre = memory.width, like(before.extent[1:], Z)

        def energy_there() -> float:
            # Any noise serves a look, and the run's own stream is not touched by it.
            rng = np.random.default_rng(0)
            return float(velocity(following, motion.kept, rng, state.iteration).energy)

        thrown = row_rms(following - centre)
        diverged = too_far(energy_there, energy, moved, thrown, wide)
        if not np.isfinite(energy):
            diverged = "the energy is no longer finite."
        measures = {
            "energy": energy,
            "dissipation": row_rms(motion.velocity) ** 2,
            "displacement": moved,
            **motion.measures,
        }
        arrived = moved <= ARRIVED * float(np.finfo(Z.dtype).eps) * wide < np.inf
        return State(following, memory=memory), Info(measures, arrived, diverged)

    return step


def _carried(velocity: Array, before: Memory, momentum: float) -> Array:
    """Return G = v + mu G of the step before."""
    if not momentum or before.momentum is None:
        return velocity
    return velocity + momentum * before.momentum


def _queued(
    velocity: Field, state: State, rng: np.random.Generator, step_size: float, momentum: float
) -> tuple[State, Info]:
    """Take the explicit step without waiting for the device: what it would decide is left in ``doubt``."""
    Z, share = state.particles, 1.0 / len(state.particles)
    before: Memory = state.memory
    motion = velocity(Z, before.kept, rng, state.iteration)
    direction, wide = _carried(motion.velocity, before, momentum), before.width
    # kept on the device from the first queued step on
    centre = like(before.extent[1:], Z) if before.centre is None else before.centre
    carried = direction if momentum else None
    memory = replace(before, kept=motion.kept, momentum=carried, centre=centre)
    following = _moved(Z, direction, step_size)
    dissipation = _mean_square(motion.velocity, share)
    moved = _displacement(direction, share, step_size)
    thrown = _mean_square_from(following, centre, share)
    limits = THROWN * wide, wide, ARRIVED * float(np.finfo(Z.dtype).eps) * wide
    doubt = _in_doubt(motion.energy, moved, thrown, *limits)
    measures = {
        "energy": motion.energy,
        "dissipation": dissipation,
        "displacement": moved,
        **motion.measures,
    }
    return State(following, memory=memory), Info(measures, doubt=doubt)


@fused
def _moved(xp: Any, Z: Any, direction: Any, step_size: float) -> Any:
    return Z + step_size * direction


@fused
def _mean_square(xp: Any, A: Any, share: float) -> Any:
    A = A.astype(np.float64)
    return xp.sum(A * A * share)


@fused
def _displacement(xp: Any, direction: Any, share: float, step_size: float) -> Any:
    A = step_size * direction.astype(np.float64)
    return xp.sqrt(xp.sum(A * A * share))


@fused
def _mean_square_from(xp: Any, A: Any, centre: Any, share: float) -> Any:
    A = (A - centre).astype(np.float64)
    return xp.sum(A * A * share)


@fused
def _in_doubt(
    xp: Any, energy: Any, moved: Any, thrown: Any, far: float, wide: float, arrived: float
) -> Any:
    # Comparisons with what is not finite are false.
    # One number for everything that a watched step looks at, so that ten steps need one look.
    fine = (thrown <= far * far) & (moved <= wide) & (moved > arrived) & xp.isfinite(energy)
    return ~fine


def uniform(Z: Array) -> Array:
    """Return the weights 1/n of n points."""
    return _filled(Z, np.full(1, 1.0 / len(Z), dtype=Z.dtype)[0])


def log_uniform(Z: Array) -> Array:
    """Return the logarithms of the weights 1/n of n points."""
    return _filled(Z, np.log(np.full(1, 1.0 / len(Z), dtype=Z.dtype))[0])


def _filled(Z: Array, value: np.floating) -> Array:
    if is_cupy(Z):
        # Even weights are asked for in every step and never written to: kept, they cost no launch.
        return _kept(namespace(Z), len(Z), value, Z.dtype.name, Z.device.id)
    return np.full(len(Z), value)


@lru_cache(maxsize=8)
def _kept(xp: ModuleType, n: int, value: np.floating, dtype: str, device: int) -> Array:
    return xp.full(n, value, dtype=dtype)


def mean(values: Array, weights: Array | None = None) -> float:
    """Return the mean of values in float64, weighted where weights that sum to 1 are given.

    On a device it is an array of shape () that the host has not waited for.
    """
    if is_cupy(values):
        return _weighted(values, 1.0 / len(values) if weights is None else weights)
    values = values.astype(float)
    return float(values.mean() if weights is None else (values * weights.astype(float)).sum())


@fused
def _weighted(xp: Any, values: Any, weights: Any) -> Any:
    return xp.sum(values.astype(np.float64) * weights)
