r"""Moments of the lift along the path: one streaming pass, memory O(D^2), data of any length, resumable.

A triple is (x0, x1, s): noise, a data point, a clock time in the slab [a, b]. With x_s = (1-t) x0 + t x1, t = t(s), and the
velocity u = v(x_s, t) of the teacher, or the mean of x1 - x0 given x_s and the batch without one,

.. math:: S = E[g^T g], \quad M_k = E[g^T L g \mid s \in \text{bin } k], \quad B_k = E[g^T g] \text{ at the edges of the bins}

The identity E[g^T J_g v] = E[g^T J_g (x1 - x0)] (g and J_g depend on (x_t, t) only, and v is the mean of x1 - x0 given
them) is why no teacher is needed; :func:`batch_velocity` takes most of the noise out of it. It holds for fixed features, not for a lift that is still being trained.

===  ======================
D    features of the lift
N    triples
K    bins of the slab
===  ======================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, final

import numpy as np

from gpukoop.arrays import Array, like, namespace, to_host
from gpukoop.blas import one_thread
from gpukoop.kernels.reference import squared_distances
from gpukoop.sampler.lifting import BLOCK_ENTRIES, Lift, column
from gpukoop.sampler.teacher import AbstractTeacher

# Rows of a batch: a block of features is 4 MB, and no fewer rows than a rank update is worth.
BATCH_ENTRIES = 4 * BLOCK_ENTRIES
MIN_BATCH, MAX_BATCH = 256, 2048
# Inner edges that a batch is used for; they take turns. One leaves the kept times of a trajectory visibly noisy.
INNER_EDGES = 3
# Data points that the velocity of a batch is conditioned on.
CONDITIONED = 1024
# Times at which x / t and 1 / (1 - t) keep half of their digits.
EARLIEST, LATEST = 1e-8, 1.0 - 1e-8


@final
@dataclass(frozen=True)
class Triples:
    """The path that is sampled: data in the frame of the sampler, an optional teacher, a seed.

    Batch i is a function of (seed, i) alone, so a pass that was interrupted continues with the same numbers.

    Parameters
    ----------
    data : array of shape (n, d)
        float64, NumPy or CuPy.
    teacher : teacher or None
    seed : int
    """

    data: Array
    teacher: AbstractTeacher | None
    seed: int

    def draw(self, i: int, rows: int) -> tuple[Array, Array, np.ndarray]:
        """Return x0 and x1, (rows, d), and uniform numbers (rows,) on the host, of batch i.

        The data are walked in a random order that is new in every pass, so that N = n triples see each point once.
        """
        rng = np.random.default_rng([self.seed, i])
        n = len(self.data)
        start = i * rows
        chosen = np.empty(rows, dtype=np.int64)
        filled = 0
        while filled < rows:
            turn, at = divmod(start + filled, n)
            part = self._order(turn)[at : at + rows - filled]
            chosen[filled : filled + len(part)] = part
            filled += len(part)
        xp = namespace(self.data)
        x1 = self.data[xp.asarray(chosen)]
        x0 = like(rng.standard_normal(x1.shape), self.data)
        return x0, x1, rng.random(rows)

    def _order(self, turn: int) -> np.ndarray:
        # One order is kept: batches walk through a turn before the next begins.
        kept = self.__dict__.get("_kept")
        if kept is None or kept[0] != turn:
            order = np.random.default_rng([self.seed, 2**31 + turn]).permutation(len(self.data))
            kept = (turn, order)
            object.__setattr__(self, "_kept", kept)
        return kept[1]

    def velocity(self, x0: Array, x1: Array, x: Array, t: Any) -> Array:
        """Return the velocity to learn from at x = (1-t) x0 + t x1: the teacher's, or that of the batch."""
        if self.teacher is None:
            return batch_velocity(x1, x, t)
        return self.teacher.velocity(x, t)


