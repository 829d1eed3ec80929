"""Whole runs on a CUDA device: fits, steps and samples, arrays on the device from first to last.

First calls stand apart: they compile, or link what came with the package. A step is the mean of :data:`STEPS` steps of one
call, which ends with the device idle.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

import gpukoop as gk
from gpukoop import datasets
from gpukoop.backends import BACKENDS

TITLE = "Whole runs on this device (float32, arrays on the device)"
STEPS = 10
DIRECTIONS = 63


def rows(quick: bool) -> list[dict[str, Any]]:
    """Return one row a run, or one row that says why there is none."""
    reason = BACKENDS["numba-cuda"].missing()
    if reason is not None:
        return [{"run": "none", "why": reason}]
    try:
        import cupy
    except ImportError as absent:
        return [{"run": "none", "why": f"{absent} (pip install gpukoop[cuda13])"}]
    k = 100 if quick else 1
    table = [kswgd(cupy, n // k) for n in (10**4, 10**5, 10**6, 10**7)]
    table += [
        flow(cupy, "MMD, pairwise energy", gk.MMDFlow(random_state=0), 10**5 // k, 3),
        flow(
            cupy,
            f"MMD, {DIRECTIONS} directions",
            gk.MMDFlow(n_projections=DIRECTIONS, random_state=0),
            10**6 // k,
            3,
        ),
        flow(
            cupy,
            f"sliced W2, {DIRECTIONS} directions",
            gk.WassersteinFlow("sliced", n_projections=DIRECTIONS, random_state=0),
            10**6 // k,
            3,
        ),
        flow(
            cupy,
            "Sinkhorn, debiased",
            gk.WassersteinFlow("sinkhorn", random_state=0),
            10**4 // k,
            2,
        ),
        flow(
            cupy,
            "Sinkhorn, debiased",
            gk.WassersteinFlow("sinkhorn", random_state=0),
            10**5 // k,
            2,
        ),
    ]
    table += [jko(cupy, objective, 1000 // min(k, 5)) for objective in ("kl", "chi2", "js")]
    return [*table, koopman(cupy, 10**6 // k)]


def kswgd(cupy: Any, n: int) -> dict[str, Any]:
    """KSWGD on the quadruple well: 10^4 samples, 1,000 landmarks, n particles."""
    m, landmarks = (10_000, 1_000) if n > 1_000 else (1_000, 100)
    X, _ = datasets.quadruple_well(m, random_state=0, independent=True)
    Xd = cupy.asarray(X.astype(np.float32))
    Z = cupy.asarray(np.random.default_rng(1).normal(size=(n, 2)).astype(np.float32))
    model = gk.KSWGD(n_landmarks=landmarks, random_state=0, step_size=0.1)
    return timed(cupy, f"KSWGD, {landmarks} landmarks", model, Xd, Z)


def flow(cupy: Any, name: str, model: Any, n: int, d: int) -> dict[str, Any]:
    """A flow of n normal particles to n normal samples elsewhere."""
    rng = np.random.default_rng(0)
    X, Z = 0.5 * rng.normal(size=(n, d)) + 1.0, rng.normal(size=(n, d))
    return timed(cupy, name, model, *(cupy.asarray(a.astype(np.float32)) for a in (X, Z)))


def jko(cupy: Any, objective: str, n: int) -> dict[str, Any]:
    """Two JKO steps of an f-divergence."""
    model = gk.JKOFlow(objective, random_state=0)
    return flow(cupy, f"JKO {objective}", model, n, 3)


def timed(cupy: Any, name: str, model: Any, X: Any, Z: Any) -> dict[str, Any]:
    """Return seconds of the first and of a warm fit, of the first step, and of a step among :data:`STEPS`."""
    count = 2 if name.startswith("JKO") else STEPS
    fits = [seconds(cupy, lambda: model.fit(X)) for _ in range(2)]
    first = seconds(cupy, lambda: model.transport(Z, n_iter=1))
    one, several = (seconds(cupy, lambda k=k: model.transport(Z, n_iter=k)) for k in (1, 1 + count))
    return {
        "run": name,
        "samples": len(X),
        "particles": len(Z),
        "first fit s": fits[0],
        "fit s": fits[1],
        "first flow s": first,
        "step ms": (several - one) / count * 1e3,
    }


def koopman(cupy: Any, n: int) -> dict[str, Any]:
    """A Koopman sampler fitted to n points of the plane, and n samples in one step."""
    X = cupy.asarray(datasets.eight_gaussians(n, random_state=0).astype(np.float32))
    features = 1_000 if n > 10**5 else 100
    model = gk.KoopmanSampler(n_features=features, n_triples=n, distill=0, random_state=0)
    fits = [seconds(cupy, lambda: model.fit(X)) for _ in range(2)]
    Z = cupy.asarray(np.random.default_rng(2).normal(size=(n, 2)).astype(np.float32))
    draws = [seconds(cupy, lambda: model.transport(Z)) for _ in range(2)]
    return {
        "run": f"Koopman sampler, {features} features",
        "samples": n,
        "particles": n,
        "first fit s": fits[0],
        "fit s": fits[1],
        "first flow s": draws[0],
        "step ms": draws[1] * 1e3,
    }


def seconds(cupy: Any, run: Callable[[], Any]) -> float:
    """Return the seconds of a call, from an idle device to an idle device."""
    cupy.cuda.Device().synchronize()
    begin = time.perf_counter()
    run()
    cupy.cuda.Device().synchronize()
    return time.perf_counter() - begin
