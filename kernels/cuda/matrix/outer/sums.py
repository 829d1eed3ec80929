"""Kernel sums of float32 points on CUDA cores without a tile in memory: one launch a column (:mod:`gpukoop.kernels.cuda.matrix.outer.loop`).

Splits of the sources are added in float64, in order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpukoop.kernels.arrays import Array
from gpukoop.kernels.cuda.functions import Functions
from gpukoop.kernels.cuda.matrix.fused import BLOCKS, AbstractSums, logarithm, pad
from gpukoop.kernels.cuda.matrix.outer.shape import CHUNK, EACH, OuterShape
from gpukoop.kernels.cuda.matrix.precision import norms, round_up
from gpukoop.kernels.cuda.matrix.shape import ceil
from gpukoop.kernels.cuda.program import Program
from gpukoop.kernels.cuda.specification import FEATURE_STEP
from gpukoop.kernels.operation import OPERATIONS


@dataclass(frozen=True)
class OuterSums(AbstractSums):
    """A request of one column."""

    def _packed(self, side: str, x: Array, step: int) -> Any:
        return self._kept("outer", side, step, make=lambda: self._points(x, step))

    def _points(self, x: Array, step: int) -> tuple[Array, Array]:
        """Return points feature by feature, padded to whole blocks and chunks, and their squared norms."""
        xp = self.xp
        x = pad(x, step, xp)
        # Whole chunks of zeros, so that no copy is tested; the loop multiplies no more than the next four features.
        out = xp.zeros((round_up(x.shape[1], CHUNK), len(x)), np.float32)
        out[: x.shape[1]] = x.T
        return out.ravel(), norms(x, xp).astype(np.float32)

    def result(self) -> dict[str, Array]:
        """Return "value", (n, 1): the sums, or their logarithms."""
        xp, (n, d), m = self.xp, self.X.shape, len(self.Y)
        shape = OuterShape(self.op, self.cut > 0, *self.engine.threads)
        x, nx = self._packed("targets", self.x, shape.targets)
        y, ny = self._packed("sources", self.y, shape.sources)
        # Padded sources weigh nothing, in the logarithm, too.
        v = xp.full(len(ny), -math.inf if shape.log else 0.0, np.float32)
        v[:m] = self.V[:, 0]
        blocks, tiles = len(nx) // shape.targets, len(ny) // shape.sources
        per = ceil(tiles, min(tiles, ceil(BLOCKS, blocks)))
        # Rounding `per` up may leave the last splits without a tile; they are not launched.
        splits = ceil(tiles, per)
        sums = xp.empty((1 + shape.log) * splits * n, np.float32)
        own = (self.trace.prescale**2, self.trace.prescale)
        symbols = xp.asarray(np.asarray([*own, *self.trace.values, self.cut], np.float32))
        program = Program(shape, Functions(self.trace, OPERATIONS[self.op]), self.label)
        sizes = (n, m, d, round_up(d, FEATURE_STEP), len(nx), len(ny), per, tiles, EACH**2)
        arrays = (x, y, nx, ny, v, self.X, self.Y, symbols, sums)
        numbers = (np.uint64(size) for size in sizes)
        self.engine.pairs(program, shape, (blocks, splits), (*arrays, *numbers))
        parts = sums.reshape(1 + shape.log, splits, n).astype(float)
        total = (
            math.log(2.0) * logarithm(parts[0], parts[1], xp) if shape.log else parts[0].sum(axis=0)
        )
        return {"value": total.astype(np.float32)[:, None]}
