"""Spectra of stochastic systems as evolutions: goldens of generators (T3), forecasts, laws at any lag."""

import numpy as np
import pytest

from gpukoop import datasets
from gpukoop.sampler import Relaxation, spectral_report
from gpukoop.spectrum import GeneratorEDMD, KernelEDMD, Monomials


def test_generators_of_known_systems():
    """T3: a slow manifold, b = (g x1, d (x2 - x1^2)) with noise of 1e-9, and Ornstein-Uhlenbeck with beta = 4."""
    X = np.random.default_rng(0).uniform(-1, 1, (400, 2))
    g, d = -0.8, -0.7
    drift = np.column_stack([g * X[:, 0], d * (X[:, 1] - X[:, 0] ** 2)])
    fitted = GeneratorEDMD(Monomials(4), n_components=5).fit(X, drift=drift, diffusion=1e-9)
    np.testing.assert_allclose(fitted.eigenvalues_, [-d, -g, -2 * d, -g - d, -2 * g], atol=1e-8)
    line = X[:, :1]
    fitted = GeneratorEDMD(Monomials(10), n_components=10).fit(
        line, drift=-line, diffusion=float(np.sqrt(2 / 4))
    )
    np.testing.assert_allclose(fitted.eigenvalues_, np.arange(1, 11), atol=1e-8)
    law = Relaxation(fitted, line)
    report = spectral_report(law.generator)
    assert report.modal
    np.testing.assert_allclose(report.eigenvalues.real, -np.arange(11), atol=1e-8)


def test_ornstein_uhlenbeck_forecast_is_exact():
    """Monomials hold x and x^2: E[x_t] = z e^-t, E[x_t^2] = 1 + (z^2 - 1) e^-2t, whatever the lag."""
    X = np.random.default_rng(0).normal(size=(500, 1))
    law = Relaxation(GeneratorEDMD(Monomials(4), n_components=4).fit(X, drift=-X), X)
    Z = np.linspace(-2, 2, 9)[:, None]
    f = np.column_stack([X[:, 0], X[:, 0] ** 2])
    for t in (0.0, 0.1, 1.0, 3.0):
        found = law.forecast(Z, f, t)
        z = Z[:, 0]
        # The mean of f over 500 samples stands for that over the law: it moves the answer by (1 - e^-t) / sqrt(500).
        bound = 1e-6 + 4 * np.array([1.0, np.sqrt(2)]) * (1 - np.exp(-2 * t)) / np.sqrt(500)
        assert (abs(found[:, 0] - z * np.exp(-t)) < bound[0]).all()
        assert (abs(found[:, 1] - (1 + (z**2 - 1) * np.exp(-2 * t))) < bound[1]).all()


def euler(start, t, rng, h=0.004):
    x = start.copy()
    for _ in range(round(t / h)):
        x = x - 4 * x * (x**2 - 1) * h + np.sqrt(2 * h) * rng.normal(size=x.shape)
    return x


def test_double_well_relaxes_as_its_particles_do():
    X, Y = datasets.double_well(4000, lag_time=0.1, random_state=0, independent=True)
    fitted = KernelEDMD(n_components=8, lag_time=0.1, n_landmarks=300, random_state=0).fit(
        X, successors=Y
    )
    law = Relaxation(fitted, X)
    start = np.full((4000, 1), 0.9)
    rng = np.random.default_rng(1)
    for t in (0.3, 1.0, 3.0):
        truth = euler(start, t, rng)
        drawn = law.sample(4000, start[:1], t, random_state=0)
        # Two counts of 4,000 differ by at most 4 sqrt(2 / 4 / 4000) = 0.045; the first eigenvalue is known to 5 per cent.
        assert abs((drawn > 0).mean() - (truth > 0).mean()) < 0.045 + 0.03
        assert abs(drawn.mean() - truth.mean()) < 0.12
        assert law.clipped < 0.1
    late = law.sample(4000, start[:1], 50.0, random_state=0)
    assert abs((late > 0).mean() - 0.5) < 0.05


def test_bad_input():
    with pytest.raises(ValueError, match="call its fit first"):
        Relaxation(KernelEDMD())
    X = np.random.default_rng(0).normal(size=(200, 1))
    fitted = GeneratorEDMD(Monomials(3), n_components=3).fit(X, drift=-X)
    law = Relaxation(fitted, X)
    with pytest.raises(ValueError, match="t is -1"):
        law.sample(3, X[:1], -1.0)
    with pytest.raises(ValueError, match="values has shape"):
        law.forecast(X, np.zeros(3), 1.0)
    with pytest.raises(ValueError, match="n_samples is 0"):
        law.sample(0, X[:1], 1.0)
