"""A kernel's profile as device functions: the only part of a CUDA program that is written by a program.

A frame asks for three functions of a pair, each of ``(q, s)``: ``phi``, ``log2`` (of phi, for log-sum-exps) and ``slope``
(dphi without its constant factor). ``q`` is what the frame keeps of the squared distance, ``s`` the tuple of runtime
scalars, of which the first two are the frame's own (:data:`OWN`).
"""

from __future__ import annotations

import linecache
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from gpukoop.kernels.cuda.form import (
    absorb_constant,
    gaussian_like,
    has_powers,
    log2_phi,
    merged,
    slope_parts,
    smooth,
)
from gpukoop.kernels.cuda.specification import OWN
from gpukoop.kernels.formula.expr import Expr, Number, mul, substitute
from gpukoop.kernels.formula.printers import NumbaPrinter
from gpukoop.kernels.formula.profile import Q, Trace
from gpukoop.kernels.operation import Operation


def waves(real: Any) -> dict[str, Any]:
    """Return cos and sin of a dtype; not the fast ones of fast mathematics, which are wrong far from 0."""
    from gpukoop.kernels.cuda.device import (
        SIMULATED,
    )  # here: it loads Numba, which plans do without

    if SIMULATED:
        return {"cos": lambda x: real(np.cos(x)), "sin": lambda x: real(np.sin(x))}
    from numba.cuda import libdevice as f

    single = real is np.float32
    return {"cos": f.cosf if single else f.cos, "sin": f.sinf if single else f.sin}


class CudaPrinter(NumbaPrinter):
    """Statements of one device function, with its argument in ``q`` and the kernel's scalars in ``s``."""

    def __init__(self, symbols: tuple[str, ...]) -> None:
        functions = ("exp2", "log2", "sqrt", "rsqrt", "cos", "sin")
        super().__init__("real", {name: name for name in functions})
        self.places = {name: f"s[{len(OWN) + i}]" for i, name in enumerate(symbols)}

    def call(self, function: str, argument: str) -> str:
        """Return a call; a reciprocal is one instruction only as a division that may be approximate."""
        if function == "reciprocal":
            return f"divide(one, {argument})"
        return super().call(function, argument)

    def symbol(self, name: str) -> str:
        """Return q, or the scalar of that name."""
        return "q" if name == Q.name else self.places[name]


@dataclass(frozen=True)
class Functions:
    """The profile of one trace for one operation, and how a frame is to keep q for it.

    Attributes
    ----------
    down : bool
        Whether registers hold -q, where the profile wants 2**-q: then no pair negates it.
    offset : float
        Whether they hold offset + q, where the profile wants nothing else.
    merged : bool
        Whether log2 phi is -q, so that the logarithm of the weight starts the sum of squares.
    guarded, kink : bool
        Whether phi, or the slope, is zero by definition at q = 0.
    """

    trace: Trace
    operation: Operation

    @cached_property
    def merged(self) -> bool:
        """Whether log2 phi is -q."""
        return self.operation.log and merged(self.trace)

    @cached_property
    def down(self) -> bool:
        """Whether registers hold -q."""
        # A log-sum-exp keeps -q only where log phi is -q: elsewhere the profile wants q itself.
        if self.operation.log:
            return self.merged
        return smooth(self.trace.phi) and gaussian_like(self.trace.phi)

    @property
    def guarded(self) -> bool:
        """Whether phi is zero at q = 0."""
        return self.trace.singular

    @property
    def kink(self) -> bool:
        """Whether the slope is zero at q = 0."""
        return self.trace.kink or self.trace.singular

    @cached_property
    def _trees(self) -> tuple[float, tuple[Expr, Expr, Expr]]:
        operation, of = self.operation, self.trace
        slope = slope_parts(of, operation.log)[1] if operation.slope else Number(1.0)
        log2 = log2_phi(of) if operation.log else Number(0.0)
        phi = of.phi if operation.value and not operation.log else Number(1.0)
        # All three of one set of registers: what is done to q is done to every tree.
        trees = (phi, log2, slope)
        if self.down:
            swap: dict[Expr, Any] = {Q: mul(-1.0, Q)}
            return 0.0, tuple(substitute(tree, swap) for tree in trees)  # type: ignore[return-value]
        # The test for q = 0 needs q without an offset.
        if self.kink or self.guarded or self.merged:
            return 0.0, trees
        return absorb_constant(trees)  # type: ignore[return-value]

    @property
    def offset(self) -> float:
        """What registers hold beside q."""
        return self._trees[0]

    @property
    def unit_slope(self) -> bool:
        """Whether the slope is a constant, so that it needs no q."""
        return self._trees[1][2] == Number(1.0) and not self.kink

    @cached_property
    def heavy(self) -> bool:
        """Whether a pair takes some hundred instructions in float64: fewer are then written out at once."""
        return any(has_powers(tree) for tree in self._trees[1])

    @cached_property
    def source(self) -> str:
        """The text of the three functions."""
        pieces = []
        for name, tree in zip(("phi", "log2_phi", "slope"), self._trees[1], strict=True):
            printer = CudaPrinter(self.trace.symbols)
            value = printer.print(tree)
            lines = [f"def {name}(q, s):", *printer.lines, f"return {value}"]
            pieces.append("\n    ".join(lines))
        return "\n\n\n".join(pieces) + "\n"

    def build(self, names: dict[str, Any], device: Callable[[Any], Any]) -> tuple[Any, Any, Any]:
        """Return phi, log2_phi and slope as device functions over the arithmetic ``names``."""
        scope, file = names | waves(names["real"]), f"<profile {abs(hash(self.source)):x}>"
        # A traceback, and the simulator's debugger, show the generated lines.
        linecache.cache[file] = (len(self.source), None, self.source.splitlines(True), file)
        exec(compile(self.source, file, "exec"), scope)
        phi, log2, slope = (device(scope[name]) for name in ("phi", "log2_phi", "slope"))
        return phi, log2, slope
