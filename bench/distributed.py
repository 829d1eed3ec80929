"""Sums over two Dask workers on this machine beside the same sum in this process, and beside a killed worker."""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
import time
from typing import Any

import numpy as np

import gpukoop as gk
from gpukoop.arrays import Array

TITLE = "Dask: two worker processes on one machine beside one process (float32)"

D = 3
REPEATS = 3


def rows(quick: bool) -> list[dict[str, Any]]:
    """Return one row an operation; ``overhead`` is what blocks, transfers and Dask add to the same work."""
    if importlib.util.find_spec("distributed") is None:
        return [{"what": "Dask is not installed (pip install gpukoop[dask])"}]
    from dask.distributed import Client, LocalCluster

    n = 20_000 if quick else 100_000
    rng = np.random.default_rng(0)
    X, Y = (rng.normal(size=(n, D)).astype(np.float32) for _ in range(2))
    v = rng.normal(size=n).astype(np.float32)
    K = gk.Gaussian(0.5)(X, Y, backend="numba-cpu")
    table = []
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        for op in ("product", "value_and_gradient", "logsumexp"):
            here, first, there = [], 0.0, []
            for i in range(REPEATS + 1):
                span, want = timed(K, op, v)
                here.append(span)
                with gk.distributed.use_cluster(client):
                    span, got = timed(K, op, v)
                if i:
                    there.append(span)
                else:
                    first = span
            table.append(
                {
                    "what": f"{op}, d = {D}",
                    "n = m": n,
                    "first s": first,
                    "seconds": min(there),
                    "one process s": min(here),
                    "overhead": min(there) / min(here),
                    "error": difference(K, got, want, op, v),
                }
            )
        table.append(killed_row(K, client, v, n))
    return table


def timed(K: Any, op: str, v: Array) -> tuple[float, Any]:
    """Return the seconds of a reduction, and its result."""
    start = time.perf_counter()
    out = K @ v if op == "product" else getattr(K, op)(v)
    return time.perf_counter() - start, out


def difference(K: Any, got: Any, want: Any, op: str, v: Array) -> float:
    """Return the largest difference, relative to sum |v| k for sums."""
    got, want = (x if isinstance(x, tuple) else (x,) for x in (got, want))
    unit = 1.0 if op == "logsumexp" else K @ np.abs(v)
    return float(np.max(np.abs(got[0] - want[0]) / unit))


def killed_row(K: Any, client: Any, v: Array, n: int) -> dict[str, Any]:
    """Kill one worker while a sum runs; the other one and the restarted one finish it."""
    want = K @ v
    victim = next(iter(client.run(os.getpid).values()))

    def kill() -> None:
        while not any("gpukoop-product" in str(key) for key in client.who_has()):
            time.sleep(0.005)
        os.kill(victim, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    with gk.distributed.use_cluster(client):
        seconds, got = timed(K, "product", v)
    thread.join()
    return {
        "what": f"product, d = {D}, one worker killed in mid-run",
        "n = m": n,
        "seconds": seconds,
        "error": difference(K, got, want, "product", v),
    }
