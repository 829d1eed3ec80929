r"""What a kernel is: profiles, sums of them, and the one form in which every backend reads them.

A radial kernel is :math:`k(x, y) = \varphi(s)`, :math:`s = |x - y|^2 / \ell^2`. Its author writes phi and
dphi; :class:`Profile` calls both once with a symbol. Kernels add and scale; :func:`trace` turns any of them
into a :class:`Trace`: expressions in one pre-scaled squared distance q, and the numbers of the symbols
in them. The text of a trace does not depend on scales and weights, so code compiled once serves all.
"""

from __future__ import annotations

import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from gpukoop.kernels.formula.expr import (
    Expr,
    Number,
    Operand,
    Symbol,
    decay,
    expression,
    log,
    mul,
    substitute,
)
from gpukoop.kernels.formula.lengths import Scale, checked_scale
from gpukoop.kernels.formula.printers import LatexPrinter, quotient

if TYPE_CHECKING:  # for readers of signatures; at run time operators come from the factory below
    from gpukoop.operator import KernelOperator

S = Symbol("s")
Q = Symbol("q")

# How `kernel(X, Y)` makes an operator: set by gpukoop.operator, since imports only point left.
_operator_factory: Callable[..., KernelOperator] | None = None


def set_operator_factory(factory: Callable[..., KernelOperator]) -> None:
    """Say what ``kernel(X, Y, **options)`` returns."""
    global _operator_factory
    _operator_factory = factory


@dataclass(frozen=True)
class Profile:
    """phi(s) and dphi(s) of a radial kernel, and their behaviour at s = 0.

    Parameters
    ----------
    phi, dphi : callable
        Branch-free functions of s (and of the named parameters): the profile and its closed derivative. The
        derivative is written by hand: the chain rule gives nan for Matern at s = 0.
    parameters : tuple of str
        Names of the arguments after s; attributes of the kernel that travel as scalars.
    kink : bool
        dphi has no limit at 0. Pairs with s = 0 then contribute zero gradient.
    singular : bool
        phi has no limit at 0. Pairs with s = 0 then contribute zero.
    positive : bool
        phi > 0, so that log-sum-exp exists.
    fourier : callable, optional
        ``fourier(w, d, *parameters)``, the Fourier transform at scale 1 in d dimensions as a function of w = |xi|
        (``fourier_transforms``). None: near-linear sums need another way, or refuse.
    distance : bool
        phi(s) = -sqrt(s), minus the distance in scales: sums along a line can be sorted.
    """

    phi: Callable[..., Any]
    dphi: Callable[..., Any]
    parameters: tuple[str, ...] = ()
    kink: bool = False
    singular: bool = False
    positive: bool = True
    fourier: Callable[..., Any] | None = None
    distance: bool = False

    @cached_property
    def constant(self) -> bool:
        """Whether phi does not depend on s."""
        return self.symbolic[1] == Number(0.0)

    @cached_property
    def symbolic(self) -> tuple[Expr, Expr]:
        """Phi and dphi as expressions in ``s`` and the parameter names."""
        symbols = [Symbol(name) for name in self.parameters]
        return expression(self.phi(S, *symbols)), expression(self.dphi(S, *symbols))


