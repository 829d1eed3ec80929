"""Targets in the plane: independent draws, densities and moments, each shape beside its own answer.

``noise`` is the standard deviation of the Gaussian that blurs a shape, per coordinate. Results are float64.
"""

from __future__ import annotations

import math
from typing import Any, Literal, overload

import numpy as np
from scipy import special

from gpukoop.checks import check_length
from gpukoop.draws import RandomState, check_count, check_flag, check_positive, random_generator

Labelled = tuple[np.ndarray, np.ndarray]

MODES = 8
CELLS = (
    np.array([(i, j) for i in range(4) for j in range(4) if (i + j) % 2 == 0], dtype=float) - 1.5
)


# --- eight Gaussians


@overload
def eight_gaussians(
    n_samples: int,
    random_state: RandomState = None,
    *,
    radius: float = ...,
    noise: float = ...,
    return_labels: Literal[False] = False,
) -> np.ndarray: ...
@overload
def eight_gaussians(
    n_samples: int,
    random_state: RandomState = None,
    *,
    radius: float = ...,
    noise: float = ...,
    return_labels: Literal[True],
) -> Labelled: ...
def eight_gaussians(
    n_samples: int,
    random_state: RandomState = None,
    *,
    radius: float = 1.0,
    noise: float = 0.1,
    return_labels: bool = False,
) -> np.ndarray | Labelled:
    """Return draws of eight equal Gaussians on a circle.

    Parameters
    ----------
    n_samples : int
        Number of points.
    random_state : int, Generator, RandomState or None
        Seed or stream; a stream is spawned and left as it was.
    radius : float, default=1.0
        Radius of the circle of centres.
    noise : float, default=0.1
        Standard deviation of each Gaussian.
    return_labels : bool, default=False
        Return (X, labels), the labels being integers from 0, counter-clockwise.

    Returns
    -------
    float64 array of shape (n_samples, 2), and with ``return_labels`` an integer array (n_samples,)

    References
    ----------
    .. [1] Huang, Malik, "GANs as gradient flows that converge", arXiv 2406.13619: the test bed of W2-FE.
    """
    n = check_count(n_samples)
    centres = gaussian_centres(check_length(radius, "radius"))
    rng = random_generator(random_state)
    labels = rng.integers(MODES, size=n)
    X = _blurred(centres[labels], noise, rng)
    return (X, labels) if check_flag(return_labels, "return_labels") else X


def gaussian_centres(radius: float = 1.0) -> np.ndarray:
    """Return the eight centres on a circle, (8, 2)."""
    angle = np.arange(8) * (math.pi / 4)
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def exact_eight_gaussians(radius: float = 1.0, noise: float = 0.1) -> dict[str, Any]:
    """Return mean, covariance and centres."""
    covariance = (radius**2 / 2 + noise**2) * np.eye(2)
    return {"mean": np.zeros(2), "covariance": covariance, "centres": gaussian_centres(radius)}


def eight_gaussians_density(
    Z: np.ndarray, *, radius: float = 1.0, noise: float = 0.1
) -> np.ndarray:
    """Return the density, shape (n,)."""
    return _mixture_density(Z, gaussian_centres(radius), np.full(8, 1 / 8), noise)


# --- three rings


def three_rings(
    n_samples: int,
    random_state: RandomState = None,
    *,
    radius: float = 0.3,
    gap: float = 0.5,
    noise: float = 0.0,
) -> np.ndarray:
    """Return draws of three equal circles in a row.

    Parameters
    ----------
    n_samples, random_state
        As in :func:`eight_gaussians`.
    radius, gap : float
        Radius of a ring; free space between neighbouring rings.
    noise : float, default=0.0
        Standard deviation of a Gaussian blur; 0 leaves the points on the circles.

    Returns
    -------
    float64 array of shape (n_samples, 2)

    References
    ----------
    .. [1] Glaser, Arbel, Gretton, "KALE flow", 2021: the test bed of this name.
    """
    n = check_count(n_samples)
    radius, gap = check_length(radius, "radius"), check_length(gap, "gap", zero=True)
    rng = random_generator(random_state)
    which, angle = rng.integers(3, size=n), rng.uniform(0, 2 * math.pi, n)
    ring = radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return _blurred(ring_centres(radius, gap)[which] + ring, noise, rng)


def ring_centres(radius: float = 0.3, gap: float = 0.5) -> np.ndarray:
    """Return the centres of three rings in a row, (3, 2); neighbours are ``gap`` apart."""
    return np.stack([(2 * radius + gap) * np.array([-1.0, 0.0, 1.0]), np.zeros(3)], axis=1)


def exact_three_rings(radius: float = 0.3, gap: float = 0.5, noise: float = 0.0) -> dict[str, Any]:
    """Return mean, covariance and centres."""
    spacing = 2 * radius + gap
    own = radius**2 / 2 + noise**2
    covariance = np.diag([own + 2 * spacing**2 / 3, own])
    return {"mean": np.zeros(2), "covariance": covariance, "centres": ring_centres(radius, gap)}


def three_rings_density(
    Z: np.ndarray, *, radius: float = 0.3, gap: float = 0.5, noise: float = 0.0
) -> np.ndarray:
    """Return the density of the blurred rings, shape (n,)."""
    if not noise > 0:
        raise ValueError(f"noise is {noise}: the rings have a density only with noise > 0")
    r = np.linalg.norm(Z[:, None, :] - ring_centres(radius, gap), axis=2)  # (n, 3)
    # a circle blurred by a Gaussian; i0e carries the exponential that would overflow in i0
    blurred = np.exp(-((r - radius) ** 2) / (2 * noise**2)) * special.i0e(r * radius / noise**2)
    return blurred.mean(axis=1) / (2 * math.pi * noise**2)


