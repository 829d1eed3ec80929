r"""The exponential of a matrix acting on columns, on any array library, with overflow named."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpukoop.arrays import Array, namespace, native_array, require_finite, to_host

# Norm of one sub-step and its Taylor terms: |tA/s| <= 2 needs at most 30 terms for 1e-16 (Al-Mohy and Higham's table gives
# 2.1 for 30 terms in double precision).
STEP_NORM = 2.0
MAX_TERMS = 30
# Flops of a dense exponential over D^3, by scaling and squaring with a degree-13 Pade approximant.
DENSE_FLOPS = 23.0
AVERAGE_TERMS = 20.0


class ExponentialOverflow(OverflowError, ValueError):
    """exp(tA) has entries beyond the floating-point range; the message says what makes it grow and what to do."""


def expm_action(A: Any, B: Any, t: float = 1.0) -> Array:
    r"""Return :math:`e^{tA} B` without forming the exponential where that is cheaper.

    .. math:: e^{tA} B = \left( e^{tA/s} \right)^s B, \qquad s = \lceil |tA|_1 / 2 \rceil,

    each factor by its Taylor series, stopped when two terms in a row are below rounding.

    Parameters
    ----------
    A : array of shape (D, D)
        Square and finite, of any library.
    B : array of shape (D,) or (D, k)
    t : float
        Any finite number, negative too.

    Returns
    -------
    array of the shape of B
        Library, device and dtype of A and B (float64 for integers).

    Raises
    ------
    ExponentialOverflow
        If an entry leaves the floating-point range. It is both an OverflowError and a ValueError; inf is never
        returned.

    Notes
    -----
    Cost: about 40 s D^2 k flops. A matrix whose norm makes that dearer than 23 D^3 goes through SciPy's (CuPy's)
    dense exponential by scaling and squaring. Accuracy: 4e-14 on the Grcar matrix of size 200, as SciPy's
    ``expm_multiply``; relative to exp(\|tA\|) eps in general. Differs from ``expm_multiply`` in running on CuPy, which has no
    such function, and in the overflow.

    References
    ----------
    .. [1] A. H. Al-Mohy, N. J. Higham, Computing the Action of the Matrix Exponential, SIAM J. Sci. Comput. 33,
       2011, sections 3 and 4.

    Examples
    --------
    >>> import numpy as np
    >>> float(expm_action(np.array([[0.0, 1.0], [0.0, 0.0]]), np.array([0.0, 1.0]), t=3.0)[0])
    3.0
    """
    home = native_array(A, "A")[1]
    A, B, t = _checked(A, B, t)
    xp = namespace(A)
    norm = abs(t) * float(xp.abs(A).sum(axis=0).max())
    if not math.isfinite(norm):
        raise _overflow(A, t)
    n_steps = max(1, math.ceil(norm / STEP_NORM))
    D, k = len(A), B.shape[1] if B.ndim == 2 else 1
    with np.errstate(over="ignore", invalid="ignore"):
        if n_steps * AVERAGE_TERMS * 2 * k > DENSE_FLOPS * D:
            result = dense_exponential(A, t) @ B
        else:
            result = _taylor(A, B, t, n_steps, xp)
    if not bool(xp.isfinite(result).all()):
        raise _overflow(A, t)
    return home.restore(result)


def dense_exponential(A: Array, t: float = 1.0) -> Array:
    """Return exp(tA) as a matrix, (D, D), by SciPy's or CuPy's scaling and squaring; overflow raises."""
    xp = namespace(A)
    if xp is np:
        from scipy.linalg import expm
    else:
        from cupyx.scipy.linalg import expm
    with np.errstate(over="ignore", invalid="ignore"):
        try:
            E = expm(t * A)
        except (
            OverflowError,
            ValueError,
        ):  # SciPy's estimate of the number of squarings fails on norms near 1e308
            raise _overflow(A, t) from None
    if not bool(xp.isfinite(E).all()):
        raise _overflow(A, t)
    return E


def _taylor(A: Array, B: Array, t: float, n_steps: int, xp: Any) -> Array:
    eps = float(np.finfo(A.dtype).eps)
    result = B
    for _ in range(n_steps):
        term = result
        previous = float(xp.abs(term).max(initial=0.0))
        for j in range(1, MAX_TERMS + 1):
            term = A @ term * (t / (n_steps * j))
            result = result + term
            size = float(xp.abs(term).max(initial=0.0))
            # Two terms: one alone may vanish by chance.
            if previous + size <= eps * float(xp.abs(result).max(initial=0.0)):
                break
            previous = size
        if not math.isfinite(size):
            break
    return result


def _checked(A: Any, B: Any, t: Any) -> tuple[Array, Array, float]:
    given = t
    t = math.nan if isinstance(t, bool) or not isinstance(t, int | float | np.number) else float(t)
    A = square_matrix(A, "A")
    B, _ = native_array(B, "B")
    if B.dtype.kind not in "fiub":
        raise TypeError(f"B has dtype {B.dtype}, expected real numbers")
    if B.ndim not in (1, 2) or len(B) != len(A):
        raise ValueError(
            f"B has shape {B.shape}, expected ({len(A)},) or ({len(A)}, k) as A has {len(A)} rows"
        )
    require_finite(B, "B")
    if not math.isfinite(t):
        raise ValueError(f"t must be a finite number, got {given!r}")
    xp = namespace(A)
    dtype = np.result_type(A.dtype, B.dtype if B.dtype.kind == "f" else np.float64)
    return A.astype(dtype, copy=False), xp.asarray(B, dtype=dtype), t


def square_matrix(A: Any, name: str) -> Array:
    """Return a finite square float matrix, NumPy or CuPy, or raise in words."""
    A, _ = native_array(A, name)
    if A.dtype.kind not in "fiub":
        raise TypeError(f"{name} has dtype {A.dtype}, expected a real matrix")
    if A.ndim != 2 or A.shape[0] != A.shape[1] or len(A) == 0:
        raise ValueError(f"{name} has shape {A.shape}, expected a square matrix (D, D), D >= 1")
    if A.dtype.kind != "f":
        A = A.astype(float)
    require_finite(A, name)
    return A


def _overflow(A: Array, t: float) -> ExponentialOverflow:
    host = to_host(A).astype(float)
    growth = float(np.max(t * np.linalg.eigvals(host).real)) if len(host) <= 1_000 else math.nan
    norm = abs(t) * float(np.abs(host).max()) * len(host)
    cause = (
        f"the largest real part of an eigenvalue times t is {growth:.3g}"
        if math.isfinite(growth)
        else f"the norm of tA is up to {norm:.3g}"
    )
    return ExponentialOverflow(
        f"exp(tA) overflows {A.dtype}: {cause}, and exp(709) is the largest float64. Use a shorter t, a larger reg, "
        "clock='log', or solver='sat', which needs no exponential"
    )
