"""CUDA programs: compiled once, found by key, in memory first and then on disk; never by text.

A program is a specification and, for loops over pairs, the functions of a kernel. Its key holds what decides its machine code:
the kernel's trace, the specification, the compute capability. Compiling needs Numba-CUDA and neither a device nor a driver.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import hashlib
import importlib
import os
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from gpukoop.kernels.compiled import folder, hold_while_forking, keep, read
from gpukoop.kernels.cuda import archive
from gpukoop.kernels.cuda.functions import Functions
from gpukoop.kernels.cuda.specification import OWN, AbstractSpecification
from gpukoop.kernels.formula.profile import AbstractKernel

INSTALL = "pip install gpukoop[cuda13]"
# Fewer programs are compiled here: another process takes as long to start as one program takes.
TOGETHER = 3
_WORKER = "from gpukoop.kernels.cuda.program import serve; serve()"
_lock = threading.RLock()
hold_while_forking(_lock)
# Newer devices take PTX of this one, assembled for themselves: for 10.0 NVVM leaves loops over targets as loops, whose arrays
# then lie in memory.
NEWEST_PTX = (9, 0)


def label(kernel: AbstractKernel) -> str:
    """Return a readable name of a kernel, a valid identifier."""
    return "_plus_".join(type(k).__name__.lower() for _, k in kernel.terms)


@dataclass(frozen=True, eq=False)
class Program:
    """One program; two with the same key are equal.

    Attributes
    ----------
    specification : AbstractSpecification
    functions : Functions, optional
        Those of a kernel, for loops over pairs.
    kernel : str
        What the kernel is called in names.
    """

    specification: AbstractSpecification
    functions: Functions | None = None
    kernel: str = ""

    @cached_property
    def key(self) -> tuple[str, str, AbstractSpecification]:
        """What decides the code, and its name, besides the compute capability."""
        # Not the printed functions: their text is made of the trace, and printing costs more than the look-up that this key
        # is for.
        trace = self.functions.trace.key if self.functions else ""
        return self.kernel, trace, self.specification

    @cached_property
    def _hash(self) -> int:
        return hash(self.key)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Program) and self.key == other.key

    @property
    def name(self) -> str:
        """A readable name, such as ``gaussian_product_dot_d3_t1_float32``."""
        return (
            f"{self.kernel}_{self.specification.label}" if self.kernel else self.specification.label
        )

    @property
    def scalars(self) -> int:
        """How many numbers its tuple of scalars has."""
        return len(OWN) + len(self.functions.trace.symbols) if self.functions else 0

    def build(self) -> Any:
        """Return the frame as a Python function over its compile-time constants."""
        from gpukoop.kernels.cuda.device import SIMULATED, arithmetic, pruned

        module, _, name = self.specification.frame.partition(":")
        factory = getattr(importlib.import_module(f"gpukoop.kernels.cuda.{module}"), name)
        frame = factory(self.specification, self.functions, arithmetic(self.specification.dtype))  # type: ignore[attr-defined]
        return frame if SIMULATED else pruned(frame)

    def signature(self, pointers: bool) -> Any:
        """Return Numba's signature: one pointer an array, or one-dimensional arrays for Numba's own dispatcher."""
        from numba import types

        real = getattr(types, self.specification.dtype)  # type: ignore[attr-defined]
        kinds = {"real": real} | {
            k: getattr(types, k) for k in ("float64", "int32", "uint32", "uint64")
        }

        def of(kind: str) -> Any:
            if kind in kinds:
                return types.CPointer(kinds[kind]) if pointers else types.Array(kinds[kind], 1, "C")
            others = {"size": types.uint64, "double": types.float64}
            return others[kind] if kind in others else types.UniTuple(real, self.scalars)

        return types.void(*(of(kind) for _, kind in self.specification.arguments))


@contextlib.contextmanager
def _compiling_for(cc: tuple[int, int]) -> Iterator[None]:
    """Answer the one question that Numba-CUDA has for the driver when a frame calls a device function.

    Numba also types every operator anew wherever it stands, after asking a dozen overloads for strings, tuples and arrays
    which refuse: a fifth of a compilation. Within one the answer for the same numbers is the same, so it is asked once.
    """
    modules: Any = [importlib.import_module(f"numba.cuda.{m}") for m in ("compiler", "dispatcher")]
    types: Any = importlib.import_module("numba.core.types")
    function = importlib.import_module("numba.core.types.functions").BaseFunction
    places: list[tuple[Any, str]] = [(module, "get_current_device") for module in modules]
    usual = [getattr(*place) for place in (*places, (function, "get_call_type"))]
    numbers, answers = (types.Number, types.Boolean, types.Literal), {}

    def call_type(self: Any, context: Any, args: Any, kws: Any) -> Any:
        # Only numbers: what arrays and device functions are typed as may compile something, which leaves more than an answer.
        if kws or not all(isinstance(a, numbers) for a in args):
            return usual[-1](self, context, args, kws)
        key = self, context, args
        if key not in answers:
            answers[key] = usual[-1](self, context, args, kws)
        return answers[key]

    for place in places:
        setattr(*place, lambda: SimpleNamespace(compute_capability=cc))
    function.get_call_type = call_type
    # The front end makes a million objects, of which little is garbage: looking for it was a tenth to a quarter of the time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
        for place, before in zip([*places, (function, "get_call_type")], usual, strict=True):
            setattr(*place, before)


def compile_ptx(program: Program, cc: tuple[int, int]) -> str:
    """Return the PTX of a program under its readable name.

    Raises
    ------
    RuntimeError
        If the compiler refuses; the message holds its words.
    """
    from numba import cuda
    from numba.core.errors import NumbaError
    from numba.cuda.cudadrv.error import NvvmError, NvvmSupportError

    with _lock, _compiling_for(cc):
        try:
            ptx, _ = cuda.compile_ptx(
                program.build(), program.signature(True), cc=cc, fastmath=True
            )
        except (NvvmError, NvvmSupportError, NumbaError) as error:
            words = " ".join(str(error).split())
            raise RuntimeError(
                f"compiling {program.name} for cc={cc} failed: {words} ({INSTALL})"
            ) from error
    return rename(ptx, program.name)


@cache
def performance_warning() -> type[Warning]:
    """Return the class of Numba's warning of small grids: its message, coloured in a terminal, does not tell it."""
    from numba.cuda.core.errors import NumbaPerformanceWarning

    return NumbaPerformanceWarning


