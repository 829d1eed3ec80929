"""Pairs in coordinates: their moments, fold by fold, and the held-out score that decides how many coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from gpukoop.arrays import Array, to_host
from gpukoop.spectrum.dictionary import coordinates_above
from gpukoop.spectrum.ratio import RatioFunctions
from gpukoop.spectrum.whitening import whitened_pencil

# sigma_min from few to many coordinates.
GRID = (0.3, 0.2, 0.1, 0.05, 0.02, 0.01)
FOLDS = 5
# Modes whose held-out score decides; later ones are noise for every choice.
SCORED = 10
# Directions of the coordinates that the pooled samples do not span.
CUT = 1e-8
ROWS = 2**14


@dataclass(frozen=True)
class Moments:
    """Sums over pairs of coordinates: counts, first moments (p,), second moments (p, p)."""

    m: float
    x: np.ndarray
    y: np.ndarray
    xx: np.ndarray
    yy: np.ndarray
    xy: np.ndarray

    def __add__(self, other: Moments) -> Moments:
        return Moments(*(a + b for a, b in zip(self._parts(), other._parts(), strict=True)))

    def __sub__(self, other: Moments) -> Moments:
        return Moments(*(a - b for a, b in zip(self._parts(), other._parts(), strict=True)))

    def _parts(self) -> tuple[Any, ...]:
        return self.m, self.x, self.y, self.xx, self.yy, self.xy

    def leading(self, p: int) -> Moments:
        """Return the moments of the first p coordinates."""
        two = (self.xx, self.yy, self.xy)
        return Moments(self.m, self.x[:p], self.y[:p], *(a[:p, :p] for a in two))

    def covariances(self) -> tuple[np.ndarray, np.ndarray]:
        """Return C_0 and C_t, symmetrised and centred by the pooled mean."""
        mean = (self.x + self.y) / (2 * self.m)
        outer = np.outer(mean, mean)
        return (self.xx + self.yy) / (2 * self.m) - outer, (self.xy + self.xy.T) / (
            2 * self.m
        ) - outer

    def modes(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mu, descending, and the combinations of coordinates."""
        C0, Ct = self.covariances()
        return whitened_pencil(Ct, C0, CUT)

    def law_of_x(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and covariance of the coordinates over X."""
        mean = self.x / self.m
        return mean, self.xx / self.m - np.outer(mean, mean)

    def score(self, W: np.ndarray) -> float:
        """Return the VAMP-2 score of modes W on these pairs."""
        C0, Ct = self.covariances()
        A, B = W.T @ Ct @ W, W.T @ C0 @ W
        return float(np.trace(np.linalg.solve(B, A) @ np.linalg.solve(B, A.T)))


def fold_moments(functions: RatioFunctions, X: Array, Y: Array) -> list[Moments]:
    """Return moments of contiguous folds: neighbours in a trajectory stay together."""
    edges = np.linspace(0, len(X), FOLDS + 1).astype(int)
    folds = []
    for first, last in pairwise(edges):
        blocks = [slice(s, min(s + ROWS, last)) for s in range(first, last, ROWS)]
        parts = [_moments(functions, X[b], Y[b]) for b in blocks]
        if parts:
            folds.append(sum(parts[1:], parts[0]))
    return folds


def _moments(functions: RatioFunctions, X: Array, Y: Array) -> Moments:
    P, Q = (functions.transform(Z).astype(float) for Z in (X, Y))
    parts = (P.sum(axis=0), Q.sum(axis=0), P.T @ P, Q.T @ Q, P.T @ Q)
    return Moments(float(len(X)), *(to_host(a) for a in parts))


def carriers(functions: RatioFunctions, X: Array) -> np.ndarray:
    """Return how many samples carry each function of mean 0 and variance 1: m over its fourth moment."""
    fourth = sum(
        to_host((functions.transform(X[s : s + ROWS]).astype(float) ** 4).sum(axis=0))
        for s in range(0, len(X), ROWS)
    )
    return len(X) ** 2 / np.asarray(fourth)


def held_out_scores(sigma: np.ndarray, folds: list[Moments], r: int) -> dict[float, np.ndarray]:
    """Return the held-out score of every sigma_min, fold by fold."""
    total = sum(folds[1:], folds[0])
    modes = max(1, min(r, SCORED, coordinates_above(sigma, GRID[0])))
    path = {}
    for reg in GRID:
        p = coordinates_above(sigma, reg)
        learned = [(total - test).leading(p).modes()[1][:, :modes] for test in folds]
        scores = [f.leading(p).score(W) for f, W in zip(folds, learned, strict=True)]
        path[reg] = np.array(scores)
    return path


def best_reg(path: dict[float, np.ndarray]) -> float:
    """Return the smallest sigma_min whose score is within a standard error, over folds, of the best."""
    best = max(path.values(), key=np.mean)
    for reg in sorted(path):
        lost = best - path[reg]
        if lost.mean() <= lost.std(ddof=1) / np.sqrt(len(lost)):
            return reg
    return max(path)
