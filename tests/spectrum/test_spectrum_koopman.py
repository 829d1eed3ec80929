"""KernelEDMD on diffusions whose spectrum is known."""

import numpy as np
import pytest

import gpukoop as gk
from gpukoop import datasets
from gpukoop.spectrum import KernelEDMD

LAG = 0.2


def ornstein_uhlenbeck(n, seed, temperature=1.0):
    rng = np.random.default_rng(seed)
    X = np.sqrt(temperature) * rng.normal(size=(n, 1))
    noise = np.sqrt(temperature * (1 - np.exp(-2 * LAG)))
    return X, np.exp(-LAG) * X + noise * rng.normal(size=X.shape)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ornstein_uhlenbeck_from_independent_pairs(seed):
    """sd(lambda_k) = (1 - mu^2) / (mu lag sqrt(m)) = .014, .017 for k = 1, 2; heavy tails of H_k add for k >= 2."""
    X, Y = ornstein_uhlenbeck(20_000, seed)
    fitted = KernelEDMD(n_components=5, lag_time=LAG, random_state=seed).fit(X, successors=Y)
    assert np.allclose(fitted.eigenvalues_[0], 1.0, rtol=0.05)
    assert np.allclose(fitted.eigenvalues_[1], 2.0, rtol=0.1)
    assert np.allclose(fitted.eigenvalues_[2], 3.0, rtol=0.2)
    assert fitted.diffusivity_ == pytest.approx(1.0, rel=0.06)
    assert np.allclose(fitted.eigenvalues_, -np.log(fitted.mu_) / LAG)
    phi = fitted.transform(X)
    assert np.abs(phi.mean(axis=0)).max() < 1e-8
    assert np.abs(phi.var(axis=0) - 1).max() < 1e-8


def test_ornstein_uhlenbeck_from_a_trajectory():
    """10^5 steps of .1 last 10^4 units: lambda_k is known to sqrt(2 / (k 10^4)), .014, .010, .008; bias adds."""
    rng = np.random.default_rng(0)
    lag, n = 0.1, 100_000
    decay = np.exp(-lag)
    kicks = np.sqrt(1 - decay**2) * rng.normal(size=n + 1)
    path = np.empty(n + 1)
    path[0] = rng.normal()
    for i in range(n):
        path[i + 1] = decay * path[i] + kicks[i]
    X, Y = path[:-1, None], path[1:, None]
    fitted = KernelEDMD(n_components=4, lag_time=lag, random_state=0).fit(X, successors=Y)
    assert np.allclose(fitted.eigenvalues_, [1, 2, 3, 4], rtol=0.1)
    assert np.allclose(fitted.eigenvalues_[:2], [1, 2], rtol=0.05)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_diffusivity_is_the_temperature(temperature):
    X, Y = ornstein_uhlenbeck(20_000, 3, temperature)
    fitted = KernelEDMD(n_components=2, lag_time=LAG, reg=0.1, random_state=0).fit(X, successors=Y)
    assert fitted.diffusivity_ == pytest.approx(temperature, rel=0.06)


def test_unit_of_time_scales_out():
    X, Y = ornstein_uhlenbeck(3000, 0)
    first = KernelEDMD(n_components=3, lag_time=LAG, random_state=0).fit(X, successors=Y)
    other = KernelEDMD(n_components=3, lag_time=1000 * LAG, random_state=0).fit(X, successors=Y)
    assert np.allclose(first.eigenvalues_, 1000 * other.eigenvalues_, rtol=1e-12)
    ratio = first.eigenvalues_ / first.diffusivity_
    assert np.allclose(ratio, other.eigenvalues_ / other.diffusivity_, rtol=1e-12)


