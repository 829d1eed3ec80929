r"""Radial kernels from a formula: phi is written, its derivative is found and checked.

Text is read as a tree and walked, none of it is executed. With symbols for numbers the walk gives the expressions of
:mod:`gpukoop.kernels.formula.expr`, which are differentiated; with numbers it gives what the result is checked against.
"""

from __future__ import annotations

import ast
import inspect
import math
import numbers
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np

from gpukoop.kernels.formula.checked import (
    Formula,
    at,
    check_positive,
    check_slope,
    check_values,
    steepness,
)
from gpukoop.kernels.formula.derivative import derivative
from gpukoop.kernels.formula.expr import Expr, Number, Symbol, expression, substitute
from gpukoop.kernels.formula.lengths import Scale, checked_scale
from gpukoop.kernels.formula.printers import FormulaPrinter
from gpukoop.kernels.formula.profile import AbstractRadial, Profile, S

FUNCTIONS = ("exp", "log", "sqrt", "cos", "sin", "cosh", "sinh", "tanh")
OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
GRAMMAR = (
    f"a formula is made of numbers, pi, s, named parameters, + - * / ** and {', '.join(FUNCTIONS)}"
)
# Longer text is no formula, and deep brackets would exhaust the reader.
LONGEST = 1_000
ONE, ZERO = Number(1.0), Number(0.0)


@dataclass(frozen=True, repr=False)
class RadialFormula(AbstractRadial):
    """A kernel that :func:`radial` made; equal to another one if formula, numbers and flags are the same.

    Parameters
    ----------
    scale : float, array of shape (d,), "median" or "auto"
        Length l in the units of x.
    phi, dphi : expression
        The profile and its derivative, in s and the parameters.
    parameters : tuple of (str, float)
        Names and numbers of the parameters.
    kink, singular, above_zero : bool
        As ``kink``, ``singular`` and ``positive`` of :class:`gpukoop.kernels.formula.profile.Profile`.
    """

    phi: Expr = ONE
    dphi: Expr = ZERO
    parameters: tuple[tuple[str, float], ...] = ()
    kink: bool = False
    singular: bool = False
    above_zero: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", checked_scale(self.scale))

    @property
    def profile(self) -> Profile:  # type: ignore[override]
        """The profile of the formula."""
        flags = self.kink, self.singular, self.above_zero
        return _profile(self.phi, self.dphi, tuple(self.values), *flags)

    @property
    def values(self) -> dict[str, float]:
        """The numbers of the parameters, by their names in the profile."""
        return {_inside(name): value for name, value in self.parameters}

    def __repr__(self) -> str:
        # Under the names that the author gave, so that the text can be read back by `radial` itself.
        outside: dict[Expr, Any] = {Symbol(_inside(n)): Symbol(n) for n, _ in self.parameters}
        text = FormulaPrinter().print(substitute(self.phi, outside))
        flags = {"positive": self.above_zero, "singular": self.singular}
        given = {"scale": self.scale} | {name: True for name, flag in flags.items() if flag}
        options = [f"{name}={value!r}" for name, value in (given | dict(self.parameters)).items()]
        return f"radial({', '.join([repr(text), *options])})"


