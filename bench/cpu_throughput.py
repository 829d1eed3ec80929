"""Kernel sums on the CPU beside KeOps and chunked NumPy, with the error of each.

Times are the best of several interleaved repetitions, A B A B, in one process on the same data, so that only ratios mean
something on a shared machine. An error is the largest over random rows of abs(out - exact) / sum_j abs(v_j) abs(k_ij),
in float64; for a log-sum-exp it is absolute. Pairs are n m, whatever a method computes.

NumPy is matrix product, exponential, matrix product on blocks of 256 rows, one thread a core, one BLAS thread each.
KeOps is as installed; set CXXFLAGS="-march=native -ffast-math" for its fastest build.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from gpukoop.arrays import Array
from gpukoop.kernels.cpu import reduce as reduce_cpu
from gpukoop.kernels.cpu.threads import n_threads
from gpukoop.kernels.formula.catalogue import Gaussian
from gpukoop.kernels.operation import OPERATIONS, PRODUCT

TITLE = "CPU kernel sums: gpukoop (numba-cpu), KeOps and NumPy"
Run = Callable[[], Any]

# (operation, n, m, d, t, dtype, peers); KeOps is slow at d = 100, so fewer targets
CASES = (
    ("product", 20_000, 20_000, 2, 1, "float32", ("keops", "numpy")),
    ("product", 20_000, 20_000, 3, 1, "float32", ("keops", "numpy")),
    ("product, tol=1e-5", 20_000, 20_000, 3, 1, "float32", ("keops", "numpy")),
    ("product", 20_000, 20_000, 10, 1, "float32", ("keops", "numpy")),
    ("product", 4_000, 20_000, 100, 1, "float32", ("keops", "numpy")),
    ("product", 2_000, 20_000, 784, 1, "float32", ("numpy",)),
    ("product", 20_000, 20_000, 3, 1, "float64", ("keops", "numpy")),
    ("product", 20_000, 20_000, 3, 16, "float32", ("single columns", "numpy")),
    ("value_and_gradient", 20_000, 20_000, 3, 1, "float32", ("keops", "product")),
    ("value_and_gradient", 20_000, 20_000, 10, 1, "float32", ("product",)),
    ("logsumexp", 20_000, 20_000, 3, 1, "float32", ("keops", "product")),
    ("logsumexp_and_gradient", 20_000, 20_000, 3, 1, "float32", ("product",)),
)
BLOCK_ROWS = 256
CHECKED_ROWS = 64


def rows(quick: bool) -> list[dict[str, Any]]:
    """Return one row per case and peer; ``quick`` is tiny sizes, for continuous integration."""
    table = first_calls()
    for case in CASES:
        table += compare(*case, quick=quick)
    # a short scale, where a tolerance leaves distant cells out
    size = 100_000
    table += compare(
        "product, tol=1e-5", size, size, 2, 1, "float32", ("product",), quick=quick, scale=0.05
    )
    return table


def compare(
    op: str,
    n: int,
    m: int,
    d: int,
    t: int,
    dtype: str,
    peers: tuple[str, ...],
    quick: bool = False,
    scale: float | None = None,
) -> list[dict[str, Any]]:
    """Time one operation of gpukoop against its peers."""
    if quick:
        n, m = n // 10, m // 10
    rng = np.random.default_rng(0)
    X, Y = (rng.standard_normal((k, d)).astype(dtype) for k in (n, m))
    V = rng.standard_normal((m, t)).astype(dtype)
    scale = scale or float(np.sqrt(d))
    runs: dict[str, Run] = {"gpukoop": ours(op, scale, X, Y, V)}
    reasons = {}
    for peer in peers:
        try:
            runs[peer] = PEERS[peer](op, scale, X, Y, V)
        except ImportError as absent:
            reasons[peer] = str(absent)
    first, results = {}, {}
    for name, run in runs.items():
        start = time.perf_counter()
        results[name] = run()
        first[name] = time.perf_counter() - start
    best = interleaved(runs, 3 if quick else 7)
    picked = rng.choice(n, min(n, CHECKED_ROWS), replace=False)
    errors = {
        name: error(op, scale, X, Y, V, picked, result)
        for name, result in results.items()
        if name != "product"
    }
    common = {"operation": op, "n": n, "m": m, "d": d, "t": t, "dtype": dtype, "scale": scale}
    return [
        common
        | {
            "peer": peer,
            "first call s": first["gpukoop"],
            "steady s": best["gpukoop"],
            "Gpairs/s": n * m / best["gpukoop"] / 1e9,
            "error": errors["gpukoop"],
            "peer first s": first.get(peer),
            "peer s": best.get(peer, reasons.get(peer)),
            "peer error": errors.get(peer),
            "ratio": best[peer] / best["gpukoop"] if peer in best else None,
            "threads": n_threads(),
        }
        for peer in peers
    ]


def interleaved(runs: dict[str, Run], repetitions: int) -> dict[str, float]:
    """Return the best time of each, taken in turns; what is slow is repeated less."""
    best = dict.fromkeys(runs, np.inf)
    for repetition in range(repetitions):
        for name, run in runs.items():
            if repetition >= 3 and best[name] > 3.0:
                continue
            start = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def first_calls() -> list[dict[str, Any]]:
    """Time the first product of a new process: nothing compiled, then everything on disk."""
    script = (
        "import time; start = time.perf_counter(); import numpy as np; "
        "from gpukoop.kernels.cpu import reduce as reduce_cpu; from gpukoop.kernels.formula.catalogue import Gaussian; "
        "imported = time.perf_counter(); X = np.ones((1000, 3), 'float32'); "
        "from gpukoop.kernels.operation import PRODUCT; "
        "reduce_cpu.reduce(Gaussian(), PRODUCT, X, X, X[:, :1].copy()); end = time.perf_counter(); "
        "print(imported - start, end - imported)"
    )
    table = []
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "GPUKOOP_CACHE_DIR": folder}
        for name in ("cold", "from disk", "from disk again"):
            command = [sys.executable, "-c", script]
            text = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
            imported, called = map(float, text.stdout.split())
            row = {"operation": f"first product of a process, {name}", "n": 1000, "m": 1000, "d": 3}
            table.append(row | {"first call s": called, "import s": imported})
    return table


# -- what is timed -------------------------------------------------------------------------------------


def ours(op: str, scale: float, X: Array, Y: Array, V: Array) -> Run:
    name, _, tol = op.partition(", tol=")
    operation = OPERATIONS[name]
    weights = V[:, 0].copy() if operation.log else V
    asked = float(tol) if tol else None
    return lambda: reduce_cpu.reduce(Gaussian(scale), operation, X, Y, weights, tol=asked)


def own_product(op: str, scale: float, X: Array, Y: Array, V: Array) -> Run:
    return lambda: reduce_cpu.reduce(Gaussian(scale), PRODUCT, X, Y, V)


def single_columns(op: str, scale: float, X: Array, Y: Array, V: Array) -> Run:
    columns = [V[:, c : c + 1].copy() for c in range(V.shape[1])]
    return lambda: np.concatenate(
        [reduce_cpu.reduce(Gaussian(scale), PRODUCT, X, Y, v) for v in columns], axis=1
    )


def keops(op: str, scale: float, X: Array, Y: Array, V: Array) -> Run:
    from pykeops.numpy import Genred

    d = X.shape[1]
    points = [f"x=Vi({d})", f"y=Vj({d})", "v=Vj(1)", "g=Pm(1)"]
    phi = "Exp(-g*SqDist(x,y))"
    g = np.array([0.5 / scale**2], X.dtype)
    if op == "logsumexp":
        log = Genred("v-g*SqDist(x,y)", points, reduction_op="LogSumExp", axis=1)
        return lambda: log(X, Y, V, g)[:, 0]
    value = Genred(f"{phi}*v", points, reduction_op="Sum", axis=1)
    if op.startswith("product"):
        return lambda: value(X, Y, V, g)
    slope = Genred(f"{phi}*v*(x-y)", points, reduction_op="Sum", axis=1)
    return lambda: (value(X, Y, V, g), -2 * g * slope(X, Y, V, g))


def numpy_blocks(op: str, scale: float, X: Array, Y: Array, V: Array) -> Run:
    from threadpoolctl import ThreadpoolController

    g = X.dtype.type(0.5 / scale**2)
    controller = ThreadpoolController()

    def block(start: int, out: Array, yy: Array) -> None:
        x = X[start : start + BLOCK_ROWS]
        K = x @ Y.T
        K *= 2 * g
        K -= yy
        K -= g * (x * x).sum(1)[:, None]
        np.exp(K, out=K)
        out[start : start + BLOCK_ROWS] = K @ V

    def run() -> Array:
        out, yy = np.empty((len(X), V.shape[1]), X.dtype), g * (Y * Y).sum(1)
        with (
            controller.limit(limits=1, user_api="blas"),
            ThreadPoolExecutor(n_threads()) as pool,
        ):
            for task in [pool.submit(block, i, out, yy) for i in range(0, len(X), BLOCK_ROWS)]:
                task.result()
        return out

    return run


PEERS: dict[str, Callable[..., Run]] = {
    "keops": keops,
    "numpy": numpy_blocks,
    "product": own_product,
    "single columns": single_columns,
}


def error(op: str, scale: float, X: Array, Y: Array, V: Array, picked: Array, result: Any) -> float:
    """Return the largest error of the value on ``picked`` rows."""
    value = result[0] if isinstance(result, tuple) else result
    x, y = X[picked].astype(float), Y.astype(float)
    s = np.zeros((len(x), len(y)))
    for k in range(x.shape[1]):
        s += (x[:, k, None] - y[:, k]) ** 2 / scale**2
    if "logsumexp" in op:
        logits = V[:, 0].astype(float) - s / 2
        top = logits.max(1)
        exact = top + np.log(np.exp(logits - top[:, None]).sum(1))
        return float(np.abs(value[picked] - exact).max())
    K = np.exp(-s / 2)
    difference = np.abs(value[picked] - K @ V.astype(float))
    return float((difference / (K @ np.abs(V.astype(float)))).max())


if __name__ == "__main__":
    for row in rows(quick="--quick" in sys.argv):
        print({k: (f"{v:.3g}" if isinstance(v, float) else v) for k, v in row.items()}, flush=True)
