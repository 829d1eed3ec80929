r"""Exact p-values of counts, and how several p-values make one verdict.

Under exchangeability of n particles and h reference values, the number of particles beyond the r-th reference value is
hypergeometric: it is at least k if and only if the k + r - 1 farthest of all hold at least k particles.
"""

from __future__ import annotations

import numpy as np


def beyond(
    particles: np.ndarray, reference: np.ndarray, rank: int, rng: np.random.Generator
) -> int:
    """Return how many particles lie beyond the ``rank``-th largest reference value; ties are broken at random."""
    tie = rng.random(len(reference))
    order = np.lexsort((tie, reference))[::-1]
    threshold, its_tie = reference[order[rank - 1]], tie[order[rank - 1]]
    tied = (particles == threshold) & (rng.random(len(particles)) > its_tie)
    return int((particles > threshold).sum() + tied.sum())


def excess(count: int, n: int, h: int, rank: int) -> float:
    """Return P(at least ``count`` of n particles beyond the ``rank``-th of h reference values)."""
    from scipy.stats import hypergeom

    if count == 0:
        return 1.0
    return float(hypergeom.sf(count - 1, n + h, n, count + rank - 1))


def shortage(count: int, n: int, h: int, rank: int) -> float:
    """Return P(at most ``count`` of n particles beyond the ``rank``-th of h reference values)."""
    from scipy.stats import hypergeom

    if count == n:
        return 1.0
    return float(hypergeom.cdf(count, n + h, n, count + rank))


def most_isolated(score: np.ndarray, n: int, rng: np.random.Generator) -> tuple[float, int, int]:
    """Return a p-value over the most isolated points, how many of them are particles, and how many they are.

    The points of the highest scores, 4, 8, 16, ... up to a quarter of all, hold a hypergeometric number of the first n if the
    scores do not depend on who is a particle; the smallest p-value of too many times the number of sizes is a p-value.
    """
    from scipy.stats import hypergeom

    N = len(score)
    sizes = 2 ** np.arange(2, max(3, int(np.log2(N))))
    sizes = sizes[sizes <= max(4, N // 4)]
    order = np.lexsort((rng.random(N), -score))
    mine = np.cumsum(order < n)[sizes - 1]
    tails = hypergeom.sf(mine - 1, N, n, sizes)
    best = int(np.argmin(tails))
    return min(1.0, len(sizes) * float(tails[best])), int(mine[best]), int(sizes[best])


def most_uneven(mine: np.ndarray, total: np.ndarray, n: int, N: int) -> tuple[float, int]:
    """Return a p-value over cells of ``total`` points each, and the cell whose ``mine`` of n particles surprise most.

    The cells, which may overlap, must not depend on who is a particle: a cell then holds a hypergeometric number of them,
    and the smallest two-sided p-value times the number of cells is a p-value.
    """
    from scipy.stats import hypergeom

    expected = total * n / N
    deviation = np.sqrt(np.maximum(expected * (1 - n / N) * (1 - total / N), 1e-300))
    worst = int(np.argmax(np.abs(mine - expected) / deviation))
    k, size = int(mine[worst]), int(total[worst])
    tails = hypergeom.sf(k - 1, N, n, size), hypergeom.cdf(k, N, n, size)
    return min(1.0, 2 * float(min(tails)) * len(total)), worst


def chi_squared(mine: np.ndarray, total: np.ndarray, n: int, N: int, fewest: int) -> float:
    """Return the chi-squared p-value of disjoint cells; those of fewer points than ``fewest`` are one cell together."""
    from scipy.stats import chi2

    small = total < fewest
    cells = [np.append(a[~small], a[small].sum()) for a in (mine, total)]
    mine, total = (a[cells[1] > 0] for a in cells)
    if len(total) < 2:
        return 1.0
    gap = mine - total * n / N
    statistic = np.sum(gap**2 / total) * N * (N - 1) / (n * (N - n))
    return float(chi2.sf(statistic, len(total) - 1))


def holm(p: np.ndarray) -> np.ndarray:
    """Return p-values adjusted for their number: at most ``level`` of true null worlds have one below ``level``.

    References
    ----------
    .. [1] S. Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Stat. 6, 1979.
    """
    order = np.argsort(p)
    steps = np.maximum.accumulate(np.asarray(p)[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted
