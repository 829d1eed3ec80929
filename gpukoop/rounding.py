r"""What a sum may be wrong by: the one tolerance, derived from rounding.

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
from scipy.spatial.distance import cdist

from gpukoop.arrays import Array, native_array, to_host
from gpukoop.checks import LARGEST_LENGTH, real_array
from gpukoop.kernels.formula.expr import Call, E, Expr, Number, Product, Sum, substitute
from gpukoop.kernels.formula.profile import AbstractKernel, AbstractRadial, KernelSum, Trace, trace
from gpukoop.kernels.operation import PRODUCT, Operation, as_operation
from gpukoop.kernels.reference import evaluate

# Rounding errors of a sum add up like sqrt(m) eps in the mean; the worst row of thousands and the few roundings inside
# phi make a small multiple of it. Measured over nine kernels, spreads of 0.1 to 110 scales, d = 1 to 50 and m = 1 to
# 10^6: NumPy 2.9, Numba on the CPU 2.5, KeOps 1.9. Hence four.
C = 4.0
# Relative complex step: its square is eps, and q dphi'(q) h underflows only where dphi has nothing left to round.
STEP = 1e-8
# Pairs of one row block; some ten float64 temporaries of 8 MB each.
BLOCK_ENTRIES = 2**20


class _Rounding:
    """phi, the slope of its gradient, and what one rounding of s does to both, for the pairs of one radial term.

    ``slope`` is 2 phi'(s) / scale^2. All are absolute values in float64, (b, m).
    """

    def __init__(self, term: tuple[float, AbstractRadial], X: Array, Y: Array) -> None:
        self.trace: Trace = trace(KernelSum((term,)))
        self.squared = cdist(X, Y, "sqeuclidean")
        self.distance = np.sqrt(self.squared)
        q = self.squared * self.trace.prescale**2
        self.apart = q > 0
        self.q = np.where(self.apart, q, 1.0)  # pairs with q = 0 are put right by `at_zero`
        self.factor = 2 * self.trace.prescale**2
        phi = self._of(self.trace.phi, q, zero=self.trace.singular)
        slope = self._of(self.trace.dphi, self.q, zero=True)
        self.phi, self.slope = np.abs(phi), self.factor * np.abs(slope)
        self.phi_rounding = np.abs(self.q * slope)
        self.slope_rounding = self.factor * np.abs(self._q_derivative(self.trace.dphi))
        self.phi_power, self.slope_power = (self._power(t) for t in self._trees)
        self.phi_lost, slope_lost = (self._lost(t) for t in self._trees)
        self.slope_lost = self.factor * slope_lost

    @property
    def _trees(self) -> tuple[Expr, Expr]:
        return self.trace.phi, self.trace.dphi

    def _power(self, tree: Expr) -> Array:
        """Return the relative rounding of general powers b ** e in units of eps, abs(e) (1 + abs(log b))."""
        total = np.zeros_like(self.q)
        for base, exponent in _general_powers(tree):
            b, e = self._of(base, self.q, zero=False), self._of(exponent, self.q, zero=False)
            total += np.abs(e) * (1 + np.abs(np.log(b)))
        return total

    def _lost(self, tree: Expr) -> Array:
        """Return what multiplies an exponential that underflows, at least 1."""
        rest = self._of(substitute(tree, {E: Number(1.0)}), self.q, zero=True)
        return np.maximum(1.0, np.abs(rest))

    def _of(self, tree: Any, q: Array, *, zero: bool) -> Array:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
            values = evaluate(tree, q, self.trace.symbols, self.trace.values)
        return np.where(self.apart, values, 0.0) if zero else values

    def _q_derivative(self, tree: Any) -> Array:
        """Return q d/dq of an expression by complex step; 0 where q = 0."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
            stepped = evaluate(
                tree, self.q * (1 + 1j * STEP), self.trace.symbols, self.trace.values
            )
        return np.where(self.apart, stepped.imag / STEP, 0.0)

    def logarithms(self) -> tuple[Array, ...]:
        """Return log phi and, as absolute values, q phi'/phi, its slope and rounding, the powers, distances."""
        t = self.trace
        if t.log_phi is None or t.log_slope is None:
            raise ValueError("logsumexp needs a positive kernel")
        log_phi = self._of(t.log_phi, np.where(self.apart, self.q, 0.0), zero=False)
        slope = self._of(t.log_slope, self.q, zero=True)
        rounding = self.factor * np.abs(self._q_derivative(t.log_slope))
        carried = np.abs(self.q * slope)
        return (
            log_phi,
            carried,
            self.factor * np.abs(slope),
            rounding,
            self.phi_power,
            self.distance,
        )


