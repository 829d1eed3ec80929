"""Kernel sums on an NVIDIA GPU: Numba-CUDA programs for NumPy and CuPy arrays.

CuPy arrays stay where they are: everything is queued on CuPy's current stream, results come from CuPy's pool, and nothing
waits for the device, except where a program is compiled and where a tolerance lets distant tiles be left out
(:mod:`gpukoop.kernels.cuda.pairs.lists`). NumPy arrays are copied to the device and back. A product with one cloud of
points visits each pair once where that pays (:mod:`gpukoop.kernels.cuda.symmetric.plan`).

The way of a call: :func:`reduce` finds the :class:`Call` that its memory has for the operation and the columns, and the call
launches. The first one plans (:mod:`gpukoop.kernels.cuda.pairs.plan`), finds or compiles the programs
(:mod:`gpukoop.kernels.cuda.program`) and packs the points (:mod:`gpukoop.kernels.cuda.points`).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from dataclasses import replace
from typing import Any

from gpukoop.kernels.arrays import Array, is_cupy
from gpukoop.kernels.cuda.engine import (
    NumbaEngine,
    compute_capability,
    cupy_engine,
    simulating,
)
from gpukoop.kernels.cuda.matrix import cublas as cublas_cuda
from gpukoop.kernels.cuda.matrix import sums as matrix_cuda
from gpukoop.kernels.cuda.matrix.choice import products_of
from gpukoop.kernels.cuda.matrix.text import load, view
from gpukoop.kernels.cuda.memory import Memory
from gpukoop.kernels.cuda.packing import Clouds
from gpukoop.kernels.cuda.pairs import lists
from gpukoop.kernels.cuda.pairs.plan import AbstractPlan, Plan, Sizes
from gpukoop.kernels.cuda.pairs.rates import exact_cost
from gpukoop.kernels.cuda.program import INSTALL, Program, compile_together, head, listing
from gpukoop.kernels.cuda.symmetric.plan import SymmetricPlan, pays
from gpukoop.kernels.formula.profile import AbstractKernel
from gpukoop.kernels.operation import Operation
from gpukoop.kernels.request import Request

# Parts of Numba-CUDA that a compilation needs, beyond what importing it does.
COMPILER = ("numba.cuda", "numba.cuda.compiler", "numba.cuda.cudadrv.nvvm", "numba.cuda.libdevice")


@functools.cache
def missing() -> str | None:
    """Return why this machine cannot run CUDA code, or None; creates no context and never raises."""
    try:
        importlib.import_module("numba")
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return f"numba cannot be imported: {_sentence(error)} ({INSTALL})"
    if simulating():
        return None
    try:
        importlib.import_module("numba_cuda")
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return f"numba-cuda cannot be imported: {_sentence(error)} ({INSTALL})"
    try:
        for name in COMPILER:
            importlib.import_module(name)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        words = f"the compiler of numba-cuda cannot be imported: {_sentence(error)}"
        return f"{words}; install versions that work together ({INSTALL})"
    # The compiler first: its absence is a matter of packages, which the user can mend, and a device's often is not.
    return _no_compiler() or _no_device()


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _no_compiler() -> str | None:
    """Return that NVVM is not there, or None."""
    from numba.cuda.cudadrv.error import NvvmError, NvvmSupportError
    from numba.cuda.cudadrv.nvvm import NVVM

    try:
        NVVM()
    except (NvvmError, NvvmSupportError, OSError, RuntimeError, AttributeError) as error:
        return f"NVVM, which compiles CUDA code, is not found: {_sentence(error)} ({INSTALL})"
    return None


def _no_device() -> str | None:
    """Return that there is no device, or None."""
    from numba.cuda.cudadrv.driver import CudaAPIError, CudaSupportError, driver

    try:
        if driver.initialization_error is not None:
            return "no CUDA device: the NVIDIA driver was not found or does not start"
        if driver.get_device_count() == 0:
            return "no CUDA device: the driver reports none"
    except (CudaSupportError, CudaAPIError, OSError, RuntimeError, AttributeError) as error:
        return f"no CUDA device: {_sentence(error)}"
    return None


def reduce(
    kernel: AbstractKernel,
    operation: Operation,
    X: Array,
    Y: Array,
    V: Array,
    *,
    tol: float | None = None,
    precision: str = "fp32",
    memory: Memory | None = None,
) -> Any:
    """Return a reduction.

    Parameters
    ----------
    kernel : AbstractKernel
        With numeric scales.
    operation : Operation
    X, Y : arrays of shape (n, d) and (m, d)
        NumPy's or CuPy's, contiguous; the same object for one cloud.
    V : array of shape (m, t) or (m,)
        Weights; logarithms of them, (m,), for log-sum-exps.
    tol, precision
        Accuracy asked; how points of many features are multiplied.
    memory : Memory, optional
        Kept by the caller for this kernel, X, Y, tol and precision.

    Returns
    -------
    array or pair of arrays
        Value (n, t) and slope (n, t, d); without t for a vector V.
    """
    memory = Memory() if memory is None else memory
    columns = 1 if V.ndim == 1 else V.shape[1]
    # The warm path: a look-up, then launches. Everything below happens once an operator, operation and number of columns.
    call = memory.calls.get((operation, columns))
    if call is not None:
        return call(V)
    on_device = is_cupy(X)
    with X.device if on_device else contextlib.nullcontext():
        # CuPy's launches cost a tenth of those of Numba's dispatcher, so with both installed NumPy arrays take its way, too.
        if not on_device and not simulating() and cublas_cuda.missing() is None:
            return _by_way_of_cupy(kernel, operation, X, Y, V, tol, precision)
        many = matrix_cuda.applies(X.dtype.name, X.shape[1], precision)
        if many and on_device and cublas_cuda.missing() is None:
            found = _by_matrices(kernel, operation, X, Y, V, tol, precision, memory)
            if found is not None:
                return found
        engine = cupy_engine() if on_device else NumbaEngine()
        clouds = Clouds(len(X), len(Y), X.shape[1], X.dtype.name, X is Y)
        sizes = Sizes(operation, clouds, columns, tol, block=engine.block)
        if tol is not None and (on_device or simulating()):
            # A list visits pairs from both sides; it has to beat the sum that visits them once.
            once = clouds.same and pays(kernel, sizes)
            local = lists.make_local(kernel, sizes, X, Y, V, engine, once)
            if local is not None:
                return local.run()
        if not on_device:
            plan = make_plan(kernel, sizes)
            buffers = plan.pack(X, Y, V)
            engine.run(plan, buffers)
            return plan.unpack(buffers, vector=V.ndim == 1)
        call = Call(kernel, sizes, X, Y, memory)
        memory.calls[operation, columns] = call
        return call(V)


def code(
    kernel: AbstractKernel, operation: Operation, d: int, t: int = 1, dtype: str = "float32"
) -> str:
    """Return what runs: the frames of a reduction with their constants, and the kernel's functions."""
    plan = Plan(kernel, Sizes(operation, Clouds(1, 1, d, dtype, False), t))
    frames: dict[str, list[Program]] = {}
    for program in plan.programs.values():  # forms of q share a frame
        frames.setdefault(program.specification.frame, []).append(program)
    texts = ("\n".join([*map(head, some), listing(some[0])]) for some in frames.values())
    return "\n\n".join(texts)


