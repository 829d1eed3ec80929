"""The shape of a program that multiplies points in registers of CUDA cores, and where it beats a product of matrices in memory."""

from __future__ import annotations

from dataclasses import dataclass

from gpukoop.kernels.cuda.specification import WIDEST_TILE, AbstractSpecification

# Targets and sources of a thread: 64 products in registers for 16 numbers read.
EACH = 8
# Features that are staged at once: 12 KB of targets and sources, twice, and a barrier for 1,024 multiply-adds of a thread.
CHUNK = 16
# Threads of a block along targets and along sources: of 128, since some 140 registers leave room for three blocks of them, and for one of 256.
ROWS, COLUMNS = 8, 16
# Arguments of the frame. ``symbols``: stretch and prescale, the scalars of the kernel, cut.
ARGUMENTS = (
    *((name, "real") for name in ("x", "y", "nx", "ny", "v", "a", "b", "symbols", "sums")),
    *((name, "size") for name in ("n", "m", "d", "features", "N", "M", "per", "tiles", "rare")),
)
# Issue slots of a pair at most, as counted in the machine code for sm_90 (bench/cuda_outer.py): for a feature, staging included, and
# for what follows.
FEATURE_SLOTS, PAIR_SLOTS = 1.16, 14.0
# The same pair by a tile in memory: one slot a feature, if the library's product ran at the peak, and four bytes written and
# read, 28 slots each way at 33.5e12 multiply-adds and 4.8e12 bytes a second (H200, its data sheet).
TILE_SLOTS = 56.0


@dataclass(frozen=True)
class OuterShape(AbstractSpecification):
    """One program for any number of features: "product" of one column or "logsumexp", and whether pairs are tested for cancellation.

    ``rows`` and ``columns`` are the threads of a block along targets and sources; the simulator takes fewer.
    """

    op: str
    close: bool
    rows: int = ROWS
    columns: int = COLUMNS

    @property
    def log(self) -> bool:
        """Whether weights are logarithms."""
        return self.op == "logsumexp"

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.rows * self.columns

    @property
    def targets(self) -> int:
        """Targets of a block."""
        return EACH * self.rows

    @property
    def sources(self) -> int:
        """Sources of a tile."""
        return EACH * self.columns

    @property
    def dtype(self) -> str:
        """The dtype of points and results."""
        return "float32"

    @property
    def frame(self) -> str:
        """The frame."""
        return "matrix.outer.loop:frame"

    @property
    def arguments(self) -> tuple[tuple[str, str], ...]:
        """Names and kinds of its arguments, in order."""
        return ARGUMENTS

    @property
    def label(self) -> str:
        """A readable name, a valid identifier."""
        return f"{self.op}_outer" + "_close" * self.close


def suits(op: str, d: int, t: int, dtype: str) -> bool:
    """Return whether registers take these products: where that costs fewer slots a pair than a tile in memory."""
    # Several columns, and gradients, are a second product with the tile, which this loop does not have.
    if op not in ("product", "logsumexp") or t > 1 or dtype != "float32":
        return False
    # A tile has more features than a chunk: what belongs to a tile of sources is staged a barrier before it is read.
    return d > max(CHUNK, WIDEST_TILE) and FEATURE_SLOTS * d + PAIR_SLOTS <= d + TILE_SLOTS
