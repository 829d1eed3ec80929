"""Sums by KeOps, from formulas printed from the same profile.

KeOps compiles one formula at its first call (5 to 12 s with g++ or NVRTC) and keeps it on disk. It takes NumPy
arrays. Coordinates are multiplied by a power of two only, so that differences of neighbours far from the origin
stay exact; the rest of the scale, and constants that KeOps would round to float32, travel as parameters.
"""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
from typing import Any

import numpy as np

from gpukoop.kernels.arrays import Array
from gpukoop.kernels.formula.expr import Expr, Symbol, substitute
from gpukoop.kernels.formula.printers import KeOpsPrinter
from gpukoop.kernels.formula.profile import AbstractKernel, KernelSum, Trace, trace
from gpukoop.kernels.keops.files import call, genred
from gpukoop.kernels.operation import Operation

# Added to q where dphi has a kink: phi' is finite there for every exponent, and the pair's x - y = 0 then makes
# its gradient exactly 0. Distances of 1e-15 scales (1e-150 in float64) and more are not changed.
KINK_SHIFT = {"float32": 1e-30, "float64": 1e-300}
# KeOps' running maximum turns -inf weights into nan; a weight of e^-1e30 is as absent as that.
ABSENT = -1e30


def missing() -> str | None:
    """Return why KeOps cannot run here, or None."""
    if importlib.util.find_spec("pykeops") is None:
        return "pykeops is not installed (pip install gpukoop[keops])"
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return f"KeOps compiles its formulas and found no C++ compiler ({compiler})"
    return None


class _Formula:
    """Formula text of the expressions of one trace and the parameter vector they refer to."""

    def __init__(self, kernel: AbstractKernel, dtype: np.dtype) -> None:
        self.trace: Trace = trace(kernel)
        self.dtype = np.dtype(dtype)
        exponent = round(math.log2(self.trace.prescale))
        self.power = 2.0 ** max(-120, min(120, exponent))  # stays in range of float32
        symbols = {name: f"Elem(P,{i + 1})" for i, name in enumerate(self.trace.symbols)}
        symbols["q"] = "(Elem(P,0)*SqDist(X,Y))"
        self.printer = KeOpsPrinter(symbols, len(self.trace.symbols) + 1)

    def text(self, tree: Expr, *, kink: bool = False) -> str:
        if kink:
            tree = substitute(tree, {Symbol("q"): Symbol("q") + KINK_SHIFT[self.dtype.name]})
        return self.printer.print(tree)

    def parameters(self) -> Array:
        ratio = (self.trace.prescale / self.power) ** 2
        return np.array([ratio, *self.trace.values, *self.printer.constants], self.dtype)

    def slope(self) -> float:
        """Return the factor of ``dphi * (X - Y)`` in the gradient, X and Y as :meth:`run` hands them over."""
        return self.dtype.type(2 * self.trace.prescale * (self.trace.prescale / self.power))

    def run(
        self, formula: str, X: Array, Y: Array, V: Array, reduction: str = "Sum", **options: Any
    ) -> Array:
        P = self.parameters()
        aliases = [f"X=Vi({X.shape[1]})", f"Y=Vj({X.shape[1]})", f"V=Vj({V.shape[1]})"]
        reduce = genred()(
            formula, [*aliases, f"P=Pm({len(P)})"], reduction_op=reduction, axis=1, **options
        )
        Xs, Ys = (np.ascontiguousarray(A * self.dtype.type(self.power)) for A in (X, Y))
        text = repr((reduce.formula, reduce.aliases, self.dtype.name))
        return call(text, reduce, Xs, Ys, np.ascontiguousarray(V), P)


def reduce(
    kernel: AbstractKernel,
    operation: Operation,
    X: Array,
    Y: Array,
    V: Array,
    *,
    tol: float | None = None,
) -> Any:
    """Return the reduction, to rounding whatever ``tol`` is: one formula and one pass, for log-sum-exps one a term."""
    if operation.log:
        return operation.result(*_logsumexp(kernel, X, Y, V, operation.slope))
    if operation.slope:
        return operation.result(*_value_and_gradient(kernel, X, Y, V))
    return _product(kernel, X, Y, V)


def _product(kernel: AbstractKernel, X: Array, Y: Array, V: Array) -> Array:
    f = _Formula(kernel, X.dtype)
    phi = f.text(f.trace.phi)
    if f.trace.singular:
        phi = f"({f.text(f.trace.phi, kink=True)} * Sign(SqDist(X,Y)))"
    return f.run(f"{phi} * V", X, Y, V)


def _value_and_gradient(
    kernel: AbstractKernel, X: Array, Y: Array, V: Array
) -> tuple[Array, Array]:
    f = _Formula(kernel, X.dtype)
    (n, d), t = X.shape, V.shape[1]
    slope = f.text(f.trace.dphi, kink=f.trace.kink)
    out = f.run(f"Concat({f.text(f.trace.phi)} * V, {slope} * TensorProd(V, X - Y))", X, Y, V)
    grad = np.ascontiguousarray(out[:, t:]).reshape(n, t, d)
    grad *= f.slope()
    return np.ascontiguousarray(out[:, :t]), grad


def _logsumexp(
    kernel: AbstractKernel, X: Array, Y: Array, b: Array, slope: bool
) -> tuple[Array, Array | None]:
    terms = [KernelSum((term,)) for term in kernel.terms]
    if not slope:
        return _add([_log_term(term, X, Y, b) for term in terms]), None
    parts = [_log_term_and_gradient(term, X, Y, b) for term in terms]
    total = _add([L for L, _ in parts])
    safe = np.where(total == -np.inf, 0, total)
    return total, sum(np.exp(L - safe)[:, None] * G for L, G in parts)


def _log_term(term: AbstractKernel, X: Array, Y: Array, b: Array) -> Array:
    f, logits, B = _logits(term, X, b)
    return _present(f.run(logits, X, Y, B, "LogSumExp")[:, 0])


def _log_term_and_gradient(
    term: AbstractKernel, X: Array, Y: Array, b: Array
) -> tuple[Array, Array]:
    f, logits, B = _logits(term, X, b)
    slope = f.text(_known(f.trace.log_slope), kink=f.trace.kink)
    # (n, 2 + d): the largest logit, the sum of e^(logit - largest), and the sum of that times the slope
    weighed = f"Concat(IntCst(1), {slope} * (X - Y))"
    out = f.run(logits, X, Y, B, "Max_SumShiftExpWeight", formula2=weighed)
    return _present(out[:, 0] + np.log(out[:, 1])), f.slope() * out[:, 2:] / out[:, 1:2]


def _known(tree: Expr | None) -> Expr:
    if tree is None:
        raise ValueError("log-sum-exp needs one positive kernel a pass")
    return tree


def _logits(kernel: AbstractKernel, X: Array, b: Array) -> tuple[_Formula, str, Array]:
    f = _Formula(kernel, X.dtype)
    return f, f"{f.text(_known(f.trace.log_phi))} + V", np.maximum(b, b.dtype.type(ABSENT))[:, None]


def _present(L: Array) -> Array:
    return np.where(ABSENT / 10 > L, -np.inf, L).astype(L.dtype)


def _add(parts: list[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.logaddexp.reduce(parts, axis=0)
