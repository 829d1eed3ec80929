"""Threads: quotas of containers, errors in one slice, and BLAS after limits that overlap (issue 12)."""

import concurrent.futures
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


def blas_numbers():
    from threadpoolctl import threadpool_info

    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


class Thread:
    """A thread that does what it is told and stays alive in between: newer threadpoolctl gives the number to a living one."""

    def __init__(self):
        self.pool = concurrent.futures.ThreadPoolExecutor(1)

    def __call__(self, do, *arguments):
        return self.pool.submit(do, *arguments).result(timeout=60)


@pytest.fixture(autouse=True)
def several_blas_threads():
    from gpukoop.blas import _libraries, _release

    before = [library.num_threads for library in _libraries()]

    def put(numbers):
        for library, number in zip(_libraries(), numbers, strict=True):
            library.set_num_threads(number)
        _release()

    put([2] * len(before))
    yield
    put(before)


@pytest.mark.parametrize("last", ["the one that came first", "the one that came last"])
def test_blas_has_its_threads_again_after_overlapping_limits(last):
    first, second, limit = Thread(), Thread(), one_thread(1)
    with limit:
        pass  # loads the libraries
    before = blas_numbers()
    first(limit.__enter__)
    second(limit.__enter__)
    assert set(blas_numbers()) == {1}
    order = [second, first] if last == "the one that came first" else [first, second]
    order[0](limit.__exit__)
    assert set(blas_numbers()) == {1}
    order[1](limit.__exit__)
    assert blas_numbers() == before


def test_nobody_owns_the_number_of_blas_threads_afterwards():
    from threadpoolctl import threadpool_limits

    first, second, limit = Thread(), Thread(), one_thread(1)
    before = blas_numbers()
    first(limit.__enter__)
    second(limit.__enter__)
    first(limit.__exit__)
    second(limit.__exit__)
    with threadpool_limits(3, user_api="blas"):  # in a third thread, while both live
        assert set(blas_numbers()) == {3}
    assert blas_numbers() == before


def test_a_number_of_the_users_is_not_lost_to_ours():
    from threadpoolctl import threadpool_limits

    user, other, limit = Thread(), Thread(), one_thread(1)
    before = blas_numbers()
    theirs = user(lambda: threadpool_limits(3, user_api="blas"))
    other(limit.__enter__)
    user(theirs.__exit__, None, None, None)
    other(limit.__exit__)
    assert blas_numbers() == before
    # Around ours, in one thread.
    with threadpool_limits(3, user_api="blas"):
        with one_thread(1):
            assert set(blas_numbers()) == {1}
        assert set(blas_numbers()) == {3}
    assert blas_numbers() == before
