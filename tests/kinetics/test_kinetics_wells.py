"""Diffusions in wells, with answers from a grid: three wells in two dimensions, two wells among ten dimensions."""

import numpy as np
import pytest

import gpukoop as gk
from bench import wells
from gpukoop import kinetics
from gpukoop.kinetics.blocks import correlation
from gpukoop.kinetics.committor import Committor, stops


@pytest.fixture(scope="module")
def coarse():
    """4,000 units of time are 520 relaxation times: the deep wells' passages are known to some 5 %."""
    return wells.three_states(wells.three_wells(0, 40, 1_000, 0.1), 10, 0.1)


@pytest.mark.slow
def test_three_wells(coarse):
    states, order = coarse
    model = states._model
    _, phi = wells.exact_modes()
    exact = wells.simulated_timescales()
    assert (model.timescales_lower_[:2] < exact).all()
    assert (exact < model.timescales_upper_[:2]).all()
    assert sorted(order) == [0, 1, 2]
    points, law, _ = wells.grid()
    # memberships are right: the corners of the exact eigenfunctions' simplex are the wells
    chi = states.memberships(points)[:, order]
    near = [np.linalg.norm(points - c, axis=1).argmin() for c in wells.CENTRES]
    X = np.column_stack([np.ones(len(points)), phi[:, :2]])
    exact_chi = np.clip(X @ np.linalg.inv(X[near]), 0, 1)
    exact_chi /= exact_chi.sum(axis=1, keepdims=True)
    assert np.sqrt(law @ (chi - exact_chi) ** 2).max() < 0.05
    own = np.stack([np.linalg.norm(points - c, axis=1) for c in wells.CENTRES]).argmin(axis=0)
    assert law[chi.argmax(axis=1) == own].sum() > 0.97
    exact_weights = law @ exact_chi
    assert states.weights[order] == pytest.approx(exact_weights, abs=0.04)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the committor is that of the frames")  # by about .05
def test_committors_of_three_wells(coarse):
    """Root mean square under the exact law, both ways of saying what is met: states in frames of .1, discs in frames of .02."""
    states, order = coarse
    for frame_time in (None, 0.1):
        found = wells.committor_errors(states, order, discs=False, frame_time=frame_time)
        assert max(found.values()) < 0.05, found
    fine, order = wells.three_states(wells.three_wells(0, 40, 5_000, 0.02), 25, 0.02)
    found = wells.committor_errors(fine, order, discs=True)
    assert max(found.values()) < 0.05, found


@pytest.mark.slow
def test_committors_of_sets_that_frames_miss(coarse):
    """Discs in frames of .1: that of the frames is right, and how far they are from the diffusion is told."""
    states, order = coarse
    with pytest.warns(
        RuntimeWarning, match="visits to the source or the target between two frames"
    ):
        found = wells.committor_errors(states, order, discs=True, frame_time=0.1)
    assert max(found.values()) < 0.05, found
    points, law, _ = wells.grid()
    sets = [wells.disc(k) for k in (0, 2)]
    masks = [inside(points) for inside in sets]
    gap = np.nan_to_num(wells.frame_committor(*masks, 0.1) - wells.exact_committor(*masks))
    exact = np.sqrt(law @ gap**2)
    with pytest.warns(RuntimeWarning):
        told = Committor(states._model, *sets).missed
    assert 0.8 * exact < told < 2.5 * exact


@pytest.mark.slow
def test_a_double_well_in_ten_dimensions():
    model, X = wells.slow_well_model(0, n_landmarks=200)
    exact = wells.simulated_timescale(2.0)
    assert model.timescales_lower_[0] < exact < model.timescales_upper_[0]
    states = kinetics.metastable_states(model, 2)
    side = states.memberships(X).argmax(axis=1)[np.abs(X[:, 0]) > 0.5]
    agree = np.mean((side == 0) == (X[np.abs(X[:, 0]) > 0.5, 0] > 0))
    assert max(agree, 1 - agree) > 0.99
    edge = 0.8
    q = states.committor(lambda Z: Z[:, 0] < -edge, lambda Z: Z[:, 0] > edge, X)
    gap = q - wells.well_committor(X[:, 0], 2.0, edge)
    assert np.sqrt(np.mean(gap**2)) < 0.05
    between = np.abs(X[:, 0]) < edge
    assert np.sqrt(np.mean(gap[between] ** 2)) < 0.1


def test_windows_stop_where_they_meet_a_set():
    """Against a loop over windows."""
    sets = np.random.default_rng(0).choice([0, 0, 0, 1, 2], size=60)
    for lag in (1, 4, 9):
        forward, backward = stops(sets, lag)
        for t in range(60 - lag):
            window = range(t, t + lag + 1)
            assert forward[t] == next((i for i in window if sets[i]), t + lag)
            assert backward[t] == next((i for i in reversed(window) if sets[i]), t)


def test_errors_of_means_of_neighbouring_stretches():
    """The variance of a mean over 40 relaxation times of an autoregressive process, against that of its blocks of 5."""
    decay, blocks, size = np.exp(-0.02), 8, 250  # 50 frames are one relaxation time
    lags = np.arange(blocks * size)
    covariance = decay ** np.abs(lags[:, None] - lags[None])
    whole = covariance.mean()
    of_blocks = covariance[:size, :size].mean() / blocks
    # the rest is what a finite run lacks of the infinite one that c is made for
    assert correlation(size / 50) ** 2 == pytest.approx(whole / of_blocks, rel=0.04)
    assert correlation(1e6) == pytest.approx(1.0, abs=1e-6)


def test_what_has_no_committor_is_said():
    model, X = wells.slow_well_model(1, n_landmarks=50)
    states = kinetics.metastable_states(model, 2)
    left, right = (lambda Z: Z[:, 0] < -0.5), (lambda Z: Z[:, 0] > 0.5)
    assert states.committor(
        left, right, np.array([[-0.9] + 9 * [0.0], [0.9] + 9 * [0.0]])
    ).tolist() == [0, 1]
    for arguments, options, error, words in (
        ((0, 0), {}, ValueError, "pass two states"),
        ((0, 2), {}, ValueError, "expected a state from 0 to 1"),
        ((0, 1), {"core": 0.5}, ValueError, "core is 0.5"),
        ((left, lambda Z: Z[:, 0] > -1), {}, ValueError, "exclude each other"),
        (
            (left, lambda Z: Z[:, 0] > 50),
            {},
            ValueError,
            "no frame of the trajectories is in the target",
        ),
        ((left, lambda Z: Z), {}, ValueError, "expected True or False a frame"),
        (("left", 1), {}, TypeError, "source"),
    ):
        with pytest.raises(error, match=words):
            states.committor(*arguments, X[:50], **options)
    with pytest.raises(ValueError, match="no frame of the trajectories is between"):
        states.committor(
            lambda Z: Z[:, 0] < 0,
            lambda Z: (Z[:, 0] >= 0) & (Z[:, 0] < 9),
            np.full((1, 10), 9.5),
        )


LEFT, RIGHT = (lambda Z: Z[:, 0] < -0.8), (lambda Z: Z[:, 0] > 0.8)
LINE = np.linspace(-1, 1, 41)[:, None]


def test_committors_of_reweighted_runs():
    """300 short runs of which most start on one side, weighted to the stationary law."""
    X, _ = gk.datasets.slow_well(20_000, 0.1, 5, barrier=2.0)
    order = np.argsort(X[::50, 0] > 0, kind="stable")
    runs = [X[50 * i : 50 * i + 50, :1] for i in order[-300:]]
    estimator = gk.KernelEDMD(n_components=3, n_landmarks=60, random_state=0)
    model = kinetics.KineticModel(estimator, lag=5, frame_time=0.1, reweight=True).fit(runs)
    states = kinetics.metastable_states(model, 2)
    q = states.committor(LEFT, RIGHT, LINE)
    assert np.abs(q - wells.well_committor(LINE[:, 0], 2.0, 0.8)).max() < 0.15


def test_committors_come_back_as_tensors():
    torch = pytest.importorskip("torch")
    X, _ = gk.datasets.slow_well(5_000, 0.1, 6, barrier=2.0)
    estimator = gk.KernelEDMD(n_components=2, n_landmarks=40, random_state=0)
    model = kinetics.KineticModel(estimator, lag=5, frame_time=0.1).fit(X[:, :1])
    states = kinetics.metastable_states(model, 2)
    for sets in ((0, 1), (LEFT, RIGHT)):
        found = states.committor(*sets, torch.from_numpy(LINE))
        assert torch.is_tensor(found)
        assert np.allclose(found.numpy(), states.committor(*sets, LINE))
