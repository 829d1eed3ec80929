r"""Near-linear sums by nonuniform Fourier transforms, d <= 3; by slices to one dimension above.

With the trigonometric polynomial of ``modes``,

.. math:: \sum_j k(x_i - y_j) v_j \approx \sum_m b_m e^{i h m \cdot x_i} \Big( \sum_j e^{-i h m \cdot y_j} v_j \Big)

two nonuniform transforms and a product; the gradient multiplies by i h m. Cost O((n + m) digits^d + modes log modes).

=== =============== ====================
n   targets         rows of ``X``
m   sources         rows of ``Y``
d   features        columns of both
t   right-hand side columns of ``V``
=== =============== ====================

**Accuracy.** ``tol`` is relative to sum_j |v_j| |k_ij| of each row, for gradients the same over the smallest scale. A
transform errs by about the same amount everywhere, so every call

1. sums 32 targets exactly and learns from them which absolute accuracy the rows need,
2. carries |v| along as one more column, so that sum |v| k is known for every target,
3. takes three times the largest error on the 32 targets as the noise of the transform, and sums exactly those
   targets whose sum |v| k is so small that the noise matters (the rim of a cloud, isolated points); if there are too many,
   it repeats the transform with more digits first.

What remains is ``memory.error_estimate``, an upper estimate over all rows.

References
----------
.. [1] A. Barnett, J. Magland, L. af Klinteberg, A parallel nonuniform fast Fourier transform library based on an
   "exponential of semicircle" kernel, SIAM J. Sci. Comput. 41(5), 2019.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpukoop.kernels.arrays import Array, namespace
from gpukoop.kernels.formula.profile import AbstractKernel
from gpukoop.kernels.fourier import cost
from gpukoop.kernels.fourier.boxes import Box
from gpukoop.kernels.fourier.memory import Memory
from gpukoop.kernels.fourier.modes import smallest_scale
from gpukoop.kernels.fourier.nufft import missing
from gpukoop.kernels.fourier.sliced import sums as sliced_sums
from gpukoop.kernels.fourier.sum import FourierSum
from gpukoop.kernels.operation import Operation
from gpukoop.kernels.request import Request

# Extent in scales of a box that nobody has looked at: ten standard deviations at half a scale each.
UNKNOWN_EXTENT = 20.0


def reduce(
    kernel: AbstractKernel,
    operation: Operation,
    X: Array,
    Y: Array,
    V: Array,
    *,
    tol: float | None = None,
    memory: Memory | None = None,
) -> Any:
    """Return the reduction to ``tol``, slopes to ``tol`` over the smallest scale; the sources are transformed once."""
    memory = Memory() if memory is None else memory
    d, dtype = X.shape[1], str(X.dtype)
    # The cost table has asked all this before; who calls the backend directly gets the same words.
    reason = missing("numpy" if namespace(X) is np else "cupy") or _refusal(
        kernel, d, operation, tol, dtype, ()
    )
    if reason or tol is None:
        raise ValueError(reason)
    if sliced_sums.wanted(kernel, d):
        return operation.result(*sliced_sums.reduce(kernel, operation, X, Y, V, tol, memory))
    return operation.result(*_transform(kernel, operation, X, Y, V, tol, memory))


def refuses(request: Request, candidates: tuple[Box, ...]) -> str | None:
    """Return why Fourier sums cannot do this, or None. Without ``candidates`` the box is not looked at."""
    r = request
    return _refusal(r.kernel, r.d, r.operation, r.tol, r.dtype, candidates)


def _refusal(
    kernel: AbstractKernel,
    d: int,
    operation: Operation,
    tol: float | None,
    dtype: str,
    candidates: tuple[Box, ...],
) -> str | None:
    if tol is None:
        return "tol=None asks for exact sums; pass a tolerance, such as tol=1e-5"
    if operation.log:
        return "a log-sum-exp needs every term to relative accuracy, which no transform gives: use exact sums"
    # Below this the rounding of the transforms, not their truncation, decides, and a smaller tol would only cost time.
    floor = 4 * float(np.finfo(dtype).eps)
    if tol < max(floor, 1e-12):
        return f"tol={tol:g} is below what transforms reach in {dtype} ({max(floor, 1e-12):.1g})"
    if sliced_sums.wanted(kernel, d):
        return sliced_sums.refuses(kernel, d, operation)
    return cost.refusal(kernel, candidates, tol, operation.slope) if candidates else None


def seconds(request: Request, candidates: tuple[Box, ...]) -> float:
    """Return the estimated cost of a request; without ``candidates`` that of a typical box."""
    kernel, operation, d = request.kernel, request.operation, request.d
    n, m, t, tol = request.n, request.m, request.t, request.tol or 1.0
    if sliced_sums.wanted(kernel, d):
        return sliced_sums.seconds(n, m, d, t, tol, operation.slope)
    if not candidates:
        # Asked before anyone has looked at the points: a guess that is refined once they are known, so that asking is free.
        side = (UNKNOWN_EXTENT * smallest_scale(kernel),) * d
        candidates = (Box((0.0,) * d, side, side, side, float("inf"), (0, 0)),)
    accuracy, rate = cost.density_accuracy(tol, cost.TYPICAL_DENSITY), cost.rate_of(request.device)
    found = cost.choose(kernel, candidates, n, m, accuracy, tol, operation.slope, rate)
    if found is None:  # only without boxes: all pairs, in NumPy
        return rate.start + 1e-8 * n * m * (d + t)
    box, grid = found
    return cost.seconds(grid, box, n, m, d, t, operation, tol, request.dtype, rate)


def _transform(
    kernel: AbstractKernel,
    operation: Operation,
    X: Array,
    Y: Array,
    V: Array,
    tol: float,
    memory: Memory,
) -> tuple[Array | None, Array | None]:
    """Return value and slope by nonuniform transforms, some columns at a time."""
    geometry, xp = memory.geometry_of(X, Y), namespace(X)
    (n, d), t = X.shape, V.shape[1]
    value = xp.empty((n, t), X.dtype) if operation.value else None
    slope = xp.empty((n, t, d), X.dtype) if operation.slope else None
    estimate = 0.0
    step = geometry.columns(kernel, tol, operation.slope)
    for start in range(0, t, step):
        cols = slice(start, start + step)
        part = FourierSum(kernel, geometry, V[:, cols], tol, operation)
        # Each block of columns checks itself against exact rows; the worst of them is what the user is told.
        estimate = max(estimate, part.run())
        if value is not None:
            value[:, cols] = part.value
        if slope is not None:
            slope[:, cols] = part.slope
    memory.error_estimate = estimate
    return value, slope
