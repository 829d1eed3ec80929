"""Spectra: passes, seconds, residual and memory of the block method beside ARPACK.

A pass visits all n^2 pairs once, with as many columns as the method asks for. Both methods are asked for the same residual,
relative to the largest eigenvalue, on the same lazy Markov operator of a diffusion map. The residual is measured from one
more product. Seconds are the best of interleaved runs, one process, shared machine: only ratios mean something. Peak
memory is what Python allocates during the call (tracemalloc).
"""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import numpy as np

from gpukoop.kernels.formula.catalogue import Gaussian
from gpukoop.spectrum import DiffusionMap
from gpukoop.spectrum.eigsh import eigenpairs
from gpukoop.spectrum.markov import MarkovOperator, sampling_weights

TITLE = "Spectra: block Krylov (gpukoop) and ARPACK"

# (n, d, scale, k, tol, dtype)
CASES = (
    (10_000, 2, 0.3, 10, 1e-6, "float32"),
    (10_000, 3, 0.5, 32, 1e-6, "float32"),
    (5_000, 3, 0.5, 32, 1e-10, "float64"),
    (5_000, 2, 0.2, 64, 1e-6, "float64"),
    (5_000, 10, 2.0, 32, 1e-6, "float64"),
)
METHODS = ("block", "lanczos")


def rows(quick: bool) -> list[dict[str, Any]]:
    """Return one row per case and method, and the memory of whole fits; ``quick`` is tiny sizes."""
    table = []
    for case in CASES[1:3] if quick else CASES:
        table += compare(*case, quick=quick)
    return [*table, fit_memory(2_000 if quick else 20_000)]


def compare(
    n: int, d: int, scale: float, k: int, tol: float, dtype: str, *, quick: bool = False
) -> list[dict[str, Any]]:
    """Return the rows of one case: interleaved runs of both methods on the same operator."""
    n = 1_200 if quick else n
    X = np.random.default_rng(0).normal(size=(n, d)).astype(dtype)
    K = Gaussian(scale)(X)
    S = MarkovOperator(K, sampling_weights(K, np.ones(n, dtype), 0.5)[1])
    best = dict.fromkeys(METHODS, np.inf)
    found, peak = {}, {}
    for repetition in range(2 if quick else 4):
        for method in METHODS:
            if not repetition:
                tracemalloc.start()
            start = time.perf_counter()
            found[method] = eigenpairs(S, k, method=method, tol=tol, random_state=0)
            if repetition:
                best[method] = min(best[method], time.perf_counter() - start)
            else:
                peak[method] = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
    table = []
    for method in METHODS:
        pairs = found[method]
        R = S.matmat(pairs.vectors) - pairs.vectors * pairs.values
        table.append(
            {
                "case": f"diffusion map, d={d}, k={k}, sigma_k={float(pairs.values[-1]):.2f}, tol={tol:g}",
                "method": "block" if method == "block" else "ARPACK",
                "n": n,
                "dtype": dtype,
                "backend": K.explain("product", t=16).backend,
                "passes": pairs.passes,
                "passes_ratio": round(found["lanczos"].passes / pairs.passes, 2),
                "seconds": best[method],
                "speedup": round(best["lanczos"] / best[method], 2),
                "residual": float(np.linalg.norm(R, axis=0).max() / np.abs(pairs.values).max()),
                "peak_mb": peak[method] / 1e6,
            }
        )
    return table


def fit_memory(n: int) -> dict[str, Any]:
    """Return time and peak memory of a diffusion map on n float32 points; the matrix would take 4 n^2 bytes."""
    X = np.random.default_rng(0).normal(size=(n, 2)).astype(np.float32)
    fit = DiffusionMap(Gaussian(0.4), 16, random_state=0, tol=1e-4).fit
    fit(X[:1000])
    tracemalloc.start()
    start = time.perf_counter()
    fitted = fit(X)
    seconds = time.perf_counter() - start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "case": "DiffusionMap.fit, r=16, d=2",
        "method": "block",
        "n": n,
        "dtype": "float32",
        "backend": fitted.backend_,
        "seconds": seconds,
        "peak_mb": peak / 1e6,
        "matrix_mb": 4 * n * n / 1e6,
    }
