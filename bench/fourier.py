"""Near-linear sums beside our own exact ones: time, error, memory, growth; and the error bar of slices."""

from __future__ import annotations

import math
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil

import gpukoop as gk
from gpukoop.arrays import Array
from gpukoop.kernels.fourier import nufft as fourier_plans
from gpukoop.kernels.fourier.check import exact
from gpukoop.kernels.fourier.memory import Memory
from gpukoop.kernels.operation import PRODUCT, VALUE_AND_GRADIENT

TITLE = "Near-linear sums: Fourier for d = 2, 3 beside exact numba-cpu, slices for d = 10 (float32)"

TOL = 1e-4
REPEATS = 5
CHECKED, RIM = 64, 32
WHAT = {"product": "product", "value_and_gradient": "value and gradient"}


def rows(quick: bool) -> list[dict[str, Any]]:
    """Return one row a claim; ``ratio`` is to the exact sum of the same run, extrapolated from fewer points."""
    n, base = (100_000, 20_000) if quick else (1_000_000, 100_000)
    table = []
    for d, scale in ((2, 0.5), (3, 0.5), (2, 0.1), (3, 0.1)):
        if quick and scale == 0.1 and d == 3:
            continue
        peer = {op: exact_seconds(base, d, scale, op) for op in WHAT}
        for op in WHAT:
            table.append(fourier_row(n, d, scale, op, peer[op] * (n / base) ** 2, base))
    fourier_plans.release()
    table += growth_rows(quick)
    fourier_plans.release()
    table.append(sliced_row(4_000 if quick else 100_000, 3 if quick else 10))
    return table


def clouds(n: int, d: int, seed: int = 0) -> tuple[Array, Array, Array]:
    """Return targets, sources and weights of both signs, unit variance."""
    rng = np.random.default_rng(seed)
    X, Y, v = rng.normal(size=(n, d)), rng.normal(size=(n, d)), rng.normal(size=n)
    return X.astype(np.float32), Y.astype(np.float32), v.astype(np.float32)


def call(K: Any, op: str, v: Array) -> Any:
    """Return the reduction."""
    return K @ v if op == "product" else getattr(K, op)(v)


def best(f: Callable[[], Any], repeats: int = REPEATS) -> tuple[float, float, float]:
    """Return seconds of the first call, of the best later one, and processor seconds of the latter."""
    spans, work = [], []
    for _ in range(repeats + 1):
        clock, cpu = time.perf_counter(), time.process_time()
        f()
        spans.append(time.perf_counter() - clock)
        work.append(time.process_time() - cpu)
    i = 1 + int(np.argmin(spans[1:]))
    return spans[0], spans[i], min(work[1:])


def exact_seconds(n: int, d: int, scale: float, op: str) -> float:
    """Return the best time of the exact compiled sum."""
    X, Y, v = clouds(n, d)
    K = gk.Gaussian(scale)(X, Y, backend="numba-cpu")
    return best(lambda: call(K, op, v), 2)[1]


class PeakMemory:
    """Megabytes by which this process grows inside a ``with`` block, sampled every 2 ms."""

    def __enter__(self) -> PeakMemory:
        self.process, self.stop = psutil.Process(), threading.Event()
        self.start = self.peak = self.process.memory_info().rss
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.stop.wait(0.002):
            self.peak = max(self.peak, self.process.memory_info().rss)

    def __exit__(self, *error: object) -> None:
        self.stop.set()
        self.thread.join()
        self.megabytes = (self.peak - self.start) / 1e6


def relative_error(K: Any, got: Any, v: Array) -> float:
    """Return the largest error relative to sum |v| k over random rows and the rows at the rim."""
    value, slope = got if isinstance(got, tuple) else (got, None)
    rows = np.random.default_rng(9).choice(len(K.X), CHECKED, replace=False)
    rows = np.union1d(rows, np.argsort((K.X**2).sum(axis=1))[-RIM:])
    X, V = K.X[rows], v[:, None]
    true, steep = exact(K.kernel, VALUE_AND_GRADIENT, X, K.Y, V)
    density = exact(K.kernel, PRODUCT, X, K.Y, np.abs(V))[:, 0]
    error = np.abs(value[rows] - true[:, 0]) / density
    if slope is not None:
        scale = float(K.kernel.scale)
        error = np.maximum(error, np.abs(slope[rows] - steep[:, 0]).max(axis=1) * scale / density)
    return float(error.max())


def fourier_row(n: int, d: int, scale: float, op: str, peer: float, base: int) -> dict[str, Any]:
    """Return time, error and memory of one reduction with a new operator each time, as in a flow."""
    X, Y, v = clouds(n, d)
    kernel = gk.Gaussian(scale)
    fourier_plans.release()

    def once() -> Any:
        K = kernel(X, Y, backend="fourier", tol=TOL)
        return K, call(K, op, v)

    with PeakMemory() as memory:
        first, seconds, cpu = best(once)
    K, got = once()
    return {
        "what": f"{WHAT[op]}, d = {d}, scale {scale:g}, tol {TOL:g}",
        "n = m": n,
        "first s": first,
        "seconds": seconds,
        "cpu s": cpu,
        "exact numba-cpu s": peer,
        "exact from n": base,
        "ratio": peer / seconds,
        "error": relative_error(K, got, v),
        "estimate": K.error_estimate_,
        "memory MB": memory.megabytes,
    }


def growth_rows(quick: bool) -> list[dict[str, Any]]:
    """Return processor seconds of growing clouds and the exponent of their growth."""
    sizes = [25_000, 100_000] if quick else [100_000, 1_000_000, 4_000_000]
    table = []
    for d in (2, 3):
        work = []
        for n in sizes:
            X, Y, v = clouds(n, d)
            kernel = gk.Gaussian(0.5)

            def once(kernel: Any = kernel, X: Any = X, Y: Any = Y, v: Any = v) -> Any:
                return kernel(X, Y, backend="fourier", tol=TOL) @ v

            work.append(best(once, 4)[1:])
        exponents = [
            math.log(work[-1][i] / work[0][i]) / math.log(sizes[-1] / sizes[0]) for i in (0, 1)
        ]
        table.append(
            {
                "what": f"growth of the product, d = {d}, scale 0.5, tol {TOL:g}",
                "n = m": f"{sizes[0]} .. {sizes[-1]}",
                "seconds": work[-1][0],
                "cpu s": work[-1][1],
                "exponent": exponents[0],
                "exponent of cpu s": exponents[1],
            }
        )
    return table


def sliced_row(n: int, seeds: int) -> dict[str, Any]:
    """Return in how many seeds the error bar of a sliced product covers the error of the worst checked row."""
    covered, spans, errors, bars = 0, [], [], []
    for seed in range(seeds):
        X, _, v = clouds(n, 10, seed)
        K = gk.Gaussian(3.0)(X, backend="fourier", tol=0.05)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            clock = time.perf_counter()
            got = K @ v
            spans.append(time.perf_counter() - clock)
        errors.append(relative_error(K, got, v))
        bars.append(float(K.error_estimate_ or 0.0))
        covered += errors[-1] <= bars[-1]
    return {
        "what": f"sliced product, d = 10, scale 3: bar covers in {covered} of {seeds} seeds",
        "n = m": n,
        "seconds": min(spans),
        "error": float(np.median(errors)),
        "estimate": float(np.median(bars)),
        "directions": K.clouds.memory(Memory).n_directions,
    }
