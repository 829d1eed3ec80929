"""What is asked of cuBLAS, and the generated code that reads its tiles."""

import itertools
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from test_cuda_source import check_pure, untyped

from gpukoop.cuda import compile_entry
from gpukoop.kernels.cuda.matrix import cublas as cublas_cuda
from gpukoop.kernels.cuda.matrix.epilogue import Epilogue, epilogue
from gpukoop.kernels.cuda.matrix.text import Entry
from gpukoop.kernels.formula.catalogue import Gaussian, Matern32, Riesz
from gpukoop.kernels.operation import OPERATIONS

KERNELS = (Gaussian(1.0), Riesz(exponent=1.3), Gaussian(1.0) + 0.5 * Matern32(2.0))


# -- what is asked of cuBLAS ------------------------------------------------------------------------
class Pointer:
    """A NumPy array that has what the engine reads of a CuPy array."""

    def __init__(self, array):
        self.array, self.data = array, SimpleNamespace(ptr=array.ctypes.data)
        self.dtype, self.shape, self.strides = array.dtype, array.shape, array.strides
        self.itemsize = array.itemsize

    def __len__(self):
        return len(self.array)


class Cublas:
    """The two calls as NVIDIA's manual has them: columns first, leading dimensions, C = alpha op(A) op(B) + beta C."""

    CUBLAS_OP_N, CUBLAS_OP_T, CUBLAS_GEMM_DEFAULT = 0, 1, -1
    CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_64F, CUBLAS_COMPUTE_32F_FAST_TF32 = 68, 70, 77

    def __init__(self):
        self.computed = []

    @staticmethod
    def matrix(pointer, kind, rows, columns, leading):
        size = leading * (columns - 1) + rows
        code = np.ctypeslib.ctypes.c_float if kind == 0 else np.ctypeslib.ctypes.c_double
        flat = np.ctypeslib.as_array((code * size).from_address(pointer))
        return np.lib.stride_tricks.as_strided(
            flat, (rows, columns), (flat.itemsize, leading * flat.itemsize)
        )

    def gemmEx(
        self, handle, ta, tb, m, n, k, alpha, A, a, lda, B, b, ldb, beta, C, c, ldc, compute, algo
    ):
        self.computed.append(compute)
        left = self.matrix(A, a, k, m, lda).T if ta else self.matrix(A, a, m, k, lda)
        right = self.matrix(B, b, n, k, ldb).T if tb else self.matrix(B, b, k, n, ldb)
        out = self.matrix(C, c, m, n, ldc)
        one, zero = self.matrix(alpha, a, 1, 1, 1)[0, 0], self.matrix(beta, a, 1, 1, 1)[0, 0]
        assert (one, zero) == (1, 0)
        out[...] = left @ right

    def gemmStridedBatchedEx(
        self, handle, ta, tb, m, n, k, alpha, A, a, lda, sa, B, b, ldb, sb, beta, C, c, ldc, sc,
        batches, compute, algo,
    ):  # fmt: skip
        size = 4 if a == 0 else 8
        for i in range(batches):
            self.gemmEx(
                handle, ta, tb, m, n, k, alpha, A + i * sa * size, a, lda, B + i * sb * size, b, ldb,
                beta, C + i * sc * size, c, ldc, compute, algo,
            )  # fmt: skip


@pytest.mark.parametrize(
    ("dtype", "tensor", "compute"),
    [("float32", False, 68), ("float32", True, 77), ("float64", False, 70)],
)
def test_cublas_is_called_with_the_right_layout_and_compute_type(dtype, tensor, compute):
    rng = np.random.default_rng(4)
    engine = object.__new__(cublas_cuda.CuPyEngine)
    engine.cublas, engine.handle = Cublas(), 0
    x, y = rng.normal(size=(8, 20)).astype(dtype), rng.normal(size=(12, 20)).astype(dtype)
    out = np.full((8, 12), np.nan, dtype)
    engine.inner(Pointer(x), Pointer(y), Pointer(out), tensor)
    assert np.allclose(out, x @ y.T, rtol=1e-5)
    assert engine.cublas.computed == [compute]
    weights = rng.normal(size=(12, 7)).astype(dtype)[:, 2:5]  # columns of a wider array
    parts = np.full((3, 8, 3), np.nan, dtype)
    engine.weigh(Pointer(out), Pointer(weights), Pointer(parts))
    assert np.allclose(parts.sum(axis=0), out @ weights, rtol=1e-4)
    assert set(engine.cublas.computed[1:]) == {68 if dtype == "float32" else 70}


def test_a_small_grid_is_no_news_for_users():
    """Numba warns of it in a message that begins with a colour, so only its class can tell it."""
    pytest.importorskip("numba_cuda")
    from numba.cuda.core.errors import NumbaPerformanceWarning

    launched = []

    def call(*arguments):
        warnings.warn(
            NumbaPerformanceWarning("\x1b[1mGrid size 4 will likely ...\x1b[0m"), stacklevel=1
        )
        launched.append(arguments)

    engine = object.__new__(cublas_cuda.CuPyEngine)
    engine.xp, engine.stream = np, 0
    engine._load = lambda name, source: {(4, engine.block, 0): call}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.launch(Entry("epilogue", "", ()), 4, (1, 2.0))
    assert launched == [(1, 2.0)]


# -- the generated epilogue -----------------------------------------------------------------------
def entries(dtype="float32"):
    for kernel, op, columns in itertools.product(KERNELS, OPERATIONS, (False, True)):
        terms = len(kernel.terms) == 1 and kernel.positive
        if "logsumexp" not in op or (terms and not columns):
            yield epilogue(kernel, Epilogue(op, columns, dtype))


def test_every_constant_of_the_epilogues_is_typed():
    for entry in entries():
        assert untyped(entry.source) == [], entry.name


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_epilogues_compile_without_float64_and_local_memory(dtype):
    pytest.importorskip("numba_cuda")
    # a sample: .ci/variants.py compiles and counts every one
    for entry in list(entries(dtype))[:: 3 if dtype == "float32" else 5]:
        ptx = compile_entry(entry, dtype)
        check_pure(ptx, dtype)
        assert ".atom" not in ptx
        assert "red.global" not in ptx


@pytest.mark.slow
def test_epilogues_in_the_simulator(run_in_simulator):
    run_in_simulator("matrix_engines.py")
