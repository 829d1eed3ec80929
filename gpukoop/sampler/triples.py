r"""Triples on the path: noise, a data point, a time; and the velocity that a batch of them makes most likely.

===  ==============================
b    rows of a batch
d    coordinates of x
===  ==============================
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any, final

import numpy as np

from gpukoop.arrays import Array, is_cupy, like, namespace, points
from gpukoop.checks import check_kind
from gpukoop.draws import check_count
from gpukoop.fusion import fused
from gpukoop.sampler.lifting import DEVICE_ENTRIES, column, pair_distances
from gpukoop.sampler.teacher import AbstractTeacher

# Data points that the velocity of a batch is conditioned on.
CONDITIONED = 1024
# Times at which x / t and 1 / (1 - t) keep half of their digits.
EARLIEST, LATEST = 1e-8, 1.0 - 1e-8


@final
@dataclass(frozen=True)
class Walk:
    """Batches of triples, one after the other.

    Attributes
    ----------
    x0, x1 : arrays of shape (batches * rows, d)
        Noise and data points.
    uniform : ndarray of shape (batches, rows)
        Places within the parts of the slab, on the host.
    """

    x0: Array
    x1: Array
    uniform: np.ndarray

    def at(self, t: Any) -> Array:
        """Return the points of the path at time t, a number or (batches * rows,)."""
        t = t if np.ndim(t) == 0 else t[:, None]
        return (1 - t) * self.x0 + t * self.x1

    def of(self, batches: list[int]) -> Walk:
        """Return these batches, in this order."""
        count, rows = self.uniform.shape
        if batches == list(range(count)):
            return self
        index = (np.array(batches)[:, None] * rows + np.arange(rows)).ravel()
        index = namespace(self.x0).asarray(index)
        return Walk(self.x0[index], self.x1[index], self.uniform[batches])


@final
@dataclass(frozen=True)
class Triples:
    """The path that is sampled: data in the frame of the sampler, an optional teacher, a seed.

    Batch i is a function of (seed, i) alone, so a pass that was interrupted continues with the same numbers.

    Parameters
    ----------
    data : array of shape (n, d)
        Read as NumPy's or CuPy's.
    teacher : teacher or None
    seed : int
    """

    data: Array
    teacher: AbstractTeacher | None
    seed: int

    def __post_init__(self) -> None:
        # Of tensors: their memory, read as an array, since batches are drawn and gathered in it.
        object.__setattr__(self, "data", points(self.data, "data")[0])
        if self.teacher is not None:
            check_kind(self.teacher, AbstractTeacher, "teacher")
        check_count(self.seed, "seed", least=0)

    def walk(self, first: int, batches: int, rows: int) -> Walk:
        """Return the triples of batches ``first`` to ``first + batches - 1``."""
        drawn = [self._draw(first + i, rows) for i in range(batches)]
        xp = namespace(self.data)
        noise, chosen, uniform = ([part[c] for part in drawn] for c in range(3))
        x0 = like(noise[0] if batches == 1 else np.concatenate(noise), self.data)
        return Walk(x0, self.data[xp.asarray(np.concatenate(chosen))], np.stack(uniform))

    def draw(self, i: int, rows: int) -> tuple[Array, Array, np.ndarray]:
        """Return x0 and x1, (rows, d), and uniform numbers (rows,) on the host, of batch i."""
        one = self.walk(i, 1, rows)
        return one.x0, one.x1, one.uniform[0]

    def _draw(self, i: int, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return noise, rows of the data and uniform numbers of batch i, on the host.

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
        noise = rng.standard_normal((rows, self.data.shape[1]))
        return noise, chosen, rng.random(rows)

    def _order(self, turn: int) -> np.ndarray:
        # One order is kept: batches walk through a turn before the next begins.
        kept = self.__dict__.get("_kept")
        if kept is None or kept[0] != turn:
            order = np.random.default_rng([self.seed, 2**31 + turn]).permutation(len(self.data))
            kept = (turn, order)
            object.__setattr__(self, "_kept", kept)
        return kept[1]

    def velocity(self, walk: Walk, x: Array, t: Any) -> Array:
        """Return the velocity to learn from at x = (1-t) x0 + t x1: the teacher's, or that of the batch."""
        if self.teacher is None:
            return batch_velocity(walk.x1, x, t, len(walk.uniform))
        return self.teacher.velocity(x, t)


def batch_velocity(x1: Array, x: Array, t: Any, batches: int = 1) -> Array:
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
    batches : int
        Parts of the rows, of one size, that are conditioned on their own data points each.

    Notes
    -----
    Cost: b min(b, 1024) pairs a batch of b. Accuracy: eps / (1 - t).
    """
    xp = namespace(x)
    rows, d = len(x) // batches, x.shape[1]
    shaped = (batches, rows, d)
    t = xp.clip(column(t, x), EARLIEST, LATEST).reshape(batches, rows, 1)
    x, y, v = x.reshape(shaped), x1.reshape(shaped), xp.empty(shaped, x.dtype)
    for start in range(0, rows, CONDITIONED):
        width = min(CONDITIONED, rows - start)
        together = max(1, DEVICE_ENTRIES // width**2) if is_cupy(x) else 1
        for first in range(0, batches, together):
            part = slice(first, first + together), slice(start, start + width)
            v[part] = _conditioned(x[part], y[part], t[part])
    return v.reshape(-1, d)


def _conditioned(x: Array, y: Array, t: Array) -> Array:
    """Return the velocities of (b, c, d) points given the data points of their own batch of b."""
    # Differences first, at x / t: the expanded square loses all digits as t tends to 1.
    logits = _logits(pair_distances(x / t, y), t)
    share = _exponentials(logits, logits.max(axis=2, keepdims=True))
    return _towards(share @ y, share.sum(axis=2, keepdims=True), x, t)


@fused
def _logits(xp: ModuleType, q: Any, t: Any) -> Any:
    ratio = t / (1.0 - t)
    return q * (-0.5 * ratio * ratio)


@fused
def _exponentials(xp: ModuleType, logits: Any, largest: Any) -> Any:
    return xp.exp(logits - largest)


@fused
def _towards(xp: ModuleType, total: Any, mass: Any, x: Any, t: Any) -> Any:
    return (total / mass - x) / (1.0 - t)
