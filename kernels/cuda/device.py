"""What every CUDA frame is written with: typed arithmetic, and the steps that repeat, as device functions.

A frame is a factory: ordinary Numba-CUDA code over closure variables, which the compiler sees as constants. Four habits
make visible loops compile to the instructions of unrolled text:

- sizes are ``np.uint64``, so that indices stay unsigned (a signed one costs a wrap-around select a subscript) and
  ``range`` over them is unrolled;
- ``cuda.local.array`` indexed by such ranges ends in registers;
- the long loop over sources is a ``while``: ``range`` would keep a counter beside the index;
- its body is a device function, called once or several times: the compiler does not unroll such a loop by itself.

In Numba's simulator device functions are plain functions: the same code, thread by thread.
"""

from __future__ import annotations

import ast
import inspect
import math
import os
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numba import cuda

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")
# Reference of a log-sum-exp before its first source: finite, so that b = -inf gives 2**-inf = 0 and never inf - inf.
LOWEST = -1e30
# Lanes of a warp.
WARP = 32
EVERY_LANE = 2**WARP - 1
# What a condition over constants is written with.
_CONDITION = (
    ast.Name,
    ast.Load,
    ast.Constant,
    ast.Compare,
    ast.cmpop,
    ast.BoolOp,
    ast.boolop,
    ast.UnaryOp,
    ast.Not,
)


def u(number: int) -> Any:
    """Return a typed index: uint64 + a plain int would be float64."""
    return int(number) if SIMULATED else np.uint64(number)


def device(function: Callable[..., Any]) -> Any:
    """Return a device function with fast mathematics; the simulator calls it as it is."""
    return function if SIMULATED else cuda.jit(pruned(function), device=True, fastmath=True)


class _Pruner(ast.NodeTransformer):
    """Keeps, of every choice between constants, what was chosen."""

    def __init__(self, constants: dict[str, Any]) -> None:
        self.constants = constants

    def _known(self, test: ast.expr) -> bool | None:
        """Return what a condition is, None where it depends on more than constants."""
        parts = list(ast.walk(test))
        names = [part.id for part in parts if isinstance(part, ast.Name)]
        plain = all(isinstance(part, _CONDITION) for part in parts)
        if not plain or any(name not in self.constants for name in names):
            return None
        # Only names of constants and comparisons are left at this point, so evaluating runs nothing of anybody's.
        code = compile(ast.Expression(test), "<condition>", "eval")
        return bool(eval(code, {"__builtins__": {}}, self.constants))

    def visit_If(self, node: ast.If) -> Any:
        """Return the statements of the branch that is taken."""
        chosen = self._known(node.test)
        if chosen is None:
            return self.generic_visit(node)
        kept: list[ast.stmt] = []
        for statement in node.body if chosen else node.orelse:
            found = self.visit(statement)
            kept += found if isinstance(found, list) else [found]
        return kept or ast.Pass()

    def visit_IfExp(self, node: ast.IfExp) -> Any:
        """Return the value that is taken."""
        chosen = self._known(node.test)
        if chosen is None:
            return self.generic_visit(node)
        return self.visit(node.body if chosen else node.orelse)


def pruned(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of a frame without the branches that its constants exclude.

    The compiler drops them, too, but late: a fifth of its front end went into typing what no program of that
    specification runs. The code that comes out is the same to the letter.
    """
    try:
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        names = {name: cell.cell_contents for name, cell in cells.items()}
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    # No source (a frozen program), or a name that the factory gives a value later: then the compiler prunes.
    except (OSError, TypeError, ValueError, SyntaxError):
        return function
    code = function.__code__
    constants = {
        name: value for name, value in names.items() if isinstance(value, bool | int | np.generic)
    }
    (definition,) = tree.body
    # The decorator is what called this function; executing it again would not end.
    definition.decorator_list = []  # type: ignore[attr-defined]
    tree = ast.fix_missing_locations(_Pruner(constants).visit(tree))
    ast.increment_lineno(tree, code.co_firstlineno - 1)  # tracebacks show the frame as it stands
    scope = function.__globals__ | names
    exec(compile(tree, code.co_filename, "exec"), scope)
    return scope[code.co_name]


@dataclass(frozen=True)
class Arithmetic:
    """The functions of one dtype, by the names that printed profiles use.

    ``plus`` is an addition that keeps its rounding: fast mathematics would cancel the correction of a compensated sum.
    ``log2`` may be approximate, ``log2_exact`` ends a sum. ``carry(total, error, part)`` returns total and error of a
    compensated addition.
    """

    real: Any
    exp2: Any
    log2: Any
    log2_exact: Any
    sqrt: Any
    rsqrt: Any
    divide: Any
    plus: Any
    carry: Any

    def names(self) -> dict[str, Any]:
        """Return the scope of a printed profile."""
        scope = {k: getattr(self, k) for k in ("real", "exp2", "log2", "sqrt", "rsqrt", "divide")}
        return scope | {"one": self.real(1), "zero": self.real(0)}


def _carry(plus: Any) -> Any:
    @device
    def carry(total, error, part):  # type: ignore[no-untyped-def]
        # Kahan's sum, the error carried to the next part. Neumaier's variant also survives a part larger than the total, for a
        # comparison a tile; here parts are tiles of one sum.
        y = plus(part, -error)
        z = plus(total, y)
        return z, plus(plus(z, -total), -y)

    return carry


@cache
def arithmetic(dtype: str) -> Arithmetic:
    """Return the arithmetic of "float32" or "float64"."""
    real = np.dtype(dtype).type
    if SIMULATED:
        return _simulated(real)
    from numba.cuda import libdevice as f

    if dtype == "float32":
        # exp2 and rsqrt are single instructions, ex2.approx and rsqrt.approx, good to about two units in the last place, which
        # is what sums in float32 promise. Divisions, too, may be approximate, and logarithms except where a sum ends.
        functions = (f.exp2f, f.fast_log2f, f.log2f, math.sqrt, f.rsqrtf, f.fast_fdividef)
        return Arithmetic(real, *functions, f.fadd_rn, _carry(f.fadd_rn))
    divide, one = f.ddiv_rn, real(1)

    @device
    def rsqrt(x):  # type: ignore[no-untyped-def]
        # PTX promises no accuracy for a float64 rsqrt: a root and a division round correctly.
        return divide(one, math.sqrt(x))

    # In float64 accuracy is the point of asking for it: library functions, sequences of a dozen or more instructions.
    functions = (f.exp2, f.log2, f.log2, math.sqrt, rsqrt, divide)
    return Arithmetic(real, *functions, f.dadd_rn, _carry(f.dadd_rn))


def _simulated(real: Any) -> Arithmetic:
    # Padding and far pairs overflow on purpose, and what comes of it is selected away: a device does not warn, so the simulator
    # must not.
    def quiet(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            with np.errstate(all="ignore"):
                return real(function(*arguments))

        return wrapped

    exp2, log2, sqrt, divide = (quiet(f) for f in (np.exp2, np.log2, np.sqrt, np.divide))
    rsqrt = quiet(lambda x: real(1) / np.sqrt(x))
    plus = quiet(np.add)
    return Arithmetic(real, exp2, log2, log2, sqrt, rsqrt, divide, plus, _carry(plus))
