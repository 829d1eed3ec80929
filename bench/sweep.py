"""Throughput of a float32 Gaussian product against the number of points and of features; drawn as throughput.png."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.cpu_throughput import PEERS, interleaved, ours

TITLE = "Throughput against n and d: float32 Gaussian product, n = m, best of three in turn"
SIZES = (1_000, 3_000, 10_000, 30_000, 100_000)
FEATURES = (1, 2, 3, 5, 10, 30, 100)
# KeOps and NumPy take minutes beyond these many pairs, and their rates have long been flat.
PEER_PAIRS = 2 * 10**9
KEOPS_FEATURES = (2, 3, 10, 100)  # each is a formula to compile; those of the main table


def rows(quick: bool) -> list[dict[str, Any]]:
    """Return one row a point of the sweep and library."""
    cases = [("n", n, 3) for n in SIZES] + [("d", 10_000, d) for d in FEATURES]
    if quick:
        cases = cases[:2]
    table = []
    for sweep, n, d in cases:
        rng = np.random.default_rng(0)
        X, Y = (rng.standard_normal((n, d)).astype(np.float32) for _ in range(2))
        v = rng.standard_normal((n, 1)).astype(np.float32)
        scale = float(np.sqrt(d))
        runs = {"gpukoop": ours("product", scale, X, Y, v)}
        for name in ("numpy", "keops"):
            if n * n <= PEER_PAIRS and (name == "numpy" or d in KEOPS_FEATURES):
                try:
                    runs[name] = PEERS[name]("product", scale, X, Y, v)
                except ImportError:
                    continue
        for run in runs.values():
            run()
        for name, seconds in interleaved(runs, 3).items():
            table.append(
                {
                    "sweep": sweep,
                    "n": n,
                    "d": d,
                    "who": name,
                    "s": seconds,
                    "Gpairs/s": n * n / seconds / 1e9,
                }
            )
    return table
