"""Pictures are drawn, written whole, and say why they have no modes; the neural lift trains and samples."""

import math

import numpy as np
import pytest

import gpukoop as gk
from gpukoop import datasets
from gpukoop.sampler import AffineTeacher, images, picture


def noise(n, d=2, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def test_picture_of_operator_spectrum_modes_and_trajectories(tmp_path):
    pytest.importorskip("matplotlib")
    teacher = AffineTeacher([[-0.5, 1.0], [-1.0, -0.2]])
    sampler = gk.KoopmanSampler(
        "polynomial", degree=2, time_degree=0, solver="exponential", reg=0, teacher=teacher
    ).fit(noise(500))
    figure = picture(sampler, tmp_path / "koopman.png", n_trajectories=10)
    titles = [ax.get_title() for ax in figure.axes]
    assert any("spectrum" in title for title in titles)
    assert sum(title.startswith("mode ") for title in titles) == 3
    assert (tmp_path / "koopman.png").read_bytes().startswith(b"\x89PNG")
    plain = gk.KoopmanSampler(n_features=30, random_state=0).fit(noise(300, 1))
    assert picture(plain, n_trajectories=5).axes


def test_sheet_of_images(tmp_path):
    pytest.importorskip("matplotlib")
    X = datasets.digits(25)
    images(X, tmp_path / "digits.png")
    assert (tmp_path / "digits.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="pass shape="):
        images(X[:, :63])


@pytest.fixture(scope="module")
def neural():
    pytest.importorskip("torch")
    from gpukoop.sampler.neural import NeuralFeatures

    X = datasets.eight_gaussians(1000, random_state=0)
    return X, NeuralFeatures(2, 16, width=32, random_state=0).train(X, n_paths=256, n_steps=120)


@pytest.mark.slow
def test_neural_lift_learns(neural):
    _, lift = neural
    assert set(lift.losses) == {"consistency", "target", "phase", "reconstruction"}
    for name in ("target", "reconstruction"):
        values = lift.losses[name]
        assert np.mean(values[-10:]) < 0.6 * np.mean(values[:10]), name
    x, t, u = noise(10), np.random.default_rng(1).random(10), noise(10, seed=2)
    rate = lift.features_and_jvp(x, t, u)[1]
    h = 1e-5
    difference = (lift.features(x + h * u, t + h) - lift.features(x - h * u, t - h)) / (2 * h)
    assert abs(rate - difference).max() < 1e-6 * max(1.0, abs(rate).max())


@pytest.mark.slow
def test_neural_lift_is_a_dictionary_of_the_sampler(neural):
    X, lift = neural
    sampler = gk.KoopmanSampler(lift, random_state=0, n_triples=20_000).fit(X)
    drawn = sampler.sample(500)
    assert np.isfinite(drawn).all()
    assert abs(drawn.std(axis=0) / X.std(axis=0) - 1).max() < 0.25


def test_neural_lift_samples_with_what_it_was_trained_to(neural):
    """One step of the trained operator beside the start, and its modes by hand."""
    _, lift = neural
    fresh = datasets.eight_gaussians(2_000, random_state=5)
    start = noise(2_000, seed=7)
    reached = gk.metrics.energy_distance(lift.advance(start), fresh)
    assert reached < 0.5 * gk.metrics.energy_distance(start, fresh)
    assert np.abs(lift.advance(start, 0.5) - lift.advance(start)).max() > 0.01
    values, pictures = lift.modes()
    assert (np.diff(values.real) <= 1e-12).all()
    # e exp(A) d is the sum over modes of exp(value) times the component times the picture
    vectors = np.linalg.eig(lift.operator)[1]
    assert np.allclose(lift.operator @ vectors, vectors * np.linalg.eigvals(lift.operator))
    _, left = lift._spectrum()
    parts = lift.features(start[:9], np.zeros(9)) @ left
    np.testing.assert_allclose(
        ((parts * np.exp(values)) @ pictures).real, lift.advance(start[:9]), atol=1e-8
    )


def test_neural_lift_edits_and_interpolates(neural):
    X, lift = neural
    back = lift.edit(X[:50], {})
    error = np.sqrt(((back - X[:50]) ** 2).mean() / ((X[:50] - X[:50].mean(0)) ** 2).mean())
    assert lift.invertibility(X[:50]) == pytest.approx(error)
    assert error < 1
    moved = lift.edit(X[:50], {0: 2.0, 1: 0.5})
    assert np.isfinite(moved).all()
    assert np.abs(moved - back).max() > 1e-3
    everything = lift.edit(X[:50], dict.fromkeys(range(lift.n_features), 3.0))
    np.testing.assert_allclose(everything, 3 * back, atol=1e-6)
    line = lift.interpolate(X[0], X[1], 5)
    np.testing.assert_allclose(line[[0, -1]], lift.edit(X[:2], {}), atol=1e-8)
    np.testing.assert_allclose(line[2], line[[0, -1]].mean(axis=0), atol=1e-8)
    with pytest.raises(ValueError, match="mode 99"):
        lift.edit(X[:2], {99: 1.0})
    with pytest.raises(ValueError, match="time in"):
        lift.advance(X[:2], 1.5)


@pytest.fixture(scope="module")
def convolved():
    pytest.importorskip("torch")
    from gpukoop.sampler.neural import ImageFeatures

    X = (datasets.digits(400, random_state=0) - 5.0) / 6.0
    lift = ImageFeatures((8, 8), 16, width=32, random_state=0)
    return X, lift.train(X, n_paths=128, n_steps=60)


def test_a_convolutional_lift_is_what_torchs_layers_make_of_it(convolved):
    """Encoder and decoder beside modules of PyTorch, and the derivative beside differences."""
    import torch

    X, lift = convolved
    nn = torch.nn
    modules = [nn.Conv2d(2, 16, 4, 2, 1), nn.Conv2d(16, 32, 4, 2, 1), nn.Linear(128, 32)]
    modules += [nn.Linear(32, 16), nn.Linear(16, 32), nn.Linear(32, 128)]
    modules += [nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ConvTranspose2d(16, 1, 4, 2, 1)]
    tensors = [*lift.encoder, *lift.decoder]
    for module, W, b in zip(modules, tensors[::2], tensors[1::2], strict=True):
        module.double()
        module.weight.data = (W.T if isinstance(module, nn.Linear) else W).double()
        module.bias.data = b.double()
    S = nn.SiLU
    encoder = nn.Sequential(
        modules[0], S(), modules[1], S(), nn.Flatten(), modules[2], S(), modules[3]
    )
    decoder = nn.Sequential(modules[4], S(), modules[5], S(), nn.Unflatten(1, (32, 2, 2)))
    decoder = nn.Sequential(decoder, modules[6], S(), modules[7], nn.Flatten())

    def exact(x, t):
        planes = np.stack([x.reshape(-1, 8, 8), np.broadcast_to(t[:, None, None], (len(x), 8, 8))])
        return encoder(torch.as_tensor(planes).transpose(0, 1)).detach().numpy()

    x, t = X[:9], np.random.default_rng(1).random(9)
    u = np.random.default_rng(2).standard_normal(x.shape)
    e, rate = lift.features_and_jvp(x, t, u)
    size = np.abs(exact(x, t)).max()
    np.testing.assert_allclose(e, exact(x, t), atol=1e-5 * size)
    np.testing.assert_array_equal(e, lift.features(x, t))
    h = 1e-5
    slope = (exact(x + h * u, t + h) - exact(x - h * u, t - h)) / (2 * h)
    np.testing.assert_allclose(rate, slope, atol=1e-4 * np.abs(slope).max())
    back = decoder(torch.as_tensor(e)).detach().numpy()
    np.testing.assert_allclose(lift.decode(e), back, atol=1e-5 * np.abs(back).max())
    # the picture of a mode is what a small step along it does to the image
    _, pictures = lift.modes()
    w = np.linalg.inv(lift._spectrum()[1])[3].real
    at = lambda step: decoder(torch.as_tensor((lift.mean + step * w)[None])).detach().numpy()[0]
    step = (at(h) - at(-h)) / (2 * h)
    np.testing.assert_allclose(pictures[3].real, step, atol=1e-4 * np.abs(step).max())


def test_a_convolutional_lift_learns_images(convolved):
    X, lift = convolved
    for name in ("target", "reconstruction"):
        values = lift.losses[name]
        assert np.mean(values[-10:]) < 0.7 * np.mean(values[:10]), name
    start = noise(200, seed=7, d=64)
    fresh = (datasets.digits(None, random_state=0)[400:] - 5.0) / 6.0
    made = lift.advance(start)
    reached = gk.metrics.energy_distance(made, fresh)
    assert reached < 0.3 * gk.metrics.energy_distance(start, fresh)
    np.testing.assert_allclose(
        lift.edit(X[:5], {}), lift.decode(lift.features(X[:5], np.ones(5))), atol=1e-5
    )
    assert lift.interpolate(X[0], X[1], 4).shape == (4, 64)
    untrained = type(lift)((8, 8), 16, width=32, random_state=0)
    assert 0 < lift.invertibility(X[:50]) < 0.2 * untrained.invertibility(X[:50])


@pytest.mark.slow
def test_a_convolutional_lift_is_a_dictionary_of_the_sampler(convolved):
    X, lift = convolved
    sampler = gk.KoopmanSampler(lift, random_state=0, n_triples=4_000).fit(X)
    drawn = sampler.sample(200)
    assert drawn.shape == (200, 64)
    assert gk.metrics.energy_distance(drawn, X) < 0.3 * gk.metrics.energy_distance(
        noise(200, seed=7, d=64), X
    )


def test_shapes_that_a_convolutional_lift_cannot_take():
    pytest.importorskip("torch")
    from gpukoop.sampler.neural import ImageFeatures

    colours = ImageFeatures((8, 4, 3), 5, width=6)
    rows = np.random.default_rng(0).random((7, 96))
    assert colours.features(rows, np.zeros(7)).shape == (7, 5)
    assert colours.decode(np.zeros((2, 5))).shape == (2, 96)
    for bad in ((8,), (8, 8, 3, 1)):
        with pytest.raises(ValueError, match=r"expected \(height, width"):
            ImageFeatures(bad)
    with pytest.raises(ValueError, match="multiples of 4"):
        ImageFeatures((10, 8))


def test_a_learned_lift_has_an_operator_for_each_class():
    """Two shifted normal laws: each label's samples have its mean, those without a label both; pictures are of the label asked for."""
    pytest.importorskip("torch")
    from gpukoop.sampler.neural import NeuralFeatures

    rng = np.random.default_rng(3)
    y = np.repeat(["left", "right"], 300)
    X = 0.3 * rng.standard_normal((600, 2)) + np.where(y == "left", -1.0, 1.0)[:, None] * [1, 0]
    lift = NeuralFeatures(2, 12, width=24, random_state=0).train(X, y, n_paths=128, n_steps=160)
    assert list(lift.operators) == ["left", "right"]
    start = noise(400, seed=9)
    means = {label: lift.advance(start, y=label).mean(axis=0) for label in ("left", "right")}
    assert np.abs(means["left"] - [-1, 0]).max() < 0.25
    assert np.abs(means["right"] - [1, 0]).max() < 0.25
    assert np.abs(lift.advance(start).mean(axis=0)).max() < 0.25
    # labels point by point are the labels one by one, and an operator is what it was trained to
    asked = np.array(["left", "right"] * 200)
    mixed = lift.advance(start, y=asked)
    np.testing.assert_allclose(mixed[::2], lift.advance(start[::2], y="left"), atol=1e-12)
    np.testing.assert_allclose(mixed[1::2], lift.advance(start[1::2], y="right"), atol=1e-12)
    e, rate = lift.features(start, np.zeros(400)), lift.operators["right"]
    by_series = sum(
        np.linalg.matrix_power(0.5 * rate / 64, k) / math.factorial(k) for k in range(12)
    )
    halfway = lift.decode(e @ np.linalg.matrix_power(by_series, 64))
    np.testing.assert_allclose(lift.advance(start, 0.5, y="right"), halfway, atol=1e-8)
    values, pictures = lift.modes("left")
    np.testing.assert_allclose(
        np.sort_complex(values), np.sort_complex(np.linalg.eigvals(lift.operators["left"]))
    )
    assert pictures.shape == (12, 2)
    with pytest.raises(ValueError, match="'up' was asked for, trained were left, right"):
        lift.advance(start, y="up")
    with pytest.raises(ValueError, match="one label for each of 600 rows"):
        lift.train(X, y[:-1])
    with pytest.raises(ValueError, match="pass one of the two"):
        lift.train(X, y, teacher=lambda x, t: -x)


def test_a_lift_of_many_sorted_rows_knows_all_of_them_and_goes_on():
    """More rows than the field is made of, sorted by class; a second call starts from each class's operator."""
    pytest.importorskip("torch")
    from gpukoop.sampler.neural import NeuralFeatures

    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], 2_500)
    X = 0.3 * rng.standard_normal((5_000, 2)) + np.where(y == 0, -1.0, 1.0)[:, None] * [1, 0]
    lift = NeuralFeatures(2, 12, width=24, random_state=0).train(X, y, n_paths=128, n_steps=120)
    start = noise(400, seed=9)
    assert np.abs(lift.advance(start).mean(axis=0)).max() < 0.3  # -1 of the first rows alone
    old = dict(lift.operators)
    lift.train(X[:2_600], y[:2_600], n_paths=16, n_steps=1)
    for label, operator in old.items():  # one step of Adam moves no entry by more than its rate
        assert np.abs(lift.operators[label] - operator).max() < 2.1e-3
    old = dict(lift.operators)
    lift.train(X[:100], n_paths=16, n_steps=1)
    assert all(np.array_equal(lift.operators[label], old[label]) for label in old)
    assert len(old) == 2
    lift.train(X[:100], y[:100], n_paths=16, n_steps=1)
    assert np.array_equal(lift.operators[1], old[1])

    with pytest.raises(ValueError, match=r"shape \(3,\), expected one label for each of 400 rows"):
        lift.advance(start, y=np.zeros(3, int))
    with pytest.raises(ValueError, match=r"class \[0\] was asked for, trained were 0, 1"):
        lift.modes([0])
    missing = np.r_[0.0, np.nan, np.ones(98)]
    for bad in (missing, np.where(missing == 0, None, "a")):
        with pytest.raises(ValueError, match="y is missing"):
            lift.train(X[:100], bad, n_paths=8, n_steps=1)
        with pytest.raises(ValueError, match=r"y is missing .* in row"):
            gk.KoopmanSampler(random_state=0).fit(X[:100], bad)
    state = {name: value for name, value in lift.__getstate__().items() if name != "operators"}
    older = NeuralFeatures.__new__(NeuralFeatures)
    older.__setstate__(state)
    assert older.operators == {}
    with pytest.raises(ValueError, match="pass y to train"):
        older.advance(start, y=0)
