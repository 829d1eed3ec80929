"""The laws that the truth is told about: exact draws, their modes, and what a cloud that is wrong looks like."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from gpukoop import datasets

Draw = Callable[..., np.ndarray]


def _first(pairs: Callable[..., Any], **options: Any) -> Draw:
    """Return draws of the invariant law of a data set of pairs."""

    def draw(n: int, random_state: Any = None) -> np.ndarray:
        return pairs(n, random_state=random_state, independent=True, **options)[0]

    return draw


def _torus(n: int, random_state: Any = None) -> np.ndarray:
    return datasets.torus(n, random_state=random_state)


LAWS: dict[str, Draw] = {
    "banana": datasets.banana,
    "unequal mixture, 5-d": datasets.unequal_mixture,
    "moons .85/.15": partial(datasets.moons, share=0.85),
    "slow well, 10-d": _first(datasets.slow_well),
    "Student t, 3": datasets.student_t,
    "Mises-Fisher": datasets.mises_fisher,
    "three rings": datasets.three_rings,
    "checkerboard": datasets.checkerboard,
    "eight Gaussians": datasets.eight_gaussians,
    "quadruple well": _first(datasets.quadruple_well),
    "torus": _torus,
}
# Modes by their centres; a law without some is cut in two by its median along the first coordinate.
CENTRES = {
    "unequal mixture, 5-d": datasets.exact("unequal_mixture")["centres"],
    "moons .85/.15": np.array([[0.0, 0.6], [1.0, -0.1]]),
    "slow well, 10-d": np.eye(10)[[0, 0]] * [[-1], [1]],
    "Mises-Fisher": datasets.exact("mises_fisher")["centres"],
    "three rings": datasets.exact("three_rings")["centres"],
    "checkerboard": datasets.exact("checkerboard")["centres"],
    "eight Gaussians": datasets.exact("eight_gaussians")["centres"],
    "quadruple well": datasets.exact("quadruple_well")["centres"],
}


def mode_of(name: str, Z: np.ndarray) -> np.ndarray:
    """Return the mode of every point."""
    centres = CENTRES[name]
    return np.linalg.norm(Z[:, None] - centres, axis=2).argmin(axis=1)


def fresh(name: str, n: int, rng: np.random.Generator, X: np.ndarray) -> np.ndarray:
    """Return independent draws of the law: nothing is wrong with them."""
    return LAWS[name](n, random_state=rng)


def dropped(name: str, n: int, rng: np.random.Generator, X: np.ndarray) -> np.ndarray:
    """Return draws without the last mode."""
    Z = LAWS[name](4 * n, random_state=rng)
    return Z[mode_of(name, Z) != len(CENTRES[name]) - 1][:n]


def swapped(name: str, n: int, rng: np.random.Generator, X: np.ndarray) -> np.ndarray:
    """Return draws in which the first and the last mode have exchanged their masses; equal ones take 3/2 and 1/2 of theirs."""
    Z = LAWS[name](8 * n, random_state=rng)
    mode, last = mode_of(name, Z), len(CENTRES[name]) - 1
    mass = np.bincount(mode, minlength=last + 1) / len(Z)
    wanted = mass.copy()
    if abs(mass[0] - mass[last]) > 0.2 * mass[0]:
        wanted[[0, last]] = mass[[last, 0]]
    else:
        wanted[[0, last]] *= [1.5, 0.5]
    weight = (wanted / mass)[mode]
    return Z[rng.choice(len(Z), n, replace=False, p=weight / weight.sum())]


def stranded(name: str, n: int, rng: np.random.Generator, X: np.ndarray) -> np.ndarray:
    """Return draws of which 5 per cent lie anywhere in the box of the law (in ten dimensions: on the barrier)."""
    Z = LAWS[name](n, random_state=rng)
    k = n // 20
    if name == "slow well, 10-d":
        Z[:k, 0] = rng.uniform(-0.3, 0.3, k)
    else:
        low, high = np.quantile(Z, [0.002, 0.998], axis=0)
        Z[:k] = rng.uniform(low, high, (k, Z.shape[1]))
    return Z


def shrunk(name: str, n: int, rng: np.random.Generator, X: np.ndarray) -> np.ndarray:
    """Return draws pulled a tenth of the way to their mean."""
    Z = LAWS[name](n, random_state=rng)
    return Z.mean(axis=0) + 0.9 * (Z - Z.mean(axis=0))


def copies(name: str, n: int, rng: np.random.Generator, X: np.ndarray) -> np.ndarray:
    """Return rows of the training set."""
    return X[rng.choice(len(X), n, replace=len(X) < n)]


WRONG = {
    "mode dropped": dropped,
    "weights swapped": swapped,
    "5 % stranded": stranded,
    "shrunk 10 %": shrunk,
    "copies": copies,
}
