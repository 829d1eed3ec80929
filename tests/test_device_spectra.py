"""Fits of spectra and samplers on a device: counted on the stand-in, and equal to the same fits on the host."""

import numpy as np
import pytest
from device_counter import counted_device, counted_sums

import gpukoop as gk
from gpukoop.sampler import Lift, Moments, NystroemFeatures, PolynomialFeatures, Triples

CUDA = "numba-cuda"
# A warm product makes at most three launches beside its own two.
SUM = 4


@pytest.fixture
def cupy():
    with counted_device() as module, counted_sums():
        yield module


def ring(n, seed=0):
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, 2 * np.pi, n)
    return np.stack([np.cos(angle), np.sin(angle)], 1) + 0.1 * rng.normal(size=(n, 2))


@pytest.mark.parametrize("teacher", [None, gk.sampler.GaussianTeacher(np.zeros(2), np.eye(2))])
def test_batches_together_are_batches_one_by_one(teacher):
    data = ring(700)
    rng = np.random.default_rng(1)
    blocks = [
        NystroemFeatures(data[:40], rng.random(40), scale=0.5, time_scale=1.0),
        PolynomialFeatures(2, 3, 2),
    ]
    lift = Lift(2, blocks)
    one, all_at_once = (Moments((0.1, 0.7), lift.n_features, 2, 4, (True, True)) for _ in range(2))
    triples = Triples(data, teacher, 5)
    for _ in range(3):
        one.update(lift, triples)
    all_at_once.update(lift, triples, 3)
    assert all_at_once.count == one.count
    np.testing.assert_array_equal(all_at_once.edge_counts, one.edge_counts)
    for name, total in one.sums.items():
        np.testing.assert_allclose(
            all_at_once.sums[name], total, rtol=1e-10, atol=1e-10 * abs(total).max()
        )


OPTIONS = {"n_features": 40, "random_state": 0}


@pytest.mark.parametrize(
    "options",
    [{}, {"distill": 0, "n_bins": 4, "reg": 1e-6}, {"dictionary": "fourier", "distill": 0}],
)
def test_a_koopman_fit_on_the_stand_in_is_the_fit_on_the_host(cupy, options):
    X = ring(1_000)
    here = gk.KoopmanSampler(**OPTIONS, **options, backend="numpy").fit(X)
    there = gk.KoopmanSampler(**OPTIONS, **options, backend=CUDA).fit(cupy.asarray(X))
    assert there.reg_ == here.reg_
    # The solves amplify rounding by the condition of the moments, at most 1 / reg.
    np.testing.assert_allclose(
        there.sample(200, random_state=1).get(), here.sample(200, random_state=1), atol=1e-6
    )
    np.testing.assert_allclose(there.certificate_, here.certificate_, rtol=1e-6)


def test_launches_and_waits_of_a_koopman_fit(cupy):
    """At most a tenth of 44,700 launches, sums included, and as few looks as there are moments to solve."""
    X = cupy.asarray(ring(1_500).astype("float32"))
    with cupy.counting() as count:
        fitted = gk.KoopmanSampler(n_features=100, random_state=0, backend=CUDA).fit(X)
    assert count.kernels + SUM * count.sums <= 4_470, str(count)
    assert count.syncs <= 80, str(count)
    fitted.sample(100)
    with cupy.counting() as count:
        fitted.sample(1_000)
    assert count.kernels <= 30, str(count)
    assert (count.sums, count.syncs) == (1, 0), str(count)
