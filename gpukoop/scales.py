r"""Scales of kernels: the median rule, and which scales arithmetic can hold."""

from __future__ import annotations

import numpy as np

from gpukoop.arrays import Array, is_cupy, namespace, to_host
from gpukoop.kernels.formula.catalogue import RationalQuadratic
from gpukoop.kernels.formula.lengths import Lengths
from gpukoop.kernels.formula.profile import AbstractKernel

# Pairs of a subsample of this many points decide "median": 2 million distances, sampling error below 1 percent.
MEDIAN_SAMPLE = 2_000
MEDIAN_SEED = 0
# The square of a scale and of its inverse must be numbers, in float64 whatever the dtype of the points.
LARGEST_SCALE = 1e150


def median_scale(X: Array, n_samples: int | None = None) -> float:
    r"""Return the median rule's scale, :math:`\ell^2 = \mathrm{med}\,|x - x'|^2 / (2 \ln(m + 1))`.

    Parameters
    ----------
    X : array of shape (m, d)
        Points; 2,000 of them, drawn by a fixed seed, enter the median over pairs that differ.
    n_samples : int, optional
        m of the formula; the number of rows by default.

    Raises
    ------
    ValueError
        If all points coincide.

    References
    ----------
    .. [1] Q. Liu, D. Wang, Stein Variational Gradient Descent, arXiv 1608.04471, section 5.
    """
    from scipy.spatial.distance import pdist

    m = len(X) if n_samples is None else n_samples
    sample = to_host(X[namespace(X).asarray(_sample_rows(X))]).astype(float)
    exponent = int(np.frexp(np.abs(sample).max())[1])  # a power of two: no square leaves the range
    squared = pdist(np.ldexp(sample, -exponent), "sqeuclidean")
    squared = squared[squared > 0]
    if not len(squared):
        raise ValueError(
            "scale='median' needs points that differ, but all of them coincide (constant data, a single "
            "point?): pass the scale as a number"
        )
    return float(np.ldexp(np.sqrt(np.median(squared) / (2 * np.log(m + 1))), exponent))


def _sample_rows(X: Array) -> np.ndarray:
    """Return which rows decide: all, or a draw that does not depend on their order, as a fixed stride does."""
    if len(X) <= MEDIAN_SAMPLE:
        return np.arange(len(X))
    rng = np.random.default_rng(MEDIAN_SEED)
    axis = namespace(X).asarray(rng.random(X.shape[1]) / X.shape[1], dtype=X.dtype)
    order = np.argsort(to_host(X @ axis), kind="stable")
    return order[rng.choice(len(X), MEDIAN_SAMPLE, replace=False)]


def divided(lengths: Lengths, *clouds: Array) -> tuple[Array, ...]:
    """Return points divided by a length for each feature; the same arrays where there are none, and one array stays one."""
    if lengths is None:
        return clouds
    if len(lengths) != clouds[0].shape[1]:
        raise ValueError(
            f"the kernel has {len(lengths)} scales and the points have {clouds[0].shape[1]} features: pass one scale for each "
            "feature, or a number for all"
        )
    made = {id(A): A / namespace(A).asarray(lengths, dtype=A.dtype) for A in clouds}
    return tuple(made[id(A)] for A in clouds)


def check_scales(kernel: AbstractKernel, dtype: np.dtype) -> None:
    """Raise unless the scales of a kernel, and the squares of their ratios, are numbers of the dtype."""
    limits = np.finfo(dtype)
    smallest = max(float(limits.tiny), 1 / LARGEST_SCALE)
    ratio = float(np.sqrt(limits.max))
    scales = [float(radial.scale) for _, radial in kernel.terms]
    if min(scales) < smallest or max(scales) > 1 / smallest or max(scales) / min(scales) > ratio:
        raise ValueError(
            f"{kernel!r}: in {dtype} scales must lie between {smallest:.0e} and {1 / smallest:.0e}, those of a "
            f"sum within a factor {ratio:.0e}: rescale the points, or pass the scale as another number"
        )


def check_range(kernel: AbstractKernel, *clouds: Array) -> None:
    """Raise if squares of distances leave the range of the dtype where the kernel does not vanish: sums would be 0 or NaN."""
    slow = any(isinstance(radial, RationalQuadratic) for _, radial in kernel.terms)
    # Other positive kernels are 0 there; on a device the host would have to wait for the largest coordinate.
    if (kernel.positive and not slow) or any(is_cupy(A) for A in clouds):
        return
    dtype = clouds[0].dtype
    largest = max(float(np.abs(A).max()) for A in clouds)
    limit = float(np.sqrt(np.finfo(dtype).max)) / (4 * clouds[0].shape[1])
    smallest = float(np.sqrt(np.finfo(dtype).tiny)) / float(np.finfo(dtype).eps)
    if largest > limit or (0 < largest < smallest and not slow):
        remedy = "rescale them" + (", or pass them as float64" if dtype == np.float32 else "")
        raise ValueError(
            f"{kernel!r}: points of size {largest:.1e} have squares beyond the range of {dtype}, which holds those of points "
            f"between {smallest:.0e} and {limit:.0e}: {remedy}"
        )
