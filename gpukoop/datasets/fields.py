r"""Random fields on a periodic interval or square as points: the stochastic heat equation and the Allen-Cahn field.

Results are float64; randomness is drawn on the host.

========  ======================================================================
n, g      samples, cells
u (n, g)  values of the field in its cells, one row a field
a (n, g)  amplitudes of its real Fourier modes, a = sqrt(1/g) u E with E orthogonal
========  ======================================================================
"""

from __future__ import annotations

import heapq
import math
from typing import Any

import numpy as np

from gpukoop.checks import check_length
from gpukoop.datasets.trajectories import Pairs, consecutive
from gpukoop.draws import RandomState, check_count, check_positive, random_generator


def heat_equation(
    n_samples: int,
    lag_time: float = 0.1,
    random_state: RandomState = None,
    *,
    n_cells: int = 64,
    diffusion: float = 0.01,
    decay: float = 1.0,
    noise: float = math.sqrt(2.0),
    independent: bool = False,
) -> Pairs:
    r"""Return pairs of the stochastic heat equation on the periodic unit interval, whose law is known.

    .. math:: \partial_t u = D\, \partial_{xx} u - \kappa u + s\, \xi, \qquad
              da_k = -(\kappa + D (2\pi k)^2)\, a_k\, dt + s\, dW_k

    with space-time white noise :math:`\xi`. Every Fourier amplitude is an Ornstein-Uhlenbeck process of its own, whose
    transition is drawn exactly.

    Parameters
    ----------
    n_samples, lag_time, random_state, independent
        As in :func:`gpukoop.datasets.quadruple_well`.
    n_cells : int, default=64
        Points of the interval at which the field is seen, and number of modes.
    diffusion, decay, noise : float
        D, kappa and s.

    Returns
    -------
    X, Y : float64 arrays of shape (n_samples, n_cells)

    Notes
    -----
    The stationary variance of a_k is s^2 / (2 (kappa + D (2 pi k)^2)); ``exact("heat_equation")`` has the ``modes`` and
    their ``variances``: ``X @ modes / n_cells`` are the amplitudes. Cost: two Fourier transforms a row. Accuracy: exact in
    law for every ``lag_time``.

    Examples
    --------
    >>> X, Y = heat_equation(1000, random_state=0, independent=True)
    >>> answer = gk.datasets.exact("heat_equation")
    >>> variances = (X @ answer["modes"] / 64).var(axis=0)
    >>> bool(np.all(np.abs(variances / answer["variances"] - 1) < 0.25))
    True
    """
    n, g = check_count(n_samples), check_count(n_cells, "n_cells")
    lag = check_positive(lag_time, "lag_time")
    rates, variances = _amplitudes(g, diffusion, decay, noise)
    modes = _modes(g)
    rng = random_generator(random_state)
    fade = np.exp(-lag * rates)
    a = np.sqrt(variances) * rng.standard_normal((n if independent else 1, g))
    kicks = np.sqrt(variances * -np.expm1(-2 * lag * rates)) * rng.standard_normal((n, g))
    if independent:
        return a @ modes.T, (fade * a + kicks) @ modes.T
    states = kicks
    states[0] += fade * a[0]
    for i in range(1, n):
        states[i] += fade * states[i - 1]
    return consecutive(a @ modes.T, states @ modes.T)


def _wave_numbers(g: int) -> np.ndarray:
    """Return k of every mode: 0, 1, 1, 2, 2, ..., (g,)."""
    return (np.arange(g) + 1) // 2


def _amplitudes(
    g: int, diffusion: float, decay: float, noise: float
) -> tuple[np.ndarray, np.ndarray]:
    D, kappa = check_length(diffusion, "diffusion", zero=True), check_length(decay, "decay")
    rates = kappa + D * (2 * math.pi * _wave_numbers(g)) ** 2
    return rates, check_length(noise, "noise") ** 2 / (2 * rates)


def _modes(g: int) -> np.ndarray:
    """Return 1, sqrt(2) cos, sqrt(2) sin, ... in the cells, columns, (g, g); their inner products are g on the diagonal."""
    k, x = _wave_numbers(g), np.arange(g)[:, None] / g
    odd = np.arange(g) % 2 == 1
    waves = math.sqrt(2) * np.where(odd, np.cos(2 * math.pi * k * x), np.sin(2 * math.pi * k * x))
    waves[:, 0] = 1.0
    if g % 2 == 0:  # the highest cosine alternates, its sine is not seen
        waves[:, -1] = (-1.0) ** np.arange(g)
    return waves


