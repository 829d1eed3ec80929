"""Two independent runs of alanine dipeptide: what one says about the slow torsion, the other must say within their bands.

The file (arrays ``torsions`` (2, 9000, 2) in radians and ``frame_ps``) is found at GPUKOOP_ALANINE, or beside the checkout.
"""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest

import gpukoop as gk
from gpukoop import kinetics, maps

BESIDE = Path(__file__).parents[3] / "shared" / "data" / "alanine_dipeptide.npz"
PATH = Path(os.environ.get("GPUKOOP_ALANINE", BESIDE))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not PATH.is_file(), reason="no file of alanine dipeptide runs (GPUKOOP_ALANINE)"
    ),
]
LAG, FRAME = 10, 0.5  # 5 ps


@pytest.fixture(scope="module")
def torsions():
    return np.load(PATH)["torsions"].astype(float)


@pytest.fixture(scope="module")
def models(torsions):
    runs = [maps.torus(run) for run in torsions]
    estimator = gk.KernelEDMD(n_components=3, n_landmarks=300, random_state=0)
    return [
        kinetics.KineticModel(estimator, lag=LAG, frame_time=FRAME).fit(chosen)
        for chosen in (runs[:1], runs[1:], runs)
    ]


def test_the_slowest_timescale_is_that_of_psi_and_the_runs_agree(models):
    low = [m.timescales_lower_[0] for m in models]
    high = [m.timescales_upper_[0] for m in models]
    assert max(low) < min(high)
    assert all(8 < m.timescales_[0] < 12 for m in models)
    moved = np.abs(kinetics.mode_correlation(models[2], lambda Z: Z).correlation[:, 0])
    assert moved[2:].max() > 0.8  # cosine or sine of psi
    assert moved[:2].max() < 0.5  # of phi


def test_the_model_predicts_five_lags(models):
    states = kinetics.metastable_states(models[2], 2)
    assert kinetics.chapman_kolmogorov(models[2], states, 5).passed


def test_the_states_weigh_the_same_in_both_runs(models):
    first, second, both = (kinetics.metastable_states(m, 2) for m in models)
    for i in range(2):
        assert max(s.weights_lower[i] for s in (first, second, both)) < min(
            s.weights_upper[i] for s in (first, second, both)
        )


def test_a_rare_state_comes_with_a_wide_band(models, torsions):
    found = kinetics.occupancy(models[2], lambda Z: Z[:, 1] > 0)  # phi > 0
    assert found.n_frames == int((torsions[:, :, 0] > 0).sum())
    assert found.weight == pytest.approx(found.n_frames / 18_000)
    assert found.n_visits < 30
    assert found.upper / found.lower > 2


@pytest.mark.slow
def test_new_samples_are_as_near_to_the_other_run_as_the_runs_to_each_other(torsions):
    edges = [np.linspace(-np.pi, np.pi, 25)] * 2
    first, second = (np.histogram2d(*run.T, bins=edges)[0] / len(run) for run in torsions)
    flow = gk.KSWGD(n_landmarks=1_000, n_components=40, project=maps.project_torus, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the verdict takes frames for independent
        flow.fit([maps.torus(torsions[0])], lag=2, frame_time=FRAME)
        new = maps.angles(flow.sample(len(torsions[0])))
    new = np.histogram2d(*new.T, bins=edges)[0] / len(new)
    assert np.abs(new - second).sum() < 1.3 * np.abs(first - second).sum()
