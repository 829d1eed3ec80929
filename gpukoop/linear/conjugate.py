r"""Conjugate gradients for :math:`(K + \mu I) x = y`, all right-hand sides in one product."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from gpukoop.algebra import AbstractOperator
from gpukoop.arrays import Array, native_array, require_finite, to_host
from gpukoop.dispatch import AccuracyWarning
from gpukoop.draws import RandomState, check_count, check_positive, random_generator
from gpukoop.linear.nystroem import Preconditioner, indefinite
from gpukoop.linear.system import System

logger = logging.getLogger("gpukoop")

# Residuals that recursions carry on drift from those that are computed: so often the iteration starts again from the latter.
_RESTARTS = 5
# Fourier sums go on as long as a start with them gains this factor: each costs an exact product.
_GAIN = 10


@dataclass(frozen=True)
class SolveInfo:
    """What :func:`solve` did.

    Attributes
    ----------
    n_iter : int
        Iterations, each one product with all right-hand sides that had not converged.
    n_fourier : int
        Those of them that multiplied by Fourier sums. Residuals are never computed from such sums unless K has a ``tol``.
    residual : ndarray of shape (t,)
        |y - (K + ridge I) x| / |y| of every column, computed from x, not carried on by a recursion.
    converged : bool
        Whether all residuals are at most ``tol``.
    rank : int
        Directions of the preconditioner; 0 without.
    """

    n_iter: int
    n_fourier: int
    residual: np.ndarray
    converged: bool
    rank: int


def check_preconditioner(name: Any) -> None:
    """Raise unless it is "nystroem" or None."""
    if name is not None and name != "nystroem":
        raise ValueError(f"preconditioner is {name!r}, expected 'nystroem' or None")


def solve(
    K: AbstractOperator,
    y: Any,
    *,
    ridge: float = 0.0,
    preconditioner: Literal["nystroem"] | None = "nystroem",
    rank: int | None = None,
    tol: float = 1e-6,
    max_iter: int = 1000,
    random_state: RandomState = 0,
    return_info: bool = False,
) -> Any:
    r"""Return the solution of a regularised kernel system: kernel ridge regression, the mean of a Gaussian process.

    .. math:: (K + \mu I)\, x = y

    Parameters
    ----------
    K : operator of shape (n, n)
        Symmetric and positive semi-definite: ``kernel(X)``, sums and multiples of such. ``K + lam * gk.Identity(n)`` is
        the same as ``ridge=lam``.
    y : array of shape (n,) or (n, t)
        Right-hand sides; all share their products with K.
    ridge : float >= 0
        mu, in the units of K. scikit-learn's ``KernelRidge`` calls it alpha; of a Gaussian process it is the variance of
        the noise.
    preconditioner : {"nystroem", None}
        None iterates with K alone.
    rank : int, optional
        Landmarks of the preconditioner at most. By default 100 + 2 sqrt(n), fewer where they say all of K that is above
        ``ridge``, and no more than fill 1 GB.
    tol : float in (0, 1)
        Residual of every column, relative to \|y\|.
    max_iter : int
        Iterations at most.
    random_state : int, Generator, RandomState or None
        Of the landmarks.
    return_info : bool
        Return ``(x, SolveInfo)``.

    Returns
    -------
    array of shape (n,) or (n, t)
        float64, in the library and on the device of the points of K.

    Raises
    ------
    ValueError
        If K is not square or not symmetric, y has not n rows, or K + ridge I turns out not to be positive definite.

    Warns
    -----
    ConvergenceWarning
        If a residual is above ``tol`` at the end; the message says how far.

    Notes
    -----
    Cost: with r landmarks 2 n r (d + r) operations once; an iteration is one product ``K @ V``, (n, t), and 4 n r t operations.
    Memory 8 n r bytes. Where K asks for exact sums of float64 points (no ``tol=``, no ``backend=``) and Fourier sums of
    :math:`10^{-12}` are cheaper, these do the iterations, and one exact product at the end is the residual. Should that miss
    ``tol``, the iteration goes on from there, with exact sums where Fourier sums gain less than a digit.
    Accuracy: a residual of ``tol`` needs products that are good to about tol * ridge / (largest eigenvalue of K): float32
    points, or a loose ``kernel(X, tol=)``, may end above it, which is warned of.

    References
    ----------
    .. [1] Z. Frangella, J. A. Tropp, M. Udell, Randomized Nystroem preconditioning, SIAM J. Matrix Anal. Appl. 44, 2023.

    Examples
    --------
    >>> import numpy as np, gpukoop as gk
    >>> X = np.random.default_rng(0).normal(size=(500, 2))
    >>> x = gk.solve(gk.Gaussian(1.0)(X), X[:, 0], ridge=1e-3)
    >>> x.shape
    (500,)
    """
    rng = random_generator(random_state)
    check_preconditioner(preconditioner)
    tol = check_positive(tol, "tol")
    if tol >= 1:
        raise ValueError(f"tol is {tol}: pass a number in (0, 1), the residual relative to |y|")
    max_iter = check_count(max_iter, "max_iter")
    rank = None if rank is None else check_count(rank, "rank")
    system = System(K, ridge, rng)
    B = right_hand_sides(y, system)
    P = Preconditioner(system, rank, rng) if preconditioner else None
    X, steps, residual = _iterate(system, P, B, tol, max_iter)
    n_iter = sum(steps)
    rank = P.rank if P else 0
    info = SolveInfo(n_iter, steps[1], residual, bool((residual <= tol).all()), rank)
    logger.info(
        "solve: %d iterations, %d of them by Fourier sums, residual %.2g",
        n_iter,
        info.n_fourier,
        residual.max(),
    )
    if not info.converged:
        warnings.warn(
            f"solve ended after {n_iter} iterations with a residual of {residual.max():.2g}, tol is {tol:g}: raise max_iter, rank "
            "or ridge; or pass the points as float64 and a kernel(X, tol=) far below tol",
            ConvergenceWarning,
            stacklevel=2,
        )
    found = K.home.restore(X[:, 0] if np.ndim(y) == 1 else X)
    return (found, info) if return_info else found


def right_hand_sides(y: Any, system: System) -> Array:
    """Return y as an (n, t) float64 array where the points are."""
    native, _ = native_array(y, "y")
    if native.dtype.kind not in "fiu":
        raise TypeError(
            f"y has dtype {native.dtype}, expected real numbers: one value per row of K"
        )
    if native.ndim not in (1, 2) or len(native) != system.n or 0 in native.shape:
        raise ValueError(
            f"y has shape {native.shape}, expected ({system.n},) or ({system.n}, t): one value per row of K"
        )
    require_finite(native, "y")
    native = native if system.xp is not np else to_host(native)
    B = system.xp.asarray(native, dtype=float)
    return B if B.ndim == 2 else B[:, None]


def _iterate(
    system: System, P: Preconditioner | None, B: Array, tol: float, max_iter: int
) -> tuple[Array, tuple[int, int], np.ndarray]:
    """Return X, the numbers of exact and of Fourier iterations, and the residuals computed from X."""
    xp = system.xp
    # Columns of any size: squares of the smallest and of the largest numbers stay in range.
    sizes = xp.abs(B).max(axis=0)
    sizes = xp.where(sizes > 0, sizes, 1.0)
    B = B / sizes
    norms = np.maximum(to_host(xp.sqrt((B**2).sum(axis=0))), np.finfo(float).tiny)
    X, R = xp.zeros_like(B), B.copy()
    residual = to_host(xp.sqrt((R**2).sum(axis=0))) / norms
    quick = system.by_fourier()
    exact = fourier = restarts = 0
    while restarts <= _RESTARTS:
        live = np.flatnonzero(residual > tol)
        if not len(live) or exact + fourier >= max_iter:
            break
        columns, left = xp.asarray(live), max_iter - exact - fourier
        with warnings.catch_warnings():
            # Whether sums are good enough is what the residual below says.
            if quick:
                warnings.simplefilter("ignore", AccuracyWarning)
            moved, steps = _descend(quick or system, P, R[:, columns], norms[live], tol, left)
        moved += X[:, columns]
        rest = B[:, columns] - system @ moved
        after = to_host(xp.sqrt((rest**2).sum(axis=0))) / norms[live]
        gained = after <= np.maximum(residual[live] / (_GAIN if quick else 2), tol)
        better = np.flatnonzero(after < residual[live])
        kept, better = xp.asarray(live[better]), xp.asarray(better)
        X[:, kept], R[:, kept] = moved[:, better], rest[:, better]
        residual[live] = np.minimum(residual[live], after)
        if quick:
            fourier += steps
            quick = quick if gained.all() else None
        else:
            exact += steps
            restarts += 1
            if not gained.all():
                break  # products know no more digits
    return X * sizes, (exact, fourier), residual


def _descend(
    system: System, P: Preconditioner | None, R: Array, norms: np.ndarray, tol: float, n_iter: int
) -> tuple[Array, int]:
    """Return the correction of columns with residuals R, and the iterations made."""
    xp = system.xp
    R = R.copy()
    X = xp.zeros_like(R)
    Z = P.solve(R) if P else R
    D = Z.copy()
    rho = (R * Z).sum(axis=0)
    live = np.arange(R.shape[1])
    for step in range(n_iter):
        c = xp.asarray(live)
        d = D[:, c]
        image = system @ d
        curve = (d * image).sum(axis=0)
        if float(curve.min()) <= 0:
            if not system.exact:
                return X, step  # errors of the sums, perhaps: exact ones decide
            raise indefinite("a direction of the iteration has no positive curvature")
        length = rho[c] / curve
        X[:, c] += length * d
        r = R[:, c] - length * image
        R[:, c] = r
        kept = to_host(xp.sqrt((r**2).sum(axis=0))) > tol * norms[live]
        live = live[kept]
        if not len(live):
            return X, step + 1
        c, r, d = xp.asarray(live), r[:, xp.asarray(kept)], d[:, xp.asarray(kept)]
        z = P.solve(r) if P else r
        new = (r * z).sum(axis=0)
        D[:, c] = z + new / rho[c] * d
        rho[c] = new
    return X, n_iter
