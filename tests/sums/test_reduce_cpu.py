"""The compiled CPU sums against the long-double oracle: every kernel, operation and precision, and the sizes that hurt."""

import os
import subprocess
import sys
import textwrap
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import oracle
import pytest

from gpukoop.kernels import cells
from gpukoop.kernels.cpu import module as cpu_module
from gpukoop.kernels.cpu import reduce as reduce_cpu
from gpukoop.kernels.cpu import simd as simd_cpu
from gpukoop.kernels.formula.catalogue import (
    CATALOGUE,
    Energy,
    Gaussian,
    Laplace,
    Matern32,
    RationalQuadratic,
    Riesz,
)
from gpukoop.kernels.operation import (
    GRADIENT,
    LOGSUMEXP,
    LOGSUMEXP_AND_GRADIENT,
    OPERATIONS,
    PRODUCT,
    VALUE_AND_GRADIENT,
)
from gpukoop.testing import tolerance

KERNELS = {name: make() for name, make in CATALOGUE.items()} | {
    "riesz": Riesz(exponent=0.7),
    "rational_quadratic": RationalQuadratic(scale=1.3, alpha=2.5),
    "sum": Gaussian(1.0) + 0.5 * Matern32(2.0),
    "scaled": 0.25 * Gaussian(0.7),
}


def cloud(n, m, d, t=1, dtype="float32", spread=1.0, shift=0.0, seed=0):
    rng = np.random.default_rng(seed)
    X = (spread * rng.standard_normal((n, d)) + shift).astype(dtype)
    Y = (spread * rng.standard_normal((m, d)) + shift).astype(dtype)
    return X, Y, rng.standard_normal((m, t)).astype(dtype)


def check(op, kernel, X, Y, V, tol=None):
    """Compare one operation with the oracle; return the result."""
    copies = [a.copy() for a in (X, Y, V)]
    result = reduce_cpu.reduce(kernel, OPERATIONS[op], X, Y, V, tol=tol)
    for before, after in zip(copies, (X, Y, V), strict=True):
        np.testing.assert_array_equal(before, after)
    exact = getattr(oracle, op)(oracle.terms_of(kernel), X, Y, V)
    bound = tolerance(kernel, X, Y, V, op, tol=tol)
    single = not isinstance(result, tuple)
    triples = [(result, exact, bound)] if single else list(zip(result, exact, bound, strict=True))
    for got, want, within in triples:
        assert got.dtype == X.dtype
        assert got.shape == want.shape
        finite = np.isfinite(want)
        np.testing.assert_array_equal(got[~finite], want[~finite])
        excess = (np.abs(got - want) / within)[finite]
        assert excess.size == 0 or excess.max() <= 1, f"{excess.max():.3g} times the tolerance"
    return result


# -- every kernel ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", KERNELS)
def test_value_and_gradient(name, dtype):
    X, Y, V = cloud(130, 1100, 3, dtype=dtype)
    Y[:20] = X[:20]  # coinciding points
    check("value_and_gradient", KERNELS[name], X, Y, V)


@pytest.mark.parametrize("name", KERNELS)
def test_product(name):
    check("product", KERNELS[name], *cloud(130, 1100, 3))


@pytest.mark.parametrize("name", [name for name, k in KERNELS.items() if k.positive])
def test_logsumexp(name):
    X, Y, V = cloud(130, 1100, 3)
    Y[:20] = X[:20]
    b = V[:, 0].copy()
    b[::7] = -np.inf
    check("logsumexp_and_gradient", KERNELS[name], X, Y, b)
    if name in ("gaussian", "sum"):
        check("logsumexp", KERNELS[name], X, Y, b)


# -- sizes -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("d", [1, 2, 4, 7, 17, 50, 784])
def test_features(d):
    X, Y, V = cloud(67, 515, d) if d < 100 else cloud(7, 70, d)
    kernel = Gaussian(scale=float(np.sqrt(d)))
    check("value_and_gradient", kernel, X, Y, V)
    check("logsumexp_and_gradient", kernel, X, Y, V[:, 0].copy())


@pytest.mark.slow
def test_features_with_a_kink():
    X, Y, V = cloud(67, 515, 17)
    Y[:67] = X
    check("value_and_gradient", Laplace(3.0), X, Y, V)
    check("logsumexp_and_gradient", Laplace(3.0), X, Y, V[:, 0].copy())


@pytest.mark.parametrize(("d", "t"), [(2, 2), (3, 3), (3, 5), (3, 64), (20, 2), (20, 17)])
def test_columns(d, t):
    X, Y, V = cloud(67, 515, d, t)
    value, grad = check("value_and_gradient", Gaussian(2.0), X, Y, V)
    np.testing.assert_allclose(reduce_cpu.reduce(Gaussian(2.0), PRODUCT, X, Y, V), value, atol=1e-4)
    one = reduce_cpu.reduce(Gaussian(2.0), GRADIENT, X, Y, V[:, 1:2].copy())
    np.testing.assert_allclose(one[:, 0], grad[:, 1], atol=1e-4)


def test_columns_in_float64():
    check("value_and_gradient", Gaussian(2.0), *cloud(67, 515, 20, 5, "float64"))


@pytest.mark.parametrize(
    ("n", "m"), [(1, 1), (1, 1025), (2, 64), (64, 2), (65, 1024), (129, 513), (1025, 1)]
)
def test_ragged_sizes(n, m):
    for d in (3, 9):
        X, Y, V = cloud(n, m, d)
        check("product", Gaussian(2.0), X, Y, V)
        check("logsumexp_and_gradient", Gaussian(2.0), X, Y, V[:, 0].copy())


def test_nothing_to_sum():
    X, Y, V = cloud(3, 4, 2)
    none = np.empty((0, 2), "float32")
    assert reduce_cpu.reduce(Gaussian(), PRODUCT, none, Y, V).shape == (0, 1)
    np.testing.assert_array_equal(
        reduce_cpu.reduce(Gaussian(), PRODUCT, X, none, V[:0]), np.zeros((3, 1))
    )
    assert np.isneginf(reduce_cpu.reduce(Gaussian(), LOGSUMEXP, X, none, V[:0, 0])).all()


# -- places ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [3, 20])
@pytest.mark.parametrize("kernel", [Gaussian(), Energy()], ids=str)
def test_far_from_the_origin(d, kernel):
    check("value_and_gradient", kernel, *cloud(67, 515, d, shift=100.0))


@pytest.mark.parametrize("name", KERNELS)
def test_all_points_equal(name):
    X, Y, V = cloud(5, 70, 3)
    X[:], Y[:] = X[0], X[0]
    assert not reduce_cpu.reduce(KERNELS[name], VALUE_AND_GRADIENT, X, Y, V)[1].any()
    check("product", KERNELS[name], X, Y, V)


def test_far_pairs_are_zero():
    X, Y, V = cloud(5, 70, 3)
    for kernel in (Gaussian(), Laplace(), Matern32()):
        value, grad = reduce_cpu.reduce(kernel, VALUE_AND_GRADIENT, X, Y + np.float32(1e4), V)
        assert not value.any()
        assert not grad.any()


def test_logsumexp_of_wide_clouds_and_large_weights():
    X, Y, V = cloud(64, 700, 3, spread=30.0)
    b = (1e4 * V[:, 0]).astype("float32")
    D = X[:, None].astype(float) - Y[None]
    logits = b.astype(float) - (D**2).sum(-1) / 2
    top = logits.max(1, keepdims=True)
    p = np.exp(logits - top)
    L = top[:, 0] + np.log(p.sum(1))
    G = -np.einsum("ij,ijd->id", p, D) / p.sum(1)[:, None]
    within = tolerance(Gaussian(), X, Y, b, "logsumexp_and_gradient")
    got = reduce_cpu.reduce(Gaussian(), LOGSUMEXP_AND_GRADIENT, X, Y, b)
    assert (np.abs(got[0] - L) <= within[0]).all()
    assert (np.abs(got[1] - G) <= within[1]).all()


