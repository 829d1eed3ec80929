"""Lines along coordinates and principal axes: where the particles lie, how wide they are spread, how far their tails go."""

from __future__ import annotations

import math

import numpy as np

from gpukoop.verdict.clouds import MOST, Clouds, thinned
from gpukoop.verdict.counts import beyond, excess, most_uneven, shortage
from gpukoop.verdict.line import Line

LEAST = 20
# Columns and principal axes whose width is looked at one by one, and the share of the data that is a tail.
COLUMNS, AXES, TAIL = 64, 16, 0.005
# Numbers that are sorted for the line about location, which looks at every column: of more than five columns of 10^6 particles and
# samples a part of the rows.
SORTED = 2 * 10**7
WINDOWS, FEWEST = (0.02, 0.04, 0.08, 0.16, 0.32), 16  # shares of all points, and fewest points


def spread(clouds: Clouds, rng: np.random.Generator) -> Line | None:
    """Compare widths, shapes and tails along coordinates and principal axes, and the width over all axes.

    Widths are compared by ranks, whose law is known whatever the tails: the scores are those that are best for a normal law
    (Klotz). Half of the line's level belongs to the width over all axes.
    """
    columns = clouds.columns[:COLUMNS]
    most = MOST * AXES // max(AXES, len(columns))
    Z, R = thinned(clouds.Z, most, rng), thinned(clouds.R, most, rng)
    n, m = len(Z), len(R)
    if min(n, m) < LEAST:
        return None
    W = np.concatenate([Z, R])
    principal = _principal(W)
    radius = np.linalg.norm(principal, axis=1)
    overall, ratio = _width(radius, n, _scores(n + m, principal.shape[1]), rng)
    score = _scores(n + m, 1)
    found = [
        (
            2 * overall,
            ratio,
            f"over all axes the particles are {ratio:.3f} times as wide as the data",
        )
    ]
    axes = _named(W, columns, principal)
    share = 2 * 4 * len(axes)
    for name, x in axes:
        middle = np.abs(x - np.median(x))
        p, ratio = _width(middle, n, score, rng)
        found.append(
            (
                share * p,
                ratio,
                f"along {name} the particles are {ratio:.3f} times as wide as the data",
            )
        )
        p, seen, expected = _windows(x, n, rng)
        text = f"along {name} one interval holds {seen:.1%} of the particles and {expected:.1%} of the data"
        found.append((share * p, seen / expected if expected else math.inf, text))
        for side, values in (("above", x), ("below", -x)):
            rank = max(1, round(TAIL * m))
            count = beyond(values[:n], values[n:], rank, rng)
            p = 2 * min(excess(count, n, m, rank), shortage(count, n, m, rank))
            text = f"{side} the tail of {rank / m:.1%} of the data along {name} are {count / n:.2%} of the particles"
            found.append((share * p, count / n * m / rank, text))
    p, ratio, text = min(found, key=lambda entry: entry[0])
    return Line("spread", min(1.0, p), text, float(ratio), 1.0)


