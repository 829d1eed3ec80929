"""Lines about nearest neighbours: on the support, no copies of the data, not crowded together.

Distances of particles to one half of the data are exchangeable with those of the other half to it, and so is how rare
points are around each point of both clouds together: among the most isolated points, particles are counted, and the counts
have exact p-values. Copies and crowds are called so only at half the distance that unseen samples keep: particles that a
flow has drawn a little towards their data are no copies.
"""

from __future__ import annotations

import numpy as np

from gpukoop.kernels.cpu.threads import n_threads
from gpukoop.verdict.clouds import MOST, Clouds, halves, thinned
from gpukoop.verdict.counts import beyond, excess, most_isolated
from gpukoop.verdict.line import Line

# Trees lose their worth in high dimensions: there fewer points are compared, by a product of matrices.
TREE_FEATURES = 8
MOST_BY_PRODUCT = 5_000
MOST_QUERIES = 50_000
# Ranks of the neighbour in the data by which a point is far: the first sees single points, the eighth knows the density.
FAR = (1, 8)
# Rank of the neighbour in both clouds together, and at most how many points of each: particles that lie where points are
# rare are seen against all data, not half, which at 2,000 of each finds deviations 1.2 times smaller.
RARE, MOST_RARE = 16, 20_000
UNREMARKABLE = 0.1
NEAR = (0.5, 0.05)
MARGIN = 2.0  # a copy is at less than 1 / MARGIN of the distance
# Fewer samples kept aside than this, and halves of the data say more.
ENOUGH = 50
LEAST = 20


def nearest(A: np.ndarray, Q: np.ndarray, k: int = 1, own: bool = False) -> np.ndarray:
    """Return the distance of each query to the k-th nearest point of A; with ``own`` Q is A, and no point is its own."""
    return _neighbours(A, Q, (k,), own)[0][:, 0]


