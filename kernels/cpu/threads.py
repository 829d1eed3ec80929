"""Sharing the targets of a sum among the cores: plain threads around compiled code that releases the GIL.

Not Numba's parallel loops: this needs no OpenMP or TBB, may be called from several threads at once (Numba's
workqueue layer crashes there), compiles in a third of the time, and hands out slices as cores become free,
which is what a busy machine wants.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path

SERIAL_WORK = 1 << 18  # pairs; below, waking a second thread costs more than it saves

_pool: ThreadPoolExecutor | None = None
_pool_lock = threading.Lock()


@cache
def _quota(root: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> float:
    """Return how many cores the control groups of this process grant it (cpu.max, or cfs_quota of version 1); inf without any."""
    least = math.inf
    try:
        lines = Path(own).read_text().splitlines()
    except OSError:
        return least
    for line in lines:
        _, controllers, inside = line.split(":", 2)
        if controllers not in ("", "cpu", "cpu,cpuacct", "cpuacct,cpu"):
            continue
        base = Path(root) / controllers
        group = base / inside.lstrip("/")
        # A container sees its own group at the top, a service its own below; every group above grants at most as much.
        for folder in (group, *group.parents):
            least = min(least, _granted(folder))
            if folder == base:
                break
    return least


def _granted(folder: Path) -> float:
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = (
                (folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")
            )
        granted = float(quota) / float(period) if quota.strip() != "max" else math.inf
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf
    return granted if granted > 0 else math.inf


def usable_cores() -> int:
    """Return the cores this process may use: those it may run on, within the quota of its container."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        cores = os.cpu_count() or 1
    return max(1, min(cores, math.ceil(min(_quota(), cores))))


def ending() -> bool:
    """Tell whether the main thread has ended: no new thread can be started then (atexit, daemon threads)."""
    return not threading.main_thread().is_alive()


def n_threads() -> int:
    """Return the number of threads: NUMBA_NUM_THREADS, by default the cores this process may use."""
    if ending():
        return 1
    chosen = os.environ.get("NUMBA_NUM_THREADS", "")
    if chosen.isdigit() and int(chosen) > 0:
        return int(chosen)
    return usable_cores()


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

    def slices(starts: Iterator[int]) -> None:
        for start in starts:
            run(start, min(start + rows, n))

    spread(slices, range(0, n, rows), n_threads() if work > SERIAL_WORK else 1)


def spread(run: Callable[[Iterator[int]], object], items: range, threads: int) -> None:
    """Call ``run(waiting)`` on so many threads, of which this is one; ``waiting`` hands every item to one of them.

    It ends for all as soon as one fails or is interrupted: helpers would do all the work that is left. What ``run`` does for an
    item is therefore how long Ctrl-C takes.
    """
    left, stopped = (
        iter(items),
        threading.Event(),
    )  # a step of an iterator is one of the interpreter's

    def waiting() -> Iterator[int]:
        for item in left:
            if stopped.is_set():
                return
            yield item

    def take() -> None:
        try:
            run(waiting())
        except BaseException:
            stopped.set()
            raise

    tasks: list[Future[None]] = []
    try:
        with suppress(RuntimeError):  # the interpreter is ending: all is done here
            for _ in range(min(threads, len(items)) - 1):
                tasks.append(_executor().submit(take))
        take()
    except BaseException:
        stopped.set()
        raise
    finally:
        for task in tasks:
            # A helper that has not started finds nothing to do: do not wait for a busy pool.
            if not task.cancel():
                task.result()
