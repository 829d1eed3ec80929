"""Exact transport distances and the debiased entropic divergence against SciPy, closed answers and finite differences."""

import math

import numpy as np
import pytest
from scipy import optimize, stats

import gpukoop as gk
from gpukoop import metrics
from gpukoop.flow import plans


def clouds(n, m, d, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)), rng.standard_normal((m, d)) + 1.0, rng


def programme(X, Y, a, b, order):
    """The transport problem typed as a linear programme, sharing nothing with the package."""
    n, m = len(X), len(Y)
    cost = np.linalg.norm(X[:, None] - Y[None], axis=2) ** order
    rows = np.zeros((n + m, n * m))
    for i in range(n):
        rows[i, i * m : (i + 1) * m] = 1
    for j in range(m):
        rows[n + j, j::m] = 1
    found = optimize.linprog(
        cost.ravel(), A_eq=rows[:-1], b_eq=np.concatenate([a, b])[:-1], method="highs"
    )
    return found.fun ** (1 / order)


@pytest.mark.parametrize("solver", ["simplex", "programme"])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("d", [1, 3])
def test_weighted_distances_of_unequal_clouds(monkeypatch, solver, order, d):
    if solver == "programme":
        monkeypatch.setattr(plans, "has_simplex", lambda: False)
    else:
        pytest.importorskip("ot")
    X, Y, rng = clouds(23, 17, d)
    a, b = rng.random(23), rng.random(17)
    a, b = a / a.sum(), b / b.sum()
    want = programme(X, Y, a, b, order)
    assert metrics.wasserstein(X, Y, order=order, weights=(7 * a, b)) == pytest.approx(want, 1e-9)
    uniform = programme(X, Y, np.full(23, 1 / 23), np.full(17, 1 / 17), order)
    assert metrics.wasserstein(X, Y, order=order) == pytest.approx(uniform, rel=1e-9)


def test_the_simplex_is_what_ran(monkeypatch):
    pytest.importorskip("ot")
    ran = []
    original = plans._simplex
    monkeypatch.setattr(plans, "_simplex", lambda *a: ran.append(1) or original(*a))
    X, Y, _ = clouds(1_000, 999, 2)
    unequal = metrics.wasserstein(X, Y)  # was refused
    assert ran
    # one point of a thousand more: the plans differ by at most its share of the largest squared distance
    equal = metrics.wasserstein(X[:999], Y)
    assert abs(unequal**2 - equal**2) < 2 / 1_000 * ((X[:, None] - Y[None]) ** 2).sum(2).max()


def test_order_one_on_the_line_is_scipys():
    X, Y, rng = clouds(50, 31, 1)
    a, b = rng.random(50), rng.random(31)
    a[3] = 0.0
    want = stats.wasserstein_distance(X[:, 0], Y[:, 0], a, b)
    assert metrics.wasserstein(X, Y, order=1, weights=(a, b)) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("factor", [1e-200, 1e200])
def test_units_do_not_matter(factor):
    X, Y, _ = clouds(40, 40, 2)
    want = metrics.wasserstein(X, Y)
    assert metrics.wasserstein(factor * X, factor * Y) == pytest.approx(factor * want, rel=1e-12)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda X, Y: metrics.wasserstein(X, Y, order=3), "order is 3, expected 1 or 2"),
        (lambda X, Y: metrics.wasserstein(X, Y, weights=X), "weights is a pair"),
        (
            lambda X, Y: metrics.wasserstein(X, Y, weights=(-np.ones(6), None)),
            "must not be negative",
        ),
        (
            lambda X, Y: metrics.wasserstein(X, Y, weights=(np.zeros(6), None)),
            "not all weights may be zero",
        ),
        (lambda X, Y: metrics.wasserstein(X, Y, weights=(np.ones(5), None)), r"has shape \(5,\)"),
        (lambda X, Y: metrics.wasserstein(1e307 * X, -1e307 * X), "farther apart"),
        (lambda X, Y: metrics.sinkhorn_divergence(X, Y, blur=0.0), "blur"),
    ],
)
def test_bad_input_is_one_sentence(call, words):
    X, Y = np.arange(12.0).reshape(6, 2), np.ones((4, 2))
    with pytest.raises(ValueError, match=words):
        call(X, Y)


def test_without_the_simplex_large_plans_name_it(monkeypatch):
    monkeypatch.setattr(plans, "has_simplex", lambda: False)
    with pytest.raises(ValueError, match=r"pip install gpukoop\[ot\]"):
        metrics.wasserstein(np.zeros((800, 2)), np.ones((900, 2)))


def test_divergence_vanishes_and_has_its_limits():
    X, Y, _ = clouds(60, 60, 2)
    assert metrics.sinkhorn_divergence(X, X[::-1].copy(), blur=0.3) == pytest.approx(0.0, abs=1e-7)
    # As the blur grows, half the squared gap of the means; as it falls, half the squared distance.
    gap = ((X.mean(0) - Y.mean(0)) ** 2).sum() / 2
    assert metrics.sinkhorn_divergence(X, Y, blur=300.0) == pytest.approx(gap, rel=1e-3)
    half = metrics.wasserstein(X, Y) ** 2 / 2
    assert metrics.sinkhorn_divergence(X, Y, blur=0.05) == pytest.approx(half, rel=0.02)


def test_divergence_gradient_is_its_derivative():
    X, Y, rng = clouds(12, 9, 2)
    weights = (rng.random(12) + 0.1, rng.random(9) + 0.1)
    how = {"blur": 0.7, "weights": weights, "tol": 1e-12, "n_iter": 5_000}
    value, slope = metrics.sinkhorn_divergence(X, Y, return_gradient=True, **how)
    assert value == metrics.sinkhorn_divergence(X, Y, **how)
    direction = rng.standard_normal(X.shape)
    h = 1e-4
    ahead, behind = (
        metrics.sinkhorn_divergence(X + s * h * direction, Y, **how) for s in (1.0, -1.0)
    )
    # central differences: an error of h^2 times the third derivative, and 1e-12 of the solver over h
    assert (ahead - behind) / (2 * h) == pytest.approx(float((slope * direction).sum()), abs=1e-6)


def test_divergence_weights_are_repetitions_and_dtype_follows():
    X, Y, _ = clouds(10, 8, 2)
    w = np.array([1.0, 2, 1, 3, 1, 1, 2, 1, 1, 1])
    repeated = np.repeat(X, w.astype(int), axis=0)
    want = metrics.sinkhorn_divergence(repeated, Y, blur=0.5, tol=1e-10)
    got = metrics.sinkhorn_divergence(X, Y, blur=0.5, weights=(w, None), tol=1e-10)
    assert got == pytest.approx(want, rel=1e-7)
    slope = metrics.sinkhorn_divergence(
        X.astype(np.float32), Y, blur=0.5, weights=(w, None), return_gradient=True
    )[1]
    assert slope.dtype == np.float32
    assert slope.shape == X.shape


def test_weighted_exact_flows_take_sizes_that_were_refused():
    pytest.importorskip("ot")
    rng = np.random.default_rng(0)
    X, Z = rng.standard_normal((900, 2)), rng.standard_normal((800, 2)) + 2.0
    w = rng.random(900)
    flow = gk.WassersteinFlow(coupling="exact", n_iter=1, step_size=1.0, random_state=0)
    moved = flow.fit(X, sample_weight=w).transport(Z)
    want = (w / w.sum()) @ X  # one full step to barycentres keeps the mean of the samples
    assert np.abs(moved.mean(axis=0) - want).max() < 1e-10
    assert math.isfinite(metrics.wasserstein(moved, X, weights=(None, w)))
