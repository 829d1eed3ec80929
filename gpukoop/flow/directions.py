r"""Directions for slicing, drawn on the host: tight frames, and the constants that undo the slicing.

References
----------
.. [1] J. Hertrich, T. Jahn, M. Quellmalz, Fast Summation of Radial Kernels via QMC Slicing, arXiv 2410.01316: why
   directions that repel each other have the smaller error.
.. [2] D. E. Tyler, A distribution-free M-estimator of multivariate scatter, Ann. Statist. 15, 1987: the fixed point.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from gpukoop.kernels.fourier.sliced.directions import rotation, spiral


def frames(rng: np.random.Generator, n_projections: int, d: int) -> np.ndarray:
    r"""Return unit directions (P, d): each is uniform, and together they are a tight frame where P allows.

    Tight means :math:`\frac1P \sum_p \theta_p \theta_p^T = I / d`: a mean over the directions is exact for linear
    velocities. Errors of the sliced energy velocity beside the sum over pairs, relative, root mean square (measured):

    ===== =========================== ==================================================================
    d     directions                  error
    ===== =========================== ==================================================================
    1     one, which is exact         0
    2     equal angles                at most .9 / P, clouds much alike .3 / P
    3     a spiral made tight, P >= 6 clouds .5 / P to 2.3 / P, two distant points 1.1 P^(-3/4)
    other orthonormal frames, last    .53 (d / P)^(1/2); half of what independent directions have, for
          one cut                     which a multiple of d is best
    ===== =========================== ==================================================================

    Equal angles and the spiral are the same at every call but for one random rotation.
    """
    if d == 1:
        return np.ones((1, 1))
    if d == 2:
        angle = 2 * np.pi * rng.random() + np.pi * np.arange(n_projections) / n_projections
        return np.stack([np.cos(angle), np.sin(angle)], axis=1)
    if d == 3 and n_projections >= 2 * d:
        return tight_spiral(n_projections) @ rotation(d, rng).T
    left, parts = n_projections, []
    while left > 0:
        size = min(d, left)
        Q, R = np.linalg.qr(rng.standard_normal((d, size)))
        # The signs make the frame uniform (Haar), which a bare QR factor is not.
        parts.append((Q * np.where(np.diag(R) < 0, -1.0, 1.0)).T)
        left -= size
    return np.concatenate(parts)


@lru_cache(maxsize=8)
def tight_spiral(size: int) -> np.ndarray:
    """Return Fibonacci's spiral on the half sphere, (P, 3), moved a little so that it is a tight frame.

    Whitening spoils the lengths and normalising the second moments, so they take turns; to the power -5/6 instead of -1/2
    whitening undoes what normalising will do to nearly uniform directions. 6 turns for P = 100, 25 for P = 6.
    """
    theta = spiral(size)
    for _ in range(50):
        # A tight frame has theta^T theta = P / 3: then slicing is exact for quadratic energies, whatever the number of
        # directions.
        weight, axes = np.linalg.eigh(3 / size * theta.T @ theta)
        if np.abs(weight - 1).max() < 8 * np.finfo(float).eps:
            break
        # -1/2 would make it tight but for the lengths, which the next line changes back; -5/6 allows for that in the first
        # order.
        theta = theta @ (axes * weight ** (-5 / 6)) @ axes.T
        theta /= np.linalg.norm(theta, axis=1, keepdims=True)
    theta.flags.writeable = False
    return theta


def riesz_constant(d: int, r: float = 1.0) -> float:
    r"""Return c with :math:`|x|^r = c\, E |\langle\theta, x\rangle|^r` for uniform unit directions.

    .. math:: c_{d,r} = \frac{\sqrt\pi\, \Gamma((d + r)/2)}{\Gamma(d/2)\, \Gamma((r + 1)/2)}

    References
    ----------
    .. [1] J. Hertrich et al., arXiv 2305.11463, theorem 1.
    """
    log = math.lgamma((d + r) / 2) - math.lgamma(d / 2) - math.lgamma((r + 1) / 2)
    return math.sqrt(math.pi) * math.exp(log)