def _neighbours(
    A: np.ndarray, Q: np.ndarray, ranks: tuple[int, ...], own: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return distances and places of the neighbours of these ranks, (n, len(ranks)) each."""
    if A.shape[1] <= TREE_FEATURES:
        from scipy.spatial import cKDTree

        tree = cKDTree(A)
        return tree.query(Q, k=[k + own for k in ranks], workers=n_threads())
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=max(ranks), algorithm="brute").fit(A)
    columns = np.array(ranks) - 1
    distance, place = search.kneighbors(None if own else Q)
    return distance[:, columns], place[:, columns]


def _sizes(d: int) -> tuple[int, int]:
    return (10 * MOST, MOST_QUERIES) if d <= TREE_FEATURES else (MOST_BY_PRODUCT, MOST_BY_PRODUCT)


def _worst(
    particles: np.ndarray,
    reference: np.ndarray,
    shares: tuple[float, ...],
    rng: np.random.Generator,
    independent: float = 1.0,
) -> tuple[float, float, float]:
    """Return the p-value over these shares, and of the most telling one the share of particles and of the reference.

    ``independent`` is the share of the values that count as independent of one another.
    """
    n, h = len(particles), len(reference)
    found = []
    for share in shares:
        rank = max(1, round(share * h))
        count = beyond(particles, reference, rank, rng)
        sizes = [max(1, int(independent * k)) for k in (n, h, rank)]
        p = excess(int(independent * count), *sizes)
        found.append((p, count / n, rank / h))
    p, seen, expected = min(found, key=lambda entry: entry[0])
    return min(1.0, len(shares) * p), seen, expected


def support(clouds: Clouds, rng: np.random.Generator) -> Line | None:
    """Count particles among the points farthest from the data, and among those where points are rarest.

    Three distances to one half of the data judge particles and the other half: to the first and the eighth neighbour, and to
    the first in units of the spacing there, so that a thin part of the law does not hide what strays from a dense one. Rarity
    is the distance to the sixteenth neighbour in both clouds.
    """
    A, B = halves(clouds.R, rng)
    tree, queries = _sizes(A.shape[1])
    if len(B) < LEAST or len(clouds.Z) < LEAST:
        return None
    A, B, Z = thinned(A, tree, rng), thinned(B, queries, rng), thinned(clouds.Z, queries, rng)
    ranks = tuple(k for k in FAR if k < len(A))
    distance, place = _neighbours(A, np.concatenate([Z, B]), ranks)
    near, inverse = np.unique(place[:, 0], return_inverse=True)
    spacing = _neighbours(A, A[near], (ranks[-1] + 1,))[0][inverse, 0]
    local = np.divide(distance[:, 0], spacing, out=np.zeros(len(spacing)), where=spacing > 0)
    far = "are farther from the data than {1:.1%} of unseen samples are (expected {2:.1%})"
    measures = [(x, len(Z), far) for x in (*distance.T,)]
    measures.append((local, len(Z), far.replace("data than", "data, by the spacing there, than")))
    Z, R = thinned(clouds.Z, MOST_RARE, rng), thinned(clouds.R, MOST_RARE, rng)
    Z, R = (thinned(C, queries, rng) for C in (Z, R))
    W = np.concatenate([Z, R])
    rare = nearest(W, W, min(RARE, len(W) - 1), own=True)
    measures.append(
        (
            rare,
            len(Z),
            "lie where points are rarer than around {1:.1%} of the data (expected {2:.1%})",
        )
    )
    found = []
    for score, n, words in measures:
        p, count, size = most_isolated(score, n, rng)
        seen, expected = count / n, (size - count) / (len(score) - n)
        found.append((p, seen, expected, words.format(seen, 1 - expected, expected)))
    p, seen, expected, words = min(found)
    p = min(1.0, len(found) * p)
    if (
        p > UNREMARKABLE
    ):  # the usual quantile then says more than the window that happens to be the least likely
        n, rank = len(distance) - len(B), max(1, round(0.01 * len(B)))
        seen = beyond(distance[:n, -1], distance[n:, -1], rank, rng) / n
        expected, words = rank / len(B), far.format(seen, 1 - rank / len(B), rank / len(B))
    box = np.mean(
        ((clouds.Z < clouds.R.min(axis=0)) | (clouds.Z > clouds.R.max(axis=0))).any(axis=1)
    )
    text = f"{seen:.1%} of the particles {words}; {box:.1%} leave the range of the data"
    return Line("support", p, text, seen, expected)


def _to_training(
    clouds: Clouds, H: np.ndarray | None, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return distances of particles and of unseen samples to the training samples, of which without H one half is unseen."""
    A, B = halves(clouds.X, rng) if H is None else (clouds.X, H)
    tree, queries = _sizes(A.shape[1])
    if len(B) < LEAST:
        return np.empty(0), np.empty(0)
    A, B, Z = thinned(A, tree, rng), thinned(B, queries, rng), thinned(clouds.Z, queries, rng)
    return nearest(A, Z), nearest(A, B)


def memorisation(clouds: Clouds, rng: np.random.Generator) -> Line | None:
    """Count particles much nearer to the training samples than unseen samples are."""
    kept_aside = clouds.H is not None and len(clouds.H) >= ENOUGH
    mine, theirs = _to_training(clouds, clouds.H if kept_aside else None, rng)
    if kept_aside and (theirs > 0).sum() < LEAST:
        # rows repeat: half of all data holds more that are no copies
        mine, theirs = _to_training(clouds, None, rng)
    if len(theirs) < LEAST:
        return None
    p, seen, expected = _worst(-MARGIN * mine, -theirs, NEAR, rng)
    own, other = mine[mine > 0], theirs[theirs > 0]
    if LEAST <= len(other) < len(theirs) and len(own) >= LEAST:
        # where rows repeat an unseen one is often a copy itself, and hides particles next to the training samples: look between copies
        found = _worst(-MARGIN * own, -other, NEAR, rng)
        if found[0] < p:
            (p, seen, expected), mine, theirs = found, own, other
        p = min(1.0, 2 * p)
    typical = np.median(theirs)
    ratio = float(np.median(mine) / typical) if typical > 0 else 1.0
    text = (
        f"the median particle is {ratio:.2f} times as far from the nearest training sample as an unseen sample is; "
        f"{seen:.1%} are at half the distance at which {expected:.0%} of unseen samples are, or nearer"
    )
    return Line("memorisation", p, text, ratio, 1.0)


def diversity(clouds: Clouds, rng: np.random.Generator) -> Line | None:
    """Count particles much nearer to each other than as many samples are."""
    _, queries = _sizes(clouds.Z.shape[1])
    k = min(len(clouds.Z), len(clouds.R), queries)
    if k < LEAST:
        return None
    Z, R = thinned(clouds.Z, k, rng), thinned(clouds.R, k, rng)
    mine, theirs = nearest(Z, Z, own=True), nearest(R, R, own=True)
    # neighbours come in pairs, whose distances are one and the same: half of the values count
    p, _, _ = _worst(-MARGIN * mine, -theirs, NEAR, rng, independent=0.5)
    typical = np.median(theirs)
    ratio = float(np.median(mine) / typical) if typical > 0 else 1.0
    text = f"the median distance between neighbouring particles is {ratio:.2f} times that of as many samples"
    return Line("diversity", p, text, ratio, 1.0)
