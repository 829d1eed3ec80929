r"""Velocities for small clouds of the host, a group of particles and samples for each class, all groups at once.

========== ==================================================================
Z (c, n, d) particles of c groups; shorter groups are filled up
X (c, n, d) samples of the same groups
a (c, n)    weights 1 / (size of the group), 0 where filled up
A (c, n, 2n) how much each sample attracts, and each particle repels
========== ==================================================================

A batch of a generator's training has some fifty points in each class: loops over classes and fused sums over pairs then cost calls,
not arithmetic. Here distances are products of matrices and every velocity is one more,

.. math:: v_i = \sum_j A^x_{ij} (x_j - z_i) - \sum_j A^z_{ij} (z_j - z_i).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Floats = Sequence[float]
# Pairs whose distances are kept at most, over all groups: 16 MB a matrix in float32.
LARGEST = 2**22
# Rows of a block: its distances to a thousand points stay in the second-level cache.
ROWS = 256
# Sinkhorn: blur is reached from the width of the clouds by this factor a step, and then kept for so many.
SCALING, FINAL = 0.5, 24
# Largest cost over eps from which on no way leads down, and relative change of the potentials' exponentials at which steps end.
NEAR, SETTLED = 10.0, 1e-4
# Potentials that change by more than this factor have left the terms that are kept: what was rounded to zero is 1e-38.
LOST = 1e15
# Cost of staying where one is, in largest squared distances, where that is not allowed.
FORBIDDEN = 100.0


class Flowing(NamedTuple):
    """Velocity (c, n, d), and the energy of each group (c,)."""

    velocity: np.ndarray
    energy: np.ndarray


class Groups:
    """Where the groups are in a batch.

    Parameters
    ----------
    labels : integer array of shape (b,)
        Group of each row, of particles and of samples alike.
    """

    def __init__(self, labels: np.ndarray) -> None:
        order = np.argsort(labels, kind="stable")
        _, sizes = np.unique(labels, return_counts=True)
        self.sizes = sizes
        self.mask = np.arange(sizes.max()) < sizes[:, None]
        # filled up with the first row of the group: a point like any other, of weight zero
        first = order[np.concatenate([[0], sizes.cumsum()[:-1]])]
        self.rows = np.repeat(first[:, None], sizes.max(), axis=1)
        self.rows[self.mask] = order
        self.a = (self.mask / sizes[:, None]).astype(np.float32)

    def spread(self, velocity: np.ndarray) -> np.ndarray:
        """Return (c, n, d) as the rows of the batch, (b, d)."""
        found = np.empty((int(self.sizes.sum()), velocity.shape[2]), velocity.dtype)
        found[self.rows[self.mask]] = velocity[self.mask]
        return found

    def mean(self, energy: np.ndarray) -> float:
        """Return the mean over the rows of the batch of what each group has."""
        return float((energy * self.sizes).sum() / self.sizes.sum())


def squares(
    Z: np.ndarray,
    X: np.ndarray,
    start: bool = False,
    lengths: tuple[np.ndarray, np.ndarray] | None = None,
) -> np.ndarray:
    """Return squared distances (c, n, m) of clouds around the origin; 0 on the diagonal of one cloud, or where X starts with Z.

    ``lengths`` are the squared lengths of the points where they are known.
    """
    z, x = lengths or (_lengths(Z), _lengths(X))
    found = np.matmul(Z, X.transpose(0, 2, 1))
    found *= -2
    # In place throughout: at these sizes a temporary costs as much as the product.
    found += z[:, :, None]
    found += x[:, None]
    # Rounding of the inner product may leave a small negative square, whose root would be NaN.
    np.maximum(found, 0, out=found)
    if X is Z or start:
        np.einsum("cii->ci", found[:, :, : Z.shape[1]])[:] = 0
    return found


def _lengths(Z: np.ndarray) -> np.ndarray:
    return np.einsum("cid,cid->ci", Z, Z)


def _pulled(Z: np.ndarray, X: np.ndarray, to_x: np.ndarray, to_z: np.ndarray) -> np.ndarray:
    """Return the velocity for the attraction A^x and the repulsion A^z."""
    found = np.matmul(to_x, X)
    found -= np.matmul(to_z, Z)
    found += (to_z.sum(axis=2) - to_x.sum(axis=2))[:, :, None] * Z
    return found


def mmd(
    Z: np.ndarray,
    X: np.ndarray,
    a: np.ndarray,
    scales: Floats,
    weights: Floats,
    own: np.ndarray | None = None,
    unbiased: bool = False,
) -> Flowing:
    r"""Return the velocity of half the squared MMD for :math:`k = \sum_s w_s e^{-r^2 / 2 s^2}`; without scales for -r.

    Parameters
    ----------
    Z, X, a : arrays
        As at the head of this module.
    scales, weights : sequences of float
        s and w_s.
    own : array of shape (c,), optional
        What :func:`among` gives, where it is known: it moves no particle.
    unbiased : bool
        Particles are repelled by the mean over the others, themselves left out: on average over batches that is the velocity
        of the law. Otherwise the repulsion lacks one part in n, and a cloud in many dimensions ends too narrow.
    """
    others = a
    if unbiased:
        n_each = (a > 0).sum(axis=1, keepdims=True)
        others = a * (n_each / np.maximum(n_each - 1, 1)).astype(a.dtype)
    n = Z.shape[1]
    pulled, total = np.zeros_like(Z), np.zeros(Z.shape[:2], Z.dtype)
    zz, zx = np.zeros((2, len(Z)))
    z, x = _lengths(Z), _lengths(X)
    for start in range(0, n, ROWS):
        # A block of rows stays in the cache from the distances to the velocity; of one cloud every pair is visited once.
        part, rest = slice(start, start + ROWS), slice(start, None)
        here = Z[:, part]
        size = here.shape[1]
        k, w = _kernel(squares(here, X, lengths=(z[:, part], x)), scales, weights)
        zx += _mean(k, a[:, part], a)
        # Weights into the matrix once: the same matrix then sums positions and, by its row sums, their weight.
        w *= a[:, None]
        pulled[:, part] += w @ X
        total[:, part] -= w.sum(axis=2)
        k, w = _kernel(squares(here, Z[:, rest], True, (z[:, part], z[:, rest])), scales, weights)
        zz += _twice(k, a[:, part], a[:, rest])
        mine = w * others[:, None, rest]
        pulled[:, part] -= mine @ Z[:, rest]
        total[:, part] += mine.sum(axis=2)
        if size < n - start:
            theirs = (w[:, :, size:] * others[:, part, None]).transpose(0, 2, 1)
            pulled[:, start + size :] -= theirs @ here
            total[:, start + size :] += theirs.sum(axis=2)
    pulled += total[:, :, None] * Z
    xx = among(X, a, scales, weights) if own is None else own
    return Flowing(pulled, 0.5 * (zz + xx) - zx)


def among(X: np.ndarray, a: np.ndarray, scales: Floats, weights: Floats) -> np.ndarray:
    """Return E k(x, x') of each group, (c,), for the kernel of :func:`mmd`."""
    found, x = np.zeros(len(X)), _lengths(X)
    for start in range(0, X.shape[1], ROWS):
        part, rest = slice(start, start + ROWS), slice(start, None)
        S = squares(X[:, part], X[:, rest], True, (x[:, part], x[:, rest]))
        found += _twice(_kernel(S, scales, weights)[0], a[:, part], a[:, rest])
    return found


def _kernel(S: np.ndarray, scales: Floats, weights: Floats) -> tuple[np.ndarray, np.ndarray]:
    """Return k and -2 dk / d(r^2) at squared distances."""
    if not len(scales):
        r = np.sqrt(S)
        return -r, np.divide(1, r, out=np.zeros_like(r), where=r > 0)
    values, slope = np.zeros_like(S), np.zeros_like(S)
    for s, w in zip(scales, weights, strict=True):
        e = S * np.float32(-0.5 / s**2)
        np.exp(e, out=e)
        values += np.float32(w) * e
        slope += np.float32(w / s**2) * e
    return values, slope


def drift(Z: np.ndarray, X: np.ndarray, a: np.ndarray, scales: Floats, weights: Floats) -> Flowing:
    """Return the drift towards the samples: :func:`gpukoop.flow.drift.drift_field` for groups."""
    S_x, S_z = squares(Z, X), squares(Z, Z)
    # a particle does not see itself, and nobody sees what fills up
    # At infinite distance the kernel is zero: that leaves a row out of every sum without another mask.
    S_x[np.broadcast_to(a[:, None] == 0, S_x.shape)] = np.inf
    S_z[np.broadcast_to(a[:, None] == 0, S_z.shape)] = np.inf
    np.einsum("cii->ci", S_z)[:] = np.inf
    n = (a > 0).sum(axis=1)[:, None]
    to_x, to_z, energy = np.zeros_like(S_x), np.zeros_like(S_z), 0.0
    for s, w in zip(scales, weights, strict=True):
        log_p, P = _soft(S_x, s)
        log_q, Q = _soft(S_z, s)
        to_x += np.float32(w) * P
        to_z += np.float32(w) * Q
        # A group of one has no other particles, and the logarithm of no density would be -inf.
        alone = n < 2
        ratio = np.where(alone, 0, log_q - np.log(np.maximum(n - 1, 1))) - (log_p - np.log(n))
        energy = energy + w * (ratio * a).sum(axis=1)
    return Flowing(_pulled(Z, X, to_x, to_z), np.asarray(energy))


def sinkhorn(
    Z: np.ndarray, X: np.ndarray, a: np.ndarray, blur: float, unbiased: bool = False
) -> Flowing:
    r"""Return the velocity of half the debiased squared W2 at this blur, and OT_eps(Z, X) - OT_eps(Z, Z) / 2.

    What the samples cost among themselves moves no particle and is not solved for. ``unbiased`` keeps each particle from being
    transported to itself, so that the plan among particles looks as that to fresh samples does; groups of one stay as they are.
    """
    k = len(Z)
    C = np.concatenate([squares(Z, X), squares(Z, Z)])
    C *= np.float32(0.5)
    length = max(float(np.sqrt(2 * C.max())), blur)
    if unbiased:
        several = (a > 0).sum(axis=1) > 1
        np.einsum("cii->ci", C[k:])[:] = np.where(several[:, None], FORBIDDEN * length**2, 0)
    b = np.concatenate([a, a])
    with np.errstate(divide="ignore"):
        log_b = np.log(b)
    # rows of both problems, and the columns of the first: the second is symmetric
    f, g = np.zeros_like(b), np.zeros_like(a)

    def soft(C: np.ndarray, potential: np.ndarray, eps: float) -> np.ndarray:
        log_weights = log_b[: len(potential)]
        return -eps * _lse((potential / eps + log_weights)[:, None] - C / np.float32(eps))

    C_t = C[:k].transpose(0, 2, 1)
    # From the largest distance down: started at the blur itself, potentials of far samples take thousands of iterations.
    lengths = [length * SCALING**i for i in range(int(np.log(blur / length) / np.log(SCALING)) + 1)]
    if (length / blur) ** 2 < 2 * NEAR:
        lengths = []
    for at, steps in [*((at, 1) for at in lengths), (blur, FINAL)]:
        eps = at * at
        plan = np.multiply(C, np.float32(-1 / eps))
        plan += (np.concatenate([g, f[k:]]) / eps + log_b)[:, None]
        found = _scaled(plan, a, f[k:] / eps, steps)
        if found is not None:
            rows, v, w = found
            f = np.concatenate([-eps * rows, f[k:] + eps * np.log(w)])
            g = g + eps * np.log(v)
            continue
        for _ in range(steps):
            made = soft(C, np.concatenate([g, f[k:]]), eps)
            # one side after the other, and of a symmetric problem half of the way
            f = np.concatenate([made[:k], (f[k:] + made[k:]) / 2])
            g = soft(C_t, f[:k], eps)
    if found is None:
        exponent = (np.concatenate([g, f[k:]]) / eps + log_b)[:, None] - C / np.float32(eps)
        plan = np.exp(exponent - exponent.max(axis=2)[:, :, None])
    else:
        plan *= np.concatenate([v, w])[:, None]
    # Rows normalised anew: after a fixed number of iterations the plan's rows need not have converged, and a mean must have
    # weight 1.
    plan /= plan.sum(axis=2)[:, :, None]
    value = (f * b).sum(axis=1, dtype=float)
    return Flowing(
        _pulled(Z, X, plan[:k], plan[k:]), value[:k] + (g * a).sum(axis=1, dtype=float) - value[k:]
    )


def _scaled(
    exponent: np.ndarray, a: np.ndarray, own: np.ndarray, steps: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    r"""Take steps of Sinkhorn by products with :math:`M_{ij} = e^{E_{ij} - \max_j E_{ij}}`, one exponential a pair for all of them.

    .. math:: v \leftarrow a / M^T (a / M v), \qquad w \leftarrow \sqrt{w\, r / M w}

    E (2 c, n, n) is (potential of j - cost) / eps and the logarithm of the weight of j, and M afterwards; own (c, n) the potential
    of the symmetric problems over eps. Returns log-sum-exps of the rows of the first problems, v and w, the changes of the
    potentials as factors; None where columns that no row's largest term belongs to have lost their digits.
    """
    k = len(a)
    top = exponent.max(axis=2)
    exponent -= top[:, :, None]
    M = np.exp(exponent, out=exponent)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        # what a particle's own potential would be if its row alone decided
        r = np.exp(-top[k:] - own)
        change = np.ones_like(top)
        for _ in range(steps):
            rows = np.matmul(M, change[:, :, None])[:, :, 0]
            columns = np.matmul((a / rows[:k])[:, None], M[:k])[:, 0]
            before, v = change, np.where(a > 0, a / columns, 1)
            w = np.sqrt(change[k:] * (r / rows[k:]))
            change = np.concatenate([v, w])
            if np.abs(change - before).max() < SETTLED * change.min():
                break
        largest = np.maximum(change, 1 / change).max()
    if not largest < LOST:
        return None
    return top[:k] + np.log(rows[:k]), v, w


def _lse(exponent: np.ndarray) -> np.ndarray:
    top = exponent.max(axis=2)
    return top + np.log(np.exp(exponent - top[:, :, None]).sum(axis=2))


def _soft(S: np.ndarray, s: float) -> tuple[np.ndarray, np.ndarray]:
    """Return log sum_j exp(-S_ij / 2 s^2) and the shares of the terms; a row without terms has zeros."""
    exponent = S * np.float32(-0.5 / s**2)
    top = exponent.max(axis=2)
    top[np.isneginf(top)] = 0
    e = np.exp(exponent - top[:, :, None])
    total = e.sum(axis=2)
    total[total == 0] = 1
    return top + np.log(total), e / total[:, :, None]


def _mean(K: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    rows = np.matmul(K, b[:, :, None])[:, :, 0]
    return (rows * a).sum(axis=1, dtype=float)


def _twice(K: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the part of a mean over all pairs that a block of rows and those after it have; pairs within the block once."""
    size = a.shape[1]
    return 2 * _mean(K, a, b) - _mean(K[:, :, :size], a, b[:, :size])