def test_logsumexp_without_weights():
    X, Y, _ = cloud(5, 1500, 3)
    b = np.full(1500, -np.inf, "float32")
    L, G = reduce_cpu.reduce(Gaussian(), LOGSUMEXP_AND_GRADIENT, X, Y, b)
    assert np.isneginf(L).all()
    assert not G.any()
    b[1400] = 0.0  # the first tile is empty, the second is not
    check("logsumexp_and_gradient", Gaussian(), X, Y, b)


def test_a_million_sources_cost_no_digits():
    X, Y, _ = cloud(8, 1_000_000, 1)
    V = np.ones((len(Y), 1), "float32")
    exact = np.exp(-((X.astype(float) - Y[:, 0].astype(float)) ** 2) / 2).sum(1)
    got = reduce_cpu.reduce(Gaussian(), PRODUCT, X, Y, V)[:, 0]
    assert np.abs(got / exact - 1).max() < 2e-7


def test_nan_is_not_hidden():
    X, Y, V = cloud(5, 70, 3)
    Y[3, 1] = np.nan
    assert np.isnan(reduce_cpu.reduce(Gaussian(), PRODUCT, X, Y, V)).all()


def test_tolerance_shortens_the_exponential():
    X, Y, V = cloud(130, 1100, 3)
    rough = check("product", Gaussian(), X, Y, V, tol=1e-5)
    assert (rough != reduce_cpu.reduce(Gaussian(), PRODUCT, X, Y, V)).any()


# -- cells -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["product", "value_and_gradient"])
def test_distant_cells_are_left_out_within_tol(op, monkeypatch):
    X, Y, V = cloud(5000, 20_000, 2)
    X[7] = 4.0  # far from everything: its few neighbours at a distance are all it has
    visited = []
    visits = cells.visits
    monkeypatch.setattr(cells, "visits", lambda *args: visited.append(visits(*args)) or visited[-1])
    kernel, tol = Gaussian(0.1), 1e-5
    results = reduce_cpu.reduce(kernel, OPERATIONS[op], X, Y, V, tol=tol)
    results = results if isinstance(results, tuple) else (results,)
    rows = np.r_[7, 100:130]
    exact = oracle.value_and_gradient(oracle.terms_of(kernel), X[rows], Y, V)
    bound = tolerance(kernel, X[rows], Y, V, "value_and_gradient", tol=tol)
    for got, want, within in zip(results, exact, bound, strict=False):
        assert (np.abs(got[rows] - want) <= within).all()
    assert visited
    for order, left in visited:
        assert (np.sort(order, axis=1) == np.arange(order.shape[1])).all()
        assert (np.diff(left, axis=1) <= 0).all()


def test_what_does_not_decay_is_summed_exactly():
    X, Y, V = cloud(5000, 20_000, 2)
    for kernel in (Energy(), Gaussian(3.0)):
        np.testing.assert_array_equal(
            reduce_cpu.reduce(kernel, VALUE_AND_GRADIENT, X, Y, V, tol=1e-6)[0],
            reduce_cpu.reduce(kernel, VALUE_AND_GRADIENT, X, Y, V)[0],
        )


def test_cells_hold_their_points():
    X = np.random.default_rng(0).standard_normal((1001, 3)).astype("float32")
    made = cells.arrange(X, 64)
    np.testing.assert_array_equal(np.sort(made.order), np.arange(1001))
    for c, start in enumerate(range(0, 1001, 64)):
        points = X[made.order[start : start + 64]]
        np.testing.assert_array_equal(points.min(0), made.low[c])
        np.testing.assert_array_equal(points.max(0), made.high[c])
    gaps = cells.squared_gaps(made.low, made.high, made.low, made.high)
    D = ((X[made.order[:64], None] - X[made.order][None, -41:]) ** 2).sum(-1)
    assert gaps[0, 0] == 0
    assert gaps[0, -1] <= D.min() * (1 + 1e-6)


