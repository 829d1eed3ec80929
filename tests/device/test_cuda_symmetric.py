"""K(X, X) @ v on CUDA, each pair visited once: coverage, memory and balance of the plan, and sums against the oracle.

Run as a program under NUMBA_ENABLE_CUDASIM=1 it sums small problems in the simulator, thread by thread.
"""

import dataclasses
import itertools
import sys
import warnings

import numpy as np
import oracle
import pytest

from gpukoop import cuda as gpu
from gpukoop.kernels.cuda import reduce as reduce_cuda
from gpukoop.kernels.cuda.engine import NumbaEngine
from gpukoop.kernels.cuda.packing import Clouds
from gpukoop.kernels.cuda.pairs.grid import CAPACITY, FINEST
from gpukoop.kernels.cuda.pairs.plan import Plan, Sizes
from gpukoop.kernels.cuda.symmetric.plan import PARTIALS, SymmetricPlan, pays
from gpukoop.kernels.cuda.symmetric.shape import planes
from gpukoop.kernels.formula.catalogue import (
    CATALOGUE,
    Gaussian,
    Matern32,
    RationalQuadratic,
    Riesz,
)
from gpukoop.kernels.operation import OPERATIONS, PRODUCT
from gpukoop.testing import tolerance

KERNELS = [make() for make in CATALOGUE.values()]
KERNELS += [
    Riesz(exponent=1.3),
    RationalQuadratic(0.7, alpha=0.6),
    Gaussian(1.0)
    + 0.5 * Matern32(2.0),  # symbols of a sum share the text with the registers of the loop
]


def cloud(n, d, t, dtype, spread=1.0, shift=0.0):
    """Points of which the last ones coincide with the first, in other blocks, and weights."""
    rng = np.random.default_rng(17 * n + d)
    X = (rng.normal(size=(n, d)) * spread + shift).astype(dtype)
    same = min(n // 2, 4)
    X[n - same :] = X[:same]
    return X, rng.normal(size=(n, t)).astype(dtype)


def sizes(n, d, t, dtype, **how):
    return Sizes(PRODUCT, Clouds(n, n, d, dtype, True), t, **how)


# -- the simulator ----------------------------------------------------------------------------------
def simulate(kernel, n, d, t, dtype, *, block=32, partials=PARTIALS, tol=None, **points):
    """Return the largest error over the tolerance, and the bands."""
    X, V = cloud(n, d, t, dtype, **points)
    plan = SymmetricPlan(kernel, sizes(n, d, t, dtype, tol=tol, block=block), partials=partials)
    buffers = plan.pack(X, X, V)
    NumbaEngine().run(plan, buffers)
    result = plan.unpack(buffers)
    assert result.shape == (n, t)
    assert result.dtype == dtype
    exact = oracle.product(oracle.terms_of(kernel), X, X, V)
    bound = tolerance(kernel, X, X, V, "product", tol=tol)
    return float(np.max(np.abs(result - exact) / (bound + 1e-300))), len(plan.parts[0].bands)


def simulated():
    """Yield (description, error over tolerance) of every case."""
    # A second a case: dtypes in turn, since expressions and dtypes do not meet in the writer; the emitted code of both is
    # executed for every kernel by the check of continuous integration.
    # A profile with a guard at zero, with a kink, with a power, and the sum; smooth ones are alike.
    chosen = [Gaussian(1.0), Matern32(1.0), *KERNELS[-3:]]
    for kernel, dtype in zip(chosen, itertools.cycle(("float32", "float64")), strict=False):
        yield f"{kernel!r} {dtype}", simulate(kernel, 70, 3, 1, dtype)[0]
    kernel = Riesz(exponent=1.3)
    for n in (1, 2, 64, 65):
        yield f"n={n}", simulate(kernel, n, 2, 2, "float64")[0]
    # two warps a block, a band for every row of blocks
    error, bands = simulate(Gaussian(1.0), 133, 5, 3, "float32", block=64, partials=1)
    assert bands == 2
    yield "bands", error
    yield "dot", simulate(Gaussian(1.0), 70, 4, 1, "float32", spread=0.1, tol=1e-5)[0]
    yield "exact", simulate(Gaussian(1.0), 70, 3, 1, "float32", spread=15.0, shift=100.0)[0]
    # through the backend's own door, were seventy points enough to fill a device
    reduce_cuda.pays = lambda *request: True
    X, V = cloud(70, 2, 1, "float32")
    result = reduce_cuda.reduce(Gaussian(1.0), PRODUCT, X, X, V)
    exact = oracle.product(oracle.terms_of(Gaussian(1.0)), X, X, V)
    bound = tolerance(Gaussian(1.0), X, X, V)
    yield "product", float(np.max(np.abs(result - exact) / bound))


def main():
    warnings.simplefilter("error")
    found = list(simulated())
    bad = [
        f"{case}: error is {error:.3g} times the tolerance"
        for case, error in found
        if not error <= 1
    ]
    sys.stdout.write("\n".join([*bad, f"{len(found)} checks, {len(bad)} failed"]) + "\n")
    return bool(bad)


@pytest.mark.slow
def test_sums_in_the_simulator(run_in_simulator):
    run_in_simulator(__file__)


# -- the plan ---------------------------------------------------------------------------------------
def visits(part):
    """Yield (row of blocks, first tile, stop) of every block that works, as the device function computes them."""
    for band in part.bands:
        for row, piece in itertools.product(range(band.top, band.bottom), range(band.pieces)):
            first = row * part.own + piece * band.per
            if first < part.tiles:
                yield row, first, min(first + band.per, part.tiles)


@pytest.mark.parametrize("n", [1, 128, 129, 1024, 1025, 5000, 40_000])
@pytest.mark.parametrize("partials", [1, 2**20])
def test_every_tile_at_or_beyond_its_targets_is_visited_once(n, partials):
    part = SymmetricPlan(Gaussian(1.0), sizes(n, 3, 1, "float32"), partials=partials).parts[0]
    seen = np.zeros((part.rows, part.tiles), int)
    for row, first, stop in visits(part):
        seen[row, first:stop] += 1
    own = np.arange(part.rows)[:, None] * part.own
    assert np.array_equal(seen, np.arange(part.tiles) >= own)
    assert [b.top for b in part.bands[1:]] == [b.bottom for b in part.bands[:-1]]
    assert part.bands[-1].bottom == part.rows


@pytest.mark.parametrize("n", [23_000, 100_000, 300_000])
def test_blocks_of_a_band_do_the_same_work(n):
    part = SymmetricPlan(Gaussian(1.0), sizes(n, 3, 1, "float32")).parts[0]
    for band in part.bands:
        lengths = [
            stop - first for row, first, stop in visits(part) if band.top <= row < band.bottom
        ]
        # only the last piece of a row is shorter; how full the device is: tests/device/test_cuda_grid.py
        assert max(lengths) == band.per
        assert sum(a < band.per for a in lengths) <= band.bottom - band.top


@pytest.mark.parametrize(("n", "d", "t"), [(20_000, 2, 1), (200_000, 3, 4), (1_000_000, 3, 1)])
def test_partial_sums_are_bounded(n, d, t):
    part = SymmetricPlan(Gaussian(1.0), sizes(n, d, t, "float32")).parts[0]
    for band in part.bands:
        rows = band.bottom - band.top
        columns = 4 * t * rows * (n - band.top * part.targets)
        assert columns <= PARTIALS or rows == 1
        # pieces of FINEST * CAPACITY blocks, those of the longest row in every row, and one more for each row
        pieces = 4 * t * part.targets * band.pieces * rows
        assert pieces <= 4 * t * part.targets * (2 * FINEST * CAPACITY + rows)


def test_planes_hold_a_record_in_whole_loads():
    for dtype, widest in (("float32", 4), ("float64", 2)):
        for record in range(1, 30):
            widths = planes(record, dtype)
            assert record <= sum(widths) <= record + 1
            assert set(widths) <= {1, 2, widest}


# -- who uses it ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("n", "d", "t", "dtype", "expected"),
    [
        (100_000, 3, 1, "float32", True),
        (100_000, 2, 4, "float64", True),
        (100_000, 18, 1, "float32", True),
        (100_000, 19, 1, "float32", False),  # two targets a thread: shared memory is the limit
        (100_000, 3, 5, "float32", False),
        (100_000, 30, 1, "float32", False),
        (10_000, 3, 1, "float32", False),  # the device is not full
        (23_000, 3, 1, "float32", True),
        (22_000, 3, 1, "float32", False),
        (15_800, 10, 1, "float32", False),
        (16_000, 10, 1, "float32", True),
    ],
)
def test_where_it_pays(n, d, t, dtype, expected):
    assert pays(Gaussian(1.0), sizes(n, d, t, dtype)) is expected


