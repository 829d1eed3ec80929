"""The estimators of the MMD, Wasserstein and JKO flows: contract, history, divergence, checkpoints, backends."""

import os
import pickle
import subprocess
import sys
import warnings
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from scipy.linalg import solve_triangular
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.utils.estimator_checks import check_estimator
from stand_in import StandIn, cupy, wrapped  # noqa: F401 - cupy is a fixture

import gpukoop as gk
from gpukoop import metrics
from gpukoop.testing import expected_failed_checks

FLOWS = {
    "mmd": lambda **k: gk.MMDFlow(step_size=0.1, n_iter=6, **k),
    "gaussian": lambda **k: gk.MMDFlow(gk.Gaussian(1.0), step_size=0.3, n_iter=6, **k),
    "implicit": lambda **k: gk.MMDFlow(scheme="implicit", step_size=1.0, n_iter=6, **k),
    "sliced-mmd": lambda **k: gk.MMDFlow(n_projections=4, n_iter=6, **k),
    "drmmd": lambda **k: gk.MMDFlow(
        gk.Gaussian(1.0), regularization=0.1, step_size=0.01, n_iter=6, **k
    ),
    "kale": lambda **k: gk.MMDFlow(
        gk.Gaussian(1.0), regularization=0.1, divergence="kl", step_size=0.01, n_iter=6, **k
    ),
    "exact": lambda **k: gk.WassersteinFlow("exact", n_iter=6, **k),
    "sinkhorn": lambda **k: gk.WassersteinFlow("sinkhorn", blur=0.5, n_iter=6, **k),
    "sliced": lambda **k: gk.WassersteinFlow("sliced", step_size=1.0, n_iter=6, **k),
    "jko": lambda **k: gk.JKOFlow("mmd", n_steps=6, **k),
    "jko-kl": lambda **k: gk.JKOFlow("kl", n_steps=6, critic="quadratic", **k),
}


@pytest.fixture
def clouds():
    rng = np.random.default_rng(0)
    return rng.normal(size=(40, 2)) + 1.5, rng.normal(size=(40, 2)) * 0.6


@pytest.mark.parametrize(
    "flow", [gk.MMDFlow(n_iter=3), gk.WassersteinFlow(n_iter=2), gk.JKOFlow(n_steps=2)], ids=repr
)
def test_scikit_learn_contract(flow):
    known = expected_failed_checks(flow)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # estimators of tiny data warn as they should
        check_estimator(flow, expected_failed_checks=known)


@pytest.mark.parametrize("name", FLOWS)
def test_history_holds_the_energy_of_every_state(name, clouds):
    Z, X = clouds
    flow = FLOWS[name](random_state=0).fit(X)
    path = [Z]
    end = flow.transport(Z, callback=lambda i, Y: path.append(Y.copy()))
    assert flow.n_iter_ == 6
    assert not flow.converged_
    assert end.shape == Z.shape
    F = flow.history_["energy"]
    assert F.shape == (7,)
    assert np.array_equal(path[-1], end)
    for i in (0, 3, 6):
        if name in ("mmd", "implicit"):
            expected = metrics.energy_distance(path[i], X) / 2
        elif name in ("gaussian", "jko"):
            expected = metrics.mmd(path[i], X, flow.kernel_) ** 2 / 2
        elif name == "exact":
            expected = metrics.wasserstein(path[i], X) ** 2 / 2
        else:
            again = FLOWS[name](random_state=0).fit(X)
            again.transport(path[i], n_iter=1)
            expected = again.history_["energy"][0]
            # Sinkhorn to its tolerance; slicing draws other directions at every step.
            rel = {"sinkhorn": 1e-4, "sliced": 0.2, "sliced-mmd": 0.5}.get(name, 1e-6)
            assert F[i] == pytest.approx(expected, rel=rel)
            continue
        assert F[i] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", FLOWS)
def test_inputs_stay_and_seeds_give_the_same_bits(name, clouds):
    Z, X = clouds
    copies = Z.copy(), X.copy()
    flow = FLOWS[name](random_state=3).fit(X)
    a = flow.transport(Z)
    assert np.array_equal(a, flow.transport(Z))
    assert np.array_equal(a, clone(flow).fit(X).transport(Z))
    assert np.array_equal(a, pickle.loads(pickle.dumps(flow)).transport(Z))
    assert np.array_equal(Z, copies[0])
    assert np.array_equal(X, copies[1])
    assert np.array_equal(flow.sample(5, random_state=1), flow.sample(5, random_state=1))


