r"""Sums in many dimensions as means of one-dimensional sums along random directions.

A radial kernel is a mean over the sphere of a function of one projection,

.. math:: k(x, y) = E_\theta\, f(\theta \cdot (x - y)), \qquad
          f(t) = \frac{|S^{d-1}|}{(2\pi)^d} \int_0^\infty \hat k(\omega)\, \omega^{d-1} \cos(\omega t)\, d\omega

(the Gaussian's f is 1F1(d/2; 1/2; -t^2 / (2 scale^2))), and -|x - y| = -c E \|theta . (x - y)\| with
c = sqrt(pi) Gamma((d+1)/2) / Gamma(d/2). Functions f go through a one-dimensional Fourier sum, distances are sorted.
Cost O(P (n + m) log) for P directions, whatever d.

**Accuracy.** The error of P directions falls like P^-1/2; it is measured and reported, not bounded: the spread of
independent batches of directions on 32 random and the 32 farthest targets, three standard errors of it relative to sum_j |v_j|
k_ij there. Directions are added until that is below ``tol`` or their number reaches the cap. Kernels that are tiny at
typical distances have a poor relative accuracy: exact sums win below some 10^6 points.

References
----------
.. [1] J. Hertrich, Fast Kernel Summation in High Dimensions via Slicing and Fourier Transforms, 2024.
.. [2] J. Hertrich, C. Wald, F. Altekrueger, P. Hagemann, Generative Sliced MMD Flows with Riesz Kernels, arXiv 2305.11463
   (sorting).
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from gpukoop.kernels.arrays import Array, namespace, to_host
from gpukoop.kernels.formula.profile import AbstractKernel, KernelSum
from gpukoop.kernels.fourier.check import check_rows, exact
from gpukoop.kernels.fourier.memory import Memory
from gpukoop.kernels.fourier.modes import absolute
from gpukoop.kernels.fourier.nufft import n_threads
from gpukoop.kernels.fourier.sliced.directions import BATCHES, batches
from gpukoop.kernels.fourier.sliced.line import DistanceLine, FourierLine
from gpukoop.kernels.operation import PRODUCT, VALUE_AND_GRADIENT, Operation

MAX_DIRECTIONS = 512
# Three standard errors from 8 batches hold 98 percent of Student's distribution.
STANDARD_ERRORS = 3.0
# One seed: products of one operator use the same directions, so that it stays linear and symmetric.
SEED = 20251125


def wanted(kernel: AbstractKernel, d: int) -> bool:
    """Return whether a Fourier sum means slicing: more than three features, or a kernel without a transform."""
    return d > 3 or any(k.profile.fourier is None for _, k in kernel.terms)


def refuses(kernel: AbstractKernel, d: int, operation: Operation) -> str | None:
    """Return why slicing cannot do this, or None."""
    for _, k in kernel.terms:
        if k.profile.fourier is None and not k.profile.distance:
            return f"{k!r} has no transform in closed form and cannot be sorted: use exact sums"
    kinked = any(k.profile.fourier is not None and k.profile.kink for _, k in kernel.terms)
    if kinked and operation.slope:
        return "the sliced transform of a kernel with a kink decays too slowly for its gradient: use exact sums"
    return None


def needed(d: int, tol: float, slope: bool) -> float:
    """Return how many directions a tolerance takes, d <= 3 from the measured errors of ``sliced_directions.batches``."""
    if d == 1:
        return 1
    if d > 3:
        # Frames are independent of each other, so their mean errs as 1 / sqrt(number), whatever the dimension.
        return max(BATCHES * d, (1 / tol) ** 2)
    power = {(2, False): 0.5, (2, True): 1.0, (3, False): 0.9, (3, True): 1.25}[d, slope]
    return BATCHES * max(8.0, (2 / tol) ** power)


def directions(d: int, tol: float, slope: bool) -> tuple[int, int]:
    """Return (size of a batch, largest number of batches) for a tolerance, within the cap."""
    if d == 1:
        return 1, 1
    if d > 3:
        return d, max(BATCHES, MAX_DIRECTIONS // d)
    return math.ceil(min(needed(d, tol, slope), MAX_DIRECTIONS) / BATCHES), BATCHES


def seconds(n: int, m: int, d: int, t: int, tol: float, slope: bool) -> float:
    """Return the cost of reaching ``tol``, cap or not: that sends small tolerances to exact sums."""
    return 5e-3 + needed(d, tol, slope) * (n + m) * (4e-8 + 2e-8 * t)


def reduce(
    kernel: AbstractKernel,
    operation: Operation,
    X: Array,
    Y: Array,
    V: Array,
    tol: float,
    memory: Memory,
) -> tuple[Array | None, Array | None]:
    """Return product and gradient, (n, t) and (n, t, d), as asked for; the estimate goes into ``memory``."""
    xp, want_slope = namespace(X), operation.slope
    n, d = X.shape
    t = V.shape[1]
    # A line's Fourier grid is as long as the cloud is wide from the centre: far from 0 it would be all emptiness.
    centre = Y.mean(axis=0, dtype=float)
    Xc, Yc = (A.astype(float) - centre for A in (X, Y))
    lines = _lines(kernel, Xc, Yc, d, tol, want_slope, X.dtype)
    check = _Check(kernel, X, Xc, Y, V, want_slope)
    value = xp.zeros((n, t)) if operation.value else None
    slope = xp.zeros((n, t, d)) if want_slope else None
    size, most = directions(d, tol, want_slope)
    used = 0
    source = batches(d, size, most, SEED)
    while used < most:
        # Half as many again each time: the last round costs at most a third of what was spent, and the error is asked rarely.
        for theta in _some(source, BATCHES if used == 0 else max(1, used // 2)):
            part = _batch(lines, Xc, Yc, V, theta, value, slope)
            check.add(part)
            used += 1
        if check.spread() <= tol:
            break
    for out in (value, slope):
        if out is not None:
            out /= used
    memory.error_estimate = check.estimate() + float(np.finfo(X.dtype).eps)
    memory.n_directions = used * size
    return tuple(None if out is None else out.astype(X.dtype) for out in (value, slope))  # type: ignore[return-value]


def _some(source: Any, count: int) -> list[np.ndarray]:
    return [theta for _, theta in zip(range(count), source, strict=False)]


def _lines(
    kernel: AbstractKernel, X: Array, Y: Array, d: int, tol: float, slope: bool, dtype: Any
) -> list[Any]:
    smooth = tuple((c, k) for c, k in kernel.terms if k.profile.fourier is not None)
    distance = sum(c / k.length for c, k in kernel.terms if k.profile.distance)
    lines: list[Any] = []
    if smooth:
        # Every projection of the points lies within their largest distance to the centre.
        reach = max(float((A**2).sum(axis=1).max()) ** 0.5 for A in (X, Y))
        lines.append(FourierLine(KernelSum(smooth), d, 2 * reach, tol, slope, dtype))
    if distance:
        # |x| = c E|theta . x| over the sphere (Hertrich et al. 2023): the factor undoes what projecting shortens.
        c = math.sqrt(math.pi) * math.exp(math.lgamma((d + 1) / 2) - math.lgamma(d / 2))
        lines.append(DistanceLine(-c * distance))
    return lines


def _batch(
    lines: list[Any],
    X: Array,
    Y: Array,
    V: Array,
    theta: np.ndarray,
    value: Array | None,
    slope: Array | None,
) -> tuple[Array | None, Array | None]:
    """Add the mean over one batch of directions to ``value`` and ``slope``; return it for the checked rows."""
    xp = namespace(X)

    def along(direction: np.ndarray) -> list[tuple[Array | None, Array | None]]:
        axis = xp.asarray(direction)
        x, y = X @ axis, Y @ axis
        return [line(x, y, V, value is not None, slope is not None) for line in lines]

    mean_value = None if value is None else xp.zeros_like(value)
    mean_slope = None if slope is None else xp.zeros_like(slope)
    workers = n_threads() if xp is np else 1
    with ThreadPoolExecutor(workers) as pool:
        each = map if workers == 1 else pool.map
        # In the order of the directions, a few at a time: results of all of them are never in memory together.
        for start in range(0, len(theta), workers):
            block = theta[start : start + workers]
            for direction, parts in zip(block, each(along, block), strict=True):
                for f, df in parts:
                    if mean_value is not None:
                        mean_value += f
                    if mean_slope is not None and df is not None:
                        mean_slope += df[:, :, None] * xp.asarray(direction)
    for total, mean in ((value, mean_value), (slope, mean_slope)):
        if total is not None and mean is not None:
            mean /= len(theta)
            total += mean
    return mean_value, mean_slope


class _Check:
    """Exact sums on some rows, and the batch means there."""

    def __init__(
        self, kernel: AbstractKernel, X: Array, Xc: Array, Y: Array, V: Array, slope: bool
    ) -> None:
        n = len(X)
        far = to_host((Xc**2).sum(axis=1))
        k = min(n, 32)
        rows = np.union1d(check_rows(n), np.argpartition(far, n - k)[n - k :])
        self.rows = rows
        got = exact(kernel, VALUE_AND_GRADIENT if slope else PRODUCT, X[rows], Y, V)
        self.true = [to_host(a) for a in (got if slope else (got,))]
        density = exact(absolute(kernel), PRODUCT, X[rows], Y, abs(V))
        self.density = np.maximum(np.abs(to_host(density)), np.finfo(float).tiny)
        self.unit = min(k.length for _, k in kernel.terms)
        self.means: tuple[list[Array], list[Array]] = ([], [])

    def add(self, part: tuple[Array | None, Array | None]) -> None:
        """Keep the checked rows of one batch mean."""
        for kept, mean in zip(self.means, part, strict=True):
            if mean is not None:
                kept.append(to_host(mean[self.rows]))

    def spread(self) -> float:
        """Return three standard errors of the mean of the batches, relative, in the worst row."""
        worst = 0.0
        for i, kept in enumerate(self.means):
            if len(kept) > 1:
                error = np.std(kept, axis=0, ddof=1) / math.sqrt(len(kept))
                worst = max(worst, self._relative(error, i))
        return STANDARD_ERRORS * worst

    def estimate(self) -> float:
        """Return the error bar, or the largest error seen if that is larger."""
        seen = 0.0
        for i, kept in enumerate(self.means):
            if kept:
                seen = max(seen, self._relative(np.mean(kept, axis=0) - self.true[i], i))
        # In one dimension there is one direction and no spread: what was seen is rounding, on a few of the rows.
        return max(self.spread(), seen if len(kept) > 1 else STANDARD_ERRORS * seen)

    def _relative(self, error: Array, order: int) -> float:
        if order:
            error = np.abs(error).max(axis=2) * self.unit
        return float((np.abs(error) / self.density).max())
