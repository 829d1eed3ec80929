"""Grid searches of scikit-learn over what learns: the better setting is found by data that were not learned from."""

import numpy as np
import pytest
import sklearn
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline

import gpukoop as gk
from gpukoop import kinetics


@pytest.fixture(scope="module")
def run():
    return gk.datasets.ornstein_uhlenbeck(3_000, lag_time=0.2, random_state=0)[0]


def modes(**given):
    return gk.KernelEDMD(n_components=2, n_landmarks=60, reg=0.1, random_state=0, **given)


def test_a_search_over_kernels_of_slow_modes(run):
    """A kernel that sees no difference between frames, and one that sees them; held-out VAMP-2 by hand beside it."""
    grid = {"kernel": [gk.Gaussian(0.6), gk.Gaussian(30.0)]}
    search = GridSearchCV(modes(), grid, cv=3, error_score="raise").fit(run, lag=2)
    assert search.best_params_["kernel"] == gk.Gaussian(0.6)
    folds = [search.cv_results_[f"split{i}_test_score"][0] for i in range(3)]
    for score, (learned, held) in zip(folds, KFold(3).split(run), strict=True):
        fitted = modes(kernel=gk.Gaussian(0.6)).fit(run[learned], lag=2)
        assert score == pytest.approx(kinetics.vamp_score(fitted, run[held], 2), rel=1e-9)
    exact = 1 + np.exp(-0.8) + np.exp(-1.6)  # of both modes at a lag of .4
    assert np.mean(folds) == pytest.approx(exact, abs=0.15)


def test_a_search_over_kernels_of_pairs(run):
    """scikit-learn routes successors to ``fit`` and ``score``."""
    X, Y = gk.datasets.pairs(run, 2)
    grid = {"kernel": [gk.Gaussian(0.6), gk.Gaussian(30.0)]}
    with sklearn.config_context(enable_metadata_routing=True):
        asked = modes().set_fit_request(successors=True).set_score_request(successors=True)
        search = GridSearchCV(asked, grid, cv=3, error_score="raise").fit(X, successors=Y)
    assert search.best_params_["kernel"] == gk.Gaussian(0.6)


def test_what_cannot_be_scored_is_said(run):
    X, Y = gk.datasets.pairs(run[:300], 2)
    fitted = modes().fit(X, successors=Y)
    with pytest.raises(ValueError, match="score needs pairs"):
        fitted.score(X)
    assert fitted.score(X, successors=Y) > 1
    with pytest.raises(ValueError, match="do not vary on X"):
        modes().fit(run[:300], lag=2).score(np.zeros((50, 1)))
    with pytest.raises(ValueError, match="X has 2 features, the fitted X has 1"):
        modes().fit(run[:300], lag=2).score(np.zeros((50, 2)))
    with pytest.raises(ValueError, match="reversible=False"):
        modes(reversible=False).fit(run[:300], lag=2).score(run)


@pytest.mark.parametrize(
    ("sampler", "grid"),
    [
        (gk.baselines.SVGD(n_iter=20, random_state=0), {"scale": [0.02, 0.5]}),
        (
            gk.baselines.LAWGD(n_iter=20, n_components=10, random_state=0),
            {"step_size": [1e-5, 0.1]},
        ),
    ],
    ids=["SVGD", "LAWGD"],
)
def test_a_search_over_samplers(sampler, grid):
    X = gk.datasets.moons(120, random_state=0)
    search = GridSearchCV(sampler, grid, cv=2, error_score="raise").fit(X)
    scores = search.cv_results_["mean_test_score"]
    assert np.isfinite(scores).all()
    assert scores[0] != scores[1]
    assert search.best_estimator_.sample(7).shape == (7, 2)


def test_a_search_over_a_diffusion_map_in_a_pipeline():
    """It has no score of its own: that of the regression behind it chooses the number of coordinates."""
    assert not hasattr(gk.DiffusionMap(), "score")
    angle = np.random.default_rng(0).uniform(0, 2 * np.pi, 300)
    X, y = np.stack([np.cos(angle), np.sin(angle)], axis=1), np.cos(3 * angle)
    pipe = make_pipeline(gk.DiffusionMap(gk.Gaussian(0.2), random_state=0), Ridge(1e-6))
    search = GridSearchCV(pipe, {"diffusionmap__n_components": [2, 6]}, cv=3).fit(X, y)
    assert search.best_params_["diffusionmap__n_components"] == 6  # cos(3 a) is the fifth or sixth
    few, enough = search.cv_results_["mean_test_score"]
    assert few < 0.2
    assert enough > 0.9
