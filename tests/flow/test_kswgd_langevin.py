"""KSWGD with Langevin motion: modes that the flow does not see decay at the rate that is promised."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

import gpukoop as gk
from gpukoop import datasets, metrics
from gpukoop.cli.demo import outside_wells

WELL = datasets.exact("quadruple_well")


def circle_flow(**options):
    """A flow with the two slowest modes of the unit circle, learned from a regular grid of it."""
    angle = 2 * np.pi * np.arange(400) / 400
    X = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return gk.KSWGD(
        kernel=gk.Gaussian(0.2), n_components=2, step_size=0.1, total_time=6.0, coarse=False,
        project=datasets.project_sphere, random_state=0,
        validation_fraction=0, units="absolute", **options,
    ).fit(X)  # fmt: skip


def waves(Z, k):
    """Return the mean of exp(i k angle)."""
    return np.exp(1j * k * np.arctan2(Z[:, 1], Z[:, 0])).mean()


@pytest.mark.parametrize("langevin", [0.0, 0.05])
def test_a_mode_beyond_the_last_decays_at_the_promised_rate(langevin):
    n = 20_000
    # density 1 + .8 cos(3 angle): the first two harmonics, all that the flow sees, are zero from the start
    level = (np.arange(n) + 0.5) / n
    angle = np.interp(level, *_distribution(lambda a: a + 0.8 * np.sin(3 * a) / 3))
    Z = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    flow = circle_flow(langevin=langevin)
    before, after = waves(Z, 3), waves(flow.transport(Z), 3)
    # Without Langevin motion the run stops at once: there is nothing it can see.
    kappa = langevin * (1 - np.arange(1, 61) / 60)
    # A step multiplies exp(i k angle) by exp(-h kappa k^2) in the mean (noise tangential to second order).
    expected = abs(before) * np.exp(-0.1 * 9 * kappa.sum())
    # Fluctuation: 1/sqrt(2n) a component, four sigma. Normal steps leave the tangent: kappa h relative, below 1 percent.
    assert abs(abs(after) - expected) < 4 / np.sqrt(2 * n) + 0.01 * abs(before)
    assert (flow.n_iter_ == 0) == (langevin == 0)
    if langevin == 0:
        assert not flow.converged_  # the modes see nothing, the verdict does


def _distribution(angle_to_mass):
    angle = np.linspace(0, 2 * np.pi, 20_001)
    return angle_to_mass(angle) / (2 * np.pi), angle


@pytest.mark.slow
def test_particles_end_as_good_as_independent_draws():
    n = 5_000
    X, _ = datasets.quadruple_well(n, random_state=0, independent=True)
    reference, _ = datasets.quadruple_well(200_000, random_state=2, independent=True)
    start = np.random.default_rng(1).uniform(-2, 2, (n, 2))
    options = {"n_components": 100, "n_landmarks": 1_000, "step_size": 0.1, "random_state": 0}
    distance = {}
    for langevin in (0.0, 0.02):
        Z = gk.KSWGD(langevin=langevin, units="absolute", **options).fit(X).transport(start)
        distance[langevin] = metrics.sliced_wasserstein(Z, X)
        coverage = metrics.coverage(Z, WELL["centres"], WELL["radius"])
        assert abs(coverage - WELL["coverage"]) < (1.5 if langevin else 4.0)
    another, _ = datasets.quadruple_well(n, random_state=3, independent=True)
    floor = metrics.sliced_wasserstein(another, X)
    # Closer to the samples they were learned from than another draw of the law would be, and than without.
    assert distance[0.02] < 0.6 * floor
    assert distance[0.02] < 0.6 * distance[0.0]
    assert metrics.sliced_wasserstein(Z, reference) < 1.15 * metrics.sliced_wasserstein(
        X, reference
    )


@pytest.mark.slow
def test_holes_of_the_start_close():
    """Particles that start outside the wells leave holes behind, which the moments cannot see."""
    X, _ = datasets.quadruple_well(10_000, random_state=0, independent=True)
    fresh, _ = datasets.quadruple_well(10_000, random_state=5, independent=True)
    start = outside_wells(10_000, np.random.default_rng(1))

    def fill(points):
        """Return the distance within which 95 % of fresh draws of the law find one of the points."""
        found = NearestNeighbors(n_neighbors=1).fit(points).kneighbors(fresh)[0]
        return np.quantile(found, 0.95)

    options = {"n_landmarks": 1_000, "step_size": 0.1, "random_state": 0}
    open_, closed = (
        fill(gk.KSWGD(langevin=kappa, units="absolute", **options).fit(X).transport(start))
        for kappa in (0.0, 0.02)
    )
    assert abs(closed / fill(X) - 1) < 0.05  # as independent draws; measured .97
    assert open_ > 1.7 * fill(X)  # measured 2.04


def test_backends_move_particles_alike_and_a_seed_repeats_them():
    Z = np.random.default_rng(4).normal(size=(300, 2))
    moved = {b: circle_flow(langevin=0.1, backend=b).transport(Z) for b in ("numpy", "numba-cpu")}
    assert np.abs(moved["numpy"] - moved["numba-cpu"]).max() < 1e-8
    again = circle_flow(langevin=0.1, backend="numpy").transport(Z)
    assert (again == moved["numpy"]).all()


def test_particles_keep_their_dtype():
    Z = np.random.default_rng(4).normal(size=(50, 2)).astype(np.float32)
    seen = []
    X = np.random.default_rng(5).normal(size=(300, 2)).astype(np.float32)
    flow = gk.KSWGD(n_components=4, langevin=0.1, units="absolute", random_state=0).fit(X)
    flow.transport(Z, n_iter=3, callback=lambda i, particles: seen.append(particles.dtype))
    assert seen == [np.float32] * 3


def test_killed_runs_continue_to_the_same_bits(tmp_path):
    Z = np.random.default_rng(4).normal(size=(100, 2))
    flow = circle_flow(langevin=0.1)
    whole = flow.transport(Z)

    def stop(i, particles):
        if i == 25:
            raise KeyboardInterrupt

    path = tmp_path / "run.npz"
    with pytest.raises(KeyboardInterrupt):
        flow.transport(Z, callback=stop, checkpoint=path, checkpoint_every=10)
    assert (flow.transport(Z, checkpoint=path, checkpoint_every=10) == whole).all()


@pytest.mark.parametrize(
    ("value", "words"), [(-0.1, "langevin"), (np.nan, "langevin"), (50.0, "must be below")]
)
def test_bad_values_are_named(value, words):
    flow = circle_flow()
    with pytest.raises(ValueError, match=words):
        flow.set_params(langevin=value).transport(np.eye(2))
