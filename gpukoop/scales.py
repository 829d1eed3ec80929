r"""Scales of kernels: the median rule, and which scales arithmetic can hold."""

from __future__ import annotations

import numpy as np

from gpukoop.arrays import Array, is_cupy, namespace, to_host
from gpukoop.kernels.formula.catalogue import RationalQuadratic, Riesz
from gpukoop.kernels.formula.profile import AbstractKernel
from gpukoop.kernels.formula.radial import RadialFormula

# Pairs of a subsample of this many points decide "median": 2 million distances, sampling error below 1 percent.
MEDIAN_SAMPLE = 2_000
MEDIAN_SEED = 0
# The square of a scale and of its inverse must be numbers, in float64 whatever the dtype of the points.
LARGEST_SCALE = 1e150
# Lengths after which kernels that decay exponentially are 0 in float64: exp(-745) is.
DECAYED = 1_000


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


def divided(scales: Array, *clouds: Array) -> tuple[Array, ...]:
    """Return points divided by a scale for each feature, (d,) and where they are; one array stays one."""
    with np.errstate(over="ignore"):
        made = {id(A): A / scales for A in clouds}
    if any(not is_cupy(A) and not np.isfinite(A).all() for A in made.values()):
        raise ValueError(
            f"points divided by the scales {tuple(scales.tolist())} leave the range of {clouds[0].dtype}: rescale the points, or "
            "pass other scales"
        )
    return tuple(made[id(A)] for A in clouds)


def check_scales(kernel: AbstractKernel, dtype: np.dtype) -> None:
    """Raise unless the scales of a kernel, and the squares of their ratios, are numbers of the dtype."""
    limits = np.finfo(dtype)
    smallest = max(float(limits.tiny), 1 / LARGEST_SCALE)
    ratio = float(np.sqrt(limits.max))
    scales = [radial.length for _, radial in kernel.terms]
    if min(scales) < smallest or max(scales) > 1 / smallest or max(scales) / min(scales) > ratio:
        raise ValueError(
            f"{kernel!r}: in {dtype} scales must lie between {smallest:.0e} and {1 / smallest:.0e}, those of a "
            f"sum within a factor {ratio:.0e}: rescale the points, or pass the scale as another number"
        )


def beyond_range(kernel: AbstractKernel, *clouds: Array) -> bool:
    """Tell whether squares of distances between these points may be no numbers; on a device nobody looks."""
    if any(is_cupy(A) or not A.size for A in clouds):
        return False
    largest, limit = _reach(kernel, *clouds)
    return largest > limit


def _reach(kernel: AbstractKernel, *clouds: Array) -> tuple[float, float]:
    """Return the largest coordinate over the shortest scale, and up to which size squared distances are in the range."""
    # Sums see squares in units of the scale; Riesz kernels have scale 1.
    shortest = min(radial.length for _, radial in kernel.terms)
    largest = max(max(float(A.max()), -float(A.min())) for A in clouds) / shortest
    return largest, float(np.sqrt(np.finfo(clouds[0].dtype).max)) / (4 * clouds[0].shape[1])


def within_range(kernel: AbstractKernel, *clouds: Array) -> tuple[Array, ...]:
    """Return points whose distances have squares in the range of the dtype, and the same sums; the same arrays as a rule.

    Far out a kernel that decays exponentially is 0, so points beyond the range may stand anywhere else far out, apart from all
    others. Where that fails, or the kernel decays slowly or grows, sums would be 0 or NaN, and a ValueError says so.
    """
    # On a device the host would have to wait for the largest coordinate.
    if any(is_cupy(A) or not A.size for A in clouds):
        return clouds
    dtype = clouds[0].dtype
    largest, limit = _reach(kernel, *clouds)
    smallest = float(np.sqrt(np.finfo(dtype).tiny)) / float(np.finfo(dtype).eps)
    slow, grows = (
        any(isinstance(radial, kind) for _, radial in kernel.terms)
        for kind in ((RationalQuadratic, RadialFormula), Riesz)
    )
    if largest <= limit and not (grows and 0 < largest < smallest):
        return clouds
    if not slow and not grows:
        scales = [radial.length for _, radial in kernel.terms]
        nearer = _brought_in(clouds, limit * min(scales) / 2, DECAYED * max(scales))
        if nearer is not None:
            return nearer
    remedy = "rescale them" + (", or pass them as float64" if dtype == np.float32 else "")
    raise ValueError(
        f"{kernel!r}: points of size {largest:.1e} (over the scale) have squares beyond the range of {dtype}, which holds those of "
        f"points between {smallest:.0e} and {limit:.0e}: {remedy}"
    )


def check_logarithms(kernel: AbstractKernel, dtype: np.dtype, moved: bool) -> None:
    """Raise unless the kernel has logarithms in the range; ``moved`` says that points had to be moved for its sums."""
    if not kernel.positive:
        raise ValueError(
            f"logsumexp needs a positive kernel; {kernel!r} takes values <= 0, or is a formula not declared positive: use K @ v"
        )
    if moved:
        raise ValueError(
            f"{kernel!r}: the points are so far apart that logarithms of the kernel leave the range of {dtype}: rescale them, or "
            "leave out those far away"
        )


def _brought_in(clouds: tuple[Array, ...], reach: float, apart: float) -> tuple[Array, ...] | None:
    """Return points with coordinates beyond ``reach`` between it and its double, in order; None if closer than ``apart``."""
    far = np.unique(np.concatenate([np.abs(A[np.abs(A) > reach]) for A in clouds]))
    if reach / len(far) < apart:
        return None
    made = {}
    for A in clouds:
        place = (np.searchsorted(far, np.abs(A)) + 1) / len(far)
        made[id(A)] = np.where(np.abs(A) > reach, np.sign(A) * reach * (1 + place), A).astype(
            A.dtype
        )
    return tuple(made[id(A)] for A in clouds)
