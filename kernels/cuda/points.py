"""What depends on the points alone, made on the device in two launches: which form of q suits them, and scaled copies.

``measure`` looks at every point once: its distance from a centre, the mean of some points evenly taken from both clouds,
and its largest coordinate there. ``pack`` turns what the blocks of ``measure`` found into the form (``pick``), which the
pair loops read on the device, and writes the copies: centred and pre-scaled, or as they came for the exact form. The
host does not wait, and never learns what was chosen unless it asks.

The dot form errs by at most ln 2 * 2 eps * far relative to the kernel, far the largest |x'|^2; it is taken below the
accuracy asked. Scaling rounds a coordinate by eps half / 2, half the largest |x'_k|: unseen next to the rounding of a sum
of m terms where half < sqrt(m) / 2 (gpukoop.kernels.cuda.form.limits).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda, float64, int32, uint64

from gpukoop.kernels.cuda.device import Arithmetic, u
from gpukoop.kernels.cuda.specification import FORMS, SAMPLE, Points, padded


def measure(spec: Points, _: None, arithmetic: Arithmetic) -> Any:
    """Return the frame of the centre, and of ``found[block]`` = (largest |x_k - c_k|, largest |x - c|^2)."""
    D, BLOCK, SAMPLES = u(spec.d), u(spec.block), u(SAMPLE)
    WORDS, LANES = spec.d, spec.block
    u0, one, two, zero, mean = u(0), u(1), u(2), np.float64(0), np.float64(0.5 / SAMPLE)

    def frame(X, Y, centre, found, n, m, more, blocks):
        c = cuda.shared.array(WORDS, float64)
        widest = cuda.shared.array(LANES, float64)
        farthest = cuda.shared.array(LANES, float64)
        tid, block = uint64(cuda.threadIdx.x), uint64(cuda.blockIdx.x)
        k = tid
        while k < D:
            # Some points evenly taken from both clouds are a centre good enough: it need only bring coordinates near zero, and
            # a mean of all would take a launch of its own.
            total, i = zero, u0
            while i < SAMPLES:
                total += float64(X[(i * n // SAMPLES) * D + k]) + float64(
                    Y[(i * m // SAMPLES) * D + k]
                )
                i += one
            c[k] = mean * total
            if block == u0:
                centre[k] = c[k]
            k += BLOCK
        cuda.syncthreads()
        width, far = zero, zero
        i = block * BLOCK + tid
        while i < n + more:
            square, k = zero, u0
            while k < D:
                # In float64, once a point: a cloud at 1e6 with spread 1 keeps its digits until the centre is taken off.
                h = (float64(X[i * D + k]) if i < n else float64(Y[(i - n) * D + k])) - c[k]
                width = max(width, abs(h))
                square += h * h
                k += one
            far = max(far, square)
            i += blocks * BLOCK
        widest[tid], farthest[tid] = width, far
        cuda.syncthreads()
        # One thread walks the numbers of the block: a tree of barriers would gain little in a launch that runs once an
        # operator.
        if tid == u0:
            i = one
            while i < BLOCK:
                width, far = max(width, widest[i]), max(far, farthest[i])
                i += one
            found[block * two], found[block * two + one] = width, far

    return frame


def pack(spec: Points, _: None, arithmetic: Arithmetic) -> Any:
    """Return the frame of the copies ``x`` and ``y``, feature by feature with their squares in wide frames, and of ``pick``."""
    real = arithmetic.real
    D, PADDED, BLOCK, WIDE = u(spec.d), u(padded(spec.d)), u(spec.block), spec.wide
    u0, one, two, zero = u(0), u(1), u(2), np.float64(0)
    DOT, DIFFERENCE, EXACT = (np.int32(i) for i in range(len(FORMS)))
    ABLE, SCALED = "dot" in spec.forms, "difference" in spec.forms

    def frame(X, Y, x, y, xx, yy, centre, found, pick, n, m, more, blocks, scale, narrow, near):
        width, far, i = zero, zero, u0
        if ABLE or SCALED:
            # Every thread reads what all blocks found instead of a third launch that would reduce it: a few kilobytes from L2.
            while i < blocks:
                width, far = max(width, found[i * two]), max(far, found[i * two + one])
                i += one
        # Decided by every thread alike and written by one: the pair loops read it from memory, so the host need not know it,
        # and a captured graph stays valid for other points.
        form = EXACT
        if SCALED and scale * width <= narrow:
            form = DIFFERENCE
        if ABLE and scale * scale * far <= near:
            form = DOT
        i = uint64(cuda.blockIdx.x) * BLOCK + uint64(cuda.threadIdx.x)
        if i == u0:
            pick[0] = int32(form)
        if i < n + more:
            square, k = zero, u0
            while k < D:
                a = float64(X[i * D + k]) if i < n else float64(Y[(i - n) * D + k])
                if form != EXACT:
                    a = (a - centre[k]) * scale
                # The norm is that of the rounded coordinates: then |x|^2 - 2 x.y + |y|^2 of a point with itself cancels to
                # rounding, not to the rounding of the scaling.
                b = real(a)
                square += float64(b) * float64(b)
                if i < n:
                    x[k * n + i if WIDE else i * D + k] = b
                else:
                    y[k * m + (i - n) if WIDE else (i - n) * D + k] = b
                k += one
            if WIDE:
                # Zeros up to a multiple of four features, so that the loop over features has no remainder.
                while k < PADDED:
                    if i < n:
                        x[k * n + i] = real(zero)
                    else:
                        y[k * m + (i - n)] = real(zero)
                    k += one
                if i < n:
                    xx[i] = real(square)
                else:
                    yy[i - n] = real(square)

    return frame
