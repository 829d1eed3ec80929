r"""Kernel sums on tensor cores without a tile in memory: which programs run, over which blocks, and what becomes of their sums.

========================== ============================================================================
operation                  launches
========================== ============================================================================
product, one column        one: weighted values summed in registers
product, columns           one for up to 112 columns: values times V, the second product
gradient                   one for each 112 features and as many columns of V as copies of the sources fit: slopes times points,
                           the second product
value and gradient         the same; the first one sums the values, too
logsumexp                  one
logsumexp and gradient     the sum first, then slopes weighed with exp(l - sum)
========================== ============================================================================

The gradient is x sum_j p_j - sum_j p_j y_j over pairs that are not close, where nothing cancels, and differences for the
others. Splits of the sources are added in float64, in order.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from gpukoop.kernels.arrays import Array
from gpukoop.kernels.cuda.functions import Functions
from gpukoop.kernels.cuda.matrix import packing
from gpukoop.kernels.cuda.matrix.cublas import AbstractEngine
from gpukoop.kernels.cuda.matrix.precision import norms
from gpukoop.kernels.cuda.matrix.shape import WIDEST, Shape, ceil
from gpukoop.kernels.cuda.program import Program
from gpukoop.kernels.formula.profile import Trace
from gpukoop.kernels.operation import OPERATIONS

# Blocks that a launch should have: some four waves of two blocks on 132 multiprocessors.
BLOCKS = 1024
# Numbers of partial sums of the second product: 256 MB, and as much for their errors.
PARTS = 2**26
# Words of the tiles of one launch: 256 MB. Columns of a gradient have tiles of their own, since the weight stands inside the slope.
TILES = 2**26
# Registers for the points of 16 targets: alone, and beside the sums of a second product.
ALONE, BESIDE = 128, 64


def fits(op: str, d: int, t: int, parts: int) -> bool:
    """Return whether registers hold 16 targets; wider points go through memory, tile by tile."""
    # A second product keeps its sums in registers beside the points, so it leaves half as many for them.
    second = "gradient" in op or t > 1
    return 4 * ceil(d, 16) * parts <= (BESIDE if second else ALONE)


@dataclass(frozen=True)
class AbstractSums(ABC):
    """A request: points as they came and centred, pre-scaled ones, weights (m, t), or their logarithms in base two, and ``cut``.

    ``memory`` belongs to these points: what is packed of them is made once.
    """

    engine: AbstractEngine
    trace: Trace
    label: str
    op: str
    X: Array
    Y: Array
    x: Array
    y: Array
    V: Array
    cut: float
    memory: dict[Any, Any]

    @property
    def xp(self) -> ModuleType:
        """The array library."""
        return self.engine.xp

    @abstractmethod
    def result(self) -> dict[str, Array]:
        """Return "value", (n, t), and "slope", (n, t, d), as far as they are asked for, by name."""

    def _kept(self, *key: Any, make: Callable[[], Any]) -> Any:
        """Return what was made of these points, at their pre-scaling, under this key."""
        # The pre-scaling belongs to the kernel: another one is another set of numbers.
        key = (self.trace.prescale, *key)
        if key not in self.memory:
            self.memory[key] = make()
        return self.memory[key]


@dataclass(frozen=True)
class Sums(AbstractSums):
    """A request whose numbers are split into ``parts`` for tensor cores."""

    parts: int

    def __post_init__(self) -> None:
        # With one part a number, tensor cores see rounded points; the norms must be those of the same numbers, or q of a point
        # with itself is not zero.
        if self.parts == 1:
            x, y = self._kept(
                "rounded", make=lambda: [packing.rounded(a, self.xp) for a in (self.x, self.y)]
            )
            object.__setattr__(self, "x", x)
            object.__setattr__(self, "y", y)

    def _kept(self, *key: Any, make: Callable[[], Any]) -> Any:
        # The parts belong to the precision: another number of them is another set of words.
        return super()._kept(self.parts, *key, make=make)

    def _targets(self, shape: Shape) -> tuple[Array, Array, Array]:
        """Return (words, scales, norms) of the targets, padded to whole blocks."""
        # Whole blocks, so that no fragment is loaded under a test; rows past the end are computed and not stored.
        x = pad(self.x, shape.block_targets, self.xp)
        words, scales = packing.targets(x, shape, self.xp)
        return words, scales, norms(x, self.xp).astype(np.float32)

    def _sources(self, shape: Shape) -> tuple[tuple[Array, Array], Array]:
        """Return (words, scales) of the sources, padded to whole tiles, and their norms."""
        y = pad(self.y, shape.tile, self.xp)
        return packing.source_points(y, shape, self.xp), norms(y, self.xp).astype(np.float32)

    def result(self) -> dict[str, Array]:
        """Return "value", (n, t), and "slope", (n, t, d), as far as they are asked for, by name."""
        op, t, d = self.op, self.V.shape[1], self.X.shape[1]
        n = len(self.X)
        found: dict[str, Array] = {}
        if op in ("product", "value_and_gradient"):
            found["value"] = self.xp.empty((n, t))
        if "gradient" in op:
            found["slope"] = self.xp.empty((n, t, d))
        if "logsumexp" in op:
            found["value"] = self._logarithm()
        if op == "product":
            if t == 1:
                # One column needs no second product: exp2(q) v is summed where q is, in the registers of the lane that has
                # it.
                found["value"] = self._run(op, self.V, None)[0][0].T
            for columns in _blocks(t) if t > 1 else ():
                found["value"][:, columns] = self._run(op, self.V[:, :1], self.V[:, columns])[1][0]
        for f in _blocks(d) if "gradient" in op else ():
            # Values come with the first block of features; later blocks would sum them again for nothing.
            part = op if f.start == 0 or "logsumexp" in op else "gradient"
            for c in self._together(part, f):
                # (k, columns, n) and (columns, n, width)
                sums, moments = self._run(part, self.V[:, c], self.y[:, f], found, f.start)
                scale = 2 * self.trace.prescale
                # x times the sum minus the moments cancels for near pairs only, and those are not in it.
                slope = scale * (self.x[:, f].astype(float) * sums[-1][..., None] - moments)
                if "logsumexp" in op:
                    slope /= self.xp.where(sums[0] > 0, sums[0], 1)[..., None]
                elif part == "value_and_gradient":
                    found["value"][:, c] = sums[0].T
                found["slope"][:, c, f] = slope.transpose(1, 0, 2)
        if "logsumexp" in op:
            # Only now to base e: the references above are compared with exponents in base two.
            found["value"] *= math.log(2.0)
        return {name: a.astype(np.float32) for name, a in found.items()}

    def _together(self, op: str, f: slice) -> Iterator[slice]:
        """Return blocks of columns whose tiles fit into memory beside each other."""
        shape = self._shape(op, f.stop - f.start)
        words = ceil(len(self.Y), shape.tile) * shape.tile_words
        some = max(1, min(TILES // words, self.V.shape[1]))
        return (slice(c, c + some) for c in range(0, self.V.shape[1], some))

    def _shape(self, op: str, width: int) -> Shape:
        return Shape(op, self.X.shape[1], self.parts, width, self.cut > 0)

    def _logarithm(self) -> Array:
        """Return log2 of the sums, (n, 1), -inf without any weight."""
        xp = self.xp
        totals, peaks = self._partial("logsumexp", self.V, None)[0][:, 0]
        return logarithm(totals, peaks, xp)[:, None]

    def _run(self, *arguments: Any) -> tuple[Array, Array]:
        """Return sums, (k, t, n), and moments, (t, n, width), of all sources for t columns of weights."""
        sums, moments = self._partial(*arguments)
        return sums.sum(axis=2), moments

    def _partial(
        self,
        op: str,
        weights: Array,
        right: Array | None,
        found: dict[str, Array] | None = None,
        first: int = 0,
    ) -> tuple[Array, Array]:
        """Return sums of the splits, (k, t, splits, n), and moments, (t, n, width), for weights (m, t)."""
        xp, (n, d), (m, t) = self.xp, self.X.shape, weights.shape
        shape = self._shape(op, 0 if right is None else right.shape[1])
        layout = shape.chunks, shape.block_targets, shape.tile
        words, scales, nx = self._kept("targets", *layout, make=lambda: self._targets(shape))
        points, ny = self._kept("sources", *layout, make=lambda: self._sources(shape))
        # Padded sources weigh nothing, in the logarithm, too.
        fill = -math.inf if shape.log else 0.0
        v = xp.full((t, len(ny)), fill, np.float32)
        v[:, :m] = weights.T
        tiles = packing.sources(points, ny, v[0], right, shape, xp)
        top = xp.zeros(len(nx), np.float32)
        if shape.log and shape.slope and found is not None:
            value = found["value"][:, 0]
            # Where no source weighs anything the reference is -inf, and -inf minus itself is NaN; any finite number serves.
            top[:n] = xp.where(xp.isfinite(value), value, 0.0)
        own = (self.trace.prescale**2, self.trace.prescale)
        # One small array instead of scalars: their number differs between kernels, and the frame's signature must not.
        symbols = xp.asarray(np.asarray([*own, *self.trace.values, self.cut], np.float32))
        program = Program(shape, Functions(self.trace, OPERATIONS[op]), self.label)
        width = 8 * shape.columns
        rows = (
            n if width == 0 else max(1, PARTS // width // shape.block_targets) * shape.block_targets
        )
        sums, moments = [], []
        for i in range(0, n, rows):
            part = slice(i, min(n, i + rows))
            blocks = ceil(part.stop - i, shape.block_targets)
            # The padded end: the last part of the targets reaches into the copies that `pad` appended.
            end = i + blocks * shape.block_targets
            # As many splits as fill the device, as few as their partial sums, of all features, allow in memory.
            splits = min(len(tiles), ceil(BLOCKS, blocks * t))
            splits = max(1, min(splits, PARTS // max(1, (part.stop - i) * width * t)))
            per = ceil(len(tiles), splits)
            # Rounding `per` up may leave the last splits without a tile; they are not launched.
            splits = ceil(len(tiles), per)
            all_tiles, Y = self._columns(tiles, v, shape, splits * per, fill)
            size = (part.stop - i) * splits * t
            kinds = 2 if op == "logsumexp" else shape.sums
            found_sums = xp.zeros(kinds * size, np.float32)
            # Partial sums come with their errors: tensor cores truncate, and a million sources would drift.
            found_moments, errors = (xp.zeros(max(1, size * width), np.float32) for _ in range(2))
            each = len(words) // len(nx)
            self.engine.pairs(
                program, shape, (blocks, splits * t),
                (
                    words[i * each : end * each], all_tiles, nx[i:end], scales[i:end], self.X[part], Y,
                    symbols, top[i:end], found_sums, found_moments, errors,
                    *(np.uint64(a) for a in (part.stop - i, len(Y), d, per, len(all_tiles), first, 4 * shape.targets)),
                ),
            )  # fmt: skip
            sums.append(found_sums.reshape(kinds, t, splits, -1).astype(float))
            if width:
                # The errors were carried into the sums as they were made, so what is left of them here is below float32's
                # last place.
                both = found_moments.reshape(t, splits, -1, width).sum(axis=1, dtype=float)
                moments.append(both[..., : shape.width])
        wide = xp.concatenate(moments, axis=1) if moments else None
        most = max(part.shape[2] for part in sums)
        # blocks of targets may be split differently: none has more splits than the last
        filled = [_fill(part, most, op == "logsumexp", xp) for part in sums]
        return xp.concatenate(filled, axis=3), wide

    def _columns(
        self, tiles: Array, v: Array, shape: Shape, count: int, fill: float
    ) -> tuple[Array, Array]:
        """Return the tiles of all columns, ``count`` each, one column after the other, and the sources in that order."""
        xp, t = self.xp, len(v)
        if t == 1:
            return tiles, self.Y
        # Splits do not cross columns: what is missing of the last split are tiles that weigh nothing.
        filled = xp.concatenate([tiles, xp.repeat(tiles[-1:], count - len(tiles), axis=0)])
        every = xp.repeat(filled[None], t, axis=0)
        weights = xp.full((t, count * shape.tile), fill, np.float32)
        weights[:, : v.shape[1]] = v
        points, side, _ = shape.group_words
        sides = every[:, :, shape.groups * points : shape.groups * (points + side)]
        # norms and weights of eight sources in turns, then their scales: one store for all columns
        sides.reshape(t, count, shape.groups, side)[..., 1:16:2] = weights.view(np.int32).reshape(
            t, count, -1, 8
        )
        Y = pad(self.Y, shape.tile, xp)
        more = xp.repeat(Y[-1:], count * shape.tile - len(Y), axis=0)
        return every.reshape(t * count, -1), xp.concatenate([Y, more] * t)


def _fill(sums: Array, splits: int, log: bool, xp: ModuleType) -> Array:
    """Return sums with empty splits added, which weigh nothing."""
    kinds, t, have, n = sums.shape
    if have == splits:
        return sums
    empty = xp.zeros((kinds, t, splits - have, n))
    if log:
        # The reference of a split without sources: finite, so that its weight is 2^-large = 0 and not NaN.
        empty[1] = -1e30
    return xp.concatenate([sums, empty], axis=2)


def _blocks(width: int) -> Iterator[slice]:
    """Return even blocks of right-hand sides, whole groups of eight but for the last."""
    # Even blocks, 64 and 56 rather than 112 and 8: every launch repeats the first product, whatever its width.
    step = packing.padded(ceil(width, ceil(width, WIDEST)), 8)
    return (slice(i, min(width, i + step)) for i in range(0, width, step))


def pad(x: Array, step: int, xp: ModuleType) -> Array:
    """Return points with copies of the last one, as many as fill blocks."""
    more = packing.padded(len(x), step) - len(x)
    return xp.concatenate([x, xp.repeat(x[-1:], more, axis=0)]) if more else x


def logarithm(totals: Array, peaks: Array, xp: ModuleType) -> Array:
    """Return log2 of sums over splits, (n,), -inf without any weight, from those of each, (splits, n), over 2^peak."""
    # References of splits differ; in float64 from here on, where there are n numbers and not n m.
    peak = peaks.max(axis=0)
    with np.errstate(divide="ignore"):
        return peak + xp.log2((totals * xp.exp2(peaks - peak)).sum(axis=0))
