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

What remains is ``workspace["error_estimate"]``, an upper estimate over all rows.

References
----------
.. [1] A. Barnett, J. Magland, L. af Klinteberg, A parallel nonuniform fast Fourier transform library based on an
   "exponential of semicircle" kernel, SIAM J. Sci. Comput. 41(5), 2019.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpukoop.kernels.formula.profile import AbstractKernel
from gpukoop.kernels.fourier import cost
from gpukoop.kernels.fourier.boxes import Box, boxes
from gpukoop.kernels.fourier.geometry import Geometry
from gpukoop.kernels.fourier.modes import smallest_scale
from gpukoop.kernels.fourier.nufft import missing
from gpukoop.kernels.fourier.sliced import sums as sliced_sums
from gpukoop.kernels.fourier.sum import FourierSum
from gpukoop.kernels.reference import _namespace as namespace

Array = Any

# Extent in scales of a box that nobody has looked at: ten standard deviations at half a scale each.
UNKNOWN_EXTENT = 20.0


def product(
    kernel: AbstractKernel,
    X: Array,
    Y: Array,
    V: Array,
    *,
    tol: float | None = None,
    workspace: dict[str, Any] | None = None,
) -> Array:
    """Return sum_j k(x_i, y_j) V_jc, (n, t), to ``tol``."""
    return _reduce(kernel, X, Y, V, tol, workspace, True, False)[0]


def gradient(
    kernel: AbstractKernel,
    X: Array,
    Y: Array,
    V: Array,
    *,
    tol: float | None = None,
    workspace: dict[str, Any] | None = None,
) -> Array:
    """Return the gradient of the product in x_i, (n, t, d), to ``tol`` over the smallest scale."""
    return _reduce(kernel, X, Y, V, tol, workspace, False, True)[1]


def value_and_gradient(
    kernel: AbstractKernel,
    X: Array,
    Y: Array,
    V: Array,
    *,
    tol: float | None = None,
    workspace: dict[str, Any] | None = None,
) -> tuple[Array, Array]:
    """Return product and gradient; the sources are transformed once."""
    return _reduce(kernel, X, Y, V, tol, workspace, True, True)


def refuses(
    kernel: AbstractKernel,
    d: int,
    op: str,
    tol: float | None,
    dtype: str,
    candidates: tuple[Box, ...],
) -> str | None:
    """Return why Fourier sums cannot do this, or None. Without ``candidates`` the box is not looked at."""
    if tol is None:
        return "tol=None asks for exact sums; pass a tolerance, such as tol=1e-5"
    if "logsumexp" in op:
        return "a log-sum-exp needs every term to relative accuracy, which no transform gives: use exact sums"
    floor = 4 * float(np.finfo(dtype).eps)
    if tol < max(floor, 1e-12):
        return f"tol={tol:g} is below what transforms reach in {dtype} ({max(floor, 1e-12):.1g})"
    if sliced_sums.wanted(kernel, d):
        return sliced_sums.refuses(kernel, d, op)
    return cost.refusal(kernel, candidates, tol, "gradient" in op) if candidates else None


def seconds(request: Any) -> float:
    """Return the estimated cost of a request (``gpukoop.backends.Request``)."""
    kernel, n, m, d, t = request.kernel, request.n, request.m, request.d, request.t
    tol, op = request.tol or 1.0, request.op
    if sliced_sums.wanted(kernel, d):
        return sliced_sums.seconds(n, m, d, t, tol, "gradient" in op)
    candidates = request.boxes
    if not candidates:
        side = (UNKNOWN_EXTENT * smallest_scale(kernel),) * d
        candidates = (Box((0.0,) * d, side, side, side, float("inf"), (0, 0)),)
    accuracy = cost.density_accuracy(tol, cost.TYPICAL_DENSITY)
    found = cost.choose(kernel, candidates, n, m, accuracy, tol, "gradient" in op, cost.RATE)
    if found is None:  # only without boxes: all pairs, in NumPy
        return cost.RATE.start + 1e-8 * n * m * (d + t)
    box, grid = found
    return cost.seconds(grid, box, n, m, d, t, op, tol, request.dtype, cost.RATE)


def _reduce(
    kernel: AbstractKernel,
    X: Array,
    Y: Array,
    V: Array,
    tol: float | None,
    workspace: dict[str, Any] | None,
    want_value: bool,
    want_slope: bool,
) -> Any:
    workspace = {} if workspace is None else workspace
    op = "value_and_gradient" if want_slope else "product"
    d = X.shape[1]
    reason = missing("numpy" if namespace(X) is np else "cupy") or refuses(
        kernel, d, op, tol, str(X.dtype), ()
    )
    if reason or tol is None:
        raise ValueError(reason)
    if sliced_sums.wanted(kernel, d):
        return sliced_sums.reduce(kernel, X, Y, V, tol, workspace, want_value, want_slope)
    geometry = workspace.get("geometry")
    if geometry is None or geometry.X is not X or geometry.Y is not Y:
        geometry = Geometry(X, Y, workspace.get("boxes") or boxes(X, Y))
        workspace["geometry"] = geometry
    xp = namespace(X)
    n, t = len(X), V.shape[1]
    value = xp.empty((n, t), X.dtype) if want_value else None
    slope = xp.empty((n, t, d), X.dtype) if want_slope else None
    estimate = 0.0
    step = geometry.columns(kernel, tol, want_slope)
    for start in range(0, t, step):
        cols = slice(start, start + step)
        part = FourierSum(kernel, geometry, V[:, cols], tol, want_value, want_slope)
        estimate = max(estimate, part.run())
        if value is not None:
            value[:, cols] = part.value
        if slope is not None:
            slope[:, cols] = part.slope
    workspace["error_estimate"] = estimate
    return value, slope