class AbstractKernel(ABC):
    """A function k(x, y) = sum_a c_a phi_a(|x - y|^2 / scale_a^2); made into an operator by calling it."""

    @property
    @abstractmethod
    def terms(self) -> tuple[tuple[float, AbstractRadial], ...]:
        """The kernel as ((coefficient, radial kernel), ...)."""

    @abstractmethod
    def resolve(self, rule: Callable[[str], float]) -> AbstractKernel:
        """Return the kernel with every named scale ("median", "auto") replaced by ``rule(name)``."""

    @property
    def positive(self) -> bool:
        """Whether k > 0, so that log-sum-exp exists."""
        return all(c > 0 and k.profile.positive for c, k in self.terms)

    @property
    def resolved(self) -> bool:
        """Whether every scale is a number."""
        return not any(isinstance(k.scale, str) for _, k in self.terms)

    def __call__(self, X: Any, Y: Any = None, **options: Any) -> KernelOperator:
        """Return the lazy operator of this kernel between points X and Y (Y=None: X)."""
        if _operator_factory is None:
            raise ImportError("import gpukoop before calling a kernel: it provides the operator")
        return _operator_factory(self, X, Y, **options)

    def __add__(self, other: object) -> AbstractKernel:
        if isinstance(other, numbers.Real) and not isinstance(other, bool):
            from gpukoop.kernels.formula.products import constant

            other = constant(float(other))
        if not isinstance(other, AbstractKernel):
            return NotImplemented
        # Constants last: the first term decides the scale of all. The order of the others is kept.
        terms = self.terms + other.terms
        return KernelSum(tuple(sorted(terms, key=lambda term: term[1].profile.constant)))

    __radd__ = __add__

    def __sub__(self, other: object) -> AbstractKernel:
        if not isinstance(other, AbstractKernel | numbers.Real):
            return NotImplemented
        return self + (-1.0) * other

    def __mul__(self, factor: object) -> AbstractKernel:
        if isinstance(factor, AbstractKernel):
            from gpukoop.kernels.formula.products import times

            return times(self, factor)
        if isinstance(factor, bool) or not isinstance(factor, numbers.Real):
            return NotImplemented
        if not math.isfinite(factor):
            raise ValueError(f"a kernel cannot be multiplied by {factor}: use a finite number")
        return KernelSum(tuple((c * float(factor), k) for c, k in self.terms))

    __rmul__ = __mul__

    def __pow__(self, exponent: object) -> AbstractKernel:
        """Return the kernel to a power > 0; of a sum, or of a kernel that is not positive, a whole one."""
        if isinstance(exponent, bool) or not isinstance(exponent, numbers.Real):
            return NotImplemented
        from gpukoop.kernels.formula.products import raised

        return raised(self, float(exponent))

    def latex(self) -> str:
        """Return the formula, from the same expression that is computed."""
        text = ""
        for coefficient, kernel in self.terms:
            printer = LatexPrinter()
            body = printer.print(kernel.profile.symbolic[0])
            if coefficient != 1.0:
                body = rf"{printer.number(coefficient)}\,{body}"
            text = body if not text else f"{text} + {body}"
        return text


