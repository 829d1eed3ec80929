"""Printers: one expression tree as NumPy, Numba, KeOps, LaTeX or formula text.

A printer that can bind names prints each shared subexpression once (:meth:`AbstractPrinter.assign`);
the two that print one formula (KeOps, LaTeX) nest instead.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from fractions import Fraction

from gpukoop.kernels.formula.expr import (
    Call,
    E,
    Expr,
    Number,
    Product,
    Sum,
    Symbol,
    add,
    base_two,
    mul,
)


class AbstractPrinter(ABC):
    """Turn expressions into text. Subclasses say how a number, a call and a power look."""

    def __init__(self, prefix: str = "u") -> None:
        self.prefix = prefix
        self.lines: list[str] = []
        self._bound: dict[Expr, str] = {}

    @abstractmethod
    def number(self, value: float) -> str:
        """Return a constant, typed where the language needs it."""

    @abstractmethod
    def call(self, function: str, argument: str) -> str:
        """Return a call of exp, exp2, log, log2, cos, sin, sqrt, rsqrt or reciprocal."""

    @abstractmethod
    def general_power(self, base: str, exponent: str) -> str:
        """Return base ** exponent for an exponent that is no multiple of 1/2."""

    def bind(self, text: str) -> str:
        """Give ``text`` a name if the language can; here it cannot."""
        return f"({text})"

    def symbol(self, name: str) -> str:
        """Return a symbol."""
        return name

    def prepare(self, tree: Expr) -> Expr:
        """Rewrite a tree before printing it."""
        return tree

    def print(self, tree: Expr) -> str:
        """Return the text of ``tree``; names it needs are bound in ``lines`` first."""
        return self._print(self.prepare(tree))

    def _print(self, tree: Expr) -> str:
        if isinstance(tree, Number):
            return self.number(tree.value)
        if isinstance(tree, Symbol):
            return self.symbol(tree.name)
        # Trees share nodes, and equal nodes are one key: a subexpression is printed once however often a derivative repeats it.
        if tree not in self._bound:
            if isinstance(tree, Sum):
                text = self._sum(tree)
            elif isinstance(tree, Product):
                text = self._product(tree)
            elif isinstance(tree, Call):
                text = self.call(tree.function, self._print(tree.argument))
            else:
                raise TypeError(f"cannot print {type(tree).__name__}")
            self._bound[tree] = self.bind(text)
        return self._bound[tree]

    def _sum(self, tree: Sum) -> str:
        # The constant comes first: compilers then start the chain of fused multiply-adds from it, without an addition of its
        # own.
        text = self.number(tree.constant) if tree.constant else ""
        for term, coefficient in tree.terms:
            size = self._print(term)
            # Signs are folded into the operator: a multiplication by -1 is an instruction that compilers without fast
            # mathematics keep.
            if abs(coefficient) != 1.0:
                size = f"{self.number(abs(coefficient))} * {size}"
            sign = "-" if coefficient < 0 else "+"
            text = f"{text} {sign} {size}" if text else (f"-{size}" if sign == "-" else size)
        return text

    def _product(self, tree: Product) -> str:
        above: list[str] = []
        below: list[str] = []
        for base, exponent in tree.factors:
            if base == E:
                # Euler's number is never printed: backends differ in what they call an exponential, and most have a base of
                # their own.
                above.append(self.call("exp", self._print(exponent)))
            # Halves of integers are roots and products, an instruction each; any other power is a logarithm and an exponential.
            elif isinstance(exponent, Number) and (2 * exponent.value).is_integer():
                whole, half = divmod(abs(exponent.value), 1.0)
                text = self._print(base)
                side = above if exponent.value > 0 else below
                side.extend([text] * int(whole))
                if half:
                    (above.append if exponent.value < 0 else side.append)(
                        self._bind_call("rsqrt" if exponent.value < 0 else "sqrt", text)
                    )
            else:
                # Not s ** e of the language: pow of C treats negative bases and infinities, which no symbol here is, in a
                # hundred instructions.
                above.append(self.general_power(self._print(base), self._print(exponent)))
        # One reciprocal for all divisors: no arithmetic is slower than division, on any machine.
        if below:
            above.append(self.call("reciprocal", " * ".join(below)))
        return " * ".join(above)

    def _bind_call(self, function: str, argument: str) -> str:
        """Bind a root: Matern needs the same one in the polynomial and in the exponential."""
        # The argument's text names a bound subexpression, so equal texts are equal numbers and the text may be the key.
        key = Call(function, Symbol(argument))
        if key not in self._bound:
            self._bound[key] = self.bind(self.call(function, argument))
        return self._bound[key]


class NumPyPrinter(AbstractPrinter):
    """NumPy source: arrays in, arrays out; accepts complex arguments (for complex-step tests)."""

    def number(self, value: float) -> str:
        """Return a Python float: NumPy 2 keeps the dtype of the array beside it."""
        return repr(value)

    def call(self, function: str, argument: str) -> str:
        """Return a NumPy call."""
        if function == "rsqrt":
            # At 0 this is inf, which the sums select away, as they do on a device.
            return f"1.0 / np.sqrt({argument})"
        if function == "reciprocal":
            return f"(1.0 / ({argument}))"
        return f"np.{function}({argument})"

    def general_power(self, base: str, exponent: str) -> str:
        """Return a NumPy power."""
        return f"np.power({base}, {exponent})"

    def bind(self, text: str) -> str:
        """Assign to a new name."""
        name = f"{self.prefix}{len(self.lines)}"
        self.lines.append(f"{name} = {text}")
        return name


class NumbaPrinter(AbstractPrinter):
    """Numba source with typed constants; the same text serves the CPU and CUDA loops.

    ``real`` is the text that makes a typed constant ("np.float32" or "float32"): a bare ``3.0`` would
    put float64 instructions into a float32 loop. ``functions`` maps exp2, log2, cos, sin, sqrt, rsqrt and
    reciprocal to the names that the surrounding source defines.
    """

    def __init__(self, real: str, functions: dict[str, str], prefix: str = "u") -> None:
        super().__init__(prefix)
        self.real = real
        self.functions = functions

    def prepare(self, tree: Expr) -> Expr:
        """Exponentials in base two: one hardware instruction, or a polynomial and a shift."""
        # Before printing, not in `call`: factors of log 2 then fold with the constants that stand beside the exponential.
        return base_two(tree)

    def number(self, value: float) -> str:
        """Return a typed constant."""
        return f"{self.real}({value!r})"

    def call(self, function: str, argument: str) -> str:
        """Return a call by the name the target gives the function."""
        return f"{self.functions[function]}({argument})"

    def general_power(self, base: str, exponent: str) -> str:
        """Return exp2(exponent * log2(base)): right at base 0, where log2 is -inf."""
        return self.call("exp2", f"{exponent} * {self.call('log2', base)}")

    def bind(self, text: str) -> str:
        """Assign to a new name."""
        name = f"{self.prefix}{len(self.lines)}"
        self.lines.append(f"{name} = {text}")
        return name


class KeOpsPrinter(AbstractPrinter):
    """One KeOps formula. Constants that are not small fractions become entries of a parameter.

    KeOps knows integers and fractions only; ``constants`` collects the others in the order in which
    ``Elem(P, k)`` refers to them, after the ``n_parameters`` runtime scalars.
    """

    def __init__(self, symbols: dict[str, str], n_parameters: int = 0) -> None:
        super().__init__()
        self.symbols = symbols
        self.n_parameters = n_parameters
        self.constants: list[float] = []

    def number(self, value: float) -> str:
        """Return IntCst, RatCst, or an element of the parameter vector.

        KeOps computes RatCst in float32 whatever the dtype of the formula: halves, quarters, ... only.
        """
        # Fractions with a power of two below are exact in float32; thirds are not and become parameters.
        over, under = value.as_integer_ratio()
        if under <= 64 and abs(over) < 10_000:
            return f"IntCst({over})" if under == 1 else f"RatCst({over},{under})"
        # A constant that occurs twice is one entry: KeOps compiles a formula anew for every length of its parameter vector.
        if value not in self.constants:
            self.constants.append(value)
        return f"Elem(P,{self.n_parameters + self.constants.index(value)})"

    def symbol(self, name: str) -> str:
        """Return the sub-formula a symbol stands for."""
        return self.symbols[name]

    def call(self, function: str, argument: str) -> str:
        """Return a KeOps operation."""
        name = "Inv" if function == "reciprocal" else function.capitalize()
        return f"{name}({argument})"

    def general_power(self, base: str, exponent: str) -> str:
        """Return Exp(exponent * Log(base)), right at base 0 too; KeOps' Powf is float32 in any dtype."""
        return f"Exp({exponent}*Log({base}))"


