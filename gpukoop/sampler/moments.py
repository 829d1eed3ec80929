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

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, final

import numpy as np

from gpukoop.arrays import Array, is_cupy, namespace, to_host
from gpukoop.blas import one_thread
from gpukoop.checks import check_kind, real_array
from gpukoop.draws import check_count
from gpukoop.files import read_sealed, write_sealed
from gpukoop.sampler.lifting import BLOCK_ENTRIES, DEVICE_ENTRIES, Lift
from gpukoop.sampler.triples import Triples, Walk

# Rows of a batch: a block of features is 4 MB, and no fewer rows than a rank update is worth.
BATCH_ENTRIES = 4 * BLOCK_ENTRIES
MIN_BATCH, MAX_BATCH = 256, 2048
# Inner edges that a batch is used for; they take turns. One leaves the kept times of a trajectory visibly noisy.
INNER_EDGES = 3

_MAGIC = b"gpukoop moments 1\n"


def _by_bins(a: Array, batches: int, K: int) -> Array:
    """Return rows (batch, bin, row) in the order (bin, batch, row)."""
    parts = a.reshape(batches, K, -1, *a.shape[1:])
    return parts.swapaxes(0, 1).reshape(a.shape)


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
    _copied: dict[str, np.ndarray] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        a, b = real_array(self.slab, "slab", (2,)).tolist()
        if not a < b:
            raise ValueError(f"slab is {self.slab}, expected (a, b) with a < b in clock time")
        for name in ("n_features", "n_coordinates", "n_bins"):
            check_count(getattr(self, name), name)
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

    def update(self, lift: Lift, triples: Triples, batches: int = 1) -> None:
        """Add the next batches: the same sums whether they come one by one or together.

        Notes
        -----
        Cost: 5 N D^2 flops and four evaluations of the features for N rows; with bins, 8 and seven. Times are stratified, one in each of
        N equal parts of the slab. The two ends use every row, the inner edges take turns. Together the batches take as many
        launches of a device as one of them, and memory for 6 N D numbers.
        """
        rows, K = self.batch_rows(), self.n_bins
        walk = triples.walk(self.batches, batches, rows)
        xp = namespace(walk.x0)
        if not self.sums:
            self._allocate(xp)
        self._copied = None
        s = self.slab[0] + self.length * (np.arange(rows) + walk.uniform) / rows  # (batches, rows)
        t = xp.asarray(lift.clock.time(s.ravel()))
        x = walk.at(t)
        u = triples.velocity(walk, x, t)
        if batches > 1:  # the rows of a bin side by side
            x, u, t = (_by_bins(a, batches, K) for a in (x, u, t))
        g, rate = lift.lift_and_generate(x, t, u)
        shaped = (K, len(x) // K, self.n_features)
        G, H = g.reshape(shaped), rate.reshape(shaped)
        self.sums["S"] += g.T @ g
        for total, left, right in zip(self.sums["M"], G, H, strict=True):
            total += left.T @ right
        self._update_edges(lift, triples, walk)
        self.count += batches * rows
        self.batches += batches

    def _update_edges(self, lift: Lift, triples: Triples, walk: Walk) -> None:
        K = self.n_bins
        used: dict[int, list[int]] = {k: [] for k in range(K + 1)}
        for i in range(len(walk.uniform)):
            first = INNER_EDGES * (self.batches + i)
            inner = {1 + (first + j) % (K - 1) for j in range(INNER_EDGES)} if K > 1 else set()
            for k in (0, K, *inner):
                used[k].append(i)
        edges = [(k, batches) for k, batches in used.items() if batches]
        together = len(walk.uniform) > 1 or is_cupy(walk.x0)
        for group in [edges] if together else [[edge] for edge in edges]:
            at = [float(lift.clock.time(self.edge(k))) for k, _ in group]
            self._update_group(group, at, lift, triples, walk)

    def _update_group(
        self,
        group: list[tuple[int, list[int]]],
        at: list[float],
        lift: Lift,
        triples: Triples,
        walk: Walk,
    ) -> None:
        """Add edges (k, their batches), at times ``at``, from one evaluation of the lift."""
        part = walk.of([i for _, batches in group for i in batches])
        xp, rows = namespace(walk.x0), self.batch_rows()
        sizes = [rows * len(batches) for _, batches in group]
        t: Any = at[0] if len(group) == 1 else xp.asarray(np.repeat(at, sizes))
        x = part.at(t)
        g = lift.lift(x, t)
        stop = 0
        for (k, batches), time, size in zip(group, at, sizes, strict=True):
            block = slice(stop, stop + size)
            stop += size
            total = self.sums["B"][k]
            total += g[block].T @ g[block]
            self.edge_counts[k] += size
            name = {0: "Ya", self.n_bins: "Yb"}.get(k, "")
            if name in self.sums:
                # The denoiser's target E[x1 | x_t] = x + (1-t) v; without a teacher it is x1 itself.
                own = walk.of(batches)
                target = x[block] + (1 - time) * triples.velocity(own, x[block], time)
                self.sums[name] += g[block].T @ target

    def host(self, name: str, k: int | None = None) -> np.ndarray:
        """Return a mean on the host: "S", "Ya", "Yb", or "M" or "B" of bin or edge k."""
        sums = self._on_host()
        total = sums[name] if k is None else sums[name][k]
        if name == "M":
            return total * (self.n_bins / self.count)
        return total / (self.edge_counts[k] if name == "B" else self.count)

    def _on_host(self) -> dict[str, np.ndarray]:
        """Return all sums on the host, which copies them once after each update."""
        if self._copied is None:
            self._copied = {name: to_host(value) for name, value in self.sums.items()}
        return self._copied

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
        """Write the sums to a file sealed by its digest; :meth:`load` continues from it with the same bits."""
        arrays = {f"sum_{name}": to_host(value) for name, value in self.sums.items()}
        buffer = io.BytesIO()
        np.savez(
            buffer,
            slab=self.slab,
            shape=(self.n_features, self.n_coordinates, self.n_bins, self.count, self.batches),
            ends=self.ends,
            edge_counts=self.edge_counts,
            **arrays,  # type: ignore[arg-type]
        )
        write_sealed(FilePath(path), _MAGIC, buffer.getvalue())

    @classmethod
    def load(cls, path: str | FilePath, xp: Any = np) -> Moments:
        """Return the moments that :meth:`save` wrote, as arrays of ``xp``."""
        try:
            with np.load(io.BytesIO(read_sealed(FilePath(path), _MAGIC))) as file:
                stored = dict(file)
        except (ValueError, OSError) as error:
            raise ValueError(f"{path} holds no moments that Moments.save wrote: {error}") from None
        D, d, n_bins, count, batches = (int(i) for i in stored["shape"])
        a, b = (float(v) for v in stored["slab"])
        ends = (bool(stored["ends"][0]), bool(stored["ends"][1]))
        self = cls((a, b), D, d, n_bins, ends, count, batches)
        self.edge_counts = stored["edge_counts"]
        sums = {name: a for name, a in stored.items() if name.startswith("sum_")}
        self.sums = {name.removeprefix("sum_"): xp.asarray(a) for name, a in sums.items()}
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
        Called with the moments after each batch, on a device after each block of batches; returning True stops.

    Returns
    -------
    Moments

    Notes
    -----
    Cost: 5 N D^2 flops; memory (2 K + 2) D^2 numbers and one batch.
    """
    check_kind(lift, Lift, "lift")
    check_kind(triples, Triples, "triples")
    n_triples = check_count(n_triples, "n_triples")
    if moments is None:
        whole = (0.0, lift.clock.horizon) if slab is None else slab
        moments = Moments(whole, lift.n_features, lift.n_coordinates, n_bins, ends)
    rows = moments.batch_rows()
    most = DEVICE_ENTRIES // (rows * lift.n_features) if is_cupy(triples.data) else 1
    while True:
        # Every inner edge needs a batch.
        unseen = max(0, moments.n_bins - 1 - INNER_EDGES * moments.batches)
        left = max(-(-(n_triples - moments.count) // rows), -(-unseen // INNER_EDGES))
        if left < 1:
            break
        with one_thread(16 * moments.n_features**2):
            moments.update(lift, triples, min(left, max(1, most)))
        if callback is not None and callback(moments) is True:
            break
    return moments
