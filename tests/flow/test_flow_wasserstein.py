"""Wasserstein-2 flows: P1, P2, P12, weights, unequal sizes, minibatches, memory and digits."""

import itertools
import tracemalloc
import warnings
from functools import partial

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.neighbors import KNeighborsClassifier

import gpukoop as gk
from gpukoop import datasets, metrics
from gpukoop.flow import plans
from gpukoop.flow.coupling import exact_map, gaussian_map
from gpukoop.flow.memory import Kept
from gpukoop.flow.sinkhorn import problem, solve, transport_value
from gpukoop.flow.wasserstein import SinkhornField, exact_field

# Closed laws hold for numbers in the units of the points.
WassersteinFlow = partial(gk.WassersteinFlow, units="absolute")

RNG = np.random.default_rng(0)


def clouds(n=60, m=60, d=2, gap=2.0, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)), rng.normal(size=(m, d)) * 0.5 + gap


@pytest.mark.parametrize("d", [1, 2])
def test_the_exact_flow_stays_on_the_geodesic(d):
    Z, X = clouds(d=d)
    h, path = 0.1, []
    flow = WassersteinFlow("exact", step_size=h, n_iter=30).fit(X)
    flow.transport(Z, callback=lambda i, Y: path.append(Y.copy()))
    start = metrics.wasserstein(Z, X)
    target, _ = exact_map(Z, X)
    for k, Y in enumerate(path, 1):
        assert abs(metrics.wasserstein(Y, X) / ((1 - h) ** k * start) - 1) < 1e-12
        assert np.abs(exact_map(Y, X)[0] - target).max() < 1e-12
        assert abs(flow.history_["energy"][k] / (((1 - h) ** k * start) ** 2 / 2) - 1) < 1e-12


def test_one_assignment_serves_the_whole_flow(monkeypatch):
    from gpukoop.flow import coupling

    calls = []
    original = coupling._assignment
    monkeypatch.setattr(coupling, "_assignment", lambda z, x: calls.append(1) or original(z, x))
    Z, X = clouds()
    WassersteinFlow("exact", n_iter=20).fit(X).transport(Z)
    assert len(calls) == 1


def test_normal_laws_contract_in_the_bures_distance():
    rng = np.random.default_rng(0)
    h, d = 0.3, 3
    Z = rng.normal(size=(200, d)) @ rng.normal(size=(d, d))
    A = rng.normal(size=(d, d))
    mean, S = np.array([1.0, 2.0, -1.0]), A @ A.T + 0.1 * np.eye(d)
    before = None
    for _ in range(10):
        target, energy = gaussian_map(Z, mean, S)
        distance = metrics.gaussian_wasserstein(Z.mean(axis=0), np.cov(Z.T, bias=True), mean, S)
        assert abs(energy - distance**2 / 2) < 1e-9
        if before is not None:
            assert abs(distance / before - (1 - h)) < 1e-10
        before = distance
        Z = Z + h * (target - Z)


@pytest.mark.parametrize("h", [0.2, 1.0])
def test_unequal_sizes_lose_at_least_what_the_step_pays(h):
    Z, X = clouds(12, 17)
    for _ in range(8):
        target, energy = exact_map(Z, X)
        cost = ((Z - target) ** 2).sum(axis=1).mean()
        assert abs(2 * energy - metrics.wasserstein(Z, X) ** 2) < 1e-10
        Z = Z + h * (target - Z)
        assert metrics.wasserstein(Z, X) ** 2 <= 2 * energy - h * (2 - h) * cost + 1e-12


def test_weights_are_repetitions():
    Z, X = clouds(24, 6)
    times = np.array([1, 2, 3, 1, 4, 1])
    w, repeated = times / times.sum(), np.repeat(X, times, axis=0)
    a, b = exact_map(Z, X, w), exact_map(Z, repeated)
    assert np.abs(a[0] - b[0]).max() < 1e-9
    assert abs(a[1] - b[1]) < 1e-9
    ends = [
        WassersteinFlow("sinkhorn", blur=0.3, n_iter=3).fit(X, sample_weight=times).transport(Z),
        WassersteinFlow("sinkhorn", blur=0.3, n_iter=3).fit(repeated).transport(Z),
    ]
    assert np.abs(ends[0] - ends[1]).max() < 1e-7


@pytest.mark.parametrize("blur", [0.55, 1.0, 2.2])
def test_the_sinkhorn_velocity_is_minus_n_times_the_gradient(blur):
    Z, X = clouds(15, 20, gap=0.5)
    field = SinkhornField(X, blur=blur, n_iter=2_000, tol=1e-13)
    motion = field(Z, Kept(), RNG, 0)
    for i in (0, 7):
        for c in range(2):
            e = np.zeros_like(Z)
            e[i, c] = 1e-4
            up, down = (field(Z + s * e, Kept(), RNG, 0).energy for s in (1, -1))
            slope = len(Z) * (up - down) / 2e-4
            assert abs(motion.velocity[i, c] + slope) < 1e-6 * np.abs(motion.velocity).max() + 1e-7


