"""GeneratorEDMD: exact eigenvalues in closed dictionaries, Rayleigh-Ritz in coordinates."""

import numpy as np
import pytest

import gpukoop as gk
from gpukoop import datasets
from gpukoop.spectrum import GeneratorEDMD, Monomials
from gpukoop.spectrum.whitening import regress, whitened_pencil


def test_slow_manifold():
    """b = (g x1, d (x2 - x1^2)): eigenvalues sums of g and d, eigenfunction x2 + c x1^2, c = d / (2 g - d)."""
    g, d = -0.8, -0.7
    X = np.random.default_rng(0).normal(size=(2000, 2))

    def drift(x):
        return np.stack([g * x[:, 0], d * (x[:, 1] - x[:, 0] ** 2)], axis=1)

    dictionary = Monomials(8)
    fitted = GeneratorEDMD(dictionary, 45).fit(X, drift=drift, diffusion=np.zeros_like(X))
    for exact in (-d, -g, -2 * d, -g - d, -2 * g):
        assert np.abs(fitted.eigenvalues_ - exact).min() < 1e-8
    column = np.argmin(np.abs(fitted.eigenvalues_ + d))
    vector = fitted.eigenvectors_[:, column]
    names = [tuple(row) for row in dictionary.exponents(2)]
    ratio = vector[names.index((2, 0))] / vector[names.index((0, 1))]
    assert abs(ratio - d / (2 * g - d)) < 1e-8


def test_ornstein_uhlenbeck_golden():
    """-a x with sigma = sqrt(2 / beta): 1 .. 10 and Hermite functions, from samples of any law."""
    X = 0.5 * np.random.default_rng(0).normal(size=(2000, 1))
    fitted = GeneratorEDMD(Monomials(10), 10).fit(X, drift=lambda x: -x, diffusion=0.5**0.5)
    assert np.abs(fitted.eigenvalues_ - np.arange(1, 11)).max() < 1e-8
    assert fitted.diffusivity_ == pytest.approx(0.25)
    z = np.linspace(-1, 1, 7)[:, None]
    second = fitted.transform(z)[:, 1]
    hermite = 4 * z[:, 0] ** 2 - 1
    slope = np.polyfit(hermite, second, 1)
    assert np.abs(np.polyval(slope, hermite) - second).max() < 1e-8


@pytest.mark.parametrize("form", ["number", "diagonal", "matrix", "rows", "callable"])
def test_every_form_of_the_diffusion(form):
    X = np.random.default_rng(0).normal(size=(500, 2))
    s = {
        "number": 2**0.5,
        "diagonal": np.full(2, 2**0.5),
        "matrix": 2**0.5 * np.eye(2),
        "rows": np.full((500, 2), 2**0.5),
        "callable": lambda x: np.full(len(x), 2**0.5),
    }[form]
    fitted = GeneratorEDMD(Monomials(2), 5).fit(X, drift=-X, diffusion=s)
    assert np.allclose(fitted.eigenvalues_, [1, 1, 2, 2, 2], atol=1e-8)


def test_rotation_has_complex_eigenvalues():
    spin = np.array([[-0.3, -1.0], [1.0, -0.3]])
    X = np.random.default_rng(0).normal(size=(500, 2))
    fitted = GeneratorEDMD(Monomials(1), 2).fit(X, drift=X @ spin.T)
    assert np.allclose(np.sort_complex(fitted.eigenvalues_), [0.3 - 1j, 0.3 + 1j], atol=1e-10)
    assert np.iscomplexobj(fitted.transform(X))


@pytest.mark.parametrize("n", [2000, 70_000])
def test_reversible_dictionary(n):
    """Rayleigh-Ritz of N(0, 1) on cubics: the samples' own Dirichlet form, in row blocks."""
    X = np.random.default_rng(1).normal(size=(n, 1))
    fitted = GeneratorEDMD(Monomials(3), 3).fit(X)
    # The kurtosis of H_3 is 93: its eigenvalue has an error of 3 sqrt(93 / n).
    assert np.allclose(fitted.eigenvalues_, [1, 2, 3], rtol=4 * np.sqrt(93 / n))
    phi, slopes = fitted.transform(X), fitted.gradient(X)
    assert np.abs(phi.T @ phi / n - np.eye(3)).max() < 1e-8
    energy = np.einsum("nrd,nsd->rs", slopes, slopes) / n
    assert np.abs(energy - np.diag(fitted.eigenvalues_)).max() < 1e-8
    c = np.array([1.0, 2.0, -1.0])
    assert np.allclose(fitted.gradient(X[:9], c), np.einsum("nrd,r->nd", slopes[:9], c))


