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
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Pass:
    """One formula over the pairs, as KeOps takes it.

    Attributes
    ----------
    formula : str
        What is reduced over the sources.
    reduction : str
        KeOps' name for how.
    weighed : str
        The second formula of a reduction that has two.
    """

    formula: str
    reduction: str = "Sum"
    weighed: str = ""

    def aliases(self, d: int, t: int, numbers: int) -> list[str]:
        """Return the variables of the formula, for d features, t columns and so many parameters."""
        return [f"X=Vi({d})", f"Y=Vj({d})", f"V=Vj({t})", f"P=Pm({numbers})"]


class _Formula:
    """Formula text of the expressions of one trace and the parameter vector they refer to."""

    def __init__(self, kernel: AbstractKernel, operation: Operation, dtype: Any) -> None:
        self.trace: Trace = trace(kernel)
        self.dtype = np.dtype(dtype)
        # Points are scaled by a power of two, which rounds nothing; what is left of the pre-scaling, between .7 and 1.4, goes
        # into P.
        exponent = round(math.log2(self.trace.prescale))
        self.power = 2.0 ** max(-120, min(120, exponent))  # stays in range of float32
        symbols = {name: f"Elem(P,{i + 1})" for i, name in enumerate(self.trace.symbols)}
        symbols["q"] = "(Elem(P,0)*SqDist(X,Y))"
        self.printer = KeOpsPrinter(symbols, len(self.trace.symbols) + 1)
        write = self._logarithm if operation.log else self._sum
        self.made = write(operation.slope)

    def _text(self, tree: Expr | None, *, kink: bool = False) -> str:
        if tree is None:
            raise ValueError("log-sum-exp needs one positive kernel a pass")
        if kink:
            tree = substitute(tree, {Symbol("q"): Symbol("q") + KINK_SHIFT[self.dtype.name]})
        return self.printer.print(tree)

    def _sum(self, slope: bool) -> Pass:
        phi = self._text(self.trace.phi)
        if not slope:
            if self.trace.singular:
                # Sign is 0 at distance 0, where a singular kernel contributes nothing; the shift keeps the factor beside it
                # finite.
                phi = f"({self._text(self.trace.phi, kink=True)} * Sign(SqDist(X,Y)))"
            return Pass(f"{phi} * V")
        dphi = self._text(self.trace.dphi, kink=self.trace.kink)
        return Pass(f"Concat({phi} * V, {dphi} * TensorProd(V, X - Y))")

    def _logarithm(self, slope: bool) -> Pass:
        logits = f"{self._text(self.trace.log_phi)} + V"
        if not slope:
            return Pass(logits, "LogSumExp")
        # (n, 2 + d): the largest logit, the sum of e^(logit - largest), and the sum of that times the slope
        weighed = self._text(self.trace.log_slope, kink=self.trace.kink)
        return Pass(logits, "Max_SumShiftExpWeight", f"Concat(IntCst(1), {weighed} * (X - Y))")

    def parameters(self) -> Array:
        """Return P: the rest of the scale, the numbers of the symbols, and constants with all their digits."""
        ratio = (self.trace.prescale / self.power) ** 2
        return np.array([ratio, *self.trace.values, *self.printer.constants], self.dtype)

    def slope(self) -> float:
        """Return the factor of ``dphi * (X - Y)`` in the gradient, X and Y as :meth:`run` hands them over."""
        return self.dtype.type(2 * self.trace.prescale * (self.trace.prescale / self.power))

    def run(self, X: Array, Y: Array, V: Array) -> Array:
        """Return what the pass reduces to, (n, ...)."""
        # Constants travel in P: KeOps would print them into the formula with float32 digits.
        P, made = self.parameters(), self.made
        options = {"formula2": made.weighed} if made.weighed else {}
        aliases = made.aliases(X.shape[1], V.shape[1], len(P))
        reduce = genred()(made.formula, aliases, reduction_op=made.reduction, axis=1, **options)
        Xs, Ys = (np.ascontiguousarray(A * self.dtype.type(self.power)) for A in (X, Y))
        # KeOps' own identity of a compiled formula, which first calls must not share at the same time.
        text = repr((reduce.formula, reduce.aliases, self.dtype.name))
        return call(text, reduce, Xs, Ys, np.ascontiguousarray(V), P)


def code(kernel: AbstractKernel, operation: Operation, d: int, t: int, dtype: str) -> str:
    """Return the formulas of a reduction with their variables: one, or for log-sum-exps one a term."""
    texts = []
    for part in _parts(kernel, operation):
        f = _Formula(part, operation, dtype)
        aliases = f.made.aliases(d, 1 if operation.log else t, len(f.parameters()))
        lines = [f"{f.made.reduction} over j ({dtype})", *aliases, f.made.formula, f.made.weighed]
        texts.append("".join(f"{line}\n" for line in lines if line))
    return "\n".join(texts)


def _parts(kernel: AbstractKernel, operation: Operation) -> list[AbstractKernel]:
    """Return what one pass takes: a kernel, or where logarithms are added each of its terms."""
    return [KernelSum((term,)) for term in kernel.terms] if operation.log else [kernel]


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
        return operation.result(*_logsumexp(kernel, operation, X, Y, V))
    f = _Formula(kernel, operation, X.dtype)
    out = f.run(X, Y, V)
    if not operation.slope:
        return out
    (n, d), t = X.shape, V.shape[1]
    grad = np.ascontiguousarray(out[:, t:]).reshape(n, t, d)
    grad *= f.slope()
    return operation.result(np.ascontiguousarray(out[:, :t]), grad)


def _logsumexp(
    kernel: AbstractKernel, operation: Operation, X: Array, Y: Array, b: Array
) -> tuple[Array, Array | None]:
    B = np.maximum(b, b.dtype.type(ABSENT))[:, None]
    levels, slopes = [], []
    for part in _parts(kernel, operation):
        f = _Formula(part, operation, X.dtype)
        out = f.run(X, Y, B)
        level = out[:, 0] + np.log(out[:, 1]) if operation.slope else out[:, 0]
        # KeOps has no -inf among its sources: it turns into NaN in the running maximum, so absent weights are very negative
        # numbers.
        levels.append(np.where(ABSENT / 10 > level, -np.inf, level).astype(level.dtype))
        if operation.slope:
            slopes.append(f.slope() * out[:, 2:] / out[:, 1:2])
    total = levels[0] if len(levels) == 1 else np.logaddexp.reduce(levels, axis=0)
    if not operation.slope:
        return total, None
    # -inf - -inf would be NaN where no source has weight; the slope there is 0.
    safe = np.where(total == -np.inf, 0, total)
    parts = zip(levels, slopes, strict=True)
    return total, sum(np.exp(L - safe)[:, None] * G for L, G in parts)
