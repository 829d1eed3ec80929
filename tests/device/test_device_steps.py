"""Steps on a device without the host: counted on the stand-in, and equal to the same steps on the host."""

import numpy as np
import pytest
from device_counter import counted_device, counted_sums

import gpukoop as gk
from gpukoop.flow.loop import LOOK_EVERY

CUDA = "numba-cuda"
# A warm product makes at most three launches beside its own two.
SUM = 4


@pytest.fixture
def cupy():
    with counted_device() as module, counted_sums():
        yield module


def per_step(cupy, flow, Z, few=LOOK_EVERY, many=3 * LOOK_EVERY):
    """Return launches, synchronisations, copies and sums a step; whole stretches between two looks by default."""
    counts = []
    for n_iter in (few, many):
        with cupy.counting() as count:
            flow.transport(Z, n_iter=n_iter)
        assert flow.n_iter_ == n_iter
        counts.append(count)
    found = [
        (getattr(counts[1], k) - getattr(counts[0], k)) / (many - few)
        for k in ("kernels", "syncs", "copies", "sums")
    ]
    return (*found, str(counts[1]))


def kswgd(**options):
    settings = {"n_components": 12, "n_landmarks": 60, "coarse": False, "random_state": 0}
    settings["validation_fraction"] = 0
    return gk.KSWGD(**{**settings, **options})


@pytest.fixture(scope="module")
def clouds():
    rng = np.random.default_rng(0)
    return rng.normal(size=(200, 2)), 0.7 * rng.normal(size=(150, 2)) + 0.2


@pytest.mark.parametrize(("options", "own"), [({}, 11), ({"langevin": 0.01}, 12)])
def test_a_step_of_kswgd_is_a_few_launches_and_no_wait(cupy, clouds, options, own):
    X, Z = (cupy.asarray(a) for a in clouds)
    flow = kswgd(backend=CUDA, **options).fit(X)
    kernels, syncs, copies, sums, words = per_step(cupy, flow, Z)
    assert sums == 3, words
    assert kernels <= own + 0.6, words  # the look at the end of ten steps
    assert kernels + SUM * sums <= 25, words
    assert syncs <= 0.1, words
    assert copies == 0, words


@pytest.mark.parametrize("options", [{}, {"langevin": 0.01}, {"coarse": True}])
def test_kswgd_on_the_stand_in_is_kswgd_on_the_host(cupy, clouds, options):
    X, Z = clouds
    here = kswgd(backend="numpy", **options).fit(X)
    there = kswgd(backend=CUDA, **options).fit(cupy.asarray(X))
    moved = here.transport(Z, n_iter=24)
    found = there.transport(cupy.asarray(Z), n_iter=24).get()
    assert there.n_iter_ == here.n_iter_ == 24
    np.testing.assert_allclose(found, moved, rtol=0, atol=1e-9)
    for name, values in here.history_.items():
        assert there.history_[name].shape == values.shape
        np.testing.assert_allclose(there.history_[name], values, rtol=1e-6, atol=1e-9)


def test_kswgd_stops_at_the_same_step(cupy, clouds):
    """The host looks every ten steps, yet a flow that has converged ends at the particles that had."""
    X, _ = clouds
    Z = X[:150] + 0.5  # above sampling noise, so that there is something to follow
    here = kswgd(backend="numpy", n_components=3).fit(X)
    there = kswgd(backend=CUDA, n_components=3).fit(cupy.asarray(X))
    moved, found = here.transport(Z), there.transport(cupy.asarray(Z)).get()
    assert here.converged_
    assert there.converged_
    assert there.n_iter_ == here.n_iter_ > LOOK_EVERY
    np.testing.assert_allclose(found, moved, rtol=0, atol=1e-9)


