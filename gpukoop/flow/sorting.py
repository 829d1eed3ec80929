r"""One-dimensional transport and energy distance by sorting, many directions at once.

========= ============================================================
P         directions; rows of the arrays, threads share them
z (P, n)  projected particles
x (P, m)  projected samples
========= ============================================================

Two forms of the same sums: array operations, which run on CuPy and serve as the reference, and Numba loops for the
host, parallel over directions. Ties are exact: coinciding particles share their velocity.
Nothing here loops over pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from gpukoop.arrays import Array, is_cupy, namespace
from gpukoop.kernels.reduce_cpu import n_threads

# Below so many numbers a second thread costs more than it saves.
SERIAL = 1 << 16
# From so many features on a matrix product is no longer thin.
WIDE = 32

Results = tuple[Array, Array]  # (P, n) displacement or gradient, (P,) energy


def transport_line(z: Array, x: Array) -> Results:
    r"""Return target minus particle and W2^2 / 2 for every row.

    The target of the i-th smallest particle is the mean of the quantile function over its share,
    :math:`n \int_{i/n}^{(i+1)/n} Q(u) du`, for n = m the i-th smallest sample. Coinciding particles get the mean of
    their targets. It is -n times the gradient of W2^2 / 2, and the mean target is the mean sample.
    """
    if not is_cupy(z):
        return _numba(z, x, 0)
    return _loop(transport_row, z, x)


def energy_line(z: Array, x: Array) -> Results:
    r"""Return n times the gradient of MMD^2 / 2 of -\|x - y\|, and MMD^2 / 2, for every row.

    .. math:: n g_i = \frac{\#\{x < z_i\} + \#\{x \le z_i\}}{m} - 1 - \frac{2\,\mathrm{rank}_i + 1 - n}{n}, \qquad
              \tfrac12 MMD^2 = \int (F_\mu - F_\nu)^2

    with ranks from 0, averaged over ties.
    """
    if not is_cupy(z):
        return _numba(z, x, 1)
    return _loop(energy_row, z, x)


def _loop(row: Callable[..., tuple[Array, Array]], z: Array, x: Array) -> Results:
    xp = namespace(z)
    pairs = [row(z[p], x[p]) for p in range(len(z))]
    return xp.stack([a for a, _ in pairs]), xp.stack([b for _, b in pairs])


def transport_row(z: Array, x: Array, weights: Array | None = None) -> tuple[Array, Array]:
    """Return target minus particle and W2^2 / 2 of one line: z (n,), x (m,), sample weights (m,) of sum 1."""
    xp = namespace(z)
    n = len(z)
    order, rank = xp.argsort(z), xp.argsort(x)
    z_sorted, x_sorted = z[order], x[rank]
    if weights is None and n == len(x):
        target, inside = x_sorted, 0.0
    else:
        target, inside = quantile_means(x_sorted, None if weights is None else weights[rank], n)
    shared = _shared(z_sorted, target)
    gap = shared - z_sorted
    result = xp.empty_like(z)
    result[order] = gap
    return result, 0.5 * ((gap**2).mean() + ((target - shared) ** 2).mean() + inside)


def _shared(z_sorted: Array, target: Array) -> Array:
    """Return the targets averaged over runs of equal particles."""
    xp = namespace(z_sorted)
    first = xp.searchsorted(z_sorted, z_sorted, side="left")
    last = xp.searchsorted(z_sorted, z_sorted, side="right")
    if int((last - first).max()) == 1:
        return target
    total = xp.concatenate([xp.zeros(1, target.dtype), xp.cumsum(target)])
    return (total[last] - total[first]) / (last - first)


def quantile_means(x_sorted: Array, weights: Array | None, n: int) -> tuple[Array, Array]:
    """Return the mean of the quantile function over n equal shares, and the mean variance inside the shares."""
    xp = namespace(x_sorted)
    m = len(x_sorted)
    centre = x_sorted.mean()
    x = (x_sorted - centre).astype(float)
    if weights is None:
        upper = xp.arange(1, m + 1) / m
    else:
        upper = xp.cumsum(weights.astype(float))
        upper = upper / upper[-1]
    share = xp.diff(upper, prepend=xp.zeros(1))
    edges = xp.arange(1, n) / n
    k = xp.searchsorted(upper, edges, side="left")
    levels = []
    for power in (1, 2):
        total = xp.concatenate([xp.zeros(1), xp.cumsum(share * x**power)])
        below = xp.concatenate([xp.zeros(1), upper])
        at = total[k] + (edges - below[k]) * x[k] ** power
        levels.append(n * xp.diff(at, prepend=xp.zeros(1), append=total[-1:]))
    first, second = levels
    variance = xp.maximum(second - first**2, 0.0).mean()
    return (first + centre).astype(x_sorted.dtype), variance


def energy_row(z: Array, x: Array, weights: Array | None = None) -> tuple[Array, Array]:
    """Return n times the gradient of MMD^2 / 2 and MMD^2 / 2 of one line: z (n,), x (m,), sample weights (m,)."""
    xp = namespace(z)
    n, m = len(z), len(x)
    order, rank = xp.argsort(z), xp.argsort(x)
    z_sorted, x_sorted = z[order], x[rank]
    upper = (
        xp.arange(m + 1) / m
        if weights is None
        else xp.concatenate([xp.zeros(1), xp.cumsum(weights[rank].astype(float))])
    )
    less = upper[xp.searchsorted(x_sorted, z_sorted, side="left")]
    up_to = upper[xp.searchsorted(x_sorted, z_sorted, side="right")]
    tied = xp.searchsorted(z_sorted, z_sorted, side="left") + xp.searchsorted(
        z_sorted, z_sorted, side="right"
    )
    result = xp.empty_like(z)
    # 2 rank + 1 of a run of ties is first + last + 1 places: the sum of both searches.
    result[order] = (less + up_to - tied / n).astype(z.dtype)
    both = xp.sort(xp.concatenate([z_sorted, x_sorted]))
    gap = (
        xp.searchsorted(z_sorted, both[:-1], side="right") / n
        - upper[xp.searchsorted(x_sorted, both[:-1], side="right")]
    )
    return result, (gap**2 * xp.diff(both)).sum()


def _numba(z: np.ndarray, x: np.ndarray, mode: int) -> Results:
    (P, n), m = z.shape, x.shape[1]
    out, energy = np.empty_like(z), np.empty(P)

    def rows(start: int, stop: int) -> None:
        room = _Workspace(n, m, z.dtype)
        for p in range(start, stop):
            energy[p] = room.merge(z[p], x[p], out[p], mode)

    _share(rows, P, -(-P // (4 * n_threads())), z.size + x.size)
    return out, energy


class _Workspace:
    """Buffers of one thread, used for one direction after the other: fresh memory costs as much as a sort."""

    def __init__(self, n: int, m: int, dtype: Any) -> None:
        self.particles, self.samples = np.full(n + 1, np.inf, dtype), np.full(m + 1, np.inf, dtype)
        self.order, self.less = np.empty(n, np.int64), np.empty(n + 1, np.int32)
        self.keys = np.empty(n if dtype == np.float32 else 0, np.uint64)

    def merge(self, z: np.ndarray, x: np.ndarray, out: np.ndarray, mode: int) -> float:
        from gpukoop.flow import sorting_loops

        self.samples[:-1] = x
        self.samples[:-1].sort()
        if len(self.keys):
            # Places travel in the lower half of the keys of float32 numbers: twice as quick as an argsort.
            sorting_loops.pack(z.view(np.uint32), self.keys)
            self.keys.sort()
            sorting_loops.unpack(self.keys, self.particles[:-1].view(np.uint32), self.order)
        else:
            self.order = np.argsort(z)
            np.take(z, self.order, out=self.particles[:-1])
        if mode:
            return sorting_loops.energy(self.particles, self.samples, self.order, out, self.less)
        return sorting_loops.transport(self.particles[:-1], self.samples[:-1], self.order, out)


def push_back(pushed: Array, theta: Array) -> Array:
    """Return sum_p pushed[p, i] theta[p], (n, d), from pushed (P, n) and directions (P, d)."""
    if is_cupy(pushed) or theta.shape[1] > WIDE:
        return pushed.T @ theta
    from gpukoop.flow import sorting_loops

    n = pushed.shape[1]
    velocity = np.zeros((n, theta.shape[1]), pushed.dtype)
    _share(
        lambda start, stop: sorting_loops.back(pushed, theta, velocity, start, stop),
        n,
        max(1, -(-n // 8)),
        pushed.size,
    )
    return velocity


def _share(run: Callable[[int, int], None], n: int, size: int, numbers: int) -> None:
    """Call run(start, stop) on all slices of n; compiled code and sorts release the GIL, so plain threads do."""
    starts = range(0, n, size)
    workers = min(len(starts), n_threads())
    if workers == 1 or numbers < SERIAL:
        for start in starts:
            run(start, min(start + size, n))
        return
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda start: run(start, min(start + size, n)), starts))
