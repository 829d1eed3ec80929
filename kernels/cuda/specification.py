"""What decides the machine code of a CUDA program besides the kernel: one value, the key of every store.

A specification names the frame it is for and the arguments of that frame with their kinds:

========= ===================================================================
kind      argument
========= ===================================================================
real      pointer to numbers of the program's dtype
float64   pointer to float64, and likewise for int32, uint32, uint64
size      uint64
double    float64
scalars   tuple of the program's dtype: :data:`OWN`, then those of the kernel
========= ===================================================================
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from gpukoop.kernels.operation import Operation

DTYPES = ("float32", "float64")
# How q is computed, fastest first (gpukoop.kernels.cuda.form.forms): what `pick` on the device says is an index of this tuple.
FORMS = ("dot", "difference", "exact")
# Scalars of every pair loop before those of the kernel: the stretch of the exact form, and the factor of the gradient.
OWN = ("stretch", "factor")
# Threads of a block. Four warps a block: registers, not threads, decide how many blocks an SM holds.
BLOCK = 128
# More features than this do not fit into registers beside the sums: they go through in chunks.
WIDEST_TILE = 24
# Columns that share one exponential: more accumulators would spill (performance is flat from 8 on).
WIDEST_COLUMNS = 16
# Features of a wide frame that are staged at once: 2 KB in float32, two barriers for 2048 issue slots of a thread.
CHUNK = 32
# They go through registers four at a time: points of wide frames have zeros up to a multiple.
FEATURE_STEP = 4
# Blocks that measure a cloud at most, and points of each cloud whose mean is its centre.
MEASURED, SAMPLE = 64, 64


def padded(d: int) -> int:
    """Return how many features points of a wide frame have in memory."""
    return -(-d // FEATURE_STEP) * FEATURE_STEP


def _kinds(text: str) -> tuple[tuple[str, str], ...]:
    """Return ((name, kind), ...) of "kind: names; ..."."""
    groups = (group.split(":") for group in text.split(";"))
    return tuple((name, kind.strip()) for kind, names in groups for name in names.split())


@dataclass(frozen=True)
class AbstractSpecification(ABC):
    """A frame and its compile-time constants."""

    @property
    @abstractmethod
    def frame(self) -> str:
        """Where the factory of the frame is, "module:function" below gpukoop.kernels.cuda."""

    @property
    @abstractmethod
    def arguments(self) -> tuple[tuple[str, str], ...]:
        """Names and kinds of its arguments, in order."""

    @property
    @abstractmethod
    def label(self) -> str:
        """A readable name, a valid identifier."""


@dataclass(frozen=True)
class Specification(AbstractSpecification):
    """One program over pairs.

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
        return numbers(self.operation, self.d, self.t)

    @property
    def biased(self) -> bool:
        """Whether a staged record ends with a bias, |y|^2."""
        return self.form == "dot"

    @property
    def record(self) -> int:
        """Numbers staged of one source: coordinates, weights, a bias; padded to loads of 16 bytes."""
        each = 2 if self.dtype == "float64" else 4
        return -(-(self.d + self.t + self.biased) // each) * each

    @property
    def frame(self) -> str:
        """The loop over pairs of this family."""
        if self.family == "pairs":
            return "pairs.exponents:exponents" if self.operation.log else "pairs.sums:sums"
        return {"wide": "pairs.wide:wide", "symmetric": "symmetric.sums:symmetric"}[self.family]

    @property
    def arguments(self) -> tuple[tuple[str, str], ...]:
        """Points, weights, the form, outputs, sizes."""
        return {
            "pairs": _kinds(
                "real: x y v; int32: pick; uint64: bounds; uint32: visits; real: top value slope;"
                "size: n m per tiles column columns; scalars: s"
            ),
            "wide": _kinds(
                "real: x y xx yy v; int32: pick; real: top value slope correction;"
                "size: n m per tiles column columns; scalars: s"
            ),
            "symmetric": _kinds(
                "real: x v; int32: pick; real: part_row part_column;"
                "size: n tiles per first; scalars: s"
            ),
        }[self.family]

    @property
    def label(self) -> str:
        """Such as ``product_difference_d3_t1_float32``."""
        head = "symmetric_" if self.family == "symmetric" else ""
        tail = "_listed" if self.listed else ""
        return f"{head}{self.operation}_{self.form}_d{self.d}_t{self.t}_{self.dtype}{tail}"


def numbers(operation: Operation, d: int, t: int) -> int:
    """Return the sums that a target keeps in a pass of t columns."""
    if operation.log:
        return 1 + d * operation.slope
    return t * operation.value + t * d * operation.slope


@dataclass(frozen=True)
class Finish(AbstractSpecification):
    """The second pass over partial results: sums of splits, or their join under a log-sum-exp."""

    operation: Operation
    dtype: str
    d: int
    wide: bool

    @property
    def frame(self) -> str:
        """The frame of the second pass."""
        return f"pairs.finish:{'join_splits' if self.operation.log else 'add_splits'}"

    @property
    def arguments(self) -> tuple[tuple[str, str], ...]:
        """Partial results, results, sizes."""
        if self.operation.log:
            return _kinds("real: top_part value_part slope_part value slope; size: n splits")
        return _kinds("real: value_part slope_part value slope; size: n columns splits")

    @property
    def label(self) -> str:
        """Such as ``add_product_float32``."""
        slope = f"_d{self.d}{'_wide' * self.wide}" if self.operation.slope else ""
        return f"{'join' if self.operation.log else 'add'}_{self.operation}{slope}_{self.dtype}"


@dataclass(frozen=True)
class SymmetricFinish(AbstractSpecification):
    """The second pass of a symmetric product: rows and columns of a band added to the result."""

    dtype: str

    @property
    def frame(self) -> str:
        """The frame of the second pass."""
        return "symmetric.sums:add_band"

    @property
    def arguments(self) -> tuple[tuple[str, str], ...]:
        """Partial results, result and its error, sizes."""
        return _kinds(
            "real: part_row part_column part_error value;"
            "size: width targets own tiles first bottom per"
        )

    @property
    def label(self) -> str:
        """Its name."""
        return f"sum_symmetric_{self.dtype}"


@dataclass(frozen=True)
class Points(AbstractSpecification):
    """What is made of the points alone; ``step`` is "measure" or "pack", ``forms`` what is offered."""

    step: str
    dtype: str
    d: int
    forms: tuple[str, ...]
    wide: bool
    block: int = BLOCK

    @property
    def frame(self) -> str:
        """The frame of the step."""
        return f"points:{self.step}"

    @property
    def arguments(self) -> tuple[tuple[str, str], ...]:
        """Points as they came, what is found, copies; ``more`` is m, or 0 where Y is X."""
        if self.step == "measure":
            return _kinds("real: X Y; float64: centre found; size: n m more blocks")
        return _kinds(
            "real: X Y x y xx yy; float64: centre found; int32: pick; size: n m more blocks;"
            "double: scale narrow near"
        )

    @property
    def label(self) -> str:
        """Such as ``pack_points_dot_difference_exact_d3_float32``."""
        if self.step == "measure":
            return f"measure_points_d{self.d}_{self.dtype}"
        return f"pack_points_{'_'.join(self.forms)}_d{self.d}_{self.dtype}{'_wide' * self.wide}"
