"""Parameters, fitted state, frames, callbacks, threads and checkpoints under everything that users do to them (issue 12)."""

import contextlib
import functools
import inspect
import os
import stat
import threading

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError

import gpukoop as gk
from gpukoop.baselines import KernelDensity
from gpukoop.files import read_npy, read_sealed, write_atomically, write_sealed
from gpukoop.flow.identity import identity
from gpukoop.kinetics import KineticModel
from gpukoop.models import read_model, write_model
from gpukoop.spectrum import DiffusionMap, GeneratorEDMD, KernelEDMD, LinearCoordinates

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(autouse=True)
def _sums_that_compile_nothing():
    with gk.use_backend("numpy"):
        yield


def normal(n, d=2, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


X, Z = normal(60), normal(20, seed=1)
FLOWS = {
    "KSWGD": lambda **k: gk.KSWGD(n_components=4, total_time=0.2, random_state=0, **k),
    "MMDFlow": lambda **k: gk.MMDFlow(n_iter=2, random_state=0, **k),
    "WassersteinFlow": lambda **k: gk.WassersteinFlow("exact", n_iter=2, random_state=0, **k),
    "JKOFlow": lambda **k: gk.JKOFlow("w2", n_steps=2, random_state=0, **k),
    "KoopmanSampler": lambda **k: gk.KoopmanSampler(n_features=20, random_state=0, **k),
}
SPECTRA = {
    "DiffusionMap": lambda X: DiffusionMap(gk.Gaussian(1.0), 3, random_state=0).fit(X),
    "KernelEDMD": lambda X: KernelEDMD(n_components=1, reg=0.3, random_state=0).fit(
        X, successors=np.asarray(X) * 0.9
    ),
    "GeneratorEDMD": lambda X: GeneratorEDMD(n_components=2).fit(X, diffusion=np.sqrt(2.0)),
}
fitted_flows = pytest.mark.parametrize("name", FLOWS)


# --- every parameter is checked in every verb


BAD = {
    "step_size": -1,
    "n_iter": -5,
    "total_time": float("nan"),
    "coupling": "exakt",
    "objective": "kll",
    "tau": 0,
    "n_steps": -1,
    "persistence": 0,
    "backend": "nonsense",
    "random_state": -3,
    "verbose": -1,
    "tol": 7,
    "momentum": 2.0,
    "noise": -1.0,
    "scheme": "implizit",
    "blur": -1.0,
    "sinkhorn_iter": 0,
    "debias": "yes",
    "langevin": -1,
    "units": "metres",
    "coordinates": "polar",
    "init": "gauss",
    "coarse": "never",
    "project": 3,
    "kernel": "gaussian",
    "solver": "sit",
    "clock": "loud",
    "n_slabs": 0,
    "reg": -1,
    "n_features": 0,
    "n_bins": 0,
    "time_scale": 0,
    "degree": -1,
    "critic": "kernels",
    "inner_iter": 0,
    "inner_tol": -1,
    "regularization": -1,
    "n_landmarks": 0,
    "lag_time": 0,
    "n_components": 0,
}


@fitted_flows
def test_parameters_set_after_fit_are_checked_by_every_verb(name):
    flow = FLOWS[name]().fit(X)
    verbs = [lambda: flow.transport(Z), lambda: flow.sample(3), lambda: flow.fit(X)]
    verbs += [lambda: flow.score(X)] if hasattr(flow, "score") else []
    verbs += [lambda: flow.transform(X)] if hasattr(flow, "transform") else []
    verbs += [lambda: flow.witness(X, Z)] if hasattr(flow, "witness") else []
    verbs += [lambda: flow.invert(Z)] if hasattr(flow, "invert") else []
    checked = 0
    for parameter, bad in BAD.items():
        if parameter not in flow.get_params(deep=False):
            continue
        good = getattr(flow, parameter)
        flow.set_params(**{parameter: bad})
        for verb in verbs:
            with pytest.raises((ValueError, TypeError), match=parameter.replace("_", ".")):
                verb()
        flow.set_params(**{parameter: good})
        checked += 1
    assert checked >= 5
    assert np.isfinite(flow.transport(Z)).all()


# Every number names a seed, and as many steps as there are numbers are the limit of the regression.
ANYTHING_GOES = {("random_state", "beyond"), ("persistence", "beyond"), ("latent", "beyond")}
NOTHINGS = {
    "object": object(),
    "array": np.array([1.0, 2.0]),
    "word": "nonsense",
    "nan": float("nan"),
    "list": [],
    "beyond": 10**400,
}


@fitted_flows
def test_no_parameter_set_after_fit_is_forgotten(name):
    """By introspection: what means nothing is refused whatever the parameter, in words that name it."""
    flow = FLOWS[name]().fit(X)
    for parameter, good in flow.get_params(deep=False).items():
        for kind, bad in NOTHINGS.items():
            if (parameter, kind) in ANYTHING_GOES:
                continue
            flow.set_params(**{parameter: bad})
            with pytest.raises(
                (ValueError, TypeError), match=parameter.replace("_", ".")
            ) as caught:
                flow.transport(Z)
            assert "ambiguous" not in str(caught.value)
        flow.set_params(**{parameter: good})
    assert np.isfinite(flow.transport(Z)).all()


def test_no_parameter_of_a_generator_is_forgotten():
    """As above; nor do its fit, a failed refit and writing into the samples change what it draws."""
    pytest.importorskip("torch")
    data = X.copy()
    made = gk.Generator(
        lambda a, s: gk.generators.perceptron(a, s[0], hidden=4, layers=1),
        "energy",
        latent_dim=2,
        n_iter=1,
        batch_size=16,
        random_state=0,
    ).fit(data)
    expected = made.sample(5)
    data[:] = 1e3
    assert made.X_.max() < 1e3
    for bad in (X * np.nan, X[:, :0], "text", X[:, :1] * 0):
        with pytest.raises((ValueError, TypeError)):
            made.fit(bad)
    for parameter, good in made.get_params(deep=False).items():
        for kind, bad in NOTHINGS.items():
            if (parameter, kind) in ANYTHING_GOES or (parameter, kind) == ("scale", "array"):
                continue
            made.set_params(**{parameter: bad})
            with pytest.raises((ValueError, TypeError), match=parameter) as caught:
                made.sample(5)
            assert "ambiguous" not in str(caught.value), (parameter, kind)
        made.set_params(**{parameter: good})
    np.testing.assert_array_equal(made.sample(5), expected)


@pytest.mark.parametrize("name", SPECTRA)
def test_spectra_check_parameters_in_every_verb(name):
    spectrum = SPECTRA[name](X)
    for parameter, bad in {"backend": "nonsense", "n_components": 0, "tol": 7}.items():
        good = getattr(spectrum, parameter)
        spectrum.set_params(**{parameter: bad})
        for verb in (spectrum.transform, spectrum.gradient):
            with pytest.raises((ValueError, TypeError), match=parameter):
                verb(Z)
        spectrum.set_params(**{parameter: good})


@fitted_flows
def test_verbs_before_fit(name):
    flow = FLOWS[name]()
    calls = {
        "transport": (Z,),
        "sample": (3,),
        "score": (X,),
        "transform": (X,),
        "witness": (X, Z),
        "invert": (Z,),
        "trajectory": (Z, [0, 1]),
        "spectral_report": (),
    }
    for verb, arguments in calls.items():
        if hasattr(type(flow), verb):
            with pytest.raises(NotFittedError):
                getattr(flow, verb)(*arguments)


def test_successors_are_never_ignored():
    with pytest.raises(ValueError, match="successors= would be ignored"):
        gk.KSWGD("diffusion").fit(X, successors=X)
    with pytest.raises(ValueError, match="successors= would be ignored"):
        gk.KSWGD(SPECTRA["DiffusionMap"](X)).fit(X, successors=X)


def test_a_projection_that_returns_nan_is_named():
    flow = gk.KSWGD(n_components=3, total_time=0.2, project=_nowhere).fit(X)
    with pytest.raises(ValueError, match="project returned NaN"):
        flow.transport(Z)


def _nowhere(points):
    return points * np.nan


# --- moments of a diffusion map are over all samples


@pytest.mark.parametrize("n_landmarks", [None, 40])
def test_mean_and_variance_under_all_samples(n_landmarks):
    Y = np.concatenate([X, [[40.0, 40.0], [-50.0, 3.0], [0.0, 70.0]]])
    spectrum = DiffusionMap(gk.Gaussian(0.8), 4, n_landmarks=n_landmarks, random_state=0).fit(Y)
    assert n_landmarks or spectrum.n_isolated_ >= 3
    phi = spectrum.transform(Y)
    np.testing.assert_allclose(phi.mean(axis=0), 0.0, atol=1e-10)
    np.testing.assert_allclose(phi.var(axis=0), 1.0, atol=1e-10)


# --- state changes only on success


@fitted_flows
def test_a_failed_fit_changes_nothing(name):
    flow = FLOWS[name]().fit(X)
    before = flow.transport(Z)
    for bad in (X * np.nan, X[:, :0], "text", np.full((5, 2), 3 + 1j)):
        with pytest.raises((ValueError, TypeError)):
            flow.fit(bad)
    if name == "WassersteinFlow":
        with pytest.raises(ValueError, match="sample_weight"):
            flow.fit(normal(60, seed=5), sample_weight=-np.ones(60))
    if name == "KSWGD":
        with pytest.raises(ValueError, match="successors"):
            flow.fit(normal(60, seed=5), successors=X[:3])
    np.testing.assert_array_equal(flow.transport(Z), before)


def test_a_failed_partial_fit_spoils_no_later_one():
    flows = [FLOWS["KoopmanSampler"](reg=1e-6).fit(X) for _ in range(2)]
    more = normal(60, seed=3)
    with pytest.raises((ValueError, TypeError)):
        flows[0].partial_fit(more * np.nan)
    learn = flows[0]._flow.learner.accumulate
    flows[0]._flow.learner.__class__.accumulate = _fails
    try:
        with pytest.raises(RuntimeError, match="half-way"):
            flows[0].partial_fit(more)
    finally:
        flows[0]._flow.learner.__class__.accumulate = learn.__func__
    for flow in flows:
        flow.partial_fit(more)
    np.testing.assert_array_equal(flows[0].transport(Z), flows[1].transport(Z))


def _fails(self, groups):
    for moments in self.moments.values():
        moments[0].count += 10**6
    raise RuntimeError("half-way")


@fitted_flows
def test_writing_into_the_samples_after_fit_changes_nothing(name):
    data = X.copy()
    flow, same = FLOWS[name]().fit(data), FLOWS[name]().fit(X)
    data[:] = 1e3
    np.testing.assert_array_equal(flow.transport(Z), same.transport(Z))


@pytest.mark.parametrize("name", SPECTRA)
def test_writing_into_the_samples_of_a_spectrum_changes_nothing(name):
    data = X.copy()
    spectrum = SPECTRA[name](data)
    before = spectrum.transform(Z)
    data[:] = 1e3
    np.testing.assert_array_equal(spectrum.transform(Z), before)


# --- estimators that are no flows, and parts that the user may fit anew


FRAMES = np.cos(0.8 * np.cumsum(normal(300, 1), axis=0))
FEW = {"n_components": 2, "n_landmarks": 10, "reg": 0.3, "random_state": 0}


def _dictionary_of(data):
    return gk.torch.NeuralDictionary(4, 8, 1, 5, random_state=0).fit(data, successors=data * 0.9)


OTHERS = {
    **{
        name: (lambda name=name: getattr(gk.baselines, name)(random_state=0).fit(X), "sample")
        for name in ("KernelDensity", "GaussianMixture", "Langevin", "SVGD")
    },
    "KernelDensity, score": (
        lambda: gk.baselines.KernelDensity(0.5, random_state=0).fit(X),
        lambda m: m.score(Z),
    ),
    "LinearCoordinates": (lambda: LinearCoordinates("pca", 2).fit(X), "transform"),
    "LinearCoordinates, back": (
        lambda: LinearCoordinates("pca", 2).fit(X),
        lambda m: m.inverse(Z),
    ),
    **{name: (lambda make=make: make(X), "transform") for name, make in SPECTRA.items()},
    "NeuralDictionary": (lambda: _dictionary_of(X), "features"),
    "NeuralDictionary, slopes": (lambda: _dictionary_of(X), "gradient"),
    "KineticModel": (
        lambda: gk.kinetics.KineticModel(KernelEDMD(gk.Gaussian(0.5), **FEW), n_bootstrap=3).fit(
            FRAMES
        ),
        lambda m: m.weights(),
    ),
    "KineticModel, states": (
        lambda: gk.kinetics.KineticModel(KernelEDMD(gk.Gaussian(0.5), **FEW), n_bootstrap=3).fit(
            FRAMES
        ),
        lambda m: gk.kinetics.metastable_states(m, 2).weights_lower,
    ),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", OTHERS)
def test_no_parameter_of_any_estimator_is_forgotten(name):
    """Whatever is set after the fit and means nothing is refused by the verb, and what is learned stays."""
    if name.startswith("NeuralDictionary"):
        pytest.importorskip("torch")
    make, verb = OTHERS[name]
    model = make()
    ask = verb
    if isinstance(verb, str):
        ask = lambda m: getattr(m, verb)(*([] if verb == "sample" else [Z]))
    expected = ask(model)
    for parameter, good in model.get_params(deep=False).items():
        for kind, bad in {**NOTHINGS, "minus": -1}.items():
            if (parameter, kind) in ANYTHING_GOES:
                continue
            model.set_params(**{parameter: bad})
            with pytest.raises((ValueError, TypeError), match=parameter.replace("_", ".")):
                ask(model)
        model.set_params(**{parameter: good})
    np.testing.assert_array_equal(ask(model), expected)


def _spectral_flow(part):
    return gk.KSWGD(part, total_time=0.2, random_state=0).fit(X).transport


def _latent(part):
    made = gk.KoopmanSampler(latent=part, n_features=20, random_state=0).fit(X)
    return lambda Z: made.sample(5, 0)


REFITTED = {
    "spectrum": (SPECTRA["DiffusionMap"], _spectral_flow, lambda s: s.fit(3 * X + 1)),
    "latent": (lambda X: PCA(2).fit(X), _latent, lambda p: p.fit(3 * X[::-1] + 1)),
    "latent, unfitted": (lambda X: PCA(2), _latent, lambda p: p.fit(3 * X[::-1] + 1)),
    "latent, functions": (
        lambda X: PCA(2).fit(X),
        lambda p: _latent((p.transform, p.inverse_transform)),
        lambda p: p.fit(3 * X[::-1] + 1),
    ),
    "coordinates": (
        lambda X: LinearCoordinates("whiten").fit(X),
        lambda c: DiffusionMap(gk.Gaussian(1.0), 3, coordinates=c, random_state=0).fit(X).transform,
        lambda c: c.fit(X * [3.0, 0.5] + 1),
    ),
    "dictionary": (
        _dictionary_of,
        lambda d: GeneratorEDMD(d, n_components=2).fit(X).transform,
        lambda d: d.fit(3 * X + 1, successors=X),
    ),
}


@pytest.mark.parametrize("name", REFITTED)
def test_a_part_that_is_fitted_anew_changes_no_fit(name):
    if name == "dictionary":
        pytest.importorskip("torch")
    make, of_part, refit = REFITTED[name]
    part = make(X)
    verb = of_part(part)
    expected = verb(Z)
    refit(part)
    np.testing.assert_array_equal(verb(Z), expected)


def test_a_map_of_a_network_is_a_value():
    torch = pytest.importorskip("torch")
    module = torch.nn.Linear(2, 2).double()
    made = gk.maps.TorchMap(module).start(Z)
    expected = made(Z)
    assert np.abs(made.regress(Z, Z + 1.0, 3)(Z) - expected).max() > 0.1
    np.testing.assert_array_equal(made(Z), expected)
    moved = made.regress(Z, Z + 1.0, 3)
    expected = moved(Z)
    with torch.no_grad():
        module.weight.zero_()
    np.testing.assert_array_equal(moved(Z), expected)
    for changed in (gk.maps.RandomFeatureMap(5, random_state=0).start(Z), moved):
        changed.learning_rate = -1.0
        with pytest.raises(ValueError, match="learning_rate"):
            changed.regress(Z, Z + 1.0)


def test_a_failed_training_of_a_lift_changes_nothing(monkeypatch):
    pytest.importorskip("torch")
    from gpukoop.sampler import neural

    lift = neural.NeuralFeatures(2, 4, width=5).train(X, n_paths=8, n_steps=2)
    expected, losses = lift.advance(Z), {k: list(v) for k, v in lift.losses.items()}
    for bad in (X * np.nan, X[:, :1], "text"):
        with pytest.raises((ValueError, TypeError)):
            lift.train(bad, n_paths=8, n_steps=2)
    with pytest.raises(FloatingPointError, match="diverged"):
        lift.train(X, n_paths=8, n_steps=3, rate=1e300)

    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(neural.NeuralFeatures, "_decode", stop)
    with pytest.raises(KeyboardInterrupt):
        lift.train(X, n_paths=8, n_steps=2)
    monkeypatch.undo()
    np.testing.assert_array_equal(lift.advance(Z), expected)
    assert lift.losses == losses


@pytest.mark.parametrize("name", [n for n in FLOWS if n != "KoopmanSampler"])
def test_callbacks_look_and_do_not_touch(name):
    flow = FLOWS[name]().fit(X)
    expected = flow.transport(Z)

    def vandal(i, particles):
        with pytest.raises(ValueError, match="read-only"):
            particles[:] = 0.0

    np.testing.assert_array_equal(flow.transport(Z, callback=vandal), expected)
    start = Z.copy()
    moved = flow.transport(start, n_iter=0)
    assert not np.may_share_memory(moved, start)
    np.testing.assert_array_equal(moved, Z)
    moved[:] = 0.0
    np.testing.assert_array_equal(start, Z)


@pytest.mark.parametrize("name", [n for n in FLOWS if n != "KoopmanSampler"])
def test_one_fitted_flow_in_many_threads_and_within_a_callback(name):
    flow = FLOWS[name]().fit(X)
    starts = [normal(20, seed=s) for s in range(8)]
    expected = [flow.transport(start) for start in starts]
    found, errors = [None] * 8, []

    def work(k):
        try:
            with gk.use_backend("numpy"):
                found[k] = flow.transport(starts[k])
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    inner = []
    # far out: within sampling noise a flow may stop before its first step
    flow.transport(Z + 1.5, callback=lambda i, p: inner.append(flow.transport(starts[0])) and None)
    np.testing.assert_array_equal(inner[0], expected[0])


# --- frames


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FLOWS, *SPECTRA])
def test_columns_are_remembered_and_checked(name):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=["a", "b"])
    made = FLOWS[name]().fit(frame) if name in FLOWS else SPECTRA[name](frame)
    assert list(made.feature_names_in_) == ["a", "b"]
    verbs = [made.transform] if hasattr(made, "transform") else []
    verbs += [made.transport] if name in FLOWS and name != "KoopmanSampler" else []
    pairs = {"successors": X + 0.1 * X[::-1]} if name == "KernelEDMD" else {}
    verbs += [functools.partial(made.score, **pairs)] if hasattr(made, "score") else []
    for verb in verbs:
        verb(frame)
        verb(X)
        for other in (frame[["b", "a"]], frame.rename(columns={"a": "c"})):
            with pytest.raises(ValueError, match="feature names"):
                verb(other)
    if hasattr(made, "transform"):
        names = list(made.get_feature_names_out())
        out = made.set_output(transform="pandas").transform(frame)
        assert list(out.columns) == names
        assert out.shape == (60, len(names))