def test_quadruple_well_and_gradients():
    X, Y = datasets.quadruple_well(10_000, lag_time=0.05, independent=True, random_state=0)
    fitted = KernelEDMD(n_components=8, lag_time=0.05, random_state=0).fit(X, successors=Y)
    # sd of lambda_1 from independent pairs: (1 - mu^2) / (mu lag sqrt(m)) = .015
    assert np.allclose(fitted.eigenvalues_[:3], [0.7487, 0.7487, 1.4974], rtol=0.1)
    Z, h = X[:30], 1e-5
    slopes = fitted.gradient(Z)
    for a in range(2):
        step = h * np.eye(2)[a]
        difference = (fitted.transform(Z + step) - fitted.transform(Z - step)) / (2 * h)
        assert np.abs(slopes[:, :, a] - difference).max() < 1e-5 * np.abs(slopes).max()
    c = np.arange(slopes.shape[1], dtype=float)
    error = np.abs(fitted.gradient(Z, c) - np.einsum("nrd,r->nd", slopes, c)).max()
    assert error < 1e-9 * np.abs(slopes).max()


def test_few_pairs_want_few_coordinates():
    X, Y = datasets.torus(800, lag_time=0.05, independent=True, random_state=0)
    fitted = KernelEDMD(gk.Gaussian("median"), 40, lag_time=0.05, random_state=0)
    fitted.fit(X, successors=Y)
    assert fitted.reg_ >= 0.1
    means = {reg: scores.mean() for reg, scores in fitted.reg_path_.items()}
    assert means[0.3] > means[0.01]


def test_modes_of_a_handful_are_left_out():
    """With landmarks in the far tail, pairs that stay there by chance look like a slow mode."""
    X, Y = ornstein_uhlenbeck(20_000, 1)
    fitted = KernelEDMD(
        gk.Gaussian(0.25), 5, lag_time=LAG, reg=0.1, landmarks="kmeans++", random_state=1
    ).fit(X, successors=Y)
    assert fitted.n_spurious_ >= 1
    assert np.allclose(fitted.eigenvalues_[:2], [1, 2], rtol=0.1)


@pytest.mark.slow
def test_float32_and_same_seed():
    X, Y = (a.astype(np.float32) for a in ornstein_uhlenbeck(4000, 0))
    fits = [
        KernelEDMD(n_components=3, lag_time=LAG, random_state=0).fit(X, successors=Y) for _ in "ab"
    ]
    assert fits[0].transform(X).dtype == np.float32
    assert (fits[0].Psi_ == fits[1].Psi_).all()
    assert np.allclose(fits[0].eigenvalues_[0], 1.0, rtol=0.1)


def test_errors_in_words():
    X, Y = ornstein_uhlenbeck(300, 0)
    with pytest.raises(ValueError, match="successors="):
        KernelEDMD(n_components=2).fit(X)
    with pytest.raises(ValueError, match="passed as y"):
        KernelEDMD(n_components=2).fit(X, Y)
    with pytest.raises(ValueError, match="successors has 299 rows, X has 300"):
        KernelEDMD(n_components=2).fit(X, successors=Y[1:])
    with pytest.raises(ValueError, match="successors has 2 features"):
        KernelEDMD(n_components=2).fit(X, successors=np.ones((300, 2)))
    with pytest.raises(ValueError, match="lag_time is 0"):
        KernelEDMD(n_components=2, lag_time=0).fit(X, successors=Y)
    with pytest.raises(ValueError, match="reg is 2"):
        KernelEDMD(n_components=2, reg=2).fit(X, successors=Y)
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="n_components is 300"):
        KernelEDMD(n_components=300).fit(X, successors=rng.permutation(Y))


def test_kernels_that_make_no_markov_matrix():
    X = np.random.default_rng(0).normal(size=(50, 2))
    with pytest.raises(ValueError, match="takes values <= 0, expected a positive kernel"):
        KernelEDMD(gk.Riesz(1.5), 2).fit(X, successors=X)
    with pytest.raises(TypeError, match="kernel is 'gaussian', expected a kernel"):
        KernelEDMD("gaussian", 2).fit(X, successors=X)
