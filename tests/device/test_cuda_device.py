"""The CUDA reductions on a real device: NumPy in and out, CuPy in and out."""

import itertools

import numpy as np
import oracle
import pytest

from gpukoop.kernels.cuda import reduce as reduce_cuda
from gpukoop.kernels.cuda.matrix import cublas as cublas_cuda
from gpukoop.kernels.formula.catalogue import CATALOGUE, Gaussian, Laplace, Matern32
from gpukoop.kernels.operation import OPERATIONS, PRODUCT
from gpukoop.testing import tolerance

pytestmark = pytest.mark.gpu
OPS = ("product", "gradient", "value_and_gradient", "logsumexp", "logsumexp_and_gradient")
KERNELS = [make() for make in CATALOGUE.values()] + [Gaussian(1.0) + 0.5 * Matern32(2.0)]
SHAPES = [(1, 300, 1, 1), (300, 1, 2, 3), (129, 700, 3, 1), (300, 500, 17, 3), (200, 300, 50, 2)]


@pytest.fixture(autouse=True)
def device(require, request):
    require("numba-cuda")
    request.getfixturevalue("compiled_ahead")


@pytest.fixture(params=["numpy", "cupy"])
def xp(request):
    return pytest.importorskip(request.param)


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("op", OPS)
def test_within_tolerance(op, dtype, xp):
    rng = np.random.default_rng(0)
    for kernel, (n, m, d, t) in itertools.product(KERNELS, SHAPES):
        if "logsumexp" in op and not kernel.positive:
            continue
        X = (rng.normal(size=(n, d)) + 100).astype(dtype)
        Y = (rng.normal(size=(m, d)) + 100).astype(dtype)
        V = rng.normal(size=(m, t)).astype(dtype)
        V = V[:, 0] if "logsumexp" in op else V
        got = as_tuple(
            reduce_cuda.reduce(kernel, OPERATIONS[op], *(xp.asarray(a) for a in (X, Y, V)))
        )
        exact = as_tuple(getattr(oracle, op)(oracle.terms_of(kernel), X, Y, V))
        bound = as_tuple(tolerance(kernel, X, Y, V, op))
        for result, truth, within in zip(got, exact, bound, strict=True):
            assert type(result) is type(xp.empty(0))
            host = result if xp is np else result.get()
            assert np.all(np.abs(host - truth) <= within), (kernel, n, m, d, t)


def test_results_repeat_bit_for_bit(xp):
    rng = np.random.default_rng(1)
    X, V = xp.asarray(rng.normal(size=(5000, 3))), xp.asarray(rng.normal(size=(5000, 1)))
    first = reduce_cuda.reduce(Gaussian(1.0), PRODUCT, X, X, V)
    assert bool((first == reduce_cuda.reduce(Gaussian(1.0), PRODUCT, X, X, V)).all())


def test_a_million_equal_addends_cost_no_digits(xp):
    m = 1_000_000
    X, Y = xp.zeros((1, 3), "float32"), xp.full((m, 3), 0.1, "float32")
    V = xp.full((m, 1), 0.1, "float32")
    exact = np.exp(-3 * float(np.float32(0.1)) ** 2 / 2) * float(np.float32(0.1)) * m
    result = float(reduce_cuda.reduce(Gaussian(1.0), PRODUCT, X, Y, V)[0, 0])
    assert abs(result - exact) <= 5e-7 * exact


def test_cupy_work_stays_on_its_stream():
    cupy = pytest.importorskip("cupy")
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        X = cupy.random.default_rng(0).normal(size=(2000, 3)).astype("float32")
        V = cupy.ones((2000, 1), "float32")
        result = reduce_cuda.reduce(Gaussian(1.0), PRODUCT, X, X, V)
        total = float((result * 1).sum())  # ordered behind the launches by the stream alone
    assert np.isfinite(total)
    assert total >= 2000


@pytest.mark.parametrize("precision", ["fp32", "3xtf32", "tf32"])
@pytest.mark.parametrize("op", OPS)
def test_many_features_by_products_of_matrices(op, precision):
    """Two ragged tiles of sources; TF32 must be worse than float32 and no worse than its bound for a Gaussian."""
    cupy = pytest.importorskip("cupy")
    reason = cublas_cuda.no_tensor_cores()
    if reason is not None:
        pytest.skip(reason)
    rng = np.random.default_rng(2)
    n, m = 300, 9000
    for kernel, d, t in ((Gaussian(1.0), 100, 3), (Laplace(1.0), 26, 1), (Matern32(1.0), 784, 1)):
        X, Y = ((rng.normal(size=(k, d)) / np.sqrt(d) + 9).astype("float32") for k in (n, m))
        Y[:4] = X[:4]
        V = rng.normal(size=(m, t)).astype("float32")
        V = V[:, 0] if "logsumexp" in op else V
        memory = {}
        arrays = (cupy.asarray(a) for a in (X, Y, V))
        how = {"precision": precision, "memory": memory}
        got = as_tuple(reduce_cuda.reduce(kernel, OPERATIONS[op], *arrays, **how))
        assert (memory.matrix["matrix"].path, memory.matrix["matrix"].precision) == (
            "matrix",
            precision,
        )
        some = slice(0, 40)  # the oracle is dense and in long double
        exact = as_tuple(getattr(oracle, op)(oracle.terms_of(kernel), X[some], Y, V))
        bound = as_tuple(tolerance(kernel, X[some], Y, V, op))
        for result, truth, within in zip(got, exact, bound, strict=True):
            error = np.abs(result[some].get() - truth)
            if precision != "tf32":
                assert np.all(error <= within), (kernel, d)
            else:  # 11 bits of points of radius about 1 against 24 of float32
                assert np.all(error <= 2**13 * within), (kernel, d)


def test_the_users_cublas_mode_is_restored():
    cupy = pytest.importorskip("cupy")
    if cublas_cuda.missing() is not None:
        pytest.skip(cublas_cuda.missing())
    from cupy_backends.cuda.libs import cublas

    handle = cupy.cuda.device.get_cublas_handle()
    mode = cublas.getMathMode(handle)
    tf32 = 3  # CUBLAS_TF32_TENSOR_OP_MATH
    cublas.setMathMode(handle, tf32)
    try:
        X, V = cupy.ones((50, 30), "float32"), cupy.ones((50, 1), "float32")
        reduce_cuda.reduce(Gaussian(1.0), PRODUCT, X, X, V)
        assert cublas.getMathMode(handle) == tf32
    finally:
        cublas.setMathMode(handle, mode)
