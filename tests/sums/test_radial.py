"""Kernels from a formula: the same as the catalogue's on every backend, an oracle in long double, and what is refused."""

import pickle

import numpy as np
import pytest

import gpukoop as gk
from gpukoop.kernels import radial
from gpukoop.kernels.keops.reduce import missing

RNG = np.random.default_rng(0)
X, Y, V = RNG.normal(size=(23, 3)), RNG.normal(size=(31, 3)), RNG.normal(size=31)
X[3] = Y[5]  # one pair at distance 0
BACKENDS = ["numpy", "numba-cpu"]
WAVE = "exp(-sqrt(s)) * cos(sqrt(s))"
SAME = {
    "gaussian": (radial("exp(-s / 2)", scale=0.8, positive=True), gk.Gaussian(0.8)),
    "laplace": (radial("exp(-sqrt(s))", scale=1.3, positive=True), gk.Laplace(1.3)),
    "matern": (
        radial("(1 + sqrt(3 * s)) * exp(-sqrt(3 * s))", scale=1.1, positive=True),
        gk.Matern32(1.1),
    ),
    "with a parameter": (
        radial("(1 + s / (2 * a)) ** -a", scale=0.9, positive=True, a=2.5),
        gk.RationalQuadratic(0.9, alpha=2.5),
    ),
}


@pytest.fixture
def by_numpy():
    """What is not about backends needs no compiler."""
    with gk.use_backend("numpy"):
        yield


def decaying(s, a=0.5):
    return np.exp(-a * s)


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["value_and_gradient", "logsumexp_and_gradient"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SAME)
def test_a_formula_is_the_kernel_of_the_catalogue(name, backend, operation):
    mine, theirs = SAME[name]
    assert mine.profile.kink == theirs.profile.kink
    for dtype, accuracy in (("float64", 1e-12), ("float32", 2e-5)):
        A, B, v = (a.astype(dtype) for a in (X, Y, V))
        K = mine(A, B, backend=backend)
        assert K.explain(operation).backend == backend
        found = getattr(K, operation)(v)
        expected = getattr(theirs(A, B, backend="numpy"), operation)(v)
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == dtype
            assert np.abs(one - other).max() <= accuracy * max(1.0, np.abs(other).max())


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_cosine_against_long_double(backend):
    """Value and gradient in r, typed by hand: d/dr exp(-r) cos r = -exp(-r) (cos r + sin r)."""
    D = X.astype(np.longdouble)[:, None] - Y[None]
    r = np.sqrt((D**2).sum(-1)) / 2
    value = (np.exp(-r) * np.cos(r)) @ V
    with np.errstate(invalid="ignore", divide="ignore"):
        slope = np.where(r > 0, -np.exp(-r) * (np.cos(r) + np.sin(r)) / (4 * r), 0)
    gradient = np.einsum("nm,m,nmd->nd", slope, V, D)
    K = radial(WAVE, scale=2.0)(X, Y, backend=backend)
    assert K.explain("value_and_gradient").backend == backend
    found = K.value_and_gradient(V)
    for one, exact in zip(found, (value, gradient), strict=True):
        assert np.abs(one - exact).max() < 1e-13 * len(V) * np.abs(V).max()


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
@pytest.mark.slow
def test_the_cosine_by_keops():
    kernel = radial(WAVE, scale=2.0)
    expected = kernel(X, Y, backend="numpy").value_and_gradient(V)
    for one, other in zip(
        kernel(X, Y, backend="keops").value_and_gradient(V), expected, strict=True
    ):
        assert np.abs(one - other).max() < 1e-12 * np.abs(other).max()


def test_the_formula_of_keops_has_the_cosine():
    from gpukoop.kernels.keops.reduce import code
    from gpukoop.kernels.operation import PRODUCT

    assert "Cos(" in code(radial(WAVE), PRODUCT, 3, 1, "float64")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_cuda_text_compiles(dtype):
    pytest.importorskip("numba_cuda")
    kernel = radial("exp(-a * s) * cos(sqrt(s))", a=0.5)
    try:
        ptx = gk.cuda.compile_ptx(kernel, "value_and_gradient", d=3, dtype=dtype)
    except gk.BackendError as error:
        pytest.skip(str(error))
    assert ".visible .entry" in ptx
    assert "cos.approx" not in ptx


