"""Expressions: canonical forms, logarithms taken in the tree, and the refusal to branch."""

import math

import numpy as np
import pytest

from gpukoop.kernels.formula.expr import (
    Call,
    E,
    Number,
    Product,
    Sum,
    Symbol,
    add,
    base_two,
    decay,
    exp,
    expression,
    log,
    mul,
    power,
    sqrt,
    substitute,
)
from gpukoop.kernels.formula.printers import NumPyPrinter, quotient
from gpukoop.kernels.formula.profile import Profile

s, a = Symbol("s"), Symbol("a")


def value(tree, **symbols):
    """Evaluate a tree through the NumPy printer."""
    printer = NumPyPrinter()
    result = printer.print(tree)
    scope = {"np": np, **symbols}
    for line in printer.lines:
        exec(line, scope)
    return eval(result, scope)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (s + s, 2 * s),
        (s + 1 - s, Number(1.0)),
        (s - s, Number(0.0)),
        (1 + s + 2, 3 + s),
        (-(0 - s), s),
        (s * s, s**2),
        (s * s**-1.0, Number(1.0)),
        (s / s, Number(1.0)),
        (s / 2, 0.5 * s),
        (2 / s, 2 * s**-1.0),
        (sqrt(s) * sqrt(s), s),
        (sqrt(s**2), s),
        (sqrt(4 * s), 2 * sqrt(s)),
        (sqrt(2 * s) * sqrt(2 * s), 2 * s),
        ((3 * s) ** 2, 9 * s**2),
        (exp(s) * exp(-s), Number(1.0)),
        (exp(s) * exp(s), exp(2 * s)),
        (exp(s) ** 2, exp(2 * s)),
        (2 * (1 + s), 2 + 2 * s),
        ((1 + s) ** -0.5 * (1 + s) ** 1.5, 1 + s),
        (s**a * s, s ** (a + 1)),
        (0 * s, Number(0.0)),
        (s**0, Number(1.0)),
        (expression(0.1 + 0.2), Number(0.1 + 0.2)),
        (exp(0.0), Number(1.0)),
    ],
    ids=str,
)
def test_canonical_forms(left, right):
    assert left == right
    assert hash(left) == hash(right)


def test_nodes():
    assert isinstance(1 + s, Sum)
    assert isinstance(s**2, Product)
    assert add() == Number(0.0)
    assert mul() == Number(1.0)
    assert power(2, 10) == Number(1024.0)
    assert exp(1.0) == Number(math.e)
    assert expression(3) == Number(3.0)


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (1 / (1 + s), 1 / 3.5),
        (3 - s, 0.5),
        (2 ** (-1 * s), 2**-2.5),
        (s**a, 2.5**0.3),
        ((2 * s) ** a, 5**0.3),
        (s ** (a / 2 - 1) * -a, -0.3 * 2.5**-0.85),
        (sqrt(3 * s) * exp(-sqrt(3 * s)), math.sqrt(7.5) * math.exp(-math.sqrt(7.5))),
        (s**-1.5, 2.5**-1.5),
        (s**3 / sqrt(s), 2.5**2.5),
        (log(s) + log(2 * s), math.log(2.5) + math.log(5)),
    ],
    ids=str,
)
def test_values(tree, expected):
    assert value(tree, s=2.5, a=0.3) == pytest.approx(expected, rel=1e-15, abs=0)


@pytest.mark.parametrize(
    "branch",
    [
        lambda s: 1.0 if s > 0 else 0.0,
        lambda s: s if s else 1.0,
        lambda s: max(s, 1),
        lambda s: abs(float(s)),
        lambda s: int(s),
        lambda s: s <= 3,
        lambda s: 1 < s < 2,
    ],
)
def test_branches_are_refused_when_the_profile_is_read(branch):
    profile = Profile(phi=branch, dphi=lambda s: s)
    with pytest.raises(TypeError, match="branch-free: its argument has no value yet"):
        _ = profile.symbolic


def test_logarithms_never_see_a_number_that_underflowed():
    assert log(exp(-s / 2)) == -0.5 * s
    assert log(3 * exp(-s)) == math.log(3.0) - s
    assert log(exp(-s) * (1 + s) ** -2) == -s - 2 * Call("log", 1 + s)
    assert log(sqrt(s)) == 0.5 * Call("log", s)
    assert log(Number(1.0)) == Number(0.0)
    assert value(log((1 + s) * exp(-1000 * s)), s=2.0) == pytest.approx(
        math.log(3) - 2000, rel=1e-15
    )


def test_quotients_cancel_by_themselves():
    assert quotient(-exp(-s / 2) / 2, exp(-s / 2)) == Number(-0.5)
    slope = quotient(-1.5 * exp(-sqrt(3 * s)), (1 + sqrt(3 * s)) * exp(-sqrt(3 * s)))
    assert E not in {
        base for term, _ in getattr(slope, "terms", ((slope, 1),)) for base, _ in term.factors
    }


def test_substitute_rebuilds_canonical_forms():
    assert substitute(s * exp(-s), {s: 2 * a}) == 2 * a * exp(-2 * a)
    assert substitute(sqrt(s) + s, {s: Number(4.0)}) == Number(6.0)
    assert substitute(log(1 + s), {s: Number(0.0)}) == Number(0.0)
    assert substitute(s, {a: 1.0}) == s


def test_base_two():
    tree = base_two(exp(-math.log(2.0) * s))
    assert tree == Call("exp2", -1 * s)
    assert base_two(log(s)) == math.log(2.0) * Call("log2", s)
    assert base_two(1 + s**2) == 1 + s**2
    assert base_two(s**a) == s**a


def test_decay():
    assert decay(exp(-s / 2), s) == pytest.approx(2 * math.log(2))
    assert decay(s * exp(-sqrt(s)), s) == pytest.approx(math.log(2) ** 2)
    assert decay(1 + exp(-3 * s), s) == pytest.approx(math.log(2) / 3)
    assert decay((1 + s) ** -0.5, s) is None
    assert decay(exp(-(s**2)), s) is None
    assert decay(exp(s), s) is None
