"""Generators on real images at their defaults: Sinkhorn, MMD and drifting on animals28, beside Gaussians.

``GPUKOOP_BENCH_ANIMALS`` is the path of ``animals28.npz`` (``../shared/data`` by default), ``GPUKOOP_BENCH_IMAGES_STEPS`` the steps of
one run; 4,800 take ten minutes of one core.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

import gpukoop as gk
from gpukoop import metrics

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("GPUKOOP_BENCH_ANIMALS", HERE.parents[1] / "shared/data/animals28.npz"))
STEPS = int(os.environ.get("GPUKOOP_BENCH_IMAGES_STEPS", "4800"))
TITLE = (
    "animals28: 8,000 images to learn from, 2,000 held out. Frechet distance (classifier trained on the real set; random convolutions) "
    "and kernel distance of 2,000 samples to the held-out, share of the classes asked for, nearest-neighbour ratio (below .8 is memory)"
)
SAMPLES, PCA = 2_000, 64
COMMON = {"latent_dim": 32}  # as "gpukoop train" has it; all else is the default
RUNS: dict[str, dict[str, Any]] = {
    "MMD": {"objective": "mmd"},
    "energy distance": {"objective": "energy"},
    "Sinkhorn": {"objective": "sinkhorn"},
    "drifting": {"objective": "drift"},
}


class Task:
    """The data, the features that score, and the scores."""

    def __init__(self) -> None:
        X, self.y = gk.datasets.images(DATA, return_labels=True)
        self.X = X.astype(np.float32) / 255
        order = np.random.default_rng(0).permutation(len(X))
        self.train, self.test = order[:-SAMPLES], order[-SAMPLES:]
        self.classifier = metrics.ClassifierFeatures().fit(self.X[self.train], self.y[self.train])
        self.convolutions = metrics.RandomConvolutions().fit(self.X[self.train])
        self.rows = self.X[self.train].reshape(len(self.train), -1)
        self.centre = self.rows.mean(axis=0)
        self.axes = np.linalg.svd(self.rows - self.centre, full_matrices=False)[2][:PCA].T
        self.near = self._nearest(self.X[self.test])

    def _nearest(self, Z: np.ndarray) -> float:
        """Return the median distance to the nearest training image, of 500."""
        return float(
            np.median(cdist(Z[:: len(Z) // 500].reshape(-1, self.rows.shape[1]), self.rows).min(1))
        )

    def score(self, Z: np.ndarray, asked: np.ndarray | None = None) -> dict[str, Any]:
        """Return the columns of a row."""
        held = self.X[self.test]
        kid = metrics.kernel_distance(Z, held, self.convolutions)
        right = None if asked is None else float((self.classifier.predict(Z) == asked).mean())
        return {
            "FD classifier": round(metrics.frechet_distance(Z, held, self.classifier), 2),
            "FD convolutions": round(metrics.frechet_distance(Z, held, self.convolutions), 4),
            "KID": f"{kid.value:.2g} +- {kid.error:.1g}",
            "classes": right,
            "nearest": round(self._nearest(Z) / self.near, 2),
        }

    def references(self) -> list[dict[str, Any]]:
        """Return the rows of real images, Gaussians and a mixture."""
        from sklearn.mixture import GaussianMixture

        rng = np.random.default_rng(1)
        P, labels = (self.rows - self.centre) @ self.axes, self.y[self.train]
        asked = np.repeat(np.unique(labels), SAMPLES // len(np.unique(labels)))
        drawn = np.concatenate(
            [
                rng.multivariate_normal(
                    P[labels == c].mean(0), np.cov(P[labels == c].T), (asked == c).sum()
                )
                for c in np.unique(labels)
            ]
        )
        mixed = (
            GaussianMixture(50, covariance_type="diag", random_state=0).fit(P).sample(SAMPLES)[0]
        )
        back = lambda p: (p @ self.axes.T + self.centre).reshape(-1, *self.X.shape[1:])
        some = self.train[:SAMPLES]
        return [
            {"who": "real images", **self.score(self.X[some], self.y[some])},
            {"who": f"Gaussian per class, PCA-{PCA}", **self.score(back(drawn), asked)},
            {"who": f"mixture of 50, PCA-{PCA}", **self.score(back(mixed))},
        ]

    def run(
        self, who: str, n_iter: int, *, labels: bool = True, seed: int = 0
    ) -> tuple[dict[str, Any], Any]:
        """Train for so many steps; return the row and the generator.

        Without labels a generator draws all classes alike; the features in which it is trained are still those of a classifier, as
        ``gpukoop train --no-labels`` has it.
        """
        import torch

        X, y = self.X[self.train], self.y[self.train]
        given = COMMON | RUNS[who] | {"random_state": seed, "n_iter": n_iter}
        start, wall = time.process_time(), time.perf_counter()
        g = gk.Generator(**given, conditional=labels).fit(X, y)
        spent = time.process_time() - start, time.perf_counter() - wall
        asked = np.repeat(g.classes_, SAMPLES // len(g.classes_)) if labels else None
        row = {
            "who": who + ("" if labels else ", no labels"),
            **self.score(g.sample(SAMPLES, asked), asked),
            "steps": n_iter,
            "CPU s": round(spent[0]),
            "wall s": round(spent[1]),
            "seed": seed,
            "threads": torch.get_num_threads(),
        }
        return row, g


def kernel_rows(
    task: Task, seconds: float, which: tuple[str, ...] = ()
) -> Iterator[dict[str, Any]]:
    """Yield what makes the MMD and drifting work: kernels, features and persistence, all with the same processor seconds.

    Scales are in median distances within a class. So many steps are taken as a step of the kind has time for: rates fall to their end.
    """
    from gpukoop.generators.features import named_features
    from gpukoop.generators.samples import within
    from gpukoop.scales import median_scale

    X, y = task.X[task.train], task.y[task.train]
    median = median_scale(within(task.rows, y), 1) * float(np.sqrt(2 * np.log(2)))
    phi = named_features("classifier", task.rows, y, X.shape[1:], 0)
    ways: dict[str, dict[str, Any]] = {
        "pixels, one narrow scale (.1)": {"features": None, "scale": 0.1 * median},
        "pixels, one wide scale (1)": {"features": None, "scale": median},
        "pixels, mixture": {"features": None},
        "features, one narrow scale (.1)": {"scale": 0.1 * median},
        "features, one wide scale (1)": {"scale": median},
        "features, mixture (default)": {},
        "features, mixture, persistence 4": {"persistence": 4},
    }
    for way, own in ways.items():
        for objective in ("mmd", "drift"):
            if which and f"{way} {objective}" not in which:
                continue
            given = {"objective": objective, "features": phi, "random_state": 0}
            given = COMMON | given | own | {"validation_fraction": 0.0, "batch_size": 128}
            clocks: list[float] = []
            look = lambda *_, clocks=clocks: clocks.append(time.process_time())
            gk.Generator(**given, n_iter=12).fit(X, y, callback=look)
            n = max(8, int(seconds / np.median(np.diff(clocks))))
            spent, g = _spent(given, n, X, y)
            asked = np.repeat(g.classes_, SAMPLES // len(g.classes_))
            facts = {"kernel": way, "objective": objective, "steps": n, "CPU s": round(spent)}
            yield facts | task.score(g.sample(SAMPLES, asked), asked)


def _spent(given: dict[str, Any], n: int, X: np.ndarray, y: np.ndarray) -> tuple[float, Any]:
    """Return processor seconds of n steps, and the generator."""
    start = time.process_time()
    g = gk.Generator(**given, n_iter=n).fit(X, y)
    return time.process_time() - start, g


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Return the table; without the data or PyTorch one row that says so."""
    try:
        import torch  # noqa: F401
    except ImportError:
        return [{"who": "PyTorch is not installed"}]
    if not DATA.is_file():
        return [{"who": f"{DATA} is not there"}]
    task = Task()
    table = [{"who": "classifier", "classes": task.classifier.accuracy_}, *task.references()]
    for who in list(RUNS)[:1] if quick else RUNS:
        for labels in (True,) if quick else (True, False):
            table.append(task.run(who, 10 if quick else STEPS, labels=labels)[0])
    return table


def failures(table: list[dict[str, Any]]) -> list[str]:
    """Return the runs farther than half a Gaussian per class from real images, or nearer to the training images than .8."""
    bar = next((r for r in table if r["who"].startswith("Gaussian per class")), None)
    broken = []
    for row in table if bar is not None else []:
        if "steps" not in row:
            continue
        for column in ("FD classifier", "FD convolutions"):
            if row[column] > bar[column] / 2:
                broken.append(f"{row['who']}: {column} {row[column]}, expected {bar[column] / 2}")
        if row["nearest"] < 0.8:
            broken.append(f"{row['who']}: nearest-neighbour ratio {row['nearest']}, expected .8")
    return broken
