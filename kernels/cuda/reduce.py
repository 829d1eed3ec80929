"""Kernel sums on an NVIDIA GPU: generated Numba-CUDA code for NumPy and CuPy arrays.

NumPy arrays are copied to the device and back. CuPy arrays stay where they are: everything is queued on CuPy's
current stream, results come from CuPy's pool, and nothing waits for the device, except where a tolerance lets
distant tiles be left out (:mod:`gpukoop.kernels.cuda.pairs.lists`). A product with one cloud of points visits each pair once
where that pays (:mod:`gpukoop.kernels.cuda.symmetric.plan`).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from gpukoop.kernels.compiled import folder
from gpukoop.kernels.cuda.form import FORMS
from gpukoop.kernels.cuda.matrix import cublas as cublas_cuda
from gpukoop.kernels.cuda.matrix import sums as matrix_cuda
from gpukoop.kernels.cuda.pairs import lists as cells_cuda
from gpukoop.kernels.cuda.pairs.plan import Plan
from gpukoop.kernels.cuda.source import BLOCK
from gpukoop.kernels.cuda.symmetric.plan import SymmetricPlan, pays
from gpukoop.kernels.formula.profile import AbstractKernel
from gpukoop.kernels.operation import Operation

Array = Any

_logger = logging.getLogger("gpukoop")
_lock = threading.Lock()
# The simulator runs a thread of Python for every thread of a block.
SIMULATOR_BLOCK = 32
INSTALL = "pip install gpukoop[cuda13]"


def simulating() -> bool:
    """Return whether Numba's CUDA simulator is on."""
    return os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")


@functools.cache
def missing() -> str | None:
    """Return why this machine cannot run CUDA code, or None; creates no context and never raises."""
    if simulating():
        return None if importlib.util.find_spec("numba") else f"numba is not installed ({INSTALL})"
    if importlib.util.find_spec("numba_cuda") is None:
        return f"numba-cuda is not installed ({INSTALL})"
    try:
        from numba import cuda
        from numba.cuda.cudadrv.driver import CudaAPIError, CudaSupportError, driver
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return f"numba-cuda cannot be imported: {error}"
    try:
        if driver.initialization_error is not None or not cuda.is_available():
            return "no CUDA device: the NVIDIA driver was not found or does not start"
        if driver.get_device_count() == 0:
            return "no CUDA device: the driver reports none"
    except (CudaSupportError, CudaAPIError, OSError, RuntimeError, AttributeError) as error:
        return f"no CUDA device: {' '.join(str(error).split())}"
    return None


# -- generated modules --------------------------------------------------------------------------
def _fingerprint() -> str:
    from numba import __version__

    return f"{__version__} {sys.version}"


@functools.cache
def load(name: str, source: str) -> Callable[..., Any]:
    """Return the device function of a generated module, which lies in a file so that Numba can cache it."""
    digest = hashlib.sha256((source + _fingerprint()).encode()).hexdigest()[:24]
    module_name = f"_gpukoop_cuda_{digest}"
    path = folder() / "cuda" / f"{module_name}.py"
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            partial = path.with_suffix(f".{os.getpid()}.partial")
            partial.write_text(source, encoding="utf-8")
            os.replace(partial, path)
    except OSError as error:
        _logger.debug("compiled code will not be kept, %s cannot be written: %s", path, error)
        return getattr(_from_text(module_name, source), name)
    return getattr(_from_file(module_name, path), name)


