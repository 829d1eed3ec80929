"""The pair loop of K(X, X) @ v that visits each pair once: k_ij serves row i and row j.

A block keeps its targets in registers, as in :mod:`gpukoop.kernels.cuda.pairs.sums`, but walks only the tiles of sources at
or beyond its own. The lanes of a warp stand at different sources: lane l of step k at source l + k of a strip of 32. Each
adds k_ij v_j to the sums of its targets, k_ij v_i to the sum of its source, and hands that sum to its neighbour, who is
the next to stand there. After 32 steps every sum is home. So no two lanes ever add to the same number: no atomics, and no
result depends on the order of threads.

======= =======================================================================================================
strip   32 sources, each with 32 different positions in a warp
plane   a few numbers of every record of a strip: lanes read neighbouring records, without conflicts of banks
row     sums of the targets, kept over all tiles of a block; complete once the splits of a row are added
column  sums of the sources, one number a source for every row of blocks above it
======= =======================================================================================================

The tiles that hold the block's own targets are visited whole, and their column sums are dropped: each of their pairs is
computed twice, as in the one-sided loop, and the diagonal needs no case of its own.
"""

from __future__ import annotations

from typing import Any

from numba import cuda, uint64

from gpukoop.kernels.cuda.device import EVERY_LANE, SIMULATED, WARP, Arithmetic, device, u
from gpukoop.kernels.cuda.functions import Functions
from gpukoop.kernels.cuda.pairs.squares import make_squares
from gpukoop.kernels.cuda.specification import FORMS, Specification, SymmetricFinish
from gpukoop.kernels.cuda.symmetric.shape import POSITIONS, planes


