"""Neural generators: velocities with answers, training that repeats and resumes to the bit, files, and words for bad input."""

import math

import numpy as np
import pytest
from scipy.special import logsumexp, softmax
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression

import gpukoop as gk
from gpukoop import datasets
from gpukoop.flow import drift
from gpukoop.flow.drift import drift_field
from gpukoop.flow.memory import Kept
from gpukoop.flow.ratio import PULLS, alpha, pull, value

torch = pytest.importorskip("torch")

from gpukoop.generators import OBJECTIVES, perceptron  # noqa: E402
from gpukoop.generators.features import named_features  # noqa: E402
from gpukoop.generators.toward import _array  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    """Small networks on one thread: the same bits whatever else the machine does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small(objective="energy", **changes):
    given = {"latent_dim": 2, "n_iter": 3, "batch_size": 48, "random_state": 0} | changes
    return gk.Generator(
        objective=objective, network=lambda a, s: perceptron(a, s[0], hidden=16), **given
    )


X = np.random.default_rng(0).normal(size=(200, 2)) @ np.array([[2.0, 0.5], [0.0, 1.0]]) + 5.0

# -- velocities


def test_drift_against_sums_by_hand():
    rng = np.random.default_rng(1)
    Z, Y = rng.normal(size=(9, 3)), rng.normal(size=(11, 3)) + 0.5
    scales = (0.7, 1.5)
    expected = np.zeros_like(Z)
    for s in scales:
        k = lambda a, b, s=s: np.exp(-((a - b) ** 2).sum() / (2 * s * s))
        for i, z in enumerate(Z):
            w = np.array([k(z, y) for y in Y])
            others = [j for j in range(9) if j != i]
            u = np.array([k(z, Z[j]) for j in others])
            expected[i] += (w @ Y / w.sum() - u @ Z[others] / u.sum()) / len(scales)
    motion = drift_field(Y, scales)(Z, Kept(), rng, 0)
    np.testing.assert_allclose(motion.velocity, expected, atol=1e-12)


def test_drift_stands_still_on_its_samples_and_reaches_from_afar():
    rng = np.random.default_rng(2)
    Y = rng.normal(size=(40, 2))
    # a lone particle sees no others, and samples 50 scales away still call it
    lone = drift_field(Y, (1.0,))(np.array([[50.0, 0.0]]), Kept(), rng, 0).velocity
    assert np.isfinite(lone).all()
    assert -52 < lone[0, 0] < -46
    # twice the same cloud: every particle has its own copy on the other side, once more than itself left out
    both = drift_field(np.repeat(Y, 2, axis=0), (1.0,))(np.repeat(Y, 2, axis=0), Kept(), rng, 0)
    assert np.abs(both.velocity).max() < 0.2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_isolated_particles_are_repelled(dtype, monkeypatch):
    """Others 6 to 40 scales away weigh less than a rounding beside the particle itself: they are summed without it, in logs."""
    monkeypatch.setattr(drift, "PAIRS", 90)
    rng = np.random.default_rng(3)
    Z = np.vstack([rng.normal(size=(20, 2)), 12 * rng.normal(size=(10, 2))]).astype(dtype)
    Y, scale = rng.normal(size=(25, 2)).astype(dtype), 0.5
    dense = []
    kept = drift._without_itself
    monkeypatch.setattr(drift, "_without_itself", lambda *a: dense.append(len(a[1])) or kept(*a))
    motion = drift_field(Y, (scale,))(Z, Kept(), rng, 0)
    assert 3 <= dense[0] < 30  # both ways are taken
    z, y = Z.astype(float), Y.astype(float)
    apart = -((z[:, None] - z) ** 2).sum(axis=2) / (2 * scale**2)
    np.fill_diagonal(apart, -np.inf)
    near = -((z[:, None] - y) ** 2).sum(axis=2) / (2 * scale**2)
    expected = softmax(near, axis=1) @ y - softmax(apart, axis=1) @ z
    np.testing.assert_allclose(
        motion.velocity, expected, atol=(5e-3 if dtype is np.float32 else 1e-9)
    )
    log_q = logsumexp(apart, axis=1) - np.log(29)
    energy = (log_q - logsumexp(near, axis=1) + np.log(25)).mean()
    assert motion.energy == pytest.approx(energy, rel=1e-4 if dtype is np.float32 else 1e-10)


@pytest.mark.parametrize("name", [*PULLS, "alpha(0.5)", "alpha(-1)"])
def test_divergences_between_normal_laws(name):
    """E f(r) under the reference by quadrature, and r f''(r) as the derivative of f'(r) in log r."""
    functions = {
        "kl": lambda r: r * np.log(r),
        "reverse-kl": lambda r: -np.log(r),
        "chi2": lambda r: (r - 1) ** 2,
        "reverse-chi2": lambda r: (r - 1) ** 2 / r,
        "js": lambda r: r * np.log(r) - (r + 1) * np.log((r + 1) / 2),
        "hellinger": lambda r: (np.sqrt(r) - 1) ** 2,
        "tv": lambda r: np.abs(r - 1) / 2,
        "alpha(0.5)": lambda r: (r**0.5 - 0.5 * r - 0.5) / -0.25,
        "alpha(-1)": lambda r: (1 / r + r - 2) / 2,
    }
    f = functions[name]
    x = np.linspace(-9, 9, 20_001)
    mu, nu = np.exp(-((x - 0.4) ** 2) / 2), np.exp(-(x**2) / 2)
    s = 0.4 * x - 0.08
    exact = (nu * f(np.exp(s))).sum() / nu.sum()
    # value() takes a mean over particles: quadrature points repeated by their weight under mu
    rows = np.repeat(s, np.round(2000 * mu).astype(int))
    assert value(name, rows) == pytest.approx(exact, rel=2e-3)
    if name != "tv":
        h = 1e-4
        prime = lambda r: (f(r + h) - f(r - h)) / (2 * h)
        for s0 in (-1.0, 0.3, 1.0):
            slope = (prime(np.exp(s0 + h)) - prime(np.exp(s0 - h))) / (2 * h)
            assert float(pull(name)(s0, np.exp)) == pytest.approx(slope, rel=1e-3)


