"""The pair loop of products and gradients, for points whose features fit into registers.

A block stages a tile of sources in shared memory; each thread keeps several targets in registers and walks the tile,
``GROUP`` sources at a time. Sums have three levels, so that a million sources cost no digits: a group, a tile, and a
compensated total over the tiles. No atomics: every target of every split has one owner, and the result does not depend
on the order of threads.

==== ========================= ==== =====================================
r    target of a thread        j    place of a source in the tile
k    feature                   a    sum: column, or column and feature
==== ========================= ==== =====================================
"""

from __future__ import annotations

from typing import Any

from numba import cuda, uint64

from gpukoop.kernels.cuda.device import Arithmetic, device, u
from gpukoop.kernels.cuda.functions import Functions
from gpukoop.kernels.cuda.pairs.squares import make_squares, make_stage
from gpukoop.kernels.cuda.specification import FORMS, Specification


def sums(spec: Specification, of: Functions, arithmetic: Arithmetic) -> Any:
    """Return the frame of ``value[split, i, c]`` = sum_j phi(q_ij) v_jc and of its gradient ``slope[split, i, c, k]``."""
    real, plus, carry = arithmetic.real, arithmetic.plus, arithmetic.carry
    phi, _, steepness = of.build(arithmetic.names(), device)
    squares, stage = make_squares(spec, of, arithmetic), make_stage(spec, of, arithmetic)
    VALUE, SLOPE, DOT, DOWN = (
        spec.operation.value,
        spec.operation.slope,
        spec.form == "dot",
        of.down,
    )
    # A kernel that is singular or has a kink at 0 is finite in the sum only because x - y = 0 there, or by definition: the
    # comparison becomes a predicated select, and kernels without need do not pay for it.
    GUARDED, KINK, LISTED, FORM = of.guarded, of.kink, spec.listed, FORMS.index(spec.form)
    GROUPED = spec.sums == 1  # an addition a group for each of several sums would cost slots
    # Sizes of arrays must be plain ints: Numba types an array's shape before it folds np.uint64 constants.
    WORDS, GROUP = spec.tile * spec.record, spec.group
    FEATURES, TARGETS, SUMS = (spec.targets, spec.d), spec.targets, (spec.targets, spec.sums)
    STEP_SUMS, HEIGHTS = (spec.targets if GROUPED else 1, 1), spec.d if SLOPE else 1
    R, D, T, A, BLOCK = u(spec.targets), u(spec.d), u(spec.t), u(spec.sums), u(spec.block)
    W, END, STEP, one, zero = u(spec.record), u(WORDS), u(GROUP * spec.record), u(1), real(0)
    FIRST_SLOPE, OFFSET = u(spec.t * VALUE), real(of.offset)

    @device
    def pairs(X, N, H, P, tile, j, s):  # one source, R targets
        for r in range(R):
            q = squares(X, N, H, r, tile, j, s)
            if VALUE:
                e = phi(q, s)
                if GUARDED:
                    if DOWN:
                        e = e if q < zero else zero
                    else:
                        e = e if q > zero else zero
                # The weight stands in the record beside the coordinates, so that one LDS.128 brings both to four-number
                # records.
                for c in range(T):
                    P[r, c] += e * tile[j + D + c]
            # The weight is taken before the loop over features: one multiplication a column, not one a feature.
            if SLOPE:
                g = steepness(q, s)
                if KINK:
                    if DOWN:
                        g = g if q < zero else zero
                    else:
                        g = g if q > zero else zero
                for c in range(T):
                    w = g * tile[j + D + c]
                    for k in range(D):
                        P[r, FIRST_SLOPE + c * D + k] += w * H[k]

    def frame(
        x, y, v, pick, bounds, visits, top, value, slope, n, m, per, tiles, column, columns, s
    ):
        # Every form is launched and the one that suits the points goes on: choosing on the host would wait for the device.
        # Blocks of the others end before they load anything.
        tile = cuda.shared.array(WORDS, real)
        if pick[0] != FORM:
            return
        X, N, H = (
            cuda.local.array(FEATURES, real),
            cuda.local.array(TARGETS, real),
            cuda.local.array(HEIGHTS, real),
        )
        # P sums a tile, S with its error E the tiles before: one long float32 sum would lose log2(m) bits, and compensating
        # every pair would double the slots.
        P, S, E = (
            cuda.local.array(SUMS, real),
            cuda.local.array(SUMS, real),
            cuda.local.array(SUMS, real),
        )
        G = cuda.local.array(STEP_SUMS, real)
        tid = uint64(cuda.threadIdx.x)
        # Targets of a thread are a block apart, so that neighbouring threads read and write neighbouring rows.
        row = uint64(cuda.blockIdx.x) * (BLOCK * R) + tid
        for r in range(R):
            i = (
                min(row + r * BLOCK, n - one) * D
            )  # rows past the end repeat the last one and are not stored
            norm = zero
            for k in range(D):
                a = x[i + k]
                if DOT:
                    # -2 x.y needs no multiplication in the loop if the targets are doubled here, and the sign is chosen so that
                    # the profile reads 2**q without negating it.
                    norm += a * a
                    a = a + a if DOWN else -(a + a)
                X[r, k] = a
            N[r] = -norm if DOWN else OFFSET + norm
            for a in range(A):
                S[r, a] = E[r, a] = zero
        # Lists are cut on the host where their lengths are known; one array of bounds serves all blocks, so no block searches.
        if LISTED:
            place = uint64(cuda.blockIdx.x) * uint64(cuda.gridDim.y) + uint64(cuda.blockIdx.y)
            b, stop = uint64(bounds[place]), uint64(bounds[place + one])
        else:
            b = uint64(cuda.blockIdx.y) * per
            stop = min(b + per, tiles)
        while b < stop:
            # Before the tile is overwritten every warp has finished with it; after, no warp reads what another has not yet
            # written.
            cuda.syncthreads()
            stage(tile, y, v, uint64(visits[b]) if LISTED else b, m, column, columns, tid)
            cuda.syncthreads()
            for r in range(R):
                for a in range(A):
                    P[r, a] = zero
            j = u0
            # Calls written out instead of an inner loop: NVVM does not unroll a loop around a device function, and a rolled one
            # costs a compare, a branch and an addition for each pair of 6.5 slots.
            while j < END:
                # One sum a target: a group is summed first and added once, which shortens the chain of additions that depend on
                # each other, and the one that rounds.
                if GROUPED:
                    for r in range(R):
                        G[r, u0] = zero
                    pairs(X, N, H, G, tile, j, s)
                    if GROUP >= 2:
                        pairs(X, N, H, G, tile, j + W, s)
                    if GROUP >= 4:
                        pairs(X, N, H, G, tile, j + W2, s)
                        pairs(X, N, H, G, tile, j + W3, s)
                    if GROUP >= 8:
                        pairs(X, N, H, G, tile, j + W4, s)
                        pairs(X, N, H, G, tile, j + W5, s)
                        pairs(X, N, H, G, tile, j + W6, s)
                        pairs(X, N, H, G, tile, j + W7, s)
                    for r in range(R):
                        # Rounded additions, since fast mathematics would reassociate the levels into one long sum.
                        P[r, u0] = plus(P[r, u0], G[r, u0])
                else:
                    pairs(X, N, H, P, tile, j, s)
                    if GROUP >= 2:
                        pairs(X, N, H, P, tile, j + W, s)
                    if GROUP >= 4:
                        pairs(X, N, H, P, tile, j + W2, s)
                        pairs(X, N, H, P, tile, j + W3, s)
                    if GROUP >= 8:
                        pairs(X, N, H, P, tile, j + W4, s)
                        pairs(X, N, H, P, tile, j + W5, s)
                        pairs(X, N, H, P, tile, j + W6, s)
                        pairs(X, N, H, P, tile, j + W7, s)
                j += STEP
            for r in range(R):
                for a in range(A):
                    S[r, a], E[r, a] = carry(S[r, a], E[r, a], P[r, a])
            b += one
        for r in range(R):
            i = row + r * BLOCK
            # Rows past the end have computed a copy of the last row: a branch in the loop would diverge, a store here is all
            # that must not happen.
            if i < n:
                for c in range(T):
                    if column + c < columns:
                        i = (uint64(cuda.blockIdx.y) * n + row + r * BLOCK) * columns + column + c
                        if VALUE:
                            value[i] = S[r, c]
                        if SLOPE:
                            for k in range(D):
                                # The constant of the slope, 2 / scale^2 times signs, is applied once a target instead of once a
                                # pair.
                                slope[i * D + k] = s[1] * S[r, FIRST_SLOPE + c * D + k]

    u0 = u(0)
    W2, W3, W4, W5, W6, W7 = (u(i * spec.record) for i in range(2, 8))
    return frame
