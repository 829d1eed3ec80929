"""Host time of warm reductions of CuPy arrays, on a machine without a GPU: launches do nothing, arrays are NumPy's.

    python -m bench.cuda_host

What is timed is everything between ``reduce`` and the launches: finding the call, allocating, filling in arguments. CuPy's
own launch (6.5 to 7.3 microseconds, measured on an H200) and its pool come on top, once a launch and an array.
"""

from __future__ import annotations

import sys
import time
import types
from typing import Any

import numpy as np

from gpukoop.kernels.cuda import engine as engine_cuda
from gpukoop.kernels.cuda.memory import Memory
from gpukoop.kernels.cuda.reduce import reduce
from gpukoop.kernels.formula.catalogue import Gaussian
from gpukoop.kernels.operation import OPERATIONS

CALLS, ROUNDS = 2000, 7


class Array(np.ndarray):
    """A NumPy array that passes for CuPy's."""

    @property
    def device(self) -> Any:
        """A device to enter."""
        return _DEVICE


class _Device:
    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


_DEVICE = _Device()
Array.__module__ = "cupy"


def _stand_in() -> types.ModuleType:
    cupy = types.ModuleType("cupy")
    cupy.empty = lambda *size: np.empty(*size).view(Array)  # type: ignore[attr-defined]
    cupy.ascontiguousarray = np.ascontiguousarray  # type: ignore[attr-defined]
    cupy.cuda = types.SimpleNamespace(get_device_id=lambda: 0)  # type: ignore[attr-defined]
    return cupy


class _Engine(engine_cuda.CuPyEngine):
    def function(self, program: Any) -> Any:
        """Return a launch that does nothing."""
        return lambda grid, block, args: None

    def loaded(self, program: Any) -> bool:
        """Every program is."""
        return True

    def capacity(self, program: Any) -> int:
        """Return that of an H100."""
        return 660


def rows() -> list[dict[str, Any]]:
    """Return microseconds of processor time a call, the best of some rounds."""
    before = sys.modules.get("cupy")
    sys.modules["cupy"] = _stand_in()
    usual = engine_cuda.CuPyEngine
    engine_cuda.CuPyEngine = _Engine  # type: ignore[misc]
    engine_cuda.cupy_engine.cache_clear()
    found = []
    try:
        for name, operation in OPERATIONS.items():
            X = np.random.default_rng(0).normal(size=(1000, 3)).astype("float32").view(Array)
            V = np.ones((1000, 1), "float32").view(Array)
            V = V[:, 0].copy() if operation.log else V
            memory = Memory()
            best = np.inf
            for _ in range(ROUNDS):
                reduce(Gaussian(1.0), operation, X, X, V, memory=memory)
                start = time.process_time()
                for _ in range(CALLS):
                    reduce(Gaussian(1.0), operation, X, X, V, memory=memory)
                best = min(best, (time.process_time() - start) / CALLS)
            call = memory.calls[operation, 1]
            found.append({"operation": name, "launches": len(call.steps), "host us": best * 1e6})  # type: ignore[attr-defined]
    finally:
        engine_cuda.CuPyEngine = usual  # type: ignore[misc]
        engine_cuda.cupy_engine.cache_clear()
        del sys.modules["cupy"]
        if before is not None:
            sys.modules["cupy"] = before
    return found


if __name__ == "__main__":
    for row in rows():
        print(
            "  ".join(
                f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()
            )
        )
