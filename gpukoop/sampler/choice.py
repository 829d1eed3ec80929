"""Which ridge: points that were not learned from choose it for SAT, exact trajectories for the exponential."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import numpy as np

from gpukoop.arrays import Array, like, namespace, to_host, unchecked
from gpukoop.kernels.formula.catalogue import Energy
from gpukoop.operator import KernelOperator
from gpukoop.sampler.expm import ExponentialOverflow
from gpukoop.sampler.integration import integrate
from gpukoop.sampler.teacher import AbstractTeacher, EmpiricalTeacher

_log = logging.getLogger("gpukoop")

# Ridges that "auto" tries, relative to tr(S)/D. SAT is flat from 1e-9 to 1e-5; the exponential is not, and best at 1e-3 to 1e-2
# on seven of nine laws in the plane, at .3 to 1 where tails are heavy.
REG_PATH = {
    "sat": (1e-8, 1e-6, 1e-4),
    "exponential": (1e-7, 1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 0.3, 1.0),
}
REG_DEFAULT = 1e-6
# Points kept from learning to choose among them: a tenth, and enough for an energy distance to tell ridges apart. Samples that
# are compared with them at least: the few that a bad ridge throws far away must be among them.
HELD_OUT, COMPARED = (20, 1_000), 1_000
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
    """Return (reg, energy distance of samples from held-out points) for the SAT solver.

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
    n, d = held_out.shape
    base = like(rng.standard_normal((max(n, COMPARED), d)), held_out)
    own = mean_distance(held_out, held_out, backend)
    return _scores(
        REG_PATH["sat"],
        endpoints,
        base,
        lambda moved: energy_distance(moved, held_out, backend, own),
    )


def by_trajectories(
    endpoints: Callable[[float, Array], Array],
    teacher: AbstractTeacher | None,
    data: Array,
    seed: int,
    backend: str | None,
    regs: tuple[float, ...] = REG_PATH["exponential"],
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
    regs : tuple of float
        Ridges to try.
    """
    rng = np.random.default_rng([seed, 2**32])
    base = rng.standard_normal((N_TRAJECTORIES, data.shape[1]))
    field = teacher or EmpiricalTeacher(
        to_host(data[:FIELD_POINTS]), smooth=FIELD_BLUR, backend=backend
    )
    start = base if teacher is None else like(base, data)
    exact = like(to_host(integrate(field, start, (0.0, 1.0), n_steps=N_STEPS)[-1]), data)

    def error(moved: Array) -> Array:
        return namespace(moved).sqrt(((moved - exact) ** 2).sum(axis=1).mean())

    return _scores(regs, endpoints, like(base, data), error)


def _scores(
    regs: tuple[float, ...],
    endpoints: Callable[[float, Array], Array],
    base: Array,
    score: Callable[[Array], Array],
) -> list[tuple[float, float]]:
    xp = namespace(base)
    found = []
    for reg in regs:
        try:
            found.append(score(endpoints(reg, base)))
        except (ExponentialOverflow, np.linalg.LinAlgError):
            found.append(xp.asarray(math.inf))
    values = to_host(xp.stack(found))  # one look at the device
    path = list(zip(regs, np.where(np.isfinite(values), values, math.inf).tolist(), strict=True))
    _log.debug("score of every reg: %s", path)
    if not any(math.isfinite(value) for _, value in path):
        raise ExponentialOverflow(
            f"exp(A) overflows for every ridge of {regs}: use solver='sat', clock='log' or fewer features"
        )
    return path


def mean_distance(X: Array, Y: Array, backend: str | None) -> Array:
    """Return E|x - y|, an array without axes."""
    K = KernelOperator(Energy(), X, Y, backend=backend)  # -|x - y|
    return -(K @ namespace(Y).full(len(Y), 1 / len(Y))).mean()


def energy_distance(X: Array, Y: Array, backend: str | None, own: Array) -> Array:
    """Return 2 E|x - y| - E|x - x'| - ``own``, E|y - y'|, an array without axes; inf where X is not finite."""
    xp = namespace(X)
    finite = xp.isfinite(X).all()
    X = xp.where(finite, X, 0.0)
    with unchecked():
        score = 2 * mean_distance(X, Y, backend) - mean_distance(X, X, backend) - own
    return xp.where(finite, score, math.inf)