def test_every_transformer_names_its_columns():
    """By introspection: a public class with ``transform`` has scikit-learn's names and ``set_output``."""
    rooms = [getattr(gk, name) for name in gk.__all__]
    rooms = [gk, *(room for room in rooms if inspect.ismodule(room))]
    found = {
        thing
        for room in rooms
        for name in getattr(room, "__all__", ())
        if inspect.isclass(thing := getattr(room, name))
        and hasattr(thing, "transform")
        and not inspect.isabstract(thing)
    }
    assert {gk.KSWGD, KineticModel, gk.metrics.RandomConvolutions} <= found
    for thing in found:
        assert hasattr(thing, "get_feature_names_out"), thing.__name__
        assert hasattr(thing, "set_output"), thing.__name__
    pandas = pytest.importorskip("pandas")
    model = KineticModel(EDMD, n_bootstrap=3).fit(_walk(["a", "b"]))
    out = model.set_output(transform="pandas").transform(_walk(["a", "b"]))
    assert isinstance(out, pandas.DataFrame)
    assert list(out.columns) == [f"kineticmodel{k}" for k in range(model.phi_.shape[1])]
    pictures = np.random.default_rng(0).random((3, 8, 8))
    images = gk.metrics.RandomConvolutions().fit(pictures).set_output(transform="pandas")
    assert images.transform(pictures).shape == (3, 128)


