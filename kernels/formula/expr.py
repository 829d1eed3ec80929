r"""Scalar expressions in canonical form: what a kernel profile is made of.

A profile is written once as a Python lambda and called with symbols instead of numbers. What comes
back is a small tree that the printers of :mod:`gpukoop.kernels.formula.printers` turn into NumPy, Numba,
KeOps or LaTeX text. Two canonical nodes suffice:

========= ==================================== ======================================
node      stands for                           kept canonical by
========= ==================================== ======================================
Sum       constant + sum of coefficient * term like terms are collected
Product   product of base ** exponent          exponents of equal bases are added
========= ==================================== ======================================

``exp(u)`` is ``E ** u`` and ``sqrt(u)`` is ``u ** 0.5``, so quotients such as phi'/phi cancel by
themselves, ``log`` is taken in the tree and never of a number that has underflowed, and constants
are folded (``sqrt(3 * s)`` is ``1.732... * s ** 0.5``). All symbols stand for numbers >= 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NoReturn, Union

Operand = Union["Expr", float, int]

# Folding sqrt(2) * sqrt(2) must give 2: snap to an integer within two units in the last place.
_SNAP = 4.5e-16


def _snap(value: float) -> float:
    # From 2**53 on every float is whole already, and round() of an infinity raises.
    nearest = round(value) if math.isfinite(value) and abs(value) < 2**53 else value
    return float(nearest) if abs(value - nearest) <= _SNAP * abs(value) else value


class Expr:
    """Abstract node. Arithmetic builds canonical trees; comparisons are refused."""

    __slots__ = ()

    def __add__(self, other: Operand) -> Expr:
        return add(self, other)

    def __radd__(self, other: Operand) -> Expr:
        return add(other, self)

    def __sub__(self, other: Operand) -> Expr:
        return add(self, mul(-1.0, other))

    def __rsub__(self, other: Operand) -> Expr:
        return add(other, mul(-1.0, self))

    def __neg__(self) -> Expr:
        return mul(-1.0, self)

    def __mul__(self, other: Operand) -> Expr:
        return mul(self, other)

    def __rmul__(self, other: Operand) -> Expr:
        return mul(other, self)

    def __truediv__(self, other: Operand) -> Expr:
        return mul(self, power(other, -1.0))

    def __rtruediv__(self, other: Operand) -> Expr:
        return mul(other, power(self, -1.0))

    def __pow__(self, other: Operand) -> Expr:
        return power(self, other)

    def __rpow__(self, other: Operand) -> Expr:
        return power(other, self)

    # NumPy's functions call these methods, so that one Python function of s takes arrays and symbols.
    def exp(self) -> Expr:
        """Return the exponential."""
        return exp(self)

    def log(self) -> Expr:
        """Return the natural logarithm."""
        return log(self)

    def sqrt(self) -> Expr:
        """Return the square root."""
        return sqrt(self)

    def cos(self) -> Expr:
        """Return the cosine."""
        return call("cos", self)

    def sin(self) -> Expr:
        """Return the sine."""
        return call("sin", self)

    # Exponentials that cannot overflow are kept apart: 1 / cosh(u) is then 2 exp(-u) / (1 + exp(-2 u)), right for any u >= 0.
    def cosh(self) -> Expr:
        """Return the hyperbolic cosine."""
        return exp(self) * (0.5 + exp(-2 * self) / 2)

    def sinh(self) -> Expr:
        """Return the hyperbolic sine."""
        return exp(self) * (0.5 - exp(-2 * self) / 2)

    def tanh(self) -> Expr:
        """Return the hyperbolic tangent."""
        return (1 - exp(-2 * self)) / (1 + exp(-2 * self))

    def _branch(self, *_: object) -> NoReturn:
        raise TypeError(
            "a profile must be branch-free: its argument has no value yet, so it cannot be "
            "compared or tested; write it with +, -, *, /, **, exp, sqrt and log"
        )

    __bool__ = __lt__ = __le__ = __gt__ = __ge__ = __float__ = __int__ = _branch


@dataclass(frozen=True, slots=True)
class Number(Expr):
    """A constant; printed with the dtype of the target, never bare."""

    value: float


@dataclass(frozen=True, slots=True)
class Symbol(Expr):
    """A named number >= 0 that is known only when the compiled code runs."""

    name: str


@dataclass(frozen=True, slots=True)
class Call(Expr):
    """A function that has no canonical form of its own: ``log``, ``cos``, ``sin``, ``log2``, ``exp2``."""

    function: str
    argument: Expr


@dataclass(frozen=True, slots=True)
class Sum(Expr):
    """``constant + sum(coefficient * term)``."""

    constant: float
    terms: tuple[tuple[Expr, float], ...]


@dataclass(frozen=True, slots=True)
class Product(Expr):
    """``prod(base ** exponent)`` without a numeric coefficient."""

    factors: tuple[tuple[Expr, Expr], ...]


E = Symbol("e")  # Euler's number; exp(u) is the power E ** u


def expression(value: Operand) -> Expr:
    """Return ``value`` as a node; numbers become :class:`Number`."""
    return value if isinstance(value, Expr) else Number(_snap(float(value)))


def add(*operands: Operand) -> Expr:
    """Return the sum, like terms collected."""
    constant, terms = 0.0, dict[Expr, float]()
    for operand in map(expression, operands):
        if isinstance(operand, Number):
            constant += operand.value
            continue
        parts: Iterable[tuple[Expr, float]] = ((operand, 1.0),)
        if isinstance(operand, Sum):
            constant += operand.constant
            parts = operand.terms
        for term, coefficient in parts:
            # Nodes are frozen and hash by value: equal terms meet here however they were written.
            terms[term] = terms.get(term, 0.0) + coefficient
    kept = tuple((t, _snap(c)) for t, c in terms.items() if c != 0.0)
    constant = _snap(constant)
    if not kept:
        return Number(constant)
    if constant == 0.0 and len(kept) == 1 and kept[0][1] == 1.0:
        return kept[0][0]
    return Sum(constant, kept)


def _split(operand: Expr) -> tuple[float, Mapping[Expr, Expr]]:
    """Return ``operand`` as (coefficient, {base: exponent})."""
    if isinstance(operand, Number):
        return operand.value, {}
    if isinstance(operand, Sum) and operand.constant == 0.0 and len(operand.terms) == 1:
        term, coefficient = operand.terms[0]
        return coefficient, _split(term)[1]
    if isinstance(operand, Product):
        return 1.0, dict(operand.factors)
    return 1.0, {operand: Number(1.0)}


def _join(coefficient: float, factors: Mapping[Expr, Expr]) -> Expr:
    kept = tuple((b, e) for b, e in factors.items() if e != Number(0.0))
    coefficient = _snap(coefficient)
    # A zero takes its factors with it, also those that are infinite at s = 0: slopes of Matern kernels have such terms.
    if coefficient == 0.0 or not kept:
        return Number(coefficient)
    base, exponent = kept[0]
    alone = len(kept) == 1 and exponent == Number(1.0)
    if alone and isinstance(base, Sum):  # a number times a sum: distribute, nothing else to cancel
        return Sum(
            _snap(coefficient * base.constant),
            tuple((t, _snap(coefficient * c)) for t, c in base.terms),
        )
    term = base if alone else Product(kept)
    return term if coefficient == 1.0 else Sum(0.0, ((term, coefficient),))


def mul(*operands: Operand) -> Expr:
    """Return the product, powers of equal bases collected."""
    coefficient, factors = 1.0, dict[Expr, Expr]()
    for operand in map(expression, operands):
        c, parts = _split(operand)
        coefficient *= c
        for base, exponent in parts.items():
            factors[base] = add(factors[base], exponent) if base in factors else exponent
    return _join(coefficient, factors)


def power(base: Operand, exponent: Operand) -> Expr:
    """Return ``base ** exponent``, the exponent multiplied into the factors."""
    b, e = expression(base), expression(exponent)
    if isinstance(b, Number) and isinstance(e, Number):
        return Number(_snap(b.value**e.value))
    coefficient, parts = _split(b)
    factors = {f: mul(x, e) for f, x in parts.items()}
    if coefficient == 1.0:
        return _join(1.0, factors)
    # (c u)^e = c^e u^e holds because c and every symbol are >= 0; a negative c makes the power complex, at which `_snap` raises.
    if isinstance(e, Number):
        return _join(coefficient**e.value, factors)
    return _join(1.0, {Number(coefficient): e, **factors})


def exp(x: Operand) -> Expr:
    """Return the exponential."""
    return power(E, x) if isinstance(x, Expr) else Number(math.exp(x))


def sqrt(x: Operand) -> Expr:
    """Return the square root."""
    return power(x, 0.5)


def log(x: Operand) -> Expr:
    """Return the natural logarithm, taken in the tree: log(a * exp(u)) is log(a) + u."""
    coefficient, parts = _split(expression(x))
    result = expression(math.log(coefficient))
    for base, exponent in parts.items():
        # log(exp(u)) = u here, never of a number: a log-sum-exp stays finite where phi itself is 0 in float32.
        result = add(result, exponent if base == E else mul(exponent, Call("log", base)))
    return result


def call(function: str, argument: Expr) -> Expr:
    """Return a function by its name, folded where the argument is a number."""
    if function == "log":
        return log(argument)
    if isinstance(argument, Number):
        return Number(_snap(getattr(math, function)(argument.value)))
    return Call(function, argument)


def substitute(tree: Expr, values: Mapping[Expr, Operand]) -> Expr:
    """Return ``tree`` with symbols replaced, rebuilt in canonical form."""
    # Rebuilding through add, mul and power lets what the new values make equal collect, so the result is canonical again.
    if tree in values:
        return expression(values[tree])
    if isinstance(tree, Sum):
        return add(tree.constant, *(mul(c, substitute(t, values)) for t, c in tree.terms))
    if isinstance(tree, Product):
        return mul(*(power(substitute(b, values), substitute(e, values)) for b, e in tree.factors))
    if isinstance(tree, Call):
        return call(tree.function, substitute(tree.argument, values))
    return tree


def base_two(tree: Expr) -> Expr:
    """Return ``tree`` with exp and log written as exp2 and log2: what hardware has."""
    if isinstance(tree, Sum):
        return add(tree.constant, *(mul(c, base_two(t)) for t, c in tree.terms))
    if isinstance(tree, Product):
        return mul(
            *(
                Call("exp2", mul(1 / math.log(2.0), base_two(e)))
                if b == E
                else power(base_two(b), base_two(e))
                for b, e in tree.factors
            )
        )
    if isinstance(tree, Call):
        argument = base_two(tree.argument)
        log = tree.function == "log"
        return mul(math.log(2.0), Call("log2", argument)) if log else Call(tree.function, argument)
    return tree


def decay(tree: Expr, s: Symbol) -> float | None:
    """Return kappa such that s = kappa * q makes the exponential of ``tree`` 2 ** -q or 2 ** -sqrt(q).

    None if ``tree`` has no exponential, or one of another shape. Folding kappa into the coordinates
    saves a multiplication a pair.
    """
    stack = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, Sum):
            # Any exponential of the tree will do: the others, if there are, become powers of the same 2 ** -q.
            stack.extend(t for t, _ in node.terms)
        elif isinstance(node, Product):
            for base, exponent in node.factors:
                coefficient, parts = _split(exponent)
                if base == E and set(parts) == {s} and coefficient < 0:
                    order = parts[s]
                    if order == Number(1.0):
                        return math.log(2.0) / -coefficient
                    if order == Number(0.5):
                        return (math.log(2.0) / -coefficient) ** 2
    return None
