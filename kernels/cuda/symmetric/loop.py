"""The pair loop of K(X, X) @ v on CUDA that visits each pair once: k_ij serves row i and row j.

A block keeps its targets in registers, as in :mod:`gpukoop.kernels.cuda.pairs.tile`, but walks only the tiles of sources at or
beyond its own. The lanes of a warp stand at different sources: lane l of step k at source l + k of a strip of 32. Each
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

from gpukoop.kernels.cuda.form import FORMS, has_bias
from gpukoop.kernels.cuda.pairs.shape import Shape, shape
from gpukoop.kernels.cuda.pairs.tile import TileWriter
from gpukoop.kernels.cuda.source import BLOCK, CudaPrinter, Spec, u
from gpukoop.kernels.formula.profile import Trace

# Lanes of a warp, hence sources of a strip.
WARP = 32
# Positions of a strip in memory: the first 31 sources come again at the end, so that no lane wraps around.
POSITIONS = 64
# Bytes of a tile in shared memory: four blocks an SM leave room for the cache.
TILE_BYTES = 2**14
# 32-bit registers that the targets may take, and, by targets, up to which four steps at once keep a thread at 128.
REGISTERS = 96
FOUR_STEPS = {8: 76, 4: 84, 2: 84, 1: 84}
EVERY_LANE = 2**WARP - 1


def planes(record: int, dtype: str) -> tuple[int, ...]:
    """Return the widths of the planes of a record: loads of 16 bytes, and one that fits the rest."""
    widest = 2 if dtype == "float64" else 4
    full, rest = divmod(record, widest)
    return (widest,) * full + ((4 if rest == 3 else rest,) if rest else ())


def symmetric_shape(trace: Trace, spec: Spec) -> Shape:
    """Return the tiling: that of the one-sided loop, but whole strips a tile and records in planes."""
    one_sided = shape(trace, spec)
    record = sum(planes(spec.d + spec.t + has_bias(trace, spec), spec.dtype))
    size = 8 if spec.dtype == "float64" else 4
    strips = max(s for s in (4, 2, 1) if s == 1 or s * POSITIONS * record * size <= TILE_BYTES)
    each = size // 4 * (spec.d + 4 * spec.t + 2)
    targets = next((r for r in (8, 4, 2) if r * each <= REGISTERS), 1)
    group = one_sided.group if targets * each <= FOUR_STEPS[targets] else 2
    if spec.block < BLOCK:  # the simulator
        targets, strips = min(targets, 2), 1
    return Shape(targets, group, strips * WARP, record)


class SymmetricWriter(TileWriter):
    """Write the pair loop of a symmetric product."""

    def __init__(self, trace: Trace, spec: Spec) -> None:
        super().__init__(trace, spec)
        self.shape = symmetric_shape(trace, spec)
        self.widths = planes(spec.d + spec.t + has_bias(trace, spec), spec.dtype)
        self.starts = [POSITIONS * sum(self.widths[:p]) for p in range(len(self.widths))]
        self.slots = [(p, k) for p, width in enumerate(self.widths) for k in range(width)]

    def write(self, name: str) -> str:
        """Return the source of the entry."""
        spec, text, s = self.spec, self.text, self.shape
        args = ["x", "w", "s", "pick", "part_row", "part_column", "n", "tiles", "per", "top"]
        length = s.tile // WARP * POSITIONS * s.record
        text.add("@cuda.jit(fastmath=True, cache=True)" if spec.block == BLOCK else "@cuda.jit")
        text.open(f"def {name}({', '.join([*args, *spec.scalars, *self.trace.symbols])}):")
        text.add(f"tile = cuda.shared.array({length}, real)")
        text.add(f"columns = cuda.shared.array({spec.block // WARP * spec.t * s.tile}, real)")
        if spec.block < BLOCK:
            text.add(f"ring = cuda.shared.array({spec.block}, real)")
        text.open(f"if pick[0] != {FORMS.index(spec.form)}:")
        text.add("return")
        text.close()
        own = spec.block * s.targets // s.tile
        text.add(
            "tid = uint(cuda.threadIdx.x)",
            f"lane, warp = tid & {u(WARP - 1)}, tid // {u(WARP)}",
            f"neighbour = (lane + k_1) & {u(WARP - 1)}",
            "band = uint(cuda.blockIdx.y)",
            f"beyond = (top + band + k_1) * {u(own)}",
            f"block = beyond - {u(own)} + uint(cuda.blockIdx.x) * per",
            "stop = min(block + per, tiles)",
            f"row = (top + band) * {u(spec.block * s.targets)} + tid",
            "last = n - k_1",
        )
        text.open("if block >= tiles:")  # rows of blocks further down are shorter
        text.add("return")
        text.close()
        self.load_targets()
        self.load_weights()
        text.open("while block < stop:")
        text.add(f"base = block * {u(length)}", "i = tid")
        text.open(f"while i < {u(length)}:")
        text.add("tile[i] = s[base + i]", f"i = i + {u(spec.block)}")
        text.close()
        text.add("cuda.syncthreads()")
        for r in self.targets():
            text.add(*(f"p{r}_{a} = zero" for a in range(self.n_sums)))
        self.strips()
        self.carry()
        text.add("cuda.syncthreads()")
        self.store_columns()
        text.add("block = block + k_1")
        text.close()
        self.store()
        return str(text)

    def load_weights(self) -> None:
        """Write the loads of the weights of the targets.

        Rows past the end repeat the last one. They are in the last block, which has no tile beyond its own: its column
        sums are dropped.
        """
        spec, text = self.spec, self.text
        for r in self.targets():
            text.add(f"i = min(row + {u(r * spec.block)}, last) * {u(spec.t)}")
            text.add(*(f"w{r}_{c} = w[i + {u(c)}]" for c in range(spec.t)))

    def strips(self) -> None:
        """Write the loop over the strips of a tile."""
        spec, text, s = self.spec, self.text, self.shape
        text.add("strip = k_0")
        text.open(f"while strip < {u(s.tile // WARP)}:")
        text.add(f"i = strip * {u(POSITIONS * s.record)}")
        for p, (start, width) in enumerate(zip(self.starts, self.widths, strict=True)):
            text.add(f"at{p} = i + {u(start)} + lane * {u(width)}")
        text.add(*(f"column{c} = zero" for c in range(spec.t)))
        text.add("j = k_0")
        text.open(f"while j < {u(WARP)}:")
        self.weighted_group()
        for p, width in enumerate(self.widths):
            text.add(f"at{p} = at{p} + {u(s.group * width)}")
        text.add(f"j = j + {u(s.group)}")
        text.close()
        text.add(f"i = warp * {u(spec.t * s.tile)} + strip * {u(WARP)} + lane")
        text.add(*(f"columns[i + {u(c * s.tile)}] = column{c}" for c in range(spec.t)))
        text.add("strip = strip + k_1")
        text.close()

    def load_source(self, j: str, offset: int, base: str = "") -> None:
        """Write the loads of the record ``offset`` steps on; ``base`` is unused, every plane has its own."""
        spec = self.spec
        names = [f"y{j}_{k}" for k in range(spec.d)] + [f"v{j}_{c}" for c in range(spec.t)]
        if spec.form == "dot":
            names.append(f"b{j}")
        for name, (p, k) in zip(names, self.slots, strict=False):
            self.text.add(f"{name} = tile[at{p} + {u(offset * self.widths[p] + k)}]")

    def weighted_group(self) -> None:
        """Write a group of steps: row sums of every target, and the sum that travels with the source."""
        spec, text = self.spec, self.text
        for step in range(self.shape.group):
            j = str(step)
            self.load_source(j, step)
            shares: list[list[str]] = [[] for _ in range(spec.t)]
            for r in self.targets():
                q, _ = self.squares(r, j)
                value = text.evaluate(CudaPrinter(q, spec.dtype), self.phi)
                if self.trace.singular:
                    value = self.apart(q, value)
                for c in range(spec.t):
                    self.accumulate(r, c, f"{value} * v{j}_{c}")
                    shares[c].append(f"{value} * w{r}_{c}")
            for c in range(spec.t):
                self.hand_on(c, " + ".join(shares[c]))
        if not self.direct:
            for r in self.targets():
                text.add(f"p{r}_0 = plus(p{r}_0, {' + '.join(self.terms.pop(r))})")

    def hand_on(self, c: int, share: str) -> None:
        """Write one addition to a column sum; every lane then takes over that of the lane above it, in order to go on.

        The simulator has no shuffles.
        """
        # Several sums are chained, as those of the targets are: an addition a step would cost each of them a slot.
        total = f"column{c} + {share}" if self.direct else f"plus(column{c}, {share})"
        if self.spec.block == BLOCK:
            self.text.add(f"column{c} = cuda.shfl_sync({u(EVERY_LANE)}, {total}, neighbour)")
            return
        self.text.add(
            f"ring[tid] = {total}",
            "cuda.syncthreads()",
            f"column{c} = ring[tid - lane + neighbour]",
            "cuda.syncthreads()",
        )

    def carry(self) -> None:
        """Write the compensated addition of the row sums of a tile to the running totals."""
        for name in (f"{r}_{a}" for r in self.targets() for a in range(self.n_sums)):
            self.text.add(
                f"y = plus(p{name}, -e{name})",
                f"z = plus(s{name}, y)",
                f"e{name} = plus(plus(z, -s{name}), -y)",
                f"s{name} = z",
            )

    def store_columns(self) -> None:
        """Write the sums of the warps, added in their order, for tiles beyond the block's own targets."""
        spec, text, s = self.spec, self.text, self.shape
        warps = spec.block // WARP
        text.open("if block >= beyond:")
        text.add("i = tid")
        text.open(f"while i < {u(s.tile)}:")
        text.add(f"j = block * {u(s.tile)} + i")
        text.open("if j < n:")
        # columns of this band: those of its first block and beyond
        first = f"top * {u(spec.block * s.targets)}"
        text.add(f"j = (band * (n - {first}) + j - {first}) * {u(spec.t)}")
        for c in range(spec.t):
            parts = [f"columns[i + {u((v * spec.t + c) * s.tile)}]" for v in range(warps)]
            total = parts[0]
            for part in parts[1:]:
                total = f"plus({total}, {part})"
            text.add(f"part_column[j + {u(c)}] = {total}")
        text.close()
        text.add(f"i = i + {u(spec.block)}")
        text.close(2)

    def store(self) -> None:
        """Write the row sums of this split; rows past the end have a place of their own and are never read."""
        spec, text = self.spec, self.text
        rows = spec.block * self.shape.targets
        text.add(
            f"i = ((uint(cuda.blockIdx.x) * uint(cuda.gridDim.y) + band) * {u(rows)} + tid) * {u(spec.t)}"
        )
        for r in self.targets():
            text.add(
                *(
                    f"part_row[i + {u(r * spec.block * spec.t + c)}] = s{r}_{c}"
                    for c in range(spec.t)
                )
            )


def symmetric_source(trace: Trace, spec: Spec, name: str) -> str:
    """Return the source of the first pass of a symmetric product."""
    return SymmetricWriter(trace, spec).write(name)
