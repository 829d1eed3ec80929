"""Fitted estimators in files: joblib gives back what was saved, and another version is told of."""

import copy
import importlib
import pickle
import pkgutil
import warnings

import joblib
import numpy as np
import pytest
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError

import gpukoop as gk
from gpukoop.persistence import PersistentEstimator
from gpukoop.versions import Persistent

# Verbs of objects that keep what they learn.
LEARNS = ("fit", "train", "regress")


@pytest.fixture(scope="module")
def run():
    return gk.datasets.ornstein_uhlenbeck(300, lag_time=0.2, random_state=0)[0]


def fitted(name, run):
    few = {"n_components": 2, "random_state": 0}
    if name == "KernelEDMD":
        return gk.KernelEDMD(n_landmarks=30, **few).fit(run, lag=1)
    if name == "KineticModel":
        return gk.kinetics.KineticModel(gk.KernelEDMD(n_landmarks=30, **few), n_bootstrap=5).fit(
            run
        )
    if name == "KSWGD":
        return gk.KSWGD(**few).fit(run)
    if name == "GaussianMixture":
        return gk.baselines.GaussianMixture(**few).fit(run)
    return gk.KoopmanSampler(random_state=0).fit(run)


@pytest.mark.parametrize(
    "name", ["KernelEDMD", "KineticModel", "KSWGD", "GaussianMixture", "KoopmanSampler"]
)
def test_what_is_saved_comes_back(name, run, tmp_path, monkeypatch):
    one = fitted(name, run)
    joblib.dump(one, tmp_path / "one.joblib")
    two = joblib.load(tmp_path / "one.joblib")
    ask = "transform" if hasattr(one, "transform") and not hasattr(one, "sample") else "sample"
    given = (run[:9],) if ask == "transform" else (9, 0)
    assert np.array_equal(getattr(one, ask)(*given), getattr(two, ask)(*given))
    assert sorted(vars(one)) == sorted(vars(two))
    monkeypatch.setattr(gk, "__version__", "9.9")
    with pytest.warns(UserWarning, match="was saved by gpukoop 0.2.0, this is 9.9") as told:
        joblib.load(tmp_path / "one.joblib")  # of its parts, too
    assert any(str(warning.message).startswith(name) for warning in told)


def test_what_knows_no_version_is_older():
    state = gk.KernelEDMD().__getstate__()
    del state["_gpukoop_version"]
    with pytest.warns(UserWarning, match=r"saved by gpukoop before 0\.2\.0"):
        gk.KernelEDMD().__setstate__(state)


def classes_that_learn():
    """Return every class of the package with a verb that learns, wherever it stands; protocols only name what others have."""
    modules = [m.name for m in pkgutil.walk_packages(gk.__path__, "gpukoop.")]
    found = set()
    for name in modules:
        if name.startswith("gpukoop.kernels") or name.endswith("__main__"):
            continue
        for thing in vars(importlib.import_module(name)).values():
            own = isinstance(thing, type) and thing.__module__.startswith("gpukoop.")
            if own and not getattr(thing, "_is_protocol", False):
                found |= {thing} if any(hasattr(thing, verb) for verb in LEARNS) else set()
    return sorted(found, key=lambda c: f"{c.__module__}.{c.__qualname__}")


def test_every_class_that_learns_knows_its_version():
    found = classes_that_learn()
    names = {c.__name__ for c in found}
    assert {"KSWGD", "LinearCoordinates", "ClassifierFeatures", "ImageFeatures"} <= names
    assert {"RandomFeatureMap", "Latent", "KineticModel", "NeuralDictionary"} <= names
    for one in found:
        assert issubclass(one, Persistent), f"{one.__module__}.{one.__qualname__}"
        if issubclass(one, BaseEstimator):
            assert issubclass(one, PersistentEstimator), one.__qualname__


