"""What a warm reduction of CuPy arrays asks of the host and of the device, counted on a stand-in: launches and nothing else."""

import sys

import numpy as np
import pytest
from device_counter import recorded_launches

import gpukoop as gk
from gpukoop.kernels.cuda import engine as engine_cuda
from gpukoop.kernels.cuda import functions, program
from gpukoop.kernels.cuda import reduce as reduce_cuda
from gpukoop.kernels.cuda.memory import Memory
from gpukoop.kernels.formula.catalogue import Gaussian, Laplace, Matern32
from gpukoop.kernels.operation import OPERATIONS

OPS = tuple(OPERATIONS)


@pytest.fixture
def device():
    """The stand-in, and what is launched on it; every program is loaded, and a multiprocessor holds five blocks."""
    with recorded_launches() as found:
        yield found


def problem(cupy, n, m, d, t, dtype="float32"):
    rng = np.random.default_rng(0)
    arrays = rng.normal(size=(n, d)), rng.normal(size=(m, d)), rng.normal(size=(m, t))
    return tuple(cupy.asarray(a.astype(dtype)) for a in arrays)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("d", [3, 30])
def test_a_warm_call_launches_and_does_nothing_else(op, d, device, monkeypatch):
    cupy, launches = device
    monkeypatch.setattr(reduce_cuda.matrix_cuda, "applies", lambda *_: False)
    X, Y, V = problem(cupy, 300, 400, d, 1)
    V = V[:, 0] if "logsumexp" in op else V
    memory, operation = Memory(), OPERATIONS[op]
    reduce_cuda.reduce(Gaussian(1.0), operation, X, Y, V, memory=memory)
    packing = [name for name, *_ in launches if "points" in name]
    assert len(packing) <= 2
    launches.clear()

    def printed(*_):
        raise AssertionError("a warm call printed code")

    for owner, name in (
        (functions.Functions, "build"),
        (functions.CudaPrinter, "print"),
        (program.Program, "build"),
    ):
        monkeypatch.setattr(owner, name, printed)
    monkeypatch.setattr(program, "compile_ptx", printed)
    with cupy.counting() as count:
        result = reduce_cuda.reduce(Gaussian(1.0), operation, X, Y, V, memory=memory)
    assert (count.kernels, count.syncs, count.copies) == (0, 0, 0), str(count)
    forms = len(launches) - 1
    assert 1 <= forms <= 3
    assert not any("points" in name for name, *_ in launches)
    shapes = [a.shape for a in (result if isinstance(result, tuple) else (result,))]
    n, columns = 300, () if "logsumexp" in op else (1,)
    expected = {"value": (n, *columns), "slope": (n, *columns, d)}
    assert shapes == [expected[o] for o in ("value", "slope") if getattr(operation, o)]


def test_the_same_points_are_packed_once_for_all_operations_of_one_form(device):
    cupy, launches = device
    X, Y, V = problem(cupy, 300, 400, 2, 1)
    memory = Memory()
    for op in ("product", "gradient", "value_and_gradient", "product"):
        reduce_cuda.reduce(Laplace(1.0), OPERATIONS[op], X, Y, V, memory=memory)
    reduce_cuda.reduce(
        Laplace(1.0), OPERATIONS["product"], X, Y, problem(cupy, 1, 400, 1, 5)[2], memory=memory
    )
    assert sum("points" in name for name, *_ in launches) == 2


@pytest.mark.slow
def test_every_argument_is_an_array_or_a_typed_number(device):
    cupy, launches = device
    for d, t, same in ((3, 1, False), (2, 3, False), (3, 20, True), (2, 2, True)):
        X, Y, V = problem(cupy, 30_000, 30_000, d, t)
        for op in ("product", "value_and_gradient"):
            reduce_cuda.reduce(Matern32(1.0), OPERATIONS[op], X, X if same else Y, V)
    assert any("symmetric" in name for name, *_ in launches)
    allowed = (cupy.ndarray, np.uint64, np.float32, np.float64)
    assert all(isinstance(a, allowed) for *_, args in launches for a in args)


def test_forms_that_are_not_compiled_are_asked_for_once_an_operator(device, monkeypatch):
    cupy, launches = device
    monkeypatch.setattr(engine_cuda.CuPyEngine, "loaded", lambda self, p: False)
    monkeypatch.setattr(engine_cuda.Packed, "form", lambda self: "difference")
    X, Y, V = problem(cupy, 300, 400, 3, 1)
    memory = Memory()
    for _ in range(3):
        reduce_cuda.reduce(Gaussian(1.0), OPERATIONS["product"], X, Y, V, memory=memory)
    loops = [name for name, *_ in launches if name.startswith("gaussian")]
    assert loops == ["gaussian_product_difference_d3_t1_float32"] * 3


def test_a_warm_product_is_few_function_calls(device):
    """Python calls from the reduction down to the launches: what the host pays, without a clock."""
    cupy, _ = device
    X, Y, V = problem(cupy, 1000, 1000, 3, 1)
    memory, product = Memory(), OPERATIONS["product"]
    reduce_cuda.reduce(Gaussian(1.0), product, X, Y, V, memory=memory)
    calls = 0

    def profile(frame, event, _):
        nonlocal calls
        calls += event == "call" and "device_counter" not in frame.f_code.co_filename

    sys.setprofile(profile)
    try:
        reduce_cuda.reduce(Gaussian(1.0), product, X, Y, V, memory=memory)
    finally:
        sys.setprofile(None)
    assert calls <= 25


def test_missing_says_in_words_what_does_not_import(monkeypatch):
    real = reduce_cuda.importlib.import_module

    def broken(name, *package):
        if name == "numba.cuda.compiler":
            raise AttributeError("module 'numpy' has no attribute 'row_stack'")
        return real(name, *package)

    monkeypatch.setattr(reduce_cuda.importlib, "import_module", broken)
    monkeypatch.setattr(reduce_cuda, "simulating", lambda: False)
    reduce_cuda.missing.cache_clear()
    try:
        pytest.importorskip("numba_cuda")
        words = reduce_cuda.missing()
    finally:
        reduce_cuda.missing.cache_clear()
    assert "row_stack" in words
    assert "install versions that work together (pip install gpukoop[cuda13])" in words
    assert gk.backends()["numba-cuda"]