def test_other_sums_are_not_symmetric():
    for op in ("gradient", "value_and_gradient", "logsumexp", "logsumexp_and_gradient"):
        other = dataclasses.replace(sizes(100_000, 3, 1, "float32"), operation=OPERATIONS[op])
        assert not pays(Gaussian(1.0), other)


def test_the_backend_uses_it_for_one_cloud_only():
    one = sizes(30_000, 3, 1, "float32")
    two = dataclasses.replace(one, clouds=dataclasses.replace(one.clouds, same=False))
    assert type(reduce_cuda.make_plan(Gaussian(1.0), one)) is SymmetricPlan
    assert type(reduce_cuda.make_plan(Gaussian(1.0), two)) is Plan


def test_plans_are_one_sided_unless_asked():
    sizes = {"n": 50_000, "m": 50_000, "d": 3}
    plan = gpu.launch_plan(Gaussian(1.0), "product", **sizes)
    assert not any("symmetric" in launch.entry for launch in plan.summing)
    plan = gpu.launch_plan(Gaussian(1.0), "product", **sizes, symmetric=True)
    assert all("symmetric" in launch.entry for launch in plan.summing)
    for launch in plan.launches:
        assert launch.block == (128, 1, 1)


def test_every_argument_of_a_launch_is_packed():
    X, V = cloud(3000, 2, 2, "float64")
    plan = gpu.launch_plan(
        Gaussian(1.0), "product", n=3000, m=3000, d=2, t=2, dtype="float64", symmetric=True
    )
    buffers = plan.pack(X, X, V)
    assert all(a in buffers for launch in plan.launches for a in launch.args)
    assert plan.unpack(buffers).shape == (3000, 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"op": "gradient"}, "symmetric needs op 'product'"),
        ({"m": 9}, "n = m, got n=10 and m=9"),
        ({"t": 5}, "t <= 4"),
        ({"d": 25}, "d <= 24"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    good = {"op": "product", "n": 10, "m": 10, "d": 3, "t": 1} | arguments
    with pytest.raises(ValueError, match=words):
        gpu.launch_plan(Gaussian(1.0), good.pop("op"), **good, symmetric=True)


def test_a_plan_wants_one_cloud():
    clouds = Clouds(10, 10, 3, "float32", False)
    with pytest.raises(ValueError, match="one cloud of points"):
        SymmetricPlan(Gaussian(1.0), Sizes(PRODUCT, clouds, 1))
    with pytest.raises(ValueError, match="choose one"):
        gpu.compile_ptx(Gaussian(1.0), "product", d=3, symmetric=True, listed=True)


if __name__ == "__main__":
    sys.exit(main())
