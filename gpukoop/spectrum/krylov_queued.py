r"""Block Krylov iteration whose steps a device queues: the host looks at the basis every few steps.

=== ==================================================================
n   size of the operator A, seen only through products
k   eigenpairs asked for
b   columns of a block, the same at every step
V   orthonormal basis so far and the next block, beside A V, (n, used)
T   V^T A V, on the host in float64
=== ==================================================================

Differs from :mod:`gpukoop.spectrum.krylov` in that nothing is dropped: Householder QR gives b orthonormal columns whatever the
rank, and those that are rounding are as good as a random new block, which is what the other one draws when its block is
spent. So every step has one shape and asks the host nothing. The coupling of the last block to the next one bounds the
residuals without a look at V; they are computed honestly before they are believed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from gpukoop.arrays import Array, is_cupy, namespace, to_host, unchecked
from gpukoop.blas import one_thread
from gpukoop.fusion import fused
from gpukoop.spectrum.krylov import (
    JUMP,
    LOOSE,
    MAX_STEPS,
    NOISE,
    PROBE_STEPS,
    ROUNDING,
    STALL_FROM,
    check_symmetric,
    copies_within,
    warn_of_residual,
    width_of,
)

# Steps between two looks, at most; fewer where the fall of the residual says that fewer will do.
LOOK_EVERY = 4
# A bound that has not fallen by a tenth in so many steps, a basis and a half, falls no more: the products know no better.
STALLED, FELL = 24, 0.9
# A bound of so much of the residual explains nothing of it.
ROUNDED = 0.1


class _Basis:
    """V, A V and T, and the steps that extend them."""

    def __init__(self, product: Callable[[Array], Array], start: Array, limit: int) -> None:
        self.xp = namespace(start)
        self.n, self.width = start.shape
        self.product, self.limit = product, limit
        room = min(self.n, limit + self.width)
        self.V = self.xp.empty((self.n, room), start.dtype, order="F")
        self.AV = self.xp.empty((self.n, limit), start.dtype, order="F")
        self.T = np.zeros((limit, limit))
        self.used = self.seen = 0  # columns with a product; of these, columns of T
        self.ready = self.last = 0  # columns of the next block, and of the last one multiplied
        self.append(start)

    def append(self, W: Array) -> None:
        """Make an orthonormal next block of W, as many columns as there is room for."""
        xp, V = self.xp, self.V[:, : self.used]
        with _unwatched(W):
            # Twice is enough (Giraud, Langou, Rozloznik 2005): the second pass removes what the first left of V by
            # cancellation.
            for _ in range(2):
                if self.used:
                    W = W - V @ (V.T @ W)
                W = xp.linalg.qr(W)[0]
        self.ready = min(W.shape[1], self.n - self.used)
        self.V[:, self.used : self.used + self.ready] = W[:, : self.ready]

    def step(self) -> None:
        """Multiply the next block by A and make the one after it."""
        block = slice(self.used, self.used + self.ready)
        self.last = self.ready
        with unchecked():
            W = self.product(self.V[:, block])
        self.AV[:, block] = W
        self.used = block.stop
        if self.used < self.n:
            self.append(W)
        else:
            self.ready = 0

    def look(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return Ritz values, descending, their combinations of V, and the next block's coupling to these."""
        new = slice(self.seen, self.used)
        V = self.V[:, : self.used + self.ready]
        # The one wait of a look: all products of the queued steps with the basis, in one matrix of a few hundred numbers.
        H = to_host(V.T @ self.AV[:, new]).astype(float)  # (used + ready, new)
        if not np.isfinite(H).all():
            raise ValueError(
                "A @ V holds NaN or inf for a finite V: drop or repair these entries of A"
            )
        corner = H[new]
        if self.seen == 0:  # a random block sees any asymmetry at first sight
            check_symmetric(corner[: self.width, : self.width])
        # A is symmetric, the product of float32 columns is not quite; eigh would read one triangle and be wrong by that.
        H[new] = (corner + corner.T) / 2
        self.T[: self.used, new] = H[: self.used]
        self.T[new, : self.used] = H[: self.used].T
        coupling = H[self.used :, -self.last :]
        self.seen = self.used
        theta, Y = np.linalg.eigh(self.T[: self.used, : self.used])
        theta, Y = theta[::-1], Y[:, ::-1]
        # The residual of a Ritz pair is its coupling to the next block: known from small matrices, without A or another look.
        return theta, Y, coupling @ Y[self.used - self.last :]

    def pairs(self, theta: np.ndarray, Y: np.ndarray, scale: float) -> tuple[Array, float]:
        """Return the vectors V Y and the largest of their residuals relative to ``scale``."""
        xp, dtype = self.xp, self.V.dtype
        both = xp.asarray(np.concatenate([Y / scale, Y * (theta / scale)]), dtype=dtype)
        U = self.V[:, : self.used] @ xp.asarray(Y, dtype=dtype)
        half = len(Y)
        # True residuals, which also see the rounding of the products, of which the bound knows nothing.
        squares = _squares(
            self.AV[:, : self.used] @ both[:half], self.V[:, : self.used] @ both[half:]
        )
        return U, math.sqrt(float(xp.max(squares)))

    def restart(self, theta: np.ndarray, Y: np.ndarray, kept: int) -> None:
        """Shrink the basis to the leading Ritz vectors; the next block stays."""
        lead = self.xp.asarray(Y[:, :kept], dtype=self.V.dtype)
        F = self.V[:, self.used : self.used + self.ready].copy()
        self.V[:, :kept] = self.V[:, : self.used] @ lead
        self.AV[:, :kept] = self.AV[:, : self.used] @ lead
        self.V[:, kept : kept + self.ready] = F
        self.T[:] = 0.0
        # Ritz vectors are eigenvectors of the projected matrix, so after the restart it is diagonal (thick restart, Wu, Simon
        # 2000).
        self.T[:kept, :kept] = np.diag(theta[:kept])
        self.used = self.seen = kept


