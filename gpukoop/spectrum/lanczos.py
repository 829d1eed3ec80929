"""ARPACK on the host and CuPy's Lanczos on a device: the one place of the room that calls either.

Both work on one vector at a time, in which all copies of a multiple eigenvalue are one: what was found is deflated and the
rest is asked for its largest eigenvalue, until that is no larger. They are here to compare with, and for operators whose
products do not gain from several columns; the block method of :mod:`gpukoop.spectrum.eigsh` is the default.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpukoop.arrays import Array, to_host
from gpukoop.spectrum.krylov import ROUNDING


def lanczos(
    product: Callable[[Array], Array], n: int, k: int, tol: float, start: Array, xp: Any
) -> tuple[np.ndarray, Array]:
    """Return the k largest eigenvalues, ascending, and their vectors; raise if they are not finite.

    Parameters
    ----------
    product : callable
        (n, t) -> (n, t), the symmetric operator.
    n, k : int
        Size, and number of pairs, below n.
    tol : float
        ARPACK's tolerance, relative to each eigenvalue; 0 is rounding accuracy. CuPy's is absolute.
    start : array of shape (n,)
        Decides dtype and device.
    xp : module
        numpy or cupy.
    """
    theta, U = _largest(product, n, k, tol, start, xp)
    slack = max(tol, ROUNDING * float(np.finfo(start.dtype).eps)) * float(np.abs(theta).max())
    columns = 1  # one tells whether anything hides; only then as many as may
    while k + columns <= n:
        more, W = _largest(_deflated(product, theta, U, xp), n, columns, tol, start, xp)
        if more[-1] <= theta[0] + slack:
            break
        theta, U = _joined(product, np.concatenate([more, theta]), xp.hstack([W, U]), k, xp)
        columns = min(k, n - k)
    return theta, U


def _deflated(
    product: Callable[[Array], Array], theta: np.ndarray, U: Array, xp: Any
) -> Callable[[Array], Array]:
    """Return the operator with the eigenvalues theta moved to the other end of its spectrum."""
    shift = xp.asarray(theta + np.abs(theta).max(), dtype=U.dtype)[:, None]
    return lambda x: product(x) - U @ (shift * (U.T @ x))


def _joined(
    product: Callable[[Array], Array], theta: np.ndarray, both: Array, k: int, xp: Any
) -> tuple[np.ndarray, Array]:
    """Return the k largest Ritz pairs of the span of both sets, ascending."""
    lead = np.argsort(theta)[-2 * k :]
    Q = xp.linalg.qr(both[:, lead])[0]
    T = to_host(Q.T @ product(Q)).astype(float)
    values, Y = np.linalg.eigh((T + T.T) / 2)
    return values[-k:], Q @ xp.asarray(Y[:, -k:], dtype=Q.dtype)


def _largest(
    product: Callable[[Array], Array], n: int, k: int, tol: float, start: Array, xp: Any
) -> tuple[np.ndarray, Array]:
    """Return one run of the library, ascending."""

    def matvec(x: Array) -> Array:
        return product(x.reshape(n, 1)).reshape(n)

    if xp is np:
        from scipy.sparse.linalg import LinearOperator, eigsh
    else:
        from cupyx.scipy.sparse.linalg import LinearOperator, eigsh
    operator = LinearOperator((n, n), matvec=matvec, dtype=start.dtype)
    # differs from SciPy: CuPy's eigsh has no v0 before 13 and needs a positive tolerance check of its own
    options = {"v0": start} if xp is np else {}
    theta, U = eigsh(operator, k, which="LA", tol=tol, **options)
    if not bool(xp.isfinite(U).all()) or not bool(xp.isfinite(theta).all()):
        raise ValueError(
            "method='lanczos' returned values that are not finite: the operator's numerical rank is below "
            "the Krylov space, as it is for smooth kernels; use method='block', which deflates"
        )
    values = to_host(theta).astype(float)
    # The libraries differ in the order of what they return.
    order = np.argsort(values)
    return values[order], U[:, order]
