"""Exact transport plans between small clouds: an assignment, the network simplex, or a linear programme.

Equal sizes without weights are an assignment (SciPy). Everything else is POT's network simplex where POT is installed
(``pip install gpukoop[ot]``), some hundred times faster than the linear programme (HiGHS) that answers without it.
"""

from __future__ import annotations

import importlib.util
import warnings

import numpy as np

# Points of an assignment: 10^4 take 800 MB and some minutes.
LARGEST_ASSIGNMENT = 10_000
# Entries of a plan: what the network simplex solves in about a minute, and what HiGHS does.
LARGEST_SIMPLEX = 16_000_000
LARGEST_PROGRAMME = 250_000
INSTALL = "pip install gpukoop[ot]"


def has_simplex() -> bool:
    """Return whether POT is installed."""
    return importlib.util.find_spec("ot") is not None


def largest_plan() -> int:
    """Return how many entries a plan between unequal or weighted clouds may have on this machine."""
    return LARGEST_SIMPLEX if has_simplex() else LARGEST_PROGRAMME


def assignment(cost: np.ndarray) -> np.ndarray:
    """Return the column of each row in the cheapest permutation, (n,)."""
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(cost)[1]


def exact_plan(cost: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the cheapest plan (n, m) with row sums a and column sums b, scaled to sum 1.

    Raises
    ------
    ValueError
        If the plan is too large for what is installed, or the solver does not end.
    """
    if cost.size > largest_plan():
        n, m = cost.shape
        remedy = "pass subsamples" if has_simplex() else f"install POT ({INSTALL}), or subsample"
        raise ValueError(
            f"an exact plan of {n} x {m} points has {cost.size} entries, the limit here is {largest_plan()}: {remedy}"
        )
    a, b = a / a.sum(), b / b.sum()
    return _simplex(cost, a, b) if has_simplex() else _programme(cost, a, b)


def _simplex(cost: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    import ot

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it says comes back in the log too
        # Iterations are pivots; the default ends too early from some 2,000 points on.
        plan, log = ot.emd(a, b, cost, numItermax=100 * cost.size, log=True)
    if log["warning"] is not None:
        raise ValueError(f"the exact plan was not found: {log['warning']}; use coupling='sinkhorn'")
    return plan


def _programme(cost: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    from scipy.optimize import linprog
    from scipy.sparse import eye, kron, vstack

    n, m = cost.shape
    rows = kron(eye(n), np.ones((1, m)))
    columns = kron(np.ones((1, n)), eye(m))
    # One of the n + m conditions follows from the others; rounding must not make it contradict them.
    conditions = vstack([rows, columns]).tocsr()[:-1]
    marginals = np.concatenate([a, b])[:-1]
    found = linprog(cost.ravel(), A_eq=conditions, b_eq=marginals, bounds=(0, None), method="highs")
    if found.x is None:
        raise ValueError(f"the exact plan was not found: {found.message}; use coupling='sinkhorn'")
    return found.x.reshape(n, m)
