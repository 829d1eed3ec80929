"""No estimator knows the unit of its data: X times 1,000 or .001 gives the same particles, times that."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import gpukoop as gk
from gpukoop import datasets, estimators
from gpukoop.cli import parser, recipes

X = datasets.banana(300, 0)
WIDTH, SPREAD = X.std(), 0.3  # of a banana around its parabola
FACTORS = (1e3, 1e-3)
# Fewer steps and modes than the defaults, for time alone; every other parameter is the default.
SHORT = {"n_iter": 20, "n_steps": 5, "n_components": 20, "total_time": 2.0, "n_features": 100}


def shortened(flow):
    return flow.set_params(
        random_state=0, **{k: v for k, v in SHORT.items() if k in flow.get_params(deep=False)}
    )


def assert_follows(make, **fit):
    plain = make().fit(X, **fit).sample(150)
    for factor in FACTORS:
        moved = make().fit(factor * X, **{k: factor * v for k, v in fit.items()}).sample(150)
        assert np.abs(moved / factor - plain).max() < 1e-3 * WIDTH, factor
    return plain


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", estimators.__all__)
def test_every_estimator_follows_its_data(name):
    assert_follows(lambda: shortened(getattr(gk, name)()))


VARIANTS = {
    "pairs": lambda: gk.KSWGD(n_components=10, total_time=1.0, lag_time=0.1),
    "langevin": lambda: gk.KSWGD(n_components=10, total_time=1.0, langevin=2.0),
    "coarse": lambda: gk.KSWGD(n_components=10, total_time=1.0, coarse=True, init="gaussian"),
    "noise and momentum": lambda: gk.MMDFlow(n_iter=10, noise=0.1, momentum=0.5),
    "smooth": lambda: gk.MMDFlow(gk.Gaussian("median"), n_iter=10, step_size=0.5),
    "DrMMD": lambda: gk.MMDFlow(
        gk.Gaussian("median"), regularization=0.1, n_iter=5, step_size=0.05
    ),
    "implicit": lambda: gk.MMDFlow(gk.Riesz(exponent=1.5), scheme="implicit", n_iter=5),
    "sliced": lambda: gk.MMDFlow(n_projections=8, n_iter=10),
    "blur": lambda: gk.WassersteinFlow(blur=0.3, n_iter=5),
    "exact": lambda: gk.WassersteinFlow("exact", n_iter=5),
    "mmd": lambda: gk.JKOFlow("mmd", kernel=gk.Gaussian("median"), n_steps=2),
    "kl": lambda: gk.JKOFlow("kl", n_steps=1, n_features=20, inner_iter=10),
    "w2": lambda: gk.JKOFlow("w2", n_steps=2),
}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", VARIANTS)
def test_numbers_are_multiples_of_what_the_data_show(name):
    fit = {}
    if name == "pairs":
        fit = {"successors": X + 0.3 * np.random.default_rng(1).normal(size=X.shape)}
    assert_follows(lambda: VARIANTS[name]().set_params(random_state=0), **fit)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("method", recipes._RECIPES)
def test_the_recipes_of_the_command_line_follow_their_data(method):
    words = f"sample {method} --data X.npy --particles 150 --out Z.npz --quiet".split()
    options = parser._parser().parse_args(words)
    if method != "koopman":
        options.steps = 10
    assert_follows(lambda: shortened(recipes.estimator(method, options)))


STRETCHED = [np.array([100.0, 1.0]), np.array([1.0, 100.0])]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("stretch", STRETCHED, ids=["first column", "second column"])
def test_a_column_in_another_unit_changes_nothing_where_columns_are_standardised(stretch):
    def law(**options):
        return shortened(gk.KSWGD(**options))

    plain = law(coordinates="standardize").fit(X).sample(150)
    asked = law(coordinates="standardize").fit(stretch * X).sample(150) / stretch
    seen = law().fit(stretch * X).sample(150) / stretch
    assert np.abs(asked - plain).max() < 1e-3 * WIDTH
    assert np.abs(seen - plain).max() < 1e-3 * WIDTH


FLOWS = ["MMDFlow", "JKOFlow", "WassersteinFlow"]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", FLOWS)
def test_flows_standardise_columns_of_different_units(name):
    """The same particles whatever the units, and on the law: as they stand, 3 to 9 per cent end off a stretched banana."""
    X = datasets.banana(600, 0)
    ends = []
    for stretch in (*STRETCHED, 10 * STRETCHED[0]):
        flow = shortened(getattr(gk, name)()).fit(stretch * X)
        assert flow.columns_ is not None
        ends.append(flow.sample(600) / stretch)
        off = np.abs(ends[-1][:, 1] - ends[-1][:, 0] ** 2)
        assert (off > 4 * SPREAD).mean() < 0.01, (off > 4 * SPREAD).mean()
        assert np.abs(ends[-1] - ends[0]).max() < 1e-3 * WIDTH
    assert shortened(getattr(gk, name)()).fit(X).columns_ is None


@pytest.mark.parametrize("name", FLOWS)
def test_numbers_measured_in_the_data_keep_its_columns(name):
    stretched = STRETCHED[0] * X
    assert getattr(gk, name)(units="absolute").fit(stretched).columns_ is None
    if name != "WassersteinFlow":
        assert getattr(gk, name)(kernel=gk.Gaussian(1.0)).fit(stretched).columns_ is None
        assert getattr(gk, name)(kernel=gk.Gaussian("median")).fit(stretched).columns_ is not None
    map_ = gk.maps.RandomFeatureMap(20)
    trained = shortened(getattr(gk, name)(generator=map_)).set_params(
        **{"n_iter" if name != "JKOFlow" else "n_steps": 1}
    )
    assert trained.fit(stretched).columns_ is None
    for later in ({"generator": map_}, {"units": "absolute"}):
        flow = getattr(gk, name)().fit(stretched).set_params(**later)
        with pytest.raises(ValueError, match="after a fit that standardised the columns"):
            flow.transport(stretched[:5])


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["KSWGD", *FLOWS])
def test_a_constant_column_has_no_width(name, dtype):
    """The rounded mean of a constant is another number: a column of width 1e-16 is in no unit."""
    for value, stretch in ((3.14159, 1.0), (0.1, 1.0), (1 / 3, 100.0)):
        data = np.column_stack([X * [1.0, stretch], np.full(len(X), value)]).astype(dtype)
        flow = shortened(getattr(gk, name)(init="data")).fit(data)
        Z = flow.sample(300)
        assert np.abs(Z[:, :2].std(axis=0) / data[:, :2].std(axis=0) - 1).max() < 0.15
        assert np.abs(Z[:, 2] - dtype(value)).max() < 1e-5
        if name in FLOWS:
            assert (flow.columns_ is None) == (stretch == 1.0)


def columns_of(flow):
    """Return the coordinates in which a flow measures distances."""
    return flow.spectrum_.coordinates_ if isinstance(flow, gk.KSWGD) else flow.columns_


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", ["KSWGD", *FLOWS])
def test_weights_are_repeated_rows_in_standardised_columns(name):
    """Whole ones; others give the weighted moments to rounding (rows repeated ten times were off by 2e-4, KSWGD by 28 per cent)."""
    times = np.random.default_rng(0).integers(1, 4, len(X)) * np.where(X[:, 1] > 1, 3, 1)
    options = {"validation_fraction": 0} if name == "KSWGD" else {}

    def learned(data, **weights):
        return columns_of(shortened(getattr(gk, name)(**options)).fit(data, **weights))

    for data in [STRETCHED[0] * X * factor for factor in (1.0, *FACTORS)]:
        weighted = learned(data, sample_weight=times)
        rows = learned(np.repeat(data, times, axis=0))
        assert np.allclose(weighted.matrix_, rows.matrix_, rtol=1e-12)
        assert np.allclose(weighted.mean_, rows.mean_, rtol=1e-12)
        w = np.exp(X[:, 0])
        found = learned(data, sample_weight=w)
        deviation = np.sqrt(np.diag(np.cov(data.T, aweights=w, ddof=0)))
        assert np.allclose(found.mean_, np.average(data, axis=0, weights=w), rtol=1e-12)
        assert np.allclose(np.diag(found.matrix_) * deviation, np.sqrt(deviation.prod()))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", ["KSWGD", *FLOWS])
def test_weights_decide_whether_columns_are_in_different_units(name):
    """A column that is wide by a few light rows alone."""
    far = np.arange(len(X)) % 10 == 0
    light = np.where(far, 1e-6, 1.0)
    wide = X * np.where(far, 300.0, 1.0)[:, None] ** [0, 1]
    flow = shortened(getattr(gk, name)()).fit(wide, sample_weight=light)
    assert columns_of(flow) is None
    assert columns_of(shortened(getattr(gk, name)()).fit(wide)) is not None


def test_who_looks_at_a_standardised_flow_sees_the_data(tmp_path):
    """Callbacks, witness and checkpoints are those of a flow of columns that somebody else has standardised."""
    stretch = STRETCHED[0]
    flow = gk.MMDFlow(n_iter=6, random_state=0).fit(stretch * X)
    inner = gk.MMDFlow(n_iter=6, random_state=0).fit(flow.columns_.transform(stretch * X))
    Z = stretch * (X[:40] + 1.0)
    seen, expected = [], []
    end = flow.transport(Z, callback=lambda i, Y: seen.append(Y.copy()))
    inner.transport(flow.columns_.transform(Z), callback=lambda i, Y: expected.append(Y.copy()))
    back = flow.columns_.inverse
    assert len(seen) == 6
    assert all(np.allclose(a, back(b), rtol=1e-12) for a, b in zip(seen, expected, strict=True))
    assert np.allclose(end, seen[-1], rtol=1e-12)
    forward = flow.columns_.transform
    assert np.allclose(flow.witness(Z[:5], Z), inner.witness(forward(Z[:5]), forward(Z)), rtol=1e-9)

    def stop(i, _):
        if i == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        flow.transport(Z, callback=stop, checkpoint=tmp_path / "run", checkpoint_every=1)
    resumed = flow.transport(Z, checkpoint=tmp_path / "run", checkpoint_every=1)
    assert (resumed == end).all()


@pytest.mark.parametrize("stretch", STRETCHED, ids=["first column", "second column"])
def test_the_path_of_the_koopman_sampler_has_one_unit(stretch):
    """Noise and data are mixed in one unit: a narrow column keeps its mean and width."""
    Z = shortened(gk.KoopmanSampler()).fit(stretch * X).sample(400) / stretch
    narrow = int(np.argmin(stretch))
    assert abs(Z[:, narrow].std() / X[:, narrow].std() - 1) < 0.15
    assert abs(Z[:, narrow].mean() - X[:, narrow].mean()) < 0.25 * X[:, narrow].std()


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("stretch", STRETCHED, ids=["first column", "second column"])
@pytest.mark.parametrize("name", [*FLOWS, "KoopmanSampler"])
def test_behind_a_scaler_no_column_has_a_unit_and_where_one_is_missed_the_report_says_so(
    name, stretch
):
    pipes = [
        make_pipeline(StandardScaler(), shortened(getattr(gk, name)())).fit(data)
        for data in (X, stretch * X)
    ]
    plain, moved = (p[:-1].inverse_transform(p[-1].sample(150)) for p in pipes)
    assert np.abs(moved / stretch - plain).max() < 1e-3 * WIDTH
    words = f"{name} measures all in one unit"
    assert words not in str(pipes[1][-1].diagnose(pipes[1][-1].sample(60)))
    options = {} if name == "KoopmanSampler" else {"units": "absolute", "init": "gaussian"}
    alone = shortened(getattr(gk, name)(**options)).fit(stretch * X)
    assert words in str(alone.diagnose(stretch * X[:60]))
    for judged in ("KSWGD", *FLOWS):
        report = shortened(getattr(gk, judged)()).fit(stretch * X).diagnose(stretch * X[:60])
        assert "one unit" not in str(report)
    plain = shortened(gk.KSWGD(coordinates=None)).fit(stretch * X)
    assert "KSWGD measures all in one unit" in str(plain.diagnose(stretch * X[:60]))


def test_absolute_numbers_stay_as_they_stand():
    Z = X[:50] + 1.0
    for make, unit in (
        (lambda s, u: gk.MMDFlow(step_size=s, n_iter=3, units=u), "unit_"),
        (lambda s, u: gk.WassersteinFlow(blur=s, n_iter=2, units=u), "unit_"),
        (lambda s, u: gk.JKOFlow(tau=s, n_steps=2, units=u), "unit_"),
    ):
        relative = make(0.3, "data").fit(3.0 * X)
        absolute = make(0.3 * getattr(relative, unit), "absolute").fit(3.0 * X)
        assert np.abs(relative.transport(Z) - absolute.transport(Z)).max() < 1e-12
    flow = gk.KSWGD(n_components=5, langevin=1.5, random_state=0).fit(X)
    kappa = 1.5 / flow.eigenvalues_[-1]
    same = gk.KSWGD(n_components=5, langevin=kappa, units="absolute", random_state=0).fit(X)
    assert np.abs(flow.transport(Z, 5) - same.transport(Z, 5)).max() < 1e-12
    for name in ("KSWGD", "MMDFlow", "JKOFlow", "WassersteinFlow"):
        with pytest.raises(ValueError, match="units must be"):
            getattr(gk, name)(units="metres").fit(X)


def test_a_flow_that_has_not_begun_says_so():
    Z = X[:200] + 10.0
    slow = gk.MMDFlow(step_size=1e-4, n_iter=5).fit(X)
    with pytest.warns(ConvergenceWarning, match="MMDFlow barely moved: its particles went"):
        slow.transport(Z)
    slow.transport(Z, n_iter=2)  # the caller's own number of steps is no mistake
    slow.transport(X[:200])  # nowhere to go
    clone(slow).set_params(step_size=0.5, n_iter=10).fit(X).transport(Z)