def _walk(columns):
    pandas = pytest.importorskip("pandas")
    frames = np.cumsum(normal(200), axis=0) % 3.0
    return pandas.DataFrame(frames, columns=["a", "b"])[columns]


EDMD = KernelEDMD(gk.Gaussian(0.5), 2, n_landmarks=20, reg=0.3, random_state=0)
SWAPPED = {
    "coordinates": lambda df, swapped: LinearCoordinates("pca").fit(df).transform(swapped),
    "diagnose": lambda df, swapped: FLOWS["WassersteinFlow"]().fit(df).diagnose(swapped),
    "pairs": lambda df, swapped: clone(EDMD).fit(df, successors=swapped),
    "pairs of coordinates": lambda df, swapped: LinearCoordinates("tica").fit(
        df, successors=swapped
    ),
    "pairs of a flow": lambda df, swapped: FLOWS["KSWGD"]().fit(df, successors=swapped),
    "runs": lambda df, swapped: clone(EDMD).fit([df, swapped], lag=1),
    "runs of a model": lambda df, swapped: KineticModel(EDMD, n_bootstrap=3).fit([df, swapped]),
    "model": lambda df, swapped: KineticModel(EDMD, n_bootstrap=3).fit(df).transform(swapped),
    "inverse": lambda df, swapped: FLOWS["KoopmanSampler"]().fit(df).invert(swapped),
    "later points": lambda df, swapped: FLOWS["KoopmanSampler"]().fit(df).partial_fit(swapped),
    "baseline": lambda df, swapped: KernelDensity(random_state=0).fit(df).score(swapped),
}


