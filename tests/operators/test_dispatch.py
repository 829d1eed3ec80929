"""Who computes: argument > context > environment > cost, refusals in words, and how to add a backend."""

import contextvars
import subprocess
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import gpukoop as gk
from gpukoop.backends import BACKENDS, COPY_RATE, RATES, AbstractBackend, Rate
from gpukoop.kernels.operation import GRADIENT, LOGSUMEXP, OPERATIONS, PRODUCT
from gpukoop.kernels.request import Request
from gpukoop.testing import check_backend, expected_failed_checks

X = np.random.default_rng(0).normal(size=(30, 2))


class ToyBackend(AbstractBackend):
    """The smallest backend that conforms: Gaussian products, one row at a time. Copy it to write one.

    ``missing`` answers for the machine, ``refuses`` for the request, both in words or None; ``module`` holds ``reduce``
    on native arrays: points (n, d) and (m, d), weights (m, t), results (n, t) in the dtype of the points.
    """

    name = "toy"

    def missing(self):
        return None

    def refuses(self, request):
        if request.operation != PRODUCT:
            return "toy computes products only"
        if not isinstance(request.kernel, gk.Gaussian):
            return "toy knows the Gaussian kernel only"
        return None

    def seconds(self, request):
        return 1e-6 + 1e-7 * request.n * request.m

    def module(self):
        return SimpleNamespace(reduce=self.reduce)

    @staticmethod
    def reduce(kernel, operation, X, Y, V, *, tol=None):
        out = np.empty((len(X), V.shape[1]), X.dtype)
        for i, x in enumerate(X.astype(float)):
            s = ((x - Y) ** 2).sum(axis=1) / kernel.scale**2
            out[i] = np.exp(-s / 2) @ V
        return out


class AbsentBackend(ToyBackend):
    name = "absent"

    def missing(self):
        return "it was never built"


@pytest.fixture
def toy(monkeypatch):
    """Register two more backends for one test."""
    monkeypatch.setitem(BACKENDS, "toy", ToyBackend())
    monkeypatch.setitem(BACKENDS, "absent", AbsentBackend())


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv("GPUKOOP_BACKEND", raising=False)


GAUSSIAN = gk.Gaussian()
BASE = {
    "operation": PRODUCT,
    "kernel": GAUSSIAN,
    "n": 9,
    "m": 9,
    "d": 3,
    "t": 1,
    "dtype": "float32",
    "library": "numpy",
    "device": "cpu",
    "tol": None,
}


def ran(kernel=GAUSSIAN, backend=None, op="product"):
    explanation = kernel(X, backend=backend).explain(op)
    return explanation.backend, explanation.source


def test_argument_context_environment_cost(monkeypatch, toy):
    assert ran()[1] == "cost"
    monkeypatch.setenv("GPUKOOP_BACKEND", "numpy")
    assert ran() == ("numpy", "GPUKOOP_BACKEND")
    with gk.use_backend("toy"):
        assert ran() == ("toy", "use_backend")
        assert ran(backend="numba-cpu") == ("numba-cpu", "the backend= argument")
        with gk.use_backend("numpy"):
            assert ran() == ("numpy", "use_backend")
        with gk.use_backend("auto"):
            assert ran()[1] != "GPUKOOP_BACKEND"
        assert ran() == ("toy", "use_backend")
    assert ran() == ("numpy", "GPUKOOP_BACKEND")
    monkeypatch.setenv("GPUKOOP_BACKEND", "  ")
    assert ran()[1] == "cost"


def test_the_choice_is_made_when_it_computes_not_when_it_is_made(toy):
    K = gk.Gaussian()(X)
    with gk.use_backend("toy"):
        assert K.explain().backend == "toy"
    assert K.explain().source == "cost"


def test_the_cheapest_by_cost(toy, monkeypatch):
    explanation = gk.Gaussian()(X).explain()
    usable = [row for row in explanation.rows if row[1] is not None]
    assert [row[1] for row in usable] == sorted(row[1] for row in usable)
    assert explanation.backend == usable[0][0]
    monkeypatch.setitem(RATES, "numpy", Rate(0.0, 0.0, 0.0, 0.0))
    assert ran() == ("numpy", "cost")