def test_a_wave_is_never_cut_short():
    """Between two points of the grid of bounds it may do anything: ``tol`` sums every pair."""
    from gpukoop.kernels.cells import Envelope
    from gpukoop.kernels.formula.profile import trace

    assert np.isinf(Envelope(trace(radial(WAVE)), None).table).all()
    assert np.isfinite(Envelope(trace(radial("exp(-s)")), None).table).all()


def test_functions_parameters_and_algebra(by_numpy):
    made = radial(decaying)
    assert made == radial("exp(-a * s)", a=0.5) != radial(decaying, a=1.0)
    assert hash(made) == hash(radial(decaying))
    assert np.allclose(made(X, Y) @ V, gk.Gaussian(1.0)(X, Y) @ V, rtol=1e-12)
    decorated = radial(scale=2.0, a=1.0, positive=True)(decaying)
    assert np.allclose(decorated(X, Y) @ V, gk.Gaussian(2 / np.sqrt(2))(X, Y) @ V, rtol=1e-12)
    both = (made * gk.Laplace(2.0) + 0.5 * radial(WAVE))(X, Y)
    parts = (gk.Gaussian(1.0) * gk.Laplace(2.0))(X, Y) @ V + 0.5 * (radial(WAVE)(X, Y) @ V)
    assert np.allclose(both @ V, parts, rtol=1e-12)
    lengths = radial("exp(-s / 2)", scale=[1.0, 2.0, 4.0])(X, Y) @ V
    assert np.allclose(lengths, gk.Gaussian([1.0, 2.0, 4.0])(X, Y) @ V, rtol=1e-12)
    assert radial("exp(-s)", scale="median")(X).kernel.scale == gk.operator.median_scale(X)


@pytest.mark.parametrize("text", [WAVE, "1 / cosh(sqrt(s))", "(1 + s) ** -0.3", "tanh(s) - 1"])
def test_it_prints_pickles_and_differentiates(text, by_numpy):
    kernel = radial(text, scale=0.7)
    again = eval(repr(kernel), {"radial": radial})
    assert again == kernel == pickle.loads(pickle.dumps(kernel))
    h = 1e-5 * np.eye(3)[0]
    ahead, behind = kernel(X + h, Y) @ V, kernel(X - h, Y) @ V
    moved = np.arange(len(X)) != 3  # at distance 0 there may be a kink
    difference = ((ahead - behind) / 2e-5 - kernel(X, Y).gradient(V)[:, 0])[moved]
    assert np.abs(difference).max() < 1e-6


def test_no_value_at_zero(by_numpy):
    inverse = radial("1 / s", singular=True)(X, Y)
    squares = ((X[:, None] - Y[None]) ** 2).sum(-1)
    expected = np.where(squares > 0, 1 / np.where(squares > 0, squares, 1), 0) @ V
    assert np.allclose(inverse @ V, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("exp(-b * s)", {}, "'b' .* unknown"),
        ("exp(-s", {}, "no formula"),
        ("__import__('os').name", {}, "unknown"),
        ("s.real", {}, "not understood"),
        ("s ^ 2", {}, "not understood"),
        ("1 / s", {}, "at s = 0"),
        ("exp(-s)", {"singular": True}, "leave out singular"),
        ("1 / (1 - s)", {}, "at s = 1"),
        ("exp(s)", {}, "inf at s = "),
        ("sqrt((s - 1) ** 2)", {}, "simplifies to"),
        ("log(-s)", {}, "no value for any s"),
        ("1 / 0 * s", {}, "no value for any s"),
        ("3", {}, "does not depend on s"),
        ("exp(-s)", {"a": 1.0}, "does not occur"),
        ("exp(-a * s)", {"a": -1.0}, "finite number > 0"),
        ("cos(s)", {"positive": True}, "declared positive, but"),
        ("exp(-s) + exp(-2 * s)", {"positive": True}, "logarithm"),
        ("exp(-s)", {"positive": 1}, "True or False"),
        (7, {}, "expected text"),
        (np.arctan, {}, "cannot be read|must take s"),
        (lambda s: 1.0 if s > 0 else 0.0, {}, "cannot be read"),
    ],
    ids=lambda value: None if isinstance(value, dict) else str(getattr(value, "__name__", value)),
)
def test_what_is_refused(text, options, words):
    with pytest.raises((ValueError, TypeError), match=words):
        radial(text, **options)


def test_a_formula_is_not_known_to_be_positive():
    with pytest.raises(ValueError, match="not declared positive"):
        radial("exp(-s)")(X, Y).logsumexp(V)
