r"""Whether runs started in equilibrium, and weights that turn pairs of runs started anywhere into pairs of the stationary law.

.. math:: w(x) = u^T b(x), \qquad E[w(x)\, b(y)] = E[w(x)\, b(x)], \qquad E[w(x)] = 1

A lag leaves the stationary law as it is; w is the density ratio that it leaves so, among combinations of 1 and the slow
coordinates.

References
----------
.. [1] H. Wu, F. Nueske, F. Paul, S. Klus, P. Koltai, F. Noe, Variational Koopman models: slow collective variables and
   molecular kinetics from short off-equilibrium simulations, Journal of Chemical Physics 146, 2017.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from scipy import stats

from gpukoop.arrays import Array, namespace
from gpukoop.fitted import outside
from gpukoop.kinetics.blocks import MANY_RUNS, SPAN
from gpukoop.kinetics.learning import Learned
from gpukoop.lagged import spread_rows

# Chance that runs in equilibrium are called out of it.
LEVEL = 1e-3
# Blocks of either half of the runs that can be compared.
FEWEST_OF_A_HALF = 5


def drift(phi: np.ndarray, lengths: list[int], slowest: float) -> float:
    """Return the p-value of the difference between the halves of the runs, the smallest over modes times their number.

    Parameters
    ----------
    phi : ndarray of shape (m, r)
        Modes at frames spread evenly over runs, see ``gpukoop.lagged.spread_rows``.
    lengths : list of int
        Of the runs.
    slowest : float
        Slowest timescale, in frames.
    """
    first: list[np.ndarray] = []  # means of blocks, (r,) each
    second: list[np.ndarray] = []
    start = 0
    for n, (offset, step) in zip(lengths, spread_rows(lengths, len(phi)), strict=True):
        size = len(range(offset, n, step))
        own = phi[start : start + size]
        start += size
        count = max(1, int(n / 2 / (SPAN * slowest)))
        halves = np.array_split(own, 2)
        if min(len(half) for half in halves) >= count:
            for half, means in zip(halves, (first, second), strict=True):
                means += [part.mean(axis=0) for part in np.array_split(half, count)]
    if len(first) < FEWEST_OF_A_HALF:
        return float("nan")
    a, b = np.array(first), np.array(second)
    if (
        len(lengths) >= MANY_RUNS
    ):  # halves of one run are neighbours: their difference is what varies
        p = stats.ttest_1samp(b - a, 0.0).pvalue
    else:
        p = stats.ttest_ind(a, b, equal_var=False).pvalue
    return float(min(1.0, np.min(p) * a.shape[1]))


def warn_of_drift(p_value: float) -> None:
    """Warn of runs that did not start in equilibrium, if :func:`drift` says so."""
    if p_value < LEVEL:
        warnings.warn(
            f"the first halves of the runs are elsewhere than the second halves (p = {p_value:.1g}): they did not start in "
            "equilibrium, and weights and timescales are biased. Use KineticModel(reweight=True), or cut off the beginnings",
            RuntimeWarning,
            stacklevel=outside(),
        )


def equilibrium_ratio(learned: Learned) -> Callable[[Array], Array]:
    """Return the function from coordinates (b, p) at first frames to weights (b,), at least 0."""
    total, W = sum(learned.blocks[1:], learned.blocks[0]), learned.W
    m, q = total.m, W.shape[1]
    C00, C01 = np.empty((2, q + 1, q + 1))
    x, y = W.T @ total.x / m, W.T @ total.y / m
    C00[0, 0] = C01[0, 0] = 1.0
    C00[0, 1:] = C00[1:, 0] = C01[1:, 0] = x
    C01[0, 1:] = y
    C00[1:, 1:], C01[1:, 1:] = W.T @ total.xx @ W / m, W.T @ total.xy @ W / m
    u = stationary(C00, C01)
    combination = W @ u[1:]

    def weight(P: Array) -> Array:
        xp = namespace(P)
        values = u[0] + P[:, : len(combination)] @ xp.asarray(combination)
        return xp.maximum(values, 0.0)

    return weight


def stationary(C00: np.ndarray, C01: np.ndarray) -> np.ndarray:
    """Return the u of the module's formula, (q + 1,), from the moments of b(x) with b(x) and with b(y)."""
    # u^T (C01 - C00) = 0; the first column is 0 = 0 and gives way to the normalisation
    system = (C01 - C00).T
    system[0] = C00[0]
    right = np.zeros(len(C00))
    right[0] = 1.0
    found: np.ndarray = np.linalg.lstsq(system, right, rcond=1e-10)[0]
    return found