def _general_powers(tree: Expr) -> list[tuple[Expr, Expr]]:
    """Return (base, exponent) of the powers that no root and no product computes."""
    if isinstance(tree, Sum):
        return [pair for term, _ in tree.terms for pair in _general_powers(term)]
    if isinstance(tree, Call):
        return _general_powers(tree.argument)
    found: list[tuple[Expr, Expr]] = []
    for base, exponent in tree.factors if isinstance(tree, Product) else ():
        found += _general_powers(base) + _general_powers(exponent)
        root = isinstance(exponent, Number) and (2 * exponent.value).is_integer()
        if base != E and not root:
            found.append((base, exponent))
    return found


def _float_dtype(X: Any) -> np.dtype:
    dtype = native_array(X, "X")[0].dtype
    if dtype.kind != "f":
        raise TypeError(
            f"X has dtype {dtype}, expected float32 or float64: pass dtype=, that of the sums"
        )
    return dtype


def _weights(v: Any, m: int, operation: Operation) -> np.ndarray:
    """Return weights (m,) or (m, t) as float64; those of logarithms may be -inf."""
    native = to_host(native_array(v, "v")[0])
    if (
        operation.log
        and native.dtype.kind == "f"
        and not (np.isnan(native) | (native == np.inf)).any()
    ):
        found = native.astype(float)
    else:
        found = real_array(v, "v")
    if found.ndim not in (1, 2) or len(found) != m or not found.size:
        raise ValueError(f"v has shape {found.shape}, expected ({m},) or ({m}, t)")
    return found


