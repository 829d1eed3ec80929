"""Two steps of every pair loop in registers: the squared distance of a pair, and the staging of a tile of sources."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpukoop.kernels.cuda.device import Arithmetic, device, u
from gpukoop.kernels.cuda.functions import Functions
from gpukoop.kernels.cuda.specification import Specification


def make_squares(spec: Specification, of: Functions, arithmetic: Arithmetic) -> Any:
    """Return ``squares(X, N, H, r, tile, j, s)``: what registers hold of q, with x - y left in H for a slope.

    With ``down`` that is N - q for the dot form and -q else; otherwise offset + q.
    """
    real = arithmetic.real
    DOT, EXACT, DOWN, SLOPE = (
        spec.form == "dot",
        spec.form == "exact",
        of.down,
        spec.operation.slope,
    )
    D, BIAS, OFFSET, zero = u(spec.d), u(spec.d + spec.t), real(of.offset), real(0)

    @device
    def squares(X, N, H, r, tile, j, s):
        # |x|^2 - 2 x.y + |y|^2 with the norms prepared: d multiply-adds a pair instead of 2 d operations. It cancels for close
        # pairs, which packing has found harmless for these points, or the form is another.
        if DOT:
            q = N[r] - tile[j + BIAS] if DOWN else N[r] + tile[j + BIAS]
            for k in range(D):
                q += X[r, k] * tile[j + k]
            return q
        # Coordinates as they came: what scaling them would round is multiplied after the sum. One multiplication a pair more.
        if EXACT:
            q = zero
            for k in range(D):
                h = X[r, k] - tile[j + k]
                q += h * h
                if SLOPE:
                    H[k] = h
            return -(s[0] * q) if DOWN else OFFSET + s[0] * q
        # Starting at the constant that the profile adds, 1 + q of a multiquadric, saves its addition.
        q = OFFSET
        for k in range(D):
            h = X[r, k] - tile[j + k]
            if SLOPE:
                H[k] = h
            if DOWN:
                q -= h * h
            else:
                q += h * h
        return q

    return squares


def make_stage(spec: Specification, of: Functions, arithmetic: Arithmetic) -> Any:
    """Return ``stage(tile, y, v, b, m, column, columns, tid)``: tile number b in shared memory, a record a thread.

    Sources past the end are copies of the last one that have no weight. ``columns`` are those of v, of which the pass takes
    ``T`` from ``column`` on; past the last one it takes zeros. Under a log-sum-exp weights become logarithms in base two.
    """
    real = arithmetic.real
    LOG, BIASED, MERGED = spec.operation.log, spec.biased, of.merged
    D, T, W, SOURCES, BLOCK = u(spec.d), u(spec.t), u(spec.record), u(spec.tile), u(spec.block)
    zero, nothing, base_two, one = real(0), real(-np.inf), real(1 / np.log(2.0)), u(1)

    @device
    def stage(tile, y, v, b, m, column, columns, tid):
        w = tid
        while w < SOURCES:
            # A copy of the last source where there is none: finite coordinates, so that weight zero times kernel is zero and
            # not NaN.
            i, j = min(b * SOURCES + w, m - one), w * W
            absent = b * SOURCES + w >= m
            norm = zero
            for k in range(D):
                a = y[i * D + k]
                tile[j + k] = a
                norm += a * a
            for c in range(T):
                weight = nothing if LOG else zero
                if not absent and column + c < columns:
                    weight = v[i * columns + column + c]
                    if LOG:
                        # exp2 is the instruction; natural logarithms are turned once a source rather than once a pair.
                        weight *= base_two
                tile[j + D + c] = weight
            # The square of the source in the record costs a word of shared memory and saves d multiply-adds a pair.
            if BIASED:
                tile[j + D + T] = tile[j + D] - norm if MERGED else norm
            w += BLOCK

    return stage
