"""KSWGD: fit, one step and a whole run, with end states beside iid floors."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

import gpukoop as gk
from gpukoop import datasets, metrics
from gpukoop.cli.demo import outside_wells

TITLE = "KSWGD on the quadruple well (float32, 64 modes, 1,000 landmarks, LAWGD time 8)"


def rows(quick: bool) -> list[dict[str, Any]]:
    """Return one row a size: seconds of fit, step and run, and the end state."""
    known = datasets.exact("quadruple_well")
    reference, _ = datasets.quadruple_well(10_000, random_state=99, independent=True)
    table = []
    for m, n in (
        ((10_000, 3_000),) if quick else ((10_000, 3_000), (100_000, 20_000), (100_000, 100_000))
    ):
        X, _ = datasets.quadruple_well(m, random_state=0, independent=True)
        X = X.astype(np.float32)
        flow = gk.KSWGD(n_landmarks=1_000, random_state=0, step_size=0.1)
        fit = _seconds(lambda flow=flow, X=X: flow.fit(X))
        start = outside_wells(n, np.random.default_rng(1)).astype(np.float32)
        flow.transport(start[:1_000], n_iter=1)
        step = min(
            _seconds(lambda flow=flow, Z=start: flow.transport(Z, n_iter=1)) for _ in range(3)
        )
        begin = time.perf_counter()
        Z = flow.transport(start)
        took = time.perf_counter() - begin
        floor = metrics.iid_floor(
            lambda A, B: metrics.mmd(A, B),
            lambda k, random_state: datasets.quadruple_well(
                k, random_state=random_state, independent=True
            ),
            n if n <= 20_000 else 20_000,
            n_repeats=3,
            reference=reference,
        )
        table.append(
            {
                "samples": m,
                "particles": n,
                "fit s": fit,
                "step s": step,
                "run s": took,
                "steps": flow.n_iter_,
                "Gpairs/s in a step": 4 * n * 1_000 / step / 1e9,
                "coverage % (exact 38.07)": metrics.coverage(Z, known["centres"], known["radius"]),
                "mean V (exact .8345)": float(datasets.potential("quadruple_well", Z).mean()),
                "MMD": metrics.mmd(Z[:20_000], reference),
                "MMD iid floor": floor[0],
            }
        )
    return table


def _seconds(run: Any) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin
