"""phi and dphi of the catalogue: the derivative, the limits at 0, and printers that agree.

Bounds are multiples of eps; what each counts stands beside it.
"""

import re

import numpy as np
import oracle
import pytest

import gpukoop as gk
from gpukoop.kernels.formula.catalogue import CATALOGUE
from gpukoop.kernels.formula.expr import Symbol
from gpukoop.kernels.formula.printers import KeOpsPrinter, LatexPrinter, NumbaPrinter
from gpukoop.kernels.formula.profile import Q, trace
from gpukoop.kernels.reference import evaluate
from gpukoop.testing import tolerance

KERNELS = {name: make() for name, make in CATALOGUE.items()} | {
    "rational_quadratic_3": gk.RationalQuadratic(0.7, alpha=3.0),
    "riesz_half": gk.Riesz(0.5),
    "scaled": 2.5 * gk.Gaussian(0.3),
    "sum": gk.Gaussian(0.5) + 0.5 * gk.Matern32(2.0) - gk.RationalQuadratic(alpha=0.7),
}
EPS = np.finfo(float).eps
# Agreement asked of the hand-written derivative with the complex step: some ten roundings of a formula of ten operations.
COMPLEX_STEP = 3e-15
S = np.geomspace(1e-8, 300, 61)


def run(tree, printer, q, t, **scope):
    """Execute the text of a printer on NumPy arrays."""
    text = printer.print(tree)
    names = dict(zip(t.symbols, t.values, strict=True)) | {"q": q} | scope
    for line in printer.lines:
        exec(line, names)
    return eval(text, names)


def numba_scope(real):
    return {
        "real": real,
        "exp2": np.exp2,
        "log2": np.log2,
        "sqrt": np.sqrt,
        "rsqrt": lambda x: real(1) / np.sqrt(x),
        "reciprocal": lambda x: real(1) / x,
    }


def numba_printer():
    names = ("exp2", "log2", "sqrt", "rsqrt", "reciprocal")
    return NumbaPrinter("real", {name: name for name in names})


@pytest.mark.parametrize("name", KERNELS)
def test_dphi_is_the_derivative_of_phi(name):
    t = trace(KERNELS[name])
    step = 1e-20
    # the chain rule of a Matern kernel cancels like 1 / sqrt(s): hence long double
    stepped = S.astype(np.longdouble) * (1 + np.clongdouble(1j) * step)
    derivative = evaluate(t.phi, stepped, t.symbols, t.values).imag / (step * S)
    cancelled = np.finfo(np.longdouble).eps / np.sqrt(S)
    dphi = evaluate(t.dphi, S, t.symbols, t.values)
    # a sum of kernels of both signs cancels: its terms set the size of a rounding
    size = sum(
        abs(c * evaluate(u.dphi, S * (u.prescale / t.prescale) ** 2, u.symbols, u.values))
        * (u.prescale / t.prescale) ** 2
        for c, u in ((c, trace(k)) for c, k in KERNELS[name].terms)
    )
    # exp(-u) carries u eps of the rounding of its argument
    far = 1 + 2 * EPS / COMPLEX_STEP * S
    assert (abs(dphi - derivative) <= COMPLEX_STEP * far * size + cancelled).all()


