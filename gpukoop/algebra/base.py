"""What every lazy operator offers: products, arithmetic, sub-operators, and the names that SciPy's solvers ask for."""

from __future__ import annotations

import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from gpukoop.arrays import HOST, Array, Home, namespace, native_array, to_host
from gpukoop.draws import check_count

LARGEST_FACTOR = 1e150


class AbstractOperator(ABC):
    """A matrix that is known by its products.

    ``A + B``, ``A - B``, ``2 * A``, ``-A``, ``A / 2``, ``A[rows]``, ``A[rows, columns]``, ``A.T`` are operators again; no matrix
    is formed. SciPy's and CuPy's iterative solvers take any of them for a matrix.

    A regularised system is written as with matrices: ``K + lam * gk.Identity(n)``. A number alone is refused:
    ``K + lam`` means lam in every entry to NumPy.

    Notes
    -----
    Subclasses say ``shape``, ``dtype``, ``T`` and :meth:`_apply`.

    Examples
    --------
    >>> import numpy as np, gpukoop as gk
    >>> from scipy.sparse.linalg import cg
    >>> X = np.random.default_rng(0).normal(size=(100, 2))
    >>> A = gk.Gaussian(scale=1.0)(X) + 0.1 * gk.Identity(100)
    >>> x, info = cg(A, np.ones(100))
    >>> bool(np.linalg.norm(A @ x - 1) < 1e-3)
    True
    """

    # NumPy asks for this before it tries its own arithmetic on a left operand.
    __array_ufunc__: Final = None
    # Where the points came from: eigenvectors go there.
    home: Home = HOST

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(n, m)."""

    @property
    @abstractmethod
    def dtype(self) -> np.dtype:
        """Of results, for vectors no wider."""

    @property
    @abstractmethod
    def T(self) -> AbstractOperator:
        """The transposed operator."""

    @abstractmethod
    def _apply(self, v: Array) -> Array:
        """Return the product with a NumPy or CuPy array v of shape (m,) or (m, t)."""

    @property
    def ndim(self) -> int:
        """Two, as for a matrix."""
        return 2

    @property
    def H(self) -> AbstractOperator:
        """The transposed operator: numbers are real."""
        return self.T

    @property
    def reference(self) -> Array:
        """An array of the library and on the device of results."""
        return np.empty(0)

    def __matmul__(self, v: Any) -> Array:
        """Return the product with ``v`` of shape (m,) or (m, t), in the library of ``v``."""
        native, home = native_array(v, "v")
        if native.ndim not in (1, 2) or len(native) != self.shape[1]:
            raise ValueError(
                f"v has shape {native.shape}, expected ({self.shape[1]},) or ({self.shape[1]}, t): one row per column of "
                "the operator"
            )
        return home.restore(self._apply(native))

    def matvec(self, v: Any) -> Array:
        """Return ``A @ v``; SciPy's name."""
        return self @ v

    def matmat(self, V: Any) -> Array:
        """Return ``A @ V``; SciPy's name."""
        return self @ V

    def rmatvec(self, u: Any) -> Array:
        """Return ``A.T @ u``; SciPy's name."""
        return self.rmatmat(u)

    def rmatmat(self, U: Any) -> Array:
        """Return ``A.T @ U``; SciPy's name."""
        return self.T @ U

    def to_dense(self) -> Array:
        """Return the (n, m) matrix: n m numbers in memory, for small problems and for tests."""
        xp = namespace(self.reference)
        return self @ xp.eye(self.shape[1], dtype=self.dtype)

    def diagonal(self) -> Array:
        """Return the diagonal; from the matrix, unless a subclass knows a way without it."""
        return namespace(self.reference).diagonal(self.to_dense())

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        n, m = self.shape
        raise TypeError(
            f"a lazy {n} x {m} operator is no array: A @ v multiplies without forming it, A.to_dense() forms all {n * m} numbers"
        )

    def __add__(self, other: Any) -> AbstractOperator:
        self._check_partner(other)
        return self._plus(other)

    def __radd__(self, other: Any) -> AbstractOperator:
        return self + other

    def __sub__(self, other: Any) -> AbstractOperator:
        self._check_partner(other)
        return self._plus(other * -1.0)

    def __neg__(self) -> AbstractOperator:
        return self * -1.0

    def __mul__(self, factor: Any) -> AbstractOperator:
        if isinstance(factor, bool) or not isinstance(factor, numbers.Real):
            raise TypeError(
                f"an operator is multiplied by a number, got {type(factor).__name__}: A @ v is the product with vectors"
            )
        number = float(factor)
        if not math.isfinite(number):
            raise ValueError(f"an operator cannot be multiplied by {number}: use a finite number")
        if abs(number) > LARGEST_FACTOR:
            raise ValueError(
                f"an operator times {number} leaves the range of numbers: use a factor up to {LARGEST_FACTOR:.0e}"
            )
        return self._times(number)

    __rmul__ = __mul__

    def __truediv__(self, factor: Any) -> AbstractOperator:
        if isinstance(factor, numbers.Real) and factor == 0:
            raise ZeroDivisionError("an operator cannot be divided by 0")
        return self * (1.0 / factor)

    def __getitem__(self, key: Any) -> AbstractOperator:
        """Return the lazy operator of some rows and columns: slices, masks or index arrays, columns for all rows."""
        rows, columns = key if isinstance(key, tuple) and len(key) == 2 else (key, slice(None))
        n, m = self.shape
        return self._selected(_indices(rows, n, "rows"), _indices(columns, m, "columns"))

    def _check_partner(self, other: Any) -> None:
        if isinstance(other, numbers.Real):
            raise TypeError(
                f"A + {other} would add to every entry: write A + {other} * gpukoop.Identity({self.shape[0]}) to shift the diagonal"
            )
        if not isinstance(other, AbstractOperator):
            raise TypeError(
                f"cannot add {type(other).__name__} to a lazy operator: operators add to operators; A.to_dense() gives an array"
            )
        if other.shape != self.shape:
            raise ValueError(f"operators of shapes {self.shape} and {other.shape} cannot be added")

    def _plus(self, other: AbstractOperator) -> AbstractOperator:
        from gpukoop.algebra.combination import Combination

        return self._fused(other) or Combination.of([(1.0, self), (1.0, other)])

    def _fused(self, other: AbstractOperator, factor: float = 1.0) -> AbstractOperator | None:
        """Return ``factor * self + other`` where it costs one product, None where it costs two."""
        return None

    def _times(self, factor: float) -> AbstractOperator:
        from gpukoop.algebra.combination import Combination

        return Combination.of([(factor, self)])

    def _selected(self, rows: np.ndarray | None, columns: np.ndarray | None) -> AbstractOperator:
        """Return some rows and columns, None being all."""
        from gpukoop.algebra.selection import Selection

        return Selection(self, rows, columns)


