"""Threads: quotas of containers, errors in one slice, and BLAS after limits that overlap (issue 12)."""

import os
import threading
import time

import numpy as np
import pytest

from gpukoop.blas import one_thread
from gpukoop.kernels.cpu import threads


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "200000 100000\n"}, 2.0),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, np.inf),
        ({"a/b/cpu.max": "max 100000\n", "a/cpu.max": "300000 100000\n"}, 3.0),
        ({"cpu/a/b/cpu.cfs_quota_us": "50000\n", "cpu/a/b/cpu.cfs_period_us": "100000\n"}, 0.5),
        ({"cpu/a/b/cpu.cfs_quota_us": "-1\n", "cpu/a/b/cpu.cfs_period_us": "100000\n"}, np.inf),
        ({"cpu.max": "nonsense\n"}, np.inf),
        ({}, np.inf),
    ],
)
def test_the_quota_of_a_container(tmp_path, files, cores):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    own = tmp_path / "own"
    own.write_text("4:cpu:/a/b\n0::/a/b\n")
    assert threads._quota.__wrapped__(str(tmp_path), str(own)) == cores


def test_the_quota_bounds_the_threads(monkeypatch):
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "_quota", lambda: 1.0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    assert threads.n_threads() == 1
    monkeypatch.setattr(threads, "_quota", lambda: 2.5)
    assert threads.n_threads() == 3


def test_an_error_in_one_slice_stops_the_others(monkeypatch):
    monkeypatch.setattr(threads, "n_threads", lambda: 2)
    done, main = [], threading.current_thread()

    def piece(start, stop):
        if threading.current_thread() is main:
            raise KeyboardInterrupt
        done.append(start)
        time.sleep(0.01)

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        threads.share(piece, 10_000, 1, 10**9)
    assert time.monotonic() - begun < 1.0
    assert len(done) < 20


def test_a_helper_that_fails_stops_the_others_and_its_error_arrives(monkeypatch):
    monkeypatch.setattr(threads, "n_threads", lambda: 2)
    done, main = [], threading.current_thread()

    def piece(start, stop):
        if threading.current_thread() is not main:
            raise OSError("a helper")
        done.append(start)
        time.sleep(0.001)

    with pytest.raises(OSError, match="a helper"):
        threads.share(piece, 100_000, 1, 10**9)
    assert len(done) < 1000


@pytest.mark.parametrize("n_threads", [1, 2, 5])
def test_every_item_is_taken_once(n_threads):
    taken = []
    threads.spread(taken.extend, range(3, 1000, 7), n_threads)
    assert sorted(taken) == list(range(3, 1000, 7))


def test_blas_has_its_threads_again_after_overlapping_limits():
    from threadpoolctl import threadpool_info

    def counts():
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    with one_thread(1):
        pass
    before = counts()
    inside, leave = threading.Barrier(2), threading.Barrier(2)

    def first():
        with one_thread(1):
            inside.wait()
        leave.wait()

    thread = threading.Thread(target=first)
    thread.start()
    with one_thread(1):
        inside.wait()
        leave.wait()  # the first has left, the second is still within
    thread.join()
    assert counts() == before
