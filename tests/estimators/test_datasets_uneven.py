"""Bent, unequal, heavy-tailed and slow laws: draws, densities and exact answers against one another.

As in test_datasets.py: bounds are five standard errors, seeds are fixed.
"""

import math

import numpy as np
import pytest
from scipy import integrate, stats

from gpukoop import datasets

N = 20_000
DRAWS = {
    "banana": (datasets.banana, {}),
    "unequal_mixture": (datasets.unequal_mixture, {}),
    "student_t": (datasets.student_t, {"degrees": 12.0}),  # its fourth moments are finite
    "mises_fisher": (datasets.mises_fisher, {}),
    "slow_well": (
        lambda n, seed, **p: datasets.slow_well(n, 0.1, seed, independent=True, **p)[0],
        {"n_features": 4, "width": 0.5},
    ),
    "moons": (datasets.moons, {"share": 0.85}),
    "double_well": (
        lambda n, seed, **p: datasets.double_well(n, random_state=seed, independent=True, **p)[0],
        {"barrier": 4.0},
    ),
}


def draw(name, n=N, seed=1):
    function, parameters = DRAWS[name]
    return function(n, seed, **parameters)


def assert_mean(values, expected):
    error = 5 * values.std(axis=0) / math.sqrt(len(values)) + 1e-12
    gap = np.abs(values.mean(axis=0) - expected)
    assert (gap <= error).all(), f"off by {gap}, allowed {error}"


@pytest.mark.parametrize("name", DRAWS)
def test_draws_have_the_exact_mean_and_covariance(name):
    X, answer = draw(name), datasets.exact(name, **DRAWS[name][1])
    assert X.shape == (N, len(answer["mean"]))
    assert_mean(X, answer["mean"])
    centred = X - answer["mean"]
    assert_mean(centred[:, :, None] * centred[:, None, :], answer["covariance"])
    assert np.array_equal(X, draw(name))


@pytest.mark.parametrize("name", [n for n in DRAWS if n != "mises_fisher"])
def test_the_density_of_the_draws_is_theirs(name):
    """E q(X) / p(X) = 1 for every density q inside the support of p, if X is drawn from p and p is normalised."""
    X, parameters = draw(name), dict(DRAWS[name][1])
    parameters.pop("n_features", None)
    p = datasets.density(name, X, **parameters)
    # not far out, where 1 / p is anything
    for middle in X[np.argsort(-p[:100])[[0, 30]]]:
        near = X[np.argsort(np.linalg.norm(X - middle, axis=1))[: N // 10]]
        q = stats.multivariate_normal(middle, 0.5 * np.cov(near.T)).pdf(X)
        ratio = q / p
        assert ratio.std() < 40  # so that the mean below says something
        assert_mean(ratio, 1.0)


def test_the_sphere_is_kept_and_its_density_is_per_area():
    X = draw("mises_fisher")
    np.testing.assert_allclose(np.linalg.norm(X, axis=1), 1, rtol=1e-14)
    U = np.random.default_rng(2).standard_normal((N, 3))
    U = datasets.project_sphere(U)
    p = datasets.density("mises_fisher", U)
    assert_mean(4 * math.pi * p, 1.0)
    side = np.array([0.6, 0.0, 0.8])
    assert_mean((X @ side > 0).astype(float), np.mean(4 * math.pi * p * (U @ side > 0)))
    origin = np.zeros((1, 3))
    assert datasets.project_sphere(origin).tolist() == [[1, 0, 0]]
    assert not origin.any()


def test_masses_are_those_named():
    X, answer = draw("unequal_mixture"), datasets.exact("unequal_mixture")
    nearest = np.linalg.norm(X[:, None] - answer["centres"], axis=2).argmin(axis=1)
    # the smallest component is narrow and far from the others
    assert_mean((nearest == 2).astype(float), 0.1)
    X, label = datasets.moons(N, 3, share=0.85, return_labels=True)
    assert_mean((label == 0).astype(float), 0.85)
    assert np.array_equal(datasets.moons(50, 3), datasets.moons(50, 3, share=0.5))


def test_the_tail_of_student_is_the_closed_form():
    r = np.linalg.norm(datasets.student_t(N, 4), axis=1)
    assert stats.kstest(r, lambda r: 1 - (1 + r**2 / 3) ** -1.5).pvalue > 1e-6
    assert datasets.exact("student_t")["radius_quantile"](0.999) == pytest.approx(
        math.sqrt(3 * (0.001 ** (-2 / 3) - 1))
    )


def test_the_slow_well_is_one_slow_coordinate():
    answer = datasets.exact("slow_well", 12, n_features=4, width=0.5)
    slow = datasets.exact("double_well", 3, barrier=4.0)["eigenvalues"]
    fast = [4.0] * 3 + [8.0] * 6  # k / w^2 with k = 1, 2 in three coordinates
    both = sorted([slow[0], *fast, *(slow[0] + np.array(fast)), slow[1]])[:12]
    np.testing.assert_allclose(answer["eigenvalues"], both, rtol=1e-10)
    assert slow[0] == pytest.approx(0.1191, abs=5e-5)  # of a spectral code with twice the nodes
    density = lambda x: datasets.density("double_well", [[x]], barrier=4.0)[0]
    assert answer["barrier_share"] == pytest.approx(
        100 * integrate.quad(density, -0.3, 0.3)[0], rel=1e-8
    )
    X, Y = datasets.slow_well(N, 0.1, 5, n_features=3, width=0.5, independent=True)
    assert_mean(100.0 * (np.abs(X[:, 0]) < 0.3), answer["barrier_share"])
    assert_mean(X[:, 1] * Y[:, 1], 0.25 * math.exp(-0.4))
    assert_mean(X[:, 1] * X[:, 2], 0.0)


def test_a_barrier_multiplies_the_potential():
    Z = np.linspace(-2, 2, 9)[:, None]
    twice = datasets.potential("double_well", Z, barrier=2.0)
    np.testing.assert_allclose(twice, 2 * datasets.potential("double_well", Z))
    with pytest.raises(ValueError, match="barrier is 0"):
        datasets.quadruple_well(5, barrier=0)
    with pytest.raises(ValueError, match="share is 1"):
        datasets.moons(5, share=1)
