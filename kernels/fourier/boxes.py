"""The box of a Fourier sum, and the few points far outside it that are summed exactly instead.

A grid covers the box that holds all targets and sources. One particle a thousand scales away would stretch it beyond
any memory, so the farthest points may be left out; :func:`boxes` offers a few such boxes and the cost decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpukoop.kernels.arrays import Array, namespace, to_host

# How many of the farthest targets and sources a box may leave out; each costs one exact row or column.
OUTLIERS = (16, 256, 4096)
# A box of so many mean deviations holds a million normal points twice over: nothing lies far out.
FAR = 24.0
# Middle and spread come from so many rows: only the order of the farthest points depends on them.
SAMPLE = 4096


@dataclass(frozen=True)
class Box:
    """Points with max_c |x_c - middle_c| / spread_c <= reach: the box [low, high] holds them all.

    ``outliers`` counts the targets and sources beyond it.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    middle: tuple[float, ...]
    spread: tuple[float, ...]
    reach: float
    outliers: tuple[int, int]

    @property
    def widths(self) -> tuple[float, ...]:
        """Extent on every axis."""
        return tuple(b - a for a, b in zip(self.low, self.high, strict=True))

    def split(self, X: Array) -> tuple[Array, Array] | None:
        """Return indices of the rows inside and outside, or None if all are inside."""
        if self.reach == np.inf:
            return None
        xp = namespace(X)
        inside = deviation(X, self.middle, self.spread) <= self.reach
        return None if bool(inside.all()) else (xp.flatnonzero(inside), xp.flatnonzero(~inside))


def deviation(X: Array, middle: tuple[float, ...], spread: tuple[float, ...]) -> Array:
    """Return max_c |x_c - middle_c| / spread_c of every point."""
    xp = namespace(X)
    dev = xp.zeros(len(X), X.dtype)
    for c, (a, s) in enumerate(zip(middle, spread, strict=True)):
        dev = xp.maximum(dev, xp.abs(X[:, c] - X.dtype.type(a)) * X.dtype.type(1 / s))
    return dev


def _bounds(X: Array) -> tuple[np.ndarray, np.ndarray]:
    columns = [X[:, c] for c in range(X.shape[1])]
    low, high = ([float(f(x)) for x in columns] for f in (lambda x: x.min(), lambda x: x.max()))
    return np.array(low), np.array(high)


def boxes(X: Array, Y: Array) -> tuple[Box, ...]:
    """Return boxes of targets X and sources Y that leave out more and more of the farthest points.

    Cost: one pass for the bounds; a few more only if some points lie far out.
    """
    clouds = [X] if Y is X else [X, Y]
    sample = np.concatenate([to_host(A[:: max(1, len(A) // SAMPLE)]) for A in clouds]).astype(float)
    middle = np.median(sample, axis=0)
    spread = np.mean(np.abs(sample - middle), axis=0)
    ends = [_bounds(A) for A in clouds]
    low, high = np.min([a for a, _ in ends], axis=0), np.max([b for _, b in ends], axis=0)
    spread = np.where(spread == 0, np.maximum((high - low) / FAR, 1e-300), spread)
    key = tuple(map(float, middle)), tuple(map(float, spread))
    found = [Box(tuple(low.tolist()), tuple(high.tolist()), *key, np.inf, (0, 0))]
    room = min(map(len, clouds)) // 4
    if np.max((high - low) / spread) <= FAR or room < OUTLIERS[0]:
        return tuple(found)
    devs = [deviation(A, *key) for A in clouds]
    for k in OUTLIERS:
        if k > room:
            break
        reach = max(to_host(namespace(d).partition(d, len(d) - 1 - k)[-1 - k]) for d in devs)
        inside = [d <= reach for d in devs]
        ends = [_bounds(A[i]) for A, i in zip(clouds, inside, strict=True)]
        low, high = np.min([a for a, _ in ends], axis=0), np.max([b for _, b in ends], axis=0)
        counts = [int(len(i) - i.sum()) for i in inside]
        box = Box(
            tuple(low.tolist()),
            tuple(high.tolist()),
            *key,
            float(reach),
            (counts[0], counts[-1]),
        )
        # A box that is hardly smaller than the last is no use.
        if _volume(box) < 0.8 * _volume(found[-1]):
            found.append(box)
    return tuple(found)


def _volume(box: Box) -> float:
    return float(np.prod(np.array(box.widths) + 1e-300))
