"""Sums over many features by products of matrices: the tiles with NumPy in place of the device."""

import itertools

import numpy as np
import oracle
import pytest
from matrix_engines import NumPyEngine

from gpukoop.kernels.cuda.matrix import fused, packing
from gpukoop.kernels.cuda.matrix import sums as matrix_cuda
from gpukoop.kernels.cuda.matrix.fused import fits
from gpukoop.kernels.cuda.matrix.outer.shape import OuterShape, suits
from gpukoop.kernels.cuda.matrix.precision import nearness, operands, round_tf32
from gpukoop.kernels.formula.catalogue import (
    CATALOGUE,
    Gaussian,
    InverseMultiquadric,
    Laplace,
    Matern32,
    RationalQuadratic,
    Riesz,
)
from gpukoop.kernels.formula.profile import trace
from gpukoop.kernels.reference import evaluate
from gpukoop.testing import tolerance

OPS = ("product", "gradient", "value_and_gradient", "logsumexp", "logsumexp_and_gradient")
KERNELS = [make() for make in CATALOGUE.values()]
KERNELS += [Riesz(exponent=1.3), RationalQuadratic(0.7, alpha=0.6)]
KERNELS += [Gaussian(1.0) + 0.5 * Matern32(2.0)]
MODES = [("fp32", "float32"), ("3xtf32", "float32"), ("fp32", "float64")]
# n, m, d, t, where the cloud lies, its standard deviation a feature times sqrt(d)
SHAPES = [
    (33, 70, 16, 1, 0.0, 1.0),
    (33, 70, 17, 16, 1000.0, 1.0),
    (1, 300, 64, 1, 0.0, 2.0),
    (90, 1, 100, 2, 0.0, 2.0),
    (21, 40, 784, 1, 0.0, 1.5),
    (30, 50, 20, 3, 10.0, 12.0),
]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Two tiles of targets and of sources already for a few points, the last ones ragged."""
    monkeypatch.setattr(matrix_cuda, "TARGETS", 20)
    monkeypatch.setattr(matrix_cuda, "SOURCES", 128)
    monkeypatch.setattr(matrix_cuda, "STEP", 128)


def data(n, m, d, t, shift, spread, dtype, op="product"):
    rng = np.random.default_rng(n + m + d)
    X = (rng.normal(size=(n, d)) * spread / np.sqrt(d) + shift).astype(dtype)
    Y = (rng.normal(size=(m, d)) * spread / np.sqrt(d) + shift).astype(dtype)
    same = min(n, m, 4)
    Y[:same] = X[:same]
    V = rng.normal(size=(m, t)).astype(dtype)
    if "logsumexp" in op:
        V = 3 * V[:, 0]
        if m > 3:
            V[1] = -np.inf
    return X, Y, V


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


def run(kernel, op, X, Y, V, precision="fp32", tol=None):
    """Return (result, engine, choice); the matrix path must have been taken."""
    engine, memory = NumPyEngine(kernel), {}
    got = matrix_cuda.reduce(
        engine, kernel, op, X, Y, V, precision=precision, tol=tol, memory=memory
    )
    choice = memory["matrix"]
    assert choice.path == "matrix", choice.why
    tensor = choice.precision != "fp32"
    t = 1 if V.ndim == 1 else V.shape[1]
    parts = 1 if choice.precision == "tf32" else 2
    if tensor and fits(op, X.shape[1], t, parts):
        assert engine.products == 0
        assert {shape.parts for shape in engine.shapes} == {parts}
    elif not tensor and suits(op, X.shape[1], t, X.dtype.name):
        assert engine.products == 0
        assert {type(shape) for shape in engine.shapes} == {OuterShape}
    else:
        assert engine.products > 0
        assert engine.tensor_products == (engine.products if tensor else 0)
    return as_tuple(got), engine, choice


def check(kernel, op, X, Y, V, precision="fp32", tol=None):
    got, engine, _ = run(kernel, op, X, Y, V, precision, tol)
    exact = as_tuple(getattr(oracle, op)(oracle.terms_of(kernel), X, Y, V))
    bound = as_tuple(tolerance(kernel, X, Y, V, op, tol=tol))
    for result, truth, within in zip(got, exact, bound, strict=True):
        assert result.shape == truth.shape
        assert result.dtype == X.dtype
        assert np.all(np.abs(result - truth) <= within), (kernel, op, precision)
    return engine


# -- TF32 ---------------------------------------------------------------------------------------
def test_rounding_to_tf32_is_to_nearest_ties_away():
    half = 2.0**-11
    given = np.array([1, 1 + half, -1 - half, 1 + half / 2, 1 + 3 * half, 0, -3.5], np.float32)
    wanted = [1, 1 + 2 * half, -1 - 2 * half, 1, 1 + 4 * half, 0, -3.5]
    assert round_tf32(given).tolist() == wanted


def test_tf32_numbers_have_eleven_bits_and_are_near():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=10_000) * 10.0 ** rng.integers(-20, 20, 10_000)).astype(np.float32)
    r = round_tf32(x)
    mantissa, _ = np.frexp(r.astype(float))
    assert np.all(mantissa * 2**11 == np.round(mantissa * 2**11))
    assert np.all(np.abs(r - x.astype(float)) <= 2.0**-11 * np.abs(x))
    assert np.array_equal(round_tf32(r), r)


def test_three_products_are_one_product_of_longer_rows():
    """hi hi + hi lo + lo hi misses lo lo and what two times 11 bits do not hold: 2^-22 and 2 * 2^-23 a product."""
    rng = np.random.default_rng(1)
    x, y = (rng.normal(size=(50, 19)).astype(np.float32) for _ in range(2))
    (a, _), (b, _) = operands(x, "3xtf32", 0, np), operands(y, "3xtf32", 1, np)
    assert a.shape == (50, 3 * 20)
    for matrix in (a, b):
        assert np.array_equal(round_tf32(matrix), matrix)
    wide = [m.astype(float) for m in (a, b, x, y)]
    error = np.abs(wide[0] @ wide[1].T - wide[2] @ wide[3].T)
    assert np.all(error <= 2.0**-21 * (np.abs(wide[2]) @ np.abs(wide[3]).T))
    assert error.max() > 0


# -- results ------------------------------------------------------------------------------------
@pytest.mark.parametrize(("precision", "dtype"), MODES)
@pytest.mark.parametrize("op", OPS)
def test_every_kernel_within_the_one_tolerance(op, precision, dtype):
    for kernel, t in itertools.product(KERNELS, (1, 3)):
        if "logsumexp" in op and (t > 1 or not kernel.positive):
            continue
        check(kernel, op, *data(33, 70, 18, t, 5.0, 1.0, dtype, op), precision)


@pytest.mark.parametrize(("precision", "dtype"), MODES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sizes_that_hurt(shape, precision, dtype):
    for kernel, op in itertools.product((Gaussian(1.0), Laplace(1.0)), OPS):
        check(kernel, op, *data(*shape, dtype, op), precision)


@pytest.mark.parametrize("precision", ["fp32", "3xtf32"])
@pytest.mark.parametrize("op", ["product", "value_and_gradient", "logsumexp_and_gradient"])
def test_close_pairs_are_differences(op, precision):
    """Ten tight clusters far apart, seen by a kernel as narrow as a cluster: inner products alone lose everything."""
    rng = np.random.default_rng(2)
    centres = rng.normal(size=(10, 32)) * 30
    X, Y = (
        (centres[rng.integers(0, 10, k)] + 0.02 * rng.normal(size=(k, 32))).astype(np.float32)
        for k in (40, 60)
    )
    V = rng.normal(size=(60, 1)).astype(np.float32)
    V = V[:, 0] if "log" in op else V
    # the oracle's long double holds 2^-16445
    for kernel in (Gaussian(0.1), Laplace(0.1)) if "log" not in op else (Laplace(0.1),):
        assert check(kernel, op, X, Y, V, precision).close > 60


@pytest.mark.parametrize("op", ["gradient", "value_and_gradient"])
def test_columns_of_a_gradient_are_launched_together(op, monkeypatch):
    """One launch for all columns and 112 features; one a column where memory holds no more, with the same sums."""
    X, Y, V = data(90, 300, 120, 7, 0.0, 2.0, "float32")
    kernel, found = Laplace(2.0), []
    for words, launches in ((fused.TILES, 2), (1, 14)):
        monkeypatch.setattr(fused, "TILES", words)
        # several splits a column, the last one ragged
        monkeypatch.setattr(fused, "BLOCKS", 21)
        engine = check(kernel, op, X, Y, V, "3xtf32")
        assert len(engine.shapes) == launches
        assert engine.close >= 4
        found.append(as_tuple(run(kernel, op, X, Y, V, "3xtf32")[0]))
    for together, alone in zip(*found, strict=True):
        np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-5)


def test_all_points_equal_cost_no_digits_in_a_million_addends(monkeypatch):
    """Compensated within a tile, float64 across tiles; products of 256 rows lose 3.7e-6 at most (matrix_cuda.STEP)."""
    monkeypatch.undo()
    m = 1_000_000
    X, Y = np.zeros((4, 16), np.float32), np.full((m, 16), 0.05, np.float32)
    k = np.exp(-16 * float(np.float32(0.05)) ** 2 / 2)
    w = float(np.float32(0.1))
    for t, lost in ((1, 5e-7), (2, 4e-6)):
        V = np.full((m, t), 0.1, np.float32)
        (value,), _, _ = run(Gaussian(1.0), "product", X, Y, V)
        assert np.all(np.abs(value - k * w * m) <= lost * k * w * m)
    (value,), _, _ = run(Gaussian(1.0), "logsumexp", X, Y, np.zeros(m, np.float32))
    assert np.all(np.abs(value - np.log(k * m)) <= 5e-7 * np.log(k * m))


def test_without_any_weight_the_logarithm_is_minus_infinity():
    X, Y, _ = data(9, 20, 16, 1, 0.0, 1.0, "float32")
    b = np.full(20, -np.inf, np.float32)
    (value, slope), _, _ = run(Laplace(1.0), "logsumexp_and_gradient", X, Y, b)
    assert np.all(value == -np.inf)
    assert np.all(slope == 0)


# -- tf32: the sum over rounded points --------------------------------------------------------------
def tf32_bounds(kernel, X, Y, V, op):
    """Return what rounding the centred points to TF32 may change, plus the tolerance of the sums.

    With r = 2^-11 (abs(x) + abs(y)), abs(dq) <= 2 sqrt(q) r + r^2; phi and abs(phi') fall with q, so their change is the
    larger of that to q - dq and that to q + dq. Each coordinate of x - y moves by 2^-11 (abs(x_c) + abs(y_c)). Close
    pairs are exact.
    """
    of, u = trace(kernel), 2.0**-11
    X, Y = X.astype(float), Y.astype(float)
    low, high = np.minimum(X.min(0), Y.min(0)), np.maximum(X.max(0), Y.max(0))
    x, y = ((a - (low + high) / 2) * of.prescale for a in (X, Y))
    nx, ny = (x**2).sum(1), (y**2).sum(1)
    D = x[:, None] - y
    q = (D**2).sum(2)
    r = u * (np.sqrt(nx)[:, None] + np.sqrt(ny))
    moved = 2 * np.sqrt(q) * r + r**2
    exact = q < 0.5 * nearness(X.shape[1], "tf32") * (nx[:, None] + ny)
    moved[exact] = 0

    def change(tree):
        with np.errstate(all="ignore"):
            at = [evaluate(tree, p, of.symbols, of.values) for p in (q, q - moved, q + moved)]
            both = np.maximum(np.abs(at[0] - at[1]), np.abs(at[0] - at[2]))
        return np.where(q > 0, both, 0), np.where(q > 0, np.abs(at[1]), 0)

    within = as_tuple(tolerance(kernel, X.astype("f4"), Y.astype("f4"), V, op))
    if op == "logsumexp":
        return (within[0] + change(of.log_phi)[0][:, V > -np.inf].max(axis=1),)
    W = np.abs(V)
    found = (within[0] + change(of.phi)[0] @ W,)
    if op == "value_and_gradient":
        moved_slope, slope = change(of.dphi)
        shift = u * (np.abs(x)[:, None] + np.abs(y)) * np.where(exact, 0, slope)[:, :, None]
        each = moved_slope[:, :, None] * np.abs(D) + shift
        found += (within[1] + 2 * of.prescale * np.einsum("ijc,jt->itc", each, W),)
    return found


@pytest.mark.parametrize("op", ["product", "value_and_gradient", "logsumexp"])
@pytest.mark.parametrize("d", [16, 17, 64, 100, 784])
def test_tf32_is_the_sum_over_rounded_points(d, op):
    beyond = 0
    for kernel in [*KERNELS[:-1], InverseMultiquadric(0.5)]:
        if op == "logsumexp" and not kernel.positive:
            continue
        X, Y, V = data(25, 60, d, 2, 100.0, 1.0, "float32", op)
        got, _, choice = run(kernel, op, X, Y, V, "tf32")
        assert choice.precision == "tf32"
        exact = as_tuple(getattr(oracle, op)(oracle.terms_of(kernel), X, Y, V))
        rounding = as_tuple(tolerance(kernel, X, Y, V, op))
        bounds = tf32_bounds(kernel, X, Y, V, op)
        for result, truth, bound, fine in zip(got, exact, bounds, rounding, strict=True):
            assert np.all(np.abs(result - truth) <= bound), (kernel, op)
            beyond += int((np.abs(result - truth) > fine).sum())
    assert beyond > 0, "TF32 was asked for, and float32 was computed"


# -- what is measured and packed -------------------------------------------------------------------------------
@pytest.mark.parametrize(("clusters", "path"), [(1, "matrix"), (5, "difference")])
def test_the_sample_sees_clusters(clusters, path):
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(clusters, 20)) * (clusters > 1) * 50
    X = centres[rng.integers(0, clusters, 2048)] + rng.normal(size=(2048, 20))
    memory = {}
    arguments = (NumPyEngine(Laplace(5.0)), Laplace(5.0), "product", X, X, np.ones((2048, 1)))
    found = matrix_cuda.reduce(*arguments, memory=memory)
    assert memory["matrix"].path == path
    assert (found is None) == (path == "difference")


def test_points_are_measured_once(monkeypatch):
    X, Y, V = data(9, 20, 30, 1, 0.0, 1.0, "float32")
    memory = {}
    arguments = (NumPyEngine(Gaussian(1.0)), Gaussian(1.0), "product", X, Y, V)
    first = matrix_cuda.reduce(*arguments, memory=memory)
    monkeypatch.setattr(matrix_cuda, "measure", None)
    assert np.array_equal(first, matrix_cuda.reduce(*arguments, memory=memory))


@pytest.mark.parametrize("precision", ["3xtf32", "tf32"])
@pytest.mark.parametrize("op", ["product", "value_and_gradient", "logsumexp"])
def test_points_of_tensor_programs_are_packed_once(op, precision, monkeypatch):
    """As long as an operator lives only weights are packed; another scale or operation has no effect on what is kept."""
    X, Y, V = data(9, 40, 20, 1, 0.0, 1.0, "float32", op)
    engine, memory, packed = NumPyEngine(Gaussian(4.0)), {}, []
    split = packing.split
    monkeypatch.setattr(packing, "split", lambda *a: packed.append(1) or split(*a))
    how = {"precision": precision, "memory": memory}
    arguments = (engine, Gaussian(4.0), op, X, Y)
    first = matrix_cuda.reduce(*arguments, V, **how)
    made = len(packed)
    assert made == 2 + 2 * (
        precision == "tf32"
    )  # targets and sources, rounded before if one part is all
    again = matrix_cuda.reduce(*arguments, V, **how)
    other = matrix_cuda.reduce(*arguments, V + 1, **how)
    assert len(packed) == made
    fresh = matrix_cuda.reduce(*arguments, V + 1, precision=precision)
    assert len(packed) == 2 * made
    for a, b in ((first, again), (other, fresh)):
        for kept, new in zip(as_tuple(a), as_tuple(b), strict=True):
            np.testing.assert_array_equal(kept, new)