def _from_file(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot import generated code from {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: Numba's cache looks the module up by name
    spec.loader.exec_module(module)
    return module


def _from_text(name: str, source: str) -> ModuleType:
    module = ModuleType(name)
    exec(compile(source.replace(", cache=True", ""), f"<{name}>", "exec"), module.__dict__)
    return module


# -- arrays -------------------------------------------------------------------------------------
def _is_cupy(array: Array) -> bool:
    return type(array).__module__.partition(".")[0] == "cupy"


def _view(array: Array) -> Array:
    """Return a CuPy array as a Numba array without waiting for its stream: both use the same one."""
    from numba import cuda

    description = dict(array.__cuda_array_interface__)
    description["stream"] = None  # with a stream Numba would block the host until it is idle
    return cuda.from_cuda_array_interface(description, owner=array, sync=False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the warning about small grids: a small problem has one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Grid size")
        yield


def _run_host(plan: Plan, buffers: dict[str, Array], functions: dict[str, Any]) -> dict[str, Array]:
    """Launch on copies of NumPy buffers; forms that were not picked are left out."""
    from numba import cuda

    device = {}
    for name, value in buffers.items():
        if isinstance(value, np.ndarray):
            fresh = name.startswith(("out_", "part_"))
            device[name] = (
                cuda.device_array(value.shape, value.dtype) if fresh else cuda.to_device(value)
            )
        else:
            device[name] = value
    for launch in plan.launches:
        pick = next((buffers[a] for a in launch.args if a.startswith("pick")), None)
        if pick is not None and f"_{FORMS[int(pick[0])]}_d" not in launch.entry:
            continue
        with _quiet():
            call = functions[launch.entry][launch.grid, launch.block]
            call(*(device[a] for a in launch.args))
    return {name: device[name].copy_to_host() for name in device if name.startswith("out_")}


def _run_cupy(plan: Plan, buffers: dict[str, Array], functions: dict[str, Any]) -> dict[str, Array]:
    """Launch on CuPy's buffers and its current stream."""
    import cupy
    from numba import cuda

    stream = cublas_cuda.numba_stream()
    device = {k: _view(b) if _is_cupy(b) else b for k, b in buffers.items()}
    with cuda.gpus[cupy.cuda.get_device_id()], _quiet():
        for launch in plan.launches:
            call = functions[launch.entry][launch.grid, launch.block, stream]
            call(*(device[a] for a in launch.args))
    return {name: b for name, b in buffers.items() if name.startswith("out_")}


def _reduce(
    kernel: AbstractKernel,
    op: str,
    X: Array,
    Y: Array,
    V: Array,
    tol: float | None,
    precision: str = "fp32",
    memory: dict[str, Any] | None = None,
) -> Any:
    on_device = _is_cupy(X)
    many = matrix_cuda.applies(X.dtype.name, X.shape[1], precision)
    if many and not simulating() and cublas_cuda.missing() is None:
        found = _by_matrices(kernel, op, X, Y, V, tol, precision, memory)
        if found is not None:
            return found
    large = tol is not None and len(X) * len(Y) >= cells_cuda.MIN_PAIRS
    if large and not on_device and not simulating() and cublas_cuda.missing() is None:
        return _reduce_on_device(kernel, op, X, Y, V, tol)
    xp: ModuleType = np
    only: tuple[str, ...] = FORMS
    context: Any = contextlib.nullcontext()
    if on_device:
        import cupy as xp  # type: ignore[no-redef]

        context = X.device
        if tol is None:  # a cloud so small is rare: not worth compiling the dot form for
            only = FORMS[1:]
    n, d = X.shape
    t = 1 if V.ndim == 1 else V.shape[1]
    block = SIMULATOR_BLOCK if simulating() else BLOCK
    options: dict[str, Any] = {"only": only, "block": block, "simulator": simulating()}
    run = _run_cupy if on_device else _run_host

    def compute(plan: Plan, buffers: dict[str, Array]) -> dict[str, Array]:
        functions = {e.name: load(e.name, e.source) for e in plan.entries()}
        return run(plan, buffers, functions)

    with context, _lock:
        # Lists made by the host would take as long as the pairs.
        if tol is not None and (on_device or simulating()):
            local = cells_cuda.make_local(kernel, op, X, Y, V, tol, xp, **options)
            if local is not None:
                return local.run(compute)
        plan: Plan
        if X is Y and pays(kernel, op, n, d, t, X.dtype.name):
            plan = SymmetricPlan(kernel, n, d, t, X.dtype.name, tol=tol, **options)
        else:
            plan = Plan(kernel, op, n, len(Y), d, t, X.dtype.name, tol=tol, **options)
        return plan.unpack(compute(plan, plan.pack(X, Y, V, xp)), xp)


def _reduce_on_device(
    kernel: AbstractKernel, op: str, X: Array, Y: Array, V: Array, tol: float | None
) -> Any:
    """Return the reduction of NumPy arrays by way of CuPy's, which can be put into cells on the device."""
    import cupy

    x = cupy.asarray(X)
    y = x if X is Y else cupy.asarray(Y)  # one cloud stays one: its pairs may be visited once
    result = _reduce(kernel, op, x, y, cupy.asarray(V), tol)
    return tuple(a.get() for a in result) if isinstance(result, tuple) else result.get()


def _by_matrices(
    kernel: AbstractKernel,
    op: str,
    X: Array,
    Y: Array,
    V: Array,
    tol: float | None,
    precision: str,
    memory: dict[str, Any] | None,
) -> Any:
    """Return the reduction by products of matrices, or None where differences are the better way."""
    import cupy

    on_device = _is_cupy(X)
    with X.device if on_device else contextlib.nullcontext(), _lock:
        engine = cublas_cuda.CuPyEngine(load, _view)
        arrays = (X, Y, V) if on_device else (cupy.asarray(a) for a in (X, Y, V))
        found = matrix_cuda.reduce(
            engine, kernel, op, *arrays, tol=tol, precision=precision, memory=memory
        )
    if on_device or found is None:
        return found
    return tuple(a.get() for a in found) if isinstance(found, tuple) else found.get()


# -- the backend's function ---------------------------------------------------------------------
def reduce(
    kernel: AbstractKernel,
    operation: Operation,
    X: Array,
    Y: Array,
    V: Array,
    *,
    tol: float | None = None,
    precision: str = "fp32",
    memory: dict[str, Any] | None = None,
) -> Any:
    """Return the reduction; ``memory`` is kept by the caller for one pair X, Y (gpukoop.kernels.cuda.matrix.sums)."""
    return _reduce(kernel, operation.name, X, Y, V, tol, precision, memory)
