"""Tensor-core programs: a kernel's profile as device functions, the only part written by a program, and compiled code by key."""

from __future__ import annotations

import contextlib
import importlib
import math
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from gpukoop.kernels.cuda.form import log2_phi
from gpukoop.kernels.cuda.matrix.shape import Shape
from gpukoop.kernels.formula.expr import Expr, Number
from gpukoop.kernels.formula.printers import NumbaPrinter
from gpukoop.kernels.formula.profile import Q, Trace

_lock = threading.Lock()
_programs: dict[tuple[str, Shape, int], Any] = {}


class _Printer(NumbaPrinter):
    """Statements of a function of ``q`` and the runtime scalars ``s``."""

    def __init__(self, symbols: tuple[str, ...]) -> None:
        super().__init__("real", {name: name for name in ("exp2", "log2", "sqrt", "rsqrt")})
        self.places = {name: f"s[{i}]" for i, name in enumerate(symbols)}

    def call(self, function: str, argument: str) -> str:
        """Return a call; a reciprocal is one instruction only as a division that may be approximate."""
        if function == "reciprocal":
            return f"divide(one, {argument})"
        return super().call(function, argument)

    def symbol(self, name: str) -> str:
        """Return q, or the scalar of that name."""
        return "q" if name == Q.name else self.places[name]


@dataclass(frozen=True)
class Functions:
    """phi, dphi (dphi / phi where weights are logarithms) and log2 phi of a trace, as Python functions of (q, s).

    ``guarded`` and ``kink`` say whether phi and the slope are zero by definition at q = 0; ``scalars`` counts s.
    """

    phi: Any
    slope: Any
    log2: Any
    guarded: bool
    kink: bool
    scalars: int


def source(of: Trace, name: str, tree: Expr, guarded: bool) -> str:
    """Return the text of one function."""
    printer = _Printer(of.symbols)
    value = printer.print(tree)
    if guarded:
        value = f"{value} if q > zero else zero"
    lines = "".join(f"    {line}\n" for line in printer.lines)
    return f"def {name}(q, s):\n{lines}    return {value}\n"


def functions(of: Trace, log: bool, names: dict[str, Any], device: Callable[..., Any]) -> Functions:
    """Return the functions of a trace, made by ``device`` with ``names`` of arithmetic in scope."""
    slope = of.log_slope if log else of.dphi
    trees = {
        "phi": (of.phi, of.singular),
        "slope": (slope, of.kink or of.singular),
        "log2": (log2_phi(of) if log else Number(0.0), False),
    }
    made = {}
    for name, (tree, guarded) in trees.items():
        if tree is None:
            raise ValueError("log-sum-exp needs a positive kernel of one term")
        scope = dict(names)
        exec(compile(source(of, name, tree, guarded), f"<{name}>", "exec"), scope)
        made[name] = device(scope[name])
    return Functions(
        **made, guarded=of.singular, kink=of.kink or of.singular, scalars=len(of.symbols)
    )


@contextlib.contextmanager
def _compiling_for(cc: tuple[int, int]) -> Iterator[None]:
    """Answer the one question that Numba-CUDA has for the driver when a frame calls a device function."""
    modules = [importlib.import_module(f"numba.cuda.{name}") for name in ("compiler", "dispatcher")]
    usual = [module.get_current_device for module in modules]
    for module in modules:
        module.get_current_device = lambda: SimpleNamespace(compute_capability=cc)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module, function in zip(modules, usual, strict=True):
            module.get_current_device = function  # type: ignore[attr-defined]


def compile_ptx(of: Trace, shape: Shape, cc: tuple[int, int] = (9, 0)) -> str:
    """Return the PTX of a program, its entry under the label of the shape; needs Numba-CUDA and no device."""
    from numba import cuda, float32, types
    from numba.cuda import libdevice as f

    from gpukoop.kernels.cuda.matrix.tensor import ARGUMENTS, device, frame

    names = {
        "real": float32, "exp2": f.exp2f, "log2": f.fast_log2f, "sqrt": math.sqrt,
        "rsqrt": f.rsqrtf, "divide": f.fast_fdividef, "one": float32(1), "zero": float32(0),
    }  # fmt: skip
    kinds = {"uint64": types.uint64, "float32": types.float32}
    kinds |= {f"{name}*": types.CPointer(getattr(types, name)) for name in ("int32", "float32")}
    signature = types.void(*(kinds[kind] for _, kind in ARGUMENTS))
    with _lock, _compiling_for(cc):
        loop = frame(shape, functions(of, shape.log, names, device))
        ptx, _ = cuda.compile_ptx(loop, signature, cc=cc, fastmath=True)
    mangled = re.search(r"\.entry\s+([\w$]+)", ptx)
    if mangled is None:
        raise RuntimeError(f"the compiler returned no entry for {shape.label}")
    return ptx.replace(mangled[1], shape.label)


def program(of: Trace, shape: Shape) -> Any:
    """Return the function of the current device, a CuPy function."""
    import cupy

    at = cupy.cuda.Device()
    key = of.key, shape, at.id
    if key not in _programs:
        module = cupy.cuda.function.Module()
        module.load(_assembled(compile_ptx(of, shape, divmod(int(at.compute_capability), 10)), at))
        _programs[key] = module.get_function(shape.label)
    return _programs[key]


def _assembled(ptx: str, at: Any) -> bytes:
    """Return machine code; the text, for the driver, where nvJitLink is missing: a driver may be older than the text."""
    try:
        from cuda.core import Linker, LinkerOptions, ObjectCode

        options = LinkerOptions(arch=f"sm_{at.compute_capability}")
        return bytes(Linker(ObjectCode.from_ptx(ptx.encode()), options=options).link("cubin").code)
    except (ImportError, OSError, RuntimeError, AttributeError, ValueError):
        return ptx.encode() + b"\0"
