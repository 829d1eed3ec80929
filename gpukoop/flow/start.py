r"""A start on the support: samples drawn anew, each with noise of the shape and the size of its neighbourhood.

=== =====================================================
X   samples (m, d); x_i is the one a particle was drawn from
c_i mean of x_i and its k nearest samples
C_i their covariance
=== =====================================================

.. math:: z = c_i + a\,(x_i - c_i) + b\, s_i \sqrt{\mathrm{tr}\, C_i}\; \frac{\xi}{|\xi|}, \qquad \xi \sim N(0, C_i), \quad E s_i^2 = 1

The noise lies in the directions in which the neighbours lie, so it follows curves and surfaces, and its length is that of
the neighbourhood, so it is wide in the tails and narrow in narrow modes; no draw of it is far longer than another. Where the
neighbours lie on a line a direction is a sign, and particles of one sample would meet: s is 1 for the first of them and for others
uniform in :math:`1 \pm k^{-3}/2`, up to its scale, with k the number of directions of C_i, :math:`(\mathrm{tr}\, C)^2 / \mathrm{tr}\, C^2`. b
makes the particles as far from their nearest sample as an unseen sample is; a takes back the variance that the noise
adds. At a rim of the law, where the density ends and does not fall, noise that leads out is reflected, as kernel
estimates are at a border. With m the mean of a sample's k neighbours, C their covariance and R the radius that holds k: a density that falls
by exp(-g t) has :math:`|x - m|^2 / \mathrm{tr}\, C = R^2 g^2 / d (d + 2)`, and by just as much is log R larger than around the neighbours; a
density that ends has half of its radius' ball empty, which shifts the mean by far more than it widens the radius. Differs from the smoothed bootstrap of [1]_: shrinkage and noise are local, not those of the whole cloud.

References
----------
.. [1] B. W. Silverman, G. A. Young, The bootstrap: to smooth or not to smooth?, Biometrika 74, 1987.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from gpukoop.centring import centred
from gpukoop.flow.margins import directions, on_span, with_margins

# Neighbours that span the noise: enough for its directions, few enough to stay local; more where there are more features.
NEIGHBOURS, MOST_NEIGHBOURS = 12, 64
# Median distance of a particle to its nearest sample over that of an unseen sample. At 1 the noise would show.
DISTINCT = 0.9
# Samples that decide a and b: the median of so many distances is known to 3 per cent.
PROBES = 1_000
# Between these b is sought, at so many values; sqrt(tr C) is about twice the distance to the nearest sample on a surface.
SMALLEST, LARGEST, VALUES = 0.02, 2.0, 15
# Noise longer than the spacing brings no particle farther from all samples: this much of the most is enough.
ENOUGH = 0.95
# Draws of a direction, of which the longest is taken: a short one across a curve would be stretched until it leaves the curve
# (three rings: 3.5 per cent of the particles off them with one draw, .9 with two).
DRAWS = 2
# Half the range of the length of noise along a line, of its mean: five particles a sample are then as far apart as draws of the law
# are (diversity of the verdict, .87 on three rings after .54), and no more of them leave a curve.
STRETCH = 0.5
# Neighbours lie on one side if their mean is off by so many times its own variance; the density then ends there if log R is
# larger than around them by less than this share of what a falling density shows.
ONE_SIDED, FALLING = 3.0, 1 / 3
# Neighbours that are spread by more than this share of the variance are not near, as in many features: they know of no rim.
LOCAL = 0.25
# Trees find neighbours in O(log m) up to so many features; beyond, a pass over so many samples does.
TREE_FEATURES, POOL = 12, 5_000
# Components of a Gaussian mixture among which the BIC chooses.
MOST_COMPONENTS = 10
# Fewer particles have no margins to speak of.
LEAST_MARGINS = 20
# Numbers of neighbourhoods held at once, 16 MB.
BLOCK_NUMBERS = 2**21


@dataclass(frozen=True)
class Neighbourhoods:
    """Samples in units of their width, around their mean, and the search among them."""

    X: np.ndarray
    pool: np.ndarray
    G: np.ndarray

    @classmethod
    def of(
        cls, X: np.ndarray, rng: np.random.Generator, G: np.ndarray | None = None
    ) -> Neighbourhoods:
        """Return the neighbourhoods of samples (m, d) in coordinates G (m, p); beyond 12 features among 5,000 of them."""
        G = X if G is None else G
        m, widest = len(X), max(X.shape[1], G.shape[1])
        pool = np.arange(m)
        if widest > TREE_FEATURES and m > POOL:
            pool = np.sort(rng.choice(m, POOL, replace=False))
        return cls(X, pool, G)

    @cached_property
    def _tree(self) -> Any:
        return _tree(self.X, self.pool)

    @cached_property
    def _around(self) -> Any:
        return self._tree if self.G is self.X else _tree(self.G, self.pool)

    @cached_property
    def _variance(self) -> float:
        return float(self.G.var(axis=0).sum())

    @property
    def order(self) -> np.ndarray:
        """Rows of X, neighbours after each other where a tree knows them: queries in this order are four times as fast."""
        return np.asarray(getattr(self._tree, "indices", np.arange(len(self.X))))

    @property
    def size(self) -> int:
        """Samples in a neighbourhood, its own included."""
        k = min(MOST_NEIGHBOURS, NEIGHBOURS + self.X.shape[1] // 2)
        return min(k + 1, len(self.pool))

    def nearest(self, Z: np.ndarray, k: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Return distances and rows of X of the k nearest samples of the pool, (n, k) each."""
        distance, index = _found(self._tree, Z, k)
        return distance, self.pool[index]

    def around(
        self, rows: np.ndarray, rng: np.random.Generator, again: np.ndarray | None = None
    ) -> tuple[np.ndarray, ...]:
        """Return c_i, x_i - c_i and the noise of length sqrt(tr C_i) for samples, (n, d) each.

        Where ``again``, the length is drawn too: another particle of this sample has the plain one.
        """
        x = self.X[rows]
        found = self.pool[_found(self._around, self.G[rows], self.size)[1]]
        # A sample outside the pool takes the place of its farthest neighbour; one inside is its own nearest.
        outside = (found != rows[:, None]).all(axis=1)
        found[outside, -1] = rows[outside]
        P = self.X[found]  # (n, k, d)
        centre = P.mean(axis=1)
        P = P - centre[:, None]
        own = x - centre
        size = np.sqrt((P**2).sum(axis=(1, 2)) / self.size)
        noise, length = np.zeros_like(x), np.zeros(len(x))
        for _ in range(DRAWS):
            drawn = np.einsum("nk,nkd->nd", rng.standard_normal(P.shape[:2]), P)
            its = np.linalg.norm(drawn, axis=1)
            longer = its > length
            noise[longer], length[longer] = drawn[longer], its[longer]
        noise *= (size / np.where(length > 0, length, 1.0))[:, None]
        if again is not None and again.any():
            noise[again] *= _stretch(P[again], rng)[:, None]
        outward = (noise * own).sum(axis=1) > 0
        outward[outward] = self._at_rim(rows[outward], found[outward])
        noise[outward] *= -1
        return centre, own, noise

    def _at_rim(self, rows: np.ndarray, found: np.ndarray) -> np.ndarray:
        """Return at which samples the density ends, by their neighbours and the neighbours of those."""
        k = self.size - 1
        if k < 2:
            return np.zeros(len(rows), bool)
        P = self.G[found] - self.G[rows][:, None]  # the sample's own row is zero
        square = (P**2).sum(axis=2)
        off = ((P.sum(axis=1) / k) ** 2).sum(axis=1)
        spread = square.sum(axis=1) / k - off
        rim = (k * off > ONE_SIDED * spread) & (spread < LOCAL * self._variance)
        near, place = np.unique(found[rim], return_inverse=True)
        if len(near) == 0:
            return rim
        radius = _found(self._around, self.G[near], self.size)[0][:, -1]
        typical = radius[place.reshape(-1, self.size)].mean(axis=1)
        # radii of zero belong to copies: nothing ends there
        some = (typical > 0) & (spread[rim] > 0)
        ratio = np.sqrt(square[rim].max(axis=1)) / np.where(some, typical, 1.0)
        falls = FALLING * off[rim] / np.where(some, spread[rim], 1.0)
        rim[rim] = some & (ratio < np.exp(np.minimum(falls, 100.0)))
        return rim


def _stretch(P: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return factors of mean square 1 for the noise of neighbours P (n, k, d) around their mean: drawn on lines, near 1 elsewhere."""
    across = np.swapaxes(P, 1, 2)
    C = across @ P if P.shape[2] < P.shape[1] else P @ across  # the smaller one: their traces agree
    square, trace = (C**2).sum(axis=(1, 2)), np.trace(C, axis1=1, axis2=2)
    directions = np.divide(trace**2, square, out=np.ones(len(P)), where=square > 0)
    half = STRETCH / directions**3
    return (1 + half * rng.uniform(-1, 1, len(P))) / np.sqrt(1 + half**2 / 3)


def _tree(X: np.ndarray, pool: np.ndarray) -> Any:
    if X.shape[1] > TREE_FEATURES or len(pool) < len(X):
        from sklearn.neighbors import NearestNeighbors

        return NearestNeighbors(algorithm="brute").fit(X[pool])
    from scipy.spatial import cKDTree

    return cKDTree(X)


def _found(tree: Any, Z: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return distances and places in the tree of the k nearest, (n, k) each."""
    if hasattr(tree, "kneighbors"):
        distance, index = tree.kneighbors(Z, n_neighbors=k)
    else:
        distance, index = tree.query(Z, k=k, workers=-1)
    return distance.reshape(len(Z), k), index.reshape(len(Z), k)


def smoothed_bootstrap(
    X: np.ndarray,
    n: int,
    rng: np.random.Generator,
    G: np.ndarray | None = None,
    weight: np.ndarray | None = None,
) -> np.ndarray:
    """Return n particles near the samples, as far from the nearest one as unseen samples would be.

    Parameters
    ----------
    X : array of shape (m, d)
        Samples, on the host.
    n : int
        Number of particles. Every sample is drawn as often as any other, or once more.
    rng : numpy Generator
    G : array of shape (m, p), optional
        Coordinates in which neighbours are sought; the noise is that of their places in X.
    weight : array of shape (m,), optional
        Of sum 1: how often a sample is drawn, in place of as often as any other.

    Returns
    -------
    array of shape (n, d), float64
        Copies of samples whose nearest neighbours are copies of themselves stay where they are.

    Notes
    -----
    Cost: a k-d tree and 13 neighbours or more of n points, O(n d) memory; linear in n, and near-linear in m up to 12
    features. Beyond, neighbours are sought among 5,000 samples.
    """
    m, d = X.shape
    mean, x = centred(X)
    reach = float(np.abs(x).max()) or 1.0  # a unit in which no square leaves the range
    near = Neighbourhoods.of(x / reach, rng, G)
    a, b = _amounts(near, rng)
    if weight is None:
        whole, rest = divmod(n, m)
        rows = np.repeat(near.order, whole)
        if rest:
            # evenly along an order that keeps neighbours together: every region gets its share
            evenly = (np.arange(rest) + rng.random()) * (m / rest)
            rows = np.concatenate([rows, near.order[np.minimum(evenly.astype(int), m - 1)]])
    else:
        rows = near.order[drawn_rows(weight[near.order], n, rng)]
    again = np.ones(n, bool)
    again[np.unique(rows, return_index=True)[1]] = False
    Z = np.empty((n, d))
    size = max(1, BLOCK_NUMBERS // (near.size * d))
    for start in range(0, n, size):
        block = slice(start, start + size)
        centre, own, noise = near.around(rows[block], rng, again[block])
        Z[block] = centre + a * own + b * noise
    if n >= LEAST_MARGINS:
        Z = on_span(with_margins(Z, near.X[rows], directions(near.X), min(n, m)), near.X)
    return mean + reach * Z[rng.permutation(n)]


def drawn_rows(weight: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Return n rows in ascending order, each as often as n times its weight says, or once more (systematic sampling)."""
    edges = np.floor(np.cumsum(weight) * n + rng.random()).astype(int)
    edges[-1] = n
    return np.repeat(np.arange(len(weight)), np.diff(edges, prepend=0))


def _amounts(near: Neighbourhoods, rng: np.random.Generator) -> tuple[float, float]:
    """Return a and b: the least b whose particles are far enough from their nearest sample, a from the variance for every b."""
    probes = near.pool[rng.permutation(len(near.pool))[:PROBES]]
    unseen = float(np.median(near.nearest(near.X[probes], min(2, len(near.pool)))[0][:, -1]))
    centre, own, noise = near.around(probes, rng)
    wanted = near.X[probes].var(axis=0).sum()

    def shrinkage(b: float) -> float:
        # var(c + a u + b e) = var(x), a quadratic equation: at most 1, and 0 where the noise alone is too much
        square = own.var(axis=0).sum()
        mixed = ((centre - centre.mean(axis=0)) * own).mean(axis=0).sum()
        rest = centre.var(axis=0).sum() + b**2 * (noise**2).mean(axis=0).sum() - wanted
        if not square > 0:
            return 1.0
        root = np.sqrt(max(0.0, mixed**2 - square * rest))
        return float(np.clip((root - mixed) / square, 0.0, 1.0))

    # Noise alone must not exceed the variance: among many features it would, before its distance is that of an unseen sample.
    room = max(0.0, wanted - centre.var(axis=0).sum()) / max((noise**2).mean(axis=0).sum(), 1e-300)
    values = np.geomspace(SMALLEST, float(np.clip(np.sqrt(room), SMALLEST, LARGEST)), VALUES)
    far = np.array(
        [np.median(near.nearest(centre + shrinkage(b) * own + b * noise)[0]) for b in values]
    )
    wanted_distance = min(DISTINCT * unseen, ENOUGH * far.max())
    first = int(np.argmax(far >= wanted_distance))
    b = float(values[first])
    if first > 0:  # between two values the distance is nearly linear in log b
        share = (wanted_distance - far[first - 1]) / (far[first] - far[first - 1])
        b = float(values[first - 1] * (b / values[first - 1]) ** share)
    return shrinkage(b), b


def gaussian_mixture(X: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Return n draws of a Gaussian mixture fitted to at most 5,000 samples (m, d); the BIC chooses up to ten components."""
    from sklearn.mixture import GaussianMixture

    rows = rng.permutation(len(X))[:POOL]
    mean, x = centred(X)
    width = x.std(axis=0)
    X = x[rows] / np.where(width > 0, width, 1.0)
    seed = int(rng.integers(2**31))
    most = max(1, min(MOST_COMPONENTS, len(X) // 10))
    fitted = [GaussianMixture(k, random_state=seed).fit(X) for k in range(1, most + 1)]
    best = min(fitted, key=lambda model: model.bic(X))
    Z, _ = best.sample(n)
    return mean + width * Z[rng.permutation(n)]