@pytest.mark.parametrize("verb", SWAPPED)
def test_swapped_columns_are_seen_wherever_a_frame_may_come_twice(verb):
    with pytest.raises(ValueError, match="feature names"):
        SWAPPED[verb](_walk(["a", "b"]), _walk(["b", "a"]))


def _coordinates(df):
    return LinearCoordinates("pca", 1).fit(df)


def _dictionary(df):
    pytest.importorskip("torch")
    return gk.torch.NeuralDictionary(2, 4, 1, 1, 1e-3, random_state=0).fit(df, successors=df)


LESS_USED = {
    "transport of noise": (FLOWS["KoopmanSampler"], lambda m, df: m.transport(df)),
    "trajectory of noise": (FLOWS["KoopmanSampler"], lambda m, df: m.trajectory(df, [0, 1])),
    "lift": (_coordinates, lambda m, df: m.lift(df, np.ones((len(df), 1)))),
    "vjp": (_coordinates, lambda m, df: m.vjp(df, np.ones((len(df), 1)))),
    "gradients": (_coordinates, lambda m, df: m.gradients(df, np.ones((len(df), 2, 1)))),
    "features": (_dictionary, lambda m, df: m.features(df)),
    "gradient": (_dictionary, lambda m, df: m.gradient(df)),
    "slope": (_dictionary, lambda m, df: m.slope(df, np.ones(2))),
}