# -- functions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_polynomials(dtype):
    real = np.dtype(dtype).type
    exp2 = getattr(simd_cpu, f"exp2_{dtype}_{simd_cpu.EXACT_DEGREE[dtype]}")
    log2 = getattr(simd_cpu, f"log2_{dtype}")
    u = np.random.default_rng(0).uniform(-100, 100, 2000).astype(dtype)
    eps = np.finfo(dtype).eps
    got = np.array([exp2(x) for x in u])
    assert np.abs(got / np.exp2(u.astype(np.longdouble)) - 1).max() < 2 * eps
    x = np.exp2(u.astype(float)).astype(dtype)
    got = np.array([log2(v) for v in x])
    assert np.abs(got / np.log2(x.astype(np.longdouble)) - 1).max() < 4 * eps
    assert exp2(real(0)) == 1
    assert exp2(real(-np.inf)) == exp2(real(-2000)) == 0
    assert np.isnan(exp2(real(np.nan)))


# -- threads, memory, disk -----------------------------------------------------------------------------


def test_threads_change_no_bit(monkeypatch):
    X, Y, V = cloud(3000, 2000, 3)
    results = []
    for threads in ("1", "2", "5"):
        monkeypatch.setenv("NUMBA_NUM_THREADS", threads)
        results.append(reduce_cpu.reduce(Gaussian(), PRODUCT, X, Y, V))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_calls_from_several_threads():
    X, Y, V = cloud(2000, 2000, 3)
    want = reduce_cpu.reduce(Gaussian(), PRODUCT, X, Y, V)
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: reduce_cpu.reduce(Gaussian(), PRODUCT, X, Y, V), range(8)):
            np.testing.assert_array_equal(got, want)


def test_memory_is_linear():
    X, Y, V = cloud(20_000, 20_000, 3, 16)
    reduce_cpu.reduce(Gaussian(), PRODUCT, X[:100], Y, V)
    tracemalloc.start()
    reduce_cpu.reduce(Gaussian(), PRODUCT, X[:100], Y, V)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * (X.nbytes + Y.nbytes + V.nbytes)


SCRIPT = textwrap.dedent(
    """
    import numpy as np
    from gpukoop.kernels.cpu import reduce as reduce_cpu
    from gpukoop.kernels.operation import PRODUCT
    from gpukoop.kernels.formula.catalogue import Gaussian
    X = np.zeros((3, 2), "float32")
    print(reduce_cpu.reduce(Gaussian({scale}), PRODUCT, X, X, X[:, :1] + 1).sum())
    run, = reduce_cpu._runs.values()
    print(sum(run.stats.cache_hits.values()), sum(run.stats.cache_misses.values()))
    """
)


def _fresh(folder, scale=1.0):
    env = {**os.environ, "GPUKOOP_CACHE_DIR": str(folder)}
    command = [sys.executable, "-W", "error", "-c", SCRIPT.format(scale=scale)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    total, counts = done.stdout.splitlines()
    assert float(total) == 9.0
    return counts


def test_a_second_process_compiles_nothing(tmp_path):
    assert _fresh(tmp_path) == "0 1"
    assert _fresh(tmp_path, scale=2.0) == "1 0"  # nor does another scale


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"", b"garbage"])
def test_damaged_compiled_code_is_made_anew(tmp_path, content):
    assert _fresh(tmp_path) == "0 1"
    compiled = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(compiled) == 1
    for path in compiled:
        path.write_bytes(content)
    assert _fresh(tmp_path) == "0 1"
    assert _fresh(tmp_path) == "1 0"


NUMBER = (
    "from gpukoop.kernels.cpu.module import jit\n@jit('float64()')\ndef run():\n    return 7.0\n"
)


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GPUKOOP_CACHE_DIR", str(tmp_path / "file"))
    with caplog.at_level("DEBUG", logger="gpukoop"):
        run = cpu_module.load(NUMBER)
    assert run() == 7.0
    assert "cannot be written" in caplog.text
