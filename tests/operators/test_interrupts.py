"""Ctrl-C, the end of the interpreter, forks and concurrent eigenproblems, each in a process of its own (issue 12)."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

import gpukoop as gk
from gpukoop.kernels.cpu import reduce, threads

POSIX = pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX")
LINUX = pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc")
N_THREADS = 4


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


# --- Ctrl-C


def cpu_seconds(pid):
    """Return what all threads of a process have used so far."""
    with open(f"/proc/{pid}/stat") as file:
        user, system = file.read().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


LONG = {
    "product": "K @ np.ones((300_000, 3))",
    "gradient": "K.gradient(np.ones(300_000))",
    "few targets, many sources": (
        "gk.Gaussian(1.0)(X[:20_000], np.tile(X, (10, 1)), backend='numba-cpu').gradient(np.ones((3_000_000, 2)))"
    ),
    "sorted lines": (
        "gk.metrics.sliced_wasserstein(X[:200_000], X[:200_000] + 1, n_projections=20_000, random_state=0)"
    ),
}


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize("sums", LONG)
def test_ctrl_c_ends_a_long_sum_within_a_second_of_every_core(sums):
    """In processor time, which a busy machine does not stretch; helpers that go on would use it up to the end of the sum."""
    code = f"""
        import time, numpy as np, gpukoop as gk
        X = np.random.default_rng(0).normal(size=(300_000, 3)).astype("float32")
        K = gk.Gaussian(1.0)(X, backend="numba-cpu")
        small = gk.Gaussian(1.0)(X[:1000], backend="numba-cpu")
        small @ np.ones(1000), small @ np.ones((1000, 3)), small.gradient(np.ones(1000)), small.gradient(np.ones((1000, 2)))
        gk.metrics.sliced_wasserstein(X[:9000], X[:9000] + 1, n_projections=20, random_state=0)
        print("ready", flush=True)
        {LONG[sums]}
        print("nobody stopped it", flush=True)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=os.environ | {"NUMBA_NUM_THREADS": str(N_THREADS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell starts what runs in its background with Ctrl-C ignored, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout.readline() == "ready\n"
    begun = cpu_seconds(process.pid)
    while cpu_seconds(process.pid) < begun + 1.5:  # the threads are at it
        time.sleep(0.02)
    sent = cpu_seconds(process.pid)
    process.send_signal(signal.SIGINT)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert "KeyboardInterrupt" in process.stderr.read()
    assert process.stdout.read() == ""
    process.stdout.close(), process.stderr.close()
    cores = min(N_THREADS, len(os.sched_getaffinity(0)))
    assert usage.ru_utime + usage.ru_stime - sent < 1.0 * cores


def test_after_ctrl_c_helpers_finish_their_slice_and_take_no_other(monkeypatch):
    monkeypatch.setenv("NUMBA_NUM_THREADS", str(N_THREADS))
    monkeypatch.setattr(threads, "ending", lambda: False)
    monkeypatch.setattr(threads, "_pool", None)
    begun, after, main = [], [], threading.current_thread()
    interrupted = threading.Event()
    share = threads.share

    def counted(piece, n, rows, work):
        def one(start, stop):
            (after if interrupted.is_set() else begun).append(start)
            if threading.current_thread() is main and len(begun) > 5:
                interrupted.set()
                signal.raise_signal(signal.SIGINT)
            if interrupted.is_set():
                time.sleep(0.05)  # slices of a real length: the main thread gets its turn
            piece(start, stop)

        share(one, n, 8, work)

    monkeypatch.setattr(reduce, "share", counted)
    X = np.random.default_rng(0).normal(size=(8000, 2))
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            gk.Gaussian(1.0)(X, backend="numba-cpu") @ np.ones(8000)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert len(after) <= N_THREADS  # of the 1,000 slices


@pytest.mark.parametrize("operation", ["product", "gradient"])
@pytest.mark.parametrize(("n", "m", "d", "t"), [(50, 10**7, 3, 1), (10**5, 10**6, 20, 4)])
def test_no_slice_is_longer_than_ctrl_c_may_wait(monkeypatch, operation, n, m, d, t):
    """A slice is at most INTERRUPT bytes of pairs of the cheapest sum, whatever the shape: counted, not timed.

    Measured on a core of 2.5 GHz: 1.5e9 to 4e9 such pairs a second in float32, 4e8 to 1.7e9 in float64, .1 to .3 s for INTERRUPT.
    """
    found = []

    def seen(piece, n, rows, work):
        found.append((rows, work // n))

    monkeypatch.setattr(reduce, "share", seen)
    X, Y = np.zeros((n, d), np.float32), np.zeros((m, d), np.float32)
    K = gk.Gaussian(1.0)(X, Y, backend="numba-cpu")
    v = np.zeros((m, t), np.float32)
    _ = K @ v if operation == "product" else K.gradient(v)
    ((rows, work),) = found
    least = 16  # targets that a compiled loop takes at once, at most
    assert rows * work * 4 <= max(reduce.INTERRUPT, least * work * 4)
    assert reduce.INTERRUPT <= 4 * 2**28


# --- the end of the interpreter

LATE = {
    "product": "gk.Gaussian(1.0)(X, backend='numba-cpu') @ np.ones(2000)",
    "fourier": "gk.Gaussian(1.0)(X, backend='fourier', tol=1e-4) @ np.ones(2000)",
    "sorted lines": "gk.metrics.sliced_wasserstein(X, X + 1, n_projections=64, random_state=0)",
    "noise": "gk.philox.standard_normal(np.random.default_rng(3), (70_000, 2), X)",
    "verdict": "gk.verdict.distance_multiple(X, X + 1, np.random.default_rng(0))",
    "eigsh": "gk.spectrum.eigsh(gk.Gaussian(1.0)(X[:300], backend='numba-cpu'), 3, random_state=0)[0]",
}


@pytest.mark.parametrize("when", ["atexit", "daemon"])
def test_work_after_the_main_thread_has_ended(when):
    if not hasattr(os, "fork"):
        pytest.skip("POSIX")
    calls = {k: v for k, v in LATE.items() if k != "fourier" or _has_finufft()}
    code = f"""
        import atexit, sys, threading, time, warnings, numpy as np, gpukoop as gk
        import gpukoop.philox, gpukoop.verdict
        warnings.simplefilter("ignore")
        X = np.random.default_rng(0).normal(size=(2000, 2))
        calls = {calls!r}
        expected = {{name: eval(call) for name, call in calls.items()}}
        done = threading.Event()
        def late():
            for name, call in calls.items():
                try:
                    same = bool(np.allclose(eval(call), expected[name], rtol=1e-10))
                except BaseException as error:
                    same = repr(error)
                print(name, same, sep=": ", flush=True)
            done.set()
        def background():
            threading.main_thread().join()
            late()
        if {when!r} == "atexit":
            atexit.register(late)
        else:
            threading.Thread(target=background, daemon=True).start()
            atexit.register(done.wait, 60)
    """
    done = run(code, NUMBA_NUM_THREADS=str(N_THREADS))
    assert done.stdout.splitlines() == [f"{name}: True" for name in calls], done.stderr


@pytest.mark.parametrize("when", ["atexit", "daemon"])
def test_a_first_fit_after_the_main_thread_has_ended(when):
    """Nothing of scikit-learn is imported before, and joblib asks to be told of an end that has begun."""
    code = f"""
        import atexit, threading, warnings, numpy as np, gpukoop as gk
        done = threading.Event()
        def late():
            warnings.simplefilter("ignore")
            X = np.random.default_rng(0).normal(size=(60, 2))
            with gk.use_backend("numpy"):
                for flow in (gk.MMDFlow(n_iter=2), gk.KSWGD(n_components=3, total_time=0.1, random_state=0)):
                    print(np.isfinite(flow.fit(X).sample(5)).all(), flush=True)
            done.set()
        def background():
            threading.main_thread().join()
            late()
        if {when!r} == "atexit":
            atexit.register(late)
        else:
            threading.Thread(target=background, daemon=True).start()
            atexit.register(done.wait, 60)
    """
    done = run(code)
    assert done.stdout.split() == ["True", "True"], done.stderr


def _has_finufft():
    try:
        import finufft  # noqa: F401
    except ImportError:
        return False
    return True


# --- forks


FORKS = {
    "after a sum on every core": "gk.Gaussian(1.0)(X, backend='numba-cpu') @ np.ones(3000)",
    "after Fourier sums": "gk.Gaussian(1.0)(X, backend='fourier', tol=1e-4) @ np.ones(3000)",
    "after sorted lines": "gk.metrics.sliced_wasserstein(X, X + 1, n_projections=64, random_state=0)",
    "after eigsh": "gk.spectrum.eigsh(gk.Gaussian(1.0)(X[:300], backend='numba-cpu'), 3, random_state=0)[0]",
}


@POSIX
@pytest.mark.parametrize("call", FORKS)
def test_a_forked_child_computes_what_its_parent_does(call):
    if "Fourier" in call and not _has_finufft():
        pytest.skip("finufft is not installed")
    code = f"""
        import os, signal, warnings, numpy as np, gpukoop as gk
        warnings.simplefilter("ignore")
        X = np.random.default_rng(0).normal(size=(3000, 2))
        expected = {FORKS[call]}
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            os._exit(0 if np.allclose({FORKS[call]}, expected, rtol=1e-10) else 1)
        print(os.waitpid(child, 0)[1])
    """
    done = run(code, NUMBA_NUM_THREADS=str(N_THREADS), OMP_NUM_THREADS="2")
    assert done.stdout.split() == ["0"], done.stderr


@POSIX
def test_a_fork_while_other_threads_sum():
    code = """
        import os, signal, threading, warnings, numpy as np, gpukoop as gk
        warnings.simplefilter("ignore")
        X = np.random.default_rng(0).normal(size=(6000, 2))
        K = gk.Gaussian(1.0)(X, backend="numba-cpu")
        expected = K @ np.ones(6000)
        stop = threading.Event()
        def work():
            while not stop.is_set():
                K @ np.ones(6000)
        busy = [threading.Thread(target=work) for _ in range(3)]
        for thread in busy:
            thread.start()
        for _ in range(10):
            child = os.fork()
            if child == 0:
                signal.alarm(60)
                os._exit(0 if (K @ np.ones(6000) == expected).all() else 1)
            print(os.waitpid(child, 0)[1])
        stop.set()
    """
    done = run(code, NUMBA_NUM_THREADS="3")
    assert done.stdout.split() == ["0"] * 10, done.stderr


# --- BLAS


def test_concurrent_eigsh_leaves_blas_its_threads():
    code = """
        import threading, warnings, numpy as np, scipy.linalg
        from threadpoolctl import threadpool_info
        from gpukoop.spectrum import DiffusionMap, eigsh
        warnings.simplefilter("ignore")
        def counts():
            pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
            return {pool["filepath"]: pool["num_threads"] for pool in pools}
        before = counts()
        A = np.diag(np.arange(1.0, 401.0))
        def work(k):
            for n in range(4):
                found, _ = eigsh(A[: 100 + 50 * k, : 100 + 50 * k], 3, random_state=n)
                assert abs(found - found.round()).max() < 1e-6
        threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        after = counts()  # of the same libraries: another may be loaded meanwhile
        print(list(before.values()), [after[path] for path in before], sep="; ")
    """
    done = run(code, OPENBLAS_NUM_THREADS="3", MKL_NUM_THREADS="3", OMP_NUM_THREADS="3")
    before, after = done.stdout.strip().split("; ")
    assert before == after, done.stderr