@pytest.mark.parametrize("verb", LESS_USED)
@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_frames_in_verbs_that_are_less_used(verb, library):
    """The same numbers as from arrays; other columns, fewer, more or in another order are refused by their names."""
    made, call = LESS_USED[verb]
    frame = _walk(["a", "b"])
    if library == "polars":
        frame = pytest.importorskip("polars").from_pandas(frame)
    model = made() if verb.endswith("noise") else made(frame)
    model = model.fit(frame) if verb.endswith("noise") else model
    np.testing.assert_array_equal(call(model, frame), call(model, frame.to_numpy()))
    more, other = _walk(["a", "b"]).assign(c=1.0), _walk(["a", "b"]).rename(columns={"a": "c"})
    for wrong in (_walk(["b", "a"]), _walk(["a"]), more, other):
        given = wrong if library == "pandas" else pytest.importorskip("polars").from_pandas(wrong)
        with pytest.raises(ValueError, match="feature names"):
            call(model, given)


def test_coordinates_back_from_a_frame():
    pandas = pytest.importorskip("pandas")
    model = LinearCoordinates("pca").fit(X)
    G = model.transform(X)
    back = model.inverse(pandas.DataFrame(G))
    np.testing.assert_allclose(back, X, atol=1e-12)
    for wrong in (G[:, :1], G[0], "text", np.array([["a", "b"]])):
        with pytest.raises((ValueError, TypeError), match="G "):
            model.inverse(wrong)


