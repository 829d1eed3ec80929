r"""Laws without the symmetry that test beds tend to have: bent, of unequal masses, heavy-tailed, with one slow coordinate.

A method that was tuned on equal modes around the origin meets here what real data do to it. Each law stands beside
its exact answers; results are float64.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpukoop.checks import check_length
from gpukoop.datasets.diffusions import (
    double_well,
    exact_wells,
    ornstein_uhlenbeck,
    well_density,
    well_spectrum,
)
from gpukoop.datasets.trajectories import Pairs
from gpukoop.draws import RandomState, check_count, random_generator

# --- banana


def banana(n_samples: int, random_state: RandomState = None, *, noise: float = 0.3) -> np.ndarray:
    """Return draws of a parabola: x standard normal, y = x^2 + noise times a standard normal.

    Parameters
    ----------
    n_samples : int
    random_state : int, Generator, RandomState or None
        Seed or stream; a stream is spawned and left as it was.
    noise : float, default=0.3
        Standard deviation around the parabola.

    Returns
    -------
    float64 array of shape (n_samples, 2)
    """
    n, noise = check_count(n_samples), check_length(noise, "noise", zero=True)
    x, e = random_generator(random_state).standard_normal((2, n))
    return np.stack([x, x**2 + noise * e], axis=1)


def exact_banana(noise: float = 0.3) -> dict[str, Any]:
    """Return mean and covariance; x and y are uncorrelated, and y = chi-squared(1) + noise."""
    return {"mean": np.array([0.0, 1.0]), "covariance": np.diag([1.0, 2 + noise**2])}


def banana_density(Z: np.ndarray, *, noise: float = 0.3) -> np.ndarray:
    """Return the density, shape (n,)."""
    x, y = Z.T
    exponent = x**2 + ((y - x**2) / check_length(noise, "noise")) ** 2
    return np.exp(-exponent / 2) / (2 * math.pi * noise)


# --- unequal mixture: masses, centres, standard deviations and lag-one correlations of three Gaussians in R^5

MASSES = np.array([0.7, 0.2, 0.1])
CENTRES = np.array([[0, 0, 0, 0, 0], [4, 4, 0, 0, -2], [-3, 3, 4, 0, 2]], dtype=float)
WIDTHS, CORRELATIONS = np.array([1.0, 0.7, 0.5]), np.array([0.8, -0.5, 0.3])


def _mixture_covariances() -> np.ndarray:
    gap = np.abs(np.subtract.outer(np.arange(5), np.arange(5)))
    return np.stack([s**2 * rho**gap for s, rho in zip(WIDTHS, CORRELATIONS, strict=True)])


def unequal_mixture(n_samples: int, random_state: RandomState = None) -> np.ndarray:
    """Return draws of three correlated Gaussians in five dimensions with masses 0.7, 0.2 and 0.1.

    Parameters
    ----------
    n_samples : int
        Number of draws.
    random_state : None, int, Generator or RandomState
        Seed.

    Returns
    -------
    float64 array of shape (n_samples, 5)
    """
    n, rng = check_count(n_samples), random_generator(random_state)
    which = rng.choice(3, size=n, p=MASSES)
    roots = np.linalg.cholesky(_mixture_covariances())
    return CENTRES[which] + np.einsum("nij,nj->ni", roots[which], rng.standard_normal((n, 5)))


def exact_unequal_mixture() -> dict[str, Any]:
    """Return mean, covariance, centres and the ``masses`` around them."""
    mean = MASSES @ CENTRES
    own = np.einsum("k,kij->ij", MASSES, _mixture_covariances())
    covariance = own + (CENTRES.T * MASSES) @ CENTRES - np.outer(mean, mean)
    return {
        "mean": mean,
        "covariance": covariance,
        "centres": CENTRES.copy(),
        "masses": MASSES.copy(),
    }


def unequal_mixture_density(Z: np.ndarray) -> np.ndarray:
    """Return the density, shape (n,)."""
    total = np.zeros(len(Z))
    for mass, centre, S in zip(MASSES, CENTRES, _mixture_covariances(), strict=True):
        gap = Z - centre
        exponent = np.einsum("ni,ni->n", gap @ np.linalg.inv(S), gap)
        total += mass * np.exp(-exponent / 2) / math.sqrt(np.linalg.det(2 * math.pi * S))
    return total


# --- Student's t


LEAST_DEGREES = 0.1


def student_t(
    n_samples: int,
    random_state: RandomState = None,
    *,
    degrees: float = 3.0,
    n_features: int = 2,
) -> np.ndarray:
    r"""Return draws of the spherical Student law: a standard normal vector over an independent root of chi2 / degrees.

    .. math:: P(|x| > r) = (1 + r^2/\nu)^{-\nu/2} \quad (d = 2)

    Parameters
    ----------
    n_samples, random_state
        As in :func:`banana`.
    degrees : float, default=3.0
        nu; moments of this order and above are infinite.
    n_features : int, default=2
        d.

    Returns
    -------
    float64 array of shape (n_samples, n_features)
    """
    n, d = check_count(n_samples), check_count(n_features, "n_features")
    nu, rng = check_length(degrees, "degrees"), random_generator(random_state)
    if nu < LEAST_DEGREES:
        raise ValueError(
            f"degrees is {nu}: pass a number from {LEAST_DEGREES}; fewer leave the range of float64"
        )
    return rng.standard_normal((n, d)) / np.sqrt(rng.chisquare(nu, (n, 1)) / nu)


def exact_student_t(degrees: float = 3.0, n_features: int = 2) -> dict[str, Any]:
    """Return mean, covariance, and ``radius_quantile(p)``: the radius that the share p of the law does not exceed."""
    from scipy.stats import f

    if degrees <= 2:
        raise ValueError(f"degrees is {degrees}: the covariance is finite above 2 only")
    return {
        "mean": np.zeros(n_features),
        "covariance": degrees / (degrees - 2) * np.eye(n_features),
        "radius_quantile": lambda p: np.sqrt(n_features * f.ppf(p, n_features, degrees)),
    }


def student_t_density(Z: np.ndarray, *, degrees: float = 3.0) -> np.ndarray:
    """Return the density, shape (n,)."""
    d, nu = Z.shape[1], degrees
    log_scale = math.lgamma((nu + d) / 2) - math.lgamma(nu / 2) - d / 2 * math.log(nu * math.pi)
    return np.exp(log_scale - (nu + d) / 2 * np.log1p(np.sum(Z**2, axis=1) / nu))


# --- Mises-Fisher mixture on the sphere

POLES = np.array([[1, 0, 0], [-1, 2, 0], [0, -1, 2]]) / np.sqrt([[1], [5], [5]])
CONCENTRATIONS = np.array([10.0, 20.0, 50.0])


def mises_fisher(n_samples: int, random_state: RandomState = None) -> np.ndarray:
    r"""Return draws of three Mises-Fisher laws on the unit sphere, density proportional to exp(kappa pole . x).

    Masses 0.7, 0.2, 0.1 and concentrations kappa 10, 20, 50. The height over the equator is drawn by inverting its
    distribution function, w = 1 + log(u + (1 - u) e^(-2 kappa)) / kappa.

    Parameters
    ----------
    n_samples : int
        Number of draws.
    random_state : None, int, Generator or RandomState
        Seed.

    Returns
    -------
    float64 array of shape (n_samples, 3), rows of length 1
    """
    n, rng = check_count(n_samples), random_generator(random_state)
    which = rng.choice(3, size=n, p=MASSES)
    kappa, u = CONCENTRATIONS[which], rng.random(n)
    height = 1 + np.log(u + (1 - u) * np.exp(-2 * kappa)) / kappa
    side = rng.standard_normal((n, 3))
    side -= np.sum(side * POLES[which], axis=1, keepdims=True) * POLES[which]
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    return height[:, None] * POLES[which] + np.sqrt(1 - height**2)[:, None] * side


def exact_mises_fisher() -> dict[str, Any]:
    """Return mean, covariance, poles as ``centres`` and the ``masses`` around them."""
    A = 1 / np.tanh(CONCENTRATIONS) - 1 / CONCENTRATIONS  # mean height over the equator
    mean = (MASSES * A) @ POLES
    across = A / CONCENTRATIONS  # variance of each of the two coordinates along the equator
    second = np.eye(3) * (MASSES @ across) + (POLES.T * (MASSES * (1 - 3 * across))) @ POLES
    return {
        "mean": mean,
        "covariance": second - np.outer(mean, mean),
        "centres": POLES.copy(),
        "masses": MASSES.copy(),
    }


def mises_fisher_density(Z: np.ndarray) -> np.ndarray:
    """Return the density per unit of area at points of the sphere, shape (n,)."""
    k = CONCENTRATIONS
    # k / (4 pi sinh k) exp(k h) without overflow
    return np.exp(k * (Z @ POLES.T - 1)) @ (MASSES * k / (2 * math.pi * -np.expm1(-2 * k)))


# --- one slow coordinate among fast ones


def slow_well(
    n_samples: int,
    lag_time: float = 0.1,
    random_state: RandomState = None,
    *,
    n_features: int = 10,
    barrier: float = 4.0,
    width: float = 1.0,
    independent: bool = False,
) -> Pairs:
    r"""Return pairs of a diffusion with one slow coordinate among fast ones.

    .. math:: V(x) = b (x_1^2 - 1)^2 + \sum_{c > 1} x_c^2 / (2 w^2)

    Distances are those of the fast coordinates; what matters happens in the first one.

    Parameters
    ----------
    n_samples, lag_time, random_state, independent
        As in :func:`gpukoop.datasets.quadruple_well`.
    n_features : int, default=10
        At least 2.
    barrier : float, default=4.0
        b, between the two wells of the slow coordinate, in units of the temperature.
    width : float, default=1.0
        w, standard deviation of the fast coordinates, which relax at the rate 1 / w^2.

    Returns
    -------
    X, Y : float64 arrays of shape (n_samples, n_features)
    """
    d, w = check_count(n_features, "n_features", least=2), check_length(width, "width")
    lag = check_length(lag_time, "lag_time")
    rng = random_generator(random_state)
    slow = double_well(n_samples, lag, rng, independent=independent, barrier=barrier)
    fast = ornstein_uhlenbeck(n_samples, lag / w**2, rng, n_features=d - 1, independent=independent)
    X, Y = (np.hstack([s, w * f]) for s, f in zip(slow, fast, strict=True))
    return X, Y


BARRIER_HALF_WIDTH = 0.3  # the barrier is where the slow coordinate is nearer to 0 than this


def exact_slow_well(
    n_eigenvalues: int, n_features: int = 10, barrier: float = 4.0, width: float = 1.0
) -> dict[str, Any]:
    """Return mean, covariance, eigenvalues, centres, and ``barrier_share``: per cent of the mass within 0.3 of 0."""
    slow = exact_wells(1, barrier)
    covariance = width**2 * np.eye(n_features)
    covariance[0, 0] = slow["covariance"][0, 0]
    centres = np.zeros((2, n_features))
    centres[:, 0] = -1, 1
    # level k of the fast oscillators is taken by as many modes as there are ways to write k
    levels = np.concatenate(
        [
            np.full(min(math.comb(k + n_features - 2, n_features - 2), n_eigenvalues + 1), k)
            for k in range(n_eigenvalues + 1)
        ]
    )
    axis = np.clip(well_spectrum(barrier), 0, None)
    eigenvalues = np.sort(np.add.outer(axis, levels / width**2).ravel())[1 : n_eigenvalues + 1]
    r, weight = np.polynomial.legendre.leggauss(40)
    half = BARRIER_HALF_WIDTH
    share = half * weight @ well_density(half * r[:, None], barrier=barrier)
    return {
        "mean": np.zeros(n_features),
        "covariance": covariance,
        "eigenvalues": eigenvalues,
        "centres": centres,
        "barrier_share": 100 * float(share),
    }


def slow_well_density(Z: np.ndarray, *, barrier: float = 4.0, width: float = 1.0) -> np.ndarray:
    """Return the density, shape (n,)."""
    d = Z.shape[1] - 1
    fast = np.exp(-np.sum(Z[:, 1:] ** 2, axis=1) / (2 * width**2))
    fast /= (2 * math.pi * width**2) ** (d / 2)
    return well_density(Z[:, :1], barrier=barrier) * fast
