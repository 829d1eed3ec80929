r"""Scores of generated images: Fréchet distance and kernel distance in a space of features.

========== ==========================================
x, y       features phi(X) (n, p) and phi(Y) (m, p)
m, S       their means and covariances
========== ==========================================
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from gpukoop.checks import times_power, unit_clouds
from gpukoop.draws import RandomState, check_count, random_generator
from gpukoop.kernels.formula.placed import Polynomial
from gpukoop.kernels.formula.profile import AbstractKernel
from gpukoop.metrics.features import featured
from gpukoop.metrics.gaussians import gaussian_wasserstein

_BEYOND = (
    "the kernel distance leaves the range of float64: rescale the features, or pass another kernel"
)


class KernelDistance(NamedTuple):
    """Mean over subsets of the unbiased squared MMD, and the standard error of that mean."""

    value: float
    error: float


def frechet_distance(X: Any, Y: Any, features: Any = None) -> float:
    r"""Return the Fréchet distance of two samples in a space of features: W2 squared of the normal laws with their moments.

    .. math:: |m_x - m_y|^2 + \mathrm{tr}\big(S_x + S_y - 2 (S_x^{1/2} S_y S_x^{1/2})^{1/2}\big)

    Parameters
    ----------
    X, Y : arrays of shape (n, ...) and (m, ...)
        Points, or images where ``features`` takes such.
    features : optional
        None for the points as they are; "convolutions" for :class:`RandomConvolutions` with seed 0; a fitted transformer such as
        :class:`ClassifierFeatures`; or a function (n, ...) -> (n, p).

    Returns
    -------
    float
        Not its root, as is the custom of the FID.

    Raises
    ------
    ValueError
        If a cloud has fewer than two points or the features do not fit.

    Notes
    -----
    Finite samples of one law are apart, too, the more so the fewer they are: compare numbers of equal n and m only, and beside the
    distance of real images to other real images. Cost: O((n + m) p^2 + p^3).

    References
    ----------
    .. [1] M. Heusel et al., arXiv 1706.08500, equation 6.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((20_000, 3))
    >>> round(frechet_distance(X, 2 * X[::-1] + 1.0), 1)
    6.0
    """
    (x, y), exponent = unit_clouds(*featured(X, Y, features))
    S_x, S_y = (np.atleast_2d(np.cov(cloud.T)) for cloud in (x, y))
    distance = gaussian_wasserstein(x.mean(axis=0), S_x, y.mean(axis=0), S_y)
    return times_power(distance**2, 2 * exponent, "the Fréchet distance")


def kernel_distance(
    X: Any,
    Y: Any,
    features: Any = None,
    *,
    kernel: AbstractKernel | None = None,
    n_subsets: int = 20,
    subset_size: int = 500,
    random_state: RandomState = 0,
    backend: str | None = None,
) -> KernelDistance:
    r"""Return the unbiased squared MMD in a space of features, with an error bar: the kernel (inception) distance.

    .. math:: \frac{1}{s(s-1)} \sum_{i \ne i'} k(x_i, x_{i'}) + \frac{1}{s(s-1)} \sum_{j \ne j'} k(y_j, y_{j'})
              - \frac{2}{s^2} \sum_{ij} k(x_i, y_j)

    Parameters
    ----------
    X, Y, features
        As for :func:`frechet_distance`.
    kernel : kernel, optional
        None is :math:`(x \cdot y / \ell^2 + 1)^3` with :math:`\ell^2` the mean of :math:`|y|^2`: the units of the features do not
        matter. The reference has p in its place.
    n_subsets, subset_size : int
        How many random subsets of so many points are compared; the size is cut to that of the smaller cloud.
    random_state : int, Generator, RandomState or None
        Decides the subsets.
    backend : str, optional
        Who computes the sums.

    Returns
    -------
    KernelDistance
        ``value`` and ``error``, the standard deviation over subsets divided by the root of their number. Subsets that share
        points make it a little too small.

    Notes
    -----
    The mean does not depend on the size of the samples, as the Fréchet distance does; for equal laws it is 0, and may be
    negative. Cost: 3 n_subsets subset_size^2 kernel values.

    References
    ----------
    .. [1] M. Binkowski et al., Demystifying MMD GANs, arXiv 1801.01401.
    """
    x, y = featured(X, Y, features)
    size = min(check_count(subset_size, "subset_size", least=2), len(x), len(y))
    repeats = check_count(n_subsets, "n_subsets", least=2)
    if kernel is None:
        (y,), exponent = unit_clouds(
            y
        )  # its scale is that of y: only the ratio of the clouds counts
        with np.errstate(over="ignore"):
            x = np.ldexp(x, -exponent)
        if not np.isfinite(x).all():
            raise ValueError(_BEYOND)
        kernel = Polynomial(3, 1.0, math.sqrt((y**2).sum(axis=1).mean()) or 1.0)
    rng = random_generator(random_state)
    values = [
        _unbiased(
            kernel,
            x[rng.choice(len(x), size, replace=False)],
            y[rng.choice(len(y), size, replace=False)],
            backend,
        )
        for _ in range(repeats)
    ]
    value, error = float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(repeats))
    if not math.isfinite(error):
        raise ValueError(_BEYOND)
    return KernelDistance(value, error)


def _unbiased(k: AbstractKernel, x: np.ndarray, y: np.ndarray, backend: str | None) -> float:
    """Return the U-statistic of the squared MMD of two clouds of one size."""
    ones, n = np.ones(len(x)), len(x)

    def own(z: np.ndarray) -> float:
        K = k(z, backend=backend)
        return float((K @ ones).sum() - K.diagonal().sum()) / (n * (n - 1))

    return own(x) + own(y) - 2 * float((k(x, y, backend=backend) @ ones).mean()) / n