@pytest.mark.parametrize("name", FLOWS)
def test_float32_in_float32_out(name, clouds):
    Z, X = (A.astype(np.float32) for A in clouds)
    end = FLOWS[name](random_state=0).fit(X).transport(Z)
    assert end.dtype == np.float32
    wide = FLOWS[name](random_state=0).fit(X.astype(float)).transport(Z.astype(float))
    assert np.abs(end - wide).max() < 2e-2 * np.abs(Z - wide).max()


DIVERGING = {
    "mmd": {"step_size": 100.0},
    "gaussian": {"step_size": 100 * 2 / 3},
    "sliced-mmd": {"step_size": 100.0},
    "drmmd": {"step_size": 10.0},
    "kale": {"step_size": 10.0},
    "exact": {"step_size": 100.0},
    "sinkhorn": {"step_size": 100.0},
    "sliced": {"step_size": 200.0},
}


@pytest.mark.parametrize("name", DIVERGING)
def test_a_step_a_hundred_times_too_large_is_named_and_particles_are_kept(name, clouds):
    Z, X = clouds
    flow = FLOWS[name](random_state=0).set_params(**DIVERGING[name]).fit(X)
    with pytest.warns(ConvergenceWarning, match=r"step \d+ of 50 diverged.*step_size"):
        end = flow.transport(Z, n_iter=50)
    assert np.isfinite(end).all()
    assert not flow.converged_
    assert flow.n_iter_ < 50
    assert len(flow.history_["energy"]) == flow.n_iter_ + 1


@pytest.mark.parametrize("size", [1e30, 1e300])
def test_absurd_step_sizes_overflow_in_words_only(size, clouds):
    Z, X = clouds
    for flow in (gk.MMDFlow(step_size=size), gk.WassersteinFlow("exact", step_size=size)):
        with pytest.warns(ConvergenceWarning, match="diverged"):
            assert np.array_equal(flow.fit(X).transport(Z), Z)


def test_a_far_start_is_no_divergence(clouds):
    Z, X = clouds
    flow = gk.WassersteinFlow("exact", step_size=1.0, n_iter=2).fit(X)
    assert metrics.wasserstein(flow.transport(Z + 1e4), X) < 1e-10


@pytest.mark.parametrize("name", ["gaussian", "implicit", "sliced", "exact", "sinkhorn", "kale"])
def test_a_run_that_was_cut_continues_to_the_same_bits(name, clouds, tmp_path):
    Z, X = clouds
    flow = FLOWS[name](random_state=0).fit(X)
    whole = flow.transport(Z)
    history = flow.history_["energy"]
    path = tmp_path / "run"

    def interrupt(i, Y):
        if i == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        flow.transport(Z, callback=interrupt, checkpoint=path, checkpoint_every=1)
    pickle.dumps(flow)
    end = FLOWS[name](random_state=0).fit(X).transport(Z, checkpoint=path)
    assert np.array_equal(end, whole)
    flow.transport(Z, checkpoint=path)
    assert np.abs(flow.history_["energy"] - history).max() < 1e-6 * history[0]


def test_no_step_leaves_the_particles_and_tells_their_energy(clouds):
    Z, X = clouds
    flow = FLOWS["mmd"]().fit(X)
    assert np.array_equal(flow.transport(Z, n_iter=0), Z)
    assert flow.history_["energy"] == pytest.approx([metrics.energy_distance(Z, X) / 2], abs=1e-12)


def test_callbacks_stop(clouds):
    Z, X = clouds
    flow = FLOWS["mmd"]().fit(X)
    flow.transport(Z, callback=lambda i, Y: i == 1)
    assert flow.n_iter_ == 2
    assert len(flow.history_["energy"]) == 3


@pytest.mark.parametrize("name", FLOWS)
def test_bad_input_is_named(name, clouds):
    Z, X = clouds
    flow = FLOWS[name]()
    with pytest.raises(NotFittedError):
        flow.transport(Z)
    with pytest.raises(NotFittedError):
        flow.sample(3)
    broken = X.copy()
    broken[3, 1] = np.nan
    for bad in (broken, X[:0], X[0]):
        with pytest.raises(ValueError, match="X"):
            flow.fit(bad)
    flow.fit(X)
    with pytest.raises(ValueError, match="2 features"):
        flow.transport(np.ones((3, 5)))
    with pytest.raises(ValueError, match="NaN"):
        flow.transport(broken)
    with pytest.raises(ValueError, match="n_samples"):
        flow.sample(0)
    with pytest.raises(ValueError, match="n_iter"):
        flow.transport(Z, n_iter=-1)
    with pytest.raises(ValueError, match="y has shape"):
        flow.fit(X, X)


