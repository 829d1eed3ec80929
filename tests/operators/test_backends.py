"""Every backend against the oracle, within the one tolerance; and the identities that need no oracle.

KeOps compiles each (formula, d, t, dtype) for some 4 s of one core, so it meets every kernel at d = 3 with one column,
where all the nasty n and m are, and one formula beside it: 49 in all, compiled side by side before the first is run.
"""

import functools
import itertools
import multiprocessing
import os

import numpy as np
import oracle
import pytest

import gpukoop as gk
from gpukoop.kernels.formula.catalogue import CATALOGUE
from gpukoop.testing import check_backend, tolerance

BACKENDS = [
    "numpy",
    "numba-cpu",
    pytest.param("numba-cuda", marks=pytest.mark.gpu),
    pytest.param("keops", marks=pytest.mark.slow),
]
KERNELS = {
    "gaussian": gk.Gaussian(0.8),
    "laplace": gk.Laplace(1.3),
    "matern32": gk.Matern32(0.7),
    "matern52": gk.Matern52(1.9),
    "inverse_multiquadric": gk.InverseMultiquadric(0.6),
    "rational_quadratic": gk.RationalQuadratic(0.9, alpha=1.7),
    "riesz": gk.Riesz(0.5),
    "energy": gk.Energy(),
    "sum": gk.Gaussian(0.5) + 0.5 * gk.Matern32(2.0),
}
OPS = ("product", "gradient", "value_and_gradient", "logsumexp", "logsumexp_and_gradient")
DTYPES = ("float32", "float64")
LOG_KERNELS = [name for name, kernel in KERNELS.items() if kernel.positive]


def points(case, dtype, d=3):
    """Return targets and sources of a shape or a position that hurts; lengths are in scales of about one."""
    rng = np.random.default_rng(sum(map(ord, case)))
    n, m = {
        "one target": (1, 70),
        "one source": (70, 1),
        "ragged": (257, 33),
        "long": (9, 1025),
    }.get(case, (40, 50))
    X, Y = 2 * rng.normal(size=(n, d)), 2 * rng.normal(size=(m, d))
    if case == "shifted":
        X, Y = X + 100, Y + 100
    if case == "equal":
        X[:], Y[:] = 1.1, 1.1
    if case == "shared":  # the first 20 pairs coincide, the next are closer than any rounding of s
        Y[:20] = X[:20]
        Y[20:30] = X[20:30] + 1e-6
    if case == "clusters":  # neighbours far from the origin: rounded coordinates would move them
        X[::2, 0] += 80
        Y[::2, 0] += 80
    if case == "far":  # products underflow, logarithms do not
        Y += 25
    return X.astype(dtype), Y.astype(dtype)


CASES = (
    "plain",
    "one target",
    "one source",
    "ragged",
    "long",
    "shifted",
    "equal",
    "shared",
    "clusters",
    "far",
)


def weights(m, t, op, dtype):
    rng = np.random.default_rng(m)
    if "logsumexp" in op:
        b = 3 * rng.normal(size=m)
        b[1::7] = -np.inf  # absent sources
        return b.astype(dtype)
    return (rng.normal(size=m) if t is None else rng.normal(size=(m, t))).astype(dtype)


def apply(K, op, v):
    result = K @ v if op == "product" else getattr(K, op)(v)
    return result if isinstance(result, tuple) else (result,)


@functools.cache
def truth(name, case, dtype, log, d=3, t=None):
    """Return the oracle's pair of results and the bounds of both, shared by the backends and the operations."""
    op = "logsumexp_and_gradient" if log else "value_and_gradient"
    kernel = KERNELS[name]
    X, Y = points(case, dtype, d)
    v = weights(len(Y), t, op, dtype)
    exact = getattr(oracle, op)(oracle.terms_of(kernel), X, Y, v)
    return exact, tolerance(kernel, X, Y, v, op)


def select(pair, op):
    if op in ("product", "logsumexp"):
        return pair[:1]
    return pair[1:] if op == "gradient" else pair


def assert_within(results, exact, bounds, what):
    for result, expected, bound in zip(results, exact, bounds, strict=True):
        assert result.shape == expected.shape, what
        same = result == expected  # both -inf where every source is absent
        with np.errstate(invalid="ignore", divide="ignore"):
            multiple = np.where(same, 0, np.abs(result - expected) / bound)
        assert np.nanmax(multiple, initial=0) <= 1, (
            f"{what}: {np.nanmax(multiple)} times the tolerance"
        )
        assert np.isfinite(result[~same]).all(), what


def check(backend, name, case, dtype, op, d=3, t=None):
    X, Y = points(case, dtype, d)
    v = weights(len(Y), t, op, dtype)
    K = KERNELS[name](X, Y, backend=backend)
    assert K.explain(op, t=t or 1).backend == backend
    results = apply(K, op, v)
    assert all(r.dtype == dtype for r in results)
    exact, bounds = truth(name, case, dtype, "logsumexp" in op, d, t)
    assert_within(results, select(exact, op), select(bounds, op), f"{backend} {name} {case} {op}")


