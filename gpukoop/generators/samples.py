"""What goes into a generator's training: rows, images and labels; and how far its samples are from others."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpukoop.arrays import points
from gpukoop.checks import refuse_colours_first
from gpukoop.metrics import energy_distance


def distance_multiple(Z: np.ndarray, X: np.ndarray) -> float:
    """Return the energy distance over (1/n + 1/m) E|x - x'|, its mean for two independent clouds of the law of X."""
    Z, X = Z.astype(float), X.astype(float)
    apart = np.linalg.norm(X - X[np.random.default_rng(0).permutation(len(X))], axis=1)
    floor = (1 / len(Z) + 1 / len(X)) * apart.sum() / max(1, len(X) - 1)
    return energy_distance(Z, X) / floor if floor > 0 else np.inf


def rank(X: Any) -> int:
    """Return the number of axes; 2 for ragged lists, which are then refused as tables are, in words."""
    try:
        return int(np.ndim(X))
    except ValueError:
        return 2


def flat(X: Any) -> np.ndarray:
    """Return images as rows of float32."""
    if np.ndim(X) not in (3, 4):
        raise ValueError(
            f"X has shape {np.shape(X)}, expected (m, d), (m, height, width) or (m, height, width, colours)"
        )
    refuse_colours_first(np.shape(X), "X")
    images = np.asarray(X)
    if images.dtype.kind not in "fiu":
        raise TypeError(f"X has dtype {images.dtype}, expected images of real numbers")
    largest = np.finfo(np.float32).max
    if images.dtype.itemsize > 4 and (np.isfinite(images) & (np.abs(images) > largest)).any():
        raise ValueError(
            f"X holds pixels beyond {largest:.1g}, the largest number in single precision: rescale the images"
        )
    flat = images.reshape(len(images), -1).astype(np.float32)
    return np.asarray(points(flat, "X")[0])


def checked_labels(y: Any, n: int) -> np.ndarray:
    """Return n labels as an array."""
    labels = np.asarray(y)
    if labels.dtype.kind == "O" and all(isinstance(label, str) for label in labels.flat):
        labels = labels.astype(str)  # a column of a frame
    if labels.shape != (n,) or labels.dtype.kind not in "iuUSb":
        raise ValueError(
            f"y has shape {labels.shape} and dtype {labels.dtype}, expected {n} labels: integers or strings"
        )
    if n > 1 and len(np.unique(labels)) == n:
        raise ValueError(
            f"y has {n} labels and none twice: a class needs samples to learn from; leave out y, or pass coarser labels"
        )
    return labels


def within(X: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    """Return samples around the mean of their class: the distances that particles of one class see."""
    if labels is None:
        return X
    means = np.stack([X[labels == c].mean(axis=0) for c in range(int(labels.max()) + 1)])
    return np.asarray(X - means[labels])