def rename(ptx: str, name: str) -> str:
    """Return PTX of one entry with that entry under a readable name."""
    # Numba's own name holds a counter of the process: the same program would have another text, and another cubin, every
    # time.
    mangled = re.search(r"\.entry\s+([\w$]+)", ptx)
    if mangled is None:
        raise RuntimeError(f"the compiler returned no entry for {name}")
    return ptx.replace(mangled[1], name)


@cache
def _fingerprint() -> str:
    """Return what decides machine code besides a key: versions, and the frames themselves."""
    from importlib.metadata import version

    digest = hashlib.sha256()
    folder = Path(__file__).parent
    # All files, though few decide one program: a needless compilation is cheaper than a stale one that nobody would suspect.
    for path in sorted([*folder.rglob("*.py"), *(folder.parent / "formula").glob("*.py")]):
        digest.update(path.read_bytes())
    versions = (f"{name} {version(name)}" for name in ("numba", "numba-cuda", "llvmlite"))
    return " ".join([*versions, sys.version, digest.hexdigest()])


def digest(program: Program, cc: tuple[int, int]) -> str:
    """Return the name of a program in the store on disk."""
    text = f"{program.key!r} {cc} {_fingerprint()}"
    return hashlib.sha256(text.encode()).hexdigest()


def machine_code(program: Program, cc: tuple[int, int]) -> bytes:
    """Return what a device of compute capability ``cc`` loads: a cubin, or PTX where there is no linker; kept on disk.

    What is not there is linked from the text that came with the package, else compiled.
    """
    name = digest(program, cc)
    code = read("cuda", name)
    if code is None:
        ptx = archive.find(program, cc) or compile_ptx(program, min(cc, NEWEST_PTX))
        code = assemble(ptx, cc)
        keep("cuda", name, code)
    return code


