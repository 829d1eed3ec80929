"""Tables of columns in different units: defaults that hold on them, or a warning that says what is off."""

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

import gpukoop as gk
from gpukoop import datasets
from gpukoop.sampler import learning

sys.path.append(str(Path(__file__).parents[2]))

from bench.tables import TABLES


@pytest.mark.parametrize("name", TABLES)
def test_at_defaults_every_column_is_as_wide_as_the_data(name):
    X = TABLES[name]()
    flow = gk.KSWGD(random_state=0).fit(X)
    assert flow.spectrum_.coordinates_.method == "standardize"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Z = flow.sample(2_000)
    ratio = Z.std(axis=0) / X.std(axis=0)
    assert 0.9 < ratio.min() < ratio.max() < 1.1, ratio
    told = [w for w in caught if "ended off the law of its data" in str(w.message)]
    assert flow.report_.passed != bool(told), str(flow.report_)
    # of so many particles in fifty columns the width over all axes is known to a per cent
    assert flow.report_.passed or name == "fifty columns", str(flow.report_)
    assert flow.report_["support"].p_value > 0.01
    assert flow.report_.statistic < 3


def test_the_units_of_columns_do_not_matter():
    X = load_wine().data
    factor = 2.0 ** np.random.default_rng(0).integers(-8, 8, X.shape[1])
    here, there = (gk.KSWGD(total_time=0.5, random_state=0).fit(A) for A in (X, X * factor))
    Z, W = here.sample(150), there.sample(150) / factor
    assert np.abs(Z - W).max(axis=0) == pytest.approx(0.0, abs=1e-6 * X.std(axis=0).max())
    assert np.all(np.abs(Z - W).max(axis=0) < 1e-6 * X.std(axis=0))


@pytest.mark.parametrize(
    ("ratio", "options", "taken"),
    [
        (4.0, {}, False),
        (6.0, {}, True),
        (6.0, {"coordinates": None}, False),
        (1.0, {"coordinates": "standardize"}, True),
        (6.0, {"project": lambda Z: Z}, False),
        (6.0, {"spectrum": "fitted"}, False),
    ],
    ids=["one unit", "two units", "none", "asked for", "manifold", "fitted"],
)
def test_columns_of_one_unit_keep_their_geometry(ratio, options, taken):
    """Widths four times apart are a shape, six times are units; a manifold or a fitted spectrum knows what a distance is."""
    X = np.random.default_rng(0).normal(size=(300, 2)) * [1.0, ratio]
    if options.get("spectrum") == "fitted":
        options = {"spectrum": gk.DiffusionMap(n_components=4, random_state=0).fit(X)}
    given = {"n_components": 4, "random_state": 0, **options}
    flow = gk.KSWGD(**given).fit(X)
    method = getattr(flow.spectrum_.coordinates_, "method", None)
    assert method == ("standardize" if taken else None)
    if options.get("spectrum") is None:  # one factor for all columns is no unit
        both = gk.KSWGD(**given).fit(1e6 * X)
        assert (both.spectrum_.coordinates_ is not None) == taken


def test_a_kernel_with_a_scale_for_each_column_is_left_alone():
    X = np.random.default_rng(0).normal(size=(300, 2)) * [1.0, 50.0]
    flow = gk.KSWGD(kernel=gk.Gaussian([0.5, 30.0]), n_components=4, random_state=0).fit(X)
    spread = flow.spectrum_.coordinates_.transform(X).std(axis=0)
    assert spread[1] / spread[0] == pytest.approx(50 / 60, rel=0.2)


def test_pairs_are_standardised_too():
    X, Y = datasets.quadruple_well(600, lag_time=0.01, independent=True, random_state=0)
    factor = np.array([1.0, 1e3])
    given = {"n_components": 5, "lag_time": 0.01, "n_landmarks": 200, "random_state": 0}
    flow = gk.KSWGD(**given).fit(X * factor, successors=Y * factor)
    plain = gk.KSWGD(**given).fit(X, successors=Y)
    assert flow.spectrum_.coordinates_.method == "standardize"
    assert plain.spectrum_.coordinates_ is None
    # both columns are equally wide before, so that the kernel sees the same; standardised means to 3 per cent
    assert flow.eigenvalues_[:2] == pytest.approx(plain.eigenvalues_[:2], rel=0.1)


