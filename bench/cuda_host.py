"""Host time of warm reductions of CuPy arrays, on a machine without a GPU: launches do nothing, arrays are NumPy's.

    python -m bench.cuda_host

"host us" is the whole way of a warm call, from ``K @ v`` to the launches: the look at v, the request, the choice, finding the
call, allocating, filling in arguments. "reduce us" is its last part, the backend's own. CuPy's own launch (6.5 to 7.3
microseconds, measured on an H200) and its pool come on top, once a launch and an array.
"""

from __future__ import annotations

import ctypes
import sys
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np

from gpukoop.backends import BACKENDS
from gpukoop.kernels.cuda import engine as engine_cuda
from gpukoop.kernels.cuda.memory import Memory
from gpukoop.kernels.cuda.reduce import reduce
from gpukoop.kernels.formula.catalogue import Gaussian
from gpukoop.kernels.operation import OPERATIONS

CALLS, ROUNDS = 500, 9


class _Device:
    id = 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Device)

    __hash__ = None  # type: ignore[assignment]

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


_DEVICE = _Device()


class Array(np.lib.mixins.NDArrayOperatorsMixin):
    """What passes for an array of CuPy's: its attributes are as quick to read as theirs."""

    __hash__ = None  # type: ignore[assignment]
    device = _DEVICE

    def __init__(self, host: np.ndarray) -> None:
        self.host = host
        self.shape, self.dtype, self.ndim = host.shape, host.dtype, host.ndim
        self.size, self.flags = host.size, host.flags

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Array:
        return Array(self.host[key])

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        return _wrapped(getattr(ufunc, method))(*inputs, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # interfaces that it has not
            raise AttributeError(name)
        return _wrapped(getattr(self.host, name))

    def __bool__(self) -> bool:
        return bool(self.host)

    def __float__(self) -> float:
        return float(self.host)

    def __int__(self) -> int:
        return int(self.host)


Array.__module__ = "cupy"


def _wrapped(function: Any) -> Any:
    if not callable(function) or isinstance(function, type):
        return function

    def call(*args: Any, **kwargs: Any) -> Any:
        found = function(*(a.host if isinstance(a, Array) else a for a in args), **kwargs)
        return Array(np.asarray(found)) if isinstance(found, np.ndarray | np.generic) else found

    return call


def _stand_in() -> types.ModuleType:
    cupy = types.ModuleType("cupy")
    cupy.__getattr__ = lambda name: _wrapped(getattr(np, name))  # type: ignore[method-assign]
    cupy.asarray = lambda x, dtype=None: x  # type: ignore[attr-defined]
    cupy.RawKernel = lambda *_: lambda grid, block, args: None  # type: ignore[attr-defined]
    cupy.empty = lambda *size: Array(np.empty(*size))  # type: ignore[attr-defined]
    cupy.ascontiguousarray = lambda x: x  # type: ignore[attr-defined]
    cupy.cuda = types.SimpleNamespace(get_device_id=lambda: 0, alloc_pinned_memory=_pinned)  # type: ignore[attr-defined]
    return cupy


def _pinned(size: int) -> Any:
    memory = (ctypes.c_char * size)()
    memory.ptr = ctypes.addressof(memory)  # type: ignore[attr-defined]
    return memory


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

    def multiprocessors(self) -> int:
        """Return how many an H100 has."""
        return 132


@contextmanager
def _without_a_device() -> Iterator[None]:
    cupy = {"cupy": _stand_in()}
    with (
        mock.patch.dict(sys.modules, cupy),
        mock.patch.object(engine_cuda, "CuPyEngine", _Engine),
        mock.patch.object(type(BACKENDS["numba-cuda"]), "missing", return_value=None),
    ):
        engine_cuda.cupy_engine.cache_clear()
        yield
    engine_cuda.cupy_engine.cache_clear()


def _microseconds(call: Callable[[], Any]) -> float:
    """Return microseconds of processor time a call: the best of some rounds."""
    call()
    best = np.inf
    for _ in range(ROUNDS):
        start = time.process_time()
        for _ in range(CALLS):
            call()
        best = min(best, (time.process_time() - start) / CALLS)
    return best * 1e6


def rows(n: int = 1000) -> list[dict[str, Any]]:
    """Return microseconds of warm calls for n points in three dimensions, one row an operation."""
    found = []
    with _without_a_device():
        X = Array(np.random.default_rng(0).normal(size=(n, 3)).astype("float32"))
        v = Array(np.ones(n, "float32"))
        K = Gaussian(1.0)(X, backend="numba-cuda")
        whole = {
            "product": lambda: K @ v,
            "gradient": lambda: K.gradient(v),
            "value_and_gradient": lambda: K.value_and_gradient(v),
            "logsumexp": lambda: K.logsumexp(v),
            "logsumexp_and_gradient": lambda: K.logsumexp_and_gradient(v),
        }
        for name, operation in OPERATIONS.items():
            V, memory = v if operation.log else v[:, None], Memory()
            how: Any = (Gaussian(1.0), operation, X, X, V)
            row: dict[str, Any] = {"operation": name, "n": n}
            row["host us"] = _microseconds(whole[name])
            row["reduce us"] = _microseconds(
                lambda how=how, memory=memory: reduce(*how, memory=memory)
            )
            row["launches"] = len(memory.calls[operation, 1].steps)  # type: ignore[attr-defined]
            found.append(row)
    return found


if __name__ == "__main__":
    for row in rows():
        print(
            "  ".join(
                f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()
            )
        )