def test_names_of_divergences():
    assert alpha("alpha(-0.5)") == -0.5
    for bad in ("alpha(1)", "alpha(x)", "kullback", "alpha(nan)"):
        with pytest.raises(ValueError, match="choose one of kl"):
            alpha(bad)


# -- training


def test_clipping_running_means_rates_and_views():
    """One step by hand: Adam's rate falls along a cosine, the mean forgets, gradients are short, arrays are the tensor's memory."""
    g = small(n_iter=10, clip=1e-3, learning_rate=1e-2, ema_decay=0.9)
    training, _ = g._begin(X, None)
    kept = [p.detach().clone() for p in training.mean.parameters()]
    for k in range(1, 4):
        training.step()
        norm = sum(float((p.grad**2).sum()) for p in training.network.parameters()) ** 0.5
        assert norm == pytest.approx(1e-3, rel=1e-3)
        rate = 2e-4 + (1e-2 - 2e-4) * (1 + math.cos(math.pi * k / 10)) / 2
        assert training.optimizer.param_groups[0]["lr"] == pytest.approx(rate)
        decay = min(0.9, k / (9 + k))
        for i, p in enumerate(training.network.parameters()):
            kept[i] = decay * kept[i] + (1 - decay) * p.detach()
    for mine, mean in zip(kept, training.mean.parameters(), strict=True):
        torch.testing.assert_close(mine, mean)
    assert np.shares_memory(_array(training.X), training.X.numpy())


@pytest.mark.parametrize("objective", [*OBJECTIVES, "w1", "alpha(0.5)"])
def test_every_objective_trains(objective):
    critic = {"critic": "network"} if objective in ("js",) else {}
    g = small(objective, **critic).fit(X)
    assert g.n_iter_ == 3
    assert g.sample(7).shape == (7, 2)
    assert {"energy", "velocity", "regression_error", "seconds", "distance", "step"} == set(
        g.history_
    )
    assert all(np.isfinite(v).all() for v in g.history_.values())


def test_a_generator_learns_a_normal_law():
    many = (
        np.random.default_rng(1).normal(size=(2_000, 2)) @ np.array([[2.0, 0.5], [0.0, 1.0]]) + 5.0
    )
    g = gk.Generator(
        objective="sliced-energy",
        network=lambda a, s: perceptron(a, s[0], hidden=32, layers=1),
        latent_dim=2,
        n_iter=250,
        learning_rate=1e-2,
        batch_size=128,
        random_state=0,
    ).fit(many)
    start = small("sliced-energy", n_iter=1, learning_rate=1e-9).fit(many)
    # energy distance in units of what as many fresh samples show: 1 in the mean, 3 is beyond one draw in a hundred
    assert start.history_["distance"][-1] > 20
    assert g.history_["distance"][-1] < 3
    assert g.history_["energy"][-20:].mean() < 0.1 * g.history_["energy"][0]
    Z = g.sample(4_000)
    np.testing.assert_allclose(Z.mean(0), many.mean(0), atol=0.4)
    np.testing.assert_allclose(np.cov(Z.T), np.cov(many.T), atol=1.2)