def two_angles(n, rng):
    """Return cosines and sines of two angles in three basins: a torus in four columns."""
    centre = np.array([[-1.2, -0.8], [-1.2, 2.4], [1.0, 0.8]])[rng.integers(0, 3, n)]
    angle = centre + rng.vonmises(0, 12, (n, 2))
    return np.column_stack([np.cos(angle), np.sin(angle)])


def off_the_torus(Z):
    return np.abs(np.hypot(Z[:, :2], Z[:, 2:]) - 1)


@pytest.mark.parametrize("off", [0.05, 0.17])
def test_particles_off_a_manifold_of_the_data_are_found(off):
    rng = np.random.default_rng(0)
    X, Z = two_angles(1_000, rng), two_angles(1_000, rng)
    assert gk.diagnose(Z, X).passed
    radius = 1 + off * rng.choice([-1, 1], (1_000, 2))
    report = gk.diagnose(Z * np.hstack([radius, radius]), X)
    assert not report.on_law
    assert off < 0.1 or "support" in {line.name for line in report.failures}


def test_a_flow_that_leaves_the_manifold_says_so():
    X = two_angles(600, np.random.default_rng(0))
    flow = gk.KSWGD(init="gaussian", n_components=20, total_time=4.0, random_state=0).fit(X)
    with pytest.warns(ConvergenceWarning, match="ended off the law of its data"):
        Z = flow.sample(400)
    assert off_the_torus(Z).mean() > 0.1  # a normal law in four columns knows of no circle
    assert not flow.converged_
    assert flow.report_["support"].p_value < 1e-6
    near = gk.KSWGD(total_time=4.0, validation_fraction=0, random_state=0).fit(X)
    assert off_the_torus(near.transport(near._start(400, np.random.default_rng(0)))).mean() < 0.02


@pytest.mark.parametrize(("share", "by"), [(0.05, 1.3), (0.02, 1.5)])
def test_particles_beyond_the_range_of_one_column_are_found(share, by):
    rng = np.random.default_rng(0)
    X, Z = rng.normal(size=(2, 1_000, 5))
    assert gk.diagnose(Z, X).passed
    Z[: int(1_000 * share), 2] = by * X[:, 2].max()
    assert not gk.diagnose(Z, X).on_law


def test_particles_still_at_the_longest_step_are_told():
    X = datasets.banana(400, 0)
    flow = gk.KSWGD(
        kernel=gk.Gaussian(0.2), n_components=10, total_time=0.5, coarse=False, random_state=0
    ).fit(X)
    with pytest.warns(ConvergenceWarning, match="KSWGD has not arrived: .* Raise total_time"):
        flow.transport(X[:200] + 3.0)
    assert flow.history_["limited"][-1] > 0.3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flow.transport(X[:200], n_iter=3)


FRAMED = {
    "kswgd": lambda: gk.KSWGD(n_components=6, total_time=1.0, random_state=0),
    "mmd": lambda: gk.MMDFlow(n_iter=3, random_state=0),
    "wasserstein": lambda: gk.WassersteinFlow("sliced", n_iter=2, random_state=0),
    "jko": lambda: gk.JKOFlow(n_steps=1, random_state=0),
    "koopman": lambda: gk.KoopmanSampler(n_features=20, reg=1e-3, random_state=0),
    "baseline": lambda: gk.baselines.GaussianMixture(random_state=0),
}


def people(pandas):
    rng = np.random.default_rng(0)
    return pandas.DataFrame(
        {
            "height": rng.normal(170, 9, 150),
            "age": rng.integers(18, 80, 150),
            "member": rng.random(150) < 0.5,
        }
    )


