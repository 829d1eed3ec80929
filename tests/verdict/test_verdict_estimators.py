"""What estimators do with the verdict: samples kept aside, one warning, converged_, scores that can be compared."""

import pickle
import re
import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV

import gpukoop as gk
from gpukoop import datasets
from gpukoop.verdict import distance_multiple


@pytest.fixture(scope="module")
def wells():
    return datasets.quadruple_well(1_000, random_state=0, independent=True)


@pytest.fixture(scope="module")
def good(wells):
    return gk.KSWGD(n_landmarks=200, step_size=0.1, random_state=0).fit(wells[0])


def test_a_tenth_is_kept_aside_and_never_learned_from(wells, good):
    X, Y = wells
    assert good.X_.shape == (900, 2)
    assert good.X_held_out_.shape == (100, 2)
    both = np.concatenate([good.X_, good.X_held_out_])
    assert np.array_equal(both[np.lexsort(both.T)], X[np.lexsort(X.T)])
    again = clone(good).fit(X)
    assert np.array_equal(again.X_held_out_, good.X_held_out_)
    pairs = gk.KSWGD(n_components=4, n_landmarks=100).fit(X, successors=Y)
    rows = [int(np.flatnonzero((X == x).all(axis=1))[0]) for x in pairs.X_[:50]]
    assert len(pairs.X_) == 900
    assert len(set(rows)) == 50
    none = clone(good).set_params(validation_fraction=0).fit(X)
    assert none.X_held_out_ is None
    assert len(none.X_) == 1_000
    few = gk.KSWGD(n_components=3).fit(X[:150])
    assert few.X_held_out_ is None
    ready = gk.KSWGD(spectrum=good.spectrum_).fit(X)
    assert len(ready.X_) == 1_000
    for bad in (1.0, -0.1):
        with pytest.raises(ValueError, match="validation_fraction"):
            clone(good).set_params(validation_fraction=bad).fit(X)


def test_a_good_fit_is_silent_and_converged(good):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Z = good.sample(800, random_state=1)
    assert good.report_.passed, str(good.report_)
    assert good.converged_
    assert good.report_.sizes == (800, 1_000)
    assert "held out" in {line.name for line in good.report_.lines}
    assert good.diagnose(Z).passed
    assert pickle.loads(pickle.dumps(good)).converged_


def test_a_bad_end_warns_once_and_names_line_and_remedy(wells):
    flow = gk.KSWGD(
        n_components=2, n_landmarks=100, total_time=0.2, init="gaussian", random_state=0
    ).fit(wells[0])
    flow.sample(19)  # too few to judge
    assert not hasattr(flow, "report_")
    with pytest.warns(
        ConvergenceWarning,
        match=r"KSWGD ended off the law .* What to try: .* print\(estimator.report_\)",
    ):
        flow.sample(800)
    assert not flow.converged_
    assert not flow.report_.on_law
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flow.sample(800, random_state=2)
    flow.fit(wells[0])
    assert not hasattr(flow, "report_")
    assert not hasattr(flow, "converged_")


def test_few_points_are_judged_and_the_rest_is_said_once():
    """Sixty samples cannot show 17 per cent of strays: a silent pass would be read as a good end."""
    X = datasets.moons(60, 0)
    flow = gk.KSWGD(random_state=0).fit(X)
    with pytest.warns(
        ConvergenceWarning, match=r"cannot be judged by 60 particles and 60 samples.* 25% of"
    ):
        flow.sample(60)
    assert flow.report_.passed
    assert not flow.report_.conclusive
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flow.sample(60, random_state=1)
        assert "so few points tell little" in str(flow.report_)
        flow.sample(200)  # what more particles tell is kept, and said once
    assert flow.report_.sizes == (200, 60)
    narrow = lambda n, rng: 0.3 * X[rng.integers(len(X), size=n)]
    far = gk.KSWGD(init=narrow, step_size=1e-3, total_time=1e-3).fit(X)
    with pytest.warns(ConvergenceWarning, match="KSWGD ended off the law"):
        far.sample(30, random_state=0)
    assert far.report_.conclusive
    assert not far.converged_


