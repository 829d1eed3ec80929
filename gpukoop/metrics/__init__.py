r"""Distances between clouds of points, and what identically distributed clouds would score.

Every function takes points (n, d), NumPy or CuPy, and returns a Python float; sums run in float64. A number means
little without its floor: :func:`iid_floor` gives the same metric between independent draws of the true law.

======  =============================================
X, Y    clouds, shapes (n, d) and (m, d)
======  =============================================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gpukoop.arrays import Array, namespace, to_host
from gpukoop.checks import real_array, root_of_square, times_power, unit_clouds
from gpukoop.draws import RandomState, check_count, check_function, random_generator
from gpukoop.kernels.formula.catalogue import Energy, Gaussian
from gpukoop.kernels.formula.profile import AbstractKernel
from gpukoop.metrics.features import ClassifierFeatures, RandomConvolutions
from gpukoop.metrics.frechet import KernelDistance, frechet_distance, kernel_distance
from gpukoop.metrics.gaussians import gaussian_energy_distance, gaussian_mmd, gaussian_wasserstein
from gpukoop.metrics.scores import coverage, kl_divergence, nearest_neighbour_distance
from gpukoop.metrics.transport import (
    Weights,
    clouds,
    marginals,
    quantile_gap,
    quantile_levels,
    sinkhorn_divergence,
    wasserstein,
)
from gpukoop.operator import KernelOperator, median_scale
from gpukoop.verdict.permutation import TwoSampleTest, two_sample_test

__all__ = [
    "ClassifierFeatures",
    "KernelDistance",
    "RandomConvolutions",
    "TwoSampleTest",
    "coverage",
    "energy_distance",
    "frechet_distance",
    "gaussian_energy_distance",
    "gaussian_mmd",
    "gaussian_wasserstein",
    "iid_floor",
    "kernel_distance",
    "kl_divergence",
    "mmd",
    "nearest_neighbour_distance",
    "sinkhorn_divergence",
    "sliced_wasserstein",
    "two_sample_test",
    "wasserstein",
]

SORT_BLOCK = 2**22  # numbers sorted at once by the sliced distance


def mmd(
    X: Array,
    Y: Array,
    kernel: AbstractKernel | None = None,
    *,
    weights: Weights | None = None,
    backend: str | None = None,
    tol: float | None = None,
) -> float:
    r"""Return the maximum mean discrepancy, the root of the V-statistic.

    .. math:: MMD^2 = \sum_{ii'} a_i a_{i'} k(x_i, x_{i'}) + \sum_{jj'} b_j b_{j'} k(y_j, y_{j'})
                      - 2 \sum_{ij} a_i b_j k(x_i, y_j), \qquad a_i = 1/n, \; b_j = 1/m \text{ without weights}

    Parameters
    ----------
    X, Y : arrays of shape (n, d) and (m, d)
        Clouds in the same library and on the same device.
    kernel : kernel, optional
        None is the Gaussian whose scale is the median rule over both clouds; a named scale of a given kernel is
        resolved over both clouds too, so that the distance is symmetric.
    weights : pair of arrays of shape (n,) and (m,), optional
        Weights of the points, >= 0, scaled to sum 1; either may be None for equal weights. They do not enter the scale, but
        points of weight zero are as if dropped.
    backend, tol : optional
        Who computes the sums and how accurately, as for ``kernel(X, Y)``.

    Returns
    -------
    float
        Between 0 and sqrt(2 max k) for positive kernels; zero for equal clouds.

    Notes
    -----
    Cost: n^2 + m^2 + n m kernel values, O(n + m) memory. Accuracy: about 1e-8 near 0, where the sums cancel. The
    V-statistic keeps the pairs i = i': its floor for independent draws is about sqrt((1/n + 1/m) (k(0) - E k)).

    References
    ----------
    .. [1] Gretton, Borgwardt, Rasch, Schoelkopf, Smola, "A Kernel Two-Sample Test", JMLR 13, 2012, eq. 5.
    """
    X, Y, a, b = marginals(weights, *clouds(X, Y))
    whole = weights is None
    both = None  # the median rule needs the pooled points only if a scale is not a number

    def scale(rule: str) -> float:
        nonlocal both
        both = namespace(X).concatenate([X, Y]) if both is None else both
        return median_scale(both)

    kernel = Gaussian("median") if kernel is None else kernel
    if not isinstance(kernel, AbstractKernel):
        raise TypeError(
            f"kernel is {kernel!r}: pass a kernel such as gpukoop.Gaussian(0.5), or None"
        )
    kernel = kernel.resolve(scale)

    def mean(A: Array, B: Array, p: Array, q: Array) -> float:
        sums = KernelOperator(kernel, A, B, backend=backend, tol=tol) @ q
        return float(sums.mean() if whole else p @ sums)

    squared = mean(X, X, a, a) + mean(Y, Y, b, b) - 2 * mean(X, Y, a, b)
    return root_of_square(squared, "the squared MMD")


def energy_distance(
    X: Array, Y: Array, *, weights: Weights | None = None, backend: str | None = None
) -> float:
    r"""Return the energy distance, the square of the MMD of the kernel -|x - y|.

    .. math:: 2 E|x - y| - E|x - x'| - E|y - y'|

    Differs from ``scipy.stats.energy_distance``, which returns the root and takes the line only.

    Parameters
    ----------
    X, Y : arrays of shape (n, d) and (m, d)
        Two clouds.
    weights : pair of arrays of shape (n,) and (m,), optional
        As in :func:`mmd`.
    backend : str, optional
        Who computes.

    Returns
    -------
    float
        In the units of the points; at least 0.

    Notes
    -----
    Cost: as :func:`mmd`; on the line O((n + m) log(n + m)), as 2 times the integral of the squared gap between
    the distribution functions.
    """
    X, Y, *pair = marginals(weights, *clouds(X, Y))
    (X, Y), exponent = unit_clouds(X, Y)  # the distance is homogeneous in the points
    if X.shape[1] == 1:
        xp = namespace(X)
        z = xp.sort(xp.concatenate([X[:, 0], Y[:, 0]]))
        a, b = (None, None) if weights is None else pair
        gap = _risen(X[:, 0], a, z[:-1]) - _risen(Y[:, 0], b, z[:-1])
        value = float(2 * xp.sum(gap**2 * xp.diff(z)))
    else:
        pair = None if weights is None else tuple(pair)
        value = mmd(X, Y, Energy(), weights=pair, backend=backend) ** 2
    return times_power(value, exponent, "the energy distance")


def _risen(x: Array, weight: Array | None, z: Array) -> Array:
    """Return the distribution function of points on the line at z."""
    xp = namespace(x)
    order = xp.argsort(x)
    below = xp.searchsorted(x[order], z, side="right")
    if weight is None:
        return below / len(x)
    return xp.concatenate([xp.zeros(1), xp.cumsum(weight[order])])[below]


def sliced_wasserstein(
    X: Array,
    Y: Array,
    *,
    weights: Weights | None = None,
    n_projections: int = 128,
    random_state: RandomState = 0,
) -> float:
    r"""Return the sliced Wasserstein-2 distance, not its square.

    .. math:: SW_2^2 = \frac1P \sum_p \int_0^1 (Q_X^p(u) - Q_Y^p(u))^2 du

    with Q^p the quantile function of the cloud projected on the p-th random direction; clouds of unequal size
    are compared exactly, step by step of both quantile functions.

    Parameters
    ----------
    X, Y : arrays of shape (n, d) and (m, d)
    weights : pair of arrays of shape (n,) and (m,), optional
        Weights of the points, as in :func:`mmd`.
    n_projections : int, default=128
        P, independent uniform directions.
    random_state : int, Generator, RandomState or None, default=0
        The directions. The default takes the same ones at every call, so that values are comparable.

    Returns
    -------
    float
        In the units of the points.

    Notes
    -----
    Cost: O(P (n + m) (d + log(n + m))) on the host. It does not carry a factor d: for a shift by a vector a it
    is about |a| / sqrt(d).
    """
    X, Y, a, b = (to_host(A) for A in marginals(weights, *clouds(X, Y)))
    (X, Y), exponent = unit_clouds(X, Y)
    pair = None if weights is None else (a, b)
    rng = random_generator(random_state)
    directions = rng.standard_normal((check_count(n_projections, "n_projections"), X.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    block = max(1, SORT_BLOCK // (len(X) + len(Y)))
    squared = [
        _squared_quantile_gap(X @ part.T, Y @ part.T, pair)
        for part in np.array_split(directions, math.ceil(len(directions) / block))
    ]
    distance = root_of_square(float(np.concatenate(squared).mean()), "the squared distance")
    return times_power(distance, exponent, "the sliced Wasserstein distance")


def iid_floor(
    metric: Callable[[Any, Any], float],
    draw: Callable[..., Any],
    n_samples: int,
    *,
    n_repeats: int = 8,
    reference: Array | None = None,
    n_reference: int | None = None,
    random_state: RandomState = 0,
) -> tuple[float, float]:
    """Return the mean and standard deviation of a metric between independent draws of one law.

    Particles cannot be asked to score below it for the right reason; a score far above it is a real difference.

    Parameters
    ----------
    metric : callable
        ``metric(X, reference)`` -> float, such as :func:`mmd`.
    draw : callable
        ``draw(n, random_state=generator)`` -> (n, d), such as ``datasets.eight_gaussians``; of a pair (X, Y) the
        first is taken, so that ``partial(datasets.quadruple_well, independent=True)`` fits.
    n_samples : int
        Size of each draw.
    n_repeats : int, default=8
        Number of draws.
    reference : array of shape (m, d), optional
        What they are compared with; by default one more draw.
    n_reference : int, optional
        Size of that draw, ``n_samples`` by default.
    random_state : int, Generator, RandomState or None, default=0

    Returns
    -------
    mean, deviation : float
        Over the draws.

    Examples
    --------
    >>> from gpukoop.datasets import moons
    >>> mean, sd = iid_floor(sliced_wasserstein, moons, 500)
    >>> 0.01 < mean < 0.1
    True
    """
    n, repeats = check_count(n_samples), check_count(n_repeats, "n_repeats", least=2)
    check_function(metric, "metric", "metric(X, reference) -> float")
    check_function(draw, "draw", "draw(n, random_state=generator) -> (n, d)")
    rng = random_generator(random_state)

    def cloud(size: int) -> Array:
        drawn = draw(size, random_state=rng)
        return drawn[0] if isinstance(drawn, tuple) else drawn

    if reference is None:
        reference = cloud(n if n_reference is None else check_count(n_reference, "n_reference"))
    scores = np.array(
        [
            real_array(metric(cloud(n), reference), "metric(X, reference)", ())
            for _ in range(repeats)
        ]
    )
    return float(scores.mean()), float(scores.std(ddof=1))


def _squared_quantile_gap(
    x: np.ndarray, y: np.ndarray, pair: tuple[np.ndarray, np.ndarray] | None
) -> np.ndarray:
    """Return the integral of (Q_x - Q_y)^2 for every column of x (n, p) and y (m, p), shape (p,)."""
    if pair is not None:
        return np.array([quantile_gap(u, v, *pair, 2) for u, v in zip(x.T, y.T, strict=True)])
    n, m = len(x), len(y)
    x, y = np.sort(x, axis=0), np.sort(y, axis=0)
    if n == m:
        return np.mean((x - y) ** 2, axis=0)
    level = quantile_levels(n, m)
    width = np.diff(level, prepend=0) / (n * m)
    return width @ (x[(level - 1) // m] - y[(level - 1) // n]) ** 2