@pytest.mark.parametrize("verb", SWAPPED)
def test_two_columns_of_one_name_are_refused_in_words(verb):
    walk = _walk(["a", "b"])
    twice = walk.set_axis(["a", "a"], axis=1)
    for first, second in ((walk, twice), (twice, walk)):
        with pytest.raises(ValueError, match="two columns of the frame are called 'a'"):
            SWAPPED[verb](first, second)


# --- checkpoints


def _half(points):
    return points / 2


def _third(points):
    return points / 3


def test_identity_tells_apart_what_decides_a_run():
    values = [
        X,
        X.astype("float32"),
        X.reshape(-1),
        X.T.copy(),
        X[:, ::-1],
        _half,
        _third,
        np.random.default_rng(0),
        np.random.default_rng(1),
        np.random.RandomState(0),
        gk.Gaussian(1.0),
        gk.Gaussian(2.0),
        SPECTRA["DiffusionMap"](X),
        SPECTRA["DiffusionMap"](X * 1.001),
        {"a": 1},
        {"a": 2},
        None,
        0,
        False,
        0.0,
    ]
    digests = [identity(value) for value in values]
    assert len(set(digests)) == len(values)
    assert digests == [identity(value) for value in values]
    with pytest.raises(TypeError, match="checkpoint_name"):
        identity(lambda points: points)
    with pytest.raises(TypeError, match="checkpoint_name"):
        identity(object())
    named = lambda points: points
    named.checkpoint_name = "the identity"
    assert identity(named) == identity(named)


# What a user may have changed between two runs: %s is 2 in the first, 3 in the second.
EDITED = {
    "a comprehension": "def f(x):\n    return [v * %s for v in x]",
    "a lambda inside": "def f(x):\n    return (lambda y: y * %s)(x)",
    "a global number": "S = %s\ndef f(x):\n    return x * S",
    "a global array": "import numpy as np\nA = np.arange(5000.0) * %s\ndef f(x):\n    return x @ A",
    "a default": "import numpy as np\ndef f(x, A=np.arange(5000.0) * %s):\n    return x @ A",
    "a function called": "def g(x):\n    return x * %s\ndef f(x):\n    return g(x)",
    "a recursion": "def f(x):\n    return x if x < %s else g(x)\ndef g(x):\n    return f(x - 1)",
    "a method": "from sklearn.base import BaseEstimator\nclass f(BaseEstimator):\n    def go(self, x):\n        return x * %s",
    "an attribute of a class": "class f:\n    c = %s\n    def go(self, x):\n        return x * self.c",
    "a data class": (
        "import dataclasses\n@dataclasses.dataclass\nclass f:\n    a: int = 1\n    def go(self, x):\n        return x * %s"
    ),
    "a kernel": "import gpukoop as gk\nclass f(gk.Gaussian):\n    def phi(self, q):\n        return q ** %s",
    "a part": "from functools import partial\ndef g(c, x):\n    return c * x\nf = partial(g, %s)",
}


@pytest.mark.parametrize("name", EDITED)
def test_edited_code_is_another_run(name):
    def digest(number):
        names = {"__name__": "users_file"}
        exec(EDITED[name] % number, names)
        thing = names["f"]
        return identity(thing), identity(thing(1.0) if name == "a kernel" else thing)

    assert digest(2) == digest(2)
    assert all(a != b for a, b in zip(digest(2), digest(3), strict=True))


def test_identity_of_what_looks_alike():
    A = np.eye(2)
    assert identity(A.dot) == identity(np.eye(2).dot) != identity((2 * A).dot)
    assert identity(np.array(1.0)) != identity(np.array([1.0]))
    assert identity({1: 2}) != identity({"1": 2})
    first, second = (np.zeros(2, [(a, "f8"), (b, "f8")]) for a, b in ("xy", "yx"))
    assert identity(first) != identity(second)
    assert identity(np.linalg.norm) != identity(np.linalg.det)
    unknown = {"o": object()}
    exec("def f(x):\n    return o", unknown)
    with pytest.raises(TypeError, match="checkpoint_name"):
        identity(unknown["f"])


@pytest.mark.parametrize(
    "other",
    [
        lambda: gk.KSWGD(n_components=3, total_time=0.5, random_state=0).fit(X, successors=0.9 * X),
        lambda: gk.KSWGD(SPECTRA["DiffusionMap"](X * 1.01), total_time=0.5, random_state=0).fit(X),
        lambda: gk.KSWGD(n_components=3, total_time=0.5, random_state=0, project=_third).fit(X),
        lambda: gk.KSWGD(n_components=3, total_time=0.5, random_state=np.random.default_rng(0)).fit(
            X
        ),
    ],
)
def test_no_run_resumes_another(tmp_path, other):
    path = tmp_path / "state"
    first = gk.KSWGD(n_components=3, total_time=0.5, random_state=0, project=_half).fit(X)
    end = first.transport(Z, checkpoint=path)
    with pytest.raises(ValueError, match="belongs to another run"):
        other().transport(Z, checkpoint=path)
    for start in (Z[:7], Z.astype("float32"), Z.T.reshape(20, 2).copy()):
        with pytest.raises(ValueError, match="belongs to another run"):
            first.transport(start, checkpoint=path)
    np.testing.assert_array_equal(first.transport(Z, checkpoint=path), end)