def kept(program: Program, cc: tuple[int, int]) -> bool:
    """Return whether the code of a program is on disk or in the archive, so that nothing need be compiled."""
    return read("cuda", digest(program, cc)) is not None or archive.find(program, cc) is not None


def compile_together(programs: Iterable[Program], cc: tuple[int, int]) -> None:
    """Compile what is not kept, several programs side by side.

    Numba's front end, which takes nine tenths of the time, is one thread of Python under one lock: others work in processes of
    their own, which leave what they compiled on disk. Where nothing can be left there, or few programs are missing, this
    process compiles alone. What another process failed to do is done when it is needed.
    """
    absent = [p for p in dict.fromkeys(programs) if not kept(p, cc)]
    # Loops over pairs take longest: first, so that all end together.
    waiting = iter(sorted(absent, key=lambda p: p.functions is None))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = min((cores or 1) - 1, len(absent) - 1)
    alone = folder() is None or not sys.executable or getattr(sys, "frozen", False)
    if alone or len(absent) < TOGETHER:
        workers = 0

    def elsewhere() -> None:
        # A process started anew: a fork would inherit the CUDA context, which dies in the child.
        command = [sys.executable, "-c", _WORKER]
        with (
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            ) as worker,
            contextlib.suppress(OSError),
        ):
            for program in waiting:
                pickle.dump((program, cc), worker.stdin)  # type: ignore[arg-type]
                worker.stdin.flush()  # type: ignore[union-attr]
                if not worker.stdout.read(1):  # type: ignore[union-attr]
                    break

    with ThreadPoolExecutor(max(1, workers)) as pool:
        others = [pool.submit(elsewhere) for _ in range(max(0, workers))]
        for program in waiting:
            machine_code(program, cc)
        for other in others:
            other.result()


def serve() -> None:
    """Compile the programs that come in on standard input until it ends; answer each with a byte."""
    with contextlib.suppress(EOFError):
        while True:
            program, cc = pickle.load(sys.stdin.buffer)
            machine_code(program, cc)
            sys.stdout.buffer.write(b".")
            sys.stdout.buffer.flush()


def assemble(ptx: str, cc: tuple[int, int]) -> bytes:
    """Return the cubin of a PTX text; the text itself, for the driver, where nvJitLink is missing."""
    try:
        from cuda.core import Linker, LinkerOptions, ObjectCode

        arch = f"sm_{cc[0]}{cc[1]}"
        linked = Linker(ObjectCode.from_ptx(ptx.encode()), options=LinkerOptions(arch=arch))
        return bytes(linked.link("cubin").code)
    except (ImportError, OSError, RuntimeError, AttributeError, ValueError):
        return ptx.encode() + b"\0"


def head(program: Program) -> str:
    """Return the name and the constants of a program."""
    return f"# {program.name}\n# {program.specification!r}\n"


def listing(program: Program) -> str:
    """Return what stands behind a program's constants: its kernel's functions, and the frame they stand in."""
    spec = program.specification
    module, _, name = spec.frame.partition(":")
    path = Path(__file__).parent.joinpath(*module.split(".")).with_suffix(".py")
    tree = ast.parse(text := path.read_text(encoding="utf-8"))
    factory = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name)
    pieces = [program.functions.source, ""] if program.functions else []
    return "\n".join([*pieces, ast.get_source_segment(text, factory) or "", ""])
