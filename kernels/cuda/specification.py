"""What decides the machine code of a CUDA program besides the kernel: one value, the key of every store."""

from __future__ import annotations

from dataclasses import dataclass

from gpukoop.kernels.operation import Operation

DTYPES = ("float32", "float64")
# How q is computed, fastest first (gpukoop.kernels.cuda.form.forms): what `pick` on the device says is an index of this tuple.
FORMS = ("dot", "difference", "exact")
# Threads of a block. Four warps a block: registers, not threads, decide how many blocks an SM holds.
BLOCK = 128
# More features than this do not fit into registers beside the sums: they go through in chunks.
WIDEST_TILE = 24
# Columns that share one exponential: more accumulators would spill (performance is flat from 8 on).
WIDEST_COLUMNS = 16
# Features of a wide frame that are staged at once: 2 KB in float32, two barriers for 2048 issue slots of a thread.
CHUNK = 32


@dataclass(frozen=True)
class Specification:
    """One program over pairs: a frame and its compile-time constants.

    Attributes
    ----------
    family : {"pairs", "wide", "symmetric"}
        The frame.
    operation, dtype, form
        What is summed, in what, and how q is computed.
    d, t : int
        Features, and columns of one pass.
    targets, group, tile : int
        Targets a thread, sources of one pass of the innermost loop, sources of one tile.
    block : int
        Threads of a block; fewer in the simulator, where a thread costs 50 microseconds.
    listed : bool
        Whether a block visits a list of tiles instead of all.
    """

    family: str
    operation: Operation
    dtype: str
    form: str
    d: int
    t: int
    targets: int
    group: int
    tile: int
    block: int = BLOCK
    listed: bool = False

    @property
    def sums(self) -> int:
        """Sums that a target keeps."""
        operation = self.operation
        if operation.log:
            return 1 + self.d * operation.slope
        return self.t * operation.value + self.t * self.d * operation.slope

    @property
    def biased(self) -> bool:
        """Whether a staged record ends with half of q, |y|^2."""
        return self.form == "dot"

    @property
    def record(self) -> int:
        """Numbers staged of one source: coordinates, weights, a bias; padded to loads of 16 bytes."""
        each = 2 if self.dtype == "float64" else 4
        return -(-(self.d + self.t + self.biased) // each) * each