@pytest.mark.parametrize("name", ["LinearCoordinates", "RandomConvolutions", "RandomFeatureMap"])
def test_small_objects_know_their_version(name, monkeypatch):
    if name == "RandomFeatureMap":
        one = gk.maps.RandomFeatureMap(5, random_state=0).start(np.arange(6.0).reshape(3, 2))
    elif name == "LinearCoordinates":
        one = gk.spectrum.LinearCoordinates().fit(np.arange(8.0).reshape(4, 2))
    else:
        one = gk.metrics.RandomConvolutions().fit(np.arange(192.0).reshape(3, 8, 8))
    saved = pickle.dumps(one)
    assert vars(pickle.loads(saved)).keys() == vars(one).keys()
    monkeypatch.setattr(gk, "__version__", "9.9")
    with pytest.warns(UserWarning, match=f"{name} was saved by gpukoop 0.2.0, this is 9.9"):
        pickle.loads(saved)


ESTIMATORS = [n for n in gk.__all__ if isinstance(getattr(gk, n), type)]


@pytest.mark.parametrize("name", [n for n in ESTIMATORS if hasattr(getattr(gk, n), "fit")])
def test_a_file_from_before_a_parameter(name):
    """Any one parameter, or all of them: they are then what they are by default, which is said."""
    made = getattr(gk, name)()
    for parameter, default in made.get_params(deep=False).items():
        state = {n: v for n, v in made.__getstate__().items() if n != parameter}
        other = type(made).__new__(type(made))
        with pytest.warns(UserWarning, match=f"it was without {parameter}="):
            other.__setstate__(state)
        assert getattr(other, parameter) is default
        assert other.get_params(deep=False).keys() == made.get_params(deep=False).keys()


def test_a_sampler_from_before_base_samples(run):
    one = fitted("KoopmanSampler", run)
    state = {n: v for n, v in one.__getstate__().items() if n != "base"}
    two = gk.KoopmanSampler.__new__(gk.KoopmanSampler)
    with pytest.warns(UserWarning, match="it was without base='sobol'.*Fit it again"):
        two.__setstate__(state)
    assert np.array_equal(one.sample(9, 0), two.sample(9, 0))


@pytest.mark.parametrize("lost", ["scale_", "_samples"])
def test_what_an_older_version_did_not_learn_is_named_by_the_verb(lost, run):
    one = gk.baselines.KernelDensity(random_state=0).fit(run)
    state = one.__getstate__() | {"_gpukoop_version": "0.1.0"}
    del state[lost]
    two = gk.baselines.KernelDensity()
    with pytest.warns(UserWarning, match=r"saved by gpukoop 0\.1\.0"):
        two.__setstate__(state)
    with pytest.raises(NotFittedError, match=rf"saved by gpukoop 0\.1\.0, without '{lost}'"):
        two.sample(3)
    assert not hasattr(two, lost)
    with pytest.warns(UserWarning, match=r"saved by gpukoop 0\.1\.0"):  # written again it is as old
        pickle.loads(pickle.dumps(two))
    two.set_params(random_state=0)
    assert np.array_equal(two.fit(run).sample(3), one.sample(3))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = two.nothing


def test_parameters_that_are_gone_or_needed():
    state = gk.MMDFlow().__getstate__() | {"old_option": 3}
    names = state.pop("_gpukoop_parameters")
    for told in (
        {},
        {"_gpukoop_parameters": [*names, "old_option"]},
    ):  # a file from before it names them, and one since
        with pytest.warns(UserWarning, match="old_option is no parameter any more"):
            gk.MMDFlow().__setstate__(state | told)

    class Needing(PersistentEstimator):
        def __init__(self, needed):
            self.needed = needed

    state = Needing(1).__getstate__()
    del state["needed"]
    with pytest.raises(ValueError, match="before it had the parameter 'needed'"):
        Needing(1).__setstate__(state)


class Narrow(gk.KSWGD):
    """A subclass with parameters of its own, which sets those of its parent."""

    def __init__(self, langevin=0.5):
        super().__init__(langevin=langevin)


@pytest.mark.parametrize("make", [gk.KSWGD, Narrow])
def test_what_a_user_or_a_parent_sets_is_no_parameter_that_is_gone(make):
    one = make()
    one.note = "mine"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        two = copy.deepcopy(one)
    assert vars(two).keys() == vars(one).keys()
    assert two.note == "mine"
