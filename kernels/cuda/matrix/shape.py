"""The shape of one tensor-core program: what it computes, how much of it a warp holds, what a tile of sources weighs.

========== ===================================================================================
word       meaning
========== ===================================================================================
chunk      16 features, the depth of one ``mma`` of numbers of 16 bits
parts      words a number is split into: 1 rounds the points, 2 keep float32
targets    groups of 16 targets that a warp holds in registers
group      8 sources, the width of one ``mma``
columns    groups of 8 right-hand sides of the second product: columns of V, or features of a gradient
========== ===================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass

from gpukoop.kernels.cuda.specification import AbstractSpecification

# Warps of a block. All walk the same tile of sources: what is read from memory is shared by 64 to 256 targets.
WARPS = 4
THREADS = 32 * WARPS
# Static shared memory of a block; two tiles live in it, one being read, one arriving.
SHARED = 48 * 1024
# Sources of a tile at most, and sums of the second product that stay on the tensor cores: they cut off instead of
# rounding, 2^-24 of a sum an addition, so a column adds 3 x 32 products of 8 sources and moves to memory.
LONGEST, SHORT = 64, 256
# Registers for the points of a warp's targets and for the sums of its second product, of 255 a thread.
POINTS, SUMS = 112, 56
# Widest second product: its sums beside the points of one group of targets.
WIDEST = 8 * SUMS // 4
# Arguments of the frame. ``symbols``: stretch and prescale, the scalars of the kernel, cut.
ARGUMENTS = (
    *((name, "int32") for name in ("x", "y")),
    *((name, "real") for name in ("norms", "scales", "a", "b", "symbols", "top")),
    *((name, "real") for name in ("sums", "moments", "errors")),
    *((name, "size") for name in ("n", "m", "d", "per", "tiles", "first", "rare")),
)


def ceil(size: int, step: int) -> int:
    """Return how many ``step`` hold ``size``."""
    return -(-size // step)


@dataclass(frozen=True)
class Shape(AbstractSpecification):
    """One program: operation, features, parts, width of the second product, whether pairs are tested for cancellation."""

    op: str
    features: int
    parts: int
    width: int
    close: bool

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return THREADS

    @property
    def log(self) -> bool:
        """Whether weights are logarithms."""
        return "logsumexp" in self.op

    @property
    def slope(self) -> bool:
        """Whether slopes are weighed with the points of the sources."""
        return "gradient" in self.op

    @property
    def value(self) -> bool:
        """Whether values are summed in registers, one column."""
        return self.op in ("product", "value_and_gradient") and (self.slope or self.width == 0)

    @property
    def sums(self) -> int:
        """Sums of a target that registers hold: values or weights, then slopes."""
        return 1 + (self.slope and self.op != "gradient")

    @property
    def chunks(self) -> int:
        """Chunks of features."""
        return ceil(self.features, 16)

    @property
    def columns(self) -> int:
        """Groups of right-hand sides."""
        return ceil(self.width, 8)

    @property
    def right_parts(self) -> int:
        """Parts of a right-hand side: points that were rounded need one."""
        # Weights of a product are the user's numbers and keep float32's digits even where points were rounded.
        return 1 if self.slope and self.parts == 1 else 2

    @property
    def targets(self) -> int:
        """Groups of 16 targets of a warp: 4, 2 or 1, as registers allow."""
        # Words a lane holds of 16 targets: an A fragment of m16n8k16 is four, for every chunk and part.
        points = 4 * self.chunks * self.parts
        fits = [m for m in (4, 2, 1) if m * points <= POINTS and 4 * m * self.columns <= SUMS]
        return fits[0] if fits else 1

    @property
    def block_targets(self) -> int:
        """Targets of a block."""
        return 16 * self.targets * WARPS

    @property
    def group_words(self) -> tuple[int, int, int]:
        """Words of a group of sources: its points; norm, weight and scale; right-hand sides."""
        # 24: eight norms and eight weights in turn, which a lane reads as one 16-byte word, and eight scales.
        return 64 * self.chunks * self.parts, 24, 64 * self.columns * self.right_parts

    @property
    def groups(self) -> int:
        """Groups of a tile: a power of two, so that :data:`SHORT` sources are whole tiles."""
        # Two tiles of words of four bytes; more than 48 KB would need an attribute of the function and fewer blocks beside
        # it.
        fit = SHARED // (2 * 4 * sum(self.group_words))
        return next(g for g in (8, 4, 2, 1) if g <= max(fit, 1) and 8 * g <= LONGEST)

    @property
    def tile(self) -> int:
        """Sources of a tile."""
        return 8 * self.groups

    @property
    def tile_words(self) -> int:
        """Words of a tile."""
        return self.groups * sum(self.group_words)

    @property
    def products(self) -> int:
        """Products of a warp, ``mma`` instructions, for one group of targets and one of sources."""
        # Three products for two parts, lo lo being below the last place; the second product splits values into two parts
        # always.
        return self.chunks * (1, 3)[self.parts - 1] + self.columns * (1 + self.right_parts)

    @property
    def dtype(self) -> str:
        """The dtype of points and results."""
        return "float32"

    @property
    def frame(self) -> str:
        """The frame."""
        return "matrix.tensor:frame"

    @property
    def arguments(self) -> tuple[tuple[str, str], ...]:
        """Names and kinds of its arguments, in order."""
        return ARGUMENTS

    @property
    def label(self) -> str:
        """A readable name, a valid identifier."""
        close = "_close" if self.close else ""
        return f"{self.op}_mma_d{self.features}_p{self.parts}_w{self.width}{close}"
