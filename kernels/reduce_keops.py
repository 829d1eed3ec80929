"""Sums by KeOps, from formulas printed from the same profile.

KeOps compiles one formula at its first call (5 to 12 s with g++ or NVRTC) and keeps it on disk. It takes NumPy
arrays; the coordinates are pre-scaled here, and constants it cannot write exactly travel as parameters.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from gpukoop.kernels.expr import Expr, Symbol, substitute
from gpukoop.kernels.printers import KeOpsPrinter
from gpukoop.kernels.profile import AbstractKernel, KernelSum, Trace, trace

Array = Any

# Added to q where dphi has a kink: phi'(1e-30) is finite in float32 for every exponent, and the pair's
# x - y = 0 then makes its gradient exactly 0. Distances of 1e-15 scales and more are not changed.
KINK_SHIFT = 1e-30
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


@lru_cache(maxsize=1)
def _genred() -> Callable[..., Any]:
    os.environ.setdefault("PYKEOPS_VERBOSE", "0")
    os.environ.setdefault("KEOPS_VERBOSE", "0")
    import pykeops.numpy

    return pykeops.numpy.Genred


class _Formula:
    """Formula text of the expressions of one trace and the parameter vector they refer to."""

    def __init__(self, kernel: AbstractKernel) -> None:
        self.trace: Trace = trace(kernel)
        symbols = {name: f"Elem(P,{i})" for i, name in enumerate(self.trace.symbols)}
        symbols["q"] = "SqDist(X,Y)"
        self.printer = KeOpsPrinter(symbols, len(self.trace.symbols))

    def text(self, tree: Expr, *, kink: bool = False) -> str:
        if kink:
            tree = substitute(tree, {Symbol("q"): Symbol("q") + KINK_SHIFT})
        return self.printer.print(tree)

    def parameters(self, dtype: np.dtype) -> Array:
        return np.array([*self.trace.values, *self.printer.constants, 0.0], dtype)

    def run(
        self, formula: str, X: Array, Y: Array, V: Array, reduction: str = "Sum", **options: Any
    ) -> Array:
        pre = self.trace.prescale
        P = self.parameters(X.dtype)
        aliases = [f"X=Vi({X.shape[1]})", f"Y=Vj({X.shape[1]})", f"V=Vj({V.shape[1]})"]
        reduce = _genred()(
            formula, [*aliases, f"P=Pm({len(P)})"], reduction_op=reduction, axis=1, **options
        )
        # Centred before scaling: KeOps subtracts in the dtype of the points, and their common offset is no help.
        centre = Y.mean(axis=0, dtype=float)
        Xs, Ys = (np.ascontiguousarray((A - centre) * pre, dtype=X.dtype) for A in (X, Y))
        return reduce(Xs, Ys, V, P)


def product(
    kernel: AbstractKernel, X: Array, Y: Array, V: Array, *, tol: float | None = None
) -> Array:
    """Return sum_j k(x_i, y_j) V_jc, (n, t)."""
    f = _Formula(kernel)
    phi = f.text(f.trace.phi)
    if f.trace.singular:
        phi = f"({f.text(f.trace.phi, kink=True)} * Sign(SqDist(X,Y)))"
    return f.run(f"{phi} * V", X, Y, V)


def gradient(
    kernel: AbstractKernel, X: Array, Y: Array, V: Array, *, tol: float | None = None
) -> Array:
    """Return the gradient of the product in x_i, (n, t, d)."""
    return value_and_gradient(kernel, X, Y, V)[1]


def value_and_gradient(
    kernel: AbstractKernel, X: Array, Y: Array, V: Array, *, tol: float | None = None
) -> tuple[Array, Array]:
    """Return product and gradient from one formula and one pass."""
    f = _Formula(kernel)
    (n, d), t = X.shape, V.shape[1]
    slope = f.text(f.trace.dphi, kink=f.trace.kink)
    out = f.run(f"Concat({f.text(f.trace.phi)} * V, {slope} * TensorProd(V, X - Y))", X, Y, V)
    grad = np.ascontiguousarray(out[:, t:]).reshape(n, t, d)
    grad *= X.dtype.type(2 * f.trace.prescale)
    return np.ascontiguousarray(out[:, :t]), grad


def logsumexp(
    kernel: AbstractKernel, X: Array, Y: Array, b: Array, *, tol: float | None = None
) -> Array:
    """Return log sum_j k(x_i, y_j) exp(b_j), (n,)."""
    parts = [_one_logsumexp(KernelSum((term,)), X, Y, b)[0] for term in kernel.terms]
    return np.logaddexp.reduce(parts, axis=0)


def logsumexp_and_gradient(
    kernel: AbstractKernel, X: Array, Y: Array, b: Array, *, tol: float | None = None
) -> tuple[Array, Array]:
    """Return the log-sum-exp and its gradient in x_i, (n,) and (n, d); two passes a term."""
    parts = []
    for term in kernel.terms:
        L, f, B = _one_logsumexp(KernelSum((term,)), X, Y, b)
        slope = f.text(_known(f.trace.log_slope), kink=f.trace.kink)
        logits = f"{f.text(_known(f.trace.log_phi))} + V"
        G = f.run(logits, X, Y, B, "SumSoftMaxWeight", formula2=f"{slope} * (X - Y)")
        parts.append((L, G * X.dtype.type(2 * f.trace.prescale)))
    total = np.logaddexp.reduce([L for L, _ in parts], axis=0)
    safe = np.where(total == -np.inf, 0, total)
    return total, sum(np.exp(L - safe)[:, None] * G for L, G in parts)


def _known(tree: Expr | None) -> Expr:
    if tree is None:
        raise ValueError("log-sum-exp needs one positive kernel a pass")
    return tree


def _one_logsumexp(
    kernel: AbstractKernel, X: Array, Y: Array, b: Array
) -> tuple[Array, _Formula, Array]:
    f = _Formula(kernel)
    B = np.maximum(b, b.dtype.type(ABSENT))[:, None]
    L = f.run(f"{f.text(_known(f.trace.log_phi))} + V", X, Y, B, "LogSumExp")[:, 0]
    return np.where(ABSENT / 10 > L, -np.inf, L).astype(X.dtype), f, B