def radial(
    formula: str | Callable[..., Any] | None = None,
    *,
    scale: Scale = 1.0,
    positive: bool = False,
    singular: bool = False,
    **parameters: float,
) -> Any:
    r"""Return the kernel :math:`k(x, y) = \varphi(s)`, :math:`s = |x - y|^2 / \ell^2`, of a formula for phi.

    ``s`` is the *squared* distance over the squared scale: ``exp(-s / 2)`` is the Gaussian, ``exp(-sqrt(s))`` the Laplace
    kernel. The kernel works on every backend, adds and multiplies, and can be pickled, as those of the package.

    Parameters
    ----------
    formula : str or callable
        Text such as ``"exp(-a * s) * cos(sqrt(s))"``, or a function of s and of the parameters that uses NumPy's functions
        and no branches. Known are ``+ - * / **``, exp, log, sqrt, cos, sin, cosh, sinh, tanh and pi.
    scale : float, array of shape (d,), "median" or "auto", default=1
        Length l in the units of x.
    positive : bool, default=False
        Declare that phi > 0, for log-sum-exps; refused where it is seen to be wrong. The logarithm is taken of the formula, which
        must not underflow: one exponential rather than a sum of them.
    singular : bool, default=False
        Declare that phi has no value at s = 0; pairs at distance 0 then contribute zero.
    **parameters : float > 0
        Numbers of the names in the formula; a function's defaults count. Another number needs no new compilation.

    Returns
    -------
    kernel
        Without ``formula`` a decorator that makes one of a function.

    Raises
    ------
    ValueError, TypeError
        If the formula holds an unknown name, is not finite from s = 1e-6 to 1e6 or at 0, differs from what it simplifies to, or
        its derivative differs from a complex step.

    Notes
    -----
    The derivative is found symbolically. Where it has no limit at s = 0 (a kink), a pair at distance 0 contributes no gradient,
    as in the Laplace kernel. Whether the kernel is positive definite is not looked at. ``tol=`` leaves out distant cells by
    bounds at steps of 1 % in s: a profile with narrower peaks needs ``tol=None``. Formulas with cosines or sines are always
    summed in full. Near-linear sums by Fourier transforms are for kernels of the package. Cost: milliseconds, once.

    Examples
    --------
    >>> import numpy as np, gpukoop as gk
    >>> wave = gk.kernels.radial("exp(-sqrt(s)) * cos(sqrt(s))", scale=2.0)
    >>> X = np.random.default_rng(0).normal(size=(100, 2))
    >>> (wave(X) @ np.ones(100)).shape
    (100,)
    >>> @gk.kernels.radial
    ... def steep(s, a=3.0):
    ...     return np.exp(-a * s)
    >>> steep
    radial('(exp((-(a * s))))', scale=1.0, a=3.0)
    """
    if formula is None:
        options: dict[str, Any] = {"scale": scale, "positive": positive, "singular": singular}
        return partial(radial, **options, **parameters)  # type: ignore[arg-type]
    for name, flag in (("positive", positive), ("singular", singular)):
        if not isinstance(flag, bool):
            raise TypeError(f"radial: {name} is {flag!r}, expected True or False")
    if isinstance(formula, str):
        what, value = repr(formula), _from_text(formula, parameters)
    elif callable(formula):
        what = f"the function {getattr(formula, '__name__', 'given')}"
        value, parameters = _from_function(formula, what, parameters)
    else:
        raise TypeError(
            f"radial: formula is a {type(formula).__name__}, expected text such as 'exp(-s / 2)', or a function of s"
        )
    given = {name: _number(name, number) for name, number in parameters.items()}
    try:
        phi = expression(value(S, {name: Symbol(_inside(name)) for name in given}))
        slope = derivative(phi, S)
    except (ArithmeticError, ValueError) as error:
        raise ValueError(f"radial: {what} has no value for any s ({error})") from None
    except TypeError as error:
        raise TypeError(f"radial: {what} cannot be read ({error}); {GRAMMAR}") from None
    # A constant would be compiled with a q that nothing reads; the catalogue's own has none.
    if slope == ZERO:
        raise ValueError(f"radial: {what} does not depend on s: use gk.Constant")
    inside = {_inside(name): number for name, number in given.items()}
    check_values(what, phi, value, inside, given, singular)
    # Only after the values were checked: `steepness` evaluates the tree, which then is known to be finite where it must be.
    slope = steepness(phi, inside)
    check_slope(what, slope, value, inside, given)
    if positive:
        check_positive(what, phi, slope, inside, singular)
    # Found, not asked: an author who declares it wrongly would get NaN for every pair of equal points.
    kink = not math.isfinite(at(slope, np.zeros(1), inside)[0])
    return RadialFormula(scale, phi, slope, tuple(given.items()), kink, singular, positive)


