"""Reference sums in row blocks: easy to believe, and quick enough for small problems.

Distances are differences in float64 whatever the dtype of the points, so these sums carry no cancellation
and no growing accumulator. The same text runs on NumPy and, where the points are CuPy arrays, on CuPy.

=== =============== ====================
n   targets         rows of ``X``
m   sources         rows of ``Y``
d   features        columns of both
t   right-hand side columns of ``V``
=== =============== ====================
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

from gpukoop.kernels.arrays import Array, namespace
from gpukoop.kernels.formula.expr import Expr
from gpukoop.kernels.formula.printers import NumPyPrinter
from gpukoop.kernels.formula.profile import AbstractKernel, KernelSum, trace
from gpukoop.kernels.operation import Operation

# Entries of one row block: 2**20 float64 numbers are 8 MB, so a handful of temporaries stay in cache or near it.
BLOCK_ENTRIES = 2**20
# Above every square of points that may come (gpukoop.scales.check_range), and a polynomial of degree 1 in it is finite.
LARGEST_SQUARE = 1e307


@lru_cache(maxsize=256)
def _compiled(tree: Expr, symbols: tuple[str, ...], xp: ModuleType) -> Callable[..., Array]:
    printer = NumPyPrinter()
    result = printer.print(tree)
    body = "".join(f"    {line}\n" for line in printer.lines)
    text = f"def evaluate({', '.join(('q', *symbols))}):\n{body}    return {result}\n"
    scope: dict[str, Any] = {"np": xp}
    exec(text, scope)
    return scope["evaluate"]


def evaluate(tree: Expr, q: Array, symbols: tuple[str, ...], values: tuple[float, ...]) -> Array:
    """Return an expression of a trace at the squared distances ``q`` (real or complex)."""
    out = _compiled(tree, symbols, namespace(q))(q, *values)
    # A constant becomes an array; q times 0 is no way there, for a square out of range would make it NaN.
    return out if getattr(out, "shape", None) == q.shape else out + namespace(q).zeros_like(q)


def squared_distances(X: Array, Y: Array) -> Array:
    """Return |x_i - y_j|^2 in float64 from differences, (n, m)."""
    xp = namespace(X)
    if xp is np:
        return cdist(X, Y, "sqeuclidean")
    q = xp.zeros((len(X), len(Y)))
    for c in range(X.shape[1]):
        q += (X[:, c, None].astype(float) - Y[None, :, c]) ** 2
    return q


class _Block:
    """One block of rows: phi, dphi and their logarithmic forms at its distances."""

    def __init__(self, kernel: AbstractKernel, X: Array, Y: Array) -> None:
        self.trace = trace(kernel)
        self.X, self.Y = X.astype(float), Y.astype(float)
        # Where a square leaves the range decaying kernels are 0; a polynomial times such an exponential would be NaN.
        q = squared_distances(X, Y) * self.trace.prescale**2
        self.q = namespace(q).minimum(q, LARGEST_SQUARE)

    def _of(self, tree: Expr, at_zero: bool) -> Array:
        xp = namespace(self.q)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
            values = evaluate(tree, self.q, self.trace.symbols, self.trace.values)
        return xp.where(self.q > 0, values, 0.0) if at_zero else values

    def phi(self) -> Array:
        return self._of(self.trace.phi, self.trace.singular)

    def slope(self) -> Array:
        """Return the factor of (x - y) in the gradient of k in x."""
        return 2 * self.trace.prescale**2 * self._of(self.trace.dphi, self.trace.kink)

    def log_phi(self) -> Array:
        if self.trace.log_phi is None:
            raise ValueError("log-sum-exp needs one positive kernel a pass")
        return self._of(self.trace.log_phi, False)

    def log_slope(self) -> Array:
        if self.trace.log_slope is None:
            raise ValueError("log-sum-exp needs one positive kernel a pass")
        return 2 * self.trace.prescale**2 * self._of(self.trace.log_slope, self.trace.kink)

    def moment(self, P: Array, V: Array) -> Array:
        """Return sum_j P_ij V_jc (x_i - y_j), (b, t, d): differences first, so nothing cancels."""
        xp = namespace(P)
        G = xp.empty((len(self.X), V.shape[1], self.X.shape[1]))
        for c in range(self.X.shape[1]):
            G[:, :, c] = (P * (self.X[:, c, None] - self.Y[None, :, c])) @ V
        return G


def _rows(n: int, m: int) -> Iterator[slice]:
    size = max(1, BLOCK_ENTRIES // m)
    for start in range(0, n, size):
        yield slice(start, min(n, start + size))


def dense(kernel: AbstractKernel, X: Array, Y: Array) -> Array:
    """Return the (n, m) matrix itself."""
    xp = namespace(X)
    K = xp.empty((len(X), len(Y)), X.dtype)
    for rows in _rows(len(X), len(Y)):
        K[rows] = _Block(kernel, X[rows], Y).phi()
    return K


def diagonal(kernel: AbstractKernel, X: Array, Y: Array) -> Array:
    """Return k(x_i, y_i) for i < min(n, m)."""
    size = min(len(X), len(Y))
    t = trace(kernel)
    q = ((X[:size].astype(float) - Y[:size].astype(float)) ** 2).sum(axis=1) * t.prescale**2
    with np.errstate(divide="ignore", invalid="ignore"):
        value = evaluate(t.phi, q, t.symbols, t.values)
    if t.singular:
        value = namespace(X).where(q > 0, value, 0.0)
    return value.astype(X.dtype)


def reduce(
    kernel: AbstractKernel,
    operation: Operation,
    X: Array,
    Y: Array,
    V: Array,
    *,
    tol: float | None = None,
) -> Any:
    """Return the reduction; ``tol`` is met whatever it is. Distances are computed once for value and slope."""
    if operation.log:
        return operation.result(*_logsumexp(kernel, X, Y, V, slopes=operation.slope))
    xp = namespace(X)
    W = V.astype(float)
    value = xp.empty((len(X), V.shape[1]), X.dtype)
    slope = xp.empty((len(X) if operation.slope else 0, V.shape[1], X.shape[1]), X.dtype)
    for rows in _rows(len(X), len(Y)):
        block = _Block(kernel, X[rows], Y)
        if operation.value:
            value[rows] = block.phi() @ W
        if operation.slope:
            slope[rows] = block.moment(block.slope(), W)
    return operation.result(value, slope)


def _logsumexp(
    kernel: AbstractKernel, X: Array, Y: Array, b: Array, *, slopes: bool
) -> tuple[Array, Array]:
    xp = namespace(X)
    out, grad = xp.empty(len(X), X.dtype), xp.empty(X.shape, X.dtype)
    # A sum of kernels is more sources: (term, j) pairs, each with the coefficient in its weight.
    terms = [KernelSum(((c, k),)) for c, k in kernel.terms]
    for rows in _rows(len(X), len(terms) * len(Y)):
        blocks = [_Block(term, X[rows], Y) for term in terms]
        with np.errstate(divide="ignore", invalid="ignore", under="ignore"):
            logits = [block.log_phi() + b for block in blocks]
            top = xp.max(xp.stack([xp.max(a, axis=1) for a in logits]), axis=0)
            top = xp.where(top == -xp.inf, 0.0, top)
            weights = [xp.exp(a - top[:, None]) for a in logits]
            total = sum(w.sum(axis=1) for w in weights)
            out[rows] = top + xp.log(total)
        if slopes:
            total = xp.where(total == 0, 1.0, total)
            one = xp.ones((len(Y), 1))
            pieces = zip(blocks, weights, strict=True)
            G = sum(block.moment(block.log_slope() * w, one)[:, 0] for block, w in pieces)
            grad[rows] = G / total[:, None]
    return out, grad
