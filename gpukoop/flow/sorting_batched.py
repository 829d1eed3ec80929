r"""The sorted sums of :mod:`gpukoop.flow.sorting` for all directions at once: a few large array operations, no loop.

========= ================================
z (P, n)  projected particles, one row each
x (P, m)  projected samples
========= ================================

Ranks come from stable sorts of z and x side by side: where the samples stand after the particles, equal ones are
counted behind them, and where they stand before, ahead. Coinciding particles are found the same way, by a second
sort in the opposite order. Running sums go over all rows as one, which a device does in one pass.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpukoop.arrays import Array, namespace
from gpukoop.fusion import fused


def energy_rows(z: Array, x: Array) -> tuple[Array, Array]:
    """Return what ``sorting.energy_line`` returns, and the energies as one sum, from two sorts of (P, n + m)."""
    xp = namespace(z)
    n, m = z.shape[1], x.shape[1]
    # Two orders of the same numbers: a stable sort then counts the ties of a particle from below and from above, without a
    # search.
    ahead, behind = xp.concatenate([z, x], axis=1), xp.concatenate([x, z[:, ::-1]], axis=1)
    count, order, seen, places = _ranked(ahead, n, m, samples_first=False)
    less, forward = seen[:, :n], places[:, :n]
    _, _, seen, places = _ranked(behind, n, m, samples_first=True)
    up_to, backward = seen[:, m:][:, ::-1], places[:, m:][:, ::-1]
    ordered, place = ahead.ravel()[order], xp.arange(1, n + m)[None, :]
    velocity = _push(less, up_to, forward, backward, 1.0 / m, 1.0 / n).astype(z.dtype, copy=False)
    return velocity, _area(count[:, :-1], ordered[:, :-1], ordered[:, 1:], place, 1.0 / m, 1.0 / n)


def _ranked(
    both: Array, n: int, m: int, *, samples_first: bool
) -> tuple[Array, Array, Array, Array]:
    """Return the samples up to each place and who stands there, and at every entry the samples before it and its place."""
    xp = namespace(both)
    P, size = both.shape
    order = xp.argsort(both, axis=1, kind="stable")
    sample = order < m if samples_first else order >= n
    flat = order + _rows(xp, P, size)
    # Every row holds m samples: one running sum serves all rows.
    count = xp.cumsum(sample.ravel()).reshape(P, size) - _rows(xp, P, m)
    seen, places = xp.empty(P * size, np.int64), xp.empty(P * size, np.int64)
    # Scattered back by the sort's own places: the inverse permutation without a second sort.
    seen[flat] = count
    places[flat] = xp.arange(size)[None, :]
    return count, flat, seen.reshape(P, size), places.reshape(P, size)


def _rows(xp: Any, P: int, size: int) -> Array:
    return xp.arange(0, P * size, size)[:, None]


@fused
def _push(
    xp: Any, less: Any, up_to: Any, forward: Any, backward: Any, sample: float, own: float
) -> Any:
    # A particle's place counts samples and particles before it; forwards and backwards its ties are all met once.
    ties = (forward - less) + (backward - up_to) + 1
    return (less + up_to) * sample - ties * own


@fused
def _area(
    xp: Any, samples: Any, left: Any, right: Any, place: Any, sample: float, own: float
) -> Any:
    gap = (place - samples) * own - samples * sample
    return xp.sum(gap * gap * (right - left))


def transport_rows(z: Array, x: Array) -> tuple[Array, Array]:
    """Return what ``sorting.transport_line`` returns, and the energies as one sum, from a sort of each cloud."""
    xp = namespace(z)
    P, n = z.shape
    # Places in the flat array, so that one indexing serves all rows.
    flat = xp.argsort(z, axis=1, kind="stable") + _rows(xp, P, n)
    ordered = z.ravel()[flat]
    x = xp.sort(x, axis=1)
    target, inside = (x, 0.0) if n == x.shape[1] else _quantile_means(x, n)
    shared = _shared(ordered, target)
    result = xp.empty(P * n, z.dtype)
    result[flat.ravel()] = (shared - ordered).ravel()
    return result.reshape(P, n), _cost(ordered, target, shared, 0.5 / n) + 0.5 * inside


@fused
def _cost(xp: Any, ordered: Any, target: Any, shared: Any, share: float) -> Any:
    gap, spread = (shared - ordered).astype(np.float64), (target - shared).astype(np.float64)
    return xp.sum((gap * gap + spread * spread) * share)


def _shared(ordered: Array, target: Array) -> Array:
    """Return the targets averaged over runs of equal particles: alone, a particle keeps its own to the last bit."""
    xp = namespace(ordered)
    P, n = ordered.shape
    size = P * n
    new = xp.ones((P, n), bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    run = xp.cumsum(new.ravel()) - 1
    # Where each run begins; the entry after the last run is the end of all, and one more takes what begins no run.
    start = xp.full(size + 2, size, np.int64)
    places = xp.arange(size)
    start[xp.where(new.ravel(), run, size + 1)] = places
    first, last = start[run], start[run + 1]
    total = xp.zeros(size + 1)
    total[1:] = xp.cumsum(target.ravel().astype(float))
    mean = (total[last] - total[first]) / (last - first)
    return xp.where(last - first == 1, target.ravel(), mean.astype(target.dtype)).reshape(P, n)


def _quantile_means(x: Array, n: int) -> tuple[Array, Array]:
    """Return the means of every row's quantile function over n equal shares, and the sum of the mean variances inside."""
    xp = namespace(x)
    P, m = x.shape
    centre = x.mean(axis=1, keepdims=True)
    x = (x - centre).astype(float)
    upper = np.arange(1, m + 1) / m
    edges = np.arange(1, n) / n
    k = np.searchsorted(upper, edges, side="left")
    # The same shares cut every row: the host makes them once.
    within = xp.asarray(edges - np.concatenate([[0.0], upper])[k])
    k = xp.asarray(k)
    levels = []
    for values in (x, x * x):
        total = xp.zeros((P, m + 1))
        running = xp.cumsum(values.ravel()).reshape(P, m) / m
        total[:, 1:] = running - running[:, :1] + values[:, :1] / m
        at = xp.zeros((P, n + 1))
        at[:, 1:-1] = total[:, k] + within * values[:, k]
        at[:, -1] = total[:, -1]
        levels.append(n * (at[:, 1:] - at[:, :-1]))
    first, second = levels
    variance = xp.maximum(second - first**2, 0.0).mean(axis=1).sum()
    return (first + centre).astype(centre.dtype), variance
