"""Inner products or differences: what a cloud of many features allows, read back from the device once.

Inner products cancel for points that are close to each other against their distance from the centre. Such pairs are
computed from differences, one by one, inside the epilogue. So the matrix path is right for every cloud, and only its
speed depends on how many close pairs there are. A sample says how many; the library that multiplies
matrices is called from the host, hence this one number decides there. It is the only wait for the device, and an operator
asks once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from gpukoop.kernels.arrays import Array
from gpukoop.kernels.cuda.form import smooth
from gpukoop.kernels.cuda.matrix.fused import fits
from gpukoop.kernels.cuda.matrix.outer.shape import suits
from gpukoop.kernels.cuda.matrix.precision import TF32_ROUNDING, C, error_factor, nearness
from gpukoop.kernels.formula.profile import AbstractKernel, Trace, trace
from gpukoop.kernels.reference import evaluate
from gpukoop.kernels.request import Request

# Pairs of a sample by which close pairs are counted, and the smallest problem that is worth one.
SAMPLE = 512
WORTH_A_SAMPLE = 2**22
# Largest share of close pairs. One close pair makes 32 neighbours wait for a loop over the features of 8 d
# slots, so at 1 / 256 sums cost half of the path of differences; close pairs of a gradient occupy 128 threads in turn.
CLOSE_SHARE, CLOSE_SHARE_SLOPE = 1 / 256, 1 / 4096
# Squared radius beyond which squares overflow, as a share of the largest number.
LARGEST = 2.0**-8


@dataclass(frozen=True)
class Cloud:
    """What is measured: the squared radius in pre-scaled units, and the share of close pairs."""

    far: float
    share: float


@dataclass(frozen=True)
class Choice:
    """Who computes: ``path`` "matrix" or "difference"; ``precision``; ``cut`` below which a pair is close; ``why``."""

    path: str
    precision: str
    cut: float
    why: str


def measure(x: Array, y: Array, nx: Array, ny: Array, precision: str, xp: ModuleType) -> Cloud:
    """Return the cloud of centred, pre-scaled points with squared norms in float64; waits for the device."""
    (n, d), m = x.shape, len(y)
    far = xp.maximum(nx.max(), ny.max())
    share = far * 0.0
    if n * m >= WORTH_A_SAMPLE:
        # Evenly spread and not drawn: the same points give the same choice, and so the same bits, in every run.
        i = xp.asarray(np.arange(SAMPLE) * n // SAMPLE)
        # Between the sampled targets where X is Y: a point says nothing about its neighbourhood.
        j = xp.asarray((np.arange(SAMPLE) * m + m // 2) // SAMPLE)
        norms = nx[i][:, None] + ny[j]
        # In float64, since the question is which pairs float32 would spoil.
        q = norms - 2.0 * (x[i].astype(float) @ y[j].astype(float).T)
        share = (q < nearness(d, precision) * norms).mean()
    # Stacked, so that the host waits once for two numbers.
    both = xp.stack([far, share])
    radius, close = (both if xp is np else both.get()).tolist()
    return Cloud(radius, close)


def choose(
    kernel: AbstractKernel,
    op: str,
    m: int,
    d: int,
    dtype: str,
    precision: str,
    tol: float | None,
    cloud: Cloud,
) -> Choice:
    """Return the path, the precision and the cut for a measured cloud."""
    info = np.finfo(dtype)
    # Written with not, so that a NaN, which compares with nothing, refuses the matrix way as well.
    if not cloud.far <= LARGEST * float(info.max):
        return Choice("difference", "fp32", 0.0, f"squares of points overflow in {dtype}")
    if precision == "tf32" and tol is not None:
        expected = max(_rounded_points(part, cloud.far) for part in _parts(kernel))
        if expected > tol:
            # The user's tolerance decides over the user's precision: a number that would be wrong by more is not returned
            # faster.
            precision = "3xtf32"
    slope = "gradient" in op
    cut = nearness(d, precision)
    if not slope:
        # A smooth profile takes an absolute error of q: then no pair is close.
        allowed = max(C / 2 * math.sqrt(m) * float(info.eps), tol or 0.0)
        lost = error_factor(d, precision) * float(info.eps) * cloud.far
        if all(smooth(p.phi) and lost * _steepness(p, 0.0) <= allowed for p in _parts(kernel)):
            return Choice("matrix", precision, 0.0, "inner products lose less than the tolerance")
    most = CLOSE_SHARE_SLOPE if slope else CLOSE_SHARE
    if cloud.share > most:
        words = f"{cloud.share:.2g} of the pairs are close, more than {most:.2g}"
        return Choice("difference", "fp32", cut, f"{words}: differences are faster")
    return Choice("matrix", precision, cut, "few pairs are close")


def products_of(request: Request) -> str:
    """Return in words how points are multiplied, as far as sizes decide; the points themselves may want differences."""
    r, tensor = request, request.precision != "fp32"
    parts = 1 + (r.precision == "3xtf32")
    if tensor:
        tiled = not fits(r.operation.name, r.d, r.t, parts)
    else:
        tiled = not suits(r.operation.name, r.d, r.t, r.dtype)
    where = "by tiles in memory" if tiled else "in registers"
    return f"products of matrices {where}, precision {r.precision}, where points are apart"


def _parts(kernel: AbstractKernel) -> list[Trace]:
    """Return the terms as kernels of weight one: relative errors do not depend on weights."""
    return [trace(radial) for _, radial in kernel.terms]


def _steepness(of: Trace, q: Any) -> float:
    """Return abs(phi' / phi) in q, the relative change of the kernel for a change of q."""
    at = np.asarray([q], float)
    with np.errstate(all="ignore"):
        # Cancelled in the tree where it can be: phi and phi' both underflow at the far end of a cloud.
        if of.log_slope is not None:
            return float(abs(evaluate(of.log_slope, at, of.symbols, of.values)[0]))
        phi, slope = (evaluate(tree, at, of.symbols, of.values) for tree in (of.phi, of.dphi))
        return float(abs(slope / phi)[0])


def _rounded_points(of: Trace, far: float) -> float:
    """Return the largest relative change of the kernel that rounding points to TF32 makes.

    abs(dq) <= 2 abs(x - y) (abs(x) + abs(y)) 2^-11 for distances sqrt(q) up to the diameter, 2 sqrt(far).
    """
    if far == 0.0:
        return 0.0
    # By powers of two down from the diameter: steepness times distance has its largest value within a factor of two of one of
    # them.
    q = 4.0 * far * 2.0 ** np.arange(-40.0, 1.0)
    change = 4.0 * math.sqrt(far) * TF32_ROUNDING * np.sqrt(q)
    return max(_steepness(of, a) * b for a, b in zip(q, change.tolist(), strict=True))