def placed(operators: Sequence[AbstractOperator]) -> AbstractOperator:
    """Return the first operator that has points: sums and blocks live where it does."""
    return next((A for A in operators if A.reference.size), operators[0])


def product(A: AbstractOperator, v: Array) -> Array:
    """Return ``A @ v`` as a NumPy or CuPy array, whatever library the points of A have."""
    return native_array(A @ v, "A @ v")[0]


class Identity(AbstractOperator):
    """The n x n identity, for shifts: ``K + lam * gk.Identity(n)``.

    Parameters
    ----------
    n : int
        Number of rows.

    Notes
    -----
    Its dtype is the narrowest, float32, so that it widens no sum; its products are what was multiplied.
    """

    def __init__(self, n: int) -> None:
        self.n = check_count(n, "n")

    def __repr__(self) -> str:
        return f"Identity({self.n})"

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n)."""
        return self.n, self.n

    @property
    def dtype(self) -> np.dtype:
        """float32."""
        return np.dtype(np.float32)

    @property
    def T(self) -> Identity:
        """Itself."""
        return self

    def _apply(self, v: Array) -> Array:
        return v

    def diagonal(self) -> Array:
        """Return ones."""
        return np.ones(self.n)


def _indices(key: Any, size: int, name: str) -> np.ndarray | None:
    """Return whole numbers of shape (q,), or None for all."""
    if isinstance(key, slice):
        return None if key == slice(None) else np.arange(size)[key]
    index = to_host(native_array(key, name)[0])
    if index.dtype == bool and index.shape == (size,):
        return np.flatnonzero(index)
    if index.ndim != 1 or index.dtype.kind not in "iu":
        raise IndexError(
            f"{name} of a lazy operator are a slice, a mask of shape ({size},) or whole numbers of shape (q,), got "
            f"{key!r}: A[i:i + 1] is one row as an operator"
        )
    if len(index) and (index.min() < -size or index.max() >= size):
        raise IndexError(f"{name} reach from {index.min()} to {index.max()}, there are {size}")
    return index % max(size, 1)
