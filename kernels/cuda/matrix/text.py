"""Generated text, as the epilogue of products of matrices is still written: printer, lines, module text, loading.

Everything else in this house is a visible frame (:mod:`gpukoop.kernels.cuda.device`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from gpukoop.kernels.formula.expr import Expr
from gpukoop.kernels.formula.printers import NumbaPrinter
from gpukoop.kernels.formula.profile import Q

# Reference before the first source: finite, so that b = -inf gives 2**-inf = 0 and never inf - inf.
LOWEST = -1e30


@dataclass(frozen=True)
class Entry:
    """One device function: its module text and its argument kinds, "array", "size" or "real"."""

    name: str
    source: str
    kinds: tuple[str, ...]


class CudaPrinter(NumbaPrinter):
    """Statements for one pair, with q in the register ``q``."""

    def __init__(self, q: str, dtype: str) -> None:
        functions = ("exp2", "log2", "sqrt", "rsqrt", "cos", "sin")
        super().__init__("real", {name: name for name in functions}, f"{q}_")
        self.q, self.dtype = q, dtype

    def call(self, function: str, argument: str) -> str:
        """Return a call; a reciprocal is one instruction only as a division that may be approximate.

        PTX promises no accuracy for a float64 rsqrt: a root and a division round correctly.
        """
        if function == "rsqrt" and self.dtype == "float64":
            # Two correctly rounded operations cost more and are the promise of
            # float64.
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
        # A printer that prints a second tree binds only what the first has not bound: just the new lines are appended.
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
from numba.cuda.libdevice import cosf as cos, sinf as sin
sqrt = math.sqrt
""",
    "float64": """\
import math
import numpy as np
from numba import cuda, float64 as real, uint64 as uint
from numba.cuda.libdevice import dadd_rn as plus, ddiv_rn as divide
from numba.cuda.libdevice import cos, exp2, log2, log2 as log2_finish, sin
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
cos, sin = np.cos, np.sin
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
    # Constants are defined once at the top; Numba would type a call such as uint64(4) at each of a few hundred uses.
    numbers = sorted({int(number) for number in re.findall(r"\bk_(\d+)\b", body)})
    constants = "".join(f"k_{number} = {index}({number})\n" for number in numbers)
    return f"{names}{constants}one, zero = real(1.0), real(0.0)\n\n\n{body}"


@functools.cache
def load(name: str, source: str) -> Callable[..., Any]:
    """Return the device function of a generated module."""
    module = ModuleType(f"_gpukoop_{name}")
    # The text is what `gpukoop code` shows, with the cache that a file would have; text in memory has no file to cache
    # beside.
    exec(compile(source.replace(", cache=True", ""), f"<{name}>", "exec"), module.__dict__)
    return getattr(module, name)


def view(array: Any) -> Any:
    """Return a CuPy array as a Numba array without waiting for its stream: both use the same one."""
    from numba import cuda

    description = dict(array.__cuda_array_interface__)
    description["stream"] = None  # with a stream Numba would block the host until it is idle
    return cuda.from_cuda_array_interface(description, owner=array, sync=False)
