"""Lifts of the Koopman sampler on handwritten digits: learned, Nystroem, and Gaussians in the same principal components."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

import gpukoop as gk
from gpukoop import datasets, metrics

TITLE = (
    "Digits (8 x 8, 1,297 to learn from, 500 held out) in 16 principal components: Frechet distance of 1,000 samples to the "
    "held-out in features of a classifier, and median distance to the nearest training image over that of held-out ones"
)
PCA, SAMPLES, HELD = 16, 1_000, 500


def rows(quick: bool = False, only: str = "") -> list[dict[str, Any]]:
    """Return the table, or the rows whose name has a word; without PyTorch one row that says so."""
    try:
        import torch  # noqa: F401

        from gpukoop.sampler.neural import ImageFeatures, NeuralFeatures
    except ImportError:
        return [{"who": "PyTorch is not installed"}]
    X, y = datasets.digits(None, 0, return_labels=True)
    X = np.asarray(X, dtype=float)
    order = np.random.default_rng(0).permutation(len(X))
    train, held = order[:-HELD], order[-HELD:]
    pictures = lambda Z: Z.reshape(-1, 8, 8).astype(np.float32)
    classifier = metrics.ClassifierFeatures().fit(pictures(X[train]), y[train])
    centre = X[train].mean(axis=0)
    axes = np.linalg.svd(X[train] - centre, full_matrices=False)[2][:PCA].T
    P = (X[train] - centre) @ axes
    unit = float(np.sqrt(P.var(axis=0).mean()))
    P /= unit
    back = lambda Z: pictures(np.asarray(Z, dtype=float) * unit @ axes.T + centre)
    rng = np.random.default_rng(1)

    def near(Z: np.ndarray) -> float:
        return float(np.median(cdist(Z.reshape(len(Z), -1)[:HELD], X[train]).min(axis=1)))

    def normal(Q: np.ndarray, n: int) -> np.ndarray:
        return rng.multivariate_normal(Q.mean(axis=0), np.cov(Q.T), n)

    def learned(as_dictionary: bool) -> np.ndarray:
        lift = NeuralFeatures(PCA, 64, width=128, random_state=0)
        lift.train(P, n_steps=20 if quick else 600)
        if as_dictionary:
            sampler = gk.KoopmanSampler(dictionary=lift, random_state=0).fit(P)
            return np.asarray(sampler.sample(SAMPLES))
        return lift.advance(rng.standard_normal((SAMPLES, PCA)))

    level, width = float(X[train].mean()), float(X[train].std())

    def convolved(as_dictionary: bool) -> np.ndarray:
        """Draw pictures from a lift of all pixels."""
        lift, pixels = ImageFeatures((8, 8), 64, random_state=0), (X[train] - level) / width
        lift.train(pixels, n_steps=20 if quick else 1_200)
        if as_dictionary:
            Z = gk.KoopmanSampler(dictionary=lift, random_state=0).fit(pixels).sample(SAMPLES)
        else:
            Z = lift.advance(rng.standard_normal((SAMPLES, pixels.shape[1])))
        return pictures(np.asarray(Z, dtype=float) * width + level)

    per_class = lambda: np.concatenate([normal(P[y[train] == c], SAMPLES // 10) for c in range(10)])
    ways: dict[str, Callable[[], np.ndarray]] = {
        "real images, in these components": lambda: back(P[:SAMPLES]),
        "one Gaussian": lambda: back(normal(P, SAMPLES)),
        "one Gaussian per class": lambda: back(per_class()),
        "learned lift, its own operator and decoder": lambda: back(learned(False)),
        "learned lift as a dictionary": lambda: back(learned(True)),
        "convolutional lift of all pixels, its own operator and decoder": lambda: convolved(False),
        "convolutional lift of all pixels as a dictionary": lambda: convolved(True),
        "Nystroem lift (KoopmanSampler at defaults)": lambda: back(
            gk.KoopmanSampler(random_state=0).fit(P).sample(SAMPLES)
        ),
    }
    table, apart = [], near(pictures(X[held]))
    for who, way in ways.items():
        if only not in who:
            continue
        start = time.process_time()
        Z = way()
        spent = time.process_time() - start
        distance = metrics.frechet_distance(Z, pictures(X[held]), classifier)
        table.append(
            {
                "who": who,
                "FD classifier": float(f"{distance:.3g}"),
                "nearest": None if who.startswith("real") else round(near(Z) / apart, 2),
                "CPU s": round(spent, 1),
            }
        )
    return table
