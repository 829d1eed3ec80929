"""Local sums on CUDA: what is left out is at most tol times the sum of absolute values, whatever the data.

Run as a program under NUMBA_ENABLE_CUDASIM=1 it sums a small problem in the simulator, thread by thread.
"""

import sys
from pathlib import Path

import numpy as np
import oracle
import pytest
from local_sums import (
    DATA,
    clusters,
    coinciding,
    logarithms,
    lower_thresholds,
    make_local,
    one_heavy_cell,
    problem,
)

from gpukoop import cuda as gpu
from gpukoop.kernels import cells
from gpukoop.kernels.cuda import reduce as reduce_cuda
from gpukoop.kernels.cuda.packing import Clouds
from gpukoop.kernels.cuda.pairs import lists as cells_cuda
from gpukoop.kernels.cuda.pairs import rates
from gpukoop.kernels.cuda.pairs.plan import Plan, Sizes
from gpukoop.kernels.formula.catalogue import (
    Energy,
    Gaussian,
    InverseMultiquadric,
    Laplace,
    Matern32,
)
from gpukoop.kernels.operation import OPERATIONS, PRODUCT
from gpukoop.testing import tolerance

OPS = ("product", "gradient", "value_and_gradient", "logsumexp")
TOL = 1e-4


@pytest.fixture
def small(monkeypatch):
    lower_thresholds(monkeypatch.setattr)


# -- the lists ---------------------------------------------------------------------------------------
class Lists:
    """Stands for the device: sums over the lists of the first pass in float64, and what the second one visits."""

    xp = np

    def start(self, local, log_k):
        self.local, self.log_k, self.visited = local, log_k, []
        local.run()

    def run(self, plan, buffers):
        for part in plan.parts:
            mask = self.mask(part, buffers)
            self.visited.append(mask)
            log_k = np.where(mask, self.log_k, -np.inf)
            V = self.local.V
            if self.local.exponent:
                value = np.logaddexp.reduce(log_k + V, axis=1)
            else:
                value = np.exp(log_k) @ abs(V)
            for name, out in (("value", value.ravel()), ("slope", 0.0)):
                if name in part.results:
                    buffers[part.name(name)][...] = out

    def mask(self, part, buffers):
        """Return which pairs of points the lists visit, after checking that no tile comes twice."""
        bounds, visits = (buffers[part.name(name)].astype(int) for name in ("bounds", "visits"))
        assert len(bounds) == part.rows * part.splits + 1
        counts = np.diff(bounds[:: part.splits])
        table = np.zeros((part.rows, part.tiles), bool)
        table[np.repeat(np.arange(part.rows), counts), visits[: bounds[-1]]] = True
        assert table.sum() == bounds[-1] == counts.sum()
        n, m = self.log_k.shape
        return table.repeat(part.rows_of_block, 0)[:n].repeat(part.shape.tile, 1)[:, :m]


@pytest.mark.parametrize("make", DATA)
@pytest.mark.parametrize("op", ["product", "value_and_gradient", "logsumexp"])
def test_what_is_left_out_is_within_tol(make, op, small):
    """At the real sizes of tiles and blocks, from the lists alone: no rounding, and no tolerance but tol."""
    X, Y, V, scale = problem(make, 2100, 4001, 2)
    V = logarithms(V) if op == "logsumexp" else V
    local = make_local(Gaussian(scale), op, X, Y, V, TOL, Lists())
    q = ((local.X[:, None].astype(float) - local.Y[None].astype(float)) ** 2).sum(-1) / scale**2
    lists = local.engine
    lists.start(local, -q / 2)
    first, second = lists.visited
    assert first.mean() < 1
    assert second.mean() < 1, "nothing was left out"
    if op == "logsumexp":
        total, left = (
            np.logaddexp.reduce(a + local.V, axis=1)
            for a in (-q / 2, np.where(second, -q / 2, -np.inf))
        )
        assert np.all(total - left <= TOL)
        return
    missing = np.where(second, 0.0, np.exp(-q / 2))
    within = TOL * (np.exp(-q / 2) @ abs(local.V))
    assert np.all(missing @ abs(local.V) <= within)
    if "gradient" in op:
        assert np.all((missing * np.sqrt(q)) @ abs(local.V) <= within)