def test_cost_grows_with_everything():
    base = BASE | {"n": 1000, "m": 1000}
    for name, backend in BACKENDS.items():
        cost = backend.seconds(Request(**base))
        for change in (
            {"n": 10**5},
            {"d": 300},
            {"t": 100},
            {"operation": GRADIENT},
            {"operation": LOGSUMEXP},
            {"dtype": "float64"},
        ):
            assert backend.seconds(Request(**(base | change))) >= cost, (name, change)


def test_an_explicit_choice_never_falls_back(monkeypatch, toy):
    K = gk.Gaussian()(X, backend="toy")
    assert (K @ np.ones(30)).shape == (30,)
    with pytest.raises(gk.BackendError, match="toy computes products only"):
        K.gradient(np.ones(30))
    with pytest.raises(gk.BackendError), gk.use_backend("toy"):
        gk.Laplace()(X) @ np.ones(30)
    monkeypatch.setenv("GPUKOOP_BACKEND", "absent")
    with pytest.raises(gk.BackendError, match="it was never built"):
        gk.Gaussian()(X) @ np.ones(30)
    assert gk.Gaussian()(X, backend="auto").explain().backend != "absent"


def test_auto_passes_over_refusals(toy, monkeypatch):
    monkeypatch.setattr(ToyBackend, "seconds", lambda self, request: 1e-30)
    assert ran() == ("toy", "cost")
    assert ran(gk.Laplace())[0] != "toy"
    assert ran(op="gradient")[0] != "toy"


def test_refusals_in_words(toy):
    with pytest.raises(gk.BackendError) as caught:
        gk.Laplace()(X, backend="toy").explain()
    head, *rows = str(caught.value).splitlines()
    assert head == (
        "backend 'toy' (from the backend= argument) cannot run product for 30 x 30 points in 2 dimensions "
        "(float64, numpy on cpu):"
    )
    rows = dict(row.split(maxsplit=1) for row in rows)
    assert set(rows) == set(BACKENDS)
    assert rows["toy"] == "toy knows the Gaussian kernel only"
    assert rows["absent"] == "it was never built"
    assert rows["numpy"].startswith("usable, about ")
    text = str(gk.Gaussian()(X).explain())
    assert "chosen by cost" in text
    assert "it was never built" in text


def test_no_backend_at_all(monkeypatch):
    for backend in BACKENDS.values():
        monkeypatch.setattr(type(backend), "missing", lambda self: "it is on holiday")
    with pytest.raises(gk.BackendError, match=r"no backend can run .*\n  numpy +it is on holiday"):
        gk.Gaussian()(X) @ np.ones(30)


@pytest.mark.parametrize("name", ["cuda", "", "NumPy", 3, ["numpy"]])
def test_unknown_names_raise_and_list_the_known(name, monkeypatch):
    with pytest.raises(ValueError, match=r"unknown backend .*; known are numpy, numba-cpu"):
        gk.Gaussian()(X, backend=name)
    with pytest.raises(ValueError, match=r"use_backend: unknown backend"), gk.use_backend(name):
        pass
    if isinstance(name, str) and name:
        monkeypatch.setenv("GPUKOOP_BACKEND", name)
        with pytest.raises(ValueError, match=r"GPUKOOP_BACKEND: unknown backend"):
            gk.Gaussian()(X) @ np.ones(30)


def test_use_backend_is_reset_after_an_error():
    with pytest.raises(RuntimeError, match="inside"), gk.use_backend("numpy"):
        raise RuntimeError("inside")
    assert ran()[1] == "cost"


