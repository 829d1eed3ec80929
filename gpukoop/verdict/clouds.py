"""What is compared: particles, the data they were made from, samples kept aside; all on the host, in common units."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpukoop.arrays import Array, points, to_host, vector

# Rows that decide the units, and at most how many of a cloud enter what is not a sum over lines.
UNIT_ROWS = 100_000
MOST = 100_000


@dataclass(frozen=True)
class Clouds:
    """Clouds of equal weights in units of their pooled spread.

    Attributes
    ----------
    Z : array of shape (n, d)
        Particles.
    R : array of shape (m, d)
        What they are judged by: data and samples kept aside, or draws of the law.
    X : array
        Samples that the particles may have been learned from, for memorisation.
    H : array or None
        Samples kept aside.
    columns : array of shape (d,)
        Numbers of the columns in the data, of which constant ones are left out.
    """

    Z: np.ndarray
    R: np.ndarray
    X: np.ndarray
    H: np.ndarray | None
    columns: np.ndarray


def prepared(
    Z: Array,
    X: Array,
    held_out: Array | None,
    drawn: Array | None,
    sample_weight: Array | None,
    particle_weight: Array | None,
    n_points: int | None,
    rng: np.random.Generator,
) -> Clouds:
    """Validate all clouds, thin weighted ones to equal weights, and bring them to common units."""
    first, _ = points(Z, "Z")
    d = first.shape[1]
    z = unweighted(_host(first), particle_weight, "particle_weight", rng)
    x = unweighted(
        _host(points(X, "X", n_features=d, other="Z")[0]), sample_weight, "sample_weight", rng
    )
    h = (
        None
        if held_out is None
        else _host(points(held_out, "held_out", n_features=d, other="Z")[0])
    )
    if drawn is not None:
        h = None
        # the particles were not learned from draws of the law: there is no second reference
        r = _host(points(drawn, "law(n)", n_features=d, other="Z")[0])
    else:
        r = x if h is None else np.concatenate([x, h])
    if n_points is not None:
        z, r = thinned(z, n_points, rng), thinned(r, n_points, rng)
        h = None if h is None else thinned(h, n_points, rng)
    middle, spread = units(np.concatenate([thinned(z, UNIT_ROWS, rng), thinned(r, UNIT_ROWS, rng)]))
    kept = spread > 0
    if not kept.any():  # every point the same: one column of zeros says so
        kept, spread = kept.copy(), spread.copy()
        kept[0], spread[0] = True, 1.0

    def scaled(A: np.ndarray) -> np.ndarray:
        return (A[:, kept] - middle[kept]) / spread[kept]

    aside = None if h is None else scaled(h)
    return Clouds(scaled(z), scaled(r), scaled(x), aside, np.flatnonzero(kept))


def _host(A: Array) -> np.ndarray:
    return to_host(A).astype(float, copy=False)


def units(W: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return median and width of every column: quartiles, which no outlier moves, or the deviation if they coincide."""
    low, middle, high = np.quantile(W, [0.25, 0.5, 0.75], axis=0)
    spread = (high - low) / 1.349  # that of a normal law is its standard deviation
    # In units of the farthest row, or one row of 1e160 leaves the range when squared.
    off = W - middle
    far = np.abs(off).max(axis=0)
    return middle, np.where(spread > 0, spread, far * (off / np.where(far > 0, far, 1)).std(axis=0))


def unweighted(
    A: np.ndarray, weight: Array | None, name: str, rng: np.random.Generator
) -> np.ndarray:
    """Return independent points of equal weight: row i stays with probability weight_i / max weight.

    Differs from resampling: no row is repeated, so that distances between neighbours stay those of the law.
    """
    if weight is None:
        return A
    w = to_host(vector(weight, name, len(A), A, "row"))
    if (w < 0).any() or not w.max() > 0:
        raise ValueError(f"{name} holds a negative number or only zeros: pass numbers >= 0")
    stays = rng.random(len(A)) * w.max() < w
    stays[np.argmax(w)] = True
    return A[stays]


def thinned(A: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Return at most so many rows, chosen at random."""
    if len(A) <= most:
        return A
    return A[np.sort(rng.choice(len(A), most, replace=False))]


def halves(A: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return two halves of the rows, taken at random."""
    order = rng.permutation(len(A))
    return A[order[: len(A) // 2]], A[order[len(A) // 2 :]]
