"""Sums over Dask workers equal those of one machine, also when a worker is killed in mid-run."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import gpukoop as gk
from gpukoop import distributed as gd
from gpukoop.backends import BACKENDS
from gpukoop.kernels import partial_sums
from gpukoop.kernels.operation import OPERATIONS
from gpukoop.testing import tolerance

dask_distributed = pytest.importorskip("distributed", reason="Dask is not installed")

N, M, D = 700, 900, 3


@pytest.fixture(scope="module")
def client():
    cluster = dask_distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
    )
    client = dask_distributed.Client(cluster)
    yield client
    client.close()
    cluster.close()


@pytest.fixture
def many_blocks(monkeypatch):
    """Cut small problems as finely as large ones."""
    monkeypatch.setattr(partial_sums, "PAIRS_PER_TASK", 2**16)
    monkeypatch.setattr(partial_sums, "SOURCE_BLOCK", 300)


@pytest.fixture
def points():
    rng = np.random.default_rng(0)
    return rng.normal(size=(N, D)), rng.normal(size=(M, D)), rng.normal(size=(M, 2))


def close(kernel, X, Y, v, op, got, want):
    bounds = tolerance(kernel, X, Y, v, op)
    for a, b, bound in zip(
        *(x if isinstance(x, tuple) else (x,) for x in (got, want, bounds)), strict=True
    ):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert (np.abs(a - b) <= 2 * bound).all()  # both are rounded


def run(K, op, v):
    return K @ v if op == "product" else getattr(K, op)(v)


@pytest.mark.parametrize(
    "op", ["product", "gradient", "value_and_gradient", "logsumexp", "logsumexp_and_gradient"]
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equals_one_machine(client, many_blocks, points, op, dtype):
    X, Y, V = (a.astype(dtype) for a in points)
    v = V[:, 0] if "logsumexp" in op else V
    kernel = gk.Matern32(0.7)
    K = kernel(X, Y, backend="numpy")
    assert all(len(cuts) > 2 for cuts in partial_sums.blocks(N, M))
    want = run(K, op, v)
    with gk.distributed.use_cluster(client):
        got, again = run(K, op, v), run(K, op, v)
    close(kernel, X, Y, v, op, got, want)
    for a, b in zip(*(x if isinstance(x, tuple) else (x,) for x in (got, again)), strict=True):
        assert np.array_equal(a, b), "the order of the additions is fixed"


def test_workers_compute(client, points, monkeypatch):
    """The sums run on the workers: this process has lost its own backends."""
    X, Y, V = points
    K = gk.Gaussian(1.0)(X, Y, backend="numpy")
    want = K @ V
    with gk.distributed.use_cluster(client):
        assert "2 Dask workers" in str(K.explain())
        monkeypatch.setitem(BACKENDS, "numpy", None)
        got = K @ V
    monkeypatch.undo()
    close(K.kernel, X, Y, V, "product", got, want)


def test_bits_do_not_depend_on_the_workers(client, many_blocks, points):
    X, Y, V = points
    K = gk.Gaussian(1.0)(X, Y, backend="numpy")
    with gd.use_cluster(client):
        two = K @ V
    with (
        dask_distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0"
        ) as cluster,
        dask_distributed.Client(cluster) as other,
        gd.use_cluster(other),
    ):
        one = K @ V
    assert np.array_equal(one, two)


def test_absent_sources(client, many_blocks, points):
    """Blocks without a single source give -inf, and no nan in the sum or in its gradient."""
    X, Y, V = points
    b = np.where(np.arange(M) < 500, -np.inf, V[:, 0])
    K = gk.Gaussian(1.0)(X, Y, backend="numpy")
    want, slope = K.logsumexp_and_gradient(b)
    with gd.use_cluster(client):
        got, got_slope = K.logsumexp_and_gradient(b)
        nothing, flat = K.logsumexp_and_gradient(np.full(M, -np.inf))
    close(K.kernel, X, Y, b, "logsumexp_and_gradient", (got, got_slope), (want, slope))
    assert (nothing == -np.inf).all()
    assert (flat == 0).all()


def test_call_and_context(client, points):
    X, Y, _V = points
    K = gk.Gaussian(1.0)(X, Y, backend="numpy")
    try:
        gd.use_cluster(client)
        assert "Dask workers" in str(K.explain())
        gd.use_cluster(None)
        assert "Dask" not in str(K.explain())
    finally:
        gd.use_cluster(None)
    with gd.use_cluster(client):
        with gd.use_cluster(client):
            pass
        assert "Dask workers" in str(K.explain())
    assert "Dask" not in str(K.explain())


def test_points_travel_once(client, many_blocks, points, monkeypatch):
    X, Y, V = points
    sent = []
    scatter = client.scatter
    monkeypatch.setattr(client, "scatter", lambda x, **k: sent.append(x.nbytes) or scatter(x, **k))
    K = gk.Gaussian(1.0)(X, Y, backend="numpy")
    with gd.use_cluster(client):
        _ = K @ V
        first = sum(sent)
        _ = K.gradient(2 * V)
        assert sum(sent) - first == V.nbytes
    assert first == X.nbytes + Y.nbytes + V.nbytes


def test_fourier_on_workers(client, many_blocks, points):
    pytest.importorskip("finufft")
    X, Y, V = (a[:, :2] for a in points)
    K = gk.Gaussian(1.0)(X, Y, backend="fourier", tol=1e-4)
    want = gk.Gaussian(1.0)(X, Y, backend="numpy") @ V
    with gd.use_cluster(client):
        got = K @ V
    assert (np.abs(got - want) <= tolerance(K.kernel, X, Y, V, tol=1e-4)).all()
    assert 0 < K.error_estimate_ <= 1e-4


def test_errors_of_workers_arrive(client, points):
    X, Y, V = points
    with gd.use_cluster(client), pytest.raises(gk.BackendError, match="tol=None asks for exact"):
        _ = gk.Gaussian(1.0)(X, Y, backend="fourier") @ V


def test_refuses_what_is_no_open_client(client):
    with pytest.raises(TypeError, match="expected a dask"):
        gd.use_cluster("tcp://nowhere:1")
    closed = dask_distributed.Client(client.scheduler.address)
    closed.close()
    with pytest.raises(ValueError, match="closed"):
        gd.use_cluster(closed)


def test_without_dask_says_what_to_install():
    code = (
        "import sys; sys.modules['distributed'] = None\n"
        "import gpukoop as gk\n"
        "try: gk.distributed.use_cluster(object())\n"
        "except ImportError as error: print(error)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "pip install gpukoop[dask]" in out.stdout, out.stderr


@pytest.mark.slow
def test_a_killed_worker_costs_time_only(client, monkeypatch):
    """Kill -9 one of two workers while blocks are finished, running and waiting."""
    monkeypatch.setattr(partial_sums, "PAIRS_PER_TASK", 2**17)
    monkeypatch.setattr(partial_sums, "SOURCE_BLOCK", 1500)
    rng = np.random.default_rng(1)
    X, Y, v = rng.normal(size=(6000, 3)), rng.normal(size=(6000, 3)), rng.normal(size=6000)
    K = gk.Gaussian(1.0)(X, Y, backend="numpy")
    want = K @ v
    with gd.use_cluster(client):
        calm = K @ v
    victim = next(iter(client.run(os.getpid).values()))
    state = {}

    def kill_in_mid_run():
        while sum("gpukoop-product" in str(key) for key in client.who_has()) < 3:
            time.sleep(0.005)
        state["unfinished"] = not state.get("finished", False)
        os.kill(victim, signal.SIGKILL)

    thread = threading.Thread(target=kill_in_mid_run)
    thread.start()
    with gd.use_cluster(client):
        got = K @ v
    state["finished"] = True
    thread.join()
    assert state["unfinished"]
    assert np.array_equal(got, calm)
    close(K.kernel, X, Y, v, "product", got, want)
    assert victim not in client.run(os.getpid).values()


@pytest.mark.parametrize("op", ["product", "gradient", "logsumexp"])
def test_partial_results_are_checked(client, points, monkeypatch, op):
    """A worker that returns other shapes or another dtype is caught, not broadcast."""
    X, Y, V = points
    K = gk.Gaussian(1.0)(X, Y, backend="numpy")
    spoiled = {
        "one column": lambda parts: tuple(p[..., :1] for p in parts),
        "a row too many": lambda parts: tuple(np.concatenate([p, p[:1]]) for p in parts),
        "float32": lambda parts: tuple(p.astype("float32") for p in parts),
        "nothing": lambda parts: (),
        "lists": lambda parts: tuple(p.tolist() for p in parts),
        "masked": lambda parts: tuple(np.ma.masked_less(p, 0.0) for p in parts),
        "complex": lambda parts: tuple(p + 0j for p in parts),
        "transposed": lambda parts: tuple(np.moveaxis(p, 0, -1) for p in parts)[::-1] + parts,
        "no tuple": lambda parts: None,
    }
    result_of = gd.cluster.result_of
    for spoil in spoiled.values():

        def spoiled_result(future, client, spoil=spoil):
            parts, *rest = result_of(future, client)
            return spoil(parts), *rest

        monkeypatch.setattr(gd.cluster, "result_of", spoiled_result)
        with gd.use_cluster(client), pytest.raises(RuntimeError, match="a worker returned"):
            run(K, op, V[:, 0] if op == "logsumexp" else V)
    left, right = np.ones((5, 2)), np.ones((5, 1))
    with pytest.raises(RuntimeError, match="two blocks"):
        partial_sums.combine(
            K.request(gk.operator.PRODUCT, 2).operation, ((left,), None, ()), ((right,), None, ())
        )


def test_results_that_come_while_it_looks(client, points, monkeypatch, many_blocks):
    """A look every fifth of a millisecond meets many results as they come."""
    monkeypatch.setattr(gd.connection, "LOOK", 2e-4)
    X, Y, V = points
    K = gk.Gaussian(1.0)(X, Y, backend="numpy")
    with gd.use_cluster(client):
        for _ in range(5):
            assert np.allclose(K @ V, K.to_dense() @ V)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gpukoop": "0.0.1"}, "gpukoop 0.0.1 instead of"),
        ({"gpukoop": None}, "gpukoop missing instead of"),
        ({"numpy": "1.0"}, "numpy 1.0 instead of"),
        ({"python": "3.9.1.final.0"}, "python 3.9 instead of"),
    ],
)
def test_workers_of_other_versions_are_refused(client, monkeypatch, change, words):
    found = client.get_versions(packages=["gpukoop", "numpy", "distributed"])
    address = sorted(found["workers"])[1]
    found["workers"][address]["packages"].update(change)
    monkeypatch.setattr(client, "get_versions", lambda **_: found)
    with pytest.raises(ValueError, match=words) as refused:
        gd.use_cluster(client)
    assert address in str(refused.value)
    assert gk.config.cluster.get() is None


def _long_sum(client, begun):
    """Start a sum of many blocks that no test waits for; return how long its error took to come, and the error."""
    rng = np.random.default_rng(1)
    X = rng.normal(size=(20_000, 3))
    K = gk.Gaussian(1.0)(X, X[::-1].copy(), backend="numpy")
    found = {}

    def work():
        try:
            with gd.use_cluster(client):
                begun.set()
                K @ np.ones(len(X))
        except Exception as error:  # noqa: BLE001
            found["error"], found["at"] = error, time.monotonic()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    begun.wait()
    return thread, found


@pytest.mark.parametrize("end", ["cluster closed", "scheduler killed"])
@pytest.mark.slow
def test_the_end_of_the_scheduler_is_told_in_seconds(monkeypatch, end):
    monkeypatch.setattr(partial_sums, "PAIRS_PER_TASK", 2**20)
    if end == "cluster closed":
        cluster = dask_distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0"
        )
        address, stop = cluster.scheduler_address, lambda: cluster.close(timeout=2)
    else:
        code = (
            "import dask.distributed as d, sys, time\n"
            "c = d.LocalCluster(n_workers=2, threads_per_worker=1, processes=False, protocol='tcp',\n"
            "    dashboard_address=':0')\n"
            "print(c.scheduler_address, flush=True)\n"
            "time.sleep(600)\n"
        )
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        address, stop = process.stdout.readline().strip(), process.kill
    client = dask_distributed.Client(address)
    thread, found = _long_sum(client, threading.Event())
    while not any("gpukoop-product" in str(key) for key in client.who_has()):
        time.sleep(0.01)
    stopped = time.monotonic()
    stop()
    thread.join(timeout=60)
    assert "the Dask scheduler is gone" in str(found["error"])
    # 5 s where the machine is free (run alone: both cases in 13 s with their start-up); Dask itself waits for half a minute.
    assert found["at"] - stopped < 15
    with pytest.raises(ValueError, match="Dask client is"):
        gd.use_cluster(client)
    client.close(timeout=1)
    if end == "scheduler killed":
        process.communicate()


@pytest.mark.slow
def test_a_worker_keeps_its_blocks_on_its_device():
    """Counted on the stand-in: points are copied once, as long as the worker holds them; then weights in, sums out."""
    from device_counter import counted_device, counted_sums

    from gpukoop.distributed import workers

    rng = np.random.default_rng(0)
    X, Y, V = rng.normal(size=(40, 3)), rng.normal(size=(30, 3)), rng.normal(size=(30, 1))
    request = gk.Gaussian(1.0)(X, Y).request(OPERATIONS["product"], 1)
    exact = np.exp(-((X[:, None] - Y) ** 2).sum(-1) / 2)
    with counted_device() as cupy, counted_sums():
        copies, held = [], len(workers.device_blocks)
        for weights in (V, V + 1):
            with cupy.counting() as count:
                (value,), _, _ = workers.block_sum(
                    request, "numba-cuda", "argument", os.getpid(), X, Y, weights
                )
            copies.append((count.copies, count.sums))
            assert isinstance(value, np.ndarray)
            np.testing.assert_allclose(value, exact @ weights, rtol=1e-12)
        assert copies == [(4, 1), (2, 1)]
        assert len(workers.device_blocks) == held + 2
        del X, request
        import gc

        gc.collect()
        assert len(workers.device_blocks) == held + 1
