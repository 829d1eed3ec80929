"""Kernel sums on a CUDA device: time on the device, of a call and of the host, beside KeOps' own kernel and the limit.

    python -m bench --device cuda --out bench/records/CARD.json

runs unattended. Arrays live on the device. Three times of a warm call:

====== ==========================================================================================================
kernel a captured call, replayed: what the device works, without the host between launches
call   from an event before to an event behind, the host included
host   until the call returns, the device idle before: what Python and the launches cost
====== ==========================================================================================================

Best of several, the sides in turn. KeOps is its own generated kernel, launched as its binder does
(:func:`bench.keops_cuda.launches`). The limit is that of the card's data: 16 special functions and 128 instructions a clock and
multiprocessor, and the fewest instructions that a pair needs (:func:`fewest`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import gpukoop as gk
from bench import keops_cuda
from gpukoop.backends import BACKENDS
from gpukoop.kernels.cuda.memory import Memory

TITLE = "CUDA kernel sums on this device (arrays on the device)"
REPEATS = 5
# Dense CuPy stores the matrix: this many entries at most.
DENSE = 4 * 10**8
# Pairs a second above which KeOps is not asked: a run would take minutes.
KEOPS_PAIRS = 10**12
# Host time is the mean of this many calls, the device waited for before each.
CALLS = 50


@dataclass(frozen=True)
class Case:
    """A sum: n targets, m sources, d features, t columns; one cloud where m is None."""

    op: str
    n: int
    m: int | None
    d: int
    t: int = 1
    dtype: str = "float32"
    precision: str = "fp32"
    tol: float | None = None


MANY, BIG = 200_000, 10**6
CASES = (
    Case("product", MANY, MANY, 2),
    Case("product", MANY, MANY, 3),
    Case("product", MANY, None, 3),
    Case("product", MANY, MANY, 10),
    Case("product", MANY, None, 10),
    Case("value_and_gradient", MANY, MANY, 3),
    Case("logsumexp", MANY, MANY, 3),
    Case("product", MANY, MANY, 3, 16),
    Case("product", 50_000, 50_000, 64),
    Case("product", 50_000, 50_000, 100),
    Case("product", 50_000, 50_000, 100, precision="3xtf32"),
    Case("product", 50_000, 50_000, 100, precision="tf32"),
    Case("value_and_gradient", 50_000, 50_000, 100, precision="3xtf32"),
    Case("logsumexp", 50_000, 50_000, 100, precision="3xtf32"),
    Case("product", MANY, MANY, 3, dtype="float64"),
    Case("product", BIG, None, 3),
    Case("product", BIG, BIG, 3, tol=1e-4),
    Case("product", BIG, None, 3, tol=1e-4),
    # thin ones, and those in which the host decides
    Case("product", BIG, 1_000, 3),
    Case("product", 1_000, BIG, 3),
    Case("product", 1_000, 1_000, 3),
    Case("product", 10_000, 10_000, 3),
    Case("product", 100_000, 100_000, 3),
    Case("value_and_gradient", 1_000, 1_000, 3),
    Case("value_and_gradient", 100_000, 100_000, 3),
)


def rows(quick: bool) -> list[dict[str, Any]]:
    """Return one row a case, or one row that says why there is none."""
    reason = BACKENDS["numba-cuda"].missing()
    if reason is not None:
        return [{"operation": "none", "why": reason}]
    try:
        import cupy
    except ImportError as absent:
        return [{"operation": "none", "why": f"{absent} (pip install gpukoop[cuda13])"}]
    return [row(cupy, case, 20 if quick else 1) for case in CASES]


def row(cupy: Any, case: Case, smaller: int = 1) -> dict[str, Any]:
    """Return the row of a case with n and m divided by ``smaller``."""
    n, m = (None if k is None else max(400, k // smaller) for k in (case.n, case.m))
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, case.d)).astype(case.dtype)
    Y = X if m is None else rng.standard_normal((m, case.d)).astype(case.dtype)
    v = rng.standard_normal((len(Y), case.t)).astype(case.dtype)
    v = v[:, 0].copy() if case.op == "logsumexp" else v
    scale = float(np.sqrt(case.d))
    Xd, vd = cupy.asarray(X), cupy.asarray(v)
    Yd = Xd if m is None else cupy.asarray(Y)
    pool = cupy.get_default_memory_pool()
    before = pool.used_bytes()
    how: dict[str, Any] = {"backend": "numba-cuda", "precision": case.precision, "tol": case.tol}
    K = gk.Gaussian(scale)(Xd, None if m is None else Yd, **how)
    call: Callable[[], Any] = lambda: (
        getattr(K, case.op) if case.op != "product" else K.__matmul__
    )(vd)
    begin = time.perf_counter()
    result = call()
    cupy.cuda.get_current_stream().synchronize()
    first = time.perf_counter() - begin
    held = pool.used_bytes() - before
    pairs = len(X) * len(Y)
    peers: dict[str, Callable[[], Any]] = {}
    if pairs <= KEOPS_PAIRS:
        keops = keops_cuda.launches(cupy, "Gaussian", case.op, Xd, Yd, vd, scale)
        peers |= {"keops": keops} if keops is not None else {}
    if pairs <= DENSE and case.op == "product":
        peers["dense cupy"] = lambda: _dense(cupy, Xd, Yd, vd, scale)
    runs = {"gpukoop": call} | peers
    best = dict.fromkeys(runs, np.inf)
    for _ in range(REPEATS):
        for name, run in runs.items():
            best[name] = min(best[name], event_seconds(cupy, run))
    kernel = {name: replayed_seconds(cupy, run) for name, run in runs.items()}
    own = kernel["gpukoop"] or best["gpukoop"]
    peer = kernel.get("keops") or best.get("keops")
    top = limit(cupy, case)
    value = result[0] if isinstance(result, tuple) else result
    picked = rng.choice(len(X), 64, replace=False)
    error = _error(case.op, X, Y, v, scale, picked, cupy.asnumpy(value[cupy.asarray(picked)]))
    return {
        "operation": case.op,
        "n": len(X),
        "m": "one cloud" if m is None else len(Y),
        "d": case.d,
        "t": case.t,
        "dtype": case.dtype,
        "precision": case.precision,
        "tol": case.tol,
        "path": _path(K),
        "first call s": first,
        "kernel s": kernel["gpukoop"],
        "call s": best["gpukoop"],
        "host us": host_seconds(cupy, call) * 1e6,
        "Tp/s": pairs / own / 1e12,
        "limit Tp/s": top,
        "share of the limit": None if top is None else pairs / own / 1e12 / top,
        "keops s": peer,
        "ratio to keops": None if peer is None else peer / own,
        "dense cupy s": best.get("dense cupy"),
        "error": error,
        "device MB": held / 1e6,
    }


def _path(K: Any) -> str:
    choice = K.clouds.memory(Memory).matrix.get("matrix")
    return "fused loop" if choice is None else choice.path


def fewest(case: Case) -> float:
    """Return the instructions that a pair of a float32 Gaussian needs at least, of two clouds or of one.

    Products and log-sum-exps: d multiply-adds, a bias, an exponential, a multiply-add a column; with a gradient differences and
    their squares, the weight, and a multiply-add a feature. One cloud shares what leads to the exponential.
    """
    shared, own = case.d + 2.0, float(case.t)
    if "gradient" in case.op:
        shared, own = 2.0 * case.d + 2, case.t * (1.0 + case.d)
    return (shared + 2 * own) / 2 if case.m is None else shared + own


def limit(cupy: Any, case: Case) -> float | None:
    """Return the pairs a second, in 10^12, that the multiprocessors can reach; None where no such count is known."""
    if case.dtype != "float32" or case.precision != "fp32" or case.tol is not None:
        return None
    has = cupy.cuda.Device().attributes
    clocks = has["MultiProcessorCount"] * has["ClockRate"] * 1e3
    special = 16 * (2 if case.m is None else 1)
    return float(clocks * min(special, 128 / fewest(case)) / 1e12)


def event_seconds(cupy: Any, run: Callable[[], Any]) -> float:
    """Return the seconds between an event before a call and one behind it."""
    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(cupy.cuda.get_elapsed_time(start, end)) / 1e3


def replayed_seconds(cupy: Any, run: Callable[[], Any]) -> float | None:
    """Return the best time of a call that was captured as a graph; None for one that waits for the device."""
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        run()  # memory of this stream's pool is there before the capture
        stream.synchronize()
        try:
            stream.begin_capture()
            kept = run()
            graph = stream.end_capture()
        except Exception:  # noqa: BLE001 CuPy and CUDA raise their own; what cannot be captured has no such time
            return None
        best = np.inf
        for _ in range(REPEATS):
            best = min(best, event_seconds(cupy, graph.launch))
        del kept
    return best


def host_seconds(cupy: Any, run: Callable[[], Any]) -> float:
    """Return the mean seconds until a call returns, the device idle before."""
    total = 0.0
    for _ in range(CALLS):
        cupy.cuda.get_current_stream().synchronize()
        begin = time.perf_counter()
        run()
        total += time.perf_counter() - begin
    return total / CALLS


def _dense(cupy: Any, X: Any, Y: Any, v: Any, scale: float) -> Any:
    xx, yy = (X * X).sum(axis=1), (Y * Y).sum(axis=1)
    return cupy.exp((2 * (X @ Y.T) - xx[:, None] - yy) * X.dtype.type(0.5 / scale**2)) @ v


def _error(op: str, X: Any, Y: Any, v: Any, scale: float, picked: Any, value: Any) -> float:
    x, y = X[picked].astype(float), Y.astype(float)
    s = sum((x[:, c, None] - y[:, c]) ** 2 for c in range(X.shape[1])) / scale**2
    if op == "logsumexp":
        logits = v.astype(float) - s / 2
        top = logits.max(axis=1)
        return float(np.abs(value - top - np.log(np.exp(logits - top[:, None]).sum(axis=1))).max())
    K, w = np.exp(-s / 2), v.astype(float)
    return float((np.abs(value.reshape(len(x), -1) - K @ w) / (K @ np.abs(w))).max())
