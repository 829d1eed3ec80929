r"""The lazy operator ``K = kernel(X, Y)``: it stores two arrays of points, never the matrix.

=== ============================== =========
n   targets, rows of ``X``         results
m   sources, rows of ``Y``         weights
d   features                       columns
t   right-hand sides               columns of v
=== ============================== =========
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpukoop import scales
from gpukoop.algebra import AbstractOperator
from gpukoop.arrays import Array, Home, namespace, points, same_memory
from gpukoop.backends import check_name
from gpukoop.checks import check_tol
from gpukoop.dispatch import BackendError, Explanation, explain
from gpukoop.draws import check_count
from gpukoop.kernels.cuda.matrix.precision import check_precision
from gpukoop.kernels.formula.profile import AbstractKernel, set_operator_factory
from gpukoop.kernels.operation import PRODUCT, Operation, as_operation
from gpukoop.kernels.reference import dense, diagonal
from gpukoop.kernels.request import Clouds, Request
from gpukoop.placement import place
from gpukoop.reductions import AbstractReductions
from gpukoop.scales import median_scale


class KernelOperator(AbstractReductions):
    r"""The n x m matrix :math:`K_{ij} = k(x_i, y_j)`, never stored; made by ``kernel(X, Y)``.

    It has ``shape``, ``dtype``, ``matvec``, ``matmat``, ``rmatvec``, ``rmatmat``, ``@`` and ``.T``, so SciPy's iterative solvers take
    it unchanged. Results live where X lives. ``2 * K`` and sums of kernels on the same points are one pass; ``K[rows, columns]``
    is the operator on fewer points; ``K + lam * gk.Identity(n)``: see :class:`gpukoop.algebra.AbstractOperator`.

    Parameters
    ----------
    kernel : kernel
        A kernel of ``gpukoop``, or a sum or multiple of kernels. A scale "median" or "auto" is resolved from the sources by
        :func:`median_scale`. With a scale for each feature points are divided by them before, gradients after.
    X, Y : arrays of shape (n, d) and (m, d)
        Targets and sources, float32 or float64, NumPy, CuPy or any library with DLPack. Y=None means Y = X.
        Of mixed dtypes the wider one computes.
    backend : str, optional
        Who computes; None leaves it to ``use_backend``, ``GPUKOOP_BACKEND`` and the cost table, in this order.
    tol : float, optional
        Relative accuracy of sums, relative to sum_j |v_j| |k_ij|. None means rounding accuracy: exact sums only.
    precision : {"fp32", "3xtf32", "tf32"}
        How ``numba-cuda`` multiplies float32 points of 16 or more features. "3xtf32" uses matrix units at about float32
        accuracy. "tf32" rounds the centred points to 11 bits first: the sum over those points, or "3xtf32"
        where that is known to miss ``tol``. Other backends refuse both.

    Attributes
    ----------
    kernel : kernel
        With numeric scales.

    Examples
    --------
    >>> import numpy as np, gpukoop as gk
    >>> X = np.random.default_rng(0).normal(size=(100, 2))
    >>> K = gk.Gaussian(scale=1.0)(X)
    >>> (K @ np.ones(100)).shape
    (100,)
    """

    def __init__(
        self,
        kernel: AbstractKernel,
        X: Any,
        Y: Any = None,
        *,
        backend: str | None = None,
        tol: float | None = None,
        precision: str = "fp32",
    ) -> None:
        if not isinstance(kernel, AbstractKernel):
            raise TypeError(
                f"kernel is {kernel!r}, expected a kernel such as gpukoop.Gaussian(scale=1.0)"
            )
        self.X, self.home = points(X, "X")
        # The same object where there is one cloud: backends ask by identity whether pairs may be visited once and points packed
        # once.
        self.Y = self.X
        if Y is not None and Y is not X:
            self.Y, other = points(Y, "Y", n_features=self.X.shape[1])
            if other.device != self.home.device:
                raise ValueError(
                    f"X is on {self.home.device} and Y on {other.device}: move one of them first"
                )
            # The wider dtype: differences of float32 and float64 points have the digits of neither unless both are widened
            # first.
            dtype = np.result_type(self.X.dtype, self.Y.dtype)
            self.X, self.Y = (a.astype(dtype, copy=False) for a in (self.X, self.Y))
        self.backend = None if backend is None else check_name(backend, "backend=")
        self.tol = check_tol(tol)
        self.precision = check_precision(precision)
        # From the sources: the scale of a fitted kernel must not depend on where it is evaluated.
        self.kernel = kernel.resolve(lambda rule: median_scale(self.Y))
        self._prepare()

    def _prepare(self) -> None:
        # Everything that backends need not know (a scale for each feature, directions, circles) is done to the points here;
        # what they see is radial with one scale.
        self._placed = place(self.kernel, self.X, self.Y)
        self._radial = self._placed.kernel
        # Kept through all requests: copies on a device, orders and grids are made of these once.
        clouds = self._placed.X, self._placed.Y
        self.clouds = Clouds(*scales.within_range(self._radial, *clouds))
        # Points far out were moved nearer, where their kernel is 0 all the same; logarithms would tell the difference.
        self._moved = self.clouds.X is not clouds[0]
        self._requests: dict[tuple[Operation, int], Request] = {}
        self._transposed: KernelOperator | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(n, m)."""
        return len(self.X), len(self.Y)

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the points and of every result."""
        return np.dtype(self.X.dtype)

    @property
    def error_estimate_(self) -> float | None:
        """Estimated error of the last reduction, relative to sum_j |v_j| |k_ij| in its worst row.

        For gradients relative to the same sum over the smallest scale. None before the first reduction and after an
        exact one, which is right to rounding.
        """
        return self.clouds.error_estimate

    @property
    def T(self) -> KernelOperator:
        """The transposed operator: targets and sources exchanged (radial kernels are symmetric)."""
        # Kept, so that what it learns about its points (sorted, on a grid) serves the next transposed product too.
        if self._transposed is None:
            self._transposed = self._with(X=self.Y, Y=self.X)
        return self._transposed

    def _with(self, **changes: Any) -> KernelOperator:
        """Return the operator with other points or another kernel, which have been checked."""
        other = object.__new__(KernelOperator)
        # Past the checks of the constructor: points and kernel have been through them, and a factor of two should not look at a
        # million points.
        other.__dict__.update(self.__dict__, **changes)
        other._prepare()
        return other

    @property
    def reference(self) -> Array:
        """The targets."""
        return self.X

    def _times(self, factor: float) -> KernelOperator:
        return self._with(kernel=factor * self.kernel)

    def _fused(self, other: AbstractOperator, factor: float = 1.0) -> KernelOperator | None:
        if not isinstance(other, KernelOperator) or not (self._placed.adds and other._placed.adds):
            return None
        how = [(K.backend, K.tol, K.precision, K._placed.lengths) for K in (self, other)]
        # By memory, not by identity: sliced or transposed operators have arrays of their own over the same numbers.
        same = how[0] == how[1] and same_memory(self.X, other.X) and same_memory(self.Y, other.Y)
        return self._with(kernel=factor * self.kernel + other.kernel) if same else None

    def _selected(self, rows: np.ndarray | None, columns: np.ndarray | None) -> KernelOperator:
        equal = rows is columns  # both None
        if rows is not None and columns is not None:
            equal = np.array_equal(rows, columns)
        X = self.X if rows is None else self.X[namespace(self.X).asarray(rows)]
        # A principal block stays one cloud, and symmetric.
        if equal and self.X is self.Y:
            return self._with(X=X, Y=X)
        Y = self.Y if columns is None else self.Y[namespace(self.Y).asarray(columns)]
        return self._with(X=X, Y=Y)

    def __repr__(self) -> str:
        n, m = self.shape
        where = f"{self.home.library} on {self.home.device}"
        return f"KernelOperator({self.kernel!r}, {n} x {m}, d={self.X.shape[1]}, {self.dtype}, {where})"

    def explain(self, op: str | Operation = PRODUCT, *, t: int = 1) -> Explanation:
        """Return who computes ``op`` with t right-hand sides and the ranked table of all backends.

        Parameters
        ----------
        op : {"product", "gradient", "value_and_gradient", "logsumexp", "logsumexp_and_gradient"}
        t : int
            Number of right-hand sides.

        Raises
        ------
        BackendError
            If the backend chosen by name cannot do it.
        """
        return explain(self.request(as_operation(op), check_count(t, "t")), self.backend)

    def request(self, operation: Operation, t: int) -> Request:
        """Return the request, made once for an operation and a number of columns."""
        request = self._requests.get((operation, t))
        if request is None:
            (n, m), d, home = self.shape, self.clouds.X.shape[1], self.home
            # torch's or JAX's arrays on a device arrive as CuPy's, those on the host as NumPy's: backends know two libraries.
            library = home.library if home.device == "cpu" else "cupy"
            where = str(self.dtype), library, home.device
            how = self.tol, self.precision, self.clouds
            request = Request(operation, self._radial, n, m, d, t, *where, *how)
            self._requests[operation, t] = request
        return request

    def _home_again(self, result: Array) -> Array:
        return self.home.restore(result)

    def rmatmat(self, U: Any) -> Array:
        """Return ``K.T @ U``; SciPy's name."""
        out = self.T @ U
        self.clouds.error_estimate = self.T.error_estimate_
        return out

    def diagonal(self) -> Array:
        """Return k(x_i, y_i) for i < min(n, m)."""
        return self._home_again(diagonal(self._radial, self.clouds.X, self.clouds.Y))

    def to_dense(self) -> Array:
        """Return the (n, m) matrix: n m numbers in memory, for small problems and for tests."""
        return self._home_again(dense(self._radial, self.clouds.X, self.clouds.Y))


set_operator_factory(KernelOperator)

__all__ = ["BackendError", "Home", "KernelOperator", "check_tol", "median_scale"]