def batch_velocity(x1: Array, x: Array, t: Any) -> Array:
    r"""Return E[x1 - x0 | x_t, the data points of the batch]: unbiased like x1 - x0, with far less noise.

    .. math:: v_i = \frac{\bar y_i - x_i}{1 - t_i}, \qquad
              \bar y_i = \sum_j \mathrm{softmax}_j\!\left(-\frac{|x_i - t_i y_j|^2}{2 (1-t_i)^2}\right) y_j

    Which of the points y_j of a batch made x_i is unknown to someone who sees x_i and the batch, and all are equally likely
    beforehand; so this is the mean of x1 - x0 given more than x_t, and its mean given x_t is the exact velocity (the tower
    rule). In few dimensions it is nearly the exact velocity itself; in many the softmax picks the own point, which is x1 - x0.

    Parameters
    ----------
    x1 : array of shape (b, d)
        Data points, row i the one that x_i was made from.
    x : array of shape (b, d)
    t : array of shape (b,), or a number
        In [0, 1]; at t = 1 the velocity is taken just before.

    Notes
    -----
    Cost: b min(b, 1024) pairs. Accuracy: eps / (1 - t).
    """
    xp = namespace(x)
    v = xp.empty_like(x)
    t = xp.clip(column(t, x), EARLIEST, LATEST)
    for start in range(0, len(x), CONDITIONED):
        rows = slice(start, start + CONDITIONED)
        y, at = x1[rows], t[rows]
        # Differences first, at x / t: the expanded square loses all digits as t tends to 1.
        logits = squared_distances(x[rows] / at, y) * (-0.5 * (at / (1 - at)) ** 2)
        share = xp.exp(logits - logits.max(axis=1, keepdims=True))
        share /= share.sum(axis=1, keepdims=True)
        v[rows] = (share @ y - x[rows]) / (1 - at)
    return v


