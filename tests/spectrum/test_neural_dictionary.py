"""A dictionary learned by a small network: its derivatives, its score, and KSWGD along its modes."""

import numpy as np
import pytest

import gpukoop as gk
from gpukoop import datasets

torch = pytest.importorskip("torch")
LAG = 0.1
X, Y = datasets.double_well(1_500, lag_time=LAG, random_state=0, independent=True)
OPTIONS = {"n_functions": 6, "width": 24, "n_epochs": 150, "random_state": 0}


@pytest.fixture(scope="module")
def learned():
    return gk.torch.NeuralDictionary(**OPTIONS).fit(X, successors=Y)


@pytest.mark.slow
def test_derivatives_are_those_of_its_functions(learned):
    Z, step = X[:6], 1e-5
    slopes = learned.gradient(Z)
    assert slopes.shape == (6, 6, X.shape[1])
    for c in range(X.shape[1]):
        e = step * np.eye(X.shape[1])[c]
        change = (learned.features(Z + e) - learned.features(Z - e)) / (2 * step)
        assert np.abs(slopes[:, :, c] - change).max() < 1e-7 * max(1.0, np.abs(slopes).max())
    w = np.arange(6.0)
    assert np.allclose(learned.slope(Z, w), np.einsum("npd,p->nd", slopes, w))


@pytest.mark.slow
def test_it_finds_the_slow_mode_and_is_reproducible(learned):
    slow = datasets.exact("double_well")["eigenvalues"][0]
    spectrum = gk.GeneratorEDMD(learned, n_components=3).fit(X)
    # a Rayleigh quotient over 1,500 samples, of a function that is nearly the first
    assert abs(spectrum.eigenvalues_[0] / slow - 1) < 0.25
    # no functions score more than the true ones, but for the 300 pairs kept aside
    assert np.exp(-2 * slow * LAG) - 0.1 < learned.score_ < 6
    again = gk.torch.NeuralDictionary(**OPTIONS).fit(X, successors=Y)
    assert np.array_equal(again.features(X[:5]), learned.features(X[:5]))


def test_particles_follow_its_modes(learned):
    flow = gk.KSWGD(
        gk.GeneratorEDMD(learned, n_components=4).fit(X), total_time=4.0, random_state=0
    ).fit(X)
    assert flow.backend_ == "dictionary"
    start = X[X[:, 0] > 0][:400]  # all in one well
    moved = flow.transport(start)
    before, after = (np.abs(flow.transform(Z).mean(axis=0)[0]) for Z in (start, moved))
    assert before > 0.8
    assert after < 0.1


def test_pairs_are_needed():
    with pytest.raises(ValueError, match="learns from pairs"):
        gk.torch.NeuralDictionary().fit(X)
