"""Measure the cost constants of the exact backends and rewrite their table in ``gpukoop/backends.py``.

    python -m bench.calibrate [BACKEND ...] [--dry-run]

Each usable backend is timed on a grid of (n, d, t); a non-negative least squares fit gives seconds a pair, a feature and
a column, and ratios at d = 3 give the factors of gradients, log-sum-exp and float64. Rows of backends that this
machine cannot run are left as they are, and their origin stays in the comment.
"""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

import gpukoop as gk
from bench.__main__ import machine
from gpukoop.backends import BACKENDS

TABLE = Path(gk.__file__).parent / "backends.py"
# (features, columns) of the fit; pairs are chosen per backend so that a call takes some 50 ms.
GRID = ((1, 1), (2, 1), (3, 1), (10, 1), (3, 4), (3, 16), (50, 1), (100, 1))
SIZES = {"numpy": 1_500, "numba-cpu": 12_000, "keops": 4_000, "numba-cuda": 60_000}


def seconds(backend: str, op: str, n: int, d: int, t: int, dtype: str, repeats: int = 5) -> float:
    """Return the best time of one call on device-resident or host arrays of the backend's kind."""
    rng = np.random.default_rng(0)
    xp: Any = np
    if backend == "numba-cuda":
        import cupy as xp
    X = xp.asarray(rng.standard_normal((n, d)).astype(dtype))
    v = xp.asarray(rng.standard_normal(n if "logsumexp" in op else (n, t)).astype(dtype))
    K = gk.Gaussian(float(np.sqrt(d)))(X, backend=backend)
    call = getattr(K, op) if op != "product" else K.__matmul__

    def finish() -> None:
        if xp is not np:
            xp.cuda.get_current_stream().synchronize()

    call(v)
    finish()
    best = np.inf
    for _ in range(repeats):
        begin = time.perf_counter()
        call(v)
        finish()
        best = min(best, time.perf_counter() - begin)
    return float(best)


def fit(backend: str) -> str:
    """Return the text of one row of the table."""
    n = SIZES[backend]
    grid = GRID if backend != "keops" else GRID[:6]  # each is a formula to compile
    start = seconds(backend, "product", 2, 3, 1, "float32")
    times = np.array([seconds(backend, "product", n, d, t, "float32") for d, t in grid])
    design = np.array([[1.0, d, t] for d, t in grid])
    # Relative residuals: a wrong choice costs the ratio of two times, not their difference.
    cost, _ = nnls(design * n**2 / times[:, None], np.maximum(times - start, 0) / times)
    base = seconds(backend, "product", n, 3, 1, "float32")
    factors = [
        max(1.0, seconds(backend, op, n, 3, 1, dtype) / base)
        for op, dtype in (
            ("value_and_gradient", "float32"),
            ("logsumexp", "float32"),
            ("product", "float64"),
        )
    ]
    numbers = ", ".join(f"{x:.2g}" for x in (start, *cost, *factors))
    return f'    "{backend}": Rate({numbers}),'


def main() -> int:
    """Parse the command line, measure, and rewrite the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.calibrate", description=__doc__)
    parser.add_argument("backends", nargs="*", metavar="BACKEND", help=", ".join(SIZES))
    parser.add_argument("--dry-run", action="store_true", help="print the rows, change nothing")
    arguments = parser.parse_args()
    text = TABLE.read_text()
    where = machine()
    for name in arguments.backends or SIZES:
        reason = BACKENDS[name].missing()
        if reason is not None:
            print(f"{name}: left as it is, {reason}")
            continue
        row = fit(name)
        print(row.strip(), flush=True)
        stamp = f"  # {where['date']}"
        text = re.sub(
            rf'^    "{name}": Rate\(.*$', lambda _, r=row + stamp: r, text, flags=re.MULTILINE
        )
    text = re.sub(
        r"(which dates what it measured: ).*?(, shared)", rf"\g<1>{where['machine']}\g<2>", text
    )
    if not arguments.dry_run:
        TABLE.write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
