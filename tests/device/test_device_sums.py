"""Kernel sums where only a device can tell: forms, each pair once, lists, streams, processes, memory.

On the stand-in the same tests run up to the launches: which path is taken is checked there too, numbers are not.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import oracle
import pytest
from devices import KINDS, host, with_launches

import gpukoop as gk
from gpukoop.kernels.cuda.memory import Memory
from gpukoop.kernels.cuda.pairs.plan import Plan
from gpukoop.kernels.cuda.symmetric.plan import SymmetricPlan
from gpukoop.kernels.operation import OPERATIONS
from gpukoop.testing import tolerance

CUDA = "numba-cuda"
ROWS = slice(0, 40)  # the oracle is dense and in long double
SPIN = """
extern "C" __global__ void spin(long long cycles) {
    long long start = clock64();
    while (clock64() - start < cycles) { }
}
"""


@pytest.fixture(params=KINDS)
def lent(request):
    with with_launches(request) as found:
        yield found


def cloud(lent, n, d, dtype="float32", spread=1.0, seed=0):
    points = np.random.default_rng(seed).normal(size=(n, d)) * spread
    return lent.cupy.asarray(points.astype(dtype))


def calls(K):
    return K.clouds.memory(Memory).calls


def check(lent, K, op, v, results):
    """Compare some rows with the oracle, on a device."""
    if not lent.real:
        return
    X, Y, V = host(K.X)[ROWS], host(K.Y), host(v)
    exact = getattr(oracle, op)(oracle.terms_of(K.kernel), X, Y, V)
    bound = tolerance(K.kernel, X, Y, V, op)
    if not isinstance(results, tuple):
        results, exact, bound = (results,), (exact,), (bound,)
    for result, truth, within in zip(results, exact, bound, strict=True):
        assert np.all(np.abs(host(result)[ROWS] - truth) <= within), op


@pytest.mark.parametrize("op", ["product", "gradient", "value_and_gradient", "logsumexp"])
@pytest.mark.parametrize(("spread", "form"), [(0.05, "dot"), (1.0, "difference"), (100.0, "exact")])
def test_the_points_choose_the_form(op, spread, form, lent):
    """Two clouds of three features: tight ones by products, ordinary ones by differences, far-flung ones in exact form."""
    X, Y = cloud(lent, 3000, 3, spread=spread), cloud(lent, 2500, 3, spread=spread, seed=1)
    v = cloud(lent, 2500, 1, seed=2)[:, 0]
    K = gk.Gaussian(1.0)(X, Y, backend=CUDA)
    method = {"product": lambda v: K @ v}.get(op) or getattr(K, op)
    result = method(v)
    (call,) = calls(K).values()
    assert type(call.plan) is Plan
    if lent.real:
        packed = [p for p in K.clouds.memory(Memory).points.values() if len(p.forms) > 1]
        assert {p.form() for p in packed} <= {form, "difference"}, [p.form() for p in packed]
    check(lent, K, op, v, result)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("kernel", "t"), [(gk.Gaussian(1.0), 1), (gk.Matern32(0.7), 2)])
def test_large_clouds_visit_each_pair_once(kernel, t, dtype, lent):
    n = 40_037 if dtype == "float32" else 16_421  # above where it pays
    X, v = cloud(lent, n, 3, dtype), cloud(lent, n, t, dtype, seed=2)
    K = kernel(X, backend=CUDA)
    result = K @ v
    (call,) = calls(K).values()
    assert type(call.plan) is SymmetricPlan
    check(lent, K, "product", v, result)
    if lent.real:
        assert bool((K @ v == result).all())  # no atomics: the same bits


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_distant_tiles_are_left_out(dtype, lent):
    if not lent.real:
        pytest.skip("lists are made from numbers that the stand-in does not compute")
    X, v = cloud(lent, 20_000, 2, dtype), cloud(lent, 20_000, 1, dtype, seed=2)[:, 0]
    K = gk.Gaussian(0.05)(X, backend=CUDA, tol=1e-4)
    result = K @ v
    assert not calls(K)  # the lists ran, not all pairs
    exact = oracle.product(oracle.terms_of(K.kernel), host(X)[ROWS], host(X), host(v))
    total = oracle.product(oracle.terms_of(K.kernel), host(X)[ROWS], host(X), abs(host(v)))
    assert np.all(np.abs(host(result)[ROWS] - exact) <= 1e-4 * total)


def test_a_stream_orders_the_sum_behind_what_is_before_it(lent):
    """A delay stands in front; weights are written behind it. A launch on another stream would read zeros."""
    cupy = lent.cupy
    X = cloud(lent, 2000, 3)
    K = gk.Gaussian(1.0)(X, backend=CUDA)
    ones = cupy.ones(2000, "float32")
    expected = K @ ones  # warm, and everything compiled
    spin = cupy.RawKernel(SPIN, "spin")
    spin((1,), (1,), (np.int64(1),))
    cupy.cuda.Device().synchronize()
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        v = cupy.zeros(2000, "float32")
        stream.synchronize()
        start = time.perf_counter()
        spin((1,), (1,), (np.int64(2_000_000_000),))  # about a second
        v.fill(1)
        result = K @ v
        queued = time.perf_counter() - start
        waited_for = not stream.done
        total = result + 0
        stream.synchronize()
    assert waited_for
    assert queued < 0.3
    if lent.real:
        assert bool((total == expected).all())


def test_weights_stay_on_the_device(lent):
    K = gk.Gaussian(1.0)(cloud(lent, 700, 3), backend=CUDA)
    v = cloud(lent, 700, 1)
    for result in (K @ v, *K.value_and_gradient(v), K.logsumexp(v[:, 0])):
        assert type(result) is type(v)
        assert result.dtype == v.dtype


def test_bad_weights_are_heard(lent):
    """The error comes with the call, the next one, or the next copy to the host: here the device has been waited for."""
    K = gk.Gaussian(1.0)(cloud(lent, 700, 3), backend=CUDA)
    v = cloud(lent, 700, 1)[:, 0]
    _ = K @ v
    v[5] = np.nan

    def heard():
        result = K @ v
        lent.cupy.cuda.Device().synchronize()
        if lent.real:
            assert bool(lent.cupy.isnan(result).all())
        _ = K @ lent.cupy.ones(700, "float32")

    with pytest.raises(ValueError, match="v contains NaN or inf"):
        heard()


def test_memory_does_not_grow(lent):
    """A product of 2e5 points would be 160 GB as a matrix; 200 of them leave nothing behind."""
    K = gk.Gaussian(0.5)(cloud(lent, 200_000, 3), backend=CUDA)
    v = cloud(lent, 200_000, 1)[:, 0]
    pool = lent.cupy.get_default_memory_pool()
    _ = K @ v
    before = pool.used_bytes()
    for _ in range(200 if lent.real else 3):
        _ = K @ v
    assert pool.used_bytes() <= before
    assert before <= 200_000 * 4 * 100  # some copies of the points, and partial sums


def first_product(cupy):
    """Return seconds of the first product of this process, and whether it compiled anything."""
    from gpukoop.kernels.cuda import program

    compiled, real = [], program.compile_ptx
    program.compile_ptx = lambda *args: compiled.append(args) or real(*args)
    try:
        X = cupy.ones((1000, 3), "float32")
        v = cupy.ones(1000, "float32")
        gk.Gaussian(1.0)(X, backend="numpy")  # CuPy's own first use, and its library
        cupy.cuda.Device().synchronize()
        start = time.perf_counter()
        _ = gk.Gaussian(1.0)(X, backend=CUDA) @ v
        cupy.cuda.Device().synchronize()
        return {"seconds": time.perf_counter() - start, "compiled": len(compiled)}
    finally:
        program.compile_ptx = real


def test_a_second_process_compiles_nothing(lent, tmp_path):
    if not lent.real:
        assert first_product(lent.cupy)["compiled"] == 0
        return
    found = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, __file__],
            env=os.environ
            | {"GPUKOOP_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[1])},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout.splitlines()[-1]))
    assert found[0]["compiled"] > 0
    assert found[1]["compiled"] == 0
    assert found[1]["seconds"] < 0.3, found


@pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_torch_tensors_go_in_and_come_out(where, request):
    torch = pytest.importorskip("torch")
    backend = "numpy"
    if where == "cuda":
        request.getfixturevalue("require")(CUDA)
        if not torch.cuda.is_available():
            pytest.skip("this torch has no CUDA")
        backend = CUDA
    generator = torch.Generator().manual_seed(0)
    X = torch.randn((300, 3), generator=generator, dtype=torch.float64)
    v = torch.randn((300, 2), generator=generator, dtype=torch.float64)
    K = gk.Gaussian(1.0)(X.to(where), backend=backend)
    results = (K @ v.to(where), *K.value_and_gradient(v.to(where)))
    here = gk.Gaussian(1.0)(X.numpy(), backend="numpy")
    expected = (here @ v.numpy(), *here.value_and_gradient(v.numpy()))
    for result, truth in zip(results, expected, strict=True):
        assert isinstance(result, torch.Tensor)
        assert result.device.type == where
        np.testing.assert_allclose(result.cpu().numpy(), truth, rtol=1e-9, atol=1e-9)
    flow = gk.MMDFlow(gk.Gaussian(1.0), n_iter=3, backend=backend).fit(X.to(where))
    moved = flow.transport((X + 1).to(where))
    assert isinstance(moved, torch.Tensor)
    assert moved.device.type == where


def test_what_is_compiled_ahead_is_what_is_asked_for(tmp_path, monkeypatch):
    """The list names programs that exist, without repeats; one of them is compiled and kept without a device."""
    pytest.importorskip("numba_cuda")
    import compile_ahead

    from gpukoop.kernels.cuda import program

    listed = compile_ahead.programs(compile_ahead.requests())
    assert len({repr(p.key) for p in listed}) == len(listed) < 1000
    assert {str(p.specification.operation) for p in listed if p.functions} == set(OPERATIONS)
    monkeypatch.setenv("GPUKOOP_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compile_ahead, "programs", lambda _: listed[:1])
    compile_ahead.main(0, 1, 9, 0)
    assert program.kept(listed[0], (9, 0))


if __name__ == "__main__":
    import cupy

    sys.stdout.write(json.dumps(first_product(cupy)) + "\n")
