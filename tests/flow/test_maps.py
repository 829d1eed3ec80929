"""Generators: P14 (Landweber, ridge and their identities), identity at the start, persistence, stages, adapters."""

import copy

import numpy as np
import pytest

import gpukoop as gk
from gpukoop import datasets, metrics
from gpukoop.maps import CallableMap, KernelMap, RandomFeatureMap, StagewiseMap, TorchMap
from gpukoop.maps.regression import landweber, largest_eigenvalue, ridge


def problem(b=40, q=25, d=2, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(b, q)) / np.sqrt(q), rng.normal(size=(b, d))


MAPS = [
    RandomFeatureMap(60, random_state=0),
    RandomFeatureMap(60, scale=1.0, random_state=0),
    KernelMap(n_landmarks=40, random_state=0),
    KernelMap(gk.Matern52(1.0), n_landmarks=40, random_state=0),
]


def latent(n=50, d=2, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def test_one_step_is_the_generator_step():
    Phi, R = problem()
    lr = 0.3
    assert np.abs(Phi @ landweber(Phi, R, 1, lr) - lr * Phi @ Phi.T @ R / 40).max() < 1e-12


@pytest.mark.parametrize("K", [1, 7, 50])
def test_k_steps_are_the_landweber_filter(K):
    Phi, R = problem()
    s, U = np.linalg.eigh(Phi.T @ Phi / 40)
    lr = 0.9 / s[-1]
    filtered = U @ (((1 - (1 - lr * s) ** K) / s)[:, None] * (U.T @ Phi.T @ R / 40))
    assert np.abs(Phi @ (landweber(Phi, R, K, lr) - filtered)).max() < 1e-10


@pytest.mark.parametrize(("b", "q"), [(40, 25), (25, 40)])
def test_ridge_by_either_system(b, q):
    Phi, R = problem(b, q)
    reg = 0.01
    primal = np.linalg.solve(Phi.T @ Phi + b * reg * np.eye(q), Phi.T @ R)
    dual = Phi.T @ np.linalg.solve(Phi @ Phi.T + b * reg * np.eye(b), R)
    assert np.abs(Phi @ (primal - dual)).max() < 1e-10
    assert np.abs(Phi @ (ridge(Phi, R, reg) - primal)).max() < 1e-10


def test_many_steps_tend_to_the_ridge_limit():
    Phi, R = problem(40, 10)
    limit = Phi @ ridge(Phi, R, 0.0)
    gaps = [np.abs(Phi @ landweber(Phi, R, K) - limit).max() for K in (1, 10, 100, 2_000)]
    assert (np.diff(gaps) < 0).all()
    assert gaps[-1] < 1e-8


def test_the_default_rate_is_stable_and_a_large_one_is_named():
    Phi, R = problem()
    top = np.linalg.eigvalsh(Phi.T @ Phi / 40)[-1]
    assert largest_eigenvalue(Phi) == pytest.approx(top, rel=0.05)
    with pytest.raises(ValueError, match="learning_rate"):
        landweber(Phi, R, 3, 2.5 / top)


@pytest.mark.parametrize("G", MAPS, ids=lambda G: type(G).__name__)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_identity_at_the_start_and_values_after(G, dtype):
    Y = latent().astype(dtype)
    started = G.start(Y)
    assert np.array_equal(started(Y), Y)
    assert started(Y).dtype == dtype
    assert G.parameters is None
    targets = (Y @ np.array([[1.0, 0.4], [0.0, 1.2]]) + np.sin(Y)).astype(dtype)
    for K in (1, 5, float("inf")):
        moved = started.regress(Y, targets, K)
        assert moved(Y).dtype == dtype
        assert np.linalg.norm(moved(Y) - targets) < np.linalg.norm(Y - targets)
        assert np.array_equal(started(Y), Y)
    fresh = latent(300, seed=5).astype(dtype)
    exact = fresh @ np.array([[1.0, 0.4], [0.0, 1.2]]) + np.sin(fresh)
    error = np.linalg.norm(moved(fresh) - exact) / np.linalg.norm(fresh - exact)
    assert error < 0.4


def test_maps_are_evaluated_in_blocks(monkeypatch):
    Y = latent(100)
    G = RandomFeatureMap(30, random_state=0).start(Y).regress(Y, Y + np.sin(Y), float("inf"))
    whole = G(Y)
    monkeypatch.setattr("gpukoop.maps.base.BLOCK", 50)
    assert np.abs(G(Y) - whole).max() < 1e-13


def test_seeds_decide_the_features():
    Y = latent()
    a, b, c = (RandomFeatureMap(20, random_state=s).start(Y).features(Y) for s in (0, 0, 1))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_losses_fall_with_persistence_and_the_ridge_limit_is_fastest():
    early = {K: [] for K in (1, 5, 20, float("inf"))}
    for seed in range(5):
        X = datasets.eight_gaussians(100, random_state=seed)
        for K, losses in early.items():
            flow = gk.WassersteinFlow(
                "exact",
                step_size=0.3,
                n_iter=8,
                persistence=K,
                random_state=seed,
                generator=RandomFeatureMap(100, random_state=seed),
            ).fit(X)
            losses.append(flow.history_["energy"][[4, 8]])
    medians = np.array([np.median(losses, axis=0) for losses in early.values()])
    assert (np.diff(medians, axis=0) < 0).all()


def test_a_generator_is_evaluated_at_fresh_latent_points():
    X = datasets.eight_gaussians(150, random_state=0)
    flow = gk.WassersteinFlow(
        "sinkhorn",
        blur=0.3,
        step_size=0.5,
        n_iter=8,
        persistence=float("inf"),
        random_state=0,
        generator=KernelMap(n_landmarks=80, random_state=0),
    ).fit(X)
    a, b = flow.sample(500, random_state=1), flow.sample(500, random_state=2)
    assert not np.array_equal(a, b)
    assert np.array_equal(a, flow.sample(500, random_state=1))
    start = np.random.default_rng(0).normal(size=(500, 2))
    far = metrics.sliced_wasserstein(start, X)
    assert metrics.sliced_wasserstein(a, X) < 0.4 * far
    assert np.array_equal(flow.transport(start), flow.generator_(start))
    assert len(flow.history_["energy"]) == flow.n_iter_ + 1


def test_latent_points_of_ones_own_and_retraining():
    X = datasets.eight_gaussians(80, random_state=0)
    source = 0.2 * np.random.default_rng(0).normal(size=(80, 2))
    flow = gk.WassersteinFlow(
        "exact", step_size=0.5, n_iter=6, persistence=float("inf"), random_state=0,
        generator=RandomFeatureMap(80, random_state=0),
    ).fit(X, source=source)  # fmt: skip
    trained = flow.transport(source)
    assert metrics.wasserstein(trained, X) < 0.5 * metrics.wasserstein(source, X)
    again = flow.transport(source, n_iter=6)
    assert np.abs(again - trained).max() < 1e-9
    assert flow.n_iter_ == 6
    with pytest.raises(ValueError, match="generator="):
        gk.WassersteinFlow().fit(X, source=source)
    with pytest.raises(ValueError, match="checkpoint"):
        flow.transport(source, checkpoint="somewhere")


def test_batches_train_too_and_a_diverging_step_is_named():
    from sklearn.exceptions import ConvergenceWarning

    X = datasets.eight_gaussians(120, random_state=0)
    flow = gk.WassersteinFlow(
        "exact", batch_size=40, step_size=0.3, n_iter=20, persistence=5, random_state=0,
        generator=RandomFeatureMap(60, random_state=0),
    ).fit(X)  # fmt: skip
    assert flow.history_["energy"][-3:].mean() < 0.7 * flow.history_["energy"][0]
    with pytest.warns(ConvergenceWarning, match="step_size"):
        flow.set_params(step_size=100.0).fit(X)
    assert np.isfinite(flow.sample(10)).all()


def test_stages_are_a_composition():
    X = datasets.eight_gaussians(100, random_state=0)
    flow = gk.WassersteinFlow(
        "sliced", step_size=1.0, n_iter=25, random_state=0,
        generator=StagewiseMap(RandomFeatureMap(60, random_state=0), block_size=10),
    ).fit(X)  # fmt: skip
    G = flow.generator_
    assert len(G.stages) == 3
    Y = latent(200, seed=3)
    expected = Y
    for stage in G.stages:
        expected = stage(expected)
    assert np.array_equal(G(Y), expected)
    errors = flow.history_["regression_error"]
    assert (np.flatnonzero(errors) == [9, 19, 24]).all()
    assert metrics.sliced_wasserstein(G(Y), X) < 0.6 * metrics.sliced_wasserstein(Y, X)


def test_any_callable_with_a_pullback_is_a_generator():
    def function(theta, Y):
        return Y + theta[:2] + Y * theta[2]

    def pullback(theta, Y, R):
        return np.array([*R.sum(axis=0), (Y * R).sum()])

    Y = latent(200)
    G = CallableMap(function, pullback, np.zeros(3), learning_rate=0.5).start(Y)
    assert np.array_equal(G(Y), Y)
    G = G.regress(Y, 2.0 * Y + [1.0, -1.0], 60)
    assert np.abs(G.parameters - [1.0, -1.0, 1.0]).max() < 1e-6
    flow = gk.MMDFlow(
        generator=CallableMap(function, pullback, np.zeros(3), learning_rate=0.5),
        step_size=0.5, n_iter=30, persistence=3, units="absolute", random_state=0,
    ).fit(latent(150, seed=1) * 0.5 + 3)  # fmt: skip
    assert np.abs(flow.generator_.parameters - [3, 3, -0.5]).max() < 0.2
    with pytest.raises(ValueError, match="linear"):
        G.regress(Y, Y, float("inf"))


@pytest.mark.slow
def test_a_torch_module_is_a_generator():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.Tanh(), torch.nn.Linear(32, 2))
    before = copy.deepcopy(net.state_dict())
    Y = latent(100)
    G = TorchMap(net, learning_rate=0.2).start(Y)
    assert np.array_equal(G(Y), Y)
    X = latent(100, seed=1) * 0.5 + 1.0
    flow = gk.WassersteinFlow(
        "exact", step_size=0.5, n_iter=15, persistence=20, random_state=0,
        generator=TorchMap(net, lambda p: torch.optim.Adam(p, 1e-2)),
    ).fit(X)  # fmt: skip
    assert flow.history_["energy"][-1] < 0.15 * flow.history_["energy"][0]
    assert flow.sample(7).shape == (7, 2)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RandomFeatureMap(0), "n_features"),
        (lambda: RandomFeatureMap(10, scale=-1.0), "scale"),
        (lambda: RandomFeatureMap(10, reg=-1.0), "reg"),
        (lambda: RandomFeatureMap(10, learning_rate=0.0), "learning_rate"),
        (lambda: KernelMap(n_landmarks=0), "n_landmarks"),
        (lambda: StagewiseMap(RandomFeatureMap(5), block_size=0), "block_size"),
    ],
)
def test_bad_parameters_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make().start(latent())


def test_bad_use_is_named():
    G = RandomFeatureMap(10, random_state=0)
    with pytest.raises(ValueError, match="start"):
        G(latent())
    with pytest.raises(ValueError, match="features"):
        G.start(latent())(latent(d=3))
    with pytest.raises(ValueError, match="persistence"):
        G.start(latent()).regress(latent(), latent(), 0)
    with pytest.raises(TypeError, match="kernel"):
        KernelMap(kernel=3).start(latent())
    with pytest.raises(TypeError, match="base"):
        StagewiseMap(3).start(latent())
