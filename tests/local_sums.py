"""Local sums: data that tempt a rule to leave out too much, and sums over lists by any engine."""

import numpy as np

from gpukoop.kernels.cuda.packing import Clouds
from gpukoop.kernels.cuda.pairs import lists
from gpukoop.kernels.cuda.pairs.plan import Sizes
from gpukoop.kernels.operation import OPERATIONS


def lower_thresholds(setattr):
    """Let small problems be local sums."""
    for name, value in {"MIN_PAIRS": 0, "MIN_TARGETS": 1, "MIN_CELLS": 2}.items():
        setattr(lists, name, value)


# -- data: (X, Y, V, scale) ----------------------------------------------------------------------------
def clusters(rng, n, m, d):
    """Three clusters 100 scales apart; alternating signs cancel, so a rule that looks at sums sees nothing."""
    centres = np.array([0.0, 10.0, 20.0])
    X, Y = (rng.normal(size=(k, d)) * 0.3 + rng.choice(centres, k)[:, None] for k in (n, m))
    return X, Y, np.where(np.arange(m) % 2, 1.0, -1.0)[:, None], 0.1


def one_heavy_cell(rng, n, m, d):
    """All weights in one far corner: the tiles nearest to a block weigh nothing."""
    X, Y = rng.random((n, d)), rng.random((m, d))
    return X, Y, (Y.max(1, keepdims=True) < 0.3).astype(float), 0.03


def heavy_and_light(rng, n, m, d):
    """Weights over twelve orders of magnitude: what is far may outweigh what is near."""
    X, Y = rng.random((n, d)), rng.random((m, d))
    return X, Y, 10.0 ** (12 * Y[:, :1] - 6) * rng.normal(size=(m, 1)), 0.03


def far_targets(rng, n, m, d):
    """A block holds targets far from everything beside near ones: all that they have is far away."""
    X, Y = rng.random((n, d)), rng.random((m, d))
    X[:: n // 7] = 1.4
    return X, Y, rng.normal(size=(m, 1)), 0.05


def coinciding(rng, n, m, d):
    """Few places, many points at each: boxes without extent, and ties in every comparison."""
    places = rng.random((30, d))
    return places[rng.integers(30, size=n)], places[rng.integers(30, size=m)], np.ones((m, 1)), 0.05


def columns(rng, n, m, d):
    """Columns whose weights lie in different places, and one that is zero."""
    X, Y = rng.random((n, d)), rng.random((m, d))
    left = np.where(Y[:, :1] < 0.5, 1.0, 1e-6)
    V = np.hstack([left, 1e-6 / left, np.zeros((m, 1)), rng.normal(size=(m, 1))])
    return X, Y, V, 0.02


DATA = (clusters, one_heavy_cell, heavy_and_light, far_targets, coinciding, columns)


def problem(make, n, m, d, dtype="float32"):
    X, Y, V, scale = make(np.random.default_rng(n + m + d), n, m, d)
    return X.astype(dtype), Y.astype(dtype), V.astype(dtype), scale


def logarithms(V):
    with np.errstate(divide="ignore"):
        return np.log(abs(V[:, 0]))


# -- sums ---------------------------------------------------------------------------------------------
def make_local(kernel, op, X, Y, V, tol, engine):
    clouds = Clouds(len(X), len(Y), X.shape[1], X.dtype.name, False)
    columns = 1 if V.ndim == 1 else V.shape[1]
    sizes = Sizes(OPERATIONS[op], clouds, columns, tol)
    return lists.make_local(kernel, sizes, X, Y, V, engine)