@dataclass(frozen=True)
class AbstractRadial(AbstractKernel):
    """One profile with one scale. Subclasses are final dataclasses that name their profile."""

    profile: ClassVar[Profile]
    scale: Scale = field(default=1.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", checked_scale(self.scale))
        for name in self.profile.parameters:
            value = getattr(self, name)
            if (
                isinstance(value, bool)
                or not isinstance(value, numbers.Real)
                or not 0 < float(value) < math.inf
            ):
                raise ValueError(
                    f"{type(self).__name__}: {name} must be a finite number > 0, got {value!r}"
                )
            # Frozen for users; here a number of NumPy becomes Python's, so that equal kernels have equal hashes and texts.
            object.__setattr__(self, name, float(value))

    @property
    def terms(self) -> tuple[tuple[float, AbstractRadial], ...]:
        """The kernel itself, once."""
        return ((1.0, self),)

    def resolve(self, rule: Callable[[str], float]) -> AbstractRadial:
        """Return the kernel with a numeric scale."""
        return self.rescaled(lambda scale: rule(scale) if isinstance(scale, str) else scale)

    def rescaled(self, change: Callable[[Scale], Scale]) -> AbstractRadial:
        """Return the kernel with every scale in it changed."""
        scale = change(self.scale)
        return self if scale == self.scale else replace(self, scale=scale)

    @property
    def scales(self) -> tuple[Scale, ...]:
        """Its scale; those of all factors of a product."""
        return (self.scale,)

    @property
    def length(self) -> float:
        """The scale of a kernel that has one for all features, as a number: what backends see."""
        return float(self.scale)  # type: ignore[arg-type]

    @property
    def values(self) -> dict[str, float]:
        """The parameters beyond ``scale``."""
        return {name: float(getattr(self, name)) for name in self.profile.parameters}


@dataclass(frozen=True)
class KernelSum(AbstractKernel):
    """Weighted sum of radial kernels, computed in one fused pass."""

    parts: tuple[tuple[float, AbstractRadial], ...]

    @property
    def terms(self) -> tuple[tuple[float, AbstractRadial], ...]:
        """The parts."""
        return self.parts

    def resolve(self, rule: Callable[[str], float]) -> KernelSum:
        """Return the sum with numeric scales."""
        return KernelSum(tuple((c, k.resolve(rule)) for c, k in self.parts))

    def __repr__(self) -> str:
        return " + ".join(f"{k!r}" if c == 1.0 else f"{c:g} * {k!r}" for c, k in self.parts)


@dataclass(frozen=True)
class Trace:
    """A kernel as every backend reads it.

    ``k(x, y) = phi(q)`` with ``q = prescale**2 * |x - y|**2``, and the gradient in x is
    ``2 * prescale * dphi(q) * (prescale * x - prescale * y)``. ``symbols`` and ``values`` name the runtime scalars.
    ``log_phi`` and ``log_slope = dphi / phi`` are None for sums and for kernels that are not positive.
    """

    prescale: float
    phi: Expr
    dphi: Expr
    log_phi: Expr | None
    log_slope: Expr | None
    symbols: tuple[str, ...]
    values: tuple[float, ...]
    kink: bool
    singular: bool

    @cached_property
    def key(self) -> str:
        """Text that is equal for kernels that compile to the same code."""
        # Without values: they travel as scalars, so kernels that differ in numbers alone share one compiled program.
        return repr((self.phi, self.dphi, self.symbols, self.kink, self.singular))


def trace(kernel: AbstractKernel) -> Trace:
    """Return the kernel as expressions in one pre-scaled squared distance q.

    The first term decides the pre-scaling: its exponential becomes 2 ** -q or 2 ** -sqrt(q).
    """
    if not kernel.resolved:
        raise ValueError(f"{kernel!r} has a named scale: call resolve() with the points first")
    if any(isinstance(radial.scale, tuple) for _, radial in kernel.terms):
        raise ValueError(
            f"{kernel!r} has a scale for each feature, expected one for all: call kernel(X, Y), which divides the points, or "
            "divide them by their scales and pass scale=1.0"
        )
    first = kernel.terms[0][1]
    # Hardware has 2^x, not e^x: with the base in the scale, the exponential of the first term costs no product.
    kappa = decay(first.profile.symbolic[0], S) or 1.0
    prescale = 1.0 / (first.length * math.sqrt(kappa))
    phi: Operand = 0.0
    dphi: Operand = 0.0
    symbols: list[str] = []
    values: list[float] = []

    def scalar(name: str, value: float) -> Symbol:
        symbols.append(name)
        values.append(value)
        return Symbol(name)

    log_phi = log_slope = None
    for a, (coefficient, radial) in enumerate(kernel.terms):
        stretch: Operand = kappa
        # Numbers that differ between kernels of one shape travel as scalars, so that their code is compiled once.
        if a:
            stretch = scalar(f"g{a}", 1.0 / (radial.length * prescale) ** 2)
        # One q serves all terms: a second scale is a factor of it, not a second distance.
        swap: dict[Expr, Operand] = {S: mul(stretch, Q)}
        for name, value in radial.values.items():
            swap[Symbol(name)] = scalar(f"{name}{a}", value)
        # A one is left out of the text: most kernels have it, and their code would multiply by it.
        weight: Operand = 1.0 if coefficient == 1.0 else scalar(f"c{a}", coefficient)
        value_term, slope_term = (substitute(t, swap) for t in radial.profile.symbolic)
        slope_term = mul(stretch, slope_term)
        # The logarithm is taken of the expression: that of a number would be -inf where phi underflows.
        if len(kernel.terms) == 1 and radial.profile.positive and coefficient > 0:
            log_phi = log(mul(weight, value_term))
            # phi' / phi by cancelling in the tree: as a division of numbers it would be 0 / 0 for far pairs.
            log_slope = quotient(slope_term, value_term)
        phi = mul(weight, value_term) + expression(phi)
        dphi = mul(weight, slope_term) + expression(dphi)
    return Trace(
        prescale=prescale,
        phi=expression(phi),
        dphi=expression(dphi),
        log_phi=log_phi,
        log_slope=log_slope,
        symbols=tuple(symbols),
        values=tuple(values),
        kink=any(k.profile.kink for _, k in kernel.terms),
        singular=any(k.profile.singular for _, k in kernel.terms),
    )
