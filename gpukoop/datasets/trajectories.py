r"""Pairs (X, Y), Y one ``lag_time`` after X, of one trajectory or of independent starts.

By default the pairs are those of ONE trajectory, Y[i] = X[i + 1], started from the invariant law itself (which
is what a burn-in approximates). ``independent=True`` starts every pair afresh from that law. All randomness is
drawn on the host.

========  ======================================================================
h         time step of the Euler-Maruyama scheme, lag_time / n_substeps
n, d      pairs and features
========  ======================================================================
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np

from gpukoop.draws import RandomState, check_count, check_flag, check_positive, random_generator

Pairs = tuple[np.ndarray, np.ndarray]

SUBSTEPS = 10  # of one lag, as in the published quadruple well
LONGEST_STEP = 0.01  # longer lags take more substeps: the cubic drift of the wells is stiff
MOST_SUBSTEPS = 10**6
NOISE_BLOCK = 2**15  # lags whose noise is held at once; the draws do not depend on it


def langevin_pairs(
    law: Callable[[np.random.Generator, int], np.ndarray],
    walk: Callable[..., np.ndarray],
    n_samples: int,
    lag_time: float,
    random_state: RandomState,
    independent: bool,
    n_substeps: int | None,
    *parameters: float,
) -> Pairs:
    """Return pairs by Euler-Maruyama: many starts followed for one lag, or a single one for all lags.

    ``law(rng, n)`` draws n starts (n, d) from the invariant law. ``walk(starts, noise, h, chained, *parameters)``
    is compiled here and returns the states (n, d) after each lag; chained means that a lag begins where the one
    before it ended.
    """
    n, lag = check_count(n_samples), check_positive(lag_time, "lag_time")
    if n_substeps is None:
        if lag > LONGEST_STEP * MOST_SUBSTEPS:
            raise ValueError(
                f"lag_time is {lag:.3g}: steps of {LONGEST_STEP} are {lag / LONGEST_STEP:.1e} to a lag, which take too long; pass a "
                "shorter lag_time, or n_substeps"
            )
        n_substeps = max(SUBSTEPS, math.ceil(lag / LONGEST_STEP))
    k = check_count(n_substeps, "n_substeps")
    check_flag(independent, "independent")
    rng = random_generator(random_state)
    start = law(rng, n if independent else 1)
    states = np.empty((n, start.shape[1]))
    compiled = _compiled(walk)
    block = max(1, NOISE_BLOCK * SUBSTEPS // k)
    for i in range(0, n, block):
        stop = min(i + block, n)
        noise = rng.standard_normal((stop - i, k, start.shape[1]))
        begin = start[i:stop] if independent else (states[i - 1 : i] if i else start)
        states[i:stop] = compiled(begin, noise, lag / k, not independent, *parameters)
    if not np.isfinite(states).all():
        raise ValueError(
            f"the trajectory left the finite numbers at step {lag / k:.3g} (lag_time={lag:.3g}, n_substeps={k}): "
            "raise n_substeps"
        )
    return (start, states) if independent else consecutive(start, states)


def consecutive(start: np.ndarray, states: np.ndarray) -> Pairs:
    """Return the pairs of one trajectory, given its start (1, d) and the states after it (n, d)."""
    X = np.concatenate([start, states[:-1]])
    return X, states


@functools.cache
def _compiled(walk: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """Compile on first use: importing gpukoop must not import Numba. 0.6 s once a process; no cache on disk."""
    import numba

    return numba.njit(walk)
