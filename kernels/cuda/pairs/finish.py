"""The second pass: partial results of the splits, summed in a fixed order.

Few targets do not fill a device, so the sources are split over blocks. One thread a result adds the partial ones in
ascending order with compensation: no atomics, hence the same bits at every run.
"""

from __future__ import annotations

import math
from typing import Any

from numba import cuda, uint64

from gpukoop.kernels.cuda.device import Arithmetic, u
from gpukoop.kernels.cuda.specification import Finish


def add_splits(spec: Finish, _: None, arithmetic: Arithmetic) -> Any:
    """Return the frame that adds values (split, i, c) and slopes (split, i, c, k), or (split, c, k, i) of wide frames."""
    real, carry = arithmetic.real, arithmetic.carry
    WIDE, VALUE, SLOPE, D, u0, one, zero = (
        spec.wide,
        spec.operation.value,
        spec.operation.slope,
        u(spec.d),
        u(0),
        u(1),
        real(0),
    )

    def frame(value_part, slope_part, value, slope, n, columns, splits):
        # One thread a result, ascending splits: adding with atomics would be one launch less, and other bits at every run.
        i = uint64(cuda.blockIdx.x) * uint64(cuda.blockDim.x) + uint64(cuda.threadIdx.x)
        values = n * columns if VALUE else u0
        slopes = n * columns * D
        k, s, e = u0, zero, zero
        if i < values:
            while k < splits:
                s, e = carry(s, e, value_part[k * values + i])
                k += one
            value[i] = s
        elif SLOPE and i - values < slopes:
            i -= values
            j = i
            # Slopes of wide frames lie feature by feature; they are turned here, where they are read once anyway.
            if WIDE:
                j = i % (columns * D) * n + i // (columns * D)
            while k < splits:
                s, e = carry(s, e, slope_part[k * slopes + j])
                k += one
            slope[i] = s

    return frame


def join_splits(spec: Finish, _: None, arithmetic: Arithmetic) -> Any:
    """Return the frame that joins (reference, sum) pairs, and slopes if asked.

    L = ln 2 (top + log2 sum); the gradient is the quotient of two sums, zero where no source has weight.
    """
    real, carry, exp2, log2 = (
        arithmetic.real,
        arithmetic.carry,
        arithmetic.exp2,
        arithmetic.log2_exact,
    )
    WIDE, SLOPE, D, u0, one, zero, unit = (
        spec.wide,
        spec.operation.slope,
        u(spec.d),
        u(0),
        u(1),
        real(0),
        real(math.log(2.0)),
    )

    def frame(top_part, value_part, slope_part, value, slope, n, splits):
        i = uint64(cuda.blockIdx.x) * uint64(cuda.blockDim.x) + uint64(cuda.threadIdx.x)
        if i < n:
            # The largest reference first: then every factor is at most one and nothing overflows, however far apart the splits
            # were.
            most, k = top_part[i], u0
            while k < splits:
                most = max(most, top_part[k * n + i])
                k += one
            s, e, k = zero, zero, u0
            while k < splits:
                s, e = carry(s, e, value_part[k * n + i] * exp2(top_part[k * n + i] - most))
                k += one
            total = s
            # The accurate logarithm, once a target; the loops used the approximate one.
            value[i] = unit * (most + log2(total))
            if SLOPE:
                c = u0
                while c < D:
                    s, e, k = zero, zero, u0
                    while k < splits:
                        j = (k * D + c) * n + i if WIDE else (k * n + i) * D + c
                        s, e = carry(s, e, slope_part[j] * exp2(top_part[k * n + i] - most))
                        k += one
                    # Without any weight the value is -inf and the slope zero by definition, not 0 / 0.
                    slope[i * D + c] = s / total if total > zero else zero
                    c += one

    return frame