def test_weights_decide_a_run(tmp_path):
    w = np.random.default_rng(0).random(60)
    flow = lambda w: gk.WassersteinFlow("sliced", n_iter=3, random_state=0).fit(X, sample_weight=w)
    flow(w).transport(Z, checkpoint=tmp_path / "state")
    with pytest.raises(ValueError, match="belongs to another run"):
        flow(w[::-1]).transport(Z, checkpoint=tmp_path / "state")


def test_a_lambda_needs_a_name_to_be_continued(tmp_path):
    flow = gk.KSWGD(n_components=3, total_time=0.2, project=lambda points: points).fit(X)
    with pytest.raises(TypeError, match="checkpoint_name"):
        flow.transport(Z, checkpoint=tmp_path / "state")


POSIX = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX files")


@POSIX
def test_what_is_no_checkpoint_is_refused_before_it_is_read(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(100 * 2**30)
    flow = FLOWS["MMDFlow"]().fit(X)
    for path in ("/dev/zero", tmp_path / "fifo", tmp_path / "sparse"):
        with pytest.raises((ValueError, OSError), match=r"damaged|ordinary"):
            flow.transport(Z, checkpoint=path)
    for name in ("fifo", "sparse"):
        with pytest.raises(ValueError, match=r"ordinary|readable"):
            read_npy(tmp_path / name)


@POSIX
def test_links_and_permissions_are_kept(tmp_path):
    path, link = tmp_path / "state", tmp_path / "link"
    path.write_bytes(b"old")
    path.chmod(0o640)
    link.symlink_to(path)
    write_atomically(link, b"new")
    assert link.is_symlink()
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    mask = os.umask(0o027)
    try:
        write_atomically(tmp_path / "fresh", b"x")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "fresh").stat().st_mode) == 0o640
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fresh", "link", "state"]


# --- flipped bits


def test_flipped_bits_of_a_checkpoint_are_seen(tmp_path):
    path = tmp_path / "state"
    flow = FLOWS["MMDFlow"]().fit(X)
    end = flow.transport(Z, checkpoint=path)
    whole = path.read_bytes()
    for bit in np.random.default_rng(0).integers(8 * len(whole), size=200):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << int(bit % 8)
        path.write_bytes(data)
        with pytest.raises(ValueError, match="damaged"):
            flow.transport(Z, checkpoint=path)
    path.write_bytes(whole)
    np.testing.assert_array_equal(flow.transport(Z, checkpoint=path), end)


def _flipped(path, n_flips=200):
    """Yield so many times, each time with one bit of the file flipped."""
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for bit in rng.integers(8 * len(whole), size=n_flips):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << int(bit % 8)
        path.write_bytes(data)
        yield
    path.write_bytes(whole)


@pytest.mark.parametrize("name", ["KSWGD", "KoopmanSampler"])
def test_flipped_bits_of_a_model_are_seen(name, tmp_path):
    path, flow = tmp_path / "M.model", FLOWS[name]().fit(X)
    write_model(path, flow)
    for _ in _flipped(path):
        with pytest.raises(ValueError, match=r"damaged|no model"):
            read_model(path)
    np.testing.assert_array_equal(read_model(path).transport(Z), flow.transport(Z))


def test_every_byte_of_a_seal_is_looked_at(tmp_path):
    write_sealed(tmp_path / "seal", b"some kind\n", b"payload")
    whole = (tmp_path / "seal").read_bytes()
    for at in range(len(whole)):
        (tmp_path / "seal").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ValueError, match="it is"):
            read_sealed(tmp_path / "seal", b"some kind\n")


def test_flipped_bits_of_a_kept_fit_are_seen(tmp_path):
    path = tmp_path / "fit"
    expected = FLOWS["KoopmanSampler"]().fit(X, checkpoint=path).transport(Z)
    for _ in _flipped(path):
        with pytest.raises(ValueError, match=r"damaged|no model"):
            FLOWS["KoopmanSampler"]().fit(X, checkpoint=path)
    again = FLOWS["KoopmanSampler"]().fit(X, checkpoint=path)
    np.testing.assert_array_equal(again.transport(Z), expected)


def test_flipped_bits_of_moments_are_seen(tmp_path):
    from gpukoop.sampler import Lift, Moments, PolynomialFeatures, Triples, assemble

    path = tmp_path / "moments"
    made = assemble(Lift(2, [PolynomialFeatures(2, 1, 1)]), Triples(X, None, 0), 500)
    made.save(path)
    for _ in _flipped(path):
        with pytest.raises(ValueError, match="holds no moments"):
            Moments.load(path)
    for name, value in Moments.load(path).sums.items():
        np.testing.assert_array_equal(value, made.sums[name])