def symmetric(spec: Specification, of: Functions, arithmetic: Arithmetic) -> Any:
    """Return the frame of the row sums of every piece of a row of blocks, and of the column sums of every row."""
    real, plus, carry = arithmetic.real, arithmetic.plus, arithmetic.carry
    phi, _, _ = of.build(arithmetic.names(), device)
    squares = make_squares(spec, of, arithmetic)
    DOT, DOWN, GUARDED, FORM = spec.form == "dot", of.down, of.guarded, FORMS.index(spec.form)
    widths = planes(spec.d + spec.t + spec.biased, spec.dtype)
    RECORD, STRIPS, GROUP, GROUPED = sum(widths), spec.tile // WARP, spec.group, spec.t == 1
    WORDS, COLUMNS, RING = (
        STRIPS * POSITIONS * RECORD,
        spec.block // WARP * spec.t * spec.tile,
        spec.block,
    )
    FEATURES, TARGETS, SUMS = (spec.targets, spec.d), spec.targets, (spec.targets, spec.t)
    STEP_SUMS = (spec.targets if GROUPED else 1, 1)
    R, D, T, BLOCK, TILE = u(spec.targets), u(spec.d), u(spec.t), u(spec.block), u(spec.tile)
    LANES, WARPS, PLACES, TWICE, STRIP = (
        u(WARP),
        u(spec.block // WARP),
        u(STRIPS * POSITIONS),
        u(POSITIONS),
        u(POSITIONS * RECORD),
    )
    OWN, MASK, ALL, NUMBERS = (
        u(spec.block * spec.targets // spec.tile),
        u(WARP - 1),
        u(EVERY_LANE),
        u(spec.d + spec.t + spec.biased),
    )
    WIDTH, LAST = u(widths[0]), u(widths[-1])
    WHOLE, REST = u((len(widths) - 1) * widths[0]), u((len(widths) - 1) * widths[0] * POSITIONS)
    u0, one, two, three, four, five, six, seven = (u(i) for i in range(8))
    step, zero, OFFSET = u(spec.group), real(0), real(of.offset)
    REGISTERS, VECTOR = spec.d + spec.t + spec.biased, spec.t

    @device
    # Records of an even number of words would put several lanes on one bank; in planes of one, two or four words neighbouring
    # lanes read neighbouring addresses.
    def place(
        k, position
    ):  # of number k of a record, in its strip: planes of equal width, the last one narrower
        if k < WHOLE:
            return k // WIDTH * (WIDTH * TWICE) + position * WIDTH + k % WIDTH
        return REST + position * LAST + (k - WHOLE)

    @device
    def stage(
        tile, x, v, b, n, tid
    ):  # the first sources of a strip come again at its end, so that no lane wraps around
        w = tid
        while w < PLACES:
            strip, position = w // TWICE, w % TWICE
            # Twice the strip in memory instead of an index modulo 32: no AND and no addition a step.
            source = b * TILE + strip * LANES + position % LANES
            i, base = min(source, n - one), strip * STRIP
            norm = zero
            for k in range(D):
                a = x[i * D + k]
                tile[base + place(k, position)] = a
                norm += a * a
            for c in range(T):
                tile[base + place(D + c, position)] = v[i * T + c] if source < n else zero
            if DOT:
                tile[base + place(D + T, position)] = norm
            w += BLOCK

    @device
    def pairs(
        X, N, V, Y, P, C, tile, ring, base, position, lane, tid, s
    ):  # one step: a source a lane, R targets
        for k in range(NUMBERS):
            Y[k] = tile[base + place(k, position)]
        # All targets of a lane meet the same source: their shares are added first and handed on as one number.
        share = zero
        for r in range(R):
            q = squares(X, N, Y, r, Y, u0, s)
            e = phi(q, s)
            if GUARDED:
                if DOWN:
                    e = e if q < zero else zero
                else:
                    e = e if q > zero else zero
            for c in range(T):
                P[r, c] += e * Y[D + c]
                if GROUPED:
                    share += e * V[r, c]
                else:  # chained: an addition a step would cost each of several sums a slot
                    C[c] += e * V[r, c]
        if GROUPED:
            C[u0] = plus(C[u0], share)
        # The sum travels with its source: lane l hands it to the lane that stands at this source in the next step. One shuffle
        # a source and R targets, where atomics would take R and lose the order.
        neighbour = (lane + one) & MASK
        for c in range(T):
            if SIMULATED:  # which has no shuffles
                ring[tid] = C[c]
                cuda.syncthreads()
                C[c] = ring[tid - lane + neighbour]
                cuda.syncthreads()
            else:
                C[c] = cuda.shfl_sync(ALL, C[c], neighbour)

    def frame(x, v, pick, part_row, part_column, n, tiles, per, first, s):
        tile = cuda.shared.array(WORDS, real)
        # A row of sums for each warp, added in the order of warps afterwards: order is what makes the result the same at every
        # run.
        sums = cuda.shared.array(COLUMNS, real)
        ring = cuda.shared.array(RING, real) if SIMULATED else sums
        if pick[0] != FORM:
            return
        X, N, V = (
            cuda.local.array(FEATURES, real),
            cuda.local.array(TARGETS, real),
            cuda.local.array(SUMS, real),
        )
        P, S, E = (
            cuda.local.array(SUMS, real),
            cuda.local.array(SUMS, real),
            cuda.local.array(SUMS, real),
        )
        G, C, Y = (
            cuda.local.array(STEP_SUMS, real),
            cuda.local.array(VECTOR, real),
            cuda.local.array(REGISTERS, real),
        )
        tid = uint64(cuda.threadIdx.x)
        lane, warp = tid & MASK, tid // LANES
        band = uint64(cuda.blockIdx.y)
        # From here on a tile holds nobody's targets of this block, and its column sums count.
        beyond = (first + band + one) * OWN
        b = beyond - OWN + uint64(cuda.blockIdx.x) * per
        stop = min(b + per, tiles)
        row = (first + band) * (BLOCK * R) + tid
        # The grid is a rectangle and the work a triangle: blocks past the end of a shorter row leave at once.
        if b >= tiles:  # rows of blocks further down are shorter
            return
        for r in range(R):
            i = min(row + r * BLOCK, n - one)  # of the last block, which has no tile beyond its own
            norm = zero
            for k in range(D):
                a = x[i * D + k]
                if DOT:
                    norm += a * a
                    a = a + a if DOWN else -(a + a)
                X[r, k] = a
            N[r] = -norm if DOWN else OFFSET + norm
            for c in range(T):
                V[r, c] = v[i * T + c]
                S[r, c] = E[r, c] = zero
        while b < stop:
            stage(tile, x, v, b, n, tid)
            cuda.syncthreads()
            for r in range(R):
                for c in range(T):
                    P[r, c] = zero
            strip = u0
            while strip < TILE // LANES:
                base = strip * STRIP
                for c in range(T):
                    # A strip is walked by every lane once, so that the sums that started at zero end complete at the lane they
                    # belong to.
                    C[c] = zero
                j = lane
                while j < LANES + lane:
                    if GROUPED:
                        for r in range(R):
                            G[r, u0] = zero
                        pairs(X, N, V, Y, G, C, tile, ring, base, j, lane, tid, s)
                        pairs(X, N, V, Y, G, C, tile, ring, base, j + one, lane, tid, s)
                        if GROUP >= 4:
                            pairs(X, N, V, Y, G, C, tile, ring, base, j + two, lane, tid, s)
                            pairs(X, N, V, Y, G, C, tile, ring, base, j + three, lane, tid, s)
                        if GROUP >= 8:
                            pairs(X, N, V, Y, G, C, tile, ring, base, j + four, lane, tid, s)
                            pairs(X, N, V, Y, G, C, tile, ring, base, j + five, lane, tid, s)
                            pairs(X, N, V, Y, G, C, tile, ring, base, j + six, lane, tid, s)
                            pairs(X, N, V, Y, G, C, tile, ring, base, j + seven, lane, tid, s)
                        for r in range(R):
                            P[r, u0] = plus(P[r, u0], G[r, u0])
                    else:
                        pairs(X, N, V, Y, P, C, tile, ring, base, j, lane, tid, s)
                        pairs(X, N, V, Y, P, C, tile, ring, base, j + one, lane, tid, s)
                        if GROUP >= 4:
                            pairs(X, N, V, Y, P, C, tile, ring, base, j + two, lane, tid, s)
                            pairs(X, N, V, Y, P, C, tile, ring, base, j + three, lane, tid, s)
                        if GROUP >= 8:
                            pairs(X, N, V, Y, P, C, tile, ring, base, j + four, lane, tid, s)
                            pairs(X, N, V, Y, P, C, tile, ring, base, j + five, lane, tid, s)
                            pairs(X, N, V, Y, P, C, tile, ring, base, j + six, lane, tid, s)
                            pairs(X, N, V, Y, P, C, tile, ring, base, j + seven, lane, tid, s)
                    j += step
                for c in range(T):
                    # After 32 hand-overs the sum of source l is back at lane l: neighbouring lanes write neighbouring words.
                    sums[(warp * T + c) * TILE + strip * LANES + lane] = C[c]
                strip += one
            for r in range(R):
                for c in range(T):
                    S[r, c], E[r, c] = carry(S[r, c], E[r, c], P[r, c])
            cuda.syncthreads()
            if b >= beyond:  # column sums of the warps, added in their order
                w = tid
                while w < TILE:
                    j = b * TILE + w
                    if j < n:
                        # Sources before the band were finished by earlier bands: buffers of columns begin at its first row,
                        # which is what bounds their memory.
                        start = first * (BLOCK * R)
                        o = (band * (n - start) + j - start) * T
                        for c in range(T):
                            total, k = sums[c * TILE + w], one
                            while k < WARPS:
                                total = plus(total, sums[(k * T + c) * TILE + w])
                                k += one
                            part_column[o + c] = total
                    w += BLOCK
            b += one
        o = ((uint64(cuda.blockIdx.x) * uint64(cuda.gridDim.y) + band) * (BLOCK * R) + tid) * T
        for r in range(R):
            for c in range(T):
                part_row[o + r * (BLOCK * T) + c] = S[r, c]

    return frame


def add_band(spec: SymmetricFinish, _: None, arithmetic: Arithmetic) -> Any:
    """Return the frame that adds the rows and columns of a band to the result.

    A number i has one thread: first what earlier bands left, then the columns of the rows of blocks above its own, then
    the pieces of its own row. ``targets`` is the numbers of a row of blocks, columns of V included.
    """
    carry, zero, u0, one = arithmetic.carry, arithmetic.real(0), u(0), u(1)

    def frame(
        part_row, part_column, part_error, value, width, targets, own, tiles, first, bottom, per
    ):
        start = first * targets
        j = uint64(cuda.blockIdx.x) * uint64(cuda.blockDim.x) + uint64(cuda.threadIdx.x)
        i = start + j
        if i < width:
            s, e, k, row = zero, zero, first, i // targets
            if first > u0:
                # The error of earlier bands comes along: bands are cut by memory, and the sum must not know where.
                s, e = value[i], part_error[i]
            # Rows above the own one met this number as a source; below it, it was a target only.
            while k < min(row, bottom):
                s, e = carry(s, e, part_column[(k - first) * (width - start) + j])
                k += one
            if row < bottom:
                k, length = u0, tiles - row * own
                while k * per < length:
                    s, e = carry(s, e, part_row[k * ((bottom - first) * targets) + j])
                    k += one
            value[i], part_error[i] = s, e

    return frame
