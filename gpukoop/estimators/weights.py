"""Weights of samples: checked, and what they mean where rows are drawn, repeated or averaged."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpukoop.arrays import Array, like, namespace, to_host
from gpukoop.checks import masses
from gpukoop.flow.start import drawn_rows

# Weights are whole multiples of a common unit if the smallest weight is at most so many of it.
MOST_UNITS = 12
# Rows at least, for weights that are not; and what is rounding.
LEAST_ROWS, ROUNDING = 2_000, 1e-6


def check_weight(sample_weight: Any, X: Array) -> tuple[Array, Array | None]:
    """Return the samples that have a weight, and their weights of sum 1 like X, (m,), None where all are equal.

    A sample of weight zero is no sample: scales, widths and plans are as if its row were dropped.
    """
    if sample_weight is None:
        return X, None
    w = masses(sample_weight, "sample_weight", len(X))
    held = w > 0
    if not held.all():
        X, w = X[namespace(X).asarray(np.flatnonzero(held))], w[held]
    return X, None if (w == w[0]).all() else like(w, X)


def host_weight(weight: Array | None) -> np.ndarray | None:
    """Return weights as float64 of sum 1 on the host."""
    if weight is None:
        return None
    w = to_host(weight).astype(float)
    return w / w.sum()


def repeated(sample_weight: Any, X: Array, y: Any) -> tuple[Array, Any]:
    """Return samples and labels with each row as often as its weight says.

    Exactly where the weights are small multiples of a common unit, whole numbers for instance; else to the nearest of ten
    times as many rows as there are weights.
    """
    if sample_weight is None:
        return X, y
    w = masses(sample_weight, "sample_weight", len(X))
    rows = np.repeat(np.arange(len(w)), _times(w))
    if y is not None:
        y = np.asarray(y)
        if len(y) != len(X):
            raise ValueError(f"y has shape {y.shape}, expected ({len(X)},): one label for each row")
        y = y[rows]
    return X[namespace(X).asarray(rows)], y


def _times(w: np.ndarray) -> np.ndarray:
    most = max(LEAST_ROWS, 10 * len(w))
    for units in range(1, MOST_UNITS + 1):
        times = units * w / w[w > 0].min()
        if times.sum() > most:
            break
        if np.abs(times - np.rint(times)).max() < ROUNDING:
            return np.rint(times).astype(int)
    drawn = drawn_rows(w / w.sum(), most, np.random.default_rng(0))
    return np.bincount(drawn, minlength=len(w))


def effective_size(weight: Array | None, m: int) -> int:
    r"""Return how many equally weighted samples know as much as m weighted ones: :math:`1 / \sum p_l^2` (Kish)."""
    w = host_weight(weight)
    return m if w is None else max(1, round(1 / float((w**2).sum())))


def law_rows(X: Array, weight: Array | None, n: int) -> Array:
    """Return samples of equal weight that stand for weighted ones, at most n of them where there are weights."""
    w = host_weight(weight)
    if w is None:
        return X
    return X[namespace(X).asarray(drawn_rows(w, min(n, 10 * len(w)), np.random.default_rng(0)))]