def test_coordinates_remove_the_bias_of_the_bandwidth():
    X = datasets.quadruple_well(4000, independent=True, random_state=0)[0]
    kernel = gk.Gaussian(0.1**0.5)
    fitted = GeneratorEDMD(n_components=8, kernel=kernel, n_landmarks=400, random_state=0).fit(X)
    exact = [0.7487, 0.7487, 1.4974, 6.0041, 6.0041, 6.7528, 6.7528]
    assert np.allclose(fitted.eigenvalues_[:7], exact, rtol=0.08)
    phi, slopes = fitted.transform(X), fitted.gradient(X)
    assert np.abs(phi.T @ phi / len(X) - np.eye(8)).max() < 1e-8
    energy = np.einsum("nrd,nsd->rs", slopes, slopes) / len(X)
    assert np.abs(energy - np.diag(fitted.eigenvalues_)).max() < 1e-8


def test_derivatives_of_monomials():
    X, h = np.random.default_rng(0).normal(size=(5, 3)), 1e-6
    basis = Monomials(4)
    assert basis.features(X).shape == (5, 35)
    for a, step in enumerate(h * np.eye(3)):
        plus, minus = X + step, X - step
        slope = (basis.features(plus) - basis.features(minus)) / (2 * h)
        assert np.abs(basis.gradient(X)[:, :, a] - slope).max() < 1e-6
        curve = (basis.gradient(plus) - basis.gradient(minus)) / (2 * h)
        assert np.abs(basis.hessian(X)[:, :, a] - curve).max() < 1e-6


def test_least_squares_in_blocks():
    rng = np.random.default_rng(0)
    G, H = rng.normal(size=(300, 5)) * [1, 1e6, 1, 1, 1], rng.normal(size=(300, 2))
    exact = np.linalg.lstsq(G, H, rcond=None)[0]
    assert np.allclose(regress((G[i : i + 7], H[i : i + 7]) for i in range(0, 300, 7)), exact)
    C = G[:, [0, 2]].T @ G[:, [0, 2]]
    theta, Y = whitened_pencil(2 * C, C, 1e-10)
    assert np.allclose(theta, 2)
    assert np.allclose(Y.T @ C @ Y, np.eye(2))


def test_errors_in_words():
    X = np.random.default_rng(0).normal(size=(50, 2))
    with pytest.raises(ValueError, match="second derivatives"):
        GeneratorEDMD(n_components=2).fit(X, drift=-X)
    with pytest.raises(ValueError, match="unknown dictionary 'fourier'"):
        GeneratorEDMD("fourier").fit(X)
    with pytest.raises(ValueError, match="drift gives shape"):
        GeneratorEDMD(Monomials(2)).fit(X, drift=lambda x: x[:3])
    with pytest.raises(ValueError, match="diffusion gives shape"):
        GeneratorEDMD(Monomials(2)).fit(X, drift=-X, diffusion=lambda x: np.ones((len(x), 5)))
    with pytest.raises(ValueError, match="expected a finite number > 0"):
        GeneratorEDMD(Monomials(2)).fit(X, drift=-X, diffusion=-1.0 * 0)


def test_bad_dictionaries_and_coefficients_name_themselves():
    X = np.random.default_rng(0).normal(size=(50, 2))
    for bad in (3, None):
        with pytest.raises(TypeError, match=r"dictionary is .*features, gradient"):
            GeneratorEDMD(bad).fit(X)
    with pytest.raises(TypeError, match="diffusion is 'a'"):
        GeneratorEDMD(Monomials(2), 2).fit(X, diffusion="a")
    with pytest.raises(ValueError, match="takes values <= 0, expected a positive kernel"):
        GeneratorEDMD(kernel=gk.Energy()).fit(X)


def test_powers_of_components_and_their_slopes():
    rng = np.random.default_rng(8)
    X = rng.normal(size=(300, 4)) @ rng.normal(size=(4, 4))
    powers = gk.spectrum.Powers(gk.spectrum.LinearCoordinates("pca", n_components=3).fit(X), 3)
    Z, h = X[:6], 1e-5
    features = powers.features(Z)
    assert features.shape == (6, 9)
    np.testing.assert_allclose(features[:, 6:], features[:, :3] ** 3)
    numeric = np.stack(
        [(powers.features(Z + h * e) - powers.features(Z - h * e)) / (2 * h) for e in np.eye(4)],
        axis=2,
    )
    np.testing.assert_allclose(powers.gradient(Z), numeric, rtol=1e-5, atol=1e-7)
    w = rng.normal(size=9)
    np.testing.assert_allclose(
        powers.slope(Z, w), np.einsum("npd,p->nd", numeric, w), rtol=1e-5, atol=1e-6
    )
    # what a fit makes of them is the same with and without the short way
    fitted = GeneratorEDMD(powers, 9).fit(X)
    c = rng.normal(size=9)
    np.testing.assert_allclose(
        fitted.gradient(Z, c), np.einsum("nkd,k->nd", fitted.gradient(Z), c), rtol=1e-8, atol=1e-8
    )
    # the first component alone gives the quotient 1 / variance, which other functions can only lower
    quotient = 1 / np.linalg.eigvalsh(np.cov(X.T, bias=True))[-1]
    assert 0.5 * quotient < fitted.eigenvalues_[0] <= quotient * (1 + 1e-9)