@pytest.mark.parametrize("name", ["mmd", "gaussian", "implicit", "drmmd", "sinkhorn", "jko"])
def test_backends_agree(name, clouds, require):
    require("numba-cpu")
    Z, X = clouds
    ends = {}
    for backend in ("numpy", "numba-cpu"):
        flow = FLOWS[name](random_state=0, backend=backend).fit(X)
        ends[backend] = flow.transport(Z)
        assert flow.backend_ == backend
    assert np.abs(ends["numpy"] - ends["numba-cpu"]).max() < 1e-9


def test_one_particle_and_one_sample():
    Z, X = np.zeros((1, 2)), np.ones((1, 2))
    for name in ("mmd", "implicit", "sliced-mmd", "exact", "sinkhorn", "sliced"):
        end = FLOWS[name](random_state=0).fit(X).transport(Z)
        assert np.linalg.norm(end - X) < np.linalg.norm(Z - X)
        assert np.isfinite(FLOWS[name](random_state=0).fit(X).transport(X)).all()


def test_torch_tensors_come_back(clouds):
    torch = pytest.importorskip("torch")
    Z, X = (torch.from_numpy(A) for A in clouds)
    end = FLOWS["exact"]().fit(X).transport(Z)
    assert isinstance(end, torch.Tensor)


@pytest.fixture
def on_device(cupy, monkeypatch):  # noqa: F811 - the fixture of stand_in
    """Let the stand-in for CuPy have its linear algebra too."""
    names = ("eigh", "solve", "cholesky", "norm")
    cupy.fuse = lambda **_: lambda formula: formula
    cupy.linalg = SimpleNamespace(**{n: wrapped(getattr(np.linalg, n)) for n in names})
    module = ModuleType("cupyx.scipy.linalg")
    module.solve_triangular = wrapped(solve_triangular)
    for name in ("cupyx", "cupyx.scipy"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "cupyx.scipy.linalg", module)


# Steps that queue on a device ask more of a stand-in: tests/device/test_device_steps.py compares them with the host.
QUEUED = {"sinkhorn", "sliced", "jko-kl"}


@pytest.mark.parametrize("name", [name for name in FLOWS if name not in QUEUED])
def test_arrays_stay_in_their_library(name, clouds, on_device):
    Z, X = clouds
    expected = FLOWS[name](random_state=0, backend="numpy").fit(X).transport(Z)
    flow = FLOWS[name](random_state=0, backend="numpy").fit(StandIn(X))
    end = flow.transport(StandIn(Z))
    assert type(end) is StandIn
    assert np.abs(end.get() - expected).max() < 1e-8
    assert type(flow.history_["energy"]) is np.ndarray
    assert type(flow.sample(3)) is StandIn


@pytest.mark.parametrize("make", [gk.maps.RandomFeatureMap, gk.maps.KernelMap])
def test_generators_stay_in_their_library(make, clouds, on_device):
    flow = gk.WassersteinFlow(
        "exact", n_iter=2, persistence=float("inf"), random_state=0, generator=make(20, random_state=0)
        if make is gk.maps.RandomFeatureMap
        else make(n_landmarks=20, backend="numpy", random_state=0),
    ).fit(StandIn(clouds[1]))  # fmt: skip
    assert type(flow.sample(3)) is StandIn


SIMULATED = """
import numpy as np, gpukoop as gk
rng = np.random.default_rng(0)
Z, X = rng.normal(size=(5, 2)) + 1, rng.normal(size=(4, 2))
Z[0] = X[0]
for make in (
    lambda b: gk.MMDFlow(gk.Gaussian(1.0), step_size=0.3, n_iter=1, backend=b),
    lambda b: gk.MMDFlow(step_size=0.1, n_iter=1, backend=b),
    lambda b: gk.MMDFlow(scheme="implicit", step_size=1.0, n_iter=1, backend=b),
    lambda b: gk.WassersteinFlow(blur=3.0, n_iter=1, sinkhorn_iter=2, backend=b),
):
    a, b = (make(name).fit(X).transport(Z) for name in ("numpy", "numba-cuda"))
    assert np.abs(a - b).max() < 1e-6, (make("numpy"), np.abs(a - b).max())
print("same")
"""


@pytest.mark.slow
def test_flows_in_the_cuda_simulator(tmp_path):
    environment = os.environ | {
        "NUMBA_ENABLE_CUDASIM": "1",
        "GPUKOOP_CACHE_DIR": str(tmp_path),
    }
    run = subprocess.run(
        [sys.executable, "-c", SIMULATED],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if "no CUDA device" in run.stderr:
        pytest.skip("numba-cuda does not offer its simulator as a backend here")
    assert run.stdout.strip() == "same", run.stdout + run.stderr


def test_importing_compiles_nothing():
    code = "import sys, gpukoop; assert 'numba' not in sys.modules and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
