"""Generators on real images: Sinkhorn, MMD and drifting with a convolutional network on animals28, beside Gaussians.

``GPUKOOP_BENCH_ANIMALS`` is the path of ``animals28.npz`` (``../shared/data`` by default), ``GPUKOOP_BENCH_IMAGES_SECONDS`` the CPU
seconds of training of one run (twenty minutes of two cores are 2,400).
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

import gpukoop as gk
from gpukoop import metrics

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("GPUKOOP_BENCH_ANIMALS", HERE.parents[1] / "shared/data/animals28.npz"))
SECONDS = float(os.environ.get("GPUKOOP_BENCH_IMAGES_SECONDS", "600"))
TITLE = (
    "animals28: 8,000 images to learn from, 2,000 held out. Frechet distance (classifier trained on the real set; random convolutions) "
    "and kernel distance of 2,000 samples to the held-out, share of the classes asked for, nearest-neighbour ratio (below .8 is memory)"
)
SAMPLES, PCA = 2_000, 64
COMMON = {"batch_size": 320, "latent_dim": 32, "learning_rate": 2e-3, "ema_decay": 0.99}
RUNS: dict[str, dict[str, Any]] = {
    "MMD (energy)": {"objective": "energy"},
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
        self, who: str, seconds: float, *, labels: bool = True, seed: int = 0
    ) -> tuple[dict[str, Any], Any]:
        """Train for so many CPU seconds; return the row and the generator."""
        import torch

        X, y = self.X[self.train], self.y[self.train] if labels else None
        given = (
            COMMON
            | RUNS[who]
            | {"random_state": seed, "network": network(self.X), "features": features()}
        )
        ticks: list[float] = []
        gk.Generator(**given, n_iter=9).fit(
            X, y, callback=lambda *_: ticks.append(time.process_time())
        )
        # the last one may look at held-out samples
        n_iter = max(10, int(seconds / np.median(np.diff(ticks)[1:-1])))
        start, wall = time.process_time(), time.perf_counter()
        g = gk.Generator(**given, n_iter=n_iter).fit(X, y)
        spent = time.process_time() - start, time.perf_counter() - wall
        asked = np.repeat(g.classes_, SAMPLES // len(g.classes_)) if labels else None
        Z = g.sample(SAMPLES, asked)
        row = {
            "who": who + ("" if labels else ", no labels"),
            **self.score(Z, asked),
            "steps": n_iter,
            "CPU s": round(spent[0]),
            "wall s": round(spent[1]),
            "seed": seed,
            "threads": torch.get_num_threads(),
        }
        return row, g


def network(X: np.ndarray) -> Any:
    """Return what makes a small convolutional generator whose pixels stay in their range."""
    from torch import nn

    from gpukoop.generators.networks import bounded

    flat = X.reshape(len(X), -1)
    width = float(np.sqrt(flat.var(axis=0).mean()))
    low, high = ((edge - flat.mean(axis=0)) / width for edge in (0.0, 1.0))
    # One upsampling layer above two dense ones: as quick as a perceptron, and neighbouring pixels go together.
    made = lambda n, shape: nn.Sequential(
        nn.Linear(n, 256),
        nn.SiLU(),
        nn.Linear(256, 8 * 14 * 14),
        nn.SiLU(),
        nn.Unflatten(1, (8, 14, 14)),
        nn.ConvTranspose2d(8, 1, 4, stride=2, padding=1),
        nn.Flatten(),
    )
    return lambda n, shape: bounded(made(n, shape), low, high)


def features() -> Any:
    """Return pixels beside two layers of random convolutions: other filters than those that score."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        first = torch.nn.Conv2d(1, 16, 5, stride=2, padding=2, bias=False)
        second = torch.nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False)
    for layer in (first, second):
        layer.weight.data -= layer.weight.data.mean((1, 2, 3), keepdim=True)
        layer.weight.data /= layer.weight.data.flatten(1).norm(dim=1)[:, None, None, None]
        layer.requires_grad_(False)

    def phi(x: Any) -> Any:
        a = torch.nn.functional.leaky_relu(first(x[:, None]), 0.2)
        b = torch.nn.functional.leaky_relu(second(a), 0.2)
        # each part weighs about as much in squared distances of two images
        return torch.cat([part.flatten(1) * w for part, w in ((x, 0.7), (a, 1.0), (b, 1.5))], dim=1)

    return phi


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
            table.append(task.run(who, 5.0 if quick else SECONDS, labels=labels)[0])
    return table
