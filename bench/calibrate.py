"""Measure the cost constants of the backends and rewrite them where they stand.

    python -m bench.calibrate [BACKEND ...] [--device cuda] [--dry-run]

Each usable backend is timed on a grid of (n, d, t); a non-negative least squares fit gives seconds a pair, a feature and
a column, and ratios at d = 3 give the factors of gradients, log-sum-exp and float64: ``gpukoop/backends.py``. Fourier sums
are timed on clouds and scales that weigh points, stencils and modes differently: ``kernels/fourier/cost.py``. ``--device cuda``
measures a device alone: its backend, the rates of one and two clouds (``kernels/cuda/pairs/rates.py``), of copies, and, where
cuFINUFFT loads, of Fourier sums. What this machine cannot run is left as it is, and its origin stays in the comment.
"""

from __future__ import annotations

import argparse
import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

import gpukoop as gk
from bench.__main__ import machine
from gpukoop.arrays import to_host
from gpukoop.backends import BACKENDS, RATES
from gpukoop.kernels.cuda.pairs import rates as device_cost
from gpukoop.kernels.cuda.pairs.rates import Rates
from gpukoop.kernels.fourier import cost as fourier_cost
from gpukoop.kernels.fourier.cost import FourierRate
from gpukoop.kernels.fourier.devices import library
from gpukoop.kernels.fourier.memory import Memory
from gpukoop.kernels.operation import PRODUCT

TABLE = Path(gk.__file__).parent / "backends.py"
FOURIER = Path(fourier_cost.__file__)
DEVICE = Path(device_cost.__file__)
# (features, columns) of the fit; pairs are chosen per backend so that a call takes some 50 ms.
# Points, dimensions, scale, tolerance and dtype of the Fourier sums: many points on few modes, few on many.
FOURIER_GRID = (
    (2_000, 2, 0.5, 1e-5, "float32"),
    (1_000_000, 2, 0.5, 1e-3, "float32"),
    (1_000_000, 2, 0.5, 1e-5, "float32"),
    (300_000, 2, 0.1, 1e-5, "float32"),
    (300_000, 2, 0.02, 1e-5, "float32"),
    (1_000_000, 3, 0.5, 1e-3, "float32"),
    (1_000_000, 3, 0.5, 1e-5, "float32"),
    (100_000, 3, 0.2, 1e-5, "float32"),
    (100_000, 3, 0.12, 1e-5, "float32"),
    (300_000, 2, 0.3, 1e-7, "float64"),
    (100_000, 3, 0.5, 1e-7, "float64"),
)
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


def fit_fourier(xp: Any = np) -> FourierRate:
    """Return the rates of Fourier sums where arrays of ``xp`` are, each timed with a new cloud as a step of a flow sees it."""
    exact = RATES["numba-cpu" if xp is np else "numba-cuda"]
    rate = fourier_cost.rate_of("cpu" if xp is np else "cuda")
    pair = exact.pair + 3 * exact.feature
    rows, times = [], []
    for n, d, scale, tol, dtype in FOURIER_GRID:
        rng = np.random.default_rng(0)
        X = xp.asarray(rng.standard_normal((n, d)).astype(dtype))
        v = xp.asarray(rng.standard_normal((n, 1)).astype(dtype))
        kernel = gk.Gaussian(scale)
        accuracy = fourier_cost.density_accuracy(tol, fourier_cost.TYPICAL_DENSITY)
        boxes = Memory().candidates(kernel, X, X, tol)
        found = fourier_cost.choose(kernel, boxes, n, n, accuracy, tol, False, rate)
        if found is None:
            raise RuntimeError(f"no Fourier grid for {FOURIER_GRID}: the design is wrong")
        box, grid = found
        units = np.eye(5)
        cost = [
            fourier_cost.seconds(
                grid, box, n, n, d, 1, PRODUCT, tol, dtype, FourierRate(*unit, float64=1.0)
            )
            for unit in units
        ]
        best = np.inf
        for _ in range(4):
            K = kernel(X.copy(), backend="fourier", tol=tol)
            begin = time.perf_counter()
            to_host(K @ v)  # waits for a device
            best = min(best, time.perf_counter() - begin)
        rows.append(cost)
        times.append(best)
    design, seconds_ = np.array(rows), np.array(times)
    single = np.array([dtype == "float32" for *_, dtype in FOURIER_GRID])
    rest = np.maximum(seconds_ - pair * design[:, 4], 0.1 * seconds_)
    linear = design[single, :4] / seconds_[single, None]
    found_, _ = nnls(linear, rest[single] / seconds_[single])
    expected = design[~single, 1:4] @ found_[1:]
    double = float(np.median((rest[~single] - found_[0]) / expected))
    for case, measured, predicted in zip(
        np.array(FOURIER_GRID, object)[single],
        seconds_[single],
        design[single, :4] @ found_,
        strict=True,
    ):
        print(f"  {case}: {measured:.3f} s, the model says {predicted:.3f} s")
    return FourierRate(*(float(x) for x in found_), pair, max(1.0, double))


