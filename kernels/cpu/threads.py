"""Sharing the targets of a sum among the cores: plain threads around compiled code that releases the GIL.

Not Numba's parallel loops: this needs no OpenMP or TBB, may be called from several threads at once (Numba's
workqueue layer crashes there), compiles in a third of the time, and hands out slices as cores become free,
which is what a busy machine wants.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

SERIAL_WORK = 1 << 18  # pairs; below, waking a second thread costs more than it saves

_pool: ThreadPoolExecutor | None = None
_pool_lock = threading.Lock()


def n_threads() -> int:
    """Return the number of threads: NUMBA_NUM_THREADS, by default the cores this process may use."""
    chosen = os.environ.get("NUMBA_NUM_THREADS", "")
    if chosen.isdigit() and int(chosen) > 0:
        return int(chosen)
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1


def _executor() -> ThreadPoolExecutor:
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(max(1, n_threads() - 1), thread_name_prefix="gpukoop")
        return _pool


def _forget_pool() -> None:
    """Drop the pool in a forked child: its threads stayed with the parent."""
    global _pool, _pool_lock
    _pool, _pool_lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def share(run: Callable[[int, int], None], n: int, rows: int, work: int) -> None:
    """Call ``run(start, stop)`` on slices of ``rows`` targets until all n are done, on every core."""
    starts = itertools.count(0, rows)

    def take() -> None:
        while (start := next(starts)) < n:
            run(start, min(start + rows, n))

    helpers = min(n_threads(), -(-n // rows)) - 1 if work > SERIAL_WORK else 0
    tasks = [_executor().submit(take) for _ in range(helpers)]
    try:
        take()
    finally:
        for task in tasks:
            # A helper that has not started finds nothing to do: do not wait for a busy pool.
            if not task.cancel():
                task.result()
