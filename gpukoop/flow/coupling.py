r"""Exact couplings of two clouds for the cost |x - y|^2 / 2: sorting on the line, or a plan.

Each returns the barycentric map T z_i = sum_j P_ij x_j / a_i, (n, d), and W2^2 / 2. The cost matrix of an assignment
is the one n x m array of this room; sizes that would make it large are refused.
"""

from __future__ import annotations

import math

import numpy as np

from gpukoop.arrays import Array, like, to_host
from gpukoop.flow.descent import uniform
from gpukoop.flow.plans import (
    INSTALL,
    LARGEST_ASSIGNMENT,
    assignment,
    exact_plan,
    has_simplex,
    largest_plan,
)
from gpukoop.flow.sorting import transport_row

# Clouds of unequal size are repeated up to their least common multiple when that is at most this.
LARGEST_REPEATED = 4_000


def exact_map(Z: Array, X: Array, weights: Array | None = None) -> tuple[Array, float]:
    """Return the barycentric map of the optimal plan, (n, d), and W2^2 / 2.

    Parameters
    ----------
    Z : array of shape (n, d)
        Particles, weights 1/n.
    X : array of shape (m, d)
        Samples.
    weights : array of shape (m,), optional
        Of the samples, sum 1.

    Raises
    ------
    ValueError
        If the problem is too large to be solved exactly; the message names what to use instead.
    """
    if X.shape[1] == 1:
        gap, energy = transport_row(Z[:, 0], X[:, 0], weights)
        return Z + gap[:, None], float(energy)
    n, m = len(Z), len(X)
    z, x = to_host(Z).astype(float), to_host(X).astype(float)
    # Repeated up to equal size, a plan between uniform clouds is an assignment, for which there are faster solvers.
    size = math.lcm(n, m)
    if weights is None and n == m and n <= LARGEST_ASSIGNMENT:
        target = x[_assignment(z, x)]
    elif weights is None and size <= LARGEST_REPEATED:
        repeated = np.repeat(x, size // m, axis=0)
        pairing = _assignment(np.repeat(z, size // n, axis=0), repeated)
        # The barycentre of the copies' partners: particles move as wholes.
        target = repeated[pairing].reshape(n, size // n, -1).mean(axis=1)
    elif n * m <= largest_plan():
        b = to_host(uniform(X) if weights is None else weights).astype(float)
        target = n * (exact_plan(_cost(z, x), np.full(n, 1 / n), b) @ x)
    else:
        kind = "weighted samples" if weights is not None else "samples"
        better = "" if has_simplex() else f", or install POT ({INSTALL})"
        raise ValueError(
            f"an exact coupling of {n} particles and {m} {kind} is too large: use coupling='sinkhorn' or "
            f"'sliced', or batch_size, or equal sizes up to {LARGEST_ASSIGNMENT} without weights{better}"
        )
    return like(target, Z), plan_energy(z, target, x, weights)


def plan_energy(z: np.ndarray, target: np.ndarray, x: np.ndarray, weights: Array | None) -> float:
    """Return W2^2 / 2 from the barycentric map: its own cost and the spread of the plan around it."""
    b = uniform(x) if weights is None else to_host(weights).astype(float)
    centre = b @ x
    spread = b @ ((x - centre) ** 2).sum(axis=1) - ((target - centre) ** 2).sum(axis=1).mean()
    own = ((z - target) ** 2).sum(axis=1).mean()
    # For a permutation the spread is zero up to rounding, and must not spoil the digits of a small energy.
    rounding = 1e-13 * float(b @ ((x - centre) ** 2).sum(axis=1))
    return float(0.5 * (own + (spread if spread > rounding else 0.0)))


def _cost(z: np.ndarray, x: np.ndarray) -> np.ndarray:
    from scipy.spatial.distance import cdist

    return cdist(z, x, "sqeuclidean")


def _assignment(z: np.ndarray, x: np.ndarray) -> np.ndarray:
    return assignment(_cost(z, x))


def gaussian_map(Z: Array, mean: np.ndarray, covariance: np.ndarray) -> tuple[Array, float]:
    r"""Return the optimal map of the normal law with the moments of Z to N(mean, covariance), and W2^2 / 2.

    .. math:: T z = m' + A (z - m), \qquad A = S^{-1/2} (S^{1/2} S' S^{1/2})^{1/2} S^{-1/2}

    Along it a step z + h (T z - z) multiplies the Bures distance by exactly 1 - h. Cost: n d^2 + d^3.

    References
    ----------
    .. [1] D. Dowson, B. Landau, The Frechet distance between multivariate normal distributions, 1982.
    """
    z = to_host(Z).astype(float)
    own = z.mean(axis=0)
    centred = z - own
    values, vectors = np.linalg.eigh(centred.T @ centred / len(z))
    # Particles in a plane have no inverse root across it; a floor leaves them in it.
    values = np.maximum(values, 1e-14 * values[-1])
    root = (vectors * np.sqrt(values)) @ vectors.T
    inverse = (vectors / np.sqrt(values)) @ vectors.T
    inner, axes = np.linalg.eigh(root @ covariance @ root)
    A = inverse @ (axes * np.sqrt(np.maximum(inner, 0.0))) @ axes.T @ inverse
    target = mean + centred @ A
    return like(target, Z), float(0.5 * ((target - z) ** 2).sum(axis=1).mean())