@pytest.mark.parametrize("name", FRAMED)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # short flows
def test_a_sampler_of_a_frame_answers_in_frames(name):
    pandas = pytest.importorskip("pandas")
    frame = people(pandas)
    model = FRAMED[name]().fit(frame)
    Z = model.sample(110)
    assert isinstance(Z, pandas.DataFrame)
    assert list(Z.columns) == ["height", "age", "member"]
    assert list(model.feature_names_in_) == list(Z.columns)
    assert (Z.dtypes == "float64").all()
    plain = FRAMED[name]().fit(frame.to_numpy(dtype=float)).sample(110)
    assert isinstance(plain, np.ndarray)
    assert np.array_equal(Z.to_numpy(), plain)
    assert np.isfinite(model.score(frame))
    assert model.diagnose(Z).sizes[0] == 110
    with pytest.raises(ValueError, match="should match those that were passed during fit"):
        model.score(frame[["age", "height", "member"]])
    again = model.fit(frame.to_numpy(dtype=float))
    assert isinstance(again.sample(110), np.ndarray)  # the last fit counts


def test_a_frame_goes_on_where_a_checkpoint_ends(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame, path = people(pandas), tmp_path / "run.model"
    first, second = (FRAMED["kswgd"]().fit(frame, checkpoint=path).sample(19) for _ in range(2))
    pandas.testing.assert_frame_equal(first, second)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_sampler_ends_a_pipeline():
    """Scores and searches see raw data; the way back is that of the steps before."""
    X = load_wine().data
    pipe = Pipeline([("scale", StandardScaler()), ("law", FRAMED["kswgd"]())]).fit(X)
    Z = pipe[:-1].inverse_transform(pipe[-1].sample(400))
    assert np.abs(Z.std(axis=0) / X.std(axis=0) - 1).max() < 0.1
    assert pipe.score(X) == pipe[-1].score(pipe[:-1].transform(X))
    search = GridSearchCV(pipe, {"law__n_components": [1, 6]}, cv=2).fit(X)
    assert search.best_estimator_[-1].sample(5).shape == (5, 13)
    named = make_pipeline(StandardScaler().set_output(transform="pandas"), FRAMED["mmd"]())
    frame = load_wine(as_frame=True).data if pytest.importorskip("pandas") else None
    assert list(named.fit(frame)[-1].sample(3).columns) == list(frame.columns)


@pytest.mark.parametrize("name", FRAMED)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_scores_do_not_depend_on_the_unit(name):
    """The same settings on the same data in another unit: the same score, so that searches on both agree."""
    X = datasets.banana(300, 0)
    here, there = (FRAMED[name]().fit(c * X[:200]).score(c * X[200:]) for c in (1.0, 1024.0))
    assert there == pytest.approx(here, rel=1e-6)
    assert -60 < here < 0


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ([["tall", "old"], ["short", "young"]], "row 0|text|string"),
        ("X.csv", "X is 'X.csv', expected an array of numbers: read the file first"),
        (Path("X.csv"), "X is 'X.csv', expected an array of numbers: read the file first"),
        (None, "X is None, expected an array of numbers"),
    ],
    ids=["words", "a path", "a path object", "nothing"],
)
def test_what_is_no_table_is_refused_in_words(bad, words):
    takers = (
        *(FRAMED[name]().fit for name in FRAMED),
        gk.Gaussian(1.0),
        gk.DiffusionMap().fit,
        lambda X: gk.metrics.mmd(X, X),
    )
    for take in takers:
        with pytest.raises((TypeError, ValueError), match=words) as told:
            take(bad)
        assert len(str(told.value)) < 300


def test_a_small_table_has_a_small_budget(monkeypatch):
    """569 rows of 30 columns took 79 s: a fit is one pass of 5 N D^2 operations over N triples and D features."""

    class Begun(Exception):
        pass

    def assemble(lift, triples, n_triples, **_):
        raise Begun(n_triples, lift.n_features)

    monkeypatch.setattr(learning, "assemble", assemble)
    with pytest.raises(Begun) as told:
        gk.KoopmanSampler(random_state=0).fit(load_breast_cancer().data)
    N, D = told.value.args
    assert 5 * N * D**2 < 3e10, (N, D)  # a second or two of one core
    assert N >= 20 * D  # and enough for the solve
