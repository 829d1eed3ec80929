"""Transport with the costs in memory: the same numbers as the lazy sums, and as float64 sums typed by hand."""

import numpy as np
import pytest

import gpukoop as gk
from gpukoop.flow.sinkhorn import Problem, problem, solve, solve_symmetric, transport_value
from gpukoop.flow.sinkhorn_dense import LARGEST_DENSE, DenseProblem, is_small


def clouds(n, m, d, dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    Z = rng.normal(size=(n, d)).astype(dtype)
    return Z, (1.3 * rng.normal(size=(m, d)) + 0.7).astype(dtype)


def test_who_keeps_costs():
    Z, X = clouds(20, 30, 2)
    assert isinstance(problem(Z, X), DenseProblem)
    assert isinstance(problem(Z, X, backend=None, tol=None), DenseProblem)
    assert not isinstance(problem(Z, X, backend="numba-cpu"), DenseProblem)
    assert not isinstance(problem(Z, X, tol=1e-4), DenseProblem)
    many = np.zeros((LARGEST_DENSE // 10 + 1, 1))
    assert not is_small(many, many[:10], {})


@pytest.mark.parametrize("d", [1, 3, 40])
@pytest.mark.parametrize(("dtype", "digits"), [("float64", 1e-11), ("float32", 2e-5)])
def test_half_steps_against_sums_by_hand(d, dtype, digits):
    Z, X = clouds(17, 23, d, dtype)
    rng = np.random.default_rng(1)
    p = problem(Z, X)
    costs = ((Z[:, None].astype(float) - X) ** 2).sum(axis=2) / 2
    for blur in (3.0, 0.8, 3.0):  # there and back: a reference belongs to one blur
        b, a = rng.normal(size=23), rng.normal(size=17)
        rows = np.log(np.exp(b - costs / blur**2).sum(axis=1))
        columns = np.log(np.exp(a[:, None] - costs / blur**2).sum(axis=0))
        np.testing.assert_allclose(
            p.rows(b.astype(dtype), blur), rows, rtol=digits, atol=50 * digits
        )
        np.testing.assert_allclose(
            p.columns(a.astype(dtype), blur), columns, rtol=digits, atol=50 * digits
        )


def test_far_columns_and_far_references_are_seen():
    # In float32 a column 90 units of the exponent below every row's maximum leaves no trace in the matrix.
    Z = np.array([[0.0], [1.0]], dtype="float32")
    X = np.array([[0.5], [40.0]], dtype="float32")
    p = problem(Z, X)
    found = p.columns(np.zeros(2, dtype="float32"), 1.0)
    exact = [np.logaddexp(-0.125, -0.125), np.logaddexp(-(40.0**2) / 2, -(39.0**2) / 2)]
    np.testing.assert_allclose(found, exact, rtol=1e-5)
    b = np.array([0.0, 790.0], dtype="float32")  # the far sample now outweighs the near one
    rows = [np.logaddexp(-0.125, 790.0 - 800.0), np.logaddexp(-0.125, 790.0 - 39.0**2 / 2)]
    np.testing.assert_allclose(p.rows(b, 1.0), rows, rtol=1e-5)


@pytest.mark.parametrize("blur", [1.0, 0.2])
def test_potentials_and_maps_are_those_of_the_lazy_sums(blur):
    Z, X = clouds(60, 80, 3)
    weights = np.random.default_rng(2).random(80)
    weights[5] = 0.0
    weights /= weights.sum()
    kept, lazy = problem(Z, X, None, weights), problem(Z, X, None, weights, backend="numpy")
    assert type(lazy) is Problem
    ours, theirs = (solve(p, blur, n_iter=2_000, tol=1e-9) for p in (kept, lazy))
    assert max(ours.error, theirs.error) <= 1e-9
    assert transport_value(kept, ours) == pytest.approx(transport_value(lazy, theirs), rel=1e-8)
    np.testing.assert_allclose(
        kept.feasible_map(ours, blur), lazy.feasible_map(theirs, blur), atol=1e-6
    )
    own, lazily = problem(X, X, weights, weights), problem(X, X, weights, weights, backend="numpy")
    f, g = (solve_symmetric(p, blur, n_iter=500, tol=1e-9) for p in (own, lazily))
    seen = weights > 0
    np.testing.assert_allclose(f.f[seen], g.f[seen], atol=1e-8)


def test_the_flow_says_who_sums():
    X = clouds(30, 40, 2)[1]
    assert gk.WassersteinFlow().fit(X).backend_ == "numpy"
    assert gk.WassersteinFlow(backend="numba-cpu").fit(X).backend_ == "numba-cpu"


def test_iterations_ask_blas_for_one_thread(monkeypatch):
    # Their products take microseconds, and threads that wait for each other on a busy machine took 30 times all else.
    from gpukoop import blas
    from gpukoop.flow import sinkhorn
    from gpukoop.flow.acceleration import Anderson

    users, add = [], Anderson.add

    def watched(*arguments):
        users.append(blas._limit.users)
        return add(*arguments)

    monkeypatch.setattr(Anderson, "add", watched)
    rng = np.random.default_rng(3)
    p = sinkhorn.problem(rng.normal(size=(40, 2)), rng.normal(size=(50, 2)) + 1)
    sinkhorn.solve(p, 0.2, n_iter=100, tol=1e-6)
    assert len(users) > 5
    assert min(users) == 1
    assert blas._limit.users == 0