@pytest.mark.parametrize("blur", [0.02, 0.1, 0.3, 1.0, 10.0])
@pytest.mark.parametrize("backend", ["numpy", "numba-cpu"])
def test_the_gap_of_the_means_contracts_by_one_minus_h(blur, backend, require):
    require(backend)
    Z, X = clouds(30, 40)
    h, gaps = 0.25, []
    gaps.append(Z.mean(axis=0) - X.mean(axis=0))
    # Twenty iterations are far from converged at the small blurs: the law holds all the same.
    flow = WassersteinFlow(
        "sinkhorn", blur=blur, step_size=h, n_iter=4, backend=backend, sinkhorn_iter=20
    ).fit(X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        flow.transport(Z, callback=lambda i, Y: gaps.append(Y.mean(axis=0) - X.mean(axis=0)))
    for before, after in itertools.pairwise(gaps):
        assert np.abs(after - (1 - h) * before).max() < 1e-12
    assert flow.backend_ == backend


def test_large_blur_is_the_gap_of_the_means_and_small_blur_the_assignment():
    Z, X = clouds(20, 20)
    gap = Z.mean(axis=0) - X.mean(axis=0)
    far = SinkhornField(X, blur=100.0)(Z, Kept(), RNG, 0)
    assert abs(far.energy / (gap @ gap / 2) - 1) < 1e-3
    # Particles near a grid, shuffled and shifted: a swap of two costs far more than eps.
    X = np.stack(np.meshgrid(*[np.arange(4.0)] * 2), axis=-1).reshape(-1, 2)
    rng = np.random.default_rng(0)
    Z = X[rng.permutation(16)] + 0.1 * rng.normal(size=X.shape) + [2.0, 1.0]
    near = SinkhornField(X, blur=0.05)(Z, Kept(), RNG, 0)
    exact, energy = exact_map(Z, X)
    assert np.abs(near.velocity - (exact - Z)).max() < 1e-3
    assert abs(near.energy / energy - 1) < 1e-3


def test_without_debiasing_the_flow_collapses_to_the_deconvolution():
    # A normal target in one dimension by quantiles; the law is max(sigma^2 - eps, 0).
    from scipy.stats import norm

    X = norm.ppf((np.arange(160) + 0.5) / 160)[:, None] * 0.6
    Z = norm.ppf((np.arange(120) + 0.5) / 120)[:, None] * 0.5
    for eps in (0.1, 0.2):
        flow = WassersteinFlow(
            "sinkhorn", blur=eps**0.5, debias=False, step_size=0.5, n_iter=40
        ).fit(X)
        assert flow.transport(Z).var() == pytest.approx(X.var() - eps, rel=1e-2)
    flow = WassersteinFlow("sinkhorn", blur=0.5**0.5, debias=False, step_size=1.0, n_iter=60)
    assert flow.fit(X).transport(Z).var() < 1e-4
    debiased = WassersteinFlow("sinkhorn", blur=0.5**0.5, step_size=1.0, n_iter=60).fit(X)
    assert debiased.transport(Z).var() == pytest.approx(X.var(), rel=2e-2)


def test_values_agree_with_a_dense_solver():
    Z, X = clouds(25, 30, gap=0.5)
    blur = 0.4
    eps = blur**2
    C = ((Z[:, None] - X[None]) ** 2).sum(axis=-1) / 2
    g = np.zeros(30)
    for _ in range(5_000):
        f = -eps * np.log(np.exp((g - C) / eps).mean(axis=1))
        g = -eps * np.log(np.exp((f[:, None] - C) / eps).mean(axis=0))
    p = problem(Z, X)
    found = solve(p, blur, n_iter=500, tol=1e-12)
    assert abs(transport_value(p, found) - f.mean() - g.mean()) < 1e-9
    P = np.exp((f[:, None] + g - C) / eps) / 25 / 30
    slope = p.operator(blur).logsumexp_and_gradient(found.g / eps + p.log_b)[1]
    assert np.abs(Z + eps * slope - 25 * P @ X).max() < 1e-9


def test_energy_falls_and_potentials_are_warm():
    Z, X = clouds(100, 120)
    flow = WassersteinFlow("sinkhorn", blur=0.3, step_size=0.1, n_iter=10).fit(X)
    flow.transport(Z)
    assert np.diff(flow.history_["energy"]).max() < 0
    assert len(flow.history_["energy"]) == 11
    cold = solve(problem(Z, X), 0.3, n_iter=200, tol=1e-9)
    assert flow.history_["sinkhorn_iter"][1:].mean() <= cold.n_iter + 12


def test_marginals_that_are_not_met_are_warned_about():
    Z, X = clouds(40, 40)
    flow = WassersteinFlow("sinkhorn", blur=0.02, n_iter=1, sinkhorn_iter=1).fit(X)
    with pytest.warns(ConvergenceWarning, match="raise sinkhorn_iter or blur"):
        flow.transport(Z)


def test_no_array_of_pairs_exists():
    n = 3_000  # the matrix would be 72 MB
    Z, X = (A.astype(np.float32) for A in clouds(n, n))
    flow = WassersteinFlow("sinkhorn", blur=1.0, n_iter=1, backend="numba-cpu").fit(X[:50])
    flow.transport(Z[:50])
    tracemalloc.start()
    flow.fit(X).transport(Z)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6


def test_large_exact_couplings_are_refused_with_the_way_out(monkeypatch):
    monkeypatch.setattr(plans, "has_simplex", lambda: False)
    Z, X = clouds(700, 701)
    with pytest.raises(ValueError, match="sinkhorn"):
        WassersteinFlow("exact", n_iter=1).fit(X).transport(Z)


def test_minibatches_are_biased_and_larger_ones_less_so():
    Z, X = clouds(200, 200)
    floor = []
    for size in (10, 50):
        flow = WassersteinFlow(
            "exact", batch_size=size, step_size=0.3, n_iter=40, random_state=0
        ).fit(X)
        floor.append(metrics.wasserstein(flow.transport(Z), X))
    full = WassersteinFlow("exact", step_size=0.3, n_iter=40).fit(X)
    assert floor[0] > floor[1] > metrics.wasserstein(full.transport(Z), X)


def test_sinkhorn_and_exact_flows_agree_at_small_blur():
    Z, X = clouds(60, 60)
    exact = WassersteinFlow("exact", step_size=0.5, n_iter=8).fit(X).transport(Z)
    close = WassersteinFlow("sinkhorn", blur=0.05, step_size=0.5, n_iter=8).fit(X).transport(Z)
    assert metrics.wasserstein(exact, close) < 0.05 * metrics.wasserstein(Z, X)


def test_labels_are_carried_from_one_rendering_of_digits_to_another():
    source_only, moved = [], []
    for seed in range(5):
        A, labels = datasets.digits(400, random_state=seed, return_labels=True)
        B, truth = datasets.digits(
            800, random_state=100 + seed, rendering="target", return_labels=True
        )
        flow = WassersteinFlow("exact", step_size=0.5, n_iter=10).fit(B[:400])
        for Z, scores in ((A, source_only), (flow.transport(A), moved)):
            nearest = KNeighborsClassifier(1).fit(Z, labels)
            scores.append(nearest.score(B[400:], truth[400:]))
    gain = np.array(moved) - source_only
    assert (gain > 0).all()
    assert np.mean(gain) > 0.05


def test_a_generator_carries_labels_from_one_rendering_to_another():
    """A map trained on the labelled digits takes also those that it was not trained on."""
    gains = []
    for seed in range(3):
        A, labels = datasets.digits(600, random_state=seed, return_labels=True)
        B, truth = datasets.digits(
            800, random_state=100 + seed, rendering="target", return_labels=True
        )
        G = gk.maps.RandomFeatureMap(256, reg=1e-4, random_state=0)
        flow = WassersteinFlow(
            "exact", step_size=0.5, n_iter=3, generator=G, persistence=float("inf")
        ).fit(B[:400], source=A[:400])
        for rows in (slice(400), slice(400, 600)):
            before, after = (
                KNeighborsClassifier(1).fit(Z, labels[rows]).score(B[400:], truth[400:])
                for Z in (A[rows], flow.transport(A[rows]))
            )
            gains.append(after - before)
    assert min(gains) > 0
    assert np.mean(gains) > 0.08


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"coupling": "emd"}, "coupling"),
        ({"blur": 0.0}, "blur"),
        ({"step_size": -1.0}, "step_size"),
        ({"sinkhorn_iter": 0}, "sinkhorn_iter"),
        ({"sinkhorn_tol": -1.0}, "sinkhorn_tol"),
        ({"n_projections": 3}, "sliced"),
        ({"debias": "yes"}, "debias"),
        ({"batch_size": 0}, "batch_size"),
        ({"generator": gk.maps.RandomFeatureMap(), "persistence": 0}, "persistence"),
        ({"generator": gk.maps.RandomFeatureMap(), "persistence": 1.5}, "persistence"),
    ],
)
def test_bad_parameters_are_named(parameters, words):
    with pytest.raises(ValueError, match=words):
        WassersteinFlow(**parameters).fit(clouds()[1])


@pytest.mark.parametrize(
    "weight", [np.ones(3), -np.ones(60), np.zeros(60), np.full(60, np.nan), ["a"] * 60]
)
def test_bad_weights_are_named(weight):
    with pytest.raises((ValueError, TypeError), match="sample_weight"):
        WassersteinFlow().fit(clouds()[1], sample_weight=weight)


def test_a_pairing_is_not_kept_where_something_else_moves_the_particles():
    Z, X = clouds()
    assert exact_field(X, fixed=False)(Z, Kept(), RNG, 0).kept == Kept()
