r"""The margins of a start: noise fills the gaps of a law along lines where neighbours in all features see none.

Along a direction the quantiles of the particles are moved to those of the samples they came from. Of ten features with two
wells in one, a sample's neighbours lie in both wells: their noise puts 10 per cent of the particles on the barrier, where the law
has 1.6. Directions are the columns, and those independent components that are far from normal, which find a slow or clustered
coordinate however it is turned.

References
----------
.. [1] A. Hyvarinen, E. Oja, Independent component analysis: algorithms and applications, Neural Networks 13, 2000.
"""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning

# In fewer features neighbours are near, and margins of the samples' own would only bring the particles nearer to them (three
# rings: .9 to .5 of an unseen sample's distance); beyond the most, components cost more than the flow, and columns alone count.
LEAST_FEATURES, MOST_FEATURES = 4, 32
# Up to so many features a decomposition of their covariance takes less than the flow.
MOST_SPANNED = 1_000
# Samples that decide, iterations of the search, and standard errors of a normal kurtosis that count as far from it.
SAMPLES, ITERATIONS, FAR = 5_000, 100, 5.0


def directions(X: np.ndarray) -> np.ndarray:
    """Return unit directions (k, d) whose margins a start must keep: columns and components that are not normal."""
    m, d = X.shape
    columns = np.eye(d)
    if d < LEAST_FEATURES:
        return columns[:0]
    if d > MOST_FEATURES or m < 10 * d:
        return columns
    from sklearn.decomposition import FastICA

    X = X[:: max(1, m // SAMPLES)]
    if np.linalg.matrix_rank(X - X.mean(axis=0)) < d:
        return columns
    search = FastICA(random_state=0, max_iter=ITERATIONS, tol=1e-3, whiten="unit-variance")
    with warnings.catch_warnings():  # normal components have no direction to converge to
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = search.fit(X).components_
    found = found / np.linalg.norm(found, axis=1, keepdims=True)
    S = (X - X.mean(axis=0)) @ found.T
    S /= S.std(axis=0)
    excess = (S**4).mean(axis=0) - 3
    return np.concatenate([columns, found[np.abs(excess) > FAR * np.sqrt(24 / len(X))]])


def on_span(Z: np.ndarray, X: np.ndarray) -> np.ndarray:
    """Return particles moved onto the linear span of samples of mean zero, where that is less than the whole space.

    Margins of more columns than the samples have dimensions contradict each other: 784 columns of three dimensions put a tenth
    of every particle beside the law.
    """
    if not LEAST_FEATURES <= X.shape[1] <= MOST_SPANNED:
        return Z
    width = X.std(axis=0)
    width = np.where(width > 0, width, 1.0)
    # Of all samples: a column may differ from its mean in a few of them alone.
    unit = X / width
    values, vectors = np.linalg.eigh(unit.T @ unit)
    spanned = values > 10 * len(values) * np.finfo(float).eps * values[-1]
    if spanned.all():
        return Z
    V = vectors[:, spanned]
    return ((Z / width) @ V) @ V.T * width


def with_margins(Z: np.ndarray, parents: np.ndarray, lines: np.ndarray, levels: int) -> np.ndarray:
    """Return particles whose quantiles along lines are those of the samples they came from.

    Parameters
    ----------
    Z, parents : arrays of shape (n, d)
        Particles, and the sample that each was drawn from.
    lines : array of shape (k, d)
        Unit directions, one after the other.
    levels : int
        Quantiles that are compared; between them the shift is interpolated, so that no two particles meet.
    """
    n = len(Z)
    level = (np.arange(levels) + 0.5) / levels
    place = (np.arange(n) + 0.5) / n
    for line in lines:
        here, there = Z @ line, np.sort(parents @ line)
        order = np.argsort(here, kind="stable")
        shift = np.interp(level, place, there - here[order])
        Z = Z.copy()
        Z[order] += np.interp(place, level, shift)[:, None] * line
    return Z
