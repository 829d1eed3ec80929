"""The tiling of a CUDA reduction: targets a thread, sources a group and a tile, columns a pass."""

from __future__ import annotations

from gpukoop.kernels.cuda.specification import (
    BLOCK,
    WIDEST_COLUMNS,
    WIDEST_TILE,
    Specification,
    numbers,
)
from gpukoop.kernels.operation import Operation

# 32-bit registers that the points and sums of a thread may take. With the temporaries of the pairs in flight the count
# ends near 128, which leaves 16 warps on an SM.
REGISTERS = 112
# Pairs written out in the loop body: more costs compile time, fewer costs loop overhead. Products in float32 are short and
# take eight sources at once, which also halves the additions of groups to a tile: 6.5 slots a pair instead of 6.7 at d = 3.
UNROLLED = 32
# The same of 255 registers in float64, pairs in flight included, for all but products: functions are sequences of
# instructions there, which want up to 80 registers of their own (rational quadratic, by ptxas).
REGISTERS_FLOAT64 = 176
# Pairs of a thread where features pass through shared memory: 32 squared distances in registers.
TARGETS = 2
SOURCES = 16
# Counts of columns that programs are made for: few programs serve all requests, a spare column has no weight.
COLUMNS = (1, 2, 4, 8, 16)


def columns(operation: Operation, d: int, t: int, dtype: str) -> int:
    """Return how many columns share one pass."""
    if operation.log:
        return 1
    most = WIDEST_COLUMNS
    if operation.slope:
        most = max(1, 24 // (d + 1))
    if d > WIDEST_TILE:
        # beside 32 squared distances; in float64 both take two registers, and its functions many more
        most = 1 if operation.slope else 8 if dtype == "float32" else 3
    passes = -(-t // most)
    return min(c for c in (*COLUMNS, most) if c >= -(-t // passes) and c <= most)


def specify(
    operation: Operation,
    dtype: str,
    form: str,
    d: int,
    t: int,
    block: int = BLOCK,
    listed: bool = False,
    heavy: bool = False,
) -> Specification:
    """Return the program for t columns a pass: its register and shared-memory tiling.

    ``heavy`` profiles in float64 are so long that the compiler would leave loops over more pairs as loops, whose arrays then
    are in memory.
    """
    common = operation, dtype, form, d, t
    if d > WIDEST_TILE:
        sources = SOURCES
        # Functions are long in float64: more of them than this would stay a loop, its arrays in memory.
        if dtype == "float64":
            sources = SOURCES // 4 if heavy else SOURCES // 2 if t > 1 else SOURCES
        return Specification("wide", *common, TARGETS, sources, sources, block)
    words = 2 if dtype == "float64" else 1
    sums = numbers(operation, d, t)
    each = words * (d + 3 * sums + 2)
    targets = next((r for r in (8, 4, 2) if r * each <= REGISTERS), 1)
    if operation.log and operation.slope:
        targets = min(targets, 4)
    short = words == 1 and operation.value and not (operation.log or operation.slope)
    most = 8 if short else max(2, min(4, UNROLLED // targets))
    added = 256 if short else 128  # multiply-adds into sums
    able = (g for g in (8, 4) if d * targets * g <= 400 and sums * targets * g <= added)
    group = next((g for g in able if g <= most), 2)
    if words == 2 and (operation.log or operation.slope):
        # ptxas interleaves the pairs of a group: about three numbers each.
        held = targets * (d + 3 * sums)
        fits = (g for g in (4, 2) if 2 * (held + g * (d + 3 * targets)) <= REGISTERS_FLOAT64)
        group = next(fits, 1)
    if heavy and words == 2:
        targets = 1  # a pair takes hundreds of instructions: loads that targets would share are few beside them
    record = -(-(d + t + 1) // 4) * 4
    tile = 128 if sums == 1 and record * words <= 32 else 64
    if block < BLOCK:  # the simulator
        targets, tile = min(targets, 2), 32
    return Specification("pairs", *common, targets, group, tile, block, listed)
