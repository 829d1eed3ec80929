r"""Diffusions in wells and the Ornstein-Uhlenbeck process, as pairs (X, Y), with their exact answers.

The rows of Y are the rows of X one ``lag_time`` later; results are float64.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gpukoop.checks import check_length
from gpukoop.datasets.trajectories import Pairs, consecutive, langevin_pairs
from gpukoop.draws import RandomState, check_count, check_positive, random_generator, rejection

WELL_RADIUS = 0.4  # of the ball around a well that the published coverage counts


def quadruple_well(
    n_samples: int,
    lag_time: float = 0.01,
    random_state: RandomState = None,
    *,
    independent: bool = False,
    n_substeps: int | None = None,
    barrier: float = 1.0,
) -> Pairs:
    r"""Return pairs of the overdamped Langevin diffusion in four wells at :math:`(\pm 1, \pm 1)`.

    .. math:: V(x, y) = b (x^2 - 1)^2 + b (y^2 - 1)^2, \qquad dX = -\nabla V dt + \sqrt 2\, dW

    Parameters
    ----------
    n_samples : int
        Number of pairs.
    lag_time : float, default=0.01
        Time between X and Y, in units of the diffusion.
    random_state : int, Generator, RandomState or None
        Seed or stream; a stream is spawned and left as it was.
    independent : bool, default=False
        False: consecutive points of one trajectory. True: independent exact draws of exp(-V) by rejection,
        each with its own successor.
    n_substeps : int, optional
        Euler-Maruyama steps in one lag; by default 10, or as many as keep a step below 0.01.
    barrier : float, default=1.0
        b, the height of the potential between two wells in units of the temperature.

    Returns
    -------
    X, Y : float64 arrays of shape (n_samples, 2)

    Notes
    -----
    Cost: n_samples * n_substeps steps in compiled code, 0.1 s for 10^5 lags after a first call of about 1 s.
    Accuracy: the scheme has a bias of order h in law; the first points and all independent ones are exact. A
    trajectory of total time T knows an eigenvalue lambda to a relative error of sqrt(2 / (lambda T)).

    References
    ----------
    .. [1] Xu, Li, Fujisawa, Marzouk, Ishikawa, "Generative Modeling through Spectral Analysis of Koopman Operator",
       arXiv 2512.18837v1: the experiment of this name.

    Examples
    --------
    >>> X, Y = quadruple_well(1000, random_state=0)
    >>> X.shape, bool((X[1:] == Y[:-1]).all())
    ((1000, 2), True)
    """
    return _well_pairs(2, barrier, n_samples, lag_time, random_state, independent, n_substeps)


def double_well(
    n_samples: int,
    lag_time: float = 0.01,
    random_state: RandomState = None,
    *,
    independent: bool = False,
    n_substeps: int | None = None,
    barrier: float = 1.0,
) -> Pairs:
    """Return pairs of the Langevin diffusion in V(x) = b (x^2 - 1)^2, shape (n_samples, 1).

    Parameters
    ----------
    n_samples, lag_time, random_state, independent, n_substeps, barrier
        As in :func:`quadruple_well`, of which this is one coordinate.

    Returns
    -------
    X, Y : float64 arrays of shape (n_samples, 1)
        States, and the states one ``lag_time`` later.
    """
    return _well_pairs(1, barrier, n_samples, lag_time, random_state, independent, n_substeps)


def ornstein_uhlenbeck(
    n_samples: int,
    lag_time: float = 0.1,
    random_state: RandomState = None,
    *,
    n_features: int = 1,
    temperature: float = 1.0,
    independent: bool = False,
) -> Pairs:
    r"""Return pairs of the Ornstein-Uhlenbeck diffusion, whose transition is drawn exactly.

    .. math:: dX = -X dt + \sqrt{2 T}\, dW, \qquad
              X_{t+s} \mid X_t \sim N(e^{-s} X_t,\; T (1 - e^{-2s}) I)

    Parameters
    ----------
    n_samples, lag_time, random_state, independent
        As in :func:`quadruple_well`.
    n_features : int, default=1
        Number of independent coordinates.
    temperature : float, default=1.0
        T; the invariant law is N(0, T I). The eigenvalues 1, 2, 3, ... do not depend on it.

    Returns
    -------
    X, Y : float64 arrays of shape (n_samples, n_features)

    Notes
    -----
    Cost: O(n_samples n_features). Accuracy: exact in law for every ``lag_time``.
    """
    n, lag = check_count(n_samples), check_positive(lag_time, "lag_time")
    d, sd = (
        check_count(n_features, "n_features"),
        math.sqrt(check_length(temperature, "temperature")),
    )
    rng = random_generator(random_state)
    decay = math.exp(-lag)
    start = sd * rng.standard_normal((n if independent else 1, d))
    kicks = sd * math.sqrt(-math.expm1(-2 * lag)) * rng.standard_normal((n, d))
    if independent:
        return start, decay * start + kicks
    from scipy.signal import lfilter  # a recursion in compiled code; slow to import, hence here

    states, _ = lfilter([1.0], [1.0, -decay], kicks, axis=0, zi=decay * start)
    return consecutive(start, states)


def _well_pairs(
    d: int,
    barrier: float,
    n_samples: int,
    lag_time: float,
    random_state: RandomState,
    independent: bool,
    n_substeps: int | None,
) -> Pairs:
    b = check_barrier(barrier)
    return langevin_pairs(
        _wells_law(d, b), _walk_wells, n_samples, lag_time, random_state, independent, n_substeps, b
    )


# Lower wells reach beyond the grid of the integrals, higher ones fall between its points.
BARRIERS = 0.05, 500.0


def check_barrier(barrier: float) -> float:
    """Return a height of barrier that integrals over [-5, 5] on this grid resolve, or raise."""
    b = check_positive(barrier, "barrier")
    low, high = BARRIERS
    if not low <= b <= high:
        raise ValueError(f"barrier is {b}: pass a height between {low} and {high}")
    return b


def _walk_wells(
    starts: np.ndarray, noise: np.ndarray, h: float, chained: bool, barrier: float
) -> np.ndarray:
    n, n_substeps, d = noise.shape
    ends = np.empty((n, d))
    kick = math.sqrt(2 * h)
    for i in range(n):
        for c in range(d):
            x = ends[i - 1, c] if chained and i > 0 else starts[i, c]
            for j in range(n_substeps):
                x += -4 * barrier * x * (x * x - 1) * h + kick * noise[i, j, c]
            ends[i, c] = x
    return ends


def _wells_law(d: int, barrier: float) -> Callable[[np.random.Generator, int], np.ndarray]:
    """Draw exp(-b (x^2 - 1)^2) exactly: (x^2 - 1)^2 >= (|x| - 1)^2, so |x| is proposed from N(1, 1/(2b)), |x| >= 0."""

    def law(rng: np.random.Generator, n: int) -> np.ndarray:
        def accept(y: np.ndarray) -> np.ndarray:
            gap = barrier * ((y - 1) ** 2 - (y**2 - 1) ** 2)
            return (y >= 0) & (np.log(1 - rng.random(len(y))) < gap)

        sd = math.sqrt(0.5 / barrier)
        size = rejection(lambda k: 1 + sd * rng.standard_normal(k), accept, n * d)
        return (size * rng.choice([-1.0, 1.0], n * d)).reshape(n, d)

    return law


# --- wells: V is a sum of b (x^2 - 1)^2 over the coordinates, so everything is made of one-dimensional integrals


def well_potential(Z: np.ndarray, *, barrier: float = 1.0) -> np.ndarray:
    """Return V = b sum_c (z_c^2 - 1)^2, shape (n,)."""
    return barrier * np.sum((Z**2 - 1) ** 2, axis=1)


@functools.cache
def _well_mass(barrier: float) -> float:
    """Integral of exp(-b (x^2 - 1)^2) over the line; a trapezoid sum of an entire, rapidly decaying function."""
    x = np.linspace(-5, 5, 2001)
    return float(np.sum(np.exp(-barrier * (x**2 - 1) ** 2)) * (x[1] - x[0]))


def well_density(Z: np.ndarray, *, barrier: float = 1.0) -> np.ndarray:
    """Return exp(-V) / Z of :func:`well_potential`, shape (n,)."""
    barrier = check_barrier(barrier)
    return np.exp(-well_potential(Z, barrier=barrier)) / _well_mass(barrier) ** Z.shape[1]


@functools.cache
def well_spectrum(barrier: float) -> np.ndarray:
    """Eigenvalues of -u'' + V'u', by sinc collocation of the Schroedinger form -f'' + (V'^2/4 - V''/2) f."""
    x = np.linspace(-4, 4, 161)
    h, i = x[1] - x[0], np.arange(x.size)
    gap = i[:, None] - i
    second = (
        np.where(gap == 0, math.pi**2 / 3, 2.0 * (-1.0) ** gap / np.where(gap == 0, 1, gap) ** 2)
        / h**2
    )
    slope, curvature = 4 * barrier * x * (x**2 - 1), barrier * (12 * x**2 - 4)
    return np.linalg.eigvalsh(second + np.diag(slope**2 / 4 - curvature / 2))[:40]  # the first is 0


def exact_wells(n_features: int, barrier: float = 1.0) -> dict[str, Any]:
    """Return the exact values of the wells in one or two dimensions, by quadrature."""
    x = np.linspace(-5, 5, 2001)
    weights = well_density(x[:, None], barrier=barrier) * (x[1] - x[0])
    centres = np.array(np.meshgrid(*[[-1.0, 1.0]] * n_features)).reshape(n_features, -1).T
    if n_features == 1:
        r, w = np.polynomial.legendre.leggauss(40)
        mass = WELL_RADIUS * np.sum(w * well_density(1 + WELL_RADIUS * r[:, None], barrier=barrier))
    else:  # polar: Gauss in the radius, trapezoid in the angle
        r, w = np.polynomial.legendre.leggauss(40)
        r, w = WELL_RADIUS * (r + 1) / 2, WELL_RADIUS * w / 2
        angle = np.arange(64) * (2 * math.pi / 64)
        disc = 1 + np.stack([np.outer(r, np.cos(angle)), np.outer(r, np.sin(angle))], axis=-1)
        height = well_density(disc.reshape(-1, 2), barrier=barrier).reshape(40, 64)
        mass = np.sum((w * r)[:, None] * height) * (2 * math.pi / 64)
    axis = np.clip(well_spectrum(barrier), 0, None)
    total = functools.reduce(np.add.outer, [axis] * n_features).ravel()
    return {
        "mean": np.zeros(n_features),
        "covariance": np.sum(weights * x**2) * np.eye(n_features),
        # sums of two of the first 40 are complete only up to the 40th
        "eigenvalues": np.sort(total[total <= axis[-1]])[1:],
        "centres": centres,
        "radius": WELL_RADIUS,
        "coverage": 100 * len(centres) * float(mass),
        "mean_potential": n_features * barrier * float(np.sum(weights * (x**2 - 1) ** 2)),
        "normalization": _well_mass(barrier) ** n_features,
    }


def exact_ornstein_uhlenbeck(
    n_eigenvalues: int, n_features: int = 1, temperature: float = 1.0
) -> dict[str, Any]:
    """Return the exact values: eigenvalue k with the multiplicity of k as a sum of d numbers."""
    k, levels = 1, list[float]()
    while len(levels) < n_eigenvalues:  # k = k_1 + ... + k_d in binom(k + d - 1, d - 1) ways
        levels += [float(k)] * min(math.comb(k + n_features - 1, n_features - 1), n_eigenvalues)
        k += 1
    covariance = temperature * np.eye(n_features)
    return {"mean": np.zeros(n_features), "covariance": covariance, "eigenvalues": np.array(levels)}


def ornstein_uhlenbeck_potential(Z: np.ndarray, *, temperature: float = 1.0) -> np.ndarray:
    """Return V = |z|^2 / (2 T), shape (n,)."""
    return np.sum(Z**2, axis=1) / (2 * temperature)


def ornstein_uhlenbeck_density(Z: np.ndarray, *, temperature: float = 1.0) -> np.ndarray:
    """Return the density of N(0, T I), shape (n,)."""
    return np.exp(-ornstein_uhlenbeck_potential(Z, temperature=temperature)) / (
        2 * math.pi * temperature
    ) ** (Z.shape[1] / 2)
