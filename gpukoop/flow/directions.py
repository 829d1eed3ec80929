r"""Directions for slicing, drawn on the host: orthonormal frames, and the constants that undo the slicing."""

from __future__ import annotations

import math

import numpy as np


def frames(rng: np.random.Generator, n_projections: int, d: int) -> np.ndarray:
    """Return unit directions (P, d): orthonormal frames of d, the last one cut; each direction is uniform.

    Orthogonal directions halve the error of a sliced velocity against independent ones. In the plane the frames are
    turned by equal angles, which is a quadrature rule: the error falls like 1 / P and not like its root. On the line one
    direction is exact, and one is returned.
    """
    if d == 1:
        return np.ones((1, 1))
    if d == 2:
        angle = 2 * np.pi * rng.random() + np.pi * np.arange(n_projections) / n_projections
        return np.stack([np.cos(angle), np.sin(angle)], axis=1)
    left, parts = n_projections, []
    while left > 0:
        size = min(d, left)
        Q, R = np.linalg.qr(rng.standard_normal((d, size)))
        # The signs make the frame uniform (Haar), which a bare QR factor is not.
        parts.append((Q * np.where(np.diag(R) < 0, -1.0, 1.0)).T)
        left -= size
    return np.concatenate(parts)


def riesz_constant(d: int, r: float = 1.0) -> float:
    r"""Return c with :math:`|x|^r = c\, E |\langle\theta, x\rangle|^r` for uniform unit directions.

    .. math:: c_{d,r} = \frac{\sqrt\pi\, \Gamma((d + r)/2)}{\Gamma(d/2)\, \Gamma((r + 1)/2)}

    References
    ----------
    .. [1] J. Hertrich et al., arXiv 2305.11463, theorem 1.
    """
    log = math.lgamma((d + r) / 2) - math.lgamma(d / 2) - math.lgamma((r + 1) / 2)
    return math.sqrt(math.pi) * math.exp(log)