@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_weights_beyond_the_range_of_floats_have_logarithms(shift, small):
    X, Y, _, scale = problem(clusters, 2100, 2001, 2)
    b = np.where(Y[:, 0] > 5, shift, 0.0).astype("float32")
    local = make_local(Gaussian(scale), "logsumexp", X, Y, b, TOL, Lists())
    assert np.isfinite(local.near[0].masses).all()
    q = ((local.X[:, None].astype(float) - local.Y[None].astype(float)) ** 2).sum(-1) / scale**2
    lists = local.engine
    lists.start(local, -q / 2)
    kept = np.where(lists.visited[1], -q / 2, -np.inf)
    total, left = (np.logaddexp.reduce(a + local.V, axis=1) for a in (-q / 2, kept))
    assert np.all(total - left <= TOL)


def test_sums_that_overflowed_leave_nothing_out(small):
    X, Y, V, scale = problem(coinciding, 2100, 2001, 2)
    (far,) = make_local(Gaussian(scale), "product", X, Y, V, TOL, Lists()).far
    for sums, share in ((np.inf, 1), (np.nan, 1), (300.0, 0)):  # what exp(300) bounds is everything
        bounds, _ = far.lists(far.rule(np.full((1, 2100), sums), TOL))
        assert bounds[-1] == share * far.part.rows * far.part.tiles


