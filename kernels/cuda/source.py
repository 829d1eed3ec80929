"""What a CUDA reduction is made of: its request, its typed printer, its module text and its signature.

Numba-CUDA compiles Python functions, so a reduction is written as text: scalar registers for the points,
no arrays in them, every loop over features, columns and targets unrolled by the generator. The pair loops
are in :mod:`gpukoop.kernels.cuda.pairs.tile` (features in registers) and :mod:`gpukoop.kernels.cuda.pairs.wide`
(features in chunks); the second pass is in :mod:`gpukoop.kernels.cuda.pairs.finish`.

========= =====================================================================================
word      meaning
========= =====================================================================================
entry     one device function of a module, launched by the host
form      how q is computed: "dot", "difference" (scaled coordinates) or "exact" (see :func:`gpukoop.kernels.cuda.form.forms`)
record    what is staged of one source: coordinates, weights, and a bias where the form has one
uint      unsigned 64-bit index: signed ones carry a wrap-around select at every subscript
========= =====================================================================================
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from gpukoop.kernels.formula.expr import Expr
from gpukoop.kernels.formula.printers import NumbaPrinter
from gpukoop.kernels.formula.profile import AbstractKernel, Q

OPS = ("product", "gradient", "value_and_gradient", "logsumexp", "logsumexp_and_gradient")
DTYPES = ("float32", "float64")

# Threads of a block. Four warps a block: registers, not threads, decide how many blocks an SM holds.
BLOCK = 128
# More features than this do not fit into registers beside the sums: they go through in chunks.
WIDEST_TILE = 24
# Columns that share one exponential: more accumulators would spill (performance is flat from 8 on).
WIDEST_COLUMNS = 16


@dataclass(frozen=True)
class Spec:
    """One device function: everything its text depends on besides the trace.

    ``d`` features, ``t`` columns in this pass, ``form`` of q; ``block`` threads (smaller in the simulator,
    where a thread costs 50 microseconds); ``listed`` if a block visits a list of tiles instead of all.
    """

    op: str
    d: int
    t: int
    dtype: str
    form: str
    block: int = BLOCK
    listed: bool = False

    @property
    def wide(self) -> bool:
        """Whether features are visited in chunks."""
        return self.d > WIDEST_TILE

    @property
    def value(self) -> bool:
        """Whether K @ v is an output."""
        return self.op in ("product", "value_and_gradient")

    @property
    def slope(self) -> bool:
        """Whether a gradient is an output."""
        return self.op in ("gradient", "value_and_gradient", "logsumexp_and_gradient")

    @property
    def exponent(self) -> bool:
        """Whether weights are logarithms."""
        return self.op in ("logsumexp", "logsumexp_and_gradient")

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the output buffers of the first pass."""
        names: tuple[str, ...] = ("top", "sum") if self.exponent else ()
        names += ("value",) if self.value else ()
        return names + (("slope",) if self.slope else ())

    @property
    def scratch(self) -> tuple[str, ...]:
        """Names of buffers that entries keep corrections in: the gradient of many features is summed in memory."""
        return ("correction",) if self.wide and self.slope else ()

    @property
    def lists(self) -> tuple[str, ...]:
        """Names of the lists of tiles: where that of a block and split starts in ``visits``, and the tiles."""
        return ("bounds", "visits") if self.listed else ()

    @property
    def sizes(self) -> tuple[str, ...]:
        """Names of the index arguments.

        ``step``, the length of a record, hides the length of rare loops from the compiler: unrolled, they would
        share subexpressions with the main path and take its multiply-adds apart.
        """
        share = () if self.listed else ("per", "tiles")
        return ("n", *share) + (("step",) if self.exponent and not self.wide else ())

    @property
    def scalars(self) -> tuple[str, ...]:
        """Names of the real arguments after the sizes, besides the symbols of the trace."""
        return (("factor",) if self.slope else ()) + (("stretch",) if self.form == "exact" else ())


class CudaPrinter(NumbaPrinter):
    """Statements for one pair, with q in the register ``q``."""

    def __init__(self, q: str, dtype: str) -> None:
        functions = {"exp2": "exp2", "log2": "log2", "sqrt": "sqrt", "rsqrt": "rsqrt"}
        super().__init__("real", functions, f"{q}_")
        self.q, self.dtype = q, dtype

    def call(self, function: str, argument: str) -> str:
        """Return a call; a reciprocal is one instruction only as a division that may be approximate.

        PTX promises no accuracy for a float64 rsqrt: a root and a division round correctly.
        """
        if function == "rsqrt" and self.dtype == "float64":
            return f"divide(one, sqrt({argument}))"
        if function == "reciprocal":
            return f"divide(one, {argument})"
        return super().call(function, argument)

    def symbol(self, name: str) -> str:
        """Return the register of q, or the argument of that name."""
        return self.q if name == Q.name else name


