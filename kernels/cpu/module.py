"""Generated CPU modules, compiled once a machine: what their machine code depends on."""

from __future__ import annotations

import hashlib
import linecache
import pickle
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core.compiler import CompileResult
from numba.core.compiler_lock import global_compiler_lock
from numba.core.dispatcher import Dispatcher
from numba.core.serialize import dumps

from gpukoop.kernels import compiled
from gpukoop.kernels.cpu.simd import target_features


@cache
def _fingerprint() -> str:
    """Return what the machine code depends on beside the text: helpers, Numba, LLVM, the processor."""
    import llvmlite
    import llvmlite.binding as llvm

    files = [Path(__file__).with_name(f"{name}.py") for name in ("simd", "nests")]
    return "\n".join(
        [
            *(file.read_text(encoding="utf-8") for file in files),
            numba.__version__,
            llvmlite.__version__,
            sys.version,
            str(numba.config.CPU_NAME or llvm.get_host_cpu_name()),  # type: ignore[attr-defined]
            target_features(),
        ]
    )


def _dump(result: Any) -> bytes | None:
    if result.library.has_dynamic_globals or any(not lifted.can_cache for lifted in result.lifted):
        return None
    data: bytes = dumps(result._reduce())
    return data


def _restore(target_context: Any, data: bytes) -> Any:
    return CompileResult._rebuild(target_context, *pickle.loads(data))


def jit(*signatures: str, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return ``numba.njit`` with machine code kept by :mod:`gpukoop.kernels.compiled`.

    Differs from ``cache=True``: Numba writes beside the source file and fails where it cannot; damage goes unseen.

    Parameters
    ----------
    *signatures : str
        Compiled at once, and no others later; none compiles at the first call.
    **options
        Of ``numba.njit``.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        dispatcher: Any = numba.njit(**options)(function)
        if not isinstance(dispatcher, Dispatcher):  # NUMBA_DISABLE_JIT
            return function
        # The whole file: a function calls its neighbours.
        text = "".join(linecache.getlines(function.__code__.co_filename))
        if text:
            whole = hashlib.sha256((text + _fingerprint()).encode()).hexdigest()
            identity = f"{function.__module__}.{function.__qualname__} {whole}"
            machine_code = compiled.MachineCode("cpu", identity, _dump, _restore)
            dispatcher._cache = machine_code  # type: ignore[attr-defined]
        for signature in signatures:
            dispatcher.compile(signature)
        if signatures:
            dispatcher.disable_compile()
        return dispatcher

    return decorate


def load(text: str) -> Callable[..., Any]:
    """Return ``run`` of the generated module, compiled or from the disk cache."""
    run: Callable[..., Any] = compiled.load(text, "cpu", _fingerprint()).run
    return run


compiled.hold_while_forking(global_compiler_lock)
