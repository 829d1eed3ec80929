r"""Exact p-values of counts, and how several p-values make one verdict.

Under exchangeability of n particles and h reference values, the number of particles beyond the r-th reference value is
hypergeometric: it is at least k if and only if the k + r - 1 farthest of all hold at least k particles.
"""

from __future__ import annotations

import numpy as np

# Expected counts below which the chi-squared law is not that of the statistic (Cochran's rule), and counts drawn in its place.
EXPECTED, DRAWN = 5, 9_999


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
    sizes = _numbers(N)
    order = np.lexsort((rng.random(N), -score))
    mine = np.cumsum(order < n)[sizes - 1]
    tails = hypergeom.sf(mine - 1, N, n, sizes)
    best = int(np.argmin(tails))
    return min(1.0, len(sizes) * float(tails[best])), int(mine[best]), int(sizes[best])


def least_stray(n: int, m: int, level: float) -> float:
    """Return the least share of n particles that must lie farther than all m samples for ``most_isolated`` to fall below a level."""
    from scipy.stats import hypergeom

    N, sizes = n + m, _numbers(n + m)
    strays = np.arange(1, n + 1)[:, None]
    # behind them particles and samples come as they would
    others = np.maximum(sizes - strays, 0) * (n - strays) // np.maximum(N - strays, 1)
    held = np.minimum(strays + others, sizes)
    seen = len(sizes) * hypergeom.sf(held - 1, N, n, sizes).min(axis=1) < level
    return float(np.argmax(seen) + 1) / n if seen.any() else 1.0


def _numbers(N: int) -> np.ndarray:
    """Return the numbers of most isolated points that are looked at: 4, 8, 16, ... up to a quarter of all."""
    sizes = 2 ** np.arange(2, max(3, int(np.log2(N))))
    return sizes[sizes <= max(4, N // 4)]


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


def chi_squared(
    mine: np.ndarray,
    total: np.ndarray,
    n: int,
    N: int,
    fewest: int,
    rng: np.random.Generator,
) -> float:
    """Return the chi-squared p-value of disjoint cells; those of fewer points than ``fewest`` are one cell together.

    Where a cell may expect fewer than five of either kind, the statistic is compared with that of drawn counts.
    """
    from scipy.stats import chi2

    small = total < fewest
    cells = [np.append(a[~small], a[small].sum()) for a in (mine, total)]
    mine, total = (a[cells[1] > 0] for a in cells)
    if len(total) < 2:
        return 1.0

    def statistic(counts: np.ndarray) -> np.ndarray:
        gap = counts - total * n / N
        return np.sum(gap**2 / total, axis=-1) * N * (N - 1) / (n * (N - n))

    seen = statistic(mine)
    if total.min() * min(n, N - n) >= EXPECTED * N:
        return float(chi2.sf(seen, len(total) - 1))
    drawn = statistic(rng.multivariate_hypergeometric(total, n, size=DRAWN, method="marginals"))
    return float((1 + np.sum(drawn >= seen * (1 - 1e-9))) / (1 + DRAWN))


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
