"""The pair loop for many features: distances first, chunk by chunk, then the sums.

A thread keeps the squared distances of 2 targets to 16 sources in registers while the features pass through shared memory
in chunks. Points are stored feature by feature, so that neighbouring threads read neighbouring numbers. The gradient goes
through the features a second time with the weights in registers, and adds to its results in memory, compensated, once
every 16 sources.

Every target of every split has one owner: no atomics, the same bits in any order of threads. Letters are those of
:mod:`gpukoop.kernels.cuda.pairs.sums`, f is a feature of the points, k its place in the chunk.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda, uint64

from gpukoop.kernels.cuda.device import LOWEST, Arithmetic, device, u
from gpukoop.kernels.cuda.functions import Functions
from gpukoop.kernels.cuda.specification import CHUNK, FEATURE_STEP, FORMS, Specification, padded


def wide(spec: Specification, of: Functions, arithmetic: Arithmetic) -> Any:
    """Return the frame of any operation: outputs as in the other frames, but slopes are (split, column, feature, target)."""
    real, carry, exp2 = arithmetic.real, arithmetic.carry, arithmetic.exp2
    phi, log2_phi, steepness = of.build(arithmetic.names(), device)
    LOG, SLOPE, DOT, EXACT = (
        spec.operation.log,
        spec.operation.slope,
        spec.form == "dot",
        spec.form == "exact",
    )
    VALUE, MERGED, DOWN = spec.operation.value and not LOG, of.merged, of.down
    GUARDED, KINK, FORM = of.guarded, of.kink, FORMS.index(spec.form)
    n_sums = 1 if LOG else spec.t if VALUE else 0
    PAIRS, TARGETS, SUMS, WORDS = (
        (spec.targets, spec.tile),
        spec.targets,
        (spec.targets, max(1, n_sums)),
        CHUNK * spec.tile,
    )
    WEIGHTS = (spec.t + DOT) * spec.tile
    R, SOURCES, D, T, A, BLOCK = (
        u(i) for i in (spec.targets, spec.tile, spec.d, spec.t, n_sums, spec.block)
    )
    FEATURES, ALL, u0, one, BIAS = (
        u(CHUNK),
        u(spec.t * spec.tile),
        u(0),
        u(1),
        u(spec.t * spec.tile),
    )
    zero, lag, lowest, nothing = real(0), real(40), real(LOWEST), real(-np.inf)
    # Features are padded to a multiple of four with zeros: differences of zeros add nothing, and the unrolled loop has no
    # remainder.
    PADDED, TWO, THREE, FOUR = u(padded(spec.d)), u(2), u(3), u(FEATURE_STEP)
    K2, K3, K4 = (u(i * spec.tile) for i in (2, 3, 4))
    base_two, OFFSET = real(1 / np.log(2.0)), real(of.offset)

    @device
    def stage(tile, y, b, m, c, end, tid):  # features c to end of the sources of tile b
        w = tid
        # Feature by feature, so that the threads of a warp copy neighbouring numbers and later all read the same word, which is
        # a broadcast.
        while w < (end - c) * SOURCES:
            tile[w] = y[(c + w // SOURCES) * m + min(b * SOURCES + w % SOURCES, m - one)]
            w += BLOCK

    @device
    def stage_weights(weights, v, yy, b, m, column, columns, tid):
        w = tid
        while w < ALL:
            i, c = b * SOURCES + w % SOURCES, column + w // SOURCES
            weight = nothing if LOG else zero
            if i < m and c < columns:
                weight = v[i * columns + c]
                if LOG:
                    weight *= base_two
            weights[w] = weight
            w += BLOCK
        if DOT and tid < SOURCES:
            weights[BIAS + tid] = yy[min(b * SOURCES + tid, m - one)]

    @device
    def distances(Q, x, tile, row, n, f, k):  # one feature
        # One number of the target serves 16 sources: 32 squared distances in registers are what makes the loop multiply-add
        # bound instead of bound by loads.
        for r in range(R):
            a = x[f * n + min(row + r * BLOCK, n - one)]
            for j in range(SOURCES):
                if DOT:
                    Q[r, j] += a * tile[k + j]
                else:
                    h = a - tile[k + j]
                    Q[r, j] += h * h

    def frame(
        x, y, xx, yy, v, pick, top, value, slope, correction, n, m, per, tiles, column, columns, s
    ):
        tile = cuda.shared.array(WORDS, real)
        weights = cuda.shared.array(WEIGHTS, real)
        if pick[0] != FORM:
            return
        Q, P = cuda.local.array(PAIRS, real), cuda.local.array(SUMS, real)
        S, E = cuda.local.array(SUMS, real), cuda.local.array(SUMS, real)
        N, REF = cuda.local.array(TARGETS, real), cuda.local.array(TARGETS, real)
        tid = uint64(cuda.threadIdx.x)
        split = uint64(cuda.blockIdx.y)
        row = uint64(cuda.blockIdx.x) * (BLOCK * R) + tid
        at = (split * columns + column) * D  # slopes of this split and column, feature by feature
        home = split * D
        for r in range(R):
            i = row + r * BLOCK
            N[r] = xx[min(i, n - one)] if DOT else zero
            REF[r] = lowest
            for a in range(A):
                S[r, a] = E[r, a] = zero
            if SLOPE and i < n:
                f = u0
                while f < D:
                    # Slopes of a hundred features do not fit into registers; they and their errors live in memory, touched once
                    # every 16 sources. This thread alone ever touches them, so no atomics.
                    slope[(at + f) * n + i] = correction[(home + f) * n + i] = zero
                    f += one
        b = split * per
        stop = min(b + per, tiles)
        while b < stop:
            for r in range(R):
                for j in range(SOURCES):
                    Q[r, j] = zero
            c = u0
            while c < PADDED:
                end = min(c + FEATURES, PADDED)
                cuda.syncthreads()
                stage(tile, y, b, m, c, end, tid)
                # Weights come with the first chunk: their loads hide behind its barrier.
                if c == u0:
                    stage_weights(weights, v, yy, b, m, column, columns, tid)
                cuda.syncthreads()
                f, k = c, u0
                while f < end:
                    # Four features written out: enough independent multiply-adds to hide the latency of the loads of x.
                    distances(Q, x, tile, row, n, f, k)
                    distances(Q, x, tile, row, n, f + one, k + SOURCES)
                    distances(Q, x, tile, row, n, f + TWO, k + K2)
                    distances(Q, x, tile, row, n, f + THREE, k + K3)
                    f += FOUR
                    k += K4
                c = end
            for r in range(R):
                for j in range(SOURCES):
                    q = Q[r, j]
                    if DOT:
                        # The norms are added before the product is taken off, large minus large once, as float32 does best.
                        q = (weights[BIAS + j] + N[r]) - (q + q)
                    elif EXACT:
                        q = s[0] * q
                    Q[r, j] = -q if DOWN else OFFSET + q
            for r in range(R):
                for a in range(A):
                    P[r, a] = zero
                if LOG:
                    # Exponents are in registers already, so the maximum of 16 costs nothing to find, and one reference serves
                    # all of them.
                    most = nothing
                    for j in range(SOURCES):
                        q = Q[r, j]
                        most = max(most, weights[j] + (q if MERGED else log2_phi(q, s)))
                    if most - REF[r] > lag:  # rare: raise the reference
                        g = exp2(REF[r] - most)
                        REF[r] = most
                        # Everything summed so far is relative to the old reference, errors and slopes in memory included.
                        S[r, u0] *= g
                        E[r, u0] *= g
                        if SLOPE and row + r * BLOCK < n:
                            f = u0
                            while f < D:
                                slope[(at + f) * n + row + r * BLOCK] *= g
                                correction[(home + f) * n + row + r * BLOCK] *= g
                                f += one
                    for j in range(SOURCES):
                        q = Q[r, j]
                        e = exp2((weights[j] - REF[r]) + (q if MERGED else log2_phi(q, s)))
                        P[r, u0] += e
                        if SLOPE:
                            w = e * steepness(q, s)
                            if KINK:
                                w = w if q > zero else zero
                            Q[r, j] = w
                else:
                    for j in range(SOURCES):
                        q = Q[r, j]
                        if VALUE:
                            e = phi(q, s)
                            if GUARDED:
                                e = e if (q < zero if DOWN else q > zero) else zero
                            for c in range(T):
                                P[r, c] += e * weights[c * SOURCES + j]
                        if SLOPE:
                            w = steepness(q, s)
                            if KINK:
                                w = w if (q < zero if DOWN else q > zero) else zero
                            # The squared distance is not needed again: its register holds the weight of the pair for the second
                            # walk through the features.
                            Q[r, j] = w * weights[j]
                for a in range(A):
                    S[r, a], E[r, a] = carry(S[r, a], E[r, a], P[r, a])
            if SLOPE:
                # The features a second time, from L2 as a rule: keeping the differences would take 16 d registers.
                c = u0
                while c < D:
                    end = min(c + FEATURES, D)
                    cuda.syncthreads()
                    stage(tile, y, b, m, c, end, tid)
                    cuda.syncthreads()
                    f, k = c, u0
                    while f < end:
                        for r in range(R):
                            i = row + r * BLOCK
                            a = x[f * n + min(i, n - one)]
                            g = zero
                            for j in range(SOURCES):
                                g += Q[r, j] * (a - tile[k + j])
                            if i < n:
                                o, e = (at + f) * n + i, (home + f) * n + i
                                slope[o], correction[e] = carry(slope[o], correction[e], g)
                        f += one
                        k += SOURCES
                    c = end
            b += one
        for r in range(R):
            i = row + r * BLOCK
            if i < n:
                if LOG:
                    top[split * n + i], value[split * n + i] = REF[r], S[r, u0]
                for c in range(A):
                    if VALUE and column + c < columns:
                        value[(split * n + i) * columns + column + c] = S[r, c]
                if SLOPE:
                    f = u0
                    while f < D:
                        slope[(at + f) * n + i] *= s[1]
                        f += one

    return frame
