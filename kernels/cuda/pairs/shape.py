"""The tiling of a CUDA reduction: targets a thread, sources a group and a tile, numbers a record."""

from __future__ import annotations

from dataclasses import dataclass

from gpukoop.kernels.cuda.form import has_bias
from gpukoop.kernels.cuda.source import BLOCK, Spec
from gpukoop.kernels.formula.profile import Trace

# 32-bit registers that the points and sums of a thread may take. With the temporaries of the unrolled pairs
# the count ends near 128, which leaves 16 warps on an SM.
REGISTERS = 112
# Pairs written out in the loop body: more costs compile time, fewer costs loop overhead.
UNROLLED = 32
# The same of 255 registers in float64, pairs in flight included, for all but products: functions are sequences of
# instructions there, which want up to 80 registers of their own (rational quadratic, by ptxas).
REGISTERS_FLOAT64 = 176
# Pairs of a thread where features pass through shared memory: 32 squared distances in registers.
TARGETS = 2
SOURCES = 16
# Features staged at once: 2 KB in float32, two barriers for 2048 issue slots of a thread.
CHUNK = 32


@dataclass(frozen=True)
class Shape:
    """Targets a thread, sources a group, sources a tile, numbers a record."""

    targets: int
    group: int
    tile: int
    record: int


def accumulators(spec: Spec) -> int:
    """Return the sums a target keeps."""
    return (1 if spec.exponent else spec.t * spec.value) + (spec.d * spec.t if spec.slope else 0)


def shape(trace: Trace, spec: Spec) -> Shape:
    """Return the register and shared-memory tiling."""
    words = 2 if spec.dtype == "float64" else 1
    each = words * (spec.d + 3 * accumulators(spec) + 2)
    targets = next((r for r in (8, 4, 2) if r * each <= REGISTERS), 1)
    if spec.op == "logsumexp_and_gradient":
        targets = min(targets, 4)
    group = max(2, min(4, UNROLLED // targets))
    if spec.d * targets * group > 400 or accumulators(spec) * targets * group > 128:
        group = 2
    if words == 2 and (spec.exponent or spec.slope):
        # A log-sum-exp holds all pairs of a group until their sum is known to be in range, and ptxas interleaves those of
        # a gradient: about three numbers each.
        held = targets * (spec.d + 3 * accumulators(spec))
        fits = (g for g in (4, 2) if 2 * (held + g * (spec.d + 3 * targets)) <= REGISTERS_FLOAT64)
        group = next(fits, 1)
    pad = 16 // (4 * words)
    record = -(-(spec.d + spec.t + has_bias(trace, spec)) // pad) * pad
    tile = 128 if accumulators(spec) == 1 and record * words <= 32 else 64
    if spec.block < BLOCK:  # the simulator
        targets, tile = min(targets, 2), 32
    return Shape(targets, group, tile, record)


def wide_shape(trace: Trace, spec: Spec) -> Shape:
    """Return the tiling for many features; a record is a column of the tile, not padded."""
    return Shape(TARGETS, SOURCES, SOURCES, spec.d + spec.t + has_bias(trace, spec))