def test_a_jko_step_is_held_back():
    far = small("energy", n_iter=1, persistence=40, learning_rate=1e-2, step_size=1.0).fit(X)
    held = small("energy", n_iter=1, persistence=40, learning_rate=1e-2, jko=1e-2).fit(X)
    start = small("energy", n_iter=1, persistence=1, learning_rate=1e-9).fit(X)
    moved = [
        np.linalg.norm(
            g._source.network(torch.eye(2)).numpy() - start._source.network(torch.eye(2)).numpy()
        )
        for g in (far, held)
    ]
    assert moved[1] < 0.5 * moved[0]


@pytest.mark.parametrize("critic", ["kernel", "network"])
def test_the_same_bits_twice_and_after_a_stop(tmp_path, critic):
    given = {"objective": "js", "critic": critic, "n_iter": 6}
    once, twice = (small(**given).fit(X) for _ in range(2))
    assert np.array_equal(once.sample(9), twice.sample(9))
    path = tmp_path / "run.ckpt"
    stop = lambda step, g, m: step == 2
    small(**given).fit(X, callback=stop, checkpoint=path, checkpoint_every=3)
    resumed = small(**given).fit(X, checkpoint=path)
    assert resumed.n_iter_ == 6
    assert np.array_equal(once.sample(9), resumed.sample(9))
    assert np.array_equal(once.history_["energy"], resumed.history_["energy"])
    with pytest.raises(ValueError, match="another training"):
        small(**given | {"step_size": 0.5}).fit(X, checkpoint=path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="no readable gpukoop generator checkpoint"):
        small(**given).fit(X, checkpoint=path)


def test_classes_and_images_and_files(tmp_path):
    rng = np.random.default_rng(3)
    images = rng.integers(0, 255, (60, 8, 12), dtype=np.uint8)
    labels = np.array(["cat", "dog"])[rng.integers(0, 2, 60)]
    g = gk.Generator(objective="mmd", latent_dim=3, n_iter=2, batch_size=20, random_state=0).fit(
        images, labels
    )
    assert g.sample(5).shape == (5, 8, 12)
    cats = g.sample(4, y="cat", random_state=1)
    assert not np.array_equal(cats, g.sample(4, y="dog", random_state=1))
    with pytest.raises(ValueError, match="'cow'"):
        g.sample(2, y="cow")
    g.save(tmp_path / "model.pt")
    back = gk.Generator.load(tmp_path / "model.pt")
    assert np.array_equal(back.sample(4, y="cat", random_state=1), cats)
    own = small().fit(X)
    own.save(tmp_path / "own.pt")
    with pytest.raises(ValueError, match="network of its own"):
        gk.Generator.load(tmp_path / "own.pt")
    again = gk.Generator.load(tmp_path / "own.pt", network=own.network)
    assert np.array_equal(again.sample(3), own.sample(3))
    (tmp_path / "bad.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no readable gpukoop generator"):
        gk.Generator.load(tmp_path / "bad.pt")


def test_features_decide_what_is_compared():
    """Blind to the second column, a flow trains the first one only."""
    blind = lambda x: 3 * x[:, :1]
    given = {"n_iter": 150, "learning_rate": 1e-2, "batch_size": 128}
    g = small("sliced-energy", features=blind, **given).fit(X)
    start = small("sliced-energy", n_iter=1, learning_rate=1e-9).fit(X)
    errors = [
        abs(Z.mean(0) - X.mean(0)) + abs(Z.std(0) - X.std(0))
        for Z in (g.sample(2_000), start.sample(2_000))
    ]
    assert errors[0][0] < 0.3 * errors[1][0]
    # lengths are in units of the features: their scale does not matter
    same = small("mmd", features=lambda x: x).fit(X)
    large = small("mmd", features=lambda x: 1_000 * x).fit(X)
    np.testing.assert_allclose(same.sample(20), large.sample(20), atol=1e-3)
    for bad, words in ((3, "features is a int"), (lambda x: 2.0, "a row for each sample")):
        with pytest.raises(TypeError, match=words):
            small(features=bad).fit(X)
    with pytest.raises(ValueError, match="features of the samples have the width 0"):
        small(features=lambda x: 0 * x).fit(X)


