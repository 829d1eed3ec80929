"""A constant column stays what it is, and changes nothing in the others, though the mean of its numbers is another number."""

import warnings

import numpy as np
import pytest

import gpukoop as gk
from gpukoop.centring import centred, varying
from gpukoop.flow.sliced import sliced, sliced_field

FLOWS = {
    "KSWGD": lambda: gk.KSWGD(n_components=4, total_time=0.5, random_state=0),
    "MMDFlow": lambda: gk.MMDFlow(n_iter=5, random_state=0),
    "MMDFlow sliced": lambda: gk.MMDFlow(gk.Energy(), n_projections=12, n_iter=5, random_state=0),
    "Wasserstein sinkhorn": lambda: gk.WassersteinFlow(n_iter=5, random_state=0),
    "Wasserstein sliced": lambda: gk.WassersteinFlow("sliced", n_iter=5, random_state=0),
    "normal start": lambda: gk.WassersteinFlow("sliced", init="gaussian", n_iter=5, random_state=0),
    "mixture start": lambda: gk.WassersteinFlow("exact", init="mixture", n_iter=5, random_state=0),
    "JKOFlow": lambda: gk.JKOFlow("w2", n_steps=2, random_state=0),
    "KoopmanSampler": lambda: gk.KoopmanSampler(n_features=40, random_state=0),
    "KernelDensity": lambda: gk.baselines.KernelDensity(random_state=0),
    "GaussianMixture": lambda: gk.baselines.GaussianMixture(2, random_state=0),
    "Langevin": lambda: gk.baselines.Langevin(n_iter=5, random_state=0),
}
rng = np.random.default_rng(1)
WIDTHS = {"alike": [1.0] * 4, "apart": [50.0, 0.1], "wide": [50.0, 50.0]}


def data(widths, constant, dtype):
    columns = rng.normal(size=(200, len(widths))) * widths
    return np.column_stack([columns, np.full(200, constant)]).astype(dtype)


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_samples(flow, dtype):
    for widths, constant in (("alike", 1e4 + 1 / 3), ("apart", -7.7e-5), ("wide", 3.14159)):
        X = data(WIDTHS[widths], constant, dtype)
        assert dtype == "float32" or widths != "alike" or X[:, -1].mean() != X[0, -1]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Z = FLOWS[flow]().fit(X).sample(150)
        # Sinkhorn's shift is a mean of 200 terms, rounded
        slack = 8 * np.finfo(dtype).eps * abs(constant) * (flow == "Wasserstein sinkhorn")
        assert np.abs(Z[:, -1].astype(float) - X[0, -1]).max() <= slack, widths
        if flow == "KoopmanSampler" and widths == "apart":
            continue  # columns 500 times narrower than others lose their details, as it says
        ratio = Z[:, :-1].std(axis=0) / X[:, :-1].std(axis=0)
        assert (abs(ratio - 1) < 0.3).all(), (widths, ratio)  # six errors of the two deviations


def test_columns_around_their_means():
    X = np.column_stack([np.full(19, 3.14159), np.arange(19.0), np.full(19, 1e4 + 1 / 3)])
    X[3, 2] = np.nextafter(X[0, 2], np.inf)  # rounding
    mean, x = centred(X)
    assert mean[0] == 3.14159
    assert mean[1] == 9.0
    assert varying(X).tolist() == [False, True, False]
    assert np.array_equal(x[:, [0, 2]], np.zeros((19, 2)))
    assert np.array_equal(x[:, 1], np.arange(19.0) - 9.0)
    assert varying(np.array([[1e308, 1.0], [-1e308, 1.0]])).tolist() == [True, False]


@pytest.mark.parametrize("flow", ["energy", "wasserstein"])
def test_slices_leave_constant_columns_out(flow):
    """Beside them the velocity is that of the other columns alone: of 40,000 directions, an oracle of slicing itself."""
    X, Z = rng.normal(size=(30, 3)), rng.normal(size=(20, 3)) + 1.0
    X[:, 1] = Z[:, 1] = 0.3
    motion = sliced_field(X, flow=flow, n_projections=40_000)(Z, None, np.random.default_rng(0), 0)
    assert np.array_equal(motion.velocity[:, 1], np.zeros(20))
    theta = np.random.default_rng(1).standard_normal((40_000, 3))
    theta /= np.linalg.norm(theta, axis=1, keepdims=True)
    whole, energy = sliced(Z, X, theta, flow)
    if flow == "energy":  # the same kernel, of distances in a plane
        np.testing.assert_allclose(motion.velocity, whole, atol=0.03 * abs(whole).max())
        assert motion.energy == pytest.approx(energy, rel=0.03)
    else:  # frames with the axis of the column: the means of the others close by a third of their gap
        gap = (X.mean(axis=0) - Z.mean(axis=0)) / 3
        np.testing.assert_allclose(motion.velocity.mean(axis=0), gap, atol=1e-12)


def test_particles_off_the_plane_reach_it():
    X = np.column_stack([rng.normal(size=(80, 2)), np.full(80, 2.0)])
    Z = rng.normal(size=(60, 3)) * 3
    flow = gk.WassersteinFlow("sliced", step_size=1.0, n_iter=60, units="absolute", random_state=0)
    end = flow.fit(X).transport(Z)
    # a third of the gap is left out of each step
    left = np.abs(Z[:, 2] - 2.0) * (1 - 1 / 3) ** 60
    np.testing.assert_allclose(np.abs(end[:, 2] - 2.0), left, atol=1e-14)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_slices_leave_columns_alone_that_are_constant_up_to_rounding(dtype):
    X = rng.normal(size=(200, 5)).astype(dtype)
    X[:, 4] = 0.3
    X[::2, 4] = np.nextafter(X[::2, 4], dtype(1))
    flow = gk.MMDFlow(gk.Energy(), n_projections=12, n_iter=20, random_state=0)
    last = flow.fit(X).sample(150)[:, 4].astype(float)
    assert np.abs(last - 0.3).max() < 8 * np.finfo(dtype).eps
