"""Random fields as points: the stochastic heat equation against its closed law."""

import itertools

import numpy as np
import pytest

import gpukoop as gk
from gpukoop import datasets

N, SIGMAS = 20_000, 5


def amplitudes(X, answer):
    return X @ answer["modes"] / X.shape[1]


@pytest.mark.parametrize("g", [8, 9])
def test_the_modes_of_the_heat_equation_are_fourier_modes(g):
    answer = datasets.exact("heat_equation", n_cells=g, diffusion=0.02, decay=0.7, noise=0.5)
    np.testing.assert_allclose(answer["modes"].T @ answer["modes"], g * np.eye(g), atol=1e-12)
    # every mode solves the equation: its second difference by discrete Fourier transform is -(2 pi k)^2 times itself
    k = np.fft.fftfreq(g, 1 / g)
    second = np.fft.ifft(
        -((2 * np.pi * k[:, None]) ** 2) * np.fft.fft(answer["modes"], axis=0), axis=0
    )
    rates = answer["rates"]
    np.testing.assert_allclose(
        0.02 * second.real - 0.7 * answer["modes"], -rates * answer["modes"], atol=1e-10
    )
    np.testing.assert_allclose(answer["variances"], 0.125 / rates, rtol=1e-12)


def test_eigenvalues_of_the_heat_equation_are_sums_of_rates():
    answer = datasets.exact("heat_equation", n_eigenvalues=60, n_cells=5)
    counts = itertools.product(range(8), repeat=5)
    sums = sorted(float(np.dot(c, answer["rates"])) for c in counts)[1:61]
    np.testing.assert_allclose(answer["eigenvalues"], sums, rtol=1e-12)


@pytest.mark.parametrize("independent", [True, False])
def test_amplitudes_of_the_heat_equation_are_ornstein_uhlenbeck_processes(independent):
    lag = 0.3 if independent else 2.0
    answer = datasets.exact("heat_equation", n_cells=16)
    X, Y = datasets.heat_equation(N, lag, 0, n_cells=16, independent=independent)
    assert X.shape == Y.shape == (N, 16)
    if not independent:
        np.testing.assert_array_equal(X[1:], Y[:-1])
    q = np.exp(-lag * answer["rates"])
    correlated = (1 + q**2) / (1 - q**2) if not independent else 1.0  # of squares along a chain
    for C in (X, Y):
        ratio = (amplitudes(C, answer) ** 2).mean(axis=0) / answer["variances"]
        assert (np.abs(ratio - 1) <= SIGMAS * np.sqrt(2 * correlated / N)).all()
    a, b = amplitudes(X, answer), amplitudes(Y, answer)
    kick = (b - q * a) / np.sqrt(answer["variances"] * (1 - q**2))
    covariance = kick.T @ kick / N
    assert (np.abs(covariance - np.eye(16)) <= SIGMAS * np.sqrt((1 + np.eye(16)) / N)).all()
    assert (np.abs((kick * a).mean(axis=0)) <= SIGMAS * np.sqrt(answer["variances"] / N)).all()


def test_fields_of_the_heat_equation_are_those_of_its_covariance():
    X, _ = datasets.heat_equation(N, random_state=1, n_cells=12, noise=3.0, independent=True)
    C = datasets.exact("heat_equation", n_cells=12, noise=3.0)["covariance"]
    error = np.sqrt((np.outer(np.diag(C), np.diag(C)) + C**2) / N)
    assert (np.abs(X.T @ X / N - C) <= SIGMAS * error).all()


def test_allen_cahn_fields_are_independent_unless_asked():
    X, Y = datasets.allen_cahn(40, random_state=0, n_grid=6)
    assert not (X[1:] == Y[:-1]).all()
    X, Y = datasets.allen_cahn(40, random_state=0, n_grid=6, independent=False)
    assert (X[1:] == Y[:-1]).all()


@pytest.mark.slow
def test_kswgd_carries_a_narrow_start_to_the_law_of_the_heat_equation():
    """The first eight modes end within 15 per cent of their exact variances, from .4 to 3 per cent, one unit away."""
    g = 64
    answer = datasets.exact("heat_equation", n_cells=g)
    X, _ = datasets.heat_equation(3_000, random_state=0, independent=True)
    start = 1.0 + 0.5 * np.random.default_rng(1).standard_normal((800, g))
    components = gk.spectrum.LinearCoordinates("pca", n_components=g).fit(X)
    spectrum = gk.GeneratorEDMD(gk.spectrum.Powers(components), n_components=2 * g)
    spectrum.fit(X, diffusion=np.sqrt(2 * g))
    np.testing.assert_allclose(spectrum.eigenvalues_[:3], answer["eigenvalues"][:3], rtol=0.1)
    flow = gk.KSWGD(spectrum, step_size=0.1, total_time=12.0).fit(X)
    assert flow.backend_ == "dictionary"
    Z = flow.transport(start)
    first = amplitudes(start, answer).var(axis=0)[:8] / answer["variances"][:8]
    last = amplitudes(Z, answer).var(axis=0)[:8] / answer["variances"][:8]
    assert first.max() < 0.05
    assert (np.abs(last - 1) < 0.15).all(), last
    assert (np.abs(amplitudes(Z, answer).mean(axis=0)) < 0.1 * np.sqrt(answer["variances"])).all()
    assert flow.diagnose(Z).passed
    assert not flow.diagnose(start).passed
