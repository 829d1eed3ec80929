r"""PCCA+: memberships of metastable states as combinations of the slow eigenfunctions, the crispest that stay probabilities.

.. math:: \chi = [1, \varphi_1, ..., \varphi_{n-1}] A, \quad \chi_j \ge 0, \quad \sum_j \chi_j = 1

In the space of the eigenfunctions metastable states are the corners of a simplex. The corners found first are improved by
maximising the crispness over all feasible A, and then moved from the outermost frames to the middle of each state's: noise
of the eigenfunctions would otherwise decide how far out a corner lies, and with it how much a state weighs (two-state chain of
24,000 frames in short runs: weights off by up to .08 at the outermost frames, by up to .02 at the medians).
"""

from __future__ import annotations

import numpy as np
from scipy import optimize

from gpukoop.checks import real_array
from gpukoop.draws import check_count

# Frames that a feasible membership may leave outside [0, 1], where they are cut off: a few extreme frames must not decide
# how large a state is. As many as a mode must be carried by (gpukoop.spectrum.modes).
OUTSIDE = 30
# Frames looked at: the corners of a simplex need no more.
ROWS = 10_000
# Rounds of medians: states change in the first one or two.
ROUNDS = 10
# Accuracy of the crispness, a number between 1 and n.
ACCURACY = 1e-6


def pcca(phi: np.ndarray, n_states: int, weight: np.ndarray | None = None) -> np.ndarray:
    r"""Return the matrix A of the memberships [1, phi] A.

    Parameters
    ----------
    phi : ndarray of shape (m, n_states - 1)
        Slow eigenfunctions at frames, of mean 0 and variance 1, uncorrelated.
    n_states : int
        n, at least 2.
    weight : ndarray of shape (m,), optional
        Unused by the optimum, whose crispness is known from A alone; frames of weight 0 are left out.

    Returns
    -------
    ndarray of shape (n, n)
        The first row is the weights of the states: eigenfunctions have mean 0.

    Notes
    -----
    Maximises :math:`\sum_j \langle\chi_j, \chi_j\rangle / \langle\chi_j, 1\rangle = \sum_{kj} A_{kj}^2 / A_{0j}` by
    Nelder-Mead over the (n - 1)^2 free entries, from the inner simplex, so far as published; at most 30 frames, or a
    fiftieth of few, may have memberships outside [0, 1] on the way. Then each corner becomes the median of the frames whose
    largest membership is its own: half of a state's frames lie beyond its corner, where memberships are cut off at 1. Own code
    rather than deeptime's: that takes a transition matrix between discrete states, we have eigenfunctions of frames.

    References
    ----------
    .. [1] S. Roeblitz, M. Weber, Fuzzy spectral clustering by PCCA+: application to Markov state models and data
       classification, Advances in Data Analysis and Classification 7, 2013.
    .. [2] M. Weber, T. Galliat, Characterization of transition states in conformational dynamics using fuzzy sets, ZIB report
       02-12, 2002: the inner simplex.
    """
    n_states = check_count(n_states, "n_states", least=2)
    phi = real_array(phi, "phi", (None, n_states - 1))
    if weight is not None:
        phi = phi[real_array(weight, "weight", (len(phi),)) > 0]
    if len(phi) < n_states:
        raise ValueError(
            f"phi has {len(phi)} frames of positive weight: {n_states} states need as many at least"
        )
    step = -(-len(phi) // ROWS)
    X = np.column_stack([np.ones(len(phi[::step])), phi[::step]])
    outside = int(min(OUTSIDE / step, len(X) / 50))
    try:
        A = np.linalg.inv(X[corners(X[:, 1:], outside)])
    except np.linalg.LinAlgError:
        raise ValueError(
            f"phi has no {n_states} corners: its eigenfunctions do not tell so many states apart; pass a smaller n_states"
        ) from None
    A = feasible(A[1:, 1:], X, outside)
    if n_states > 2:  # for two the one free number only scales: every feasible A is the same
        A = _crispest(A, X, outside)
    return _centred(A, X)


def _crispest(A: np.ndarray, X: np.ndarray, outside: int) -> np.ndarray:
    """Return the feasible A of largest crispness near a feasible one."""
    free = A[1:, 1:]

    def dullness(entries: np.ndarray) -> float:
        B = feasible(entries.reshape(free.shape), X, outside)
        return -float((B**2 / B[0]).sum())

    found = optimize.minimize(
        dullness,
        free.ravel(),
        method="Nelder-Mead",
        options={"xatol": ACCURACY, "fatol": ACCURACY, "maxiter": 400 * free.size},
    )
    best = found.x.reshape(free.shape) if found.fun < dullness(free.ravel()) else free
    return feasible(best, X, outside)


def _centred(A: np.ndarray, X: np.ndarray) -> np.ndarray:
    """Return the A whose corners are the medians of the frames of each state."""
    state = np.full(len(X), -1)
    for _ in range(ROUNDS):
        before, state = state, (X @ A).argmax(axis=1)
        if (state == before).all():
            break
        middle = [X[state == j] for j in range(len(A))]
        if min(len(rows) for rows in middle) == 0:
            break
        A = np.linalg.inv([np.median(rows, axis=0) for rows in middle])
    return A


def corners(phi: np.ndarray, outside: int) -> list[int]:
    """Return the rows that span the largest simplex, one after another, each the ``outside``-th farthest."""
    chosen: list[int] = []
    rest = phi.copy()
    for i in range(phi.shape[1] + 1):
        size = (rest**2).sum(axis=1)
        farthest = int(np.argpartition(size, len(size) - 1 - outside)[len(size) - 1 - outside])
        chosen.append(farthest)
        if i == 0:
            rest = rest - rest[farthest]
        else:
            direction = rest[farthest] / np.sqrt(size[farthest])
            rest = rest - np.outer(rest @ direction, direction)
    return chosen


def feasible(free: np.ndarray, X: np.ndarray, outside: int) -> np.ndarray:
    """Return the feasible A, (n, n), whose lower right entries are proportional to ``free``."""
    n = len(free) + 1
    A = np.empty((n, n))
    A[1:, 1:] = free
    A[1:, 0] = -free.sum(axis=1)
    values = X[:, 1:] @ A[1:]
    A[0] = -np.partition(values, outside, axis=0)[outside]
    A[0] = np.maximum(A[0], np.finfo(float).eps)
    return A / A[0].sum()
