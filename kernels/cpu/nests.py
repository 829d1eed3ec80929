r"""Register-blocked loop nests that the loop vectoriser cannot make, emitted as LLVM vectors.

A loop vectoriser turns the innermost loop into vectors and keeps its sums in registers, nothing more. With many
features two loops want to be innermost, as in a matrix product; these nests hold an R x U block of vectors of
sums in registers (24 of 32, or 8 of 16) and read every number once per block:

============ ================== ============= =====================================================
nest         vectors run over   innermost     computes
============ ================== ============= =====================================================
distances    sources            features      :math:`\sum_k (x_{rk} - y_{jk})^2`
forces       features           sources       :math:`\sum_j s_{rj} (x_{rk} - y_{jk})`
============ ================== ============= =====================================================

Both take one subtraction and one multiply-add a number, of differences, so that nothing cancels. Vectors are as
long as the machine's; LLVM maps them to AVX-512, AVX2, SSE or NEON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from gpukoop.kernels.cpu.simd import REGISTER_BYTES, REGISTERS

TARGETS = 6 if REGISTERS == 32 else 4  # R
SOURCE_VECTORS = (
    4 if REGISTERS == 32 else 2
)  # U of distances: R U sums, U sources, x and a difference
CHAIN = (
    128  # additions in sequence before a sum moves on to float64: rounding stays that of short sums
)
FEATURE_VECTORS = 2 if REGISTERS == 32 else 1  # U of forces: R U sums, R U targets, U sources, s


def lanes(dtype: str) -> int:
    """Return the numbers in one vector register."""
    return REGISTER_BYTES // int(np.dtype(dtype).itemsize)


class _Emitter:
    """Short names for the LLVM builder: pointers, vectors, blocks of sums."""

    def __init__(self, context: Any, builder: Any, signature: Any, args: Any, dtype: str) -> None:
        self.builder = builder
        self.size = int(np.dtype(dtype).itemsize)
        self.lanes = lanes(dtype)
        self.real = ir.FloatType() if dtype == "float32" else ir.DoubleType()
        self.vector = ir.VectorType(self.real, self.lanes)
        self.whole = ir.IntType(64)
        self.arrays = [
            context.make_array(kind)(context, builder, value)
            for kind, value in zip(signature.args, args, strict=True)
            if isinstance(kind, types.Array)
        ]

    def number(self, value: int) -> Any:
        return ir.Constant(self.whole, value)

    def at(self, array: Any, *offsets: Any) -> Any:
        """Return the address of an element at the sum of the offsets."""
        pointer = array.data
        for offset in offsets:
            index = self.number(offset) if isinstance(offset, int) else offset
            pointer = self.builder.gep(pointer, [index])
        return pointer

    def row(self, array: Any, index: Any, r: int) -> Any:
        """Return the offset of row ``index + r``."""
        width = self.builder.extract_value(array.shape, 1)
        return self.builder.mul(self.builder.add(index, self.number(r)), width)

    def load(self, pointer: Any) -> Any:
        # Aligned to a number, not to a vector: rows need no padding, and unaligned loads cost nothing within a cache line.
        wide = self.builder.bitcast(pointer, self.vector.as_pointer())
        return self.builder.load(wide, align=self.size)

    def store(self, value: Any, pointer: Any) -> None:
        wide = self.builder.bitcast(pointer, self.vector.as_pointer())
        self.builder.store(value, wide, align=self.size)

    def repeat(self, pointer: Any) -> Any:
        """Load one number into every lane."""
        index = ir.IntType(32)
        one = self.builder.insert_element(
            ir.Constant(self.vector, ir.Undefined),
            self.builder.load(pointer),
            ir.Constant(index, 0),
        )
        mask = ir.Constant(ir.VectorType(index, self.lanes), None)
        return self.builder.shuffle_vector(one, one, mask)

    def variables(self, count: int) -> list[Any]:
        """Return ``count`` vector variables; LLVM turns them into registers."""
        return [cgutils.alloca_once(self.builder, self.vector) for _ in range(count)]

    def clear(self, variables: list[Any]) -> None:
        for variable in variables:
            self.builder.store(ir.Constant(self.vector, None), variable)

    def accumulate(self, variable: Any, a: Any, b: Any) -> None:
        """Emit variable += a b, as one multiply-add."""
        # Contraction is the only freedom given: an FMA, never another order of additions.
        product = self.builder.fmul(a, b, flags=("contract",))
        total = self.builder.fadd(self.builder.load(variable), product, flags=("contract",))
        self.builder.store(total, variable)

    @contextmanager
    def loop(self, start: Any, stop: Any, step: int) -> Iterator[Any]:
        with cgutils.for_range_slice(self.builder, start, stop, self.number(step), self.whole) as (
            index,
            _,
        ):
            yield index


def make_distances(dtype: str, tile: int) -> Callable[..., None]:
    """Return ``distances(X, row, S, q, d, n)``: q[r, j] of R targets and the n sources of a tile.

    ``S`` and ``q`` have rows of ``tile`` numbers; n is a multiple of 64.
    """

    @intrinsic
    def distances(context: Any, X: Any, row: Any, S: Any, q: Any, d: Any, n: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            e = _Emitter(context, builder, signature, args, dtype)
            x, s, out = e.arrays
            _, row, _, _, d, n = args
            block = range(TARGETS), range(SOURCE_VECTORS)
            sums = [e.variables(SOURCE_VECTORS) for _ in block[0]]
            rows = [e.row(x, row, r) for r in block[0]]
            with e.loop(e.number(0), n, e.lanes * SOURCE_VECTORS) as j:
                for r in block[0]:
                    e.clear(sums[r])
                with e.loop(e.number(0), d, 1) as k:
                    line = builder.add(builder.mul(k, e.number(tile)), j)
                    y = [e.load(e.at(s, line, u * e.lanes)) for u in block[1]]
                    # Registers are the budget: R U sums, U sources, one target and a difference are live at once.
                    for r in block[0]:
                        target = e.repeat(e.at(x, rows[r], k))
                        for u in block[1]:
                            # Differences, not |x|^2 - 2 x.y + |y|^2, which would save a subtraction a number and cost the
                            # digits of near pairs.
                            delta = builder.fsub(target, y[u])
                            e.accumulate(sums[r][u], delta, delta)
                for r in block[0]:
                    for u in block[1]:
                        e.store(builder.load(sums[r][u]), e.at(out, j, r * tile + u * e.lanes))
            return context.get_dummy_value()

        return types.void(X, types.int64, S, q, types.int64, types.int64), emit

    return distances


def make_forces(dtype: str, tile: int, vectors: int) -> Callable[..., None]:
    """Return ``forces(X, row, Y, first, s, acc, at, start, stop, column, n)`` for ``vectors`` vectors of features.

    Adds sum_j s[r, j] (X[row + r, k] - Y[first + j, k]) to the float64 numbers acc[at + r, column + k], for
    features k from start to stop; X and Y have padded rows.
    """

    @intrinsic
    def forces(
        context: Any, X: Any, row: Any, Y: Any, first: Any, s: Any, acc: Any, at: Any, start: Any,
        stop: Any, column: Any, n: Any,
    ) -> Any:  # fmt: skip
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            e = _Emitter(context, builder, signature, args, dtype)
            x, y, weights, total = e.arrays
            _, row, _, first, _, _, at, start, stop, column, n = args
            block = range(TARGETS), range(vectors)
            sums = [e.variables(vectors) for _ in block[0]]
            double = ir.VectorType(ir.DoubleType(), e.lanes)
            with (
                e.loop(start, stop, e.lanes * vectors) as k,
                # The sums move to float64 every so many sources, from registers, so that the inner loop knows one dtype.
                e.loop(e.number(0), n, CHAIN) as begin,
            ):
                targets = []
                for r in block[0]:
                    e.clear(sums[r])
                    line = builder.add(e.row(x, row, r), k)
                    targets.append([e.load(e.at(x, line, u * e.lanes)) for u in block[1]])
                end = builder.add(begin, e.number(CHAIN))
                end = builder.select(builder.icmp_signed("<", end, n), end, n)
                with e.loop(begin, end, 1) as j:
                    line = builder.add(e.row(y, builder.add(first, j), 0), k)
                    sources = [e.load(e.at(y, line, u * e.lanes)) for u in block[1]]
                    for r in block[0]:
                        # One number into all lanes: vectors run over features here, since the results of neighbouring features
                        # are neighbours.
                        weight = e.repeat(e.at(weights, j, r * tile))
                        for u in block[1]:
                            delta = builder.fsub(targets[r][u], sources[u])
                            e.accumulate(sums[r][u], weight, delta)
                for r in block[0]:
                    line = builder.add(builder.add(e.row(total, at, r), column), k)
                    for u in block[1]:
                        pointer = builder.bitcast(
                            e.at(total, line, u * e.lanes), double.as_pointer()
                        )
                        value = builder.load(sums[r][u])
                        if dtype == "float32":
                            value = builder.fpext(value, double)
                        value = builder.fadd(builder.load(pointer, align=8), value)
                        builder.store(value, pointer, align=8)
            return context.get_dummy_value()

        whole = types.int64
        return types.void(X, whole, Y, whole, s, acc, whole, whole, whole, whole, whole), emit

    return forces