def test_several_spaces_are_added_up():
    """Two spaces with a velocity each: what either decides alone, whatever their units and sizes."""
    both = lambda x: (5 * x[:, :1], x[:, 1:].repeat(1, 300) / 70)
    given = {"n_iter": 200, "learning_rate": 1e-2, "batch_size": 128}
    g = small("energy", features=both, **given).fit(X)
    start = small("energy", n_iter=1, learning_rate=1e-9).fit(X)
    errors = [
        abs(Z.mean(0) - X.mean(0)) + abs(Z.std(0) - X.std(0))
        for Z in (g.sample(2_000), start.sample(2_000))
    ]
    assert (errors[0] < 0.3 * errors[1]).all()
    with pytest.raises(TypeError, match="an empty tuple"):
        small(features=lambda x: ()).fit(X)


def test_features_by_name():
    images, labels = datasets.digits(300, 0, return_labels=True)
    images = images.reshape(-1, 8, 8).astype(np.float32)
    parity = labels % 2
    for kind, y, sizes in (
        ("convolutions", None, (64, 32 * 4, 32 * 4)),
        ("classifier", parity, (64, 32 * 4, 64)),
    ):
        phi = named_features(kind, images.reshape(300, -1), y, (8, 8), 0)
        parts = phi(torch.as_tensor(images[:7]))
        assert tuple(part.shape[1] for part in parts) == sizes
        assert all(torch.isfinite(part).all() for part in parts)
    # the hidden layer of the classifier knows the classes
    hidden = phi(torch.as_tensor(images))[2]
    told = LogisticRegression(max_iter=500).fit(hidden[:200].numpy(), parity[:200])
    assert told.score(hidden[200:].numpy(), parity[200:]) > 0.85
    auto = lambda y, shape: named_features("auto", images.reshape(300, -1), y, shape, 0)
    assert auto(None, (64,)) is None
    assert len(auto(None, (8, 8))(torch.as_tensor(images[:2]))) == 3
    few = {"latent_dim": 2, "n_iter": 2, "batch_size": 40, "random_state": 0}
    g = gk.Generator(objective="sinkhorn", **few).fit(images, parity)
    assert g.sample(3, 1).shape == (3, 8, 8)
    # labels that serve the features alone: the same classifier, and nobody is asked for a class
    alike = gk.Generator(objective="mmd", conditional=False, **few).fit(images, parity)
    assert alike.classes_ is None
    assert alike.sample(3).shape == (3, 8, 8)
    assert not np.array_equal(
        alike.sample(9), gk.Generator(objective="mmd", **few).fit(images).sample(9)
    )
    with pytest.raises(ValueError, match="fitted without labels"):
        alike.sample(3, 1)
    for bad, words in (("classifier", "labels of at least two"), ("vgg", "choose one of auto")):
        with pytest.raises(ValueError, match=words):
            gk.Generator(features=bad, **few).fit(images)
    with pytest.raises(ValueError, match="needs images of at least 8 x 8"):
        gk.Generator(features="convolutions", **few).fit(X)


def test_pixels_stay_in_their_range():
    rng = np.random.default_rng(4)
    images = rng.integers(3, 200, (40, 8, 8), dtype=np.uint8)
    images[:, 0] = 3
    g = gk.Generator(objective="energy", latent_dim=2, n_iter=2, random_state=0)
    far = g.set_params(learning_rate=3.0).fit(images).sample(50)
    assert far.min() >= 3 - 1e-3
    assert far.max() <= images.max() + 1e-3
    start = g.set_params(learning_rate=1e-9).fit(images).sample(50)
    assert np.abs(start.mean(0) - images.mean(0)).max() < 15


def test_a_constant_column_stays_constant(tmp_path):
    rng = np.random.default_rng(0)
    X = np.column_stack(
        [50 * rng.normal(size=200), np.full(200, 1e3 + 1 / 3), rng.normal(size=200)]
    )
    g = small().fit(X)
    again = gk.Generator.load(g.save(tmp_path / "g.pt") or tmp_path / "g.pt", network=g.network)
    for Z in (g.sample(30), again.sample(30, random_state=0)):
        np.testing.assert_array_equal(Z[:, 1], np.float32(1e3 + 1 / 3))
        assert (np.ptp(Z, axis=0) > 0).tolist() == [True, False, True]


def test_ctrl_c_keeps_what_was_trained():
    def stop(step, generator, metrics):
        if step == 1:
            raise KeyboardInterrupt

    g = small(n_iter=50).fit(X, callback=stop)
    assert g.n_iter_ == 2
    assert np.isfinite(g.sample(3)).all()