def _sizes(request: Request) -> tuple[Sizes, bool]:
    """Return the sizes of a request, and whether its points are one cloud whose pairs are visited once."""
    r, same = request, request.clouds is not None and request.clouds.X is request.clouds.Y
    sizes = Sizes(r.operation, Clouds(r.n, r.m, r.d, r.dtype, same), r.t, r.tol)
    return sizes, same and pays(r.kernel, sizes)


def way(request: Request) -> str:
    """Return in words how a request is summed, as far as its sizes decide; the points decide the rest."""
    if matrix_cuda.applies(request.dtype, request.d, request.precision):
        return products_of(request)
    sizes, once = _sizes(request)
    few = ", or lists of tiles without those too far away"
    # Only launches on a device's own arrays are recorded, and lists wait for the device.
    graph = "; replayed from a CUDA graph where steps of a flow repeat" * (
        request.library == "cupy"
    )
    return ("each pair once" if once else "every pair") + (few if lists.possible(sizes) else graph)


def share(request: Request) -> float:
    """Return the cost of a pair beside one of two clouds: less where the pairs of one cloud are visited once."""
    return exact_cost(_sizes(request)[1]) / exact_cost(False)


@functools.lru_cache(maxsize=512)
def make_plan(kernel: AbstractKernel, sizes: Sizes) -> AbstractPlan:
    """Return the plan of a reduction over all pairs."""
    if sizes.clouds.same and pays(kernel, sizes):
        return SymmetricPlan(kernel, sizes)
    return Plan(kernel, sizes)


def warm_up(requests: list[Request]) -> None:
    """Compile what sums of CuPy arrays will need and is not kept, side by side; nothing is launched.

    Points of so many features that products of matrices take them are left out: what those compile depends on the points.
    """
    wanted: dict[int, list[Program]] = {}
    for r in requests:
        if r.library == "cupy" and r.clouds is not None:
            X, Y = r.clouds.X, r.clouds.Y
            if not matrix_cuda.applies(r.dtype, r.d, r.precision):
                clouds = Clouds(r.n, r.m, r.d, r.dtype, X is Y)
                plan = make_plan(r.kernel, Sizes(r.operation, clouds, r.t, r.tol))
                wanted.setdefault(int(X.device.id), []).extend(plan.programs.values())
    for device, programs in wanted.items():
        compile_together(programs, compute_capability(device))