# --- moons


@overload
def moons(
    n_samples: int,
    random_state: RandomState = None,
    *,
    noise: float = ...,
    share: float = ...,
    return_labels: Literal[False] = False,
) -> np.ndarray: ...
@overload
def moons(
    n_samples: int,
    random_state: RandomState = None,
    *,
    noise: float = ...,
    share: float = ...,
    return_labels: Literal[True],
) -> Labelled: ...
def moons(
    n_samples: int,
    random_state: RandomState = None,
    *,
    noise: float = 0.05,
    share: float = 0.5,
    return_labels: bool = False,
) -> np.ndarray | Labelled:
    """Return draws of two interleaving half circles, those of scikit-learn's ``make_moons``.

    Differs from ``make_moons``: angles are independent draws, not an equispaced grid.

    Parameters
    ----------
    n_samples, random_state, noise, return_labels
        As in :func:`eight_gaussians`; label 0 is the upper moon.
    share : float, default=0.5
        Mass of the upper moon, in (0, 1).

    Returns
    -------
    float64 array of shape (n_samples, 2), and with ``return_labels`` an integer array (n_samples,)
    """
    n = check_count(n_samples)
    rng = random_generator(random_state)
    share = _check_share(share)
    # equal moons keep the draws that a seed has always given
    labels = rng.integers(2, size=n) if share == 0.5 else (rng.random(n) >= share).astype(int)
    angle = rng.uniform(0, math.pi, n)
    upper, lower = moon_arcs(angle)
    X = _blurred(np.where(labels[:, None] == 0, upper, lower), noise, rng)
    return (X, labels) if check_flag(return_labels, "return_labels") else X


def moon_arcs(t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the two half circles at angles t, each (n, 2), as in scikit-learn's ``make_moons``."""
    upper = np.stack([np.cos(t), np.sin(t)], axis=1)
    return upper, np.array([1.0, 0.5]) - upper


def _check_share(share: float) -> float:
    if not 0 < check_positive(share, "share") < 1:
        raise ValueError(f"share is {share}: pass the mass of the upper moon, between 0 and 1")
    return float(share)


def _moon_nodes(share: float) -> tuple[np.ndarray, np.ndarray]:
    t, w = np.polynomial.legendre.leggauss(300)
    masses = _check_share(share), 1 - share
    return np.vstack(moon_arcs(math.pi * (t + 1) / 2)), np.concatenate([m * w / 2 for m in masses])


def exact_moons(noise: float = 0.05, share: float = 0.5) -> dict[str, Any]:
    """Return mean and covariance."""
    nodes, weights = _moon_nodes(share)
    mean = weights @ nodes
    covariance = (nodes.T * weights) @ nodes - np.outer(mean, mean) + noise**2 * np.eye(2)
    return {"mean": mean, "covariance": covariance}


def moons_density(Z: np.ndarray, *, noise: float = 0.05, share: float = 0.5) -> np.ndarray:
    """Return the density of the blurred arcs, by quadrature over the arcs, shape (n,)."""
    return _mixture_density(Z, *_moon_nodes(share), noise)


# --- checkerboard


def checkerboard(n_samples: int, random_state: RandomState = None) -> np.ndarray:
    """Return uniform draws of the eight dark cells of a 4 x 4 board on [-2, 2]^2.

    A cell [i, i+1) x [j, j+1) is dark if i + j is even; ``exact("checkerboard")["centres"]`` lists them.

    Parameters
    ----------
    n_samples, random_state
        As in :func:`eight_gaussians`.

    Returns
    -------
    float64 array of shape (n_samples, 2)
    """
    n = check_count(n_samples)
    rng = random_generator(random_state)
    return CELLS[rng.integers(len(CELLS), size=n)] + rng.uniform(-0.5, 0.5, (n, 2))


def exact_checkerboard() -> dict[str, Any]:
    """Return mean, covariance and the centres of the dark cells."""
    covariance = np.cov(CELLS.T, bias=True) + np.eye(2) / 12
    return {"mean": np.zeros(2), "covariance": covariance, "centres": CELLS.copy()}


def checkerboard_density(Z: np.ndarray) -> np.ndarray:
    """Return 1/8 in the dark cells and 0 elsewhere, shape (n,)."""
    cell = np.floor(Z).astype(int)
    inside = np.all(np.abs(Z) < 2, axis=1)
    return np.where(inside & (cell.sum(axis=1) % 2 == 0), 1 / len(CELLS), 0.0)


def _blurred(X: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    return X + check_length(noise, "noise", zero=True) * rng.standard_normal(X.shape)


def _mixture_density(
    Z: np.ndarray, nodes: np.ndarray, weights: np.ndarray, noise: float
) -> np.ndarray:
    if not noise > 0:
        raise ValueError(f"noise is {noise}: the law has a density only with noise > 0")
    total = np.zeros(len(Z))
    for node, weight in zip(nodes, weights, strict=True):
        total += weight * np.exp(-np.sum((Z - node) ** 2, axis=1) / (2 * noise**2))
    return total / (2 * math.pi * noise**2)
