"""The loop over pairs on tensor cores: products x.y in registers, kernel values from them, sums of those; one visible frame.

A warp keeps 16, 32 or 64 targets as A fragments and meets 8 sources at a time, which all warps of a block read from one
tile in shared memory while the next one arrives. Everything lies in memory in the order of fragments
(:mod:`gpukoop.kernels.cuda.matrix.packing`): a lane reads 8 or 16 bytes at its own number, so no load has a bank conflict.

    q = n_i + n_j - s_i (2 s_j) x.y         s: a power of two for each point, so that 16-bit numbers hold it (packing)

Two parts a number, hi and lo, make three products; hi lo + lo hi has accumulators of its own, since tensor cores cut
off what does not fit beside a large sum. Kernel values come in the layout of C, which is that of A for the second
product if sources 2t and 2t + 1 are called numbers t and t + 4: no shuffle between the two products.

Close pairs, q < cut (n_i + n_j), would cancel: their q is summed from differences of the points as they came. Their
share of a gradient, w (x_i - y_j), is added by the whole warp, pair after pair, and left out of the second product.
Sums are compensated from tile to tile; no atomics, the same bits in any order of threads.
"""

# mypy: ignore-errors
from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import cuda, float32, int32, uint64
from numba.cuda.libdevice import float_as_int, int_as_float

from gpukoop.kernels.cuda.device import LOWEST, Arithmetic, device, u
from gpukoop.kernels.cuda.functions import Functions
from gpukoop.kernels.cuda.matrix.instructions import (
    arrived,
    copy16,
    mma_f16,
    mma_tf32,
    profile,
    registers,
    squares,
)
from gpukoop.kernels.cuda.matrix.shape import SHORT, THREADS, WARPS, Shape

# A reference of a log-sum-exp that lags behind by more than this is raised: 2^40 sums of such size do not overflow.
LAG = 40.0


