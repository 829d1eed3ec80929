"""Kernel sums on a CUDA device beside KeOps and dense CuPy, with the error of each; needs a device and CuPy.

    python -m bench --device cuda --out record.json

runs unattended and writes one JSON record. Arrays live on the device; times are CUDA events, best of several,
the sides in turn. The static table beside this one says what the instruction mix allows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

import gpukoop as gk
from gpukoop.backends import BACKENDS
from gpukoop.kernels.cuda.memory import Memory

TITLE = "CUDA kernel sums on this device (arrays on the device)"

# (operation, n = m, d, t, dtype, precision)
CASES: tuple[tuple[str, int, int, int, str, str], ...] = (
    ("product", 10**6, 2, 1, "float32", "fp32"),
    ("product", 10**6, 3, 1, "float32", "fp32"),
    ("product", 200_000, 10, 1, "float32", "fp32"),
    ("product", 50_000, 100, 1, "float32", "fp32"),
    ("product", 200_000, 3, 16, "float32", "fp32"),
    ("product", 200_000, 3, 1, "float64", "fp32"),
    ("value_and_gradient", 200_000, 3, 1, "float32", "fp32"),
    ("logsumexp", 200_000, 3, 1, "float32", "fp32"),
    # by products of matrices; matrix units where the precision says so
    ("product", 50_000, 100, 1, "float32", "3xtf32"),
    ("product", 50_000, 100, 1, "float32", "tf32"),
    ("product", 50_000, 784, 16, "float32", "3xtf32"),
    ("value_and_gradient", 50_000, 100, 1, "float32", "3xtf32"),
    ("logsumexp", 50_000, 100, 1, "float32", "3xtf32"),
)
REPEATS = 5
# Dense CuPy stores the matrix: this many entries at most.
DENSE = 4 * 10**8


def rows(quick: bool) -> list[dict[str, Any]]:
    """Return one row a case and peer, or one row that says why there is none."""
    reason = BACKENDS["numba-cuda"].missing()
    if reason is not None:
        return [{"operation": "none", "why": reason}]
    try:
        import cupy
    except ImportError as absent:
        return [{"operation": "none", "why": f"{absent} (pip install gpukoop[cuda13])"}]
    table = []
    for op, n, d, t, dtype, precision in CASES:
        size = n // 20 if quick else n
        table += _compare(cupy, op, size, d, t, dtype, precision)
    return table


def _compare(
    cupy: Any, op: str, n: int, d: int, t: int, dtype: str, precision: str
) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, d)).astype(dtype)
    v = rng.standard_normal(n if op == "logsumexp" else (n, t)).astype(dtype)
    scale = float(np.sqrt(d))
    Xd, vd = cupy.asarray(X), cupy.asarray(v)
    K = gk.Gaussian(scale)(Xd, backend="numba-cuda", precision=precision)
    call: Callable[[], Any] = lambda: (getattr(K, op) if op != "product" else K.__matmul__)(vd)
    begin = time.perf_counter()
    result = call()
    cupy.cuda.get_current_stream().synchronize()
    first = time.perf_counter() - begin
    pool = cupy.get_default_memory_pool()
    before = pool.used_bytes()
    runs: dict[str, Callable[[], Any]] = {"gpukoop": call}
    if n * n <= DENSE and op == "product":
        runs["dense cupy"] = lambda: _dense(cupy, Xd, vd, scale)
    keops = _keops(op, X, v, scale)
    if keops is not None:
        runs["keops (host arrays)"] = keops
    best = dict.fromkeys(runs, np.inf)
    for _ in range(REPEATS):
        for name, run in runs.items():
            best[name] = min(best[name], _event_seconds(cupy, run))
    value = result[0] if isinstance(result, tuple) else result
    picked = rng.choice(n, 64, replace=False)
    row = {
        "operation": op,
        "n": n,
        "d": d,
        "t": t,
        "dtype": dtype,
        "precision": precision,
        "path": _path(K),
        "device": cupy.cuda.runtime.getDeviceProperties(0)["name"].decode(),
        "first call s": first,
        "steady s": best["gpukoop"],
        "Gpairs/s": n * n / best["gpukoop"] / 1e9,
        "error": _error(op, X, v, scale, picked, cupy.asnumpy(value[picked])),
        "device MB": (pool.used_bytes() - before) / 1e6,
    }
    return [
        row | {"peer": p, "peer s": best.get(p), "ratio": best[p] / best["gpukoop"]}
        for p in runs
        if p != "gpukoop"
    ] or [row]


def _path(K: Any) -> str:
    choice = K.clouds.memory(Memory).matrix.get("matrix")
    return "fused loop" if choice is None else choice.path


def _event_seconds(cupy: Any, run: Callable[[], Any]) -> float:
    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(cupy.cuda.get_elapsed_time(start, end)) / 1e3


def _dense(cupy: Any, X: Any, v: Any, scale: float) -> Any:
    xx = (X * X).sum(axis=1)
    return cupy.exp((2 * (X @ X.T) - xx[:, None] - xx) * X.dtype.type(0.5 / scale**2)) @ v


def _keops(op: str, X: Any, v: Any, scale: float) -> Callable[[], Any] | None:
    try:
        import pykeops.config
        from pykeops.numpy import Genred
    except ImportError:
        return None
    if op != "product" or not getattr(pykeops.config, "gpu_available", False):
        return None
    d, t = X.shape[1], v.shape[1]
    sums = Genred(
        "Exp(-g*SqDist(x,y))*v",
        [f"x=Vi({d})", f"y=Vj({d})", f"v=Vj({t})", "g=Pm(1)"],
        reduction_op="Sum",
        axis=1,
    )
    g = np.array([0.5 / scale**2], X.dtype)
    return lambda: sums(X, X, v, g, backend="GPU")


def _error(op: str, X: Any, v: Any, scale: float, picked: Any, value: Any) -> float:
    x, y = X[picked].astype(float), X.astype(float)
    s = sum((x[:, c, None] - y[:, c]) ** 2 for c in range(X.shape[1])) / scale**2
    if op == "logsumexp":
        logits = v.astype(float) - s / 2
        top = logits.max(axis=1)
        return float(np.abs(value - top - np.log(np.exp(logits - top[:, None]).sum(axis=1))).max())
    K, w = np.exp(-s / 2), v.astype(float)
    return float((np.abs(value.reshape(len(x), -1) - K @ w) / (K @ np.abs(w))).max())