class Text:
    """Lines of Python with indentation."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.depth = 0
        self.names = 0

    def bind(self, value: str, letter: str) -> str:
        """Append ``name = value`` with a name of its own; a name assigned twice costs the compiler a pass."""
        self.names += 1
        self.add(f"{letter}_{self.names} = {value}")
        return f"{letter}_{self.names}"

    def add(self, *lines: str) -> None:
        """Append lines at the present depth."""
        self.lines.extend("    " * self.depth + line for line in lines)

    def open(self, line: str) -> None:
        """Append a line that opens a block."""
        self.add(line)
        self.depth += 1

    def close(self, blocks: int = 1) -> None:
        """Leave blocks."""
        self.depth -= blocks

    def evaluate(self, printer: CudaPrinter, tree: Expr) -> str:
        """Append the statements of ``tree`` and return its value as a name or constant."""
        start = len(printer.lines)
        text = printer.print(tree)
        self.add(*printer.lines[start:])
        return text

    def __str__(self) -> str:
        return "\n".join(self.lines) + "\n"


def u(number: int) -> str:
    """Return the name of a typed index (uint64 + a plain int would be float64), defined by :func:`module_text`.

    A global constant is resolved once; a call such as ``uint(4)`` costs type inference at every use.
    """
    return f"k_{number}"


_DEVICE = {
    "float32": """\
import math
import numpy as np
from numba import cuda, float32 as real, uint64 as uint
from numba.cuda.libdevice import exp2f as exp2, fadd_rn as plus, fast_fdividef as divide
from numba.cuda.libdevice import fast_log2f as log2, log2f as log2_finish, rsqrtf as rsqrt
sqrt = math.sqrt
""",
    "float64": """\
import math
import numpy as np
from numba import cuda, float64 as real, uint64 as uint
from numba.cuda.libdevice import dadd_rn as plus, ddiv_rn as divide
from numba.cuda.libdevice import exp2, log2, log2 as log2_finish
sqrt = math.sqrt
""",
}
# The simulator runs the text as Python: the same functions, in the dtype of their arguments.
_SIMULATOR = """\
import numpy as np
from numba import cuda
real, uint = np.{dtype}, int
def quiet(function):
    def wrapped(*arguments):
        with np.errstate(all="ignore"):
            return function(*arguments)
    return wrapped
exp2, log2, sqrt, divide = (quiet(f) for f in (np.exp2, np.log2, np.sqrt, np.divide))
plus, log2_finish = np.add, log2
rsqrt = quiet(lambda x: real(1) / np.sqrt(x))
"""


def module_text(body: str, dtype: str, simulator: bool) -> str:
    """Return the text of a generated module: imports, the index constants that ``body`` uses, ``body``.

    Sums across tiles use ``plus``, an addition that keeps its rounding: fast mathematics would cancel the
    correction of a compensated sum.
    """
    names = _SIMULATOR.format(dtype=dtype) if simulator else _DEVICE[dtype]
    index = "int" if simulator else "np.uint64"
    numbers = sorted({int(number) for number in re.findall(r"\bk_(\d+)\b", body)})
    constants = "".join(f"k_{number} = {index}({number})\n" for number in numbers)
    return f"{names}{constants}one, zero = real(1.0), real(0.0)\n\n\n{body}"


def tile_range(spec: Spec) -> tuple[str, str]:
    """Return the statements for the tiles ``block`` to ``stop`` of a block and split, or of its list.

    They are the same for all threads of a block, so that all meet at its barriers.
    """
    if spec.listed:
        return (
            "place = uint(cuda.blockIdx.x) * uint(cuda.gridDim.y) + uint(cuda.blockIdx.y)",
            "block, stop = uint(bounds[place]), uint(bounds[place + k_1])",
        )
    return "first = uint(cuda.blockIdx.y) * per", "block, stop = first, min(first + per, tiles)"


def label(kernel: AbstractKernel) -> str:
    """Return a readable name of a kernel, a valid identifier."""
    return "_plus_".join(type(k).__name__.lower() for _, k in kernel.terms)


def entry_name(kernel_label: str, spec: Spec) -> str:
    """Return the name of an entry, such as ``gaussian_product_difference_d3_t1_float32``."""
    tail = "_listed" if spec.listed else ""
    return f"{kernel_label}_{spec.op}_{spec.form}_d{spec.d}_t{spec.t}_{spec.dtype}{tail}"