class Call:
    """A reduction of one operator that is ready: its programs are loaded, its points are packed, its arguments are known.

    Nothing in a call waits for the device, copies to it or prints code; it launches, and its results are new arrays. Forms
    of q that are not compiled yet are compiled only if the points want them: then, once an operator, the host asks.
    """

    def __init__(
        self, kernel: AbstractKernel, sizes: Sizes, X: Array, Y: Array, memory: Memory
    ) -> None:
        engine = cupy_engine()
        self.xp, self.device = engine.xp, X.device
        # Planned twice: how finely the sources are split depends on the blocks that fit on the device, which depends on the
        # registers of the compiled program.
        draft = make_plan(kernel, sizes)
        made: dict[str, Any] = {"X": X, "Y": Y}
        forms: set[tuple[str, str]] = set()
        # Two threads with one operator must not both pack its points.
        with memory.lock:
            for part in draft.parts:
                packed = engine.pack(part.packing, X, Y, memory)
                made |= part.packing.named(packed.buffers)
                programs = part.programs.items()
                # Compiling takes a second a form and asking takes microseconds: with everything compiled nobody asks, and all
                # forms are launched.
                if not all(engine.loaded(program) for _, program in programs):
                    form = packed.form()
                    programs = ((name, p) for name, p in programs if name == form)
                forms |= {(part.suffix, name) for name, _ in programs}
        running = [
            part.programs[name] for part in draft.parts for s, name in forms if s == part.suffix
        ]
        engine.load(running)
        # Any of the forms may be the one that works; the least roomy of them decides for all.
        filled = min(map(engine.capacity, running))
        sizes = replace(sizes, capacity=filled, multiprocessors=engine.multiprocessors())
        self.plan = plan = make_plan(kernel, sizes)
        fixed = made | plan.scalars
        fixed |= {name: self.xp.empty(*size) for name, size in plan.unused.items()}
        wanted = {program.name for program in running}
        others = {
            program.name for part in plan.parts for program in part.programs.values()
        } - wanted
        self.fresh = list(plan.fresh.items())
        self.steps = []
        for launch in plan.summing:
            if launch.entry in others:
                continue
            args = [fixed.get(name) for name in launch.args]
            # Arguments that a call does not change are put in place once; filling in the others is what is left of the host's
            # time.
            holes = [(i, name) for i, name in enumerate(launch.args) if name not in fixed]
            function = engine.function(plan.programs[launch.entry])
            self.steps.append((function, launch.grid, launch.block, args, holes))

    def __call__(self, V: Array) -> Any:
        """Return the reduction for weights V."""
        with self.device:
            empty = self.xp.empty
            buffers = {name: empty(*size) for name, size in self.fresh}
            # Pointers carry no strides: a view is copied, on the device.
            buffers["v"] = V if V.flags.c_contiguous else self.xp.ascontiguousarray(V)
            for function, grid, block, args, holes in self.steps:
                filled = list(args)
                for i, name in holes:
                    filled[i] = buffers[name]
                function(grid, block, tuple(filled))
            return self.plan.unpack(buffers, self.xp, V.ndim == 1)


def _by_way_of_cupy(
    kernel: AbstractKernel,
    operation: Operation,
    X: Array,
    Y: Array,
    V: Array,
    tol: float | None,
    precision: str,
) -> Any:
    """Return the reduction of NumPy arrays by way of CuPy's."""
    import cupy

    x = cupy.asarray(X)
    y = x if X is Y else cupy.asarray(Y)  # one cloud stays one: its pairs may be visited once
    found = reduce(kernel, operation, x, y, cupy.asarray(V), tol=tol, precision=precision)
    return tuple(a.get() for a in found) if isinstance(found, tuple) else found.get()


def _by_matrices(
    kernel: AbstractKernel,
    operation: Operation,
    X: Array,
    Y: Array,
    V: Array,
    tol: float | None,
    precision: str,
    memory: Memory,
) -> Any:
    """Return the reduction by products of matrices, or None where differences are the better way."""
    engine = cublas_cuda.CuPyEngine(load, view, cupy_engine().function)
    how: dict[str, Any] = {"tol": tol, "precision": precision, "memory": memory.matrix}
    return matrix_cuda.reduce(engine, kernel, operation.name, X, Y, V, **how)