@pytest.mark.parametrize("name", KERNELS)
def test_limits_at_zero(name):
    kernel = KERNELS[name]
    t = trace(kernel)
    zero = np.zeros(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        phi, dphi = (evaluate(u, zero, t.symbols, t.values)[0] for u in (t.phi, t.dphi))
        near = evaluate(t.dphi, np.array([1e-30]), t.symbols, t.values)[0]
    expected = float(oracle.matrix(oracle.terms_of(kernel), zero[:, None], zero[:, None])[0, 0])
    assert phi == pytest.approx(expected, rel=4 * EPS, abs=0)
    assert t.kink == (not np.isfinite(dphi)), "kink=True says that dphi has no limit at 0"
    if not t.kink:
        assert dphi == pytest.approx(
            near, rel=1e-14, abs=0
        )  # the square root of 1e-30 moves it by 1e-15
    x = np.ones((2, 3))
    assert not kernel(x).gradient(np.ones(2)).any()


@pytest.mark.parametrize("name", KERNELS)
def test_phi_in_r_is_the_oracle(name):
    kernel = KERNELS[name]
    r = np.concatenate([[0.0], np.geomspace(1e-6, 30, 50)])[:, None]
    origin, one = np.zeros((1, 1)), np.ones(1)
    terms = oracle.terms_of(kernel)
    K = kernel(r, origin, backend="numpy")
    assert (
        abs(K @ one - oracle.product(terms, r, origin, one)) <= tolerance(kernel, r, origin, one)
    ).all()
    exact = oracle.gradient(terms, r, origin, one)
    assert (abs(K.gradient(one) - exact) <= tolerance(kernel, r, origin, one, "gradient")).all()


@pytest.mark.parametrize("tree", ["phi", "dphi", "log_phi", "log_slope"])
@pytest.mark.parametrize("name", KERNELS)
def test_numpy_and_numba_text_agree(name, tree):
    t = trace(KERNELS[name])
    expression = getattr(t, tree)
    if expression is None:
        assert len(KERNELS[name].terms) > 1 or not KERNELS[name].positive
        return
    q = np.geomspace(1e-6, 30, 50)
    here = evaluate(expression, q, t.symbols, t.values)
    there = run(expression, numba_printer(), q, t, **numba_scope(np.float64)) + 0 * q
    # exponentials in base two round the argument once more, by q eps; sums and logarithms of about one cancel
    size = np.maximum(abs(here), 1 if len(KERNELS[name].terms) > 1 or tree == "log_phi" else 0)
    assert (abs(there - here) <= 64 * EPS * np.maximum(size, abs(q) * abs(here))).all()


@pytest.mark.parametrize("name", KERNELS)
def test_printed_constants_keep_float32(name):
    t = trace(KERNELS[name])
    values = {symbol: np.float32(value) for symbol, value in zip(t.symbols, t.values, strict=True)}
    for tree in (t.phi, t.dphi, t.log_phi, t.log_slope):
        if tree is None:
            continue
        printer = numba_printer()
        text = "\n".join([*printer.lines, printer.print(tree), *printer.lines])
        bare = re.sub(r"real\([^)]*\)", "", text)
        assert not re.search(r"(?<![\w.])\d", bare), f"a constant without a type in {text}"
        q = np.linspace(0.1, 3, 5, dtype="float32")
        assert (
            run(tree, numba_printer(), q, t, **numba_scope(np.float32), **values).dtype == "float32"
        )


class KeOpsText(dict):
    """Names of KeOps' operations as NumPy functions, to execute a formula without a compiler."""

    def __init__(self, q, parameters):
        super().__init__(
            Q=q,
            P=parameters,
            Elem=lambda P, k: P[k],
            IntCst=float,
            RatCst=lambda p, r: float(np.float32(p / r)),  # KeOps rounds it to float32
            Exp=np.exp,
            Log=np.log,
            Sqrt=np.sqrt,
            Rsqrt=lambda x: np.where(x == 0, 0, 1 / np.sqrt(x)),
            Inv=lambda x: 1 / x,
        )


@pytest.mark.parametrize("name", KERNELS)
def test_keops_text_agrees(name):
    t = trace(KERNELS[name])
    q = np.geomspace(1e-6, 30, 50)
    for tree in (t.phi, t.dphi, t.log_phi, t.log_slope):
        if tree is None:
            continue
        cancels = len(KERNELS[name].terms) > 1 or tree is t.log_phi
        symbols = {symbol: f"Elem(P,{i})" for i, symbol in enumerate(t.symbols)}
        printer = KeOpsPrinter({"q": "Q", **symbols}, len(symbols))
        formula = printer.print(tree)
        numbers = [*t.values, *printer.constants]
        here = evaluate(tree, q, t.symbols, t.values)
        there = eval(formula, KeOpsText(q, numbers))
        size = np.maximum(abs(here), 1 if cancels else 0)
        assert (abs(there - here) <= 64 * EPS * np.maximum(size, abs(q) * abs(here))).all()


def test_keops_constants_are_exact_or_parameters():
    printer = KeOpsPrinter({})
    assert printer.number(3.0) == "IntCst(3)"
    assert printer.number(-0.75) == "RatCst(-3,4)"
    assert printer.number(5 / 6) == "Elem(P,0)"
    assert printer.number(0.1) == "Elem(P,1)"
    assert printer.number(5 / 6) == "Elem(P,0)"
    assert printer.constants == [5 / 6, 0.1]


@pytest.mark.parametrize(
    ("kernel", "parts"),
    [
        (gk.Gaussian(), ["e^{", r"\tfrac{1}{2}", "s"]),
        (gk.Laplace(), ["e^{", r"\sqrt{s}"]),
        (gk.Matern32(), [r"\sqrt{3}", "e^{", r"\sqrt{s}"]),
        (gk.RationalQuadratic(), [r"\alpha", "^{"]),
        (gk.Energy(), ["-", r"\sqrt{s}"]),
        (gk.Gaussian() + 2.0 * gk.Laplace(), ["e^{", "+", r"2\,"]),
    ],
    ids=lambda x: repr(x) if not isinstance(x, list) else "",
)
def test_latex(kernel, parts):
    text = kernel.latex()
    assert all(part in text for part in parts), text
    assert text.count("{") == text.count("}")
    assert text.count("(") == text.count(")")
    assert "*" not in text


def test_latex_numbers():
    printer = LatexPrinter()
    assert printer.number(3.0) == "3"
    assert printer.number(0.5) == r"\tfrac{1}{2}"
    assert printer.number(3**0.5) == r"\sqrt{3}"
    assert printer.number(0.123456789) == "0.123457"


def test_text_does_not_depend_on_numbers():
    """Scales, weights and parameters travel as scalars, so code compiled once serves all of them."""
    assert trace(gk.Gaussian(0.1)).key == trace(gk.Gaussian(7.0)).key
    assert (
        trace(gk.RationalQuadratic(alpha=1.0)).key
        == trace(gk.RationalQuadratic(2.0, alpha=3.0)).key
    )
    one, other = (trace(gk.Gaussian(a) + b * gk.Laplace(c)) for a, b, c in [(1, 2, 3), (4, 5, 6)])
    assert one.key == other.key
    assert one.values != other.values
    assert trace(gk.Gaussian()).key != trace(gk.Laplace()).key


def test_prescale_folds_the_constant_of_the_exponential():
    t = trace(gk.Gaussian(0.5))
    assert evaluate(t.phi, np.array([1.0, 2.0, 10.0]), t.symbols, t.values) == pytest.approx(
        [0.5, 0.25, 2.0**-10], rel=4 * EPS
    )
    assert {Q, Symbol("q")} == {Q}


def test_named_scales_must_be_resolved():
    with pytest.raises(ValueError, match="named scale"):
        trace(gk.Gaussian("median"))
    assert (
        trace(gk.Gaussian("median").resolve(lambda rule: 2.0)).prescale
        == trace(gk.Gaussian(2.0)).prescale
    )


@pytest.mark.parametrize("scale", [0, -1.0, np.inf, np.nan, "mean", None, True, [[1.0]]])
def test_bad_scales(scale):
    with pytest.raises(ValueError, match="scale must be a finite number > 0, 'median' or 'auto'"):
        gk.Gaussian(scale)


@pytest.mark.parametrize("value", [0, -1.0, np.inf, "a", True])
def test_bad_parameters(value):
    with pytest.raises(ValueError, match="alpha must be a finite number > 0"):
        gk.RationalQuadratic(alpha=value)
    with pytest.raises(ValueError, match=r"exponent must be a number in \(0, 2\)"):
        gk.Riesz(exponent=value)


def test_algebra():
    k = gk.Gaussian(1.0) + 0.5 * gk.Laplace(2.0)
    assert [(c, type(r).__name__) for c, r in k.terms] == [(1.0, "Gaussian"), (0.5, "Laplace")]
    assert [c for c, _ in (2 * k * 3).terms] == [6.0, 3.0]
    assert [c for c, _ in (k - gk.Energy()).terms] == [1.0, 0.5, -1.0]
    assert k.positive
    assert not (k - gk.Gaussian()).positive
    assert not gk.Energy().positive
    assert repr(k) == "Gaussian(scale=1.0) + 0.5 * Laplace(scale=2.0)"
    with pytest.raises(ValueError, match="cannot be multiplied by nan"):
        np.nan * k
    for wrong in (lambda: k + "a", lambda: k * "a", lambda: k * True):
        with pytest.raises(TypeError):
            wrong()


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64])
def test_parameters_may_be_numpy_numbers(kind):
    assert gk.RationalQuadratic(kind(2), alpha=kind(3)) == gk.RationalQuadratic(2.0, alpha=3.0)
    assert gk.Riesz(kind(1)) == gk.Energy()
    assert repr(gk.Riesz(kind(1))) == "Riesz(exponent=1.0)"
    assert kind(2) * gk.Gaussian(1.0) == gk.Gaussian(1.0) * 2
