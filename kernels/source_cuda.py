"""What a CUDA reduction is made of: its request, its typed printer, its module text and its signature.

Numba-CUDA compiles Python functions, so a reduction is written as text: scalar registers for the points,
no arrays in them, every loop over features, columns and targets unrolled by the generator. The pair loops
are in :mod:`gpukoop.kernels.tile_cuda` (features in registers) and :mod:`gpukoop.kernels.wide_cuda`
(features in chunks); the second pass is in :mod:`gpukoop.kernels.finish_cuda`.

========= =====================================================================================
word      meaning
========= =====================================================================================
entry     one device function of a module, launched by the host
form      how q is computed: "dot", "difference" (scaled coordinates) or "exact" (see :func:`forms`)
record    what is staged of one source: coordinates, weights, and a bias where the form has one
uint      unsigned 64-bit index: signed ones carry a wrap-around select at every subscript
========= =====================================================================================
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from gpukoop.kernels.expr import Call, E, Expr, Number, Product, Sum, Symbol, mul, substitute
from gpukoop.kernels.printers import NumbaPrinter
from gpukoop.kernels.profile import AbstractKernel, Q, Trace

OPS = ("product", "gradient", "value_and_gradient", "logsumexp", "logsumexp_and_gradient")
DTYPES = ("float32", "float64")
FORMS = ("dot", "difference", "exact")

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
    where a thread costs 50 microseconds).
    """

    op: str
    d: int
    t: int
    dtype: str
    form: str
    block: int = BLOCK

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
        names = ("top", "sum") if self.exponent else ()
        names += ("value",) if self.value else ()
        return names + (("slope",) if self.slope else ())

    @property
    def scratch(self) -> tuple[str, ...]:
        """Names of buffers that entries keep corrections in: the gradient of many features is summed in memory."""
        return ("correction",) if self.wide and self.slope else ()

    @property
    def sizes(self) -> tuple[str, ...]:
        """Names of the index arguments.

        ``step``, the length of a record, hides the length of rare loops from the compiler: unrolled, they would
        share subexpressions with the main path and take its multiply-adds apart.
        """
        return ("n", "per", "tiles") + (("step",) if self.exponent and not self.wide else ())

    @property
    def scalars(self) -> tuple[str, ...]:
        """Names of the real arguments after the sizes, besides the symbols of the trace."""
        return (("factor",) if self.slope else ()) + (("stretch",) if self.form == "exact" else ())


def smooth(tree: Expr) -> bool:
    """Return whether ``tree`` is a smooth function of q at 0, so that q may carry an absolute error."""
    if isinstance(tree, Sum):
        return all(smooth(t) for t, _ in tree.terms)
    if isinstance(tree, Call):
        return smooth(tree.argument)
    if isinstance(tree, Product):
        for base, exponent in tree.factors:
            whole = (
                isinstance(exponent, Number) and exponent.value.is_integer() and exponent.value > 0
            )
            if base == Q and not whole:
                return False
            if not smooth(base) or not smooth(exponent):
                return False
    return True


def forms(trace: Trace, op: str, d: int) -> tuple[str, ...]:
    """Return the forms of q that are offered, fastest first; the last one is right for all data.

    ========== ===================================== ================================================
    form       q                                     right when
    ========== ===================================== ================================================
    dot        |x'|^2 + |y'|^2 - 2 x'.y'             the cloud is small against the accuracy asked
    difference sum (x' - y')^2                       coordinates lose little when they are scaled
    exact      prescale^2 sum (x - y)^2              always: differences of the numbers as they came
    ========== ===================================== ================================================

    x' is x centred and pre-scaled. The gradient needs x' - y' anyway, so the dot form saves it nothing.
    """
    able = op in ("product", "logsumexp") and d >= 3 and smooth(trace.phi)
    fast = ("dot",) if able else ()
    return fast + (("exact",) if d > WIDEST_TILE else ("difference", "exact"))


def gaussian_like(tree: Expr) -> bool:
    """Return whether q occurs in an exponential, bare: then registers hold -q, and no pair negates it."""
    if isinstance(tree, Sum):
        return any(gaussian_like(t) for t, _ in tree.terms)
    if isinstance(tree, Product):
        return any(
            (base == E and split_factor(exponent)[1] == Q)
            or gaussian_like(base)
            or gaussian_like(exponent)
            for base, exponent in tree.factors
        )
    return False


def absorb_constant(trees: tuple[Expr, ...]) -> tuple[float, tuple[Expr, ...]]:
    """Return (c, trees in q' = c + q) if q occurs as that sum only, else (0, trees).

    The sum of squares then starts at c, and 1 + q of an inverse multiquadric costs nothing.
    """
    stack, found = list(trees), None
    while stack and found is None:
        node = stack.pop()
        if isinstance(node, Sum):
            if node.terms == ((Q, 1.0),) and node.constant:
                found = node
            stack.extend(t for t, _ in node.terms)
        elif isinstance(node, Product):
            stack.extend(part for factor in node.factors for part in factor)
        elif isinstance(node, Call):
            stack.append(node.argument)
    if found is None:
        return 0.0, trees
    other = Symbol("q'")
    moved = tuple(substitute(tree, {found: other}) for tree in trees)
    if any(substitute(tree, {Q: 0.5}) != tree for tree in moved):  # q occurs elsewhere too
        return 0.0, trees
    return found.constant, tuple(substitute(tree, {other: Q}) for tree in moved)


def split_factor(tree: Expr) -> tuple[float, Expr]:
    """Return ``tree`` as number * expression: the number is applied once at the end, not once a pair."""
    if isinstance(tree, Number):
        return tree.value, Number(1.0)
    if isinstance(tree, Sum) and tree.constant == 0.0 and len(tree.terms) == 1:
        return tree.terms[0][1], tree.terms[0][0]
    return 1.0, tree


def log2_phi(trace: Trace) -> Expr:
    """Return log2 phi; plain ``-q`` for a Gaussian."""
    if trace.log_phi is None:
        raise ValueError("log-sum-exp needs a positive kernel of one term")
    return mul(1.0 / math.log(2.0), trace.log_phi)


def slope_parts(trace: Trace, spec: Spec) -> tuple[float, Expr]:
    """Return (number, expression) whose product is dphi, or dphi / phi under log-sum-exp."""
    tree = trace.log_slope if spec.exponent else trace.dphi
    if tree is None:
        raise ValueError("log-sum-exp needs a positive kernel of one term")
    return split_factor(tree)


class CudaPrinter(NumbaPrinter):
    """Statements for one pair, with q in the register ``q``."""

    def __init__(self, q: str) -> None:
        functions = {"exp2": "exp2", "log2": "log2", "sqrt": "sqrt", "rsqrt": "rsqrt"}
        super().__init__("real", functions, f"{q}_")
        self.q = q

    def call(self, function: str, argument: str) -> str:
        """Return a call; a reciprocal is one instruction only as a division that may be approximate."""
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
from numba.cuda.libdevice import exp2, log2, log2 as log2_finish, rsqrt
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


def label(kernel: AbstractKernel) -> str:
    """Return a readable name of a kernel, a valid identifier."""
    return "_plus_".join(type(k).__name__.lower() for _, k in kernel.terms)


def entry_name(kernel_label: str, spec: Spec) -> str:
    """Return the name of an entry, such as ``gaussian_product_difference_d3_t1_float32``."""
    return f"{kernel_label}_{spec.op}_{spec.form}_d{spec.d}_t{spec.t}_{spec.dtype}"
