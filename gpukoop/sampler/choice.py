"""Which ridge: points that were not learned from choose it for SAT, exact trajectories for the exponential."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import numpy as np

from gpukoop.arrays import Array, like, namespace, to_host
from gpukoop.kernels.formula.catalogue import Energy
from gpukoop.operator import KernelOperator
from gpukoop.sampler.expm import ExponentialOverflow
from gpukoop.sampler.teacher import AbstractTeacher, EmpiricalTeacher, integrate

_log = logging.getLogger("gpukoop")

# Ridges that "auto" tries, relative to tr(S)/D. SAT is flat from 1e-9 to 1e-5; the exponential is not, and best at 1e-3 to 1e-2
# on seven of nine laws in the plane.
REG_PATH = {
    "sat": (1e-8, 1e-6, 1e-4),
    "exponential": (1e-7, 1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
}
REG_DEFAULT = 1e-6
# Points kept from learning to choose among them: a tenth, and enough for an energy distance to tell ridges apart.
HELD_OUT = (20, 1_000)
# Trajectories that choose, data points whose field they follow, its blur (of data of unit size) and Runge-Kutta steps: stable,
# as a step times the largest slope 1 / blur is below 1.
N_TRAJECTORIES, FIELD_POINTS, FIELD_BLUR, N_STEPS = 256, 1_000, 0.05, 40


def split_held_out(data: Array, rng: np.random.Generator) -> tuple[Array, Array | None]:
    """Return the rows to learn from and, where there are enough, a tenth to choose the ridge by."""
    low, high = HELD_OUT
    size = min(high, len(data) // 10)
    if size < low:
        return data, None
    xp = namespace(data)
    order = xp.asarray(rng.permutation(len(data)))
    return data[order[size:]], data[order[:size]]


def by_held_out(
    endpoints: Callable[[float, Array], Array], held_out: Array, seed: int, backend: str | None
) -> list[tuple[float, float]]:
    """Return (reg, energy distance of as many samples from held-out points) for the SAT solver.

    Parameters
    ----------
    endpoints : callable
        (reg, base points) -> where the flow with this ridge carries them.
    held_out : array of shape (n, d)
    seed : int
    backend : str or None
        Who computes the distances.
    """
    rng = np.random.default_rng([seed, 2**32])
    base = like(rng.standard_normal(held_out.shape), held_out)
    return _scores("sat", endpoints, base, lambda moved: energy_distance(moved, held_out, backend))


def by_trajectories(
    endpoints: Callable[[float, Array], Array],
    teacher: AbstractTeacher | None,
    data: Array,
    seed: int,
    backend: str | None,
) -> list[tuple[float, float]]:
    """Return (reg, root mean square distance from exact endpoints) for the exponential.

    The law of the samples says little here: on a mixture of three Gaussians the ridge whose samples are nearest to held-out
    points ends trajectories .47 off where the best ridge ends them .35 off.

    Parameters
    ----------
    endpoints : callable
        (reg, base points) -> where the flow with this ridge carries them.
    teacher : teacher or None
        Whose flow is exact; None takes that of the data.
    data : array of shape (n, d)
    seed : int
    backend : str or None
        Who computes the field of the data.
    """
    rng = np.random.default_rng([seed, 2**32])
    base = rng.standard_normal((N_TRAJECTORIES, data.shape[1]))
    field = teacher or EmpiricalTeacher(
        to_host(data[:FIELD_POINTS]), smooth=FIELD_BLUR, backend=backend
    )
    start = base if teacher is None else like(base, data)
    exact = to_host(integrate(field, start, (0.0, 1.0), n_steps=N_STEPS)[-1])

    def error(moved: Array) -> float:
        return float(np.sqrt(((to_host(moved) - exact) ** 2).sum(axis=1).mean()))

    return _scores("exponential", endpoints, like(base, data), error)


def _scores(
    solver: str,
    endpoints: Callable[[float, Array], Array],
    base: Array,
    score: Callable[[Array], float],
) -> list[tuple[float, float]]:
    path = []
    for reg in REG_PATH[solver]:
        try:
            value = score(endpoints(reg, base))
        except (ExponentialOverflow, np.linalg.LinAlgError):
            value = math.inf
        path.append((reg, value if math.isfinite(value) else math.inf))
        _log.debug("reg %g: score %.3g", reg, value)
    if not any(math.isfinite(value) for _, value in path):
        raise ExponentialOverflow(
            f"exp(A) overflows for every ridge of {REG_PATH[solver]}: use solver='sat', clock='log' or fewer features"
        )
    return path


def energy_distance(X: Array, Y: Array, backend: str | None) -> float:
    """Return 2 E|x - y| - E|x - x'| - E|y - y'|, inf where X is not finite."""
    xp = namespace(X)
    if not bool(xp.isfinite(X).all()):
        return math.inf

    def mean(A: Array, B: Array) -> float:
        K = KernelOperator(Energy(), A, B, backend=backend)
        return float((K @ xp.full(len(B), 1 / len(B))).mean())

    return mean(X, X) + mean(Y, Y) - 2 * mean(X, Y)
