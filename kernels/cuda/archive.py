"""PTX of the catalogue that comes with the package, so that common sums never wait for the compiler.

``ptx.zip`` holds, of every kernel of the catalogue, the programs for 1, 2 and 3 features and one column in float32, those of a
KSWGD step, and the usual sums in float64. It was written on a machine without a GPU by ``python -m bench.ptx_archive``. A device's own linker turns a text into machine code, in a
twentieth of the time that compiling takes.

A program is found under a hash of everything that decides its text: the files of its frame, its constants, the functions
of its kernel. So a frame that was changed is compiled, not taken from a file that no longer fits;
``tests/device/test_cuda_archive.py`` says so.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from gpukoop.kernels.cuda.specification import Specification

try:
    from lzma import LZMAError
except ImportError:  # a Python without it: nothing can be read, and programs are compiled
    LZMAError = OSError  # type: ignore[misc, assignment]

if TYPE_CHECKING:
    from gpukoop.kernels.cuda.program import Program

HOME = Path(__file__).parent
FILE = HOME / "ptx.zip"
# Devices of this compute capability and later ones take the texts; earlier ones compile.
OLDEST = (8, 0)
# Files besides that of the frame that decide its text; what the others decide is in the constants and the functions.
SHARED = ("device.py", "specification.py", "pairs/squares.py", "symmetric/shape.py")


def _code(text: str) -> str:
    """Return a file without comments and empty lines: they decide nothing, and a better comment should cost no compiling."""
    lines = (re.sub(r"(^|\s)\s*# .*$", "", line).rstrip() for line in text.splitlines())
    return "\n".join(line for line in lines if line)


@cache
def _sources(frame: str) -> str:
    """Return a hash of the files that decide the text of a frame."""
    module = frame.partition(":")[0].replace(".", "/") + ".py"
    texts = (_code((HOME / name).read_text(encoding="utf-8")) for name in (module, *SHARED))
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def identity(program: Program) -> str:
    """Return a hash of everything that decides the text of a program."""
    spec, of = program.specification, program.functions
    facts: tuple[object, ...] = ()
    if of is not None:
        facts = of.source, of.down, of.offset, of.merged, of.guarded, of.kink, of.unit_slope
    what = program.name, program.scalars, repr(spec), facts, _sources(spec.frame)
    return hashlib.sha256(repr(what).encode()).hexdigest()


def member(program: Program) -> str:
    """Return the name of the member that holds a program: those of a kernel and d share one, for their texts are alike."""
    spec = program.specification
    if isinstance(spec, Specification):
        return f"{program.kernel}_d{spec.d}_{spec.dtype}"
    return f"rest_{spec.dtype}"  # type: ignore[attr-defined]


@cache
def _read(name: str) -> dict[str, str]:
    """Return {identity: text} of one member, empty where there is none."""
    try:
        with zipfile.ZipFile(FILE) as file:
            pieces = file.read(name).decode().split("\0")
    # No file (an unbuilt copy), no such member, a damaged file, a Python without lzma: then programs are compiled.
    except (OSError, KeyError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile, LZMAError):
        return {}
    return dict(zip(pieces[::2], pieces[1::2], strict=False))


def find(program: Program, cc: tuple[int, int]) -> str | None:
    """Return the PTX of a program for a device, or None where it is to be compiled."""
    if cc < OLDEST:
        return None
    return _read(member(program)).get(identity(program))
