"""Base points of the Koopman sampler: a scrambled Sobol sequence, of which every point has the law of an independent one."""

import numpy as np
import pytest
from scipy import stats

import gpukoop as gk
from gpukoop.draws import SOBOL_COORDINATES, normal_points

SMALL = {"n_features": 40, "reg": 1e-6, "random_state": 0}


def drawn(n, d, seed, base="sobol"):
    return normal_points(n, d, np.random.default_rng(seed), base)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n", [1, 2, 3, 1000, 1024, 1025])
@pytest.mark.parametrize("d", [1, SOBOL_COORDINATES, SOBOL_COORDINATES + 1])
def test_any_number_of_points_and_coordinates(n, d):
    Z = drawn(n, d, 0)
    assert Z.shape == (n, d)
    assert np.isfinite(Z).all()
    assert len(np.unique(Z[:, 0])) == n
    assert np.array_equal(Z, drawn(n, d, 0))
    assert not np.array_equal(Z, drawn(n, d, 1))


def test_a_point_alone_is_standard_normal_in_every_coordinate_and_place():
    # 2,000 seeds: every row and column is a sample of independent numbers; 9 tests at level 1e-4 each
    Z = np.stack([drawn(3, SOBOL_COORDINATES + 1, seed) for seed in range(2_000)])
    for row in range(3):
        for column in (0, 7, SOBOL_COORDINATES):
            assert stats.kstest(Z[:, row, column], "norm").pvalue > 1e-4
    # and its coordinates are independent of each other: 5 standard errors
    assert abs((Z[:, 0, 0] * Z[:, 0, 1]).mean()) < 5 / np.sqrt(2_000)


@pytest.mark.parametrize("n", [512, 700, 1_000])
def test_means_vary_less_than_those_of_independent_points(n):
    Z = np.stack([drawn(n, 2, seed) for seed in range(60)])
    for values in (Z[..., 0], Z.prod(axis=2), np.abs(Z.sum(axis=2)) < 1):
        square = values.mean(axis=1).var() / (values.var() / n)  # 1 of independent points
        assert square < 0.2
    first = SOBOL_COORDINATES
    beyond = np.stack([drawn(n, first + 1, seed)[:, first] for seed in range(60)])
    # a variance of 60 means is known to sqrt(2 / 60) = .18
    assert 0.3 < beyond.mean(axis=1).var() * n < 2.0


def test_a_part_of_the_points_is_no_half_of_the_space():
    # in the order of the sequence every second point has one sign: the mean would be .8
    means = [drawn(256, 2, seed)[::2].mean(axis=0) for seed in range(100)]
    assert np.abs(np.mean(means, axis=0)).max() < 5 / np.sqrt(128 * 100)
    assert 0.5 < np.var(means) * 256 < 2.0  # of half of 256 without replacement: (1 - 1/2) / 128


def test_samples_are_nearer_to_their_law_and_the_same_at_every_call():
    X = np.random.default_rng(0).normal(size=(400, 2)) * [1.0, 0.3] + 2.0
    sampler = gk.KoopmanSampler(**SMALL).fit(X)
    law = sampler.sample(2**14, random_state=99).mean(axis=0)
    assert np.array_equal(sampler.sample(300), sampler.sample(300))
    errors = {
        base: np.mean(
            [
                (sampler.set_params(base=base).sample(300, random_state=k).mean(axis=0) - law) ** 2
                for k in range(10)
            ]
        )
        for base in ("sobol", "independent")
    }
    assert errors["sobol"] < 0.2 * errors["independent"], errors


@pytest.mark.parametrize("base", ["sobol", "independent"])
def test_samples_are_base_points_that_the_flow_carries(base):
    X = np.random.default_rng(0).normal(size=(300, 2))
    sampler = gk.KoopmanSampler(**SMALL, base=base).fit(X)
    x0 = normal_points(50, 2, np.random.default_rng([sampler._flow.seed, 2**30]), base)
    assert np.allclose(sampler.sample(50), sampler.transport(x0), rtol=0, atol=1e-12)


def test_labels_are_drawn_by_their_shares_and_each_has_a_sequence():
    rng = np.random.default_rng(0)
    y = np.repeat(["a", "b", "c"], [100, 150, 50])
    X = rng.normal(size=(300, 2)) + 10.0 * (y == "b")[:, None] - 10.0 * (y == "c")[:, None]
    sampler = gk.KoopmanSampler(**SMALL).fit(X, y)
    Z = sampler.sample(601)[:, 0]
    counts = np.array([(np.abs(Z) < 5).sum(), (Z > 5).sum(), (Z < -5).sum()])
    assert np.abs(counts - 601 * np.array([2, 3, 1]) / 6).max() < 1
    wanted = np.array(["b", "a"] * 128)
    W = sampler.sample(256, y=wanted)
    means = np.stack([W[wanted == label].mean(axis=0) for label in ("a", "b")])
    fresh = sampler.sample(2**13, y="a").mean(axis=0), sampler.sample(2**13, y="b").mean(axis=0)
    # 128 independent points would be sqrt(1 / 128) = .09 off
    assert np.abs(means - fresh).max() < 0.04
    assert sampler.sample(1).shape == (1, 2)


def test_a_wrong_word_is_refused():
    for wrong in ("halton", None, True):
        with pytest.raises(ValueError, match="base must be one of 'sobol', 'independent'"):
            gk.KoopmanSampler(base=wrong).fit(np.zeros((30, 2)))