def location(clouds: Clouds, rng: np.random.Generator) -> Line | None:
    """Compare shares below every point of every column and of the leading principal axes (Kolmogorov and Smirnov).

    Kolmogorov's limit law bounds the p-value from above: over all pairs of 20 to 600 points tried, exact ones are .24 to 1.00 of
    it. The largest gap of all axes counts as often as there are axes (Bonferroni), so that axes may depend on one another.
    """
    from scipy.special import kolmogi, kolmogorov

    d = clouds.Z.shape[1]
    most = max(LEAST, SORTED // (2 * (d + min(d, AXES))))
    Z, R = thinned(clouds.Z, most, rng), thinned(clouds.R, most, rng)
    n, m = len(Z), len(R)
    if min(n, m) < LEAST:
        return None
    # equal numbers then stand in a random order, whatever the algorithm that sorts
    shuffled = rng.permutation(n + m)
    W, mine = np.concatenate([Z, R])[shuffled], shuffled < n
    found = []
    axes = _named(W, clouds.columns, _principal(W))
    for name, x in axes:
        below = np.cumsum(mine[np.argsort(x)])
        own, other = below / n, (np.arange(1, n + m + 1) - below) / m
        at = int(np.argmax(np.abs(own - other)))
        found.append((float(abs(own[at] - other[at])), name, x, own[at], other[at]))
    gap, name, x, own, other = max(found, key=lambda entry: entry[0])
    noise = math.sqrt(1 / n + 1 / m)
    p = len(axes) * float(kolmogorov(gap / noise))
    shift = np.median(x[mine]) - np.median(x[~mine])
    text = (
        f"along {name} {own:.1%} of the particles and {other:.1%} of the data lie below one point, and the median of the "
        f"particles is {abs(shift):.2f} widths {'above' if shift > 0 else 'below'} that of the data"
    )
    typical = float(kolmogi(1 - 0.5 ** (1 / len(axes)))) * noise
    return Line("location", min(1.0, p), text, gap, typical)


def _named(
    W: np.ndarray, columns: np.ndarray, principal: np.ndarray
) -> list[tuple[str, np.ndarray]]:
    """Return the coordinates of points, by their numbers in the data, and their principal coordinates."""
    axes = [(f"coordinate {name}", W[:, c]) for c, name in enumerate(columns)]
    if W.shape[1] > 1:
        axes += [(f"principal axis {c}", principal[:, c]) for c in range(principal.shape[1])]
    return axes


def _principal(W: np.ndarray) -> np.ndarray:
    """Return the leading principal coordinates of the pooled points, of unit deviation, (N, at most AXES)."""
    centred = W - W.mean(axis=0)
    values, axes = np.linalg.eigh(np.atleast_2d(centred.T @ centred) / len(W))
    kept = [c for c in range(len(values) - 1, -1, -1) if values[c] > 1e-12 * values[-1]][:AXES]
    if not kept:
        return centred[:, :1]
    return centred @ axes[:, kept] / np.sqrt(values[kept])


def _scores(N: int, d: int) -> np.ndarray:
    """Return the scores of N ranks for the width of a normal law in d directions, of mean 0."""
    from scipy.special import chdtri

    score = chdtri(d, 1 - (np.arange(N) + 0.5) / N)
    return score - score.mean()


def _width(
    size: np.ndarray, n: int, score: np.ndarray, rng: np.random.Generator
) -> tuple[float, float]:
    """Return the two-sided p-value of the first n sizes being larger or smaller, and the ratio of their roots of mean square.

    The sum of scores of ranks has the mean, variance and third moment of a draw without replacement, and of the laws with
    these the gamma law: few of many scores make a sum that is far from normal (20 of 900: 1e-3 where the normal law says 3e-5).
    """
    from scipy.stats import pearson3

    N = len(size)
    rank = np.empty(N, int)
    rank[np.lexsort((rng.random(N), size))] = np.arange(N)
    deviation = math.sqrt(n * (N - n) / (N - 1) * np.mean(score**2))
    third = n * (N - n) * (N - 2 * n) / ((N - 1) * (N - 2)) * np.mean(score**3)
    seen, skew = score[rank[:n]].sum() / deviation, third / deviation**3
    own, other = np.sqrt(np.mean(size[:n] ** 2)), np.sqrt(np.mean(size[n:] ** 2))
    p = 2 * min(pearson3.sf(seen, skew), pearson3.cdf(seen, skew))
    return min(1.0, float(p)), float(own / other) if other > 0 else 1.0


def _windows(x: np.ndarray, n: int, rng: np.random.Generator) -> tuple[float, float, float]:
    """Return a p-value over windows of ranks, and the shares of both clouds in the most uneven window.

    Windows of the same numbers of points, each half over the next, from fiftieths of all points to thirds: what is too many
    at one place and too few elsewhere shows where it is.
    """
    N = len(x)
    order = np.lexsort((rng.random(N), x))
    before = np.append(0, np.cumsum(order < n))
    starts, sizes = [], []
    for share in WINDOWS:
        size = max(FEWEST, round(share * N))
        first = np.arange(0, N - size + 1, max(1, size // 2))
        starts.append(np.append(first, N - size))
        sizes.append(np.full(len(first) + 1, size))
    start, length = np.concatenate(starts), np.concatenate(sizes)
    mine = before[start + length] - before[start]
    p, worst = most_uneven(mine, length, n, N)
    return p, mine[worst] / n, (length[worst] - mine[worst]) / (N - n)
