r"""Block Krylov iteration with full reorthogonalisation, deflation and thick restart.

=== ================================================
n   size of the operator A, seen only through products
k   eigenpairs asked for
V   orthonormal basis so far, (n, used), beside A V
T   V^T A V, on the host in float64
F   the next block, orthogonal to V
=== ================================================

Every step is one product A F. The Krylov relation A V = V T + F B holds up to directions dropped as
rounding, so the residuals, computed honestly from A V, fall to the accuracy of the product.

References
----------
.. [1] Y. Zhou, Y. Saad, Block Krylov-Schur method for large symmetric eigenvalue problems, Numerical
   Algorithms 47, 2008.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from gpukoop.arrays import Array, namespace, to_host
from gpukoop.blas import one_thread

# Columns of a block: a pass with 16 costs about four with one, a pass with 32 about six.
BLOCK = 16
# Up to this k a block of 16 is quickest; above, twice as many columns take two thirds of the passes in the same time.
NARROW = 24
# Blocks of search beyond twice the pairs before a restart.
SEARCH_BLOCKS = 6
# Residuals, in units of eps, that count as rounding with tol=0: float32 kernel sums reach 5 to 10.
ROUNDING = 20.0
# Directions of a new block below this many eps of |lambda_1| are the rounding of the product itself.
NOISE = 4.0
# A residual below STALL_FROM that fell by less than a tenth in this many steps has stalled: the product knows no
# better. Larger ones wander while the basis is small.
STALL, STALL_FROM = 6, 1e-3
# So many where the residual is not yet near rounding: it rises and falls from restart to restart, three of them here, while
# crowded eigenvalues come apart.
SLOW_STALL = 24
MAX_STEPS = 400
# Steps of a probe for hidden copies: a random block shows none before its space has grown.
PROBE_STEPS = 10
# A residual that rises by more than this is that of another pair.
JUMP = 10.0
# With tol=0 a stalled residual of so many eps is the rounding of long sums, no failure.
LOOSE = 1_000.0
# Sums to a tolerance are asymmetric by that tolerance; more than this is another operator.
ASYMMETRY = 0.05


def block_krylov(
    product: Callable[[Array], Array],
    draw: Callable[[int], Array],
    n: int,
    k: int,
    tol: float,
) -> tuple[np.ndarray, Array, float]:
    """Return the k largest eigenvalues, descending, their vectors and the largest relative residual.

    Parameters
    ----------
    product : callable
        (n, t) -> (n, t), symmetric and finite.
    draw : callable
        t -> (n, t) standard normal numbers in the library and dtype of the operator.
    n, k : int
        Size and number of pairs.
    tol : float
        Residual at which to stop, relative to |lambda_1|; raised to the rounding of the dtype.
    """
    width, limit = width_of(n, k)
    F = _orthonormal(draw(width), None, 0.0)
    xp, dtype = namespace(F), F.dtype
    eps = float(np.finfo(dtype).eps)
    goal = max(tol, NOISE * eps) if tol else ROUNDING * eps
    V, AV = (xp.empty((n, limit), dtype, order="F") for _ in range(2))
    T = np.zeros((limit, limit))
    used, multiplicity, steps, history = 0, 0, 0, [np.inf]
    looked = 0  # until this step a probe goes on
    while True:
        steps += 1
        block = slice(used, used + F.shape[1])
        V[:, block] = F
        AV[:, block] = product(F)
        used = block.stop
        with one_thread(n * limit):
            theta, Y = _project(V, AV, T, block)
            scale = max(float(np.abs(theta).max()), np.finfo(np.float64).tiny)
            F = _orthonormal(AV[:, block].copy(), V[:, :used], NOISE * eps * scale)
            if used >= k:
                history.append(_residual(V, AV, theta, Y, k, used, scale))
                if history[-1] > JUMP * history[-2]:  # a hidden copy has come out of the rounding
                    history = history[-1:]
        converged = history[-1] <= goal or (used >= k and not F.shape[1])
        if used == n or steps > MAX_STEPS:
            break
        window = STALL if history[-1] <= max(goal, LOOSE * eps) else SLOW_STALL
        if steps >= looked and (converged or _stalled(history, window)):
            # A block sees as many copies of an eigenvalue as it has columns; more may hide, and come with a new
            # random block. Where that brings no further copy there is none.
            copies = copies_within(theta[:k], 2 * max(goal, history[-1]) * scale)
            if copies < width or copies <= multiplicity:
                break
            # Only the pairs found are kept: the residuals of others lie in the block that is left out.
            multiplicity, history, looked = copies, [np.inf], steps + PROBE_STEPS
            used = _restart(V, AV, T, theta, Y, k)
            F = F[:, :0]
        if not F.shape[1]:
            F = _orthonormal(draw(width), V[:, :used], 0.0)
        F = F[:, : n - used]
        if used + F.shape[1] > limit:
            used = _restart(V, AV, T, theta, Y, min(k + width, used))
    if history[-1] > max(goal, LOOSE * eps if tol == 0 else 0.0):
        warn_of_residual(history[-1], goal, steps)
    U = V[:, :used] @ xp.asarray(Y[:, :k], dtype=dtype)
    return theta[:k], U, history[-1]


def width_of(n: int, k: int) -> tuple[int, int]:
    """Return the columns of a block and of the largest basis."""
    width = min(n, BLOCK if k <= NARROW else 2 * BLOCK)
    return width, min(n, 2 * k + SEARCH_BLOCKS * width)


def copies_within(theta: np.ndarray, gap: float) -> int:
    """Return the largest number of descending values within ``gap`` of their neighbours."""
    runs = np.split(theta, np.flatnonzero(-np.diff(theta) > gap) + 1)
    return max(len(run) for run in runs)


def _stalled(history: list[float], window: int) -> bool:
    """Tell whether none of the last ``window`` residuals is a tenth below the best one before them."""
    recent, before = history[-window:], history[:-window]
    lowest = min(before, default=np.inf)
    return lowest < STALL_FROM and min(recent) > 0.9 * lowest


def warn_of_residual(residual: float, goal: float, steps: int) -> None:
    """Say that the products, or the steps, did not suffice."""
    warnings.warn(
        f"eigsh stopped after {steps} products with a residual of {residual:.1e} of |lambda_1|, above the "
        f"{goal:.1e} asked for: the products are no more accurate, or eigenvalues cluster at the last pair; "
        "raise tol, change k, or use method='dense'",
        ConvergenceWarning,
        stacklevel=4,
    )


def check_symmetric(A: Array) -> None:
    """Raise if A, or its form F^T A F on a block, is far from symmetric."""
    size = float(abs(A).max())
    skew = float(abs(A - A.T).max())
    if skew > ASYMMETRY * size:
        raise ValueError(
            f"A is not symmetric (it and its transpose differ by {skew / size:.0%}): pass a symmetric operator, such "
            "as (A + A.T) / 2"
        )


def _project(V: Array, AV: Array, T: np.ndarray, block: slice) -> tuple[np.ndarray, np.ndarray]:
    """Border T with the new block and return its eigenpairs, descending."""
    new = to_host(V[:, : block.stop].T @ AV[:, block]).astype(float)  # (used, b)
    corner = new[block]
    if block.start == 0:  # a random block sees any asymmetry at first sight
        check_symmetric(corner)
    new[block] = (corner + corner.T) / 2
    T[: block.stop, block] = new
    T[block, : block.stop] = new.T
    theta, Y = np.linalg.eigh(T[: block.stop, : block.stop])
    return theta[::-1], Y[:, ::-1]


def _residual(
    V: Array, AV: Array, theta: np.ndarray, Y: np.ndarray, k: int, used: int, scale: float
) -> float:
    """Return the largest residual relative to ``scale``; divided first, for squares leave the range earlier."""
    xp = namespace(V)
    pairs = xp.asarray(Y[:, :k], dtype=V.dtype)
    R = AV[:, :used] @ pairs
    R -= V[:, :used] @ (pairs * xp.asarray(theta[:k], dtype=V.dtype))
    R /= V.dtype.type(scale)
    return float(xp.sqrt(xp.max(xp.sum(R * R, axis=0))))


def _orthonormal(W: Array, V: Array | None, floor: float) -> Array:
    """Return an orthonormal basis of the columns of W beyond V, without directions below ``floor``.

    Differs from the Gram form: Householder QR and the singular values of R keep directions down to eps, where
    eigenvalues of W^T W end at its root.
    """
    xp = namespace(W)
    for _ in range(2):
        if V is not None:
            W = W - V @ (V.T @ W)
    Q, R = xp.linalg.qr(W)
    left, sizes, _ = np.linalg.svd(to_host(R).astype(float))
    keep = xp.asarray(left[:, sizes > floor], dtype=W.dtype)
    Q = Q @ keep
    if V is not None and Q.shape[1]:
        Q = xp.linalg.qr(Q - V @ (V.T @ Q))[0]
    return Q


def _restart(
    V: Array, AV: Array, T: np.ndarray, theta: np.ndarray, Y: np.ndarray, kept: int
) -> int:
    """Shrink the basis to the leading Ritz vectors; the Krylov relation survives with the same next block."""
    used = len(theta)
    lead = namespace(V).asarray(Y[:, :kept], dtype=V.dtype)
    V[:, :kept] = V[:, :used] @ lead
    AV[:, :kept] = AV[:, :used] @ lead
    T[:] = 0.0
    T[:kept, :kept] = np.diag(theta[:kept])
    return kept
