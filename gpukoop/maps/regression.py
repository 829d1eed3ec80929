r"""Regression of a linear map on moved targets: K gradient steps (Landweber) or their limit, ridge.

============ =====================================================
Phi (b, q)   features of b latent points
R (b, d)     what is missing, targets minus the map's values
K            persistence, gradient steps on frozen targets
============ =====================================================

Loss |R - Phi W|^2 / (2 b). K steps of length lr act as a filter on the eigenvalues s of the Gram matrix Phi^T Phi / b:
(1 - (1 - lr s)^K) / s. One step is the generator step of a W2-GAN; infinitely many are the least squares fit.

References
----------
.. [1] Y.-J. Huang, Z. Malik, arXiv 2406.13619 (persistent training).
.. [2] H. Engl, M. Hanke, A. Neubauer, Regularization of Inverse Problems, 1996, section 6.1 (Landweber).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpukoop.arrays import Array, namespace

# Steps of one regression.
MOST_STEPS = 10**9
POWER_ITER = 30
# Power iterations approach the largest eigenvalue from below; the step stays below 2 / s_max all the same.
SAFETY = 1.05


def largest_eigenvalue(Phi: Array) -> float:
    """Return the largest eigenvalue of Phi^T Phi / b, from power iterations started at the row sums."""
    xp = namespace(Phi)
    v = Phi.T @ (Phi @ xp.ones(Phi.shape[1], dtype=Phi.dtype))
    size = 0.0
    for _ in range(POWER_ITER):
        norm = float(xp.linalg.norm(v))
        if norm == 0:
            return 1.0
        v = v / norm
        w = Phi.T @ (Phi @ v) / len(Phi)
        size, v = float(v @ w), w
    return size


def landweber(Phi: Array, R: Array, n_steps: int, learning_rate: float | None = None) -> Array:
    r"""Return the change of W after ``n_steps`` gradient steps, (q, d).

    Parameters
    ----------
    Phi, R : arrays of shape (b, q) and (b, d)
    n_steps : int
        K.
    learning_rate : float, optional
        lr < 2 / s_max; 1 / s_max by default.

    Raises
    ------
    ValueError
        If the learning rate makes the steps diverge.
    """
    b = len(Phi)
    top = SAFETY * largest_eigenvalue(Phi)
    if not top < math.inf:
        raise ValueError(
            "the features are so large that squares leave the range of float64: rescale the points"
        )
    if learning_rate is None:
        learning_rate = 1.0 / top
    elif learning_rate * top > 2 * SAFETY:
        raise ValueError(
            f"learning_rate is {learning_rate:g}, the steps diverge above {2 * SAFETY / top:.3g} for these features: use "
            "a smaller one, or None"
        )
    W = namespace(Phi).zeros((Phi.shape[1], R.shape[1]), dtype=Phi.dtype)
    for _ in range(n_steps):
        W = W + (learning_rate / b) * (Phi.T @ (R - Phi @ W))
    return W


def ridge(Phi: Array, R: Array, reg: float) -> Array:
    r"""Return :math:`\Phi^\top (\Phi \Phi^\top + b\, \mathrm{reg}\, I)^{-1} R`, (q, d), by the smaller of both systems."""
    xp = namespace(Phi)
    b, q = Phi.shape
    eps = float(np.finfo(Phi.dtype).eps)
    P = Phi.astype(float)
    rhs = R.astype(float)
    small = P.T @ P if q <= b else P @ P.T
    shift = b * reg + 10 * eps * float(xp.trace(small)) / len(small)
    system = small + shift * xp.eye(len(small))
    W = xp.linalg.solve(system, P.T @ rhs) if q <= b else P.T @ xp.linalg.solve(system, rhs)
    return W.astype(Phi.dtype)


def check_persistence(persistence: Any) -> float:
    """Return the persistence, an int >= 1 or infinity."""
    whole = isinstance(persistence, int | np.integer) and not isinstance(persistence, bool)
    whole |= isinstance(persistence, float) and persistence.is_integer()
    if isinstance(persistence, float) and persistence == math.inf:
        return persistence
    if whole and persistence > MOST_STEPS:
        raise ValueError(
            f"persistence is {persistence:.3g} gradient steps, more than anybody waits for: pass float('inf') for their limit, the "
            "ridge regression"
        )
    if whole and persistence >= 1:
        return int(persistence)
    raise ValueError(
        f"persistence must be an int >= 1 or float('inf') for the ridge limit, got {persistence!r}: it counts "
        "gradient steps on frozen targets"
    )
