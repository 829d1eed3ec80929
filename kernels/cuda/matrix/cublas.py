"""The device as the matrix path sees it: two products of matrices, launches, and an array library.

:class:`AbstractEngine` is all that :mod:`gpukoop.kernels.cuda.matrix.sums` knows of a device, so the same tiles run in tests
without one. :class:`CuPyEngine` calls cuBLAS for every product with an explicit compute type: what TF32 does
is decided a call, never by a global mode, and ``CUPY_TF32`` has no say. Work goes to CuPy's current stream.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

from gpukoop.kernels.arrays import Array
from gpukoop.kernels.cuda.matrix.outer.shape import COLUMNS, ROWS, OuterShape
from gpukoop.kernels.cuda.matrix.precision import FEWEST_FEATURES
from gpukoop.kernels.cuda.matrix.shape import Shape
from gpukoop.kernels.cuda.matrix.text import Entry
from gpukoop.kernels.cuda.program import Program, performance_warning
from gpukoop.kernels.cuda.specification import BLOCK

# Compute capability of the first devices with TF32 units (A100).
FIRST_WITH_TF32 = (8, 0)


class AbstractEngine(ABC):
    """Arrays of ``xp``, products of matrices, and launches of generated kernels of ``block`` threads.

    ``threads`` are those of a block that multiplies in registers, along targets and along sources.
    """

    xp: ModuleType
    block: int = BLOCK
    threads: tuple[int, int] = (ROWS, COLUMNS)
    simulator: bool = False

    @abstractmethod
    def inner(self, x: Array, y: Array, out: Array, tensor: bool) -> None:
        """Write x_i . y_j into ``out``, (rows, count); ``tensor``: by TF32 units, operands are TF32 numbers already."""

    @abstractmethod
    def weigh(self, tile: Array, weights: Array, out: Array) -> None:
        """Write the products of slices of a tile (rows, count) with weights (count, w) into ``out`` (slices, rows, w)."""

    @abstractmethod
    def launch(self, entry: Entry, blocks: int, arguments: tuple[Any, ...]) -> None:
        """Launch a generated kernel."""

    @abstractmethod
    def pairs(
        self,
        program: Program,
        shape: Shape | OuterShape,
        grid: tuple[int, int],
        arguments: tuple[Any, ...],
    ) -> None:
        """Launch a program over pairs (:mod:`gpukoop.kernels.cuda.matrix.tensor`, :mod:`gpukoop.kernels.cuda.matrix.outer.loop`)."""

    def scope(self) -> contextlib.AbstractContextManager[None]:
        """Return the context in which a reduction runs."""
        return contextlib.nullcontext()


@functools.cache
def missing() -> str | None:
    """Return why products of matrices cannot be called, or None; never raises."""
    try:
        import cupy
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return f"CuPy cannot be imported: {_sentence(error)} (pip install gpukoop[cuda13])"
    try:
        cupy.cuda.cublas  # noqa: B018 - CuPy's own way to it finds the libraries that came with CuPy
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return f"CuPy finds no cuBLAS: {_sentence(error)} (pip install 'cupy-cuda13x[ctk]')"
    return None


def _sentence(error: Exception) -> str:
    """Return what an error says first: that of a missing library goes on to list folders."""
    return " ".join(str(error).split())[:100]


@functools.cache
def no_tensor_cores() -> str | None:
    """Return why TF32 cannot be used on the current device, or None."""
    absent = missing()
    if absent is not None:
        return absent
    import cupy

    try:
        number = int(cupy.cuda.Device().compute_capability)
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"CuPy finds no device: {_sentence(error)}"
    if divmod(number, 10) < FIRST_WITH_TF32:
        return f"this device (compute capability {number / 10:.1f}) has no TF32 units, 8.0 and later have"
    return None


def refuses(precision: str, dtype: str, d: int) -> str | None:
    """Return why a precision would be ignored, or None."""
    if precision == "fp32":
        return None
    words = f"precision={precision!r} is for"
    if dtype != "float32":
        return f"{words} float32 points, these are {dtype}"
    if d < FEWEST_FEATURES:
        return f"{words} d >= {FEWEST_FEATURES} features, where products of matrices pay"
    return no_tensor_cores()


class CuPyEngine(AbstractEngine):
    """cuBLAS through CuPy, and Numba-CUDA kernels on CuPy's current stream."""

    def __init__(self, load: Any, view: Any, function: Any) -> None:
        import cupy

        self.xp, self.cublas = cupy, cupy.cuda.cublas
        self._load, self._view, self._function = load, view, function
        self._views: dict[int, tuple[Array, Any]] = {}

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Run with the default mathematics of this thread's cuBLAS handle, and restore what the user had set."""
        import cupy
        from numba import cuda

        # CuPy's own handle, one a thread and device: it is bound to CuPy's current stream by CuPy itself.
        self.handle = cupy.cuda.device.get_cublas_handle()
        self.stream = numba_stream()
        mode = self.cublas.getMathMode(self.handle)
        self.cublas.setMathMode(self.handle, self.cublas.CUBLAS_DEFAULT_MATH)
        try:
            with cuda.gpus[cupy.cuda.get_device_id()]:
                yield
        finally:
            self.cublas.setMathMode(self.handle, mode)
            self._views.clear()

    def inner(self, x: Array, y: Array, out: Array, tensor: bool) -> None:
        """Call cublasGemmEx; cuBLAS counts columns first, so it is asked for the transposed product."""
        c = self.cublas
        # Explicit in every call: under the default the environment and the mode of the handle would decide what is computed.
        compute = c.CUBLAS_COMPUTE_32F_FAST_TF32 if tensor else c.CUBLAS_COMPUTE_32F
        kind, compute = (0, compute) if x.dtype == np.float32 else (1, c.CUBLAS_COMPUTE_64F)
        one, zero = np.ones(1, x.dtype), np.zeros(1, x.dtype)
        (rows, k), count = x.shape, len(y)
        c.gemmEx(
            self.handle, c.CUBLAS_OP_T, c.CUBLAS_OP_N, count, rows, k, one.ctypes.data,
            y.data.ptr, kind, k, x.data.ptr, kind, k, zero.ctypes.data,
            out.data.ptr, kind, count, compute, c.CUBLAS_GEMM_DEFAULT,
        )  # fmt: skip

    def weigh(self, tile: Array, weights: Array, out: Array) -> None:
        """Call cublasGemmStridedBatchedEx, one slice of sources a product: short sums lose few digits."""
        c = self.cublas
        kind, compute = (
            (0, c.CUBLAS_COMPUTE_32F) if tile.dtype == np.float32 else (1, c.CUBLAS_COMPUTE_64F)
        )
        one, zero = np.ones(1, tile.dtype), np.zeros(1, tile.dtype)
        (rows, count), (slices, _, w) = tile.shape, out.shape
        # Slices of the sources, not of the result: a float32 sum is then at most STEP long, and the slices are added in
        # float64.
        pitch, step = weights.strides[0] // weights.itemsize, count // slices
        c.gemmStridedBatchedEx(
            self.handle, c.CUBLAS_OP_N, c.CUBLAS_OP_N, w, rows, step, one.ctypes.data,
            weights.data.ptr, kind, pitch, step * pitch, tile.data.ptr, kind, count, step,
            zero.ctypes.data, out.data.ptr, kind, w, rows * w, slices, compute, c.CUBLAS_GEMM_DEFAULT,
        )  # fmt: skip

    def launch(self, entry: Entry, blocks: int, arguments: tuple[Any, ...]) -> None:
        """Launch by Numba; arrays are described to it once a reduction."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", performance_warning())
            call = self._load(entry.name, entry.source)[blocks, self.block, self.stream]
            call(*(self._device(a) for a in arguments))

    def pairs(
        self,
        program: Program,
        shape: Shape | OuterShape,
        grid: tuple[int, int],
        arguments: tuple[Any, ...],
    ) -> None:
        """Launch by CuPy with raw pointers."""
        call = self._function(program)
        # A pointer and no view: describing an array to Numba takes ten times as long as the launch.
        raw = (np.uint64(a.data.ptr) if isinstance(a, self.xp.ndarray) else a for a in arguments)
        call((*grid, 1), (shape.threads, 1, 1), tuple(raw))

    def _device(self, argument: Any) -> Any:
        if not isinstance(argument, self.xp.ndarray):
            return argument
        if id(argument) not in self._views:
            # The array is kept with its view, lest another array get the same id while this reduction runs.
            self._views[id(argument)] = argument, self._view(argument)
        return self._views[id(argument)][1]


def numba_stream() -> Any:
    """Return CuPy's current stream as Numba knows it: 0, 1 and 2 are names of default streams, not pointers."""
    import cupy
    from numba import cuda

    pointer = cupy.cuda.get_current_stream().ptr
    named = {
        0: cuda.legacy_default_stream,
        1: cuda.legacy_default_stream,
        2: cuda.per_thread_default_stream,
    }
    return named[pointer]() if pointer in named else cuda.external_stream(pointer)