def test_few_particles_of_many_samples_are_judged_again(good):
    flow = clone(good).fit(np.concatenate([good.X_, good.X_held_out_]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flow.sample(30)
        assert not flow.report_.conclusive
        assert "so few points tell little" in flow.report_.verdict
        flow.sample(400)
    assert flow.report_.conclusive
    assert flow.report_.sizes[0] == 400


def test_converged_is_found_when_asked_for_after_transport(good, wells):
    good.transport(wells[0][:500], n_iter=0)
    assert good.converged_  # particles that are samples are on the law, copies though they are
    assert not good.diagnose(wells[0][:500]).passed
    good.transport(0.6 * wells[0][:500], n_iter=0)
    assert not good.converged_
    good.transport(wells[0][:10], n_iter=1)
    assert good.converged_ in (True, False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flow",
    [
        gk.MMDFlow(n_iter=1, init="gaussian"),
        gk.WassersteinFlow("sliced", n_iter=1, init="gaussian"),
        gk.JKOFlow("w2", n_steps=1, init="gaussian"),
        gk.KoopmanSampler(n_features=3, dictionary="polynomial", degree=1, time_degree=1),
    ],
)
def test_every_estimator_is_judged(flow, wells):
    X = datasets.moons(400, 0, noise=0.02)
    flow = clone(flow).set_params(random_state=0).fit(X)
    assert not flow.diagnose().passed
    assert not flow.diagnose(
        law=lambda n, random_state: datasets.moons(n, random_state, noise=0.02)
    ).passed
    assert flow.diagnose(datasets.moons(300, 3, noise=0.02)).passed
    assert flow.score(X) < -3


def test_flows_that_end_on_samples_are_on_the_law_and_copies():
    X = np.random.default_rng(0).normal(size=(200, 2))
    flow = gk.WassersteinFlow("exact", step_size=1.0, n_iter=2, random_state=0).fit(X)
    report = flow.diagnose()
    assert {"memorisation"} <= {line.name for line in report.failures}
    assert report.on_law


def test_scores_are_multiples_of_what_samples_show(wells):
    X = datasets.banana(600, 1)
    rng = np.random.default_rng(0)
    fresh = [distance_multiple(datasets.banana(600, 10 + k), X, rng) for k in range(20)]
    # mean 1, and X is common to all twenty, so that about half of their variance is one draw
    assert 0.3 < np.mean(fresh) < 2.5
    assert distance_multiple(1e3 * X, 1e3 * X[::-1], rng) == pytest.approx(0, abs=1e-9)
    for factor in (1e3, np.array([1e-3, 1e4])):
        a = distance_multiple(
            factor * datasets.banana(500, 3), factor * X, np.random.default_rng(0)
        )
        b = distance_multiple(datasets.banana(500, 3), X, np.random.default_rng(0))
        assert a == pytest.approx(b, rel=1e-6)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_grid_search_prefers_neither_too_few_modes_nor_too_many():
    """Four wells and their basins want some forty modes: three cannot hold them, and of 140 from 150 landmarks most are noise."""
    X = datasets.quadruple_well(600, random_state=4, independent=True)[0]
    flow = gk.KSWGD(n_landmarks=150, step_size=0.2, init="gaussian", random_state=0)
    search = GridSearchCV(flow, {"n_components": [1, 3, 40, 140]}, cv=2).fit(X)
    scores = search.cv_results_["mean_test_score"]
    assert search.best_params_ == {"n_components": 40}, scores
    assert scores[0] < scores[2] - 1
    assert scores[3] < scores[2] - 3
    assert scores[2] > -6


@pytest.mark.parametrize(
    ("flow", "advised"),
    [
        (gk.JKOFlow(random_state=0), {"n_steps": 2}),
        (gk.JKOFlow(random_state=0), {"kernel": gk.Gaussian("median")}),
        (gk.MMDFlow(random_state=0), {"n_iter": 50}),
        (gk.MMDFlow(random_state=0), {"kernel": gk.Gaussian("median")}),
    ],
    ids=["jko-steps", "jko-kernel", "mmd-steps", "mmd-kernel"],
)
def test_what_a_report_advises_against_copies_helps(flow, advised):
    X = datasets.banana(1_000, np.random.default_rng([0, 7]))
    judged = lambda model: clone(model).fit(X).diagnose()
    report = judged(flow)
    assert report.worst.name == "memorisation"
    assert str(report).splitlines()[-1].startswith("What to try: ")
    assert "<p>What to try" in report._repr_html_()
    name, value = next(iter(advised.items()))
    said = f"{name}={value}" if name != "kernel" else "kernel=gk.Gaussian('median')"
    assert said in report.advice
    better = judged(clone(flow).set_params(**advised))
    assert better.passed, str(better)
    assert better.advice == ""


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_sampler_without_modes_is_not_told_to_raise_them():
    sampler = gk.KoopmanSampler(n_features=30, distill=0, random_state=0)
    report = sampler.fit(datasets.moons(400, 0, noise=0.02)).diagnose()
    assert report.failures[0].name in ("support", "basins", "location", "distance")
    named = re.findall(r"(\w+)=", report.advice)
    assert named == ["n_slabs", "n_features"]
    assert set(named) <= set(sampler.get_params())