def frame(shape: Shape, functions: Functions, arithmetic: Arithmetic) -> Callable[..., None]:
    """Return the loop of one shape for one profile, a Python function of ``shape.arguments``."""
    of = functions.trace
    phi, slope, log2 = profile(of, shape.log, arithmetic.names())
    carry, exp2f = arithmetic.carry, arithmetic.exp2
    FINE, CLOSE, LOG, SLOPE = shape.parts == 2, shape.close, shape.log, shape.slope
    VALUE, WEIGH, REFERENCE = shape.value, shape.width > 0, shape.log and not shape.slope
    RIGHT_FINE = shape.right_parts == 2
    point_words, side_words, right_words = shape.group_words
    half = 4 * shape.parts
    points_shape = (shape.targets, shape.chunks, half)
    four, rows_shape = (shape.targets, 4), (shape.targets, 2)
    sums_shape = (shape.sums, *rows_shape)
    right_shape = (shape.targets, max(shape.columns, 1), 4)
    scalars = len(of.symbols) + 3
    zero, lag, lowest = float32(0.0), float32(LAG), float32(LOWEST)
    # TF32 has 10 bits of mantissa: half a unit of it is added before the rest is cut off, because the unit truncates, and
    # truncation errors of one sign add up.
    MASK, HALF_UNIT, LANES = np.int32(-(1 << 13)), np.int32(1 << 12), 0xFFFFFFFF
    both = 2 * shape.tile_words
    k0, k1, k2, k3, k4, k5, k6, k7, k8, k16, k31, k32 = (
        u(i) for i in (0, 1, 2, 3, 4, 5, 6, 7, 8, 16, 31, 32)
    )
    TARGETS, CHUNKS, COLUMNS, GROUPS = (
        u(i) for i in (shape.targets, shape.chunks, shape.columns, shape.groups)
    )
    WORDS, STEP, ALL = u(shape.tile_words), u(4 * THREADS), u(WARPS)
    POINT, SIDE, RIGHT = (u(i) for i in (point_words, side_words, right_words))
    SIDES, RIGHTS = (
        u(shape.groups * point_words),
        u(shape.groups * (point_words + side_words)),
    )
    LANE, HALF, RIGHT_LANE = u(2 * shape.parts), u(half), u(2 * shape.right_parts)
    WIDTH, OFTEN = u(8 * shape.columns), u(max(1, SHORT // shape.tile))
    SUMS, SCALARS = u(shape.sums), u(scalars)

    pick, put = registers(shape.targets)

    @device
    def stage(tile, y, block, buffer, tid):
        """Let a tile of sources arrive in one of two buffers."""
        w = tid * k4
        while w < WORDS:
            copy16(tile, buffer * WORDS + w, y, block * WORDS + w)
            w += STEP

    def pairs(
        x, y, norms, scales, a, b, symbols, top, sums, moments, errors,
        n, m, d, per, tiles, first, rare,
    ):  # fmt: skip
        tile = cuda.shared.array(both, int32, alignment=16)
        A = cuda.local.array(points_shape, int32)
        C, L = cuda.local.array(four, float32), cuda.local.array(four, float32)
        F = cuda.local.array(four, float32)
        N, U, T = (
            cuda.local.array(rows_shape, float32),
            cuda.local.array(rows_shape, float32),
            cuda.local.array(rows_shape, float32),
        )
        P, S, E = (
            cuda.local.array(sums_shape, float32),
            cuda.local.array(sums_shape, float32),
            cuda.local.array(sums_shape, float32),
        )
        Q, s = cuda.local.array(right_shape, float32), cuda.local.array(scalars, float32)
        tid = uint64(cuda.threadIdx.x)
        lane = tid & k31
        g, t = lane >> k2, lane & k3
        split = uint64(cuda.blockIdx.y)
        team = (uint64(cuda.blockIdx.x) * ALL + (tid >> k5)) * TARGETS
        for k in range(SCALARS):
            s[k] = symbols[k]
        stretch, prescale, cut = s[k0], s[k1], s[SCALARS - k1]
        for r in range(TARGETS):
            for c in range(CHUNKS):
                for e in range(HALF):
                    w = ((team + r) * CHUNKS + c) * HALF + (e & ~k3)
                    A[r, c, e] = x[w * k32 + lane * k4 + (e & k3)]
            for h in range(k2):
                i = (team + r) * k16 + h * k8 + g
                N[r, h], U[r, h] = norms[i], scales[i]
                # A log-sum-exp with a gradient gets its references from the sums made before: then no pair tests, and nothing
                # is rescaled in memory.
                T[r, h] = lowest
                if LOG and SLOPE:
                    T[r, h] = top[i]
                for k in range(SUMS):
                    P[k, r, h] = S[k, r, h] = E[k, r, h] = zero
            for c in range(COLUMNS):
                for e in range(k4):
                    Q[r, c, e] = zero
        block = split * per
        stop = min(block + per, tiles)
        buffer, count = k0, k0
        if block < stop:
            stage(tile, y, block, buffer, tid)
        arrived()
        cuda.syncthreads()
        while block < stop:
            if block + k1 < stop:
                stage(tile, y, block + k1, k1 - buffer, tid)
            base = buffer * WORDS
            j = k0
            while j < GROUPS:
                # products of 16 targets with 8 sources, for every group of targets
                for r in range(TARGETS):
                    for e in range(k4):
                        C[r, e] = L[r, e] = zero
                for c in range(CHUNKS):
                    w = base + j * POINT + (c * k32 + lane) * LANE
                    y0, y1 = tile[w], tile[w + k1]
                    if FINE:
                        z0, z1 = tile[w + k2], tile[w + k3]
                    for r in range(TARGETS):
                        a0, a1, a2, a3 = A[r, c, k0], A[r, c, k1], A[r, c, k2], A[r, c, k3]
                        # hi hi, then hi lo and lo hi in accumulators of their own: beside a large sum their digits would be cut
                        # off, as tensor cores do not round.
                        C[r, k0], C[r, k1], C[r, k2], C[r, k3] = mma_f16(
                            a0, a1, a2, a3, y0, y1, C[r, k0], C[r, k1], C[r, k2], C[r, k3]
                        )
                        if FINE:
                            l0, l1, l2, l3 = mma_f16(
                                a0, a1, a2, a3, z0, z1, L[r, k0], L[r, k1], L[r, k2], L[r, k3]
                            )
                            a0, a1, a2, a3 = A[r, c, k4], A[r, c, k5], A[r, c, k6], A[r, c, k7]
                            L[r, k0], L[r, k1], L[r, k2], L[r, k3] = mma_f16(
                                a0, a1, a2, a3, y0, y1, l0, l1, l2, l3
                            )
                w = base + SIDES + j * SIDE + t * k4
                n0, v0 = int_as_float(tile[w]), int_as_float(tile[w + k1])
                n1, v1 = int_as_float(tile[w + k2]), int_as_float(tile[w + k3])
                w = base + SIDES + j * SIDE + k16 + t * k2
                u0, u1 = int_as_float(tile[w]), int_as_float(tile[w + k1])
                source = (block * GROUPS + j) * k8
                found = False
                for r in range(TARGETS):
                    for e in range(k4):
                        odd = e & k1 == k1
                        dot = C[r, e] + L[r, e] if FINE else C[r, e]
                        z = N[r, e >> k1] + (n1 if odd else n0)
                        C[r, e] = z - U[r, e >> k1] * ((u1 if odd else u0) * dot)
                        if CLOSE:
                            found |= C[r, e] < cut * z
                near = k0
                if CLOSE:
                    if SLOPE:
                        found = cuda.any_sync(LANES, found)
                    if found:
                        w = k0
                        # A runtime bound, lest this rare branch is written out for every pair and spends the registers of the
                        # usual one.
                        while w < rare:
                            z = pick(N, w >> k1, k2) + (n1 if w & k1 == k1 else n0)
                            if pick(C, w, k4) < cut * z:
                                i = (team + (w >> k2)) * k16 + ((w >> k1) & k1) * k8 + g
                                k = source + t * k2 + (w & k1)
                                z = stretch * squares(a, b, min(i, n - k1), min(k, m - k1), d)
                                put(C, w, z)
                                near |= k1 << w
                            w += k1
                for r in range(TARGETS):
                    for e in range(k4):
                        h, v = e >> k1, v1 if e & k1 == k1 else v0
                        if LOG:
                            F[r, e] = v + log2(C[r, e], s)
                            if SLOPE:
                                weight = exp2f(F[r, e] - T[r, h])
                                P[k0, r, h] += weight
                                F[r, e] = weight * slope(C[r, e], s)
                        elif SLOPE:
                            F[r, e] = v * slope(C[r, e], s)
                        if VALUE:
                            P[k0, r, h] += v * phi(C[r, e], s)
                        elif not LOG and not SLOPE:
                            F[r, e] = phi(C[r, e], s)
                    if REFERENCE:
                        for h in range(k2):
                            peak = max(F[r, h * k2], F[r, h * k2 + k1])
                            if peak - T[r, h] > lag:
                                less = exp2f(T[r, h] - peak)
                                P[k0, r, h] *= less
                                S[k0, r, h] *= less
                                E[k0, r, h] *= less
                                T[r, h] = peak
                            P[k0, r, h] += exp2f(F[r, h * k2] - T[r, h])
                            P[k0, r, h] += exp2f(F[r, h * k2 + k1] - T[r, h])
                if SLOPE and CLOSE:
                    if found:
                        w = k0
                        while w < rare:
                            mine = pick(F, w, k4) if (near >> w) & k1 == k1 else zero
                            waiting = cuda.ballot_sync(LANES, mine != zero)
                            while waiting != 0:
                                # the lowest lane that waits: the warp adds its pair, a feature a lane
                                who = uint64(cuda.ffs(waiting)) - k1
                                share = cuda.shfl_sync(LANES, mine, int32(who))
                                i = (team + (w >> k2)) * k16 + ((w >> k1) & k1) * k8 + (who >> k2)
                                k = min(source + (who & k3) * k2 + (w & k1), m - k1)
                                f = lane
                                while f < WIDTH and first + f < d and i < n:
                                    apart = a[i * d + first + f] - b[k * d + first + f]
                                    o = (split * n + i) * WIDTH + f
                                    apart *= -prescale * share
                                    moments[o], errors[o] = carry(moments[o], errors[o], apart)
                                    f += k32
                                waiting &= waiting - 1
                            if (near >> w) & k1 == k1:
                                put(F, w, zero)
                            w += k1
                if SLOPE:
                    for r in range(TARGETS):
                        for e in range(k4):
                            P[SUMS - k1, r, e >> k1] += F[r, e]
                if WEIGH:
                    for c in range(COLUMNS):
                        w = base + RIGHTS + j * RIGHT + (c * k32 + lane) * RIGHT_LANE
                        y0, y1 = tile[w], tile[w + k1]
                        if RIGHT_FINE:
                            z0, z1 = tile[w + k2], tile[w + k3]
                        for r in range(TARGETS):
                            f0, f1, f2, f3 = F[r, k0], F[r, k2], F[r, k1], F[r, k3]
                            a0, a1, a2, a3 = (
                                (float_as_int(f0) + HALF_UNIT) & MASK,
                                (float_as_int(f1) + HALF_UNIT) & MASK,
                                (float_as_int(f2) + HALF_UNIT) & MASK,
                                (float_as_int(f3) + HALF_UNIT) & MASK,
                            )
                            l0, l1 = f0 - int_as_float(a0), f1 - int_as_float(a1)
                            l2, l3 = f2 - int_as_float(a2), f3 - int_as_float(a3)
                            q0, q1, q2, q3 = mma_tf32(
                                float_as_int(l0), float_as_int(l1), float_as_int(l2), float_as_int(l3),
                                y0, y1, Q[r, c, k0], Q[r, c, k1], Q[r, c, k2], Q[r, c, k3],
                            )  # fmt: skip
                            if RIGHT_FINE:
                                q0, q1, q2, q3 = mma_tf32(a0, a1, a2, a3, z0, z1, q0, q1, q2, q3)
                            Q[r, c, k0], Q[r, c, k1], Q[r, c, k2], Q[r, c, k3] = mma_tf32(
                                a0, a1, a2, a3, y0, y1, q0, q1, q2, q3
                            )
                j += k1
            for k in range(SUMS):
                for r in range(TARGETS):
                    for h in range(k2):
                        S[k, r, h], E[k, r, h] = carry(S[k, r, h], E[k, r, h], P[k, r, h])
                        P[k, r, h] = zero
            block += k1
            count += k1
            # Tensor cores truncate, so the accumulators of the second product are emptied often; memory holds a sum with its
            # error.
            if WEIGH and (count == OFTEN or block >= stop):
                count = k0
                cuda.syncwarp()  # close pairs were added by other lanes
                for r in range(TARGETS):
                    for c in range(COLUMNS):
                        for e in range(k4):
                            i = (team + r) * k16 + (e >> k1) * k8 + g
                            if i < n:
                                o = (split * n + i) * WIDTH + c * k8 + t * k2 + (e & k1)
                                moments[o], errors[o] = carry(moments[o], errors[o], Q[r, c, e])
                            Q[r, c, e] = zero
                cuda.syncwarp()
            arrived()
            cuda.syncthreads()
            buffer = k1 - buffer
        if not WEIGH or SLOPE:
            for r in range(TARGETS):
                for h in range(k2):
                    i = (team + r) * k16 + h * k8 + g
                    for k in range(SUMS):
                        total, peak = S[k, r, h], T[r, h]
                        for far in range(2):
                            distance = 1 << far
                            other = cuda.shfl_xor_sync(LANES, total, distance)
                            if REFERENCE:
                                highest = cuda.shfl_xor_sync(LANES, peak, distance)
                                largest = max(peak, highest)
                                total *= exp2f(peak - largest)
                                other *= exp2f(highest - largest)
                                peak = largest
                            total += other
                        if t == k0 and i < n:
                            # of a log-sum-exp: sums first, then their references
                            sums[(k * uint64(cuda.gridDim.y) + split) * n + i] = total
                            if REFERENCE:
                                sums[(uint64(cuda.gridDim.y) + split) * n + i] = peak

    return pairs
