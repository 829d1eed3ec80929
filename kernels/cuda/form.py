"""How a device function holds q = |x' - y'|^2, and what it takes out of a profile before a pair is computed.

Expressions are rearranged here, so that the pair loop pays for nothing that could be paid once: constant
factors, signs, additive constants, the logarithm of the weights.
"""

from __future__ import annotations

import math

import numpy as np

from gpukoop.kernels.cuda.specification import WIDEST_TILE
from gpukoop.kernels.formula.expr import (
    Call,
    E,
    Expr,
    Number,
    Product,
    Sum,
    Symbol,
    mul,
    substitute,
)
from gpukoop.kernels.formula.profile import Q, Trace
from gpukoop.kernels.operation import Operation

# Half-width of the cloud, in pre-scaled units, up to which scaled coordinates lose nothing that the sum does
# not lose anyway.
NARROW = 16.0


def smooth(tree: Expr) -> bool:
    """Return whether ``tree`` is a smooth function of q at 0, so that q may carry an absolute error.

    A cosine is not: how fast it swings is not known here.
    """
    if isinstance(tree, Sum):
        return all(smooth(t) for t, _ in tree.terms)
    if isinstance(tree, Call):
        return tree.function not in ("cos", "sin") and smooth(tree.argument)
    if isinstance(tree, Product):
        for base, exponent in tree.factors:
            whole = (
                isinstance(exponent, Number) and exponent.value.is_integer() and exponent.value > 0
            )
            # A root of q has an infinite slope at 0: an absolute error of q, harmless elsewhere, would show there as its root.
            if base == Q and not whole:
                return False
            if not smooth(base) or not smooth(exponent):
                return False
    return True


def forms(trace: Trace, operation: Operation, d: int) -> tuple[str, ...]:
    """Return the forms of q that are offered, fastest first; the last one is right for all data.

    ========== ===================================== ================================================
    form       q                                     right when
    ========== ===================================== ================================================
    dot        |x'|^2 + |y'|^2 - 2 x'.y'             the cloud is small against the accuracy asked
    difference sum (x' - y')^2                       coordinates lose little when they are scaled
    exact      prescale^2 sum (x - y)^2              always: differences of the numbers as they came
    ========== ===================================== ================================================

    x' is x centred and pre-scaled. The gradient needs x' - y' anyway, so the dot form saves it nothing.
    """
    # Below three features the norms cost as much as the differences save.
    able = not operation.slope and d >= 3 and smooth(trace.phi)
    fast = ("dot",) if able else ()
    return fast + (("exact",) if d > WIDEST_TILE else ("difference", "exact"))


def has_powers(tree: Expr) -> bool:
    """Return whether a logarithm, a cosine, a sine, or a power that is no root, occurs: some hundred instructions each in float64."""
    if isinstance(tree, Sum):
        return any(has_powers(t) for t, _ in tree.terms)
    if isinstance(tree, Call):
        return tree.function in ("log", "log2", "cos", "sin") or has_powers(tree.argument)
    if isinstance(tree, Product):
        for base, exponent in tree.factors:
            root = isinstance(exponent, Number) and (2 * exponent.value).is_integer()
            if (base != E and not root) or has_powers(base) or has_powers(exponent):
                return True
    return False


def limits(tol: float | None, m: int, dtype: str) -> tuple[float, float]:
    """Return the half-width up to which coordinates may be scaled, and the squared radius up to which "dot" is right.

    The dot form errs by at most ln 2 * 2 eps * far relative to the kernel; it is taken below the accuracy asked, that of
    rounding at least. Scaling rounds a coordinate by eps half / 2: unseen next to the rounding of a sum of m terms
    where half < sqrt(m) / 2.
    """
    eps = float(np.finfo(dtype).eps)
    # Never less than eight units of rounding: a sum of many terms is not known better by any form.
    asked = max(tol or 0.0, 8 * eps)
    return min(NARROW, 0.5 * math.sqrt(m)), asked / (2 * math.log(2.0) * eps)


def gaussian_like(tree: Expr) -> bool:
    """Return whether q occurs in an exponential, bare: then registers hold -q, and no pair negates it."""
    if isinstance(tree, Sum):
        return any(gaussian_like(t) for t, _ in tree.terms)
    if isinstance(tree, Product):
        return any(
            (base == E and split_factor(exponent)[1] == Q)
            or gaussian_like(base)
            or gaussian_like(exponent)
            for base, exponent in tree.factors
        )
    return False


def absorb_constant(trees: tuple[Expr, ...]) -> tuple[float, tuple[Expr, ...]]:
    """Return (c, trees in q' = c + q) if q occurs as that sum only, else (0, trees).

    The sum of squares then starts at c, and 1 + q of an inverse multiquadric costs nothing.
    """
    stack, found = list(trees), None
    while stack and found is None:
        node = stack.pop()
        if isinstance(node, Sum):
            # Only where the profile reads nothing but that sum: q itself cannot be had back from c + q without cancellation.
            if node.terms == ((Q, 1.0),) and node.constant:
                found = node
            stack.extend(t for t, _ in node.terms)
        elif isinstance(node, Product):
            stack.extend(part for factor in node.factors for part in factor)
        elif isinstance(node, Call):
            stack.append(node.argument)
    if found is None:
        return 0.0, trees
    other = Symbol("q'")
    moved = tuple(substitute(tree, {found: other}) for tree in trees)
    if any(substitute(tree, {Q: 0.5}) != tree for tree in moved):  # q occurs elsewhere too
        return 0.0, trees
    return found.constant, tuple(substitute(tree, {other: Q}) for tree in moved)


def split_factor(tree: Expr) -> tuple[float, Expr]:
    """Return ``tree`` as number * expression: the number is applied once at the end, not once a pair."""
    if isinstance(tree, Number):
        return tree.value, Number(1.0)
    if isinstance(tree, Sum) and tree.constant == 0.0 and len(tree.terms) == 1:
        return tree.terms[0][1], tree.terms[0][0]
    return 1.0, tree


def log2_phi(trace: Trace) -> Expr:
    """Return log2 phi; plain ``-q`` for a Gaussian."""
    if trace.log_phi is None:
        raise ValueError("log-sum-exp needs a positive kernel of one term")
    return mul(1.0 / math.log(2.0), trace.log_phi)


def slope_parts(trace: Trace, log: bool) -> tuple[float, Expr]:
    """Return (number, expression) whose product is dphi, or dphi / phi if ``log``."""
    tree = trace.log_slope if log else trace.dphi
    if tree is None:
        raise ValueError("log-sum-exp needs a positive kernel of one term")
    return split_factor(tree)


def merged(trace: Trace) -> bool:
    """Return whether log2 phi is -q, so that the logarithm of the weight starts the sum of squares."""
    return log2_phi(trace) == mul(-1.0, Q)
