"""ARPACK on the host and CuPy's Lanczos on a device: the one place of the room that calls either.

Both work on one vector at a time. They are here to compare with, and for operators whose products do not
gain from several columns; the block method of :mod:`gpukoop.spectrum.eigsh` is the default.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpukoop.arrays import Array, to_host


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