def rewrite_fourier(rate: FourierRate, where: dict[str, Any]) -> str:
    """Return the text of ``cost.py`` with a new rate and its origin."""
    numbers = ", ".join(f"{k}={v:.2g}" for k, v in asdict(rate).items())
    origin = f"# Measured by bench/calibrate.py, {where['date']}: {where['machine']}, shared with other jobs."
    text = FOURIER.read_text()
    return re.sub(
        r"^# .*\nRATE = FourierRate\(.*\)$",
        lambda _: f"{origin}\nRATE = FourierRate({numbers})",
        text,
        count=1,
        flags=re.MULTILINE,
    )


def with_device_fourier(text: str, rate: FourierRate, stamp: str) -> str:
    """Return the text of ``cost.py`` with new rates of a device and their origin."""
    numbers = ", ".join(f"{k}={v:.2g}" for k, v in asdict(rate).items())
    line = f"# Of a device, measured: {stamp}. Rewritten by bench/calibrate.py --device cuda."
    return re.sub(
        r"^# Of a device.*\nDEVICE_RATE = .*$",
        lambda _: f"{line}\nDEVICE_RATE = FourierRate({numbers})",
        text,
        flags=re.MULTILINE,
    )


def device_rates(n: int = 200_000) -> Rates:
    """Return pairs a second of products of two clouds and of one, d = 3 in float32, in launches that follow each other."""
    import cupy

    rng = np.random.default_rng(0)
    X, Y = (cupy.asarray(rng.standard_normal((n, 3)).astype("float32")) for _ in range(2))
    v = cupy.asarray(rng.standard_normal(n).astype("float32"))
    found = []
    for points in ((X, Y), (X,)):
        K = gk.Gaussian(1.0)(*points, backend="numba-cuda")
        K @ v
        best = np.inf
        for _ in range(5):
            cupy.cuda.get_current_stream().synchronize()
            begin = time.perf_counter()
            for _ in range(10):
                K @ v
            cupy.cuda.get_current_stream().synchronize()
            best = min(best, (time.perf_counter() - begin) / 10)
        found.append(n**2 / best)
    return Rates(*found)


def copy_rate(size: int = 2**28) -> float:
    """Return bytes a second to the device and back, of an array that no driver knows."""
    import cupy

    values, best = np.ones(size // 4, np.float32), np.inf
    for _ in range(5):
        begin = time.perf_counter()
        cupy.asarray(values).get()
        best = min(best, time.perf_counter() - begin)
    return 2 * size / best


def rewritten(text: str, rates: Rates, stamp: str) -> str:
    """Return the text of ``kernels/cuda/pairs/rates.py`` with new rates and their origin."""
    origin = f"# Measured, in calls that follow each other: {stamp}. Rewritten by bench/calibrate.py --device cuda."
    return re.sub(
        r"^# Measured.*\nRATES = .*$",
        lambda _: f"{origin}\nRATES = Rates(apart={rates.apart:.3g}, once={rates.once:.3g})",
        text,
        flags=re.MULTILINE,
    )


def with_copy_rate(text: str, rate: float, stamp: str) -> str:
    """Return the text of ``backends.py`` with a new rate of copies and its origin."""
    return re.sub(
        r"^# Host to device and back.*\nCOPY_RATE = .*$",
        lambda _: (
            f"# Host to device and back, bytes a second; measured: {stamp}.\nCOPY_RATE = {rate:.2g}"
        ),
        text,
        flags=re.MULTILINE,
    )


def main() -> int:
    """Parse the command line, measure, and rewrite the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.calibrate", description=__doc__)
    names = [*SIZES, "fourier"]
    parser.add_argument("backends", nargs="*", metavar="BACKEND", help=", ".join(names))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dry-run", action="store_true", help="print the rows, change nothing")
    arguments = parser.parse_args()
    text = TABLE.read_text()
    where = machine()
    if arguments.device == "cuda":
        names = ["numba-cuda"]
        reason = BACKENDS["numba-cuda"].missing()
        if reason is not None:
            print(f"cuda: left as it is, {reason}")
            return 1
        import cupy

        card = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
        stamp = f"{card}, {where['date']}"
        rates, rate = device_rates(), copy_rate()
        print(rates, f"copies {rate:.3g} bytes/s", flush=True)
        text = with_copy_rate(text, rate, stamp)
        if not arguments.dry_run:
            DEVICE.write_text(rewritten(DEVICE.read_text(), rates, stamp))
        found = library()
        if isinstance(found, str):
            print(f"fourier on a device: left as it is, {found}")
        else:
            fourier = fit_fourier(cupy)
            print(fourier, flush=True)
            if not arguments.dry_run:
                FOURIER.write_text(with_device_fourier(FOURIER.read_text(), fourier, stamp))
    for name in arguments.backends or names:
        reason = BACKENDS[name].missing()
        if reason is not None:
            print(f"{name}: left as it is, {reason}")
            continue
        if name == "fourier":
            rate = fit_fourier()
            print(rate, flush=True)
            if not arguments.dry_run:
                FOURIER.write_text(rewrite_fourier(rate, where))
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
