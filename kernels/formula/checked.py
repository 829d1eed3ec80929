"""What a formula must hold before it becomes a kernel: finite values, a derivative that agrees, positivity as declared."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gpukoop.kernels.formula.derivative import derivative, expanded, numerical
from gpukoop.kernels.formula.expr import Expr, Symbol, log
from gpukoop.kernels.formula.printers import quotient
from gpukoop.kernels.formula.profile import S

# Where a formula must be finite: s = |x - y|^2 / scale^2 of close neighbours, and of outliers a thousand scales away.
GRID = np.geomspace(1e-6, 1e6, 241)
# A kernel declared positive must be so here; beyond, it may underflow.
WITHIN = GRID[GRID <= 100]
# Relative complex step; agreement asked of the derivative, and what the chain rule of a root may cancel near 0.
STEP, AGREEMENT, CANCELLED = 1e-20, 1e-6, 1e-10
# phi(s, {parameter: number}), of arrays or of symbols.
Formula = Callable[[Any, dict[str, Any]], Any]


def at(tree: Expr, s: np.ndarray, inside: dict[str, float]) -> np.ndarray:
    """Return the values of an expression at s; infinities and NaN are for the caller to see."""
    numbers_of: dict[Expr, Any] = {Symbol(name): np.float64(v) for name, v in inside.items()}
    with np.errstate(all="ignore"):
        # The zeros broadcast: an expression that lost its s in folding is still an array of values.
        return numerical(tree, {S: s, **numbers_of}) + np.zeros_like(s)


def steepness(phi: Expr, inside: dict[str, float]) -> Expr:
    """Return the derivative; multiplied out if that gives it a limit at 0, as for Matern kernels."""
    slope = derivative(phi, S)
    if not math.isfinite(at(slope, np.zeros(1), inside)[0]):
        # Of 0 / 0 at the origin a multiplied-out derivative leaves the limit where there is one; it is kept only then, as it
        # is longer.
        out = expanded(slope)
        if math.isfinite(at(out, np.zeros(1), inside)[0]):
            return out
    return slope


def check_values(
    what: str,
    phi: Expr,
    value: Formula,
    inside: dict[str, float],
    given: dict[str, float],
    singular: bool,
) -> None:
    """Raise unless the formula is finite, and the expression it became has its values."""
    with np.errstate(all="ignore"):
        # The author's own text with numbers, untouched by canonical forms: what the tree is held against.
        expected = np.asarray(value(GRID, given), float)
    found = at(phi, GRID, inside)
    for values in (expected, found):
        bad = ~np.isfinite(values)
        if bad.any():
            raise ValueError(
                f"radial: {what} is {values[bad][0]} at s = {GRID[bad][0]:.3g}: write it so that it, and no part of it, leaves the "
                "range there"
            )
    wrong = np.abs(found - expected) > AGREEMENT * np.maximum(np.abs(expected), 1e-300)
    # where terms cancel, both are rounding
    wrong &= np.abs(found - expected) > 1e-12 * np.abs(expected).max()
    if wrong.any():
        raise ValueError(
            f"radial: {what} is {expected[wrong][0]:.6g} at s = {GRID[wrong][0]:.3g} but simplifies to {found[wrong][0]:.6g}: what "
            "stands under roots, powers and logarithms must be positive"
        )
    start = float(at(phi, np.zeros(1), inside)[0])
    if math.isfinite(start) == singular:
        words = (
            "has a value there: leave out singular=True"
            if singular
            else "has none there: pass singular=True, and pairs at distance 0 contribute zero"
        )
        raise ValueError(f"radial: {what} is {start:g} at s = 0; it {words}")


def check_slope(
    what: str, slope: Expr, value: Formula, inside: dict[str, float], given: dict[str, float]
) -> None:
    """Raise unless the derivative is finite, and that of a complex step of the formula as it was given."""
    with np.errstate(all="ignore"):
        stepped = np.asarray(value(GRID * (1 + 1j * STEP), given))
        # A complex step subtracts nothing, so a step of 1e-20 costs no digits: the slope is right to rounding (Squire, Trapp
        # 1998).
        expected, size = stepped.imag / (STEP * GRID), np.abs(stepped)
    found = at(slope, GRID, inside)
    bad = ~np.isfinite(found)
    if bad.any():
        raise ValueError(
            f"radial: the derivative of {what} is {found[bad][0]} at s = {GRID[bad][0]:.3g}: write the formula so that no part of it "
            "leaves the range there"
        )
    # Beside the relative part: rounding of phi seen through a derivative in s is eps |phi| / s, which dominates near 0.
    allowed = AGREEMENT * np.abs(expected) + CANCELLED * size / GRID + 1e-300
    wrong = np.abs(found - expected) > allowed
    if wrong.any():
        raise ValueError(
            f"radial: {what} has the derivative {found[wrong][0]:.6g} at s = {GRID[wrong][0]:.3g}, by differences "
            f"{expected[wrong][0]:.6g}: it is not differentiable there"
        )


def check_positive(
    what: str, phi: Expr, slope: Expr, inside: dict[str, float], singular: bool
) -> None:
    """Raise unless phi > 0 as far as it is seen, and its logarithm is finite everywhere."""
    # At 0 itself every pair of a point with itself is summed: a kernel that is 0 there has log-sum-exps of -inf.
    near = WITHIN if singular else np.append(0.0, WITHIN)
    values = at(phi, near, inside)
    if not (values > 0).all():
        s = near[~(values > 0)][0]
        raise ValueError(
            f"radial: {what} is declared positive, but is {values[near == s][0]:.3g} at s = {s:.3g}: leave out positive=True"
        )
    for tree in (log(phi), quotient(slope, phi)):
        values = at(tree, GRID, inside)
        if not np.isfinite(values).all():
            raise ValueError(
                f"radial: {what} is declared positive, but its logarithm or its slope is {values[~np.isfinite(values)][0]} at s = "
                f"{GRID[~np.isfinite(values)][0]:.3g}: write it as one exponential, or add kernels"
            )