def test_threads_do_not_leak():
    seen, inside, leave = {}, threading.Event(), threading.Event()

    def worker():
        seen["before"] = ran()
        with gk.use_backend("numpy"):
            inside.set()
            leave.wait(timeout=60)
            seen["inside"] = ran()

    with gk.use_backend("numba-cpu"):
        thread = threading.Thread(target=worker)
        thread.start()
        assert inside.wait(timeout=60)
        assert ran() == ("numba-cpu", "use_backend")
        leave.set()
        thread.join()
    assert seen["before"][1] == "cost"
    assert seen["inside"] == ("numpy", "use_backend")


def test_a_copied_context_keeps_its_choice():
    with gk.use_backend("numpy"):
        context = contextvars.copy_context()
    assert ran()[1] == "cost"
    assert context.run(ran) == ("numpy", "use_backend")


def test_backends_lists_reasons(toy):
    listed = gk.backends()
    assert listed["numpy"] is None
    assert listed["absent"] == "it was never built"
    assert all(reason is None or len(reason.split()) > 2 for reason in listed.values())


def test_unknown_operation():
    with pytest.raises(ValueError, match="unknown operation 'matvec'; known are product, gradient"):
        gk.Gaussian()(X).explain("matvec")


def test_device_points_are_refused_by_host_backends():
    request = Request(**(BASE | {"library": "cupy", "device": "cuda:0"}))
    assert "move" in BACKENDS["numba-cpu"].refuses(request)
    assert "NumPy arrays" in BACKENDS["keops"].refuses(request)


def test_keops_refuses_what_would_not_compile():
    request = Request(**(BASE | {"operation": GRADIENT, "d": 784}))
    assert "do not compile" in BACKENDS["keops"].refuses(request)


def test_the_toy_backend_conforms():
    report = check_backend(ToyBackend(), dtypes=["float64"], shapes=[(1, 1, 1, 1), (9, 7, 3, 2)])
    assert report.checked > 0
    assert set(report.refused) == {
        "toy computes products only",
        "toy knows the Gaussian kernel only",
    }
    assert 0 < report.worst <= 1


def broken(**changes):
    """Return a toy with some answers replaced."""
    return type("Broken", (ToyBackend,), {k: lambda self, *a, v=v: v for k, v in changes.items()})()


class Wrong(ToyBackend):
    """A toy whose product is spoiled by ``spoil``."""

    def __init__(self, spoil):
        self.spoil = spoil

    def module(self):
        def reduce(kernel, operation, X, Y, V, *, tol=None):
            return self.spoil(ToyBackend.reduce(kernel, operation, X, Y, V), X)

        return SimpleNamespace(reduce=reduce)


def overwrite(result, X):
    X[0] = 0
    return result


DRAWS = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("backend", "words"),
    [
        (AbsentBackend(), "cannot be checked on this machine: it was never built"),
        (broken(refuses=True), "expected None or a reason in words"),
        (broken(refuses="no"), "refused every request"),
        (broken(seconds=float("nan")), "expected finite, > 0 and ascending"),
        (Wrong(lambda r, X: 1.0001 * r), "times the tolerance"),
        (Wrong(lambda r, X: r[:, 0]), "gave shape"),
        (Wrong(lambda r, X: r.astype("float32")), "and dtype float32"),
        (Wrong(lambda r, X: np.full_like(r, np.nan)), "times the tolerance"),
        (Wrong(lambda r, X: (r, r)), "gave 2 results, expected 1"),
        (
            Wrong(lambda r, X: r * (1 + 1e-16 * DRAWS.integers(0, 9, r.shape))),
            "other bits the second time",
        ),
        (Wrong(overwrite), "changed its inputs"),
    ],
)
def test_check_backend_finds(backend, words):
    with pytest.raises(AssertionError, match=words):
        check_backend(backend, dtypes=["float64"], shapes=[(9, 7, 3, 2)])


def test_check_backend_refuses_unknown_names():
    with pytest.raises(ValueError, match="check_backend: unknown backend 'cudaa'"):
        check_backend("cudaa")


def test_expected_failed_checks():
    assert expected_failed_checks(object()) == {}


