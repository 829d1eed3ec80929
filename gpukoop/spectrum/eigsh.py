r"""Largest eigenpairs of a symmetric operator that is only known by its products.

The default is the block Krylov method of :mod:`gpukoop.spectrum.krylov`: a product with 16 columns costs a lazy
kernel operator about as much as three with one column, since the exponentials are shared, and a block sees
multiple eigenvalues at once.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import numpy as np

from gpukoop.algebra import AbstractOperator
from gpukoop.algebra.base import product as product_of
from gpukoop.arrays import Array, Home, is_cupy, namespace, native_array, to_host
from gpukoop.blas import one_thread
from gpukoop.draws import RandomState, check_count, random_generator
from gpukoop.fusion import fused
from gpukoop.operator import KernelOperator
from gpukoop.philox import standard_normal
from gpukoop.spectrum.krylov import block_krylov, check_symmetric
from gpukoop.spectrum.krylov_queued import queued_block_krylov
from gpukoop.spectrum.lanczos import lanczos

Method = Literal["auto", "block", "lanczos", "dense"]
METHODS = ("auto", "block", "lanczos", "dense")

# eigh of this size takes as long as ten block products of a lazy kernel on two cores.
DENSE_SIZE = 500


@dataclass(frozen=True)
class Eigenpairs:
    """What :func:`eigenpairs` returns.

    Attributes
    ----------
    values : array of shape (k,)
        Descending, in the library and dtype of the operator.
    vectors : array of shape (n, k)
        Orthonormal; the entry of largest modulus is positive in each.
    residual : float
        Largest |A u - lambda u| over the pairs, relative to |lambda_1|.
    passes : int
        Calls of the operator until the pairs were found: how often all entries of A were visited.
    method : str
        Which method ran.
    """

    values: Array
    vectors: Array
    residual: float
    passes: int
    method: str


def eigsh(
    A: Any,
    k: int,
    *,
    method: Method = "auto",
    tol: float = 0.0,
    random_state: RandomState = None,
) -> tuple[Array, Array]:
    r"""Return the k algebraically largest eigenvalues of a symmetric operator, and their vectors.

    Parameters
    ----------
    A : operator
        Symmetric, with ``shape`` and ``dtype`` and one of ``matmat``, ``matvec`` or ``@``: a KernelOperator, an array of any
        library, a SciPy sparse matrix or LinearOperator. An operator that works on a device or in another library has an
        attribute ``reference``, any array that lives there.
    k : int
        How many, at most n.
    method : {"auto", "block", "lanczos", "dense"}
        "dense" is ``eigh`` of the matrix; "lanczos" ARPACK, or CuPy's on a device; "auto" is dense up to
        n = 500 or where k exceeds a quarter of n, else block.
    tol : float
        Bound on the largest residual |A u - lambda u| relative to |lambda_1|; 0 is rounding of the dtype.
    random_state : int, Generator, RandomState or None
        Of the starting block, the same on the host and on a device.

    Returns
    -------
    eigenvalues : array of shape (k,)
        Descending.
    eigenvectors : array of shape (n, k)
        Orthonormal. Both in the library, device and dtype of A, or of its points.

    Raises
    ------
    ValueError
        If A is not square, far from symmetric, or k > n.

    Warns
    -----
    ConvergenceWarning
        If ``tol`` was not reached; the message gives the residual.

    Notes
    -----
    Cost: 10 to 30 products with 16 columns (32 from k = 25 on), a fifth to an eighth of ARPACK's, and
    O(n (4 k + 400)) memory. Accuracy: ``tol``, or what the products allow. Differs from scipy's ``eigsh`` (``which="LM"``,
    ascending, k < n) also in that an operator of numerical rank below the basis is no breakdown:
    directions that are rounding are dropped and the remaining eigenvalues are about 0.

    Examples
    --------
    >>> import numpy as np
    >>> values, vectors = eigsh(np.diag([3.0, 1.0, 2.0]), 2)
    >>> values
    array([3., 2.])
    """
    pairs = eigenpairs(A, k, method=method, tol=tol, random_state=random_state)
    return pairs.values, pairs.vectors


def eigenpairs(
    A: Any,
    k: int,
    *,
    method: Method = "auto",
    tol: float = 0.0,
    random_state: RandomState = None,
) -> Eigenpairs:
    """Return what :func:`eigsh` returns, with the residual, the number of passes and the method."""
    A, home, reference = _native(A)
    n, dtype = _check(A, k, reference)
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; known are {', '.join(METHODS)}")
    if isinstance(tol, bool) or not isinstance(tol, numbers.Real) or not 0 <= tol < 1:
        raise ValueError(f"tol is {tol!r}, expected a number in [0, 1): 0 is rounding accuracy")
    if method == "auto":
        # A quarter of the spectrum is no few pairs: the basis would be as large as the matrix.
        method = "dense" if n <= DENSE_SIZE or 4 * k > n else "block"
    xp = namespace(reference)
    product = _Counted(_product(A, home), xp, dtype, watched=method != "block" or xp is np)
    rng = random_generator(random_state)

    empty = xp.empty(0, dtype)

    def draw(columns: int) -> Array:
        return standard_normal(rng, (n, columns), empty)

    if method == "block":
        # The host waits for a device at every look, so there it looks every few steps only.
        solve = queued_block_krylov if is_cupy(empty) else block_krylov
        theta, U, residual = solve(product, draw, n, k, tol)
        passes = product.passes
    else:
        if method == "dense":
            theta, U = _dense(A, product, n, k, xp, dtype)
        elif k < n:
            theta, U = lanczos(product, n, k, tol, draw(1)[:, 0], xp)
        else:
            raise ValueError(f"method='lanczos' needs k < n, got k = {k}, n = {n}: use 'dense'")
        theta, U, passes = theta[::-1], U[:, ::-1], product.passes
        R = product(U) - U * xp.asarray(theta, dtype=dtype)
        R /= dtype.type(np.abs(theta).max() or 1.0)
        residual = float(xp.sqrt(xp.max(xp.sum(R * R, axis=0))))
    U = xp.ascontiguousarray(U, dtype=dtype)
    peak = xp.take_along_axis(U, xp.argmax(xp.abs(U), axis=0)[None], axis=0)
    U = _turned(U, peak)
    values = np.ascontiguousarray(np.ldexp(theta, product.power()), dtype=dtype)
    return Eigenpairs(home.restore(xp.asarray(values)), home.restore(U), residual, passes, method)


def _native(A: Any) -> tuple[Any, Home, Array]:
    """Return A, an array of another library as ours; where its eigenvectors go; and an array of the library it works in."""
    if isinstance(A, AbstractOperator):
        return A, A.home, A.reference
    if hasattr(A, "__dlpack__") or isinstance(A, np.ndarray):
        matrix, home = native_array(A, "A")
        return matrix, home, matrix
    reference, home = native_array(getattr(A, "reference", np.empty(0)), "A.reference")
    return A, home, reference


def _check(A: Any, k: int, reference: Array) -> tuple[int, np.dtype]:
    shape = tuple(getattr(A, "shape", ()))
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ValueError(f"A has shape {shape}, expected (n, n): a symmetric operator")
    if check_count(k, "k") > shape[0]:
        raise ValueError(f"k is {k}, A has {shape[0]} eigenvalues: ask for at most {shape[0]}")
    try:
        dtype = np.dtype(getattr(A, "dtype", None) or np.float64)
    except TypeError:  # an operator of another library names its dtype by an object of its own
        dtype = np.dtype(reference.dtype)
    if dtype.kind not in "fiubc":
        raise TypeError(f"A has dtype {dtype}, expected a real symmetric operator")
    if dtype.kind == "c":
        raise ValueError("A is complex, expected a real symmetric operator")
    return shape[0], np.dtype(np.float32 if dtype == np.float32 else np.float64)


@fused
def _turned(xp: ModuleType, U: Array, peak: Array) -> Array:
    return xp.where(peak < 0, -U, U)


class _Counted:
    """The operator times 2^exponent as a function of blocks that counts its calls and refuses what is not finite.

    The exponent makes its largest entries about 1, so that no tolerance depends on the units of the operator. On a device it
    stays there; unless ``watched``, values that are not finite are left to who reads the results, and nobody waits for a product.
    """

    def __init__(
        self, apply: Callable[[Array], Array], xp: Any, dtype: np.dtype, *, watched: bool
    ) -> None:
        self.watched = watched
        self.apply, self.xp, self.dtype = apply, xp, dtype
        self.passes = 0
        self.exponent: Array | None = None

    def __call__(self, V: Array) -> Array:
        self.passes += 1
        out = self.xp.asarray(self.apply(V), dtype=self.dtype)
        if self.watched and not bool(self.xp.isfinite(out).all()):
            raise ValueError(
                "A @ V holds NaN or inf for a finite V: drop or repair these entries of A"
            )
        return self.scaled(out)

    def scaled(self, out: Array) -> Array:
        """Return what the operator gave times 2^exponent, which is fixed by the first array."""
        if self.exponent is None:
            # A power of two rounds nothing, and brings an operator of 1e-200 or 1e+200 where squares are numbers.
            self.exponent = -self.xp.frexp(self.xp.abs(out).max())[1]  # of 0 it is 0
        return self.xp.ldexp(out, self.exponent)

    def power(self) -> int:
        """Return the exponent of the operator, 0 before the first product."""
        return 0 if self.exponent is None else -int(self.exponent)


def _product(A: Any, home: Home) -> Callable[[Array], Array]:
    """Return the product with native blocks; an operator of another library is handed arrays of its own."""
    matmat = getattr(A, "matmat", None)
    given = matmat or getattr(A, "matvec", None)
    if isinstance(A, AbstractOperator):
        return lambda V: product_of(A, V)
    if given is None:
        return lambda V: A @ V  # already native

    def one(v: Array) -> Array:
        # An operator of another library expects its own arrays, and many read them as contiguous.
        moved = home.restore(namespace(v).ascontiguousarray(v))
        return native_array(given(moved), "A @ V")[0]

    if matmat is None:
        return lambda V: namespace(V).stack([one(column) for column in V.T], axis=1)
    return one


def _dense(
    A: Any, product: _Counted, n: int, k: int, xp: Any, dtype: np.dtype
) -> tuple[np.ndarray, Array]:
    """Return the k largest eigenvalues, ascending, and their vectors, from the matrix itself."""
    if isinstance(A, KernelOperator):
        matrix = product.scaled(native_array(A.to_dense(), "A")[0])
    else:
        matrix = product(xp.eye(n, dtype=dtype))
        check_symmetric(matrix)
    if xp is np:
        from scipy.linalg import eigh

        matrix = matrix.astype(float)
        with one_thread(matrix.size):
            symmetric = (matrix + matrix.T) / 2
            # Only the largest k: the vectors of the others would be most of the work.
            return eigh(symmetric, subset_by_index=(n - k, n - 1), check_finite=False)
    theta, U = xp.linalg.eigh((matrix + matrix.T) / 2)
    return to_host(theta[n - k :]), U[:, n - k :]
