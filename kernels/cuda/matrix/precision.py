r"""Points as matrix units take them: what TF32 is, how float32 is split into it, and what inner products lose.

========= ============================================================================================
precision inner products of float32 points
========= ============================================================================================
fp32      float32 throughout, no matrix units; float64 points stay float64
3xtf32    x = hi + lo, three TF32 products hi hi + hi lo + lo hi summed in float32: about float32 accuracy
tf32      points rounded to TF32 first, norms taken from the rounded points: the sum over those points
========= ============================================================================================

Up to :func:`gpukoop.kernels.cuda.matrix.fused.fits` features these are programs on tensor cores that take the 11 bits as numbers of
16 bits with a power of two for each point: the same parts at twice the rate (:mod:`gpukoop.kernels.cuda.matrix.packing`). In fp32,
sums of one column are multiplied in registers of CUDA cores (:mod:`gpukoop.kernels.cuda.matrix.outer.loop`). Wider points, several
columns and gradients in fp32 go through tiles in memory.

TF32 has the exponent of float32 and 11 significant bits, 10 of them explicit. Products of two such numbers are exact
in float32, so only the order of additions differs between matrix units and an ordinary product of rounded numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from gpukoop.kernels.arrays import Array

PRECISIONS = ("fp32", "3xtf32", "tf32")
# From this many features on matrix units pay; below, registers hold the points.
FEWEST_FEATURES = 16
# Half a unit in the last of 11 bits, relative.
TF32_ROUNDING = 2.0**-11
# The factor of gpukoop.rounding.tolerance: q may be wrong by C sqrt(d) eps q there.
C = 4.0
# Points converted at once: float64 temporaries of 2 MB a feature.
BLOCK_ROWS = 2**18


def check_precision(name: object) -> str:
    """Return ``name`` if it is a precision; raise in words otherwise."""
    if isinstance(name, str) and name in PRECISIONS:
        return name
    raise ValueError(
        f"precision must be one of {', '.join(map(repr, PRECISIONS))}, got {name!r}: it says how numba-cuda multiplies "
        f"float32 points of {FEWEST_FEATURES} or more features"
    )


def no_matrix_units(name: str, precision: str) -> str:
    """Return in words that a backend has no TF32."""
    return (
        f"{name} has no tensor cores: precision={precision!r} is for numba-cuda, "
        f"d >= {FEWEST_FEATURES}, float32"
    )


def round_tf32(a: Array) -> Array:
    """Return float32 numbers rounded to TF32: to nearest, ties away from zero.

    The bits are those of the conversion instruction cvt.rna.tf32.f32: half a unit is added to the magnitude, the 13 low
    bits are cut off. Numbers that are rounded already are not changed, by this or by the matrix units.
    """
    bits = a.view(np.int32)
    # Adding to the bits carries into the exponent where the mantissa is all ones, which is the right number there, too.
    return ((bits + np.int32(1 << 12)) & np.int32(-(1 << 13))).view(np.float32)


def round_up(size: int, step: int) -> int:
    """Return the next multiple of ``step``."""
    return -(-size // step) * step


@dataclass(frozen=True)
class Points:
    """Padded points: the operand of inner products, the points it stands for, their squared norms."""

    matrix: Array
    points: Array
    norms: Array


def prepare(X: Array, centre: Array, scale: float, multiple: int, xp: ModuleType) -> Array:
    """Return centred, pre-scaled points, padded with copies of the last one."""
    n, d = X.shape
    out = xp.empty((round_up(n, multiple), d), X.dtype)
    for start in range(0, n, BLOCK_ROWS):
        stop = min(n, start + BLOCK_ROWS)
        # In float64: the centre may be 10^6 times the spread, and what float32 loses there no later step can give back.
        out[start:stop] = (X[start:stop].astype(float) - centre) * scale
    out[n:] = out[n - 1]
    return out


def prepared(
    X: Array,
    Y: Array,
    scale: float,
    multiples: tuple[int, int],
    memory: dict[Any, Any],
    xp: ModuleType,
) -> tuple[Array, Array, Array, Array]:
    """Return targets and sources centred and pre-scaled, and their squared norms; ``memory`` keeps them for these points."""
    if "centre" not in memory:
        lowest = xp.minimum(X.min(axis=0), Y.min(axis=0)).astype(float)
        # Half a difference added, not half a sum: the sum of two large coordinates may overflow.
        memory["centre"] = lowest + (xp.maximum(X.max(axis=0), Y.max(axis=0)) - lowest) / 2
    key = ("points", scale, multiples)
    if key not in memory:
        clouds = zip((X, Y), multiples, strict=True)
        x, y = (prepare(Z, memory["centre"], scale, multiple, xp) for Z, multiple in clouds)
        memory[key] = x, y, norms(x, xp), norms(y, xp)
    return memory[key]


def norms(x: Array, xp: ModuleType) -> Array:
    """Return squared norms in float64."""
    blocks = range(0, len(x), BLOCK_ROWS)
    return xp.concatenate([(x[i : i + BLOCK_ROWS].astype(float) ** 2).sum(axis=1) for i in blocks])


def operands(x: Array, precision: str, side: int, xp: ModuleType) -> tuple[Array, Array]:
    """Return (matrix, points): rows whose inner products are wanted, and the points that they stand for.

    ``side`` is 0 for targets, 1 for sources. Three products are one product of rows three times as long, the small terms
    first, so that they are added while the sum is small. Rows are padded to 16 bytes, which matrix units read at once.
    """
    if precision == "fp32":
        parts, points = [x], x
    elif precision == "tf32":
        points = round_tf32(x)
        parts = [points]
    else:
        high = round_tf32(x)
        # x - high is exact: 13 bits and a sign are left of x; rounding them to 11 loses 2^-22 of x.
        low = round_tf32(x - high)
        parts, points = ([low, high, high], [high, low, high])[side], x
    n, d = x.shape
    width = d + -d % (16 // x.itemsize)
    matrix = xp.zeros((n, width * len(parts)), x.dtype)
    for i, part in enumerate(parts):
        matrix[:, i * width : i * width + d] = part
    return matrix, points


def error_factor(d: int, precision: str) -> float:
    """Return the error of q = n_x + n_y - 2 x.y in units of eps (n_x + n_y) / 2; derived, not measured.

    Norms and the final sum are rounded once each: 2. A sum of d products with rounded partial sums errs like a random
    walk, sqrt(d), of which the constant one is some four standard deviations for points that are not close (close
    ones are computed from differences). Matrix units cut off instead of rounding, once for eight products: a drift of
    d / 8 halves of the last place of a partial sum, which is half a quarter of the norms on average: d / 32. Splitting
    drops lo lo, at most 2^-22 a product and of random sign: one more.
    """
    factor = 2.0 + math.sqrt(d)
    if precision != "fp32":
        factor += d / 32
    return factor + (precision == "3xtf32")


def nearness(d: int, precision: str) -> float:
    """Return c: where q < c (n_x + n_y), inner products lose more than half of what the tolerance gives to q.

    error eps (n_x + n_y) / 2 <= (C / 2) sqrt(d) eps q; about 0.3, an angle of some 45 degrees seen from the centre.
    Points in many dimensions are mostly at right angles.
    """
    return error_factor(d, precision) / (C * math.sqrt(d))