def test_units_do_not_matter():
    plain, large = small().fit(X), small().fit(1_000 * X)
    np.testing.assert_allclose(large.sample(20), 1_000 * plain.sample(20), rtol=1e-3, atol=1.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objective": "gan"}, "objective is 'gan': choose one of sinkhorn"),
        ({"critic": "network", "objective": "mmd"}, "critic='network' belongs to"),
        ({"critic": "spectral", "objective": "js"}, "critic='spectral' belongs to w1"),
        ({"persistence": 0}, "persistence"),
        ({"jko": -1.0}, "jko"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"n_iter": 2.5}, "n_iter"),
    ],
)
def test_wrong_parameters(changes, words):
    with pytest.raises((ValueError, TypeError), match=words):
        small(**changes).fit(X)


class Counting(torch.nn.Module):
    """A network with a layer that drops units and one that looks at the whole batch while they learn."""

    def __init__(self):
        super().__init__()
        nn = torch.nn
        self.layers = nn.Sequential(
            nn.Linear(2, 8), nn.BatchNorm1d(8), nn.SiLU(), nn.Dropout(0.5), nn.Linear(8, 2)
        )

    def forward(self, y):
        return self.layers(y)


def test_what_samples_neither_drops_units_nor_looks_at_its_batch(tmp_path):
    g = small().set_params(network=Counting()).fit(X)
    alone = g._source.network(torch.ones(1, 2))
    beside = g._source.network(torch.cat([torch.ones(1, 2), torch.randn(9, 2)]))
    torch.testing.assert_close(alone[0], beside[0])
    assert g.network.training  # the user's module stays as it is
    assert g.sample(1).shape == (1, 2)
    g.save(tmp_path / "own.pt")
    again = gk.Generator.load(tmp_path / "own.pt", network=Counting())
    np.testing.assert_array_equal(again.sample(4), g.sample(4))


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (torch.nn.Linear(2, 1), r"shape \(48, 1\) for 48 points, expected \(48, 2\)"),
        (torch.nn.Linear(7, 2), "does not take float32 latent points"),
        (torch.nn.Linear(2, 2).double(), "does not take float32 latent points"),
        (torch.nn.Linear(2, 2).requires_grad_(False), "no parameter that can be learnt"),
        (torch.nn.Identity(), "no parameter that can be learnt"),
        (torch.nn.LazyLinear(2), "lazy layers"),
        (torch.nn.LSTM(2, 2), "network returned a tuple"),
    ],
    ids=["one column", "inputs", "double", "frozen", "identity", "lazy", "tuple"],
)
def test_networks_that_cannot_be_trained(network, words):
    """A column for two was broadcast without a word before."""
    with pytest.raises((ValueError, TypeError), match=words):
        small().set_params(network=network).fit(X)


def test_tensors_labels_and_scales_in_other_clothes():
    same = small().fit(X.astype(np.float32)).sample(3)
    np.testing.assert_array_equal(small().fit(torch.as_tensor(X).float()).sample(3), same)
    assert np.isfinite(small().fit(torch.as_tensor(X).bfloat16()).sample(3)).all()
    names = np.array(["cat", "dog"] * 100, dtype=object)
    assert small().fit(X, names).sample(2, "cat").shape == (2, 2)
    listed, array = (small("mmd", scale=s).fit(X).sample(3) for s in ([0.1, 1], np.array([0.1, 1])))
    np.testing.assert_array_equal(listed, array)


def test_wrong_data():
    with pytest.raises(ValueError, match="200 labels and none twice"):
        small().fit(X, np.arange(200))
    with pytest.raises(TypeError, match="callback is a int"):
        small().fit(X, callback=3)
    with pytest.raises(TypeError, match="does not depend on the points"):
        small(features=lambda x: 2 * x.detach()).fit(X)
    g = small().fit(X)
    with pytest.raises(ValueError, match="64 numbers a sample, the generator was fitted to 2"):
        g.score(np.zeros((3, 8, 8)))
    with pytest.raises(ValueError, match="labels"):
        small().fit(X, np.zeros(3, dtype=int))
    with pytest.raises(ValueError, match="no law to learn"):
        small().fit(np.ones((30, 2)))
    with pytest.raises(ValueError, match="NaN or inf"):
        small().fit(np.full((30, 2), np.nan))
    with pytest.raises(NotFittedError):
        small().sample(2)