WITHOUT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("numba_cuda", "cupy", "pykeops", "finufft", "cufinufft", "matplotlib"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import numpy as np, gpukoop as gk

assert {name for name, reason in gk.backends().items() if reason is None} == {"numpy", "numba-cpu"}
X = np.random.default_rng(0).normal(size=(60, 2))
K = gk.Gaussian(1.0)(X, tol=1e-3)
assert K.explain().backend in ("numpy", "numba-cpu")
assert abs(K @ np.ones(60) - K.to_dense().sum(axis=1)).max() < 0.1
assert gk.KSWGD(n_components=3, total_time=0.2).fit(X).sample(4).shape == (4, 2)
"""


def test_everything_runs_without_the_optional_packages():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


# -- which of its ways a backend takes ---------------------------------------------------------------


def test_the_explanation_says_what_is_left_out():
    pytest.importorskip("numba")
    X = np.random.default_rng(0).random((20_000, 2))
    few = gk.Gaussian(0.05)(X[:100], backend="numba-cpu", tol=1e-3).explain()
    assert few.way == "every pair"
    many = gk.Gaussian(0.05)(X, backend="numba-cpu", tol=1e-3)
    assert "cells of sources" in str(many.explain())
    assert many.explain("gradient").way == "every pair"
    assert gk.Gaussian(0.05)(X, backend="numba-cpu").explain().way == "every pair"
    assert gk.Gaussian(0.05)(X, backend="numpy").explain().way == ""


def test_the_explanation_names_the_ways_of_a_device(monkeypatch):
    from gpukoop.kernels.cuda import reduce as reduce_cuda

    monkeypatch.setattr(type(BACKENDS["numba-cuda"]), "missing", lambda self: None)
    X = np.zeros((50_000, 3), "float32")
    once = gk.Gaussian()(X, backend="numba-cuda")
    assert once.explain().way == "each pair once"
    assert "; each pair once" in str(once.explain())
    assert once.explain("gradient").way == "every pair"
    assert gk.Gaussian()(X, X.copy(), backend="numba-cuda").explain().way == "every pair"
    monkeypatch.setattr(reduce_cuda.lists, "MIN_PAIRS", 2**30)
    assert "lists of tiles" in gk.Gaussian()(X, backend="numba-cuda", tol=1e-3).explain().way
    # arrays of a device: what a flow repeats is recorded there, but not lists, which wait
    request = replace(once.request(OPERATIONS["product"], 1), library="cupy", device="cuda:0")
    graph = "; replayed from a CUDA graph where steps of a flow repeat"
    assert reduce_cuda.way(request) == "each pair once" + graph
    assert graph not in reduce_cuda.way(replace(request, tol=1e-3))
    wide = gk.Gaussian()(np.zeros((100, 64), "float32"), backend="numba-cuda")
    words = "products of matrices {}, precision {}, where points are apart"
    assert wide.explain().way == words.format("in registers", "fp32")
    assert wide.explain("gradient").way == words.format("by tiles in memory", "fp32")


def test_one_cloud_on_a_device_costs_what_visiting_each_pair_once_costs():
    """A device is compared with other backends by what it will do, and host arrays pay for their way there and back."""
    from gpukoop.kernels.cuda.pairs.rates import RATES as DEVICE

    device = BACKENDS["numba-cuda"]
    points = np.zeros((200_000, 3), np.float32), np.zeros((200_000, 3), np.float32)
    costs, words = {}, {}
    for name, (X, Y) in {"one": (points[0], points[0]), "two": points}.items():
        # Of a backend that is not chosen, so that nothing runs: the request of an operator on these points.
        request = gk.Gaussian(1.0)(X, Y, backend="numpy").explain("product").request
        request = replace(request, device="cuda:0")
        costs[name] = device.seconds(request) - RATES["numba-cuda"].start
        words[name] = device.way(request)
        there = device.seconds(replace(request, device="cpu")) - device.seconds(request)
        moved = 4 * (2 * X.size + len(Y) + len(X))
        assert there == pytest.approx(moved / COPY_RATE)
    assert words == {"one": "each pair once", "two": "every pair"}
    assert costs["one"] / costs["two"] == pytest.approx(DEVICE.apart / DEVICE.once)
