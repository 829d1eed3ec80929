"""KSWGD starts on the support of the data and leaves alone what is only sampling noise."""

import numpy as np
import pytest
from scipy.spatial import cKDTree

import gpukoop as gk
from gpukoop import datasets, metrics
from gpukoop.flow.margins import with_margins
from gpukoop.flow.start import gaussian_mixture, smoothed_bootstrap

LAWS = {
    "banana": lambda n, s: datasets.banana(n, s),
    "mixture": lambda n, s: datasets.unequal_mixture(n, s),
    "student": lambda n, s: datasets.student_t(n, s),
    "moons": lambda n, s: datasets.moons(n, s, share=0.85),
}


def distance(X, Z):
    return np.median(cKDTree(X).query(Z)[0])


@pytest.mark.parametrize("law", LAWS)
def test_samples_are_as_near_to_their_law_as_the_data_and_no_copies(law):
    X, fresh, reference = (LAWS[law](n, s) for n, s in ((1_000, 0), (1_000, 1), (3_000, 2)))
    Z = gk.KSWGD(random_state=0).fit(X).sample(1_000)
    floors = [metrics.energy_distance(LAWS[law](1_000, 10 + i), reference) for i in range(4)]
    best = max(metrics.energy_distance(X, reference), np.mean(floors))
    assert metrics.energy_distance(Z, reference) < 2 * best
    assert distance(X, Z) > 0.8 * distance(X, fresh)


@pytest.mark.parametrize("law", LAWS)
def test_draws_of_the_law_do_not_get_worse(law):
    X, start, reference = (LAWS[law](n, s) for n, s in ((1_000, 0), (1_000, 1), (3_000, 2)))
    Z = gk.KSWGD(random_state=0, coarse=False).fit(X).transport(start)
    floor = np.mean(
        [metrics.energy_distance(LAWS[law](1_000, 10 + i), reference) for i in range(4)]
    )
    # a floor of slack: the moments of modes that are above their noise are matched to the samples, which have errors of their own
    assert metrics.energy_distance(Z, reference) < metrics.energy_distance(start, reference) + floor


def test_the_start_follows_units_and_keeps_the_variance():
    X = datasets.banana(800, 0)
    one, large = (smoothed_bootstrap(f * X, 500, np.random.default_rng(0)) for f in (1.0, 1e9))
    assert np.abs(large / 1e9 - one).max() < 1e-9
    many = np.random.default_rng(1).normal(size=(1_000, 60))
    Z = smoothed_bootstrap(many, 1_000, np.random.default_rng(0))
    assert np.abs(Z.std(axis=0) / many.std(axis=0) - 1).max() < 0.1


def test_copies_and_few_samples_stay_finite():
    rng = np.random.default_rng(0)
    for X in (
        np.ones((3, 2)),
        rng.normal(size=(1, 2)),
        rng.normal(size=(2, 2)),
        np.repeat(rng.normal(size=(6, 2)), 20, axis=0),
    ):
        Z = smoothed_bootstrap(X, 7, rng)
        assert Z.shape == (7, 2)
        assert np.isfinite(Z).all()
    # twenty copies of each: their neighbours are themselves
    assert distance(X, Z) < 1e-9


def test_a_mixture_start_finds_its_weights():
    X = datasets.unequal_mixture(2_000, 0)
    Z = gaussian_mixture(X, 4_000, np.random.default_rng(0))
    near = np.argmin(
        ((Z[:, None] - datasets.exact("unequal_mixture")["centres"]) ** 2).sum(axis=2), axis=1
    )
    share = np.bincount(near, minlength=3) / len(Z)
    # X and Z each know a weight to 1 per cent
    assert np.abs(share - [0.7, 0.2, 0.1]).max() < 0.04


def test_modes_of_a_handful_of_samples_are_never_pushed():
    X = datasets.student_t(1_000, 0)
    flow = gk.KSWGD(random_state=0, coarse=False, validation_fraction=0).fit(X)
    assert not flow.carried_.all()
    assert (
        np.abs(flow.transform(X).mean(axis=0)).max() < 1e-8
    )  # samples without neighbours count too


def test_the_start_keeps_the_gap_of_a_slow_coordinate_however_it_is_turned():
    exact = datasets.exact("slow_well")["barrier_share"]
    turned = np.linalg.qr(np.random.default_rng(5).normal(size=(10, 10)))[0]
    for turn in (np.eye(10), turned):
        shares = []
        for seed in range(3):
            X = datasets.slow_well(900, random_state=seed, independent=True)[0]
            Z = smoothed_bootstrap(X @ turn, 1_000, np.random.default_rng(seed)) @ turn.T
            shares.append(100 * (np.abs(Z[:, 0]) < 0.3).mean())
        # without margins 10 per cent; 3 times 1,000 draws know the share to .25
        assert abs(np.mean(shares) - exact) < 1.0


def test_margins_move_particles_to_the_quantiles_of_their_samples():
    rng = np.random.default_rng(0)
    parents = rng.normal(size=(400, 4)) ** 3
    Z = parents + 0.2 * rng.normal(size=parents.shape)
    moved = with_margins(Z, parents, np.eye(4)[:2], 400)
    assert np.allclose(np.sort(moved[:, :2], axis=0), np.sort(parents[:, :2], axis=0))
    assert np.array_equal(moved[:, 2:], Z[:, 2:])
    many = with_margins(
        np.repeat(Z, 5, axis=0) + 1e-3 * rng.normal(size=(2_000, 4)),
        np.repeat(parents, 5, axis=0),
        np.eye(4),
        400,
    )
    assert len(np.unique(many[:, 0])) == 2_000  # none of the many takes a place of another