def exact_heat_equation(
    n_eigenvalues: int,
    n_cells: int = 64,
    diffusion: float = 0.01,
    decay: float = 1.0,
    noise: float = math.sqrt(2.0),
) -> dict[str, Any]:
    """Return the exact values: eigenvalues are sums of the rates of the modes, each any number of times."""
    g = check_count(n_cells, "n_cells")
    rates, variances = _amplitudes(g, diffusion, decay, noise)
    modes = _modes(g)
    levels, waiting = list[float](), [(float(rates[0]), 0)]
    while (
        len(levels) < n_eigenvalues
    ):  # the last rate of a sum is repeated or exchanged for the next
        level, last = heapq.heappop(waiting)
        levels.append(level)
        heapq.heappush(waiting, (level + float(rates[last]), last))
        if last + 1 < g:
            heapq.heappush(waiting, (level - float(rates[last]) + float(rates[last + 1]), last + 1))
    return {
        "mean": np.zeros(g),
        "covariance": (modes * variances) @ modes.T,
        "eigenvalues": np.array(levels),
        "modes": modes,
        "variances": variances,
        "rates": rates,
    }


def allen_cahn(
    n_samples: int,
    lag_time: float = 2e-5,
    random_state: RandomState = None,
    *,
    n_grid: int = 32,
    diffusion: float = 1e-3,
    width: float = 0.01,
    noise: float = math.sqrt(2.0),
    burn_in: int = 25,
    n_substeps: int = 1,
    independent: bool = True,
) -> Pairs:
    r"""Return pairs of snapshots of the stochastic Allen-Cahn field on the periodic unit square.

    .. math:: \partial_t u = D\, \Delta u + (u - u^3) / \epsilon^2 + s\, \xi, \qquad u_0 \sim U(-1/2, 1/2)

    by Euler-Maruyama with the five-point Laplacian, noise s sqrt(h) N(0, 1) in each cell, values clipped to
    [-1.5, 1.5] as published.

    Parameters
    ----------
    n_samples, random_state
        As in :func:`gpukoop.datasets.quadruple_well`.
    lag_time : float, default=2e-5
        Time between X and Y.
    n_grid : int, default=32
        Cells a side; the published fields have 128.
    diffusion, width, noise : float
        D, epsilon and s. The published pairs of (s, lag_time, epsilon) are (1.4142, 2e-5, 0.01) and
        (0.1, 1e-5, 0.02).
    burn_in : int, default=25
        Lags before the first snapshot.
    n_substeps : int, default=1
        Euler-Maruyama steps in one lag.
    independent : bool, default=True
        True starts every pair from its own u_0 and lets it run for ``burn_in`` lags. False takes consecutive snapshots of one
        run, as published: 900 of them span a time in which the pattern hardly moves, and are samples of no law.

    Returns
    -------
    X, Y : float64 arrays of shape (n_samples, n_grid ** 2)
        Rows of the field one after another.

    Raises
    ------
    ValueError
        If the step is too long for the explicit scheme; the message says how many substeps it takes.

    Notes
    -----
    Cost: (n_samples + burn_in) n_substeps n_grid^2 operations, times burn_in + 1 if independent; n_samples fields in memory. No exact answer
    is known; the law is symmetric under u -> -u and under shifts of the grid.

    References
    ----------
    .. [1] Xu, Li, Fujisawa, Cheng, Marzouk, Ishikawa, arXiv 2512.18837: the experiment of this name.
    """
    n, g = check_count(n_samples), check_count(n_grid, "n_grid", least=3)
    k, wait = check_count(n_substeps, "n_substeps"), check_count(burn_in, "burn_in", least=0)
    lag, D = check_length(lag_time, "lag_time"), check_length(diffusion, "diffusion", zero=True)
    epsilon, s = check_length(width, "width"), check_length(noise, "noise", zero=True)
    h = lag / k
    # stable while h times the fastest rate is below 2: the Laplacian up to 8 / dx^2, the reaction 2 / eps^2 at u = 1
    rate = 8 * D * g**2 + 2 / epsilon**2
    if h * rate >= 2:
        raise ValueError(
            f"lag_time={lag:.3g} in {k} substeps is too long for the explicit scheme on this grid: "
            f"pass n_substeps={math.floor(lag * rate / 2) + 1} or more"
        )
    rng = random_generator(random_state)

    def advance(u: np.ndarray) -> np.ndarray:
        for _ in range(k):
            lap = (
                np.roll(u, 1, 1) + np.roll(u, -1, 1) + np.roll(u, 1, 2) + np.roll(u, -1, 2) - 4 * u
            )
            u = u + h * (D * g**2 * lap + (u - u**3) / epsilon**2)
            u = np.clip(u + s * math.sqrt(h) * rng.standard_normal(u.shape), -1.5, 1.5)
        return u

    u = rng.uniform(-0.5, 0.5, (n if independent else 1, g, g))
    for _ in range(wait):
        u = advance(u)
    if independent:
        return u.reshape(n, -1), advance(u).reshape(n, -1)
    states = np.empty((n, g * g))
    start = u.reshape(1, -1)
    for i in range(n):
        u = advance(u)
        states[i] = u.ravel()
    return consecutive(start, states)