# -- where today's path stays --------------------------------------------------------------------------
def test_nothing_to_save_is_no_plan(monkeypatch):
    X, Y, V, _ = problem(clusters, 300, 400, 2)

    def local(kernel=None, op="product", tol=TOL, d=2):
        points = (np.tile(a, (1, d // 2)) for a in (X, Y))
        return make_local(kernel or Gaussian(0.1), op, *points, V, tol, Lists())

    assert local() is None, "too few pairs"
    lower_thresholds(monkeypatch.setattr)
    assert local() is not None
    assert local(tol=None) is None
    assert local(op="logsumexp_and_gradient") is None, "has no bound"
    assert local(d=26) is None, "has no lists"
    for kernel in (Energy(), InverseMultiquadric(1.0), Gaussian(10.0)):
        assert local(kernel) is None, "does not decay within the cloud"


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("n", [900, 2100])
@pytest.mark.parametrize("tol", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("scale", [0.03, 0.1, 0.3, 1.0])
def test_lists_are_never_slower_than_all_pairs_by_the_rates(scale, tol, n, same, small):
    """The share of pairs that lists must visit is known before they are made: all pairs where it pays."""
    rng = np.random.default_rng(n)
    X = rng.normal(size=(n, 2)).astype("float32")
    Y = X if same else rng.normal(size=(n, 2)).astype("float32")
    V = rng.normal(size=n).astype("float32")
    sizes = Sizes(PRODUCT, Clouds(n, n, 2, "float32", same), 1, tol)
    made = cells_cuda.make_local(Gaussian(scale), sizes, X, Y, V, Lists(), same)
    k = np.exp(-((X[:, None].astype(float) - Y) ** 2).sum(-1) / (2 * scale**2)) * abs(V)
    least = (k > tol * k.mean(axis=1, keepdims=True)).mean()
    found = cells_cuda.visited(Gaussian(scale), X, Y, V, tol, False, np)
    assert found == pytest.approx(least, abs=5 * np.sqrt(least / 256) + 0.01)  # rows of a sample
    if made is not None:
        assert rates.listed_cost(found) < rates.exact_cost(same)


@pytest.mark.parametrize(("share", "apart", "once"), [(0.4, True, True), (0.6, True, False)])
def test_a_share_pays_against_the_way_that_would_be_taken(share, apart, once):
    """One cloud is summed at twice the rate, so half of its pairs are no gain."""
    assert (rates.listed_cost(share) < rates.exact_cost(False)) is apart
    assert (rates.listed_cost(share) < rates.exact_cost(True)) is once
    assert not rates.listed_cost(1.0) < rates.exact_cost(False)


def test_a_plan_has_lists_only_where_asked():
    clouds = Clouds(300, 400, 3, "float32", False)
    plain, listed = (
        Plan(Gaussian(1.0), Sizes(PRODUCT, clouds, 1, listed=listed)) for listed in (False, True)
    )
    assert not any("visits" in launch.args for launch in plain.launches)
    assert all("visits" in a.args for a in listed.summing if "gaussian" in a.entry)
    common = {a.entry for a in plain.summing} & {a.entry for a in listed.summing}
    assert common <= {"add_product_float32"}


@pytest.mark.parametrize("X", [np.zeros((333, 2)), np.arange(17.0)[:, None] ** 3, np.ones((1, 3))])
def test_cells_hold_points_that_coincide(X):
    made = cells.arrange(X, 32)
    np.testing.assert_array_equal(np.sort(made.order), np.arange(len(X)))
    low, high = cells.boxes(X[made.order], 32)
    np.testing.assert_array_equal(low, made.low)
    np.testing.assert_array_equal(high, made.high)


def test_lists_of_the_ptx_need_few_features():
    with pytest.raises(ValueError, match="listed needs d <= 24"):
        gpu.compile_ptx(Gaussian(1.0), "product", d=25, listed=True)


# -- the code ------------------------------------------------------------------------------------------
def complaint(kernel, op, X, Y, V, to_device=np.asarray, to_host=np.asarray):
    """Return what is wrong with a local sum, or an empty string."""
    V = logarithms(V).astype(X.dtype) if op == "logsumexp" else V
    visited = []
    lists = cells_cuda.Pairs.lists

    def spy(self, keep):
        found = lists(self, keep)
        visited.append(int(found[0][-1]) / (self.part.rows * self.part.tiles))
        return found

    cells_cuda.Pairs.lists = spy
    try:
        points = (to_device(a) for a in (X, Y, V))
        got = reduce_cuda.reduce(kernel, OPERATIONS[op], *points, tol=TOL)
    finally:
        cells_cuda.Pairs.lists = lists
    if len(visited) % 2 or not visited or not max(visited) < 1:
        return f"visited {visited}"
    exact = getattr(oracle, op)(oracle.terms_of(kernel), X, Y, V)
    bound = tolerance(kernel, X, Y, V, op, tol=TOL)
    if not isinstance(got, tuple):
        got, exact, bound = (got,), (exact,), (bound,)
    for result, truth, within in zip(got, exact, bound, strict=True):
        excess = np.max(np.abs(to_host(result) - truth) / (within + 1e-300))
        if result.shape != truth.shape or result.dtype != X.dtype or not excess <= 1:
            return f"{result.shape} {result.dtype}, error is {excess:.3g} times the tolerance"
    return ""


def cases(n, m):
    """Yield (name, kernel, op, X, Y, V): all data, all operations, all forms of q; no size is that of a block."""
    for i, make in enumerate(DATA):
        for op in OPS if make is clusters else (OPS[3] if i % 2 else OPS[2],):
            if op == "logsumexp" and make is clusters:
                continue  # the oracle's long double underflows between clusters
            X, Y, V, scale = problem(make, n, m, 2, "float64" if i == 3 else "float32")
            kernel = (Gaussian(scale), Laplace(scale / 3), Matern32(scale / 2))[i % 3]
            yield f"{make.__name__} {op}", kernel, op, X, Y, V
    X, Y, V, scale = problem(one_heavy_cell, n, m, 3)
    two = Gaussian(scale) + 0.5 * Matern32(scale / 6)
    yield "sum of kernels", two, "value_and_gradient", X, Y, V
    yield "logsumexp of a sum of kernels", two, "logsumexp", X, Y, V + 0.1


def main():
    lower_thresholds(setattr)
    cells_cuda.NEAR = 3
    done = [(case[0], complaint(*case[1:])) for case in cases(130, 210)]
    wrong = [f"{name}: {words}" for name, words in done if words]
    sys.stdout.write("\n".join([*wrong, f"{len(done)} checks, {len(wrong)} failed"]) + "\n")
    return bool(wrong)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("op", "d", "t"),
    [("product", 3, 1), ("product", 2, 4), ("gradient", 3, 1), ("logsumexp", 3, 1)],
)
def test_a_list_costs_the_pair_loop_nothing(op, d, t):
    pytest.importorskip("numba_cuda")
    sys.path.append(str(Path(__file__).parents[2]))
    from bench import sass

    if sass.missing() is not None:
        pytest.skip(sass.missing())
    plain, listed = (
        sass.count(gpu.compile_ptx(Gaussian(1.0), op, d=d, t=t, form="exact", listed=listed))[0]
        for listed in (False, True)
    )
    assert listed["slots"] <= 1.05 * plain["slots"]
    assert listed["spills"] == listed["local"] == 0


@pytest.mark.slow
def test_local_sums_in_the_simulator(run_in_simulator):
    run_in_simulator(__file__)


@pytest.mark.gpu
def test_local_sums_on_a_device(small, require):
    require("numba-cuda")
    cupy = pytest.importorskip("cupy")
    wrong = [
        (case[0], words)
        for case in cases(2100, 3001)
        if (words := complaint(*case[1:], cupy.asarray, cupy.asnumpy))
    ]
    assert not wrong


if __name__ == "__main__":
    sys.exit(main())
