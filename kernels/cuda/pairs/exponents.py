"""The pair loop of log-sum-exps, with or without gradient, for points whose features fit into registers.

One exponential a pair: the running maximum of the textbook is a reference that may lag by 2**40 (float32 holds 2**127), so
that no pair is tested. A tile whose sums went beyond is done again after the references were raised to its maximum, which
happens about once a block. Letters are those of :mod:`gpukoop.kernels.cuda.pairs.sums`; exponents are in base two.
"""

from __future__ import annotations

from typing import Any

from numba import cuda, uint64

from gpukoop.kernels.cuda.device import LOWEST, Arithmetic, device, u
from gpukoop.kernels.cuda.functions import Functions
from gpukoop.kernels.cuda.pairs.squares import make_squares, make_stage
from gpukoop.kernels.cuda.specification import FORMS, Specification

# A tile that passes the test leaves sums below 2**40, of which float32 holds 2**87.
LAG = 2.0**40


def exponents(spec: Specification, of: Functions, arithmetic: Arithmetic) -> Any:
    """Return the frame of log2 sum_j 2**(b_j) phi(q_ij): reference ``top[split, i]``, sum ``value``, weighted ``slope``."""
    real, plus, carry, exp2 = arithmetic.real, arithmetic.plus, arithmetic.carry, arithmetic.exp2
    _, log2_phi, steepness = of.build(arithmetic.names(), device)
    squares, stage = make_squares(spec, of, arithmetic), make_stage(spec, of, arithmetic)
    SLOPE, DOT, EXACT, MERGED = (
        spec.operation.slope,
        spec.form == "dot",
        spec.form == "exact",
        of.merged,
    )
    KINK, UNIT, LISTED, FORM = of.kink, of.unit_slope, spec.listed, FORMS.index(spec.form)
    SHIFTED = DOT and MERGED  # the bias of a record holds b - |y|^2, and L holds -|x|^2 - reference
    WORDS, GROUP = spec.tile * spec.record, spec.group
    FEATURES, TARGETS, SUMS = (spec.targets, spec.d), spec.targets, (spec.targets, spec.sums)
    HEIGHTS = spec.d if SLOPE else 1
    R, D, A, BLOCK = u(spec.targets), u(spec.d), u(spec.sums), u(spec.block)
    W, END, STEP, zero, lag, lowest = (
        u(spec.record),
        u(WORDS),
        u(GROUP * spec.record),
        real(0),
        real(LAG),
        real(LOWEST),
    )
    u0, one, BIAS, W2, W3 = u(0), u(1), u(spec.d + 1), u(2 * spec.record), u(3 * spec.record)
    OFFSET = real(of.offset)

    @device
    def exponent(X, N, L, H, r, tile, j, s):
        # Added before the logarithm of the kernel: weight and reference nearly cancel for the sources that matter, and what is
        # left of them has the digits.
        if not MERGED:
            return (tile[j + D] + L[r]) + log2_phi(squares(X, N, H, r, tile, j, s), s)
        # A Gaussian's logarithm is -q itself: the sum of squares starts at the logarithm of the weight, and the addition is
        # free.
        q = L[r] + tile[j + (BIAS if DOT else D)]
        if EXACT:
            a = zero
            for k in range(D):
                h = X[r, k] - tile[j + k]
                a += h * h
                if SLOPE:
                    H[k] = h
            return q - s[0] * a
        for k in range(D):
            if DOT:
                q += X[r, k] * tile[j + k]
            else:
                h = X[r, k] - tile[j + k]
                q -= h * h
                if SLOPE:
                    H[k] = h
        return q

    @device
    # The slope of a Gaussian is a constant times its value, so the same exponential weighs value and slope.
    def pairs(X, N, L, H, G, P, tile, j, s):  # one source, R targets
        for r in range(R):
            if UNIT or not SLOPE:
                e = exp2(exponent(X, N, L, H, r, tile, j, s))
                w = e
            else:
                q = squares(X, N, H, r, tile, j, s)
                e = exp2((tile[j + D] + L[r]) + log2_phi(q, s))
                w = e * steepness(q, s)
                if KINK:
                    w = w if q > zero else zero
            G[r] += e
            if SLOPE:
                for k in range(D):
                    P[r, k + one] += w * H[k]

    def frame(
        x, y, v, pick, bounds, visits, top, value, slope, n, m, per, tiles, column, columns, s
    ):
        tile = cuda.shared.array(WORDS, real)
        if pick[0] != FORM:
            return
        X, N, H = (
            cuda.local.array(FEATURES, real),
            cuda.local.array(TARGETS, real),
            cuda.local.array(HEIGHTS, real),
        )
        P, S, E = (
            cuda.local.array(SUMS, real),
            cuda.local.array(SUMS, real),
            cuda.local.array(SUMS, real),
        )
        # L is what the loop reads, the reference with its sign and, where it may, |x|^2: one register and one addition a pair
        # less than REF alone.
        L, G, REF = (
            cuda.local.array(TARGETS, real),
            cuda.local.array(TARGETS, real),
            cuda.local.array(TARGETS, real),
        )
        tid = uint64(cuda.threadIdx.x)
        row = uint64(cuda.blockIdx.x) * (BLOCK * R) + tid
        for r in range(R):
            i = min(row + r * BLOCK, n - one) * D
            norm = zero
            for k in range(D):
                a = x[i + k]
                if DOT:
                    norm += a * a
                    a = a + a if MERGED else -(a + a)
                X[r, k] = a
            N[r] = -norm if MERGED else OFFSET + norm
            REF[r] = lowest
            L[r] = N[r] - lowest if SHIFTED else -lowest
            for a in range(A):
                S[r, a] = E[r, a] = zero
        if LISTED:
            place = uint64(cuda.blockIdx.x) * uint64(cuda.gridDim.y) + uint64(cuda.blockIdx.y)
            b, stop = uint64(bounds[place]), uint64(bounds[place + one])
        else:
            b = uint64(cuda.blockIdx.y) * per
            stop = min(b + per, tiles)
        while b < stop:
            cuda.syncthreads()
            stage(tile, y, v, uint64(visits[b]) if LISTED else b, m, column, columns, tid)
            cuda.syncthreads()
            rounds = u0
            # The second round only happens after an overflow. Testing after the tile, not in it, is what keeps the loop at one
            # exponential and no comparison a pair; a tile that overflowed is thrown away whole.
            while rounds <= one:
                for r in range(R):
                    for a in range(A):
                        P[r, a] = zero
                j = u0
                while j < END:
                    for r in range(R):
                        G[r] = zero
                    pairs(X, N, L, H, G, P, tile, j, s)
                    if GROUP >= 2:
                        pairs(X, N, L, H, G, P, tile, j + W, s)
                    if GROUP >= 4:
                        pairs(X, N, L, H, G, P, tile, j + W2, s)
                        pairs(X, N, L, H, G, P, tile, j + W3, s)
                    for r in range(R):
                        P[r, u0] = plus(P[r, u0], G[r])
                    j += STEP
                # Any sum beyond the lag counts, one that overflowed to infinity included.
                most = P[u0, u0]
                for r in range(R):
                    most = max(most, P[r, u0])
                rounds += one
                if rounds == one:
                    if (
                        most > lag
                    ):  # rare: raise every reference to the maximum of this tile, then once more
                        for r in range(R):
                            G[r] = REF[r]
                            L[r] = N[r] if SHIFTED else zero
                        j = u0
                        while j < END:
                            for r in range(R):
                                # Raised to the largest exponent itself, not to the sum: then no exponential of this tile is
                                # above one.
                                G[r] = max(G[r], exponent(X, N, L, H, r, tile, j, s))
                            j += W
                        for r in range(R):
                            # Both the sum and its error are rescaled, by a power that is not a power of two in general: the
                            # rounding is that of one multiplication, once a block as a rule.
                            f = exp2(REF[r] - G[r])
                            for a in range(A):
                                S[r, a] *= f
                                E[r, a] *= f
                            REF[r] = G[r]
                            L[r] -= G[r]
                    else:
                        rounds += one
            for r in range(R):
                for a in range(A):
                    S[r, a], E[r, a] = carry(S[r, a], E[r, a], P[r, a])
            b += one
        for r in range(R):
            i = row + r * BLOCK
            if i < n:
                i = uint64(cuda.blockIdx.y) * n + row + r * BLOCK
                # References of splits differ: they are joined in the second pass, which knows all of them.
                top[i], value[i] = REF[r], S[r, u0]
                if SLOPE:
                    for k in range(D):
                        slope[i * D + k] = s[1] * S[r, k + one]

    return frame