@fused
def _squares(xp: Any, left: Array, right: Array) -> Array:
    return xp.sum((left - right) * (left - right), axis=0)


def _unwatched(x: Array) -> AbstractContextManager[Any]:
    """Return a context in which factorisations on a device are not waited for: QR of a finite matrix does not fail."""
    if not is_cupy(x):
        return nullcontext()
    import cupyx

    return cupyx.errstate(linalg="ignore")


def queued_block_krylov(
    product: Callable[[Array], Array],
    draw: Callable[[int], Array],
    n: int,
    k: int,
    tol: float,
) -> tuple[np.ndarray, Array, float]:
    """Return what :func:`gpukoop.spectrum.krylov.block_krylov` returns, with its arguments; NaN is found at the next look."""
    width, limit = width_of(n, k)
    basis = _Basis(product, draw(width), limit)
    eps = float(np.finfo(basis.V.dtype).eps)
    goal = max(tol, NOISE * eps) if tol else ROUNDING * eps
    steps, multiplicity, probing = 0, 0, 0
    queue, bound, best, fell = LOOK_EVERY, math.inf, math.inf, 0
    while True:
        done = 0
        while done < queue and basis.used + basis.ready <= limit and basis.ready:
            basis.step()
            done += 1
        steps += done
        with one_thread(n * limit):
            theta, Y, coupling = basis.look()
        scale = max(float(np.abs(theta).max()), np.finfo(np.float64).tiny)
        before, bound = bound, math.inf
        if basis.used >= k:
            bound = float(np.sqrt((coupling[:, :k] ** 2).sum(axis=0)).max()) / scale
        queue = _queue(bound, before, goal, done)
        # A leap is that of a hidden copy which has come out of the rounding.
        if bound < FELL * best or bound > JUMP * before:
            best, fell = bound, steps
        stuck = bound < STALL_FROM and steps - fell >= STALLED
        over = basis.used == n or steps > MAX_STEPS
        if over or bound <= goal or stuck:
            U, residual = basis.pairs(theta[:k], Y[:, :k], scale)
            if over:
                break
            # Where the bound is far below the residual, that is the rounding of the products.
            if steps >= probing and (residual <= goal or stuck or bound < ROUNDED * residual):
                # A block of b columns finds at most b copies of one eigenvalue: as many as that, and there may be more behind
                # them.
                copies = copies_within(theta[:k], 2 * max(goal, residual) * scale)
                if copies < width or copies <= multiplicity:
                    break
                multiplicity, probing = copies, steps + PROBE_STEPS
                best, fell = math.inf, steps
                basis.restart(theta, Y, k)
                # A fresh random block meets the eigenvectors that the first start was orthogonal to by symmetry.
                basis.append(draw(width))
                continue
        if basis.used + basis.ready > limit:
            basis.restart(theta, Y, min(k + width, basis.used))
    if residual > max(goal, LOOSE * eps if tol == 0 else 0.0):
        warn_of_residual(residual, goal, steps)
    return theta[:k], U, residual


def _queue(bound: float, before: float, goal: float, steps: int) -> int:
    """Return the steps until the next look: as many as the bound will take to the goal at the rate of its last fall."""
    if not 0 < goal < bound < before < math.inf:
        return LOOK_EVERY if bound > goal else 1
    # Residuals of Krylov spaces fall geometrically: the last fall foretells the steps that are left.
    rate = math.log(before / bound) / steps
    return max(1, min(LOOK_EVERY, math.ceil(math.log(bound / goal) / rate)))
