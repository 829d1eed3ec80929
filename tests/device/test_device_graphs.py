"""Leaps of a flow replayed as graphs: the stand-in records and computes again; same particles, one launch a leap."""

import numpy as np
import pytest
from device_counter import counted_device, counted_sums

import gpukoop as gk
from gpukoop.flow.graphs import Recording, Repeated
from gpukoop.flow.leaps import Leaps
from gpukoop.flow.loop import LOOK_EVERY, Info, State, run_flow

CUDA = "numba-cuda"


@pytest.fixture
def cupy():
    with counted_device(graphs=True) as module, counted_sums():
        yield module


@pytest.fixture
def leaps(monkeypatch):
    """Return the leaps that were made."""
    made, begin = [], Leaps.__init__

    def init(self, *args):
        begin(self, *args)
        made.append(self)

    monkeypatch.setattr(Leaps, "__init__", init)
    return made


@pytest.fixture(scope="module")
def clouds():
    rng = np.random.default_rng(0)
    return rng.normal(size=(200, 2)), 0.7 * rng.normal(size=(150, 2)) + 0.2


def kswgd(backend, **options):
    settings = {"n_components": 12, "n_landmarks": 60, "coarse": False, "random_state": 0}
    return gk.KSWGD(**{**settings, "validation_fraction": 0, "backend": backend, **options})


def mmd(backend, **options):
    return gk.MMDFlow(gk.Gaussian(1.0), random_state=0, backend=backend, **options)


@pytest.mark.parametrize(
    ("make", "options", "replayed"),
    [
        (kswgd, {}, 3),
        (mmd, {}, 3),
        (mmd, {"momentum": 0.5}, 3),
        # 40 % of 60 steps are coarse: of the leaps from 30, 40 and 50 the first is queued.
        (kswgd, {"coarse": True}, 2),
        (kswgd, {"langevin": 0.01}, 0),  # draws
        (mmd, {"noise": 0.1}, 0),
    ],
)
def test_replayed_flows_are_flows_on_the_host(cupy, leaps, clouds, make, options, replayed):
    X, Z = clouds
    steps = 4 * LOOK_EVERY + (20 if options.get("coarse") else 5)
    here, there = make("numpy", **options).fit(X), make(CUDA, **options).fit(cupy.asarray(X))
    moved = here.transport(Z, n_iter=steps)
    found = there.transport(cupy.asarray(Z), n_iter=steps).get()
    assert leaps[-1].replayed == replayed
    assert bool(leaps[-1].refused) == (replayed == 0)
    np.testing.assert_allclose(found, moved, rtol=0, atol=1e-9)
    for name, values in here.history_.items():
        assert there.history_[name].shape == values.shape
        np.testing.assert_allclose(there.history_[name], values, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("make", [kswgd, mmd])
def test_launches_of_a_replayed_step(cupy, clouds, make):
    """A leap of ten steps is the graph, particles and what is remembered in and out, doubt and measures out, and one look."""
    X, Z = (cupy.asarray(a) for a in clouds)
    flow, counts = make(CUDA).fit(X), []
    for leaps_ in (3, 6):
        with cupy.counting() as count:
            flow.transport(Z, n_iter=leaps_ * LOOK_EVERY)
        counts.append(count)
    few, many = counts
    steps = 3 * LOOK_EVERY
    assert many.calls["graph"] - few.calls["graph"] == 3
    assert many.kernels - few.kernels <= 3 * (1 + 2 + 4), str(many)
    assert many.sums == few.sums  # they are in the graph
    assert (many.syncs - few.syncs) / steps <= 0.1, str(many)


def test_a_step_that_waits_is_queued(cupy, leaps):
    def step(state, rng):
        Z = state.particles
        shrunk = 0.9 * Z
        if float(shrunk.sum()) > np.inf:
            raise AssertionError
        return State(shrunk, memory=state.memory), Info({"size": shrunk.sum()})

    Z = cupy.asarray(np.ones((4, 2)))
    outcome = run_flow(Repeated(step), State(Z), 5 * LOOK_EVERY, seed=0, step_size=1.0)
    assert (leaps[-1].queued, leaps[-1].replayed) == (5, 0)
    assert "StreamCaptureUnsupported" in leaps[-1].refused
    np.testing.assert_allclose(outcome.particles.get(), 0.9 ** (5 * LOOK_EVERY))
    np.testing.assert_allclose(outcome.history["size"], 8 * 0.9 ** np.arange(1, 51))


def test_doubt_in_a_replay_is_seen_by_the_host(cupy, leaps):
    def step(state, rng):
        Z = state.particles
        if state.watched:
            return State(Z + 100.0), Info({"size": Z.sum()})
        return State(Z + 1.0), Info({"size": Z.sum()}, doubt=Z[0, 0] > 34.5)

    Z = cupy.asarray(np.zeros((1, 1)))
    outcome = run_flow(Repeated(step), State(Z), 6 * LOOK_EVERY, seed=0, step_size=1.0)
    # Three leaps of ones; the fourth would pass 34.5, so its steps are taken again, watched; so are those after it.
    assert outcome.particles.get()[0, 0] == 30 + 100 * 30
    assert leaps[-1].replayed >= 2


def test_a_recording_computes_from_what_it_is_given(cupy):
    a = cupy.asarray(np.arange(3.0))
    double = Recording(lambda arrays: {"out": 2 * arrays["a"] + 1}, {"a": a})
    first = double({"a": a})["out"]
    second = double({"a": a + 1})["out"]
    np.testing.assert_array_equal(
        first.get(), [1, 3, 5]
    )  # a copy: the replay after it left it alone
    np.testing.assert_array_equal(second.get(), [3, 5, 7])
    assert not double.fits({"a": a[:2]})
    assert not double.fits({"b": a})