@final
@dataclass
class Moments:
    r"""Sums over triples of one slab of the clock.

    Parameters
    ----------
    slab : (float, float)
        [a, b] in clock time.
    n_features, n_coordinates : int
        D and d.
    n_bins : int
        K.
    ends : tuple of bool
        Whether the denoiser's right-hand side is summed at a and at b.

    Attributes
    ----------
    count, batches : int
        Triples and batches so far.
    """

    slab: tuple[float, float]
    n_features: int
    n_coordinates: int
    n_bins: int = 1
    ends: tuple[bool, bool] = (False, False)
    count: int = 0
    batches: int = 0
    sums: dict[str, Array] = field(default_factory=dict)
    edge_counts: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        if len(self.edge_counts) == 0:
            self.edge_counts = np.zeros(self.n_bins + 1)

    @property
    def length(self) -> float:
        """Width of the slab, b - a."""
        return self.slab[1] - self.slab[0]

    def edge(self, k: int) -> float:
        """Return the clock time of edge k."""
        return self.slab[0] + self.length * k / self.n_bins

    def _allocate(self, xp: Any) -> None:
        D, K = self.n_features, self.n_bins
        self.sums = {"S": xp.zeros((D, D)), "M": xp.zeros((K, D, D)), "B": xp.zeros((K + 1, D, D))}
        for end, wanted in zip("ab", self.ends, strict=True):
            if wanted:
                self.sums[f"Y{end}"] = xp.zeros((D, self.n_coordinates))

    def batch_rows(self) -> int:
        """Return the rows of one batch, a multiple of the number of bins."""
        rows = min(MAX_BATCH, max(MIN_BATCH, BATCH_ENTRIES // self.n_features))
        return -(-rows // self.n_bins) * self.n_bins

    def update(self, lift: Lift, triples: Triples) -> None:
        """Add the next batch.

        Notes
        -----
        Cost: 5 N D^2 flops and four evaluations of the features for N rows; with bins, 8 and seven. Times are stratified, one in each of
        N equal parts of the slab. The two ends use every row, the inner edges take turns.
        """
        rows, K = self.batch_rows(), self.n_bins
        x0, x1, uniform = triples.draw(self.batches, rows)
        xp = namespace(x0)
        if not self.sums:
            self._allocate(xp)
        s = self.slab[0] + self.length * (np.arange(rows) + uniform) / rows
        t = xp.asarray(lift.clock.time(s))
        x = (1 - t)[:, None] * x0 + t[:, None] * x1
        g, rate = lift.lift_and_generate(x, t, triples.velocity(x0, x1, x, t))
        shaped = (K, rows // K, self.n_features)
        G, H = g.reshape(shaped), rate.reshape(shaped)
        self.sums["S"] += g.T @ g
        for k in range(K):
            self.sums["M"][k] += G[k].T @ H[k]
        first = INNER_EDGES * self.batches
        inner = {1 + (first + i) % (K - 1) for i in range(INNER_EDGES)} if K > 1 else set()
        for k in (0, K, *sorted(inner)):
            self._update_edge(k, lift, triples, x0, x1)
        self.count += rows
        self.batches += 1

    def _update_edge(self, k: int, lift: Lift, triples: Triples, x0: Array, x1: Array) -> None:
        t = float(lift.clock.time(self.edge(k)))
        x = (1 - t) * x0 + t * x1
        g = lift.lift(x, t)
        self.sums["B"][k] += g.T @ g
        self.edge_counts[k] += len(x)
        name = {0: "Ya", self.n_bins: "Yb"}.get(k, "")
        if name in self.sums:
            # The denoiser's target E[x1 | x_t] = x + (1-t) v; without a teacher it is x1 itself.
            target = x + (1 - t) * triples.velocity(x0, x1, x, t)
            self.sums[name] += g.T @ target

    def host(self, name: str, k: int | None = None) -> np.ndarray:
        """Return a mean on the host: "S", "Ya", "Yb", or "M" or "B" of bin or edge k."""
        total = to_host(self.sums[name] if k is None else self.sums[name][k])
        if name == "M":
            return total * (self.n_bins / self.count)
        return total / (self.edge_counts[k] if name == "B" else self.count)

    def slope(self, upto: int) -> np.ndarray:
        """Return (s_k - a) times the mean of g^T L g over [a, s_k], k = ``upto`` edges on."""
        D = self.n_features
        width = self.length / self.n_bins
        return width * sum((self.host("M", k) for k in range(upto)), np.zeros((D, D)))

    def pooled(self, others: list[Moments]) -> Moments:
        """Return the sums of this and other moments of the same lift, as if their triples had been one stream."""
        total = Moments(self.slab, self.n_features, self.n_coordinates, self.n_bins, self.ends)
        total.sums = {name: value.copy() for name, value in self.sums.items()}
        total.count, total.batches = self.count, self.batches
        total.edge_counts = self.edge_counts.copy()
        for other in others:
            for name, value in other.sums.items():
                total.sums[name] += value
            total.count += other.count
            total.batches += other.batches
            total.edge_counts += other.edge_counts
        return total

    def scaled(self, weight: float) -> Moments:
        """Return the moments as if ``weight`` times as many triples had been seen."""
        copy = self.pooled([])
        copy.sums = {name: weight * value for name, value in copy.sums.items()}
        copy.count, copy.edge_counts = weight * copy.count, weight * copy.edge_counts  # type: ignore[assignment]
        return copy

    def save(self, path: str | FilePath) -> None:
        """Write the sums to an .npz file; :meth:`load` continues from it with the same bits."""
        arrays = {f"sum_{name}": to_host(value) for name, value in self.sums.items()}
        np.savez(
            path,
            slab=self.slab,
            shape=(self.n_features, self.n_coordinates, self.n_bins, self.count, self.batches),
            ends=self.ends,
            edge_counts=self.edge_counts,
            **arrays,  # type: ignore[arg-type]
        )

    @classmethod
    def load(cls, path: str | FilePath, xp: Any = np) -> Moments:
        """Return the moments that :meth:`save` wrote, as arrays of ``xp``."""
        with np.load(path) as stored:
            D, d, n_bins, count, batches = (int(i) for i in stored["shape"])
            a, b = (float(v) for v in stored["slab"])
            ends = (bool(stored["ends"][0]), bool(stored["ends"][1]))
            self = cls((a, b), D, d, n_bins, ends, count, batches)
            self.edge_counts = stored["edge_counts"]
            self.sums = {
                name.removeprefix("sum_"): xp.asarray(stored[name])
                for name in stored.files
                if name.startswith("sum_")
            }
        return self


def assemble(
    lift: Lift,
    triples: Triples,
    n_triples: int,
    *,
    slab: tuple[float, float] | None = None,
    n_bins: int = 1,
    ends: tuple[bool, bool] = (False, False),
    moments: Moments | None = None,
    callback: Callable[[Moments], object] | None = None,
) -> Moments:
    """Return moments over at least ``n_triples`` triples, continuing ``moments`` if they are given.

    Parameters
    ----------
    lift : Lift
    triples : Triples
    n_triples : int
        N in total, rounded up to whole batches; 200 D is enough for most.
    slab : (float, float), optional
        In clock time; the whole window by default.
    n_bins : int
        Parts of the slab whose moments are kept apart, for states within it.
    ends : (bool, bool)
        Whether the denoiser is wanted at the two ends.
    moments : Moments, optional
        What an interrupted pass had; it is added to in place.
    callback : callable, optional
        Called with the moments after each batch; returning True stops.

    Notes
    -----
    Cost: 5 N D^2 flops; memory (2 K + 2) D^2 numbers and one batch.
    """
    if moments is None:
        whole = (0.0, lift.clock.horizon) if slab is None else slab
        moments = Moments(whole, lift.n_features, lift.n_coordinates, n_bins, ends)
    # Every inner edge needs a batch.
    while moments.count < n_triples or INNER_EDGES * moments.batches < moments.n_bins - 1:
        with one_thread(16 * moments.n_features**2):
            moments.update(lift, triples)
        if callback is not None and callback(moments) is True:
            break
    return moments
