r"""One-dimensional transport and energy distance by sorting, many directions at once.

========= ============================================================
P         directions, which threads share
z (P, n)  projected particles, or (d, n) with directions (P, d)
x (P, m)  projected samples, or (d, m) with directions
========= ============================================================

Two forms of the same sums: array operations of one line, which take sample weights and serve as the reference, and Numba
loops for the host, parallel over directions; :mod:`.sorting_batched` is the form of a device. Ties are exact: coinciding particles share their velocity.
Nothing here loops over pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gpukoop.arrays import Array, is_cupy, namespace
from gpukoop.kernels.cpu.threads import n_threads, spread

# Below so many numbers a second thread costs more than it saves.
SERIAL = 1 << 16
# From so many features on a matrix product is no longer thin.
WIDE = 32

Results = tuple[Array, Array]  # (P, n) displacement or gradient, (P,) energy


def transport_line(z: Array, x: Array, directions: Array | None = None) -> Results:
    r"""Return target minus particle and W2^2 / 2 for every row, or for every direction.

    The target of the i-th smallest particle is the mean of the quantile function over its share,
    :math:`n \int_{i/n}^{(i+1)/n} Q(u) du`, for n = m the i-th smallest sample. Coinciding particles get the mean of
    their targets. It is -n times the gradient of W2^2 / 2, and the mean target is the mean sample.
    """
    return _compiled(z, x, directions, "transport")


def energy_line(z: Array, x: Array, directions: Array | None = None) -> Results:
    r"""Return n times the gradient of MMD^2 / 2 of -\|x - y\|, and MMD^2 / 2, for every row or direction.

    .. math:: n g_i = \frac{\#\{x < z_i\} + \#\{x \le z_i\}}{m} - 1 - \frac{2\,\mathrm{rank}_i + 1 - n}{n}, \qquad
              \tfrac12 MMD^2 = \int (F_\mu - F_\nu)^2

    with ranks from 0, averaged over ties.
    """
    return _compiled(z, x, directions, "energy")


def transport_row(z: Array, x: Array, weights: Array | None = None) -> tuple[Array, Array]:
    """Return target minus particle and W2^2 / 2 of one line: z (n,), x (m,), sample weights (m,) of sum 1."""
    xp = namespace(z)
    n = len(z)
    order, rank = xp.argsort(z), xp.argsort(x)
    z_sorted, x_sorted = z[order], x[rank]
    # As many particles as samples: the k-th goes to the k-th, without quantiles.
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
    # Particles on one place are told apart by nothing, so each goes to the mean of what they are sent to.
    if int((last - first).max()) == 1:
        return target
    total = xp.concatenate([xp.zeros(1, target.dtype), xp.cumsum(target)])
    return (total[last] - total[first]) / (last - first)


def quantile_means(x_sorted: Array, weights: Array | None, n: int) -> tuple[Array, Array]:
    """Return the mean of the quantile function over n equal shares, and the mean variance inside the shares."""
    xp = namespace(x_sorted)
    m = len(x_sorted)
    centre = x_sorted.mean()
    # Centred: the variance below is a difference of second moments, which cancels far from 0.
    x = (x_sorted - centre).astype(float)
    if weights is None:
        upper = xp.arange(1, m + 1) / m
    else:
        upper = xp.cumsum(weights.astype(float))
        # To end at exactly 1, lest the last share of the particles look beyond the last sample.
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
    # The energy on the line is the integral of the squared gap of both distribution functions (Szekely, Rizzo 2004).
    both = xp.sort(xp.concatenate([z_sorted, x_sorted]))
    gap = (
        xp.searchsorted(z_sorted, both[:-1], side="right") / n
        - upper[xp.searchsorted(x_sorted, both[:-1], side="right")]
    )
    return result, (gap**2 * xp.diff(both)).sum()


def _compiled(z: np.ndarray, x: np.ndarray, directions: np.ndarray | None, mode: str) -> Results:
    """Return what ``mode`` of :class:`_Workspace` writes for every direction; threads take one direction after the other."""
    z, x = np.ascontiguousarray(z), np.ascontiguousarray(x)
    (P, n), m = z.shape, x.shape[1]
    if directions is not None:
        P = len(directions)
        directions = np.ascontiguousarray(directions, z.dtype)
    out, energy = np.empty((P, n), z.dtype), np.empty(P)
    one = np.ones(1, z.dtype)

    def rows(waiting: Iterator[int]) -> None:
        room = _Workspace(n, m, z.dtype)
        for p in waiting:
            if directions is None:
                line = z[p : p + 1], x[p : p + 1], one
            else:
                line = z, x, directions[p]
            energy[p] = getattr(room, mode)(*line, out[p])

    _share(rows, P, P * (n + m))
    return out, energy


class _Workspace:
    """Buffers of one thread, used for one direction after the other: fresh memory costs as much as a sort."""

    def __init__(self, n: int, m: int, dtype: Any) -> None:
        from gpukoop.flow import sorting_loops

        self.loops = sorting_loops
        self.n, size = n, n + m
        self.values, self.sorted = np.empty(size, dtype), np.empty(size, dtype)
        self.slopes = np.empty(n + 1, dtype)
        # Keys hold 32 bits of the number and 32 of its place; float64 is sorted rounded, and ties are mended afterwards.
        self.rounded = self.values if dtype == np.float32 else np.empty(size, np.float32)
        self.keys, self.spare = np.empty(size, np.uint64), np.empty(size, np.uint64)
        self.places = np.empty(size, np.uint32)
        self.counts = np.empty(sorting_loops.COUNTS, np.uint32)
        self.scratch = np.empty(size, np.int32), np.empty(size + 1), np.empty(size, dtype)

    def sort(self, size: int, last: int) -> None:
        """Sort the first values, and write where they were; places beyond ``last`` are written as it."""
        values, rounded, ordered = (a[:size] for a in (self.values, self.rounded, self.sorted))
        keys, spare, places = (a[:size] for a in (self.keys, self.spare, self.places))
        exact = self.rounded is self.values
        if not exact:
            self.loops.narrow(values, rounded)
        self.loops.pack(rounded.view(np.uint32), last if exact else size, keys)
        self.loops.sort(keys, spare, self.counts)
        if exact:
            self.loops.unpack(spare, ordered.view(np.uint32), places)
        elif not self.loops.widen(spare, values, last, ordered, places):
            # Too many ties among the rounded numbers, as after a shift to 1e9: then the exact sort is the quicker one.
            order = np.argsort(values)
            np.take(values, order, out=ordered)
            np.minimum(order, last, out=places, casting="unsafe")

    def transport(self, z: np.ndarray, x: np.ndarray, theta: np.ndarray, out: np.ndarray) -> float:
        """Write target minus particle of the points sum_c theta[c] z[c]; return W2^2 / 2."""
        n = self.n
        particles, samples = self.values[:n], self.values[n:]
        self.loops.project(z, theta, particles)
        self.loops.project(x, theta, samples)
        samples.sort()  # no places are wanted: NumPy sorts numbers alone in half the time
        self.sort(n, n - 1)
        return self.loops.transport(self.sorted[:n], samples, self.places, self.scratch[1], out)

    def energy(self, z: np.ndarray, x: np.ndarray, theta: np.ndarray, out: np.ndarray) -> float:
        """Write n times the gradient of MMD^2 / 2 at the points sum_c theta[c] z[c]; return MMD^2 / 2."""
        n = self.n
        self.loops.project(z, theta, self.values[:n])
        self.loops.project(x, theta, self.values[n:])
        self.sort(len(self.values), n)
        level = self.loops.energy(self.sorted, self.places, n, self.scratch, self.slopes)
        out[:] = self.slopes[:n]
        return level


def push_back(pushed: Array, theta: Array) -> Array:
    """Return sum_p pushed[p, i] theta[p], (n, d), from pushed (P, n) and directions (P, d)."""
    if is_cupy(pushed) or theta.shape[1] > WIDE:
        return pushed.T @ theta
    from gpukoop.flow import sorting_loops

    n, d = pushed.shape[1], theta.shape[1]
    velocity = np.zeros((n, d), pushed.dtype)
    parts = min(n, 8 * n_threads())
    edges = [n * k // parts for k in range(parts + 1)]

    def rows(waiting: Iterator[int]) -> None:
        for k in waiting:
            sorting_loops.back(pushed, theta, velocity, edges[k], edges[k + 1])

    _share(rows, parts, pushed.size)
    return velocity


def _share(run: Callable[[Iterator[int]], None], count: int, numbers: int) -> None:
    """Call run with the numbers below ``count`` that are waiting, on every thread: compiled code and sorts release the GIL."""
    spread(run, range(count), n_threads() if numbers >= SERIAL else 1)
