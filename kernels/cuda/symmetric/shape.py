"""The tiling of a symmetric product: whole strips a tile, and records in planes of loads."""

from __future__ import annotations

from dataclasses import replace

from gpukoop.kernels.cuda.pairs.shape import specify
from gpukoop.kernels.cuda.specification import BLOCK, Specification
from gpukoop.kernels.operation import PRODUCT

# Lanes of a warp, hence sources of a strip.
WARP = 32
# Positions of a strip in memory: the first sources come again at the end, so that no lane wraps around.
POSITIONS = 64
# Bytes of a tile in shared memory: four blocks an SM leave room for the cache.
TILE_BYTES = 2**14
# 32-bit registers that the targets may take, and, by targets, up to which four or eight steps at once keep a thread at 128.
REGISTERS = 96
SEVERAL_STEPS = {8: 76, 4: 84, 2: 84, 1: 84}


def planes(record: int, dtype: str) -> tuple[int, ...]:
    """Return the widths of the planes of a record: loads of 16 bytes, and one that fits the rest."""
    widest = 2 if dtype == "float64" else 4
    full, rest = divmod(record, widest)
    return (widest,) * full + ((4 if rest == 3 else rest,) if rest else ())


def symmetric_specification(
    dtype: str, form: str, d: int, t: int, block: int = BLOCK
) -> Specification:
    """Return the program of a symmetric product; its tile is the same for all forms."""
    one_sided = specify(PRODUCT, dtype, form, d, t, block)
    record, size = sum(planes(d + t + 1, dtype)), 8 if dtype == "float64" else 4
    strips = max(s for s in (4, 2, 1) if s == 1 or s * POSITIONS * record * size <= TILE_BYTES)
    each = size // 4 * (d + 4 * t + 2)
    targets = next((r for r in (8, 4, 2) if r * each <= REGISTERS), 1)
    group = one_sided.group if targets * each <= SEVERAL_STEPS[targets] else 2
    if block < BLOCK:  # the simulator
        targets, strips = min(targets, 2), 1
    tile, group = strips * WARP, max(2, group)
    return replace(one_sided, family="symmetric", targets=targets, group=group, tile=tile)
