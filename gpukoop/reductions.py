r"""The sums of an operator: what ``K @ v``, its gradient and its logarithm ask of a backend, and how the answer comes home.

Every sum goes the same way: weights are checked and brought to where the points are, the request that the operator keeps is run by
the backend that its cost chose, a slope is taken back to the points that the user gave, and the result to their library.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np

from gpukoop import scales
from gpukoop.alarm import listen
from gpukoop.algebra import AbstractOperator
from gpukoop.arrays import Array, is_cupy, namespace, native_array, weights
from gpukoop.dispatch import run
from gpukoop.kernels.formula.placed import Placement
from gpukoop.kernels.formula.profile import AbstractKernel
from gpukoop.kernels.operation import (
    GRADIENT,
    LOGSUMEXP,
    LOGSUMEXP_AND_GRADIENT,
    PRODUCT,
    VALUE_AND_GRADIENT,
    Operation,
)
from gpukoop.kernels.request import Request
from gpukoop.placement import slope_back


class AbstractReductions(AbstractOperator):
    """Sums over the sources of an operator, for every target; who inherits has the points and makes the requests."""

    X: Array
    Y: Array
    backend: str | None
    _placed: Placement
    _radial: AbstractKernel
    _moved: bool

    @abstractmethod
    def request(self, operation: Operation, t: int) -> Request:
        """Return the request of an operation with t columns."""

    @abstractmethod
    def _home_again(self, result: Array) -> Array:
        """Return a result in the library that the points came from."""

    def _run(
        self, operation: Operation, v: Any, name: str, *, infinite: bool = False
    ) -> tuple[Any, bool]:
        # Nothing here waits for a device: what it finds in the weights is heard before the call, after it, or later.
        listen()
        V = weights(v, name, len(self.Y), self.Y, infinite=infinite)
        out = run(self.request(operation, V.shape[1]), self.backend, V)
        listen()
        # Slopes are those of the radial kernel in its own places; the chain rule brings them to the points that the user has.
        return slope_back(out, operation, self._placed), _ndim(v) == 1

    def __matmul__(self, v: Any) -> Array:
        r"""Return ``K @ v``, :math:`\sum_j k(x_i, y_j) v_{jc}`.

        Parameters
        ----------
        v : array of shape (m,) or (m, t)
            Weights of the sources; finite.

        Returns
        -------
        array of shape (n,) or (n, t)
            Library, device and dtype of the points.

        Raises
        ------
        ValueError
            If ``v`` has not m rows or holds NaN or inf.
        BackendError
            If the chosen backend cannot run it.

        Notes
        -----
        Cost: n m (d + t) operations and O(n t) memory. Accuracy: ``gpukoop.testing.tolerance`` if ``tol``
        is None, else ``tol`` relative to sum_j |v_j| |k_ij|.
        """
        out, flat = self._run(PRODUCT, v, "v")
        return self._home_again(out[:, 0] if flat else out)

    def _apply(self, v: Array) -> Array:
        return self @ v

    def gradient(self, v: Any) -> Array:
        r"""Return the gradient of ``K @ v`` in the target points.

        .. math:: g_{ic} = \nabla_{x_i} \sum_j k(x_i, y_j)\, v_{jc}
                         = \frac{2}{\ell^2} \sum_j \varphi'(s_{ij})\, v_{jc}\, (x_i - y_j)

        Parameters
        ----------
        v : array of shape (m,) or (m, t)
            Weights of the sources; finite.

        Returns
        -------
        array of shape (n, d) or (n, t, d)
            Library, device and dtype of the points. Units: those of ``k`` times ``v``, per unit of ``x``.

        Raises
        ------
        ValueError
            If ``v`` has not m rows; the message gives both shapes.
        BackendError
            If the chosen backend cannot run it; the message lists every backend with its reason.

        Notes
        -----
        Cost: n m (d + t) operations, O(n t d) memory; the (n, m) matrix is never formed.
        A pair with x_i = y_j contributes zero, also where phi' is infinite.
        """
        out, flat = self._run(GRADIENT, v, "v")
        return self._home_again(out[:, 0] if flat else out)

    def value_and_gradient(self, v: Any) -> tuple[Array, Array]:
        """Return ``(K @ v, K.gradient(v))`` from one fused pass over the pairs.

        Parameters
        ----------
        v : array of shape (m,) or (m, t)
            Weights of the sources; finite.

        Returns
        -------
        value : array of shape (n,) or (n, t)
        gradient : array of shape (n, d) or (n, t, d)
        """
        (value, grad), flat = self._run(VALUE_AND_GRADIENT, v, "v")
        if flat:
            value, grad = value[:, 0], grad[:, 0]
        return self._home_again(value), self._home_again(grad)

    def logsumexp(self, b: Any) -> Array:
        r"""Return :math:`\log \sum_j k(x_i, y_j) e^{b_j}` without overflow or underflow.

        Parameters
        ----------
        b : array of shape (m,)
            Logarithms of the weights; -inf means an absent source.

        Returns
        -------
        array of shape (n,)

        Raises
        ------
        ValueError
            If the kernel takes values <= 0, or ``b`` has not m entries.

        Notes
        -----
        The logarithm of the kernel is computed from its formula, never from a number that has underflowed.
        """
        return self._home_again(self._log(LOGSUMEXP, b))

    def logsumexp_and_gradient(self, b: Any) -> tuple[Array, Array]:
        r"""Return :math:`L_i = \log \sum_j k(x_i, y_j) e^{b_j}` and :math:`\nabla_{x_i} L_i` in one pass.

        For a Gaussian, ``x + scale**2 * gradient`` is the softmax mean of the sources: barycentric maps, denoisers
        and scores of kernel density estimates.

        Parameters
        ----------
        b : array of shape (m,)
            Logarithms of the weights; -inf means an absent source.

        Returns
        -------
        value : array of shape (n,)
        gradient : array of shape (n, d)
        """
        value, grad = self._log(LOGSUMEXP_AND_GRADIENT, b)
        return self._home_again(value), self._home_again(grad)

    def _log(self, operation: Operation, b: Any) -> Any:
        scales.check_logarithms(self._radial, self.dtype, self._moved)
        native, _ = native_array(b, "b")
        if native.ndim != 1:
            raise ValueError(f"b has shape {native.shape}, expected ({len(self.Y)},)")
        # On a device b of the dtype of the points has no digits to save.
        kept = is_cupy(native) and (native.dtype == self.dtype)
        # Lists and other kinds of numbers go on as they came: the check of weights says in words what is wrong with them.
        if kept or not native.size or native.dtype.kind not in "fiu":
            return self._run(operation, native, "b", infinite=True)[0]
        # Shifted before it takes the dtype of the points: float32 has no digits left at 1e7. The largest stays where it is,
        # so that the host need not wait for it.
        xp = namespace(native)
        native = native if native.dtype.kind == "f" else native.astype(float)
        # A log-sum-exp shifts with its logarithms: the largest may be taken off, in the dtype that they came in, and added to
        # the result.
        top = native.max()
        if not is_cupy(native) and abs(float(top)) > float(np.finfo(self.dtype).max):
            return self._run(operation, native, "b", infinite=True)[0]
        # Of logarithms that are all -inf nothing is taken off: -inf minus itself is NaN.
        top = xp.where(xp.isfinite(top), top, native.dtype.type(0))
        out = self._run(operation, native - top, "b", infinite=True)[0]
        if isinstance(out, tuple):
            return out[0] + top.astype(out[0].dtype), out[1]
        return out + top.astype(out.dtype)


def _ndim(v: Any) -> int:
    return v.ndim if hasattr(v, "ndim") else np.ndim(v)
