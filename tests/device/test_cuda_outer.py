"""Products of many features in registers of CUDA cores: sums by NumPy in place of the device, and what the machine code costs.

The loop itself runs in Numba's simulator (matrix_engines.py) and as PTX (.ci/ptx_matrix.py).
"""

import sys
from pathlib import Path

import numpy as np
import oracle
import pytest
from matrix_engines import NumPyEngine
from test_cuda_source import check_pure

from gpukoop.kernels.cuda.matrix import sums as matrix_cuda
from gpukoop.kernels.cuda.matrix.outer.shape import (
    CHUNK,
    FEATURE_SLOTS,
    PAIR_SLOTS,
    TILE_SLOTS,
    OuterShape,
    suits,
)
from gpukoop.kernels.cuda.specification import WIDEST_TILE
from gpukoop.kernels.formula.catalogue import CATALOGUE, Gaussian, Laplace, Matern32
from gpukoop.testing import tolerance

sys.path.append(str(Path(__file__).parents[2]))

KERNELS = [make() for make in CATALOGUE.values()] + [Gaussian(1.0) + 0.5 * Matern32(2.0)]
# Tp/s that 85 % of the bound must reach
GOALS = {64: 0.30, 100: 0.20}
# slots of the loop that sums differences or products chunk by chunk (bench/cuda_static.py), staging left out
BEFORE = {64: 98.3}


def clouds(n, m, d, shift=0.0):
    rng = np.random.default_rng(n + d)
    X, Y = ((rng.normal(size=(k, d)) / np.sqrt(d) + shift).astype("float32") for k in (n, m))
    Y[: min(n, m, 4)] = X[: min(n, m, 4)]  # q = 0
    Y[-1] = X[0] + np.float32(1e-3)  # close, and not the same
    return X, Y, rng.normal(size=m).astype("float32")


# one target, one source; a block of targets and one more, two tiles of sources and one more source; a whole chunk of features
@pytest.mark.parametrize(
    ("n", "m", "d"), [(1, 300, 25), (70, 1, 32), (65, 257, 100), (40, 90, 260)]
)
@pytest.mark.parametrize("op", ["product", "logsumexp"])
def test_sums_are_within_the_one_tolerance(op, n, m, d):
    X, Y, v = clouds(n, m, d, shift=3.0)
    if op == "logsumexp":
        v = 3 * v
        v[m // 2] = -np.inf if m > 1 else 0.0
    for kernel in KERNELS:
        if op == "logsumexp" and not kernel.positive:
            continue
        engine, memory = NumPyEngine(kernel), {}
        got = matrix_cuda.reduce(engine, kernel, op, X, Y, v, memory=memory)
        assert memory["matrix"].path == "matrix", memory["matrix"].why
        assert engine.products == 0
        assert {type(shape) for shape in engine.shapes} == {OuterShape}
        exact = getattr(oracle, op)(oracle.terms_of(kernel), X, Y, v)
        assert np.all(np.abs(got - exact) <= tolerance(kernel, X, Y, v, op)), kernel


def test_close_pairs_are_found_where_they_would_cancel():
    X, Y, v = clouds(30, 50, 40)
    engine = NumPyEngine(Laplace(1.0))
    matrix_cuda.reduce(engine, Laplace(1.0), "product", X, Y, v)
    # four points that are the same, one that is near, and some that lie within 45 degrees by chance
    assert 5 <= engine.close <= 0.1 * len(X) * len(Y)
    # and a smooth kernel of a cloud so small tests none
    engine = NumPyEngine(Gaussian(1.0))
    matrix_cuda.reduce(engine, Gaussian(1.0), "product", X, Y, v)
    assert [shape.close for shape in engine.shapes] == [False]


def test_without_any_weight_the_logarithm_is_minus_infinity():
    X, Y, v = clouds(5, 9, 30)
    engine = NumPyEngine(Gaussian(1.0))
    assert np.all(
        matrix_cuda.reduce(engine, Gaussian(1.0), "logsumexp", X, Y, v - np.inf) == -np.inf
    )


def test_points_are_packed_once(monkeypatch):
    from gpukoop.kernels.cuda.matrix.outer import sums as outer_sums

    packed, usual = [], outer_sums.OuterSums._points
    monkeypatch.setattr(
        outer_sums.OuterSums, "_points", lambda *a: packed.append(len(a[1])) or usual(*a)
    )
    X, Y, v = clouds(30, 50, 40)
    memory, kernel = {}, Gaussian(1.0)
    first = matrix_cuda.reduce(NumPyEngine(kernel), kernel, "product", X, Y, v, memory=memory)
    again = matrix_cuda.reduce(NumPyEngine(kernel), kernel, "product", X, Y, 2 * v, memory=memory)
    assert packed == [30, 50]
    assert np.allclose(again, 2 * first, rtol=1e-6)


def test_registers_take_what_costs_them_fewer_slots():
    assert suits("product", 64, 1, "float32")
    assert suits("logsumexp", 100, 1, "float32")
    # gradients and several columns are a second product with the tile, float64 has no such loop
    assert not suits("gradient", 64, 1, "float32")
    assert not suits("product", 64, 2, "float32")
    assert not suits("product", 64, 1, "float64")
    assert not suits("product", WIDEST_TILE, 1, "float32")
    most = max(d for d in range(1, 2000) if suits("product", d, 1, "float32"))
    assert FEATURE_SLOTS * most + PAIR_SLOTS <= most + TILE_SLOTS
    assert most == 262
    # the last barrier before what belongs to a tile is read comes a chunk after it was asked for
    assert WIDEST_TILE >= CHUNK


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape", [OuterShape("product", False), OuterShape("logsumexp", True)], ids=lambda s: s.label
)
def test_programs_reach_their_goal_without_spills(shape):
    pytest.importorskip("numba_cuda")
    from bench import cuda_outer, sass

    if sass.missing() is not None:
        pytest.skip(sass.missing())
    ptx = cuda_outer.code(shape)
    check_pure(ptx, "float32")
    assert ".atom" not in ptx
    assert "\tred." not in ptx
    for arch in ("sm_80", "sm_90", "sm_100"):
        code, resources = sass.assemble(ptx, arch)
        assert resources[shape.label]["spills"] == resources[shape.label]["stack"] == 0, arch
        found = cuda_outer.counted(code)
        assert found["local"] == 0, arch
        # three blocks of 128 threads a multiprocessor
        assert resources[shape.label]["registers"] <= 168, arch
        if arch != "sm_90":
            continue
        for d, goal in GOALS.items():
            each = cuda_outer.slots(found, d)
            assert d < each <= FEATURE_SLOTS * d + PAIR_SLOTS
            assert 0.85 * cuda_outer.bound(each) >= goal
            if d in BEFORE:
                assert each <= BEFORE[d]
