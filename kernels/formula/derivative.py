"""Derivatives of expressions, and products multiplied out: what a profile written as a formula needs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np

from gpukoop.kernels.formula.expr import (
    Call,
    E,
    Expr,
    Number,
    Operand,
    Product,
    Sum,
    Symbol,
    add,
    call,
    log,
    mul,
    power,
)

# A power of a sum is multiplied out up to this exponent: cancellation at 0 is what it is done for.
LARGEST_EXPANDED = 4


def derivative(tree: Expr, of: Symbol) -> Expr:
    """Return the derivative of an expression in one symbol, in canonical form."""
    if tree == of:
        return Number(1.0)
    if isinstance(tree, Sum):
        return add(*(mul(c, derivative(t, of)) for t, c in tree.terms))
    if isinstance(tree, Product):
        # Product rule with logarithmic derivatives; factors that are free of the symbol contribute a zero, which is dropped.
        return add(*(_logarithmic(tree, b, e, of) for b, e in tree.factors))
    if isinstance(tree, Call):
        inner = derivative(tree.argument, of)
        outer: dict[str, Operand] = {"cos": mul(-1.0, call("sin", tree.argument))}
        outer |= {"sin": call("cos", tree.argument), "log": power(tree.argument, -1.0)}
        return mul(outer[tree.function], inner)
    return Number(0.0)


def _logarithmic(whole: Product, base: Expr, exponent: Expr, of: Symbol) -> Expr:
    """Return the product times the derivative of the logarithm of one factor: equal bases collect, so nothing is divided."""
    if base == E:
        return mul(whole, derivative(exponent, of))
    # The power of -1 joins base's own exponent: u^e becomes u^(e - 1) in the tree, and no number is divided.
    steeper = mul(whole, exponent, power(base, -1.0), derivative(base, of))
    grown = derivative(exponent, of)
    return steeper if grown == Number(0.0) else add(steeper, mul(whole, log(base), grown))


def expanded(tree: Expr) -> Expr:
    """Return ``tree`` with products of sums multiplied out, so that terms that cancel do."""
    if isinstance(tree, Sum):
        return add(tree.constant, *(mul(c, expanded(t)) for t, c in tree.terms))
    if not isinstance(tree, Product):
        return tree
    outside: list[Operand] = []
    sums: list[list[Expr]] = []
    for base, exponent in tree.factors:
        # Only whole powers of sums have finitely many terms; roots and symbolic exponents stay factors.
        times = exponent.value if isinstance(exponent, Number) else 0.0
        if isinstance(base, Sum) and times.is_integer() and 0 < times <= LARGEST_EXPANDED:
            parts = [Number(base.constant), *(mul(c, expanded(t)) for t, c in base.terms)]
            sums += [parts] * int(times)
        else:
            outside.append(power(base, exponent))
    # The roots outside multiply every term, so sqrt(s) * s^(-1/2) becomes a constant before anything is evaluated at 0.
    return add(*(mul(*outside, *chosen) for chosen in product(*sums)))


def swings(tree: Expr) -> bool:
    """Return whether a cosine or a sine occurs."""
    if isinstance(tree, Call):
        return tree.function in ("cos", "sin") or swings(tree.argument)
    if isinstance(tree, Sum):
        return any(swings(t) for t, _ in tree.terms)
    return isinstance(tree, Product) and any(swings(part) for f in tree.factors for part in f)


def numerical(tree: Expr, values: Mapping[Expr, Any]) -> Any:
    """Return the value of an expression at arrays or numbers of NumPy, node by node: no text is printed for it."""
    if isinstance(tree, Number):
        return np.float64(tree.value)
    if isinstance(tree, Sum):
        # By NumPy on the tree and not by printed text: this is the check of what printers would compile, so it shares nothing
        # with them.
        return tree.constant + sum(c * numerical(t, values) for t, c in tree.terms)
    if isinstance(tree, Product):
        factors = [
            np.exp(numerical(e, values))
            if b == E
            else np.power(numerical(b, values), numerical(e, values))
            for b, e in tree.factors
        ]
        return math.prod(factors)
    if isinstance(tree, Call):
        return getattr(np, tree.function)(numerical(tree.argument, values))
    return values[tree]
