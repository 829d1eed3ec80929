"""Fitted estimators in files: joblib gives back what was saved, and another version is told of."""

import pickle

import joblib
import numpy as np
import pytest

import gpukoop as gk
from gpukoop.persistence import PersistentEstimator


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


def test_every_estimator_of_the_package_is_one(tmp_path):
    for name in gk.__all__:
        thing = getattr(gk, name)
        if isinstance(thing, type) and hasattr(thing, "fit"):
            assert issubclass(thing, PersistentEstimator), name
            pickle.loads(pickle.dumps(thing()))