def test_flipped_bits_of_a_generator_are_seen(tmp_path):
    pytest.importorskip("torch")
    made = gk.Generator(
        lambda a, s: gk.generators.perceptron(a, s[0], hidden=4, layers=1),
        "energy",
        latent_dim=2,
        n_iter=1,
        batch_size=16,
        random_state=0,
    ).fit(X)
    path = tmp_path / "G.generator"
    made.save(path)
    network = gk.generators.perceptron(2, 2, hidden=4, layers=1)
    for _ in _flipped(path):
        with pytest.raises(ValueError, match="no readable"):
            gk.Generator.load(path, network=network)
    loaded = gk.Generator.load(path, network=network)
    np.testing.assert_array_equal(loaded.sample(5), made.sample(5))


@pytest.mark.parametrize("path", ["a\0b", "x" * 300, 3, b"x", ""])
def test_what_is_no_name_of_a_file_is_refused(path):
    for flow, verb in (
        (FLOWS["MMDFlow"]().fit(X), "transport"),
        (FLOWS["KoopmanSampler"](), "fit"),
    ):
        with pytest.raises((ValueError, TypeError), match=r"checkpoint|folder"):
            getattr(flow, verb)(Z, checkpoint=path)


def test_a_sparse_file_is_no_kept_fit(tmp_path):
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(100 * 2**30)
    with pytest.raises(ValueError, match="no model"):
        FLOWS["KoopmanSampler"]().fit(X, checkpoint=tmp_path / "sparse")


def test_flipped_bits_of_an_npz_are_seen(tmp_path):
    path = tmp_path / "points.npz"
    np.savez_compressed(path, particles=X)
    whole = path.read_bytes()
    np.testing.assert_array_equal(read_npy(path), X)
    for bit in np.random.default_rng(0).integers(8 * len(whole), size=200):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << int(bit % 8)
        path.write_bytes(data)
        with contextlib.suppress(ValueError):  # or a bit that says nothing: a date, a comment
            np.testing.assert_array_equal(read_npy(path), X)


def test_bytes_after_the_array_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", X)
    with open(tmp_path / "a.npy", "ab") as file:
        file.write(b"\0" * 16)
    with pytest.raises(ValueError, match="more in the file"):
        read_npy(tmp_path / "a.npy")


def test_flipped_bits_of_a_training_are_seen(tmp_path):
    """The checkpoint of `gpukoop train`: of 200 altered files none is continued."""
    pytest.importorskip("torch")
    path = tmp_path / "checkpoint.pt"
    made = lambda: gk.Generator(
        lambda a, s: gk.generators.perceptron(a, s[0], hidden=4, layers=1),
        "energy",
        latent_dim=2,
        n_iter=1,
        batch_size=16,
        random_state=0,
    ).fit(X, checkpoint=path)
    expected = made().sample(5)
    for _ in _flipped(path):
        with pytest.raises(ValueError, match="no readable"):
            made()
    np.testing.assert_array_equal(made().sample(5), expected)


def test_flipped_bits_of_a_kept_classifier_are_trained_anew(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    from gpukoop.metrics import ClassifierFeatures, classifier

    monkeypatch.setenv("GPUKOOP_CACHE_DIR", str(tmp_path))
    pictures = np.random.default_rng(0).random((20, 8, 8))
    made = lambda: ClassifierFeatures(2, 1).fit(pictures, np.arange(20) % 2)
    expected = made().transform(pictures)
    (path,) = (tmp_path / "classifiers").iterdir()
    again = []
    fit = classifier._fit
    monkeypatch.setattr(classifier, "_fit", lambda *a: again.append(1) or fit(*a))
    for n, _ in enumerate(_flipped(path), 1):
        np.testing.assert_allclose(made().transform(pictures), expected, rtol=1e-4, atol=1e-6)
        assert len(again) == n
    path.parent.chmod(0o777)  # others may write there: left alone
    made()
    assert len(again) == n + 1


@pytest.mark.parametrize("packed", [False, True])
def test_flipped_bits_of_pictures_are_seen(packed, tmp_path):
    """PNG folders and packed IDX files have sums of their own, and both are asked."""
    pytest.importorskip("PIL")
    import gzip
    import struct

    from PIL import Image

    from gpukoop.datasets import images

    pictures = np.random.default_rng(0).integers(0, 256, (2, 9, 8), dtype=np.uint8)
    if packed:
        path = where = tmp_path / "images.gz"
        path.write_bytes(
            gzip.compress(struct.pack(">HBB3I", 0, 8, 3, *pictures.shape) + pictures.tobytes())
        )
    else:
        where, path = tmp_path, tmp_path / "0.png"
        for name, picture in zip("01", pictures, strict=True):
            Image.fromarray(picture).save(tmp_path / f"{name}.png")
    np.testing.assert_array_equal(images(where), pictures)
    seen = 0
    for _ in _flipped(path):
        try:
            found = images(where)
        except ValueError:
            seen += 1
        else:  # a bit that says nothing, such as the date
            np.testing.assert_array_equal(found, pictures)
    assert seen > 100
