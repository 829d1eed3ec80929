"""Random numbers, drawn on the host from a stream of their own, and the checks that every draw shares."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

LARGEST_COUNT = 2**63 - 1  # of an array's index
# How standard normal points are drawn; coordinates beyond SOBOL_COORDINATES are independent: pairs of those that come late in a
# Sobol sequence are far from even, and in so many dimensions little is left to gain.
BASES = ("sobol", "independent")
SOBOL_COORDINATES, SOBOL_BITS = 16, 30

RandomState: TypeAlias = int | np.random.Generator | np.random.RandomState | None


def random_generator(random_state: RandomState = None) -> np.random.Generator:
    """Return a generator of its own for one task; the caller's stream is not advanced.

    Parameters
    ----------
    random_state : int, numpy Generator, numpy RandomState or None
        An int is a seed. A Generator is spawned, so that two calls give two independent streams. A
        RandomState cannot be spawned: its present state is the seed, and the stream is the same until the
        caller draws from it. None takes entropy from the system.

    Raises
    ------
    TypeError
        If it is anything else.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> _ = random_generator(rng).random(100)
    >>> rng.random() == np.random.default_rng(0).random()
    True
    """
    if random_state is None:
        return np.random.default_rng()
    if isinstance(random_state, np.random.Generator):
        return random_state.spawn(1)[0]
    if isinstance(random_state, np.random.RandomState):
        _, key, position, *_ = random_state.get_state(legacy=True)
        return np.random.default_rng([*np.asarray(key).tolist(), int(position)])
    if (
        isinstance(random_state, numbers.Integral)
        and not isinstance(random_state, bool)
        and random_state >= 0
    ):
        return np.random.default_rng(int(random_state))
    raise TypeError(
        f"random_state is {random_state!r}: pass a non-negative int, a numpy.random.Generator, "
        "a numpy.random.RandomState or None"
    )


def normal_points(
    n: int, d: int, rng: np.random.Generator, base: str = "independent"
) -> np.ndarray:
    """Return n points of N(0, I), (n, d): independent, or of a scrambled Sobol sequence in random order.

    Each point of the sequence has exactly this law (to 2^-31 of probability), and means over all points vary less than those of
    independent ones; but the points depend on each other. Cost: 2^k points, the least power of two that is enough.
    """
    if base == "independent":
        return rng.standard_normal((n, d))
    from scipy.special import ndtri
    from scipy.stats.qmc import Sobol

    power, wide = (n - 1).bit_length(), min(d, SOBOL_COORDINATES)
    bits = max(SOBOL_BITS, power)
    uniform = Sobol(wide, scramble=True, bits=bits, seed=rng).random_base2(power)
    # the middles of the cells: neither 0 nor 1. In the order of the sequence every second point lies in one half.
    points = ndtri(uniform[rng.permutation(n)] + 0.5 ** (bits + 1))
    return np.concatenate([points, rng.standard_normal((n, d - wide))], axis=1)


def check_count(value: int, name: str = "n_samples", least: int = 1) -> int:
    """Return a count as an int, or raise with its name."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} is {value!r}: pass a whole number, at least {least}")
    if value < least:
        raise ValueError(f"{name} is {value}: pass a whole number, at least {least}")
    if value > LARGEST_COUNT:
        raise ValueError(f"{name} has {len(str(value))} digits: pass a whole number below 2^63")
    return int(value)


def check_positive(value: float, name: str, *, zero: bool = False) -> float:
    """Return a positive finite number as a float, or raise with its name; ``zero`` allows 0 too."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} is {value!r}: pass a number")
    try:
        number = float(value)
    except OverflowError:  # a whole number or a fraction beyond the range
        number = math.inf
    if not math.isfinite(number) or number < 0 or (number == 0 and not zero):
        shown = value if math.isfinite(number) or isinstance(value, float) else "beyond float64"
        raise ValueError(f"{name} is {shown}: pass a finite number {'>= 0' if zero else '> 0'}")
    return number


def check_flag(value: object, name: str) -> bool:
    """Return True or False, or raise with the name: 1 and "no" are neither."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} is {value!r}, expected True or False")
    return bool(value)


def check_function(value: object, name: str, call: str) -> None:
    """Raise with the name and the call expected unless ``value`` can be called."""
    if not callable(value):
        raise TypeError(f"{name} is of type {type(value).__name__}, expected a function {call}")


def rejection(
    propose: Callable[[int], np.ndarray], accept: Callable[[np.ndarray], np.ndarray], n: int
) -> np.ndarray:
    """Return the first n accepted of independent proposals: ``propose(k)`` draws k, ``accept`` answers a mask."""
    kept: list[np.ndarray] = []
    missing = n
    while missing > 0:
        proposals = propose(2 * missing + 10)
        kept.append(proposals[accept(proposals)])
        missing -= len(kept[-1])
    return np.concatenate(kept)[:n]
