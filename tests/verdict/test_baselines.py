"""Plain samplers: each against what is known of it in closed form."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.base import clone

import gpukoop as gk
from gpukoop import datasets
from gpukoop.baselines import LAWGD, SVGD, GaussianMixture, KernelDensity, Langevin

ALL = (
    KernelDensity(random_state=0),
    GaussianMixture(4, random_state=0),
    Langevin(n_iter=20, random_state=0),
    SVGD(n_iter=5, random_state=0),
    LAWGD(n_components=8, n_iter=5, random_state=0),
)


@pytest.mark.parametrize("baseline", ALL, ids=lambda e: type(e).__name__)
def test_verbs_and_units_are_those_of_the_flows(baseline):
    X = datasets.moons(200, 0)
    model = clone(baseline).fit(X)
    Z = model.sample(50)
    assert Z.shape == (50, 2)
    np.testing.assert_array_equal(model.sample(50), Z)
    assert not np.array_equal(model.sample(50, random_state=1), Z)
    scaled = clone(baseline).fit(X * [1e3, 1e-3] + 5)
    np.testing.assert_allclose(scaled.sample(50), Z * [1e3, 1e-3] + 5, rtol=1e-6)
    assert model.fit(X.astype(np.float32)).sample(3).dtype == np.float32
    assert model.score(datasets.moons(200, 1)) < 0
    assert isinstance(model.diagnose().passed, bool)
    with pytest.raises(ValueError, match="n_samples is 0"):
        model.sample(0)


def test_the_scale_of_a_density_is_the_likeliest():
    X = np.random.default_rng(0).normal(size=(2_000, 1))
    model = KernelDensity(random_state=0).fit(X)
    silverman = (4 / (3 * 1_000)) ** 0.2
    assert 0.3 * silverman < model.scale_ < 2.01 * silverman
    Z = model.sample(20_000)
    # the density is that of the samples, wider by its own variance; 5 standard errors
    assert Z.var() == pytest.approx(X.var() * (1 + model.scale_**2), rel=5 * np.sqrt(2 / 20_000))
    two = np.concatenate([X[:900], X[:900] / 100 + 4])
    assert KernelDensity(random_state=0).fit(two).scale_ < 0.2 * model.scale_
    assert KernelDensity(0.3).fit(X).scale_ == 0.3
    with pytest.raises(ValueError, match="scale is -1"):
        KernelDensity(-1.0).fit(X)


def test_the_mixture_finds_its_modes():
    X = datasets.eight_gaussians(2_000, 0)
    model = GaussianMixture(random_state=0).fit(X)
    assert len(model.mixture_.weights_) == 8
    assert gk.diagnose(model.sample(1_000), datasets.eight_gaussians(2_000, 1)).on_law


def test_scores_are_those_of_the_density():
    rng = np.random.default_rng(1)
    X, Z = rng.normal(size=(40, 2)), rng.normal(size=(7, 2))
    model = Langevin(0.5).fit(X)
    x = model._samples
    P = np.exp(-cdist(Z, x, "sqeuclidean") / (2 * 0.25))
    mean = (P @ x) / P.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(model._score(Z), (mean - Z) / 0.25, rtol=1e-8)


def test_langevin_of_one_sample_is_an_autoregression():
    model = Langevin(0.5, n_iter=60, step_size=0.2, random_state=0).fit(np.zeros((1, 1)))
    Z = model.sample(20_000)
    # z <- .8 z + sqrt(.4) scale noise has the variance .4 scale^2 / (1 - .64)
    assert Z.var() == pytest.approx(0.25 * 0.4 / 0.36, rel=5 * np.sqrt(2 / 20_000))


def test_a_stein_step_is_its_double_sum():
    rng = np.random.default_rng(2)
    model = SVGD(0.6).fit(rng.normal(size=(30, 2)))
    Z = rng.normal(size=(9, 2))
    s, scale = model._score(Z), float(gk.scales.median_scale(Z))
    expected = np.zeros_like(Z)
    for i in range(9):
        for j in range(9):
            k = np.exp(-((Z[i] - Z[j]) ** 2).sum() / (2 * scale**2))
            expected[i] += (k * s[j] + k * (Z[i] - Z[j]) / scale**2) / 9
    np.testing.assert_allclose(model._velocity(Z), expected, rtol=1e-8)


def test_stein_particles_reach_a_normal_law():
    X = np.random.default_rng(3).normal(size=(400, 1)) * 2 + 1
    Z = SVGD(random_state=0).fit(X).sample(150)
    assert Z.mean() == pytest.approx(X.mean(), abs=0.3)
    assert Z.std() == pytest.approx(X.std(), rel=0.2)


def test_the_generator_of_one_sample_is_that_of_an_ornstein_uhlenbeck_process():
    model = LAWGD(0.5, n_components=3, random_state=0).fit(np.zeros((1, 1)))
    # the density is normal, of deviation 1/2: lambda_k = k / scale^2; 4,000 draws know it to 2 per cent
    np.testing.assert_allclose(model.spectrum_.eigenvalues_, [4.0, 8.0, 12.0], rtol=0.1)


def test_laplacian_adjusted_particles_share_two_wells_as_the_density_does():
    rng = np.random.default_rng(4)
    X = np.concatenate([rng.normal(-2, 0.5, (750, 1)), rng.normal(2, 0.5, (250, 1))])
    Z = LAWGD(random_state=0).fit(X).sample(400)
    assert np.mean(Z < 0) == pytest.approx(0.75, abs=0.05)
    assert np.mean(np.abs(Z) < 0.5) < 0.05  # the normal start has 15 per cent between the wells