def tolerance(
    kernel: AbstractKernel,
    X: Array,
    Y: Array,
    v: Array,
    op: str | Operation = PRODUCT,
    *,
    dtype: Any = None,
    tol: float | None = None,
) -> Any:
    r"""Return how far each number of a result may be from the exact one: the one tolerance of gpukoop.

    With c = 4 and eps, tiny of the dtype, s = |x_i - y_j|^2 / scale^2 and softmax weights p_j,

    ========= =====================================================================================
    product   c eps sum_j abs(v_j) (sqrt(m) abs(phi) + sqrt(d) abs(s phi')) + tiny sum_j abs(v_j)
    gradient  (2 / scale^2) [c eps sum_j abs(v_j) abs(x_i - y_j) (sqrt(m) abs(phi') + sqrt(d) abs(s phi''))
              + tiny sum_j abs(v_j) abs(x_i - y_j)] for each coordinate
    logsumexp c eps [sum_j p_j (sqrt(m) + sqrt(d) abs(s phi' / phi) + abs(log phi) + abs(b_j)) + abs(result)]
    ========= =====================================================================================

    and for the gradient of the log-sum-exp the same roundings of p_j and of its normaliser, carried through
    sum_j p_j (2 / scale^2) (phi' / phi) (x_i - y_j). A sum of kernels has the sum of the bounds of its terms.

    Parameters
    ----------
    kernel : kernel
        With numeric scales.
    X, Y : arrays of shape (n, d) and (m, d)
        Targets and sources exactly as they were handed to the operator, on the host.
    v : array of shape (m,) or (m, t)
        Weights; for the log-sum-exp their logarithms, (m,), where -inf is an absent source.
    op : {"product", "gradient", "value_and_gradient", "logsumexp", "logsumexp_and_gradient"}
    dtype : dtype, optional
        In which the sums were computed; that of ``X`` by default.
    tol : float, optional
        The operator's ``tol``: adds tol sum_j abs(v_j) abs(k), for a gradient the same over ``scale``.

    Returns
    -------
    array, or pair of arrays for the operations that have two results
        Absolute bounds in the shape of the result, float64.

    Notes
    -----
    Cost: about 20 NumPy passes over the n m pairs, in row blocks of some 100 MB.

    First term: the sum. Second: the rounding in s carried through phi. ``tiny``: underflow. phi'' is a complex step of
    dphi. The textbook bound sqrt(m) eps abs(phi) alone is exceeded 169-fold by far points in float64, and without
    limit by float32 underflow.

    Two terms vanish for kernels that do not need them. A general power b ** e (RationalQuadratic, Riesz) is
    exp(e log b) on most machines: sqrt(m) grows by abs(e) (1 + abs(log b)), without which NumPy itself is at 5.1 for
    alpha = 8. And where an exponential underflows before a polynomial multiplies it (Matern), tiny grows by that polynomial.

    Examples
    --------
    >>> import numpy as np, gpukoop as gk
    >>> X = np.random.default_rng(0).normal(size=(100, 2)).astype("float32")
    >>> v = np.ones(100, "float32")
    >>> exact = gk.Gaussian()(X.astype(float)) @ v
    >>> bool((abs(gk.Gaussian()(X) @ v - exact) <= tolerance(gk.Gaussian(), X, X, v)).all())
    True
    """
    operation = as_operation(op)
    info = np.finfo(_float_dtype(X) if dtype is None else dtype)
    X = real_array(X, "X", (None, None))
    Y = real_array(Y, "Y", (None, X.shape[1]))
    v = _weights(v, len(Y), operation)
    if not X.size or not Y.size or max(abs(X).max(), abs(Y).max()) > LARGEST_LENGTH:
        raise ValueError(
            f"X {X.shape} and Y {Y.shape} must hold points, none beyond {LARGEST_LENGTH:.0e}"
        )
    bound = _log_bounds if operation.log else _sum_bounds
    size = max(1, BLOCK_ENTRIES // len(Y))
    blocks = [
        bound(kernel, X[i : i + size], Y, v, float(info.eps), float(info.tiny), tol)
        for i in range(0, len(X), size)
    ]
    value, grad = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    return operation.result(value, grad)


def _sum_bounds(
    kernel: AbstractKernel,
    X: Array,
    Y: Array,
    v: Array,
    eps: float,
    tiny: float,
    tol: float | None,
) -> tuple[Array, Array]:
    (n, d), m = X.shape, len(Y)
    V = np.abs(v.reshape(m, -1))  # (m, t)
    value, grad = np.zeros((n, V.shape[1])), np.zeros((n, V.shape[1]))
    for coefficient, radial in kernel.terms:
        r = _Rounding((coefficient, radial), X, Y)
        value += C * eps * ((np.sqrt(m) + r.phi_power) * r.phi + np.sqrt(d) * r.phi_rounding) @ V
        value += tiny * r.phi_lost @ V
        each = (np.sqrt(m) + r.slope_power) * r.slope + np.sqrt(d) * r.slope_rounding
        grad += (r.distance * (C * eps * each + tiny * r.slope_lost)) @ V
        if tol is not None:
            within = tol * (r.phi @ V)
            value += within
            grad += within / radial.length
    grad = np.repeat(grad[:, :, None], d, axis=2)  # (n, t, d)
    return (value[:, 0], grad[:, 0]) if v.ndim == 1 else (value, grad)


def _log_bounds(
    kernel: AbstractKernel,
    X: Array,
    Y: Array,
    b: Array,
    eps: float,
    tiny: float,
    tol: float | None,
) -> tuple[Array, Array]:
    (n, d), m = X.shape, len(Y) * len(kernel.terms)
    rounding = [_Rounding(term, X, Y) for term in kernel.terms]
    log_phi, carried, slope, slope_rounding, power, distance = (
        np.concatenate(parts, axis=1)
        for parts in zip(*(r.logarithms() for r in rounding), strict=True)
    )  # (n, m): a sum of kernels is more sources
    b = np.tile(b, len(kernel.terms))
    present = b > -np.inf
    if not present.any():
        return np.zeros(n), np.zeros((n, d))
    log_phi, carried, slope, slope_rounding, power, distance, b = (
        a[..., present] for a in (log_phi, carried, slope, slope_rounding, power, distance, b)
    )
    logits = log_phi + b
    top = logits.max(axis=1, keepdims=True)
    p = np.exp(logits - top)
    result = top[:, 0] + np.log(p.sum(axis=1))
    p /= p.sum(axis=1, keepdims=True)
    each = np.sqrt(m) + power + np.sqrt(d) * carried + np.abs(log_phi) + np.abs(b)
    value = C * eps * ((p * each).sum(axis=1) + np.abs(result))
    moved = slope * (each + (value / (C * eps))[:, None]) + np.sqrt(d) * slope_rounding
    grad = C * eps * (p * distance * moved).sum(axis=1)
    grad += tiny * (distance * slope).sum(axis=1)
    if tol is not None:
        value += tol
        grad += tol * (p * distance * slope).sum(axis=1)
    return value, np.repeat(grad[:, None], d, axis=1)
