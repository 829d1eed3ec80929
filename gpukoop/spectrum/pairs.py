"""Pairs in coordinates: their moments, fold by fold, and the held-out score that decides how many coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from gpukoop.arrays import Array, is_cupy, namespace, to_host, unchecked
from gpukoop.spectrum.dictionary import coordinates_above
from gpukoop.spectrum.ratio import RatioFunctions
from gpukoop.spectrum.whitening import whitened_pencil

# sigma_min from few to many coordinates.
GRID = (0.3, 0.2, 0.1, 0.05, 0.02, 0.01)
FOLDS = 5
# Contiguous blocks of a fold: their spread is the error of moments over the whole data.
BLOCKS = 4
# Modes whose held-out score decides; later ones are noise for every choice.
SCORED = 10
# Directions of the coordinates that the pooled samples do not span.
CUT = 1e-8
ROWS = 2**14
# Coordinates that a device holds at once: 128 MB.
DEVICE_ENTRIES = 2**24


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

    def mean(self) -> np.ndarray:
        """Return the mean over both halves of the pairs, (p,)."""
        return (self.x + self.y) / (2 * self.m)

    def cross(self, mean: np.ndarray) -> np.ndarray:
        """Return C_t = E[(psi(x) - mean) (psi(y) - mean)^T]."""
        # Centred from raw moments, so that blocks add before anyone knows the mean; coordinates are near mean 0, and little
        # cancels.
        shift = np.outer(self.x, mean) + np.outer(mean, self.y)
        return (self.xy - shift) / self.m + np.outer(mean, mean)

    def covariance(self) -> np.ndarray:
        """Return C_0, over both halves of the pairs."""
        mean = self.mean()
        return (self.xx + self.yy) / (2 * self.m) - np.outer(mean, mean)

    def whitened(self) -> tuple[np.ndarray, np.ndarray]:
        """Return C_t in combinations W of coordinates with W^T C_0 W = 1, and W."""
        C0 = self.covariance()
        W = whitened_pencil(C0, C0, CUT)[1]
        return W.T @ self.cross(self.mean()) @ W, W

    def modes(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mu of the symmetrised pencil, descending, and the combinations of coordinates."""
        Ct = self.cross(self.mean())
        return whitened_pencil((Ct + Ct.T) / 2, self.covariance(), CUT)

    def rotating_modes(self) -> tuple[np.ndarray, np.ndarray]:
        """Return complex mu of the pencil as it is, by falling modulus, and the combinations of coordinates."""
        M, W = self.whitened()
        mu, V = np.linalg.eig(M)
        # -angle: of a conjugate pair, the one with positive imaginary part of -log(mu) stands first
        # By modulus: it is the rate of decay, while the angle is how fast a mode turns on the way.
        order = np.lexsort((np.angle(mu), -np.abs(mu)))
        return mu[order].astype(complex), (W @ V[:, order]).astype(complex)

    def subspaces(self, k: int, reversible: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return the k functions of x and of y that are correlated most: the same where pairs are reversible."""
        if reversible:
            W = self.modes()[1][:, :k]
            return W, W
        M, W = self.whitened()
        # Of a process that is not reversible the best functions of x and of y differ; the SVD finds both (VAMP, Wu, Noe
        # 2020).
        U, _, Vt = np.linalg.svd(M)
        return W @ U[:, :k], W @ Vt[:k].T

    def law_of_x(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and covariance of the coordinates over X."""
        mean = self.x / self.m
        return mean, self.xx / self.m - np.outer(mean, mean)

    def score(self, U: np.ndarray, V: np.ndarray, reversible: bool) -> float:
        """Return the VAMP-2 score of functions U of x and V of y on these pairs."""
        Ct, C0 = self.cross(self.mean()), self.covariance()
        if reversible:
            Ct = (Ct + Ct.T) / 2
        A = U.T @ Ct @ V
        left, right = np.linalg.solve(U.T @ C0 @ U, A), np.linalg.solve(V.T @ C0 @ V, A.T)
        return float(np.trace(left @ right))


def noise_level(p: int, m: float) -> float:
    """Return the largest eigenvalue modulus of C_t for m independent x and y in p white coordinates: sqrt(p / m).

    Entries of variance 1 / m fill Girko's disk of that radius; symmetrised, Wigner's semicircle of sqrt(2) times that.
    """
    return float(np.sqrt(p / m))


@unchecked()  # who calls has looked at the points
def block_moments(functions: RatioFunctions, X: Array, Y: Array) -> list[Moments]:
    """Return moments of contiguous blocks, BLOCKS a fold: neighbours in a trajectory stay together."""
    edges = np.linspace(0, len(X), FOLDS * BLOCKS + 1).astype(int)
    if is_cupy(X):
        return _queued_moments(functions, X, Y, edges)
    found = []
    for first, last in pairwise(edges):
        blocks = [slice(s, min(s + ROWS, last)) for s in range(first, last, ROWS)]
        parts = [
            pair_moments(*(functions.transform(Z[b]).astype(float) for Z in (X, Y))) for b in blocks
        ]
        if parts:
            found.append(sum(parts[1:], parts[0]))
    return found


def _queued_moments(
    functions: RatioFunctions, X: Array, Y: Array, edges: np.ndarray
) -> list[Moments]:
    """Return the same on a device: one product a block, of [1, psi(x), psi(y)] with itself, and one look at all of them."""
    xp, p = namespace(X), functions.n_modes
    rows = max(1, DEVICE_ENTRIES // (2 * p + 1))
    grams = xp.zeros((len(edges) - 1, 2 * p + 1, 2 * p + 1))
    for start in range(0, len(X), rows):
        chunk = slice(start, min(start + rows, len(X)))
        P, Q = (functions.transform(Z[chunk]) for Z in (X, Y))
        both = xp.concatenate([xp.ones((len(P), 1), P.dtype), P, Q], axis=1).astype(float)
        for gram, first, last in zip(grams, edges[:-1], edges[1:], strict=True):
            part = both[max(first - start, 0) : max(last - start, 0)]
            if len(part):
                # One product holds all five moments and the count, in float64, because a million rows are summed.
                gram += part.T @ part
    x, y = slice(1, p + 1), slice(p + 1, None)
    found = [(g[0, 0], g[0, x], g[0, y], g[x, x], g[y, y], g[x, y]) for g in to_host(grams)]
    return [Moments(float(m), *parts) for m, *parts in found if m]


def folds_of(blocks: list[Moments]) -> list[Moments]:
    """Return moments of FOLDS contiguous folds, as even as the blocks allow."""
    edges = np.linspace(0, len(blocks), min(FOLDS, len(blocks)) + 1).astype(int)
    return [sum(blocks[i + 1 : j], blocks[i]) for i, j in pairwise(edges)]


def pair_moments(P: Array, Q: Array, weight: Array | None = None) -> Moments:
    """Return the moments of pairs from their coordinates, P of x and Q of y, (b, p) each; ``weight`` is one a pair."""
    wP, wQ, m = P, Q, float(len(P))
    if weight is not None:
        wP, wQ, m = weight[:, None] * P, weight[:, None] * Q, float(weight.sum())
    parts = (wP.sum(axis=0), wQ.sum(axis=0), wP.T @ P, wQ.T @ Q, wP.T @ Q)
    return Moments(m, *(to_host(a) for a in parts))


@unchecked()  # who calls has looked at the points
def carriers(functions: Any, X: Array) -> np.ndarray:
    """Return how many samples carry each function of mean 0 and variance 1: m over its fourth moment."""
    rows = max(1, DEVICE_ENTRIES // functions.n_modes) if is_cupy(X) else ROWS
    fourth = sum(
        (abs(functions.transform(X[s : s + rows])).astype(float) ** 4).sum(axis=0)
        for s in range(0, len(X), rows)
    )
    return len(X) ** 2 / to_host(fourth)


def held_out_scores(
    sigma: np.ndarray, folds: list[Moments], r: int, reversible: bool
) -> dict[float, np.ndarray]:
    """Return the held-out score of every sigma_min, fold by fold."""
    total = sum(folds[1:], folds[0])
    modes = max(1, min(r, SCORED, coordinates_above(sigma, GRID[0])))
    path = {}
    for reg in GRID:
        p = coordinates_above(sigma, reg)
        # Moments add, so leaving a fold out is a subtraction: no pair is looked at again.
        learned = [(total - f).leading(p).subspaces(modes, reversible) for f in folds]
        scores = [
            f.leading(p).score(U, V, reversible) for f, (U, V) in zip(folds, learned, strict=True)
        ]
        path[reg] = np.array(scores)
    return path


def best_reg(path: dict[float, np.ndarray]) -> float:
    """Return the smallest sigma_min whose score is within a standard error, over folds, of the best."""
    best = max(path.values(), key=np.mean)
    # The one-standard-error rule turned round: more coordinates resolve faster modes, and cost nothing that the score sees.
    for reg in sorted(path):
        lost = best - path[reg]
        if lost.mean() <= lost.std(ddof=1) / np.sqrt(len(lost)):
            return reg
    return max(path)
