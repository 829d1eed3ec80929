"""Domain adaptation: labels carried from one labelled set to another by a flow and by a generator that follows it.

400 labelled digits, 400 unlabelled ones of the other rendering to flow to, 400 others to score; ``GPUKOOP_BENCH_MNIST`` and
``GPUKOOP_BENCH_USPS`` may name image files with labels (resized to the smaller side).
"""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
from sklearn.neighbors import KNeighborsClassifier

import gpukoop as gk
from gpukoop import datasets

TITLE = "Domain adaptation: accuracy of the nearest labelled neighbour among moved points, against steps"
STEPS = (1, 2, 5, 10, 20)


def accuracy(Z: np.ndarray, labels: np.ndarray, B: np.ndarray, truth: np.ndarray) -> float:
    """Return how many of B are classified rightly by their nearest neighbour in Z."""
    return float(KNeighborsClassifier(1).fit(Z, labels).score(B, truth))


def digits(n: int, seed: int) -> tuple[np.ndarray, ...]:
    """Return labelled digits, and those of the other rendering with their labels, twice n."""
    A, labels = datasets.digits(n, random_state=seed, return_labels=True)
    B, truth = datasets.digits(
        2 * n, random_state=100 + seed, rendering="target", return_labels=True
    )
    return A, labels, B, truth


def from_files(n: int, seed: int) -> tuple[np.ndarray, ...] | None:
    """Return MNIST and USPS, if both are given, at the smaller side of the two."""
    paths = [os.environ.get(f"GPUKOOP_BENCH_{name}") for name in ("MNIST", "USPS")]
    if not all(paths):
        return None
    from scipy.ndimage import zoom

    sets = [datasets.images(str(path), return_labels=True) for path in paths]
    side = min(X.shape[1] for X, _ in sets)
    rng, out = np.random.default_rng(seed), []
    for (X, y), size in zip(sets, (n, 2 * n), strict=True):
        rows = rng.permutation(len(X))[:size]
        small = [zoom(x.astype(float) / x.max(), side / len(x), order=1) for x in X[rows]]
        out += [np.stack(small).reshape(size, -1), y[rows]]
    return tuple(out)


def row(name: str, way: str, data: tuple[np.ndarray, ...], flow: Any) -> dict[str, Any]:
    """Return accuracies before the first step and after those of ``STEPS``."""
    A, labels, B, truth = data
    n = len(A)
    seen = {0: accuracy(A, labels, B[n:], truth[n:])}

    def look(i: int, Z: Any) -> None:
        if i + 1 in STEPS:
            seen[i + 1] = accuracy(np.asarray(Z), labels, B[n:], truth[n:])

    start = time.process_time()
    flow.fit(B[:n], **({} if flow.generator is None else {"source": A[:2]}))
    flow.transport(A, max(STEPS), look)
    return {
        "sets": name,
        "who moves": way,
        **{f"step {k}": round(v, 3) for k, v in seen.items()},
        "within the target": round(accuracy(B[:n], truth[:n], B[n:], truth[n:]), 3),
        "CPU s": round(time.process_time() - start, 1),
    }


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Return a row a pair of sets, seed and way."""
    n = 100 if quick else 400
    table = []
    for seed in range(1 if quick else 3):
        sets = {"digits to their other rendering": digits(n, seed)}
        files = from_files(n, seed)
        if files is not None:
            sets["MNIST to USPS"] = files
        for name, data in sets.items():
            ways = {
                "particles, exact": None,
                "random features": gk.maps.RandomFeatureMap(256, reg=1e-4, random_state=0),
            }
            for way, generator in ways.items():
                flow = gk.WassersteinFlow(
                    "exact",
                    step_size=0.5,
                    n_iter=1,
                    generator=generator,
                    persistence=float("inf") if generator is not None else 1,
                    random_state=0,
                )
                table.append(row(f"{name}, seed {seed}", way, data, flow))
    return table
