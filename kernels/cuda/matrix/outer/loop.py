"""The loop over pairs of many features on CUDA cores: inner products as outer products in registers; one visible frame.

A thread keeps the products of 8 targets with 8 sources, a block of 8 x 16 threads those of 64 with 128. Features
pass through shared memory in chunks, of targets and sources alike, while the next chunk arrives: each number that a thread
reads serves eight multiply-adds, and each that a block reads 64 or 128, so neither shared memory nor the second-level cache is
the bound. No tile of products ever leaves the registers.

    q = n_i + n_j - 2 x.y

Points lie feature by feature, padded to whole blocks and to a multiple of four features with zeros; the number of features is
an argument, so one program serves them all. Close pairs, q < cut (n_i + n_j), would cancel: their q is summed from
differences of the points as they came. Sums are compensated from tile to tile; the 16 threads of a target are added in
order: no atomics, the same bits in any order of threads.
"""

# mypy: ignore-errors
from __future__ import annotations

from collections.abc import Callable

from numba import cuda, float32, uint64

from gpukoop.kernels.cuda.device import LOWEST, Arithmetic, device, u
from gpukoop.kernels.cuda.functions import Functions
from gpukoop.kernels.cuda.matrix.instructions import (
    arrived,
    copy16,
    profile,
    registers,
    squares,
)
from gpukoop.kernels.cuda.matrix.outer.shape import CHUNK, EACH, OuterShape

# A reference of a log-sum-exp that lags behind by more than this is raised: 2^40 sums of such size do not overflow.
LAG = 40.0


def frame(shape: OuterShape, functions: Functions, arithmetic: Arithmetic) -> Callable[..., None]:
    """Return the loop of one shape for one profile, a Python function of ``shape.arguments``."""
    of = functions.trace
    phi, _, log2 = profile(of, shape.log, arithmetic.names())
    carry, exp2f = arithmetic.carry, arithmetic.exp2
    CLOSE, LOG = shape.close, shape.log
    zero, lag, lowest = float32(0.0), float32(LAG), float32(LOWEST)
    x_words, y_words = 2 * CHUNK * shape.targets, 2 * CHUNK * shape.sources
    side_words, own_words, scalars = 4 * shape.sources, shape.targets, len(of.symbols) + 3
    square, row = (EACH, EACH), EACH
    k0, k1, k2, k3, k4, k7, k8, k12 = (u(i) for i in (0, 1, 2, 3, 4, 7, 8, 12))
    LANES_X, LANES_Y = u(shape.targets // 4), u(shape.sources // 4)
    TARGETS, SOURCES, COLUMNS, FEATURES = (
        u(i) for i in (shape.targets, shape.sources, shape.columns, CHUNK)
    )
    # A thread's targets are two groups of four half a block apart: so the lanes of a warp read neighbouring groups, which are
    # in different banks.
    FAR, AWAY = u(shape.targets // 2), u(shape.sources // 2)
    STEP, THREADS, SCALARS, PAIR = (
        u(i) for i in (4 * shape.threads, shape.threads, scalars, 2 * shape.sources)
    )
    pick, put = registers(EACH, EACH)

    def stager(points):
        WORDS, NEXT = u(CHUNK * points), u(4 * shape.threads // points)
        COPIES = u(CHUNK * points // (4 * shape.threads))

        @device
        def stage(tile, source, at, pitch, buffer, tid):
            """Let a chunk of features arrive: a thread copies four points of a feature at a time."""
            w = buffer * WORDS + tid * k4
            for _ in range(COPIES):
                copy16(tile, w, source, at)
                w, at = w + STEP, at + NEXT * pitch

        return stage

    stage_x, stage_y = stager(shape.targets), stager(shape.sources)

    @device
    def stage_side(side, norms, v, tile, parity, tid):
        """Let norms and weights of a tile of sources arrive."""
        w = tid * k4
        if w < SOURCES:
            copy16(side, parity * PAIR + w, norms, tile * SOURCES + w)
            copy16(side, parity * PAIR + SOURCES + w, v, tile * SOURCES + w)

    @device
    def outer(C, xs, ys, i, j):
        """Add the products of one feature: 16 numbers read, 64 multiply-adds."""
        A, B = cuda.local.array(row, float32), cuda.local.array(row, float32)
        for e in range(k4):
            A[e], A[e + k4] = xs[i + e], xs[i + FAR + e]
            B[e], B[e + k4] = ys[j + e], ys[j + AWAY + e]
        for r in range(k8):
            for e in range(k8):
                C[r, e] += A[r] * B[e]

    @device
    def four(C, xs, ys, i, j):
        """Add the products of four features; the compiler would not write a loop out."""
        outer(C, xs, ys, i, j)
        outer(C, xs, ys, i + TARGETS, j + SOURCES)
        outer(C, xs, ys, i + k2 * TARGETS, j + k2 * SOURCES)
        outer(C, xs, ys, i + k3 * TARGETS, j + k3 * SOURCES)

    def pairs(
        x, y, nx, ny, v, a, b, symbols, sums,
        n, m, d, features, N, M, per, tiles, rare,
    ):  # fmt: skip
        xs = cuda.shared.array(x_words, float32, alignment=16)
        ys = cuda.shared.array(y_words, float32, alignment=16)
        side = cuda.shared.array(side_words, float32, alignment=16)
        own = cuda.shared.array(own_words, float32, alignment=16)
        C, s = cuda.local.array(square, float32), cuda.local.array(scalars, float32)
        P, S, E = (
            cuda.local.array(row, float32),
            cuda.local.array(row, float32),
            cuda.local.array(row, float32),
        )
        T, W, Y = (
            cuda.local.array(row, float32),
            cuda.local.array(row, float32),
            cuda.local.array(row, float32),
        )
        tid = uint64(cuda.threadIdx.x)
        split = uint64(cuda.blockIdx.y)
        first = uint64(cuda.blockIdx.x) * TARGETS
        i0, j0 = (tid // COLUMNS) * k4, (tid % COLUMNS) * k4
        for k in range(SCALARS):
            s[k] = symbols[k]
        stretch, cut = s[k0], s[SCALARS - k1]
        for r in range(k8):
            S[r] = E[r] = zero
            T[r] = lowest
        w = tid
        while w < TARGETS:
            own[w] = nx[first + w]
            w += THREADS
        # Where this thread copies from, advanced chunk by chunk: a product of 64 bits a chunk would cost as much as a feature.
        from_x = (tid // LANES_X) * N + first + (tid % LANES_X) * k4
        from_y = (tid // LANES_Y) * M + (tid % LANES_Y) * k4
        tile = split * per
        stop = min(tile + per, tiles)
        buffer, parity = k0, k0
        at_x, at_y = from_x, from_y + tile * SOURCES
        stage_x(xs, x, at_x, N, buffer, tid)
        stage_y(ys, y, at_y, M, buffer, tid)
        stage_side(side, ny, v, tile, parity, tid)
        arrived()
        cuda.syncthreads()
        while tile < stop:
            for r in range(k8):
                for e in range(k8):
                    C[r, e] = zero
            left = features
            while left > k0:
                # The next chunk arrives while this one is multiplied; after the last one of a tile it is the next tile's first.
                at_x, at_y = at_x + FEATURES * N, at_y + FEATURES * M
                if left <= FEATURES:
                    at_x, at_y = from_x, from_y + (tile + k1) * SOURCES
                    if tile + k1 < stop:
                        stage_side(side, ny, v, tile + k1, k1 - parity, tid)
                if left > FEATURES or tile + k1 < stop:
                    stage_x(xs, x, at_x, N, k1 - buffer, tid)
                    stage_y(ys, y, at_y, M, k1 - buffer, tid)
                i, j = buffer * FEATURES * TARGETS + i0, buffer * FEATURES * SOURCES + j0
                if left >= FEATURES:
                    # Written out, all sixteen: addresses are constants then, and nothing is counted.
                    four(C, xs, ys, i, j)
                    four(C, xs, ys, i + k4 * TARGETS, j + k4 * SOURCES)
                    four(C, xs, ys, i + k8 * TARGETS, j + k8 * SOURCES)
                    four(C, xs, ys, i + k12 * TARGETS, j + k12 * SOURCES)
                    left -= FEATURES
                else:
                    while left > k0:
                        four(C, xs, ys, i, j)
                        i, j = i + k4 * TARGETS, j + k4 * SOURCES
                        left -= k4
                arrived()
                cuda.syncthreads()
                buffer = k1 - buffer
            w = parity * PAIR + j0
            for e in range(k4):
                Y[e], Y[e + k4] = side[w + e], side[w + AWAY + e]
                W[e], W[e + k4] = side[w + SOURCES + e], side[w + SOURCES + AWAY + e]
            found = False
            for r in range(k8):
                z = own[i0 + (r & k3) + (r >> k2) * FAR]
                for e in range(k8):
                    both = z + Y[e]
                    C[r, e] = both - (C[r, e] + C[r, e])
                    if CLOSE:
                        found |= C[r, e] < cut * both
            if CLOSE:
                if found:
                    w = k0
                    # A runtime bound, lest this rare branch is written out for every pair and spends the registers of the
                    # usual one.
                    while w < rare:
                        r, e = w >> k3, w & k7
                        i = i0 + (r & k3) + (r >> k2) * FAR
                        j = j0 + (e & k3) + (e >> k2) * AWAY
                        if pick(C, w, k8) < cut * (own[i] + side[parity * PAIR + j]):
                            i, j = min(first + i, n - k1), min(tile * SOURCES + j, m - k1)
                            put(C, w, stretch * squares(a, b, i, j, d))
                        w += k1
            for r in range(k8):
                P[r] = zero
                if LOG:
                    peak = lowest
                    for e in range(k8):
                        C[r, e] = W[e] + log2(C[r, e], s)
                        peak = max(peak, C[r, e])
                    if peak - T[r] > lag:
                        less = exp2f(T[r] - peak)
                        S[r] *= less
                        E[r] *= less
                        T[r] = peak
                    for e in range(k8):
                        P[r] += exp2f(C[r, e] - T[r])
                else:
                    for e in range(k8):
                        P[r] += W[e] * phi(C[r, e], s)
                S[r], E[r] = carry(S[r], E[r], P[r])
            tile += k1
            parity = k1 - parity
        # Every thread of a target has a part of its sum; what they read of the last chunk lies behind a barrier already.
        w = (tid % COLUMNS) * TARGETS + i0
        for r in range(k8):
            xs[w + (r & k3) + (r >> k2) * FAR] = S[r]
            if LOG:
                ys[w + (r & k3) + (r >> k2) * FAR] = T[r]
        cuda.syncthreads()
        w = tid
        while w < TARGETS:
            i = first + w
            total, error, peak, k = zero, zero, lowest, k0
            if LOG:
                while k < COLUMNS:
                    peak = max(peak, ys[k * TARGETS + w])
                    k += k1
                k = k0
            while k < COLUMNS:
                part = xs[k * TARGETS + w]
                if LOG:
                    part *= exp2f(ys[k * TARGETS + w] - peak)
                total, error = carry(total, error, part)
                k += k1
            if i < n:
                # of a log-sum-exp: sums first, then their references
                sums[split * n + i] = total
                if LOG:
                    sums[(uint64(cuda.gridDim.y) + split) * n + i] = peak
            w += THREADS

    return pairs