# KeOps: one formula a row. In float64 the fused operations only: their formulas hold the text of the others.
FUSED = ("gradient", "value_and_gradient", "logsumexp_and_gradient")
FORMULAS = [
    (name, dtype, op, 3, None)
    for name, dtype, op in itertools.product(KERNELS, DTYPES, OPS[:1] + OPS[2:])
    if (op in OPS[:3] or name in LOG_KERNELS) and (dtype == "float32" or op in FUSED)
]
FORMULAS.append(("gaussian", "float32", "value_and_gradient", 17, 3))


def compile_keops(formulas):
    """Compile formulas by running them on one pair of points; called in worker processes."""
    for name, dtype, op, d, t in formulas:
        X = np.zeros((1, d), dtype)
        apply(KERNELS[name](X, backend="keops"), op, np.zeros(1 if t is None else (1, t), dtype))


@pytest.fixture(scope="session")
def compiled():
    """Compile the KeOps formulas side by side, once a session; with a warm cache this takes a second a worker."""
    workers = min(4, os.cpu_count() or 1)
    shares = [FORMULAS[i::workers] for i in range(workers)]
    pool = multiprocessing.get_context("spawn").Pool(workers)
    pool.map(compile_keops, shares, chunksize=1)
    pool.close()
    pool.join()  # KeOps writes its lists as a process ends: leaving by terminate() would cut them short


@pytest.fixture(params=BACKENDS)
def backend(request, require):
    require(request.param)
    if request.param == "keops":
        request.getfixturevalue("compiled")
    return request.param


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel_within_the_tolerance(backend, name, dtype, op):
    if backend == "keops" and dtype == "float64" and op not in FUSED:
        pytest.skip(
            "KeOps compiles a formula for 4 s: in float64 the fused operations cover this text"
        )
    if "logsumexp" in op and name not in LOG_KERNELS:
        with pytest.raises(ValueError, match="positive kernel"):
            apply(KERNELS[name](*points("plain", dtype), backend=backend), op, np.zeros(50, dtype))
        return
    for case in CASES:
        check(backend, name, case, dtype, op)


def test_the_catalogue_is_covered():
    names = {type(radial).__name__ for kernel in KERNELS.values() for _, radial in kernel.terms}
    assert names == {type(make()).__name__ for make in CATALOGUE.values()}


@pytest.mark.slow
@pytest.mark.parametrize("t", [None, 3])
@pytest.mark.parametrize("d", [1, 2, 17, 50])
@pytest.mark.parametrize("name", ["gaussian", "matern32"])
@pytest.mark.parametrize("backend", BACKENDS[:3])
def test_every_dimension_and_columns(backend, name, d, t, require):
    require(backend)
    for case in ("plain", "shifted", "ragged", "one source"):
        for op in ("product", "value_and_gradient"):
            check(backend, name, case, "float32", op, d, t)
        if t is None:
            check(backend, name, case, "float32", "logsumexp_and_gradient", d)


@pytest.mark.slow
def test_columns_and_dimensions_of_keops(require, compiled):
    require("keops")
    for case in ("plain", "shifted", "ragged"):
        check("keops", "gaussian", case, "float32", "value_and_gradient", 17, 3)


@pytest.mark.parametrize("backend", BACKENDS[:3])
def test_images_of_784_pixels(backend, require):
    require(backend)
    for op in ("product", "gradient"):
        check(backend, "gaussian", "plain", "float32", op, 784)


@pytest.mark.slow
def test_many_columns(require):
    for backend in ("numpy", "numba-cpu"):
        check(backend, "laplace", "plain", "float32", "product", 3, 33)
        check(backend, "laplace", "plain", "float64", "value_and_gradient", 3, 17)


def test_absent_sources(backend):
    dtype = "float32"
    X, Y = points("plain", dtype)
    K = gk.Gaussian(0.8)(X, Y, backend=backend)
    nothing = np.full(50, -np.inf, dtype)
    value, gradient = K.logsumexp_and_gradient(nothing)
    assert np.isneginf(value).all()
    assert np.isneginf(K.logsumexp(nothing)).all()
    assert not gradient.any()
    one = nothing.copy()
    one[3] = 0
    alone = gk.Gaussian(0.8)(X, Y[3:4], backend=backend).logsumexp(np.zeros(1, dtype))
    bound = tolerance(K.kernel, X, Y, one, "logsumexp")
    assert (abs(K.logsumexp(one) - alone) <= 2 * bound).all()


