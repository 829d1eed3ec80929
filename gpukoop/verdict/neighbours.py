"""Lines about nearest neighbours: on the support, no copies of the data, not crowded together.

Distances of particles to one half of the data are exchangeable with those of the other half to it, so that counts beyond
a quantile have exact p-values. Copies and crowds are called so only at half the distance that unseen samples keep:
particles that a flow has drawn a little towards their data are no copies.
"""

from __future__ import annotations

import numpy as np

from gpukoop.kernels.cpu.threads import n_threads
from gpukoop.verdict.clouds import MOST, Clouds, halves, thinned
from gpukoop.verdict.counts import beyond, excess
from gpukoop.verdict.line import Line

# Trees lose their worth in high dimensions: there fewer points are compared, by a product of matrices.
TREE_FEATURES = 8
MOST_BY_PRODUCT = 5_000
MOST_QUERIES = 50_000
# Shares of the reference beyond which particles are counted.
FAR = {
    1: (0.1, 0.01),
    8: (0.1, 0.03, 0.01),
}  # by rank of the neighbour: the eighth knows the density better
NEAR = (0.5, 0.05)
MARGIN = 2.0  # a copy is at less than 1 / MARGIN of the distance
# Fewer samples kept aside than this, and halves of the data say more.
ENOUGH = 50
LEAST = 20


def nearest(A: np.ndarray, Q: np.ndarray, k: int = 1, own: bool = False) -> np.ndarray:
    """Return the distance of each query to the k-th nearest point of A; with ``own`` Q is A, and no point is its own."""
    if A.shape[1] <= TREE_FEATURES:
        from scipy.spatial import cKDTree

        distance, _ = cKDTree(A).query(Q, k=[k + own], workers=n_threads())
        return distance[:, 0]
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(A)
    return search.kneighbors(None if own else Q)[0][:, -1]


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
    """Count particles farther from half of the data than nearly all of the other half."""
    A, B = halves(clouds.R, rng)
    tree, queries = _sizes(A.shape[1])
    if len(B) < LEAST:
        return None
    A, B, Z = thinned(A, tree, rng), thinned(B, queries, rng), thinned(clouds.Z, queries, rng)
    found = [
        _worst(nearest(A, Z, k), nearest(A, B, k), shares, rng)
        for k, shares in FAR.items()
        if k <= len(A)
    ]
    p, seen, expected = min(found)
    box = np.mean(
        ((clouds.Z < clouds.R.min(axis=0)) | (clouds.Z > clouds.R.max(axis=0))).any(axis=1)
    )
    text = (
        f"{seen:.1%} of the particles are farther from the data than {1 - expected:.1%} of unseen samples are "
        f"(expected {expected:.1%}); {box:.1%} leave the range of the data"
    )
    return Line("support", min(1.0, len(found) * p), text, seen, expected)


def memorisation(clouds: Clouds, rng: np.random.Generator) -> Line | None:
    """Count particles much nearer to the training samples than unseen samples are."""
    if clouds.H is not None and len(clouds.H) >= ENOUGH:
        A, B = clouds.X, clouds.H
    else:
        A, B = halves(clouds.X, rng)
    tree, queries = _sizes(A.shape[1])
    if len(B) < LEAST:
        return None
    A, B, Z = thinned(A, tree, rng), thinned(B, queries, rng), thinned(clouds.Z, queries, rng)
    mine, theirs = nearest(A, Z), nearest(A, B)
    p, seen, expected = _worst(-MARGIN * mine, -theirs, NEAR, rng)
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