class FormulaPrinter(AbstractPrinter):
    """The text of a formula, as :func:`gpukoop.kernels.radial` reads it."""

    def number(self, value: float) -> str:
        """Return all digits, whole numbers without a point."""
        return repr(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)

    def call(self, function: str, argument: str) -> str:
        """Return a call, or a division."""
        if function == "reciprocal":
            return f"(1 / ({argument}))"
        if function == "rsqrt":
            return f"1 / sqrt({argument})"
        return f"{function}({argument})"

    def general_power(self, base: str, exponent: str) -> str:
        """Return a power."""
        return f"{base} ** {exponent}"


class LatexPrinter(AbstractPrinter):
    """LaTeX for the documentation, from the same tree as the code."""

    def number(self, value: float) -> str:
        """Return an integer, a fraction, a root of one, or six digits."""
        # Constants such as sqrt(5) reach the tree as numbers: the documentation should show what the author wrote.
        for root in (1, 2):
            exact = Fraction(value**root).limit_denominator(64)
            if abs(float(exact) - value**root) <= 1e-14 * abs(value**root):
                whole = exact.denominator == 1
                text = (
                    f"{exact.numerator}"
                    if whole
                    else rf"\tfrac{{{exact.numerator}}}{{{exact.denominator}}}"
                )
                return text if root == 1 else rf"\sqrt{{{text}}}"
        return f"{value:.6g}"

    def call(self, function: str, argument: str) -> str:
        """Return a LaTeX function."""
        return {
            "exp": rf"e^{{{argument}}}",
            "sqrt": rf"\sqrt{{{argument}}}",
            "rsqrt": rf"\frac{{1}}{{\sqrt{{{argument}}}}}",
            "reciprocal": rf"\frac{{1}}{{{argument}}}",
            "log": rf"\log {argument}",
            "cos": rf"\cos {argument}",
            "sin": rf"\sin {argument}",
        }[function]

    def general_power(self, base: str, exponent: str) -> str:
        """Return a LaTeX power."""
        return f"{base}^{{{exponent}}}"

    def symbol(self, name: str) -> str:
        r"""Return a Greek letter for a parameter that has one."""
        return rf"\{name}" if name in ("alpha", "beta") else name

    def bind(self, text: str) -> str:
        """Put sums in brackets; products need none."""
        # Texts, not trees, decide here, because a product of sums is only seen to need brackets once its factors are printed.
        plain = " + " not in text and " - " not in text
        return text if plain else rf"\left({text}\right)"

    def _sum(self, tree: Sum) -> str:
        return super()._sum(tree).replace(" * ", r"\,")

    def _product(self, tree: Product) -> str:
        return super()._product(tree).replace(" * ", r"\,")


def quotient(numerator: Expr, denominator: Expr) -> Expr:
    """Return numerator / denominator with common factors cancelled, in each term of a sum: both may underflow."""
    # A sum is no product, so nothing would cancel in it as a whole; a constant part could not be divided term by term.
    if isinstance(numerator, Sum) and len(numerator.terms) > 1 and not numerator.constant:
        return add(*(mul(c, quotient(term, denominator)) for term, c in numerator.terms))
    return mul(numerator, denominator**-1.0)