@pytest.mark.parametrize("name", KERNELS)
def test_symmetric_and_adjoint(backend, name):
    X, Y = points("plain", "float32")
    rng = np.random.default_rng(1)
    u, v, w = (rng.normal(size=k).astype("float32") for k in (40, 50, 40))
    kernel = KERNELS[name]
    K, S = kernel(X, Y, backend=backend), kernel(X, backend=backend)
    forward, back = tolerance(kernel, X, Y, v), tolerance(kernel, Y, X, u)
    first, second = tolerance(kernel, X, X, w), tolerance(kernel, X, X, u)
    dot = lambda a, b: (
        a.astype(float) @ b.astype(float)
    )  # the inner products are not what is tested
    assert abs(dot(u, K @ v) - dot(K.T @ u, v)) <= dot(abs(u), forward) + dot(abs(v), back)
    assert np.array_equal(K.T @ u, K.rmatvec(u))
    assert abs(dot(u, S @ w) - dot(w, S @ u)) <= dot(abs(u), first) + dot(abs(w), second)
    dense = S.to_dense()
    assert np.array_equal(dense, dense.T)


@pytest.mark.parametrize("name", KERNELS)
def test_linear_and_shift_invariant(backend, name):
    # Coordinates on a grid of 1/1024 may be moved by 64 in float32 without any rounding.
    rng = np.random.default_rng(2)
    X, Y = (rng.integers(-4096, 4096, size=(k, 3)).astype("float32") / 1024 for k in (40, 50))
    v, w = rng.normal(size=(2, 50)).astype("float32")
    kernel = KERNELS[name]
    K = kernel(X, Y, backend=backend)
    value, gradient = K.value_and_gradient(v)
    bound, gradient_bound = tolerance(kernel, X, Y, v, "value_and_gradient")
    moved = kernel(X + 64, Y + 64, backend=backend)
    value_moved, gradient_moved = moved.value_and_gradient(v)
    assert (abs(value_moved - value) <= 2 * bound).all()
    assert (abs(gradient_moved - gradient) <= 2 * gradient_bound).all()
    # 2 v is exact; the sum of v and w is rounded once, which its own tolerance covers.
    combined = bound + 2 * tolerance(kernel, X, Y, w) + tolerance(kernel, X, Y, abs(v) + abs(2 * w))
    assert (abs(K @ (v + 2 * w) - (K @ v + 2 * (K @ w))) <= combined).all()


@pytest.mark.parametrize("name", KERNELS)
def test_gradient_against_finite_differences(backend, name):
    rng = np.random.default_rng(3)
    X = 2 * rng.normal(size=(20, 3))
    # no pair near a kink
    Y = X[rng.integers(0, 20, size=25)] + rng.choice([-0.7, 0.7], size=(25, 3))
    v, b = rng.normal(size=(2, 25))
    kernel, h = KERNELS[name], 1e-4
    K = kernel(X, Y, backend=backend)
    cases = [("value_and_gradient", v)]
    if name in LOG_KERNELS:
        cases.append(("logsumexp_and_gradient", b))
    for op, w in cases:
        gradient, bounds = apply(K, op, w)[1], tolerance(kernel, X, Y, w, op)[0]
        for axis, direction in enumerate(np.eye(3)):

            def quotient(step, op=op, w=w, direction=direction):
                above, below = (
                    apply(kernel(X + s * direction, Y, backend=backend), op, w)[0]
                    for s in (step, -step)
                )
                return (above - below) / (2 * step)

            fine, coarse = quotient(h), quotient(2 * h)
            # the error of the quotient falls fourfold from 2h to h, so their difference is three times what is left
            assert (abs(gradient[:, axis] - fine) <= abs(coarse - fine) + 2 * bounds / h).all()


@pytest.mark.parametrize("backend", ["numpy", pytest.param("numba-cpu", marks=pytest.mark.slow)])
def test_conformance_suite(backend):
    shapes = [(1, 1, 3, 1), (9, 257, 3, 1)]  # of one d and t, so that a program is compiled once
    report = check_backend(backend, shapes=shapes)
    assert report.checked > 200
    assert not report.refused


@pytest.mark.slow
@pytest.mark.parametrize("op", ["product", "value_and_gradient", "logsumexp"])
def test_a_million_sources_cost_no_digits(backend, op):
    """Equal addends in one float32 accumulator are 84 tolerances away at a million."""
    if backend == "numpy":
        pytest.skip("numpy sums in float64")
    rng = np.random.default_rng(4)
    X = rng.normal(size=(2, 3)).astype("float32")
    Y = np.repeat(rng.normal(size=(1, 3)), 1_000_000, axis=0).astype("float32")
    v = np.full(len(Y), 0.1, "float32")
    kernel = KERNELS["gaussian"]
    results = apply(kernel(X, Y, backend=backend), op, v)
    exact = getattr(oracle, op)(oracle.terms_of(kernel), X, Y, v)
    bounds = tolerance(kernel, X, Y, v, op)
    pair = lambda x: x if isinstance(x, tuple) else (x,)
    assert_within(results, pair(exact), pair(bounds), f"{backend} {op}")


@pytest.mark.parametrize("backend", ["numpy", "numba-cpu"])
def test_results_beyond_the_dtype_are_infinite_without_a_warning(backend):
    X = np.array([[0.0], [1e-20]], np.float32)
    gradient = gk.Gaussian(1e-20)(X, backend=backend).gradient(np.full(2, 1e30))
    assert np.isinf(gradient).all()
