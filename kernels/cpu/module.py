"""Generated CPU modules, compiled once a machine: what their machine code depends on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from gpukoop.kernels import compiled
from gpukoop.kernels.cpu.simd import target_features


@cache
def _fingerprint() -> str:
    """Return what the machine code depends on beside the text: helpers, Numba, LLVM, the processor."""
    import llvmlite
    import llvmlite.binding as llvm
    import numba

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


def load(text: str) -> Callable[..., Any]:
    """Return ``run`` of the generated module, compiled or from the disk cache."""
    run: Callable[..., Any] = compiled.load(text, "cpu", _fingerprint()).run
    return run
