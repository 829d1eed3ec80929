"""Columns around their means, exactly: the rounded mean of a constant column is another number, and its deviation is not 0."""

from __future__ import annotations

import numpy as np

from gpukoop.arrays import Array, namespace

# A column whose values differ by so many units of rounding is constant: 0.1 + 0.2 beside 0.3.
ROUNDING = 8


def rounding(X: Array) -> Array:
    """Return by how much numbers of each column of native points may differ and yet be one, (d,)."""
    eps = np.finfo(X.dtype if X.dtype.kind == "f" else float).eps
    return ROUNDING * eps * abs(X).max(axis=0)


def varying(X: Array) -> Array:
    """Return which columns of native points differ by more than the rounding of their numbers, (d,)."""
    with np.errstate(over="ignore"):
        return X.max(axis=0) - X.min(axis=0) > rounding(X)


def centred(X: Array, share: Array | None = None) -> tuple[Array, Array]:
    """Return the means of the columns and the deviations from them in float64, (d,) and (m, d); those of constant columns are 0.

    ``share`` are weights (m,) of sum 1.
    """
    xp, varies, x = namespace(X), varying(X), X.astype(float)
    mean = xp.where(varies, x.mean(axis=0) if share is None else share @ x, x[0])
    return mean, xp.where(varies, x - mean, 0.0)
