"""One-step Koopman sampling against integrating the same empirical field: time, quality and memory side by side.

Rows are dictionaries; ``python -m bench`` collects them. Times are of the second call (the first compiles), on the machine that
runs it; ratios are of one run.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.integrate import solve_ivp

import gpukoop as gk
from gpukoop import datasets, metrics
from gpukoop.operator import median_scale
from gpukoop.sampler import EmpiricalTeacher, integrate

TITLE = "Koopman sampling: one step beside 100 Euler steps and SciPy's RK45 of the same empirical field (float64)"
STOP = 1e-3  # of the empirical field, which is singular at t = 1
N_DATA = 5_000
STREAM = """
import resource, sys, time
import gpukoop as gk
n, features = int(sys.argv[1]), int(sys.argv[2])
X = gk.datasets.eight_gaussians(n, random_state=0)
start = time.perf_counter()
sampler = gk.KoopmanSampler(n_features=features, n_triples=n, distill=0, random_state=0).fit(X)
seconds = time.perf_counter() - start
print(sampler.n_features_lifted_, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
QUALITY_POINTS = 10_000


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def sampling_rows(quick: bool) -> list[dict[str, Any]]:
    """10^5 samples in the plane (5,000 if quick): one step, 100 Euler steps, adaptive RK45, from 5,000 points."""
    n = 5_000 if quick else 100_000
    X = datasets.checkerboard(N_DATA, random_state=0)
    truth = datasets.checkerboard(QUALITY_POINTS, random_state=1)
    kernel = gk.Gaussian(median_scale(truth[:2000]))
    Z = np.random.default_rng(2).standard_normal((n, 2))
    teacher = EmpiricalTeacher(X, last=STOP)
    sampler, fit = timed(
        lambda: gk.KoopmanSampler(n_features=300 if quick else 1000, random_state=0).fit(X)
    )
    sampler.transport(Z[:1000])
    teacher.velocity(Z[:100], 0.5)
    calls = 0

    def field(t: float, y: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        return np.asarray(teacher.velocity(y.reshape(n, 2), t)).ravel()

    results = {
        "one step": timed(lambda: sampler.transport(Z)),
        "euler 100": timed(
            lambda: integrate(teacher, Z, [0.0, 1.0 - STOP], n_steps=100, method="euler")[-1]
        ),
        "rk45": timed(
            lambda: (
                solve_ivp(field, (0.0, 1.0 - STOP), Z.ravel(), method="RK45").y[:, -1].reshape(n, 2)
            )
        ),
    }
    far = metrics.mmd(Z[:QUALITY_POINTS], truth, kernel)
    one = results["one step"][1]
    rows = []
    for name, (samples, seconds) in results.items():
        rows.append(
            {
                "bench": "koopman sampling",
                "method": name,
                "n": n,
                "data": N_DATA,
                "backend": sampler.backend_,
                "seconds": seconds,
                "times_one_step": seconds / one,
                "mmd_over_noise": metrics.mmd(samples[:QUALITY_POINTS], truth, kernel) / far,
                "evaluations": {"one step": 1, "euler 100": 100, "rk45": calls}[name],
                "fit_seconds": fit if name == "one step" else 0.0,
            }
        )
    floor = datasets.checkerboard(min(n, QUALITY_POINTS), random_state=3)
    rows.append(
        {
            "bench": "koopman sampling",
            "method": "independent draws (floor)",
            "n": n,
            "mmd_over_noise": metrics.mmd(floor, truth, kernel) / far,
        }
    )
    return rows


def streaming_rows(quick: bool) -> list[dict[str, Any]]:
    """A fit on 10^6 points (10^5 if quick): time and peak memory of the whole process."""
    n, features = (100_000, 40) if quick else (1_000_000, 200)
    # A process of its own: the peak of this one belongs to whatever ran before.
    done = subprocess.run(
        [sys.executable, "-c", STREAM, str(n), str(features)],
        capture_output=True,
        text=True,
        check=True,
    )
    lifted, seconds, peak = done.stdout.split()
    return [
        {
            "bench": "koopman fit",
            "n": n,
            "features": int(lifted),
            "seconds": float(seconds),
            "peak_mb": float(peak),
        }
    ]


def rows(quick: bool) -> list[dict[str, Any]]:
    """Return all rows; ``quick`` takes sizes that fit a test."""
    return streaming_rows(quick) + sampling_rows(quick)


if __name__ == "__main__":
    for row in rows("--quick" in sys.argv):
        print(
            ", ".join(
                f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()
            )
        )