# -- reading -----------------------------------------------------------------------------------------


def _inside(name: str) -> str:
    """Return a name that no generated code uses for anything else."""
    return f"{name}_parameter"


def _number(name: str, value: Any) -> float:
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or not 0 < float(value) < math.inf:
        raise ValueError(
            f"radial: parameter {name} is {value!r}, expected a finite number > 0: write a sign into the formula"
        )
    return float(value)


def _from_text(text: str, parameters: dict[str, Any]) -> Formula:
    try:
        if len(text) > LONGEST:
            raise ValueError(f"{len(text)} characters, at most {LONGEST} are read")
        # Parsed, never evaluated: formulas come from command lines and saved models, and a walk over five node types runs nothing.
        tree = ast.parse(text.strip(), mode="eval")
        found = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"radial: {text[:60]!r} is no formula ({error}); {GRAMMAR}") from None
    # Sorted, so that the same mistake has the same message in every process: sets of text have no order of their own.
    for name in sorted(found - {"s", "pi", *FUNCTIONS, *parameters}):
        raise ValueError(
            f"radial: {name!r} in {text!r} is unknown: pass {name}=number if it is a parameter; {GRAMMAR}"
        )
    for name in parameters:
        if name not in found or name in ("s", "pi", *FUNCTIONS):
            raise ValueError(
                f"radial: parameter {name!r} does not occur in {text!r}, or has a meaning of its own: leave it out"
            )
    return lambda s, given: _walk(tree.body, {"s": s, "pi": math.pi, **given})


def _walk(node: ast.expr, names: dict[str, Any]) -> Any:
    """Return the value of a node: an expression, an array or a float, by what ``names`` hold."""
    # Exact types: True is an int by inheritance, and 1j would pass as a number.
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return float(node.value)  # type: ignore[arg-type]
    if isinstance(node, ast.Name) and node.id in names:
        return names[node.id]
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_walk(node.left, names), _walk(node.right, names))
    if isinstance(node, ast.UnaryOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_walk(node.operand, names))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.func.id in FUNCTIONS and len(node.args) == 1 and not node.keywords:
            # NumPy's function calls the method of that name on an expression, so one walk serves symbols, arrays and complex
            # steps.
            value = getattr(np, node.func.id)(_walk(node.args[0], names))
            return float(value) if isinstance(value, np.floating) else value
    raise TypeError(f"{ast.unparse(node)!r} is not understood")


def _from_function(
    function: Callable[..., Any], what: str, parameters: dict[str, Any]
) -> tuple[Formula, dict[str, Any]]:
    """Return the formula of a function, and its parameters with their defaults."""
    arguments = list(inspect.signature(function).parameters.values())
    # *args have no names to become symbols, and positional-only ones cannot be passed by name as parameters are.
    plain = {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
    if not arguments or any(argument.kind not in plain for argument in arguments):
        raise TypeError(f"radial: {what} must take s, and then parameters by name")
    own = {argument.name: argument.default for argument in arguments[1:]}
    for name in parameters:
        if name not in own:
            raise ValueError(f"radial: {what} has no parameter {name!r}, only {list(own)}")
    own |= parameters
    for name, value in own.items():
        if value is inspect.Parameter.empty:
            raise ValueError(f"radial: {what} has a parameter {name!r} without a number: pass it")
    return (lambda s, given: function(s, **given)), own


@lru_cache(maxsize=256)
def _profile(
    phi: Expr, dphi: Expr, names: tuple[str, ...], kink: bool, singular: bool, positive: bool
) -> Profile:
    symbols = (S, *map(Symbol, names))
    return Profile(
        phi=lambda *given: substitute(phi, dict(zip(symbols, given, strict=True))),
        dphi=lambda *given: substitute(dphi, dict(zip(symbols, given, strict=True))),
        parameters=names,
        kink=kink,
        singular=singular,
        positive=positive,
    )