@pytest.mark.filterwarnings("ignore:1 particle")
def test_far_particles_are_seen_by_the_host(cupy, clouds):
    X, Z = clouds
    Z = np.concatenate([Z[:30], [[60.0, 0.0]]])
    here = kswgd(backend="numpy").fit(X)
    there = kswgd(backend=CUDA).fit(cupy.asarray(X))
    moved, found = here.transport(Z, n_iter=12), there.transport(cupy.asarray(Z), n_iter=12).get()
    assert here.history_["far"].max() == 1
    np.testing.assert_array_equal(there.history_["far"], here.history_["far"])
    np.testing.assert_allclose(found, moved, rtol=0, atol=1e-9)


FLOWS = {
    "mmd": lambda backend: gk.MMDFlow(gk.Gaussian(1.0), random_state=0, backend=backend),
    "mmd with momentum": lambda backend: gk.MMDFlow(
        gk.Gaussian(1.0), momentum=0.5, random_state=0, backend=backend
    ),
    "mmd with noise": lambda backend: gk.MMDFlow(
        gk.Gaussian(1.0), noise=0.1, random_state=0, backend=backend
    ),
    "energy, sliced": lambda backend: gk.MMDFlow(n_projections=20, random_state=0),
    "sliced": lambda backend: gk.WassersteinFlow("sliced", n_projections=20, random_state=0),
    "sinkhorn": lambda backend: gk.WassersteinFlow("sinkhorn", random_state=0, backend=backend),
    "kl": lambda backend: gk.JKOFlow("kl", n_features=30, random_state=0, backend=backend),
    "chi2": lambda backend: gk.JKOFlow("chi2", n_features=30, random_state=0, backend=backend),
    "js": lambda backend: gk.JKOFlow("js", n_features=30, random_state=0, backend=backend),
}


@pytest.mark.parametrize("name", FLOWS)
def test_flows_on_the_stand_in_are_flows_on_the_host(cupy, clouds, name):
    X, Z = clouds
    here, there = FLOWS[name]("numpy").fit(X), FLOWS[name](CUDA).fit(cupy.asarray(X))
    solved = name in ("sinkhorn", "kl", "chi2", "js")
    steps = 3 if solved else 12
    moved = here.transport(Z, n_iter=steps)
    found = there.transport(cupy.asarray(Z), n_iter=steps).get()
    # Solvers stop at a tolerance of 1e-6, of the mass or of the width, 2: a step errs by that at either end.
    bound = steps * 2 * 2e-6 if solved else 1e-9
    np.testing.assert_allclose(found, moved, rtol=0, atol=bound)
    for kind in ("energy", "displacement", "dissipation"):
        values = here.history_[kind]
        assert there.history_[kind].shape == values.shape
        np.testing.assert_allclose(there.history_[kind], values, rtol=10 * bound, atol=bound)


@pytest.mark.parametrize(
    ("name", "kernels", "syncs"),
    [
        ("mmd", 8, 0.1),
        ("energy, sliced", 60, 0.1),
        ("sliced", 100, 0.1),
        ("sinkhorn", 201, 21),
        ("kl", 1_700, 80),
        ("chi2", 1_500, 80),
        ("js", 1_500, 80),
    ],
)
def test_launches_and_waits_of_a_step(cupy, name, kernels, syncs):
    """At most a tenth of 4,016 (Sinkhorn), 2,780 (sliced), 170,000 (JKO) launches a step, sums included."""
    rng = np.random.default_rng(0)
    X, Z = (rng.normal(size=(n, 3)) + shift for n, shift in ((800, 0.0), (600, 0.5)))
    flow = FLOWS[name](CUDA).fit(cupy.asarray(X.astype("float32")))
    steps = (LOOK_EVERY, 2 * LOOK_EVERY) if syncs < 1 else (2, 4)
    own, waits, _, sums, words = per_step(cupy, flow, cupy.asarray(Z.astype("float32")), *steps)
    assert own <= kernels, words
    assert waits <= syncs, words
    most = {"sinkhorn": 401, "energy, sliced": 278, "sliced": 278}.get(name, 17_000)
    assert own + SUM * sums <= most, words
