"""The flow of a velocity field by fixed steps."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from gpukoop.arrays import Array, namespace, points, require_finite
from gpukoop.checks import real_array
from gpukoop.draws import check_count
from gpukoop.sampler.teacher import as_teacher


def integrate(
    teacher: Any, x: Array, times: Sequence[float], *, n_steps: int = 100, method: str = "rk4"
) -> Array:
    """Return the flow of a teacher by fixed steps: the reference that one-step sampling is compared with.

    Parameters
    ----------
    teacher : object with velocity(x, t), or a function
    x : array of shape (n, d)
        Points at time ``times[0]``.
    times : sequence of float
        Ascending; the first is where x is.
    n_steps : int
        Steps from the first to the last time together, at least one between two times.
    method : "rk4" or "euler"

    Returns
    -------
    array of shape (len(times), n, d)

    Notes
    -----
    Cost: 4 (rk4) or 1 (euler) calls of the teacher a step.
    """
    if method not in ("rk4", "euler"):
        raise ValueError(f"method must be 'rk4' or 'euler', got {method!r}")
    field = as_teacher(teacher)
    if field is None:
        raise TypeError("teacher is None: pass an object with velocity(x, t)")
    times = real_array(times, "times", (None,)).tolist()
    if len(times) < 1 or any(b < a for a, b in pairwise(times)):
        raise ValueError(f"times must ascend, got {times}: the first is where x is")
    n_steps = check_count(n_steps, "n_steps")
    x, home = points(x, "x")
    xp, v = namespace(x), field.velocity
    states = [x]
    span = max(float(times[-1]) - float(times[0]), 1e-300)
    for a, b in pairwise(times):
        k = max(1, round(n_steps * (b - a) / span))
        h = (b - a) / k
        for i in range(k):
            t = a + i * h
            if method == "euler":
                x = x + h * v(x, t)
                continue
            k1 = v(x, t)
            k2 = v(x + h / 2 * k1, t + h / 2)
            k3 = v(x + h / 2 * k2, t + h / 2)
            k4 = v(x + h * k3, t + h)
            x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        states.append(x)
    require_finite(states[-1], "the flow of the teacher")
    return home.restore(xp.stack(states))
