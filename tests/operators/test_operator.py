"""KernelOperator as a matrix of SciPy, and its laziness, which is tested by memory."""

import tracemalloc
from inspect import signature

import numpy as np
import oracle
import pytest
from scipy.sparse.linalg import LinearOperator, aslinearoperator, cg, eigsh

import gpukoop as gk
from gpukoop.testing import tolerance

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(60, 2)), RNG.normal(size=(40, 2))
V, W = RNG.normal(size=40), RNG.normal(size=(40, 3))
KERNEL = gk.Matern32(1.2)
# SciPy 1.12 renamed it
NO_RTOL = {"rtol" if "rtol" in signature(cg).parameters else "tol": 0.0}


@pytest.fixture(params=["numpy", "numba-cpu"])
def K(request):
    return KERNEL(X, Y, backend=request.param)


def test_speaks_scipy(K):
    assert K.shape == (60, 40)
    assert K.dtype == float
    assert K.ndim == 2
    assert np.array_equal(K @ V, K.matvec(V))
    assert np.array_equal(K @ W, K.matmat(W))
    assert (K @ W).shape == (60, 3)
    assert (K @ W[:, :1]).shape == (60, 1)
    assert K.rmatvec(X[:, 0]).shape == (40,)
    assert K.rmatmat(X).shape == (40, 2)


def test_columns_are_single_products(K):
    for column, alone in zip((K @ W).T, W.T, strict=True):
        assert (abs(column - K @ alone) <= 2 * tolerance(KERNEL, X, Y, alone)).all()
    assert K.gradient(W).shape == (60, 3, 2)
    value, gradient = K.value_and_gradient(W)
    assert value.shape == (60, 3)
    for c in range(3):
        bounds = tolerance(KERNEL, X, Y, W[:, c], "value_and_gradient")
        assert (abs(value[:, c] - K @ W[:, c]) <= 2 * bounds[0]).all()
        assert (abs(gradient[:, c] - K.gradient(W[:, c])) <= 2 * bounds[1]).all()


def test_transpose(K):
    assert K.T.shape == (40, 60)
    assert K.T.T.shape == K.shape
    assert K.H.shape == K.T.shape
    assert np.array_equal(K.T.to_dense(), K.to_dense().T)
    assert K.T.explain().backend == K.explain().backend
    u = RNG.normal(size=60)
    assert (abs(K.T @ u - K.to_dense().T @ u) <= 2 * tolerance(KERNEL, Y, X, u)).all()


def test_to_dense_and_diagonal(K):
    exact = oracle.matrix(oracle.terms_of(KERNEL), X, Y)
    unit = tolerance(KERNEL, X, Y, np.eye(40))  # one source a column
    assert (abs(K.to_dense() - exact) <= unit).all()
    assert (abs(K.diagonal() - np.diag(exact)) <= np.diag(unit)).all()
    assert np.array_equal(KERNEL(X).diagonal(), np.ones(60))
    assert not gk.Energy()(X).diagonal().any()


def test_aslinearoperator(K):
    A = aslinearoperator(K)
    assert isinstance(A, LinearOperator)
    assert A.shape == K.shape
    assert A.dtype == K.dtype
    assert np.array_equal(A @ V, K @ V)
    assert np.array_equal(A.T @ X[:, 0], K.T @ X[:, 0])
    assert np.array_equal((2 * A) @ V, 2 * (K @ V))
    assert (A @ W).shape == (60, 3)  # SciPy goes column by column here
    assert np.array_equal((A.H @ A) @ V, K.T @ (K @ V))


@pytest.mark.parametrize("backend", ["numpy", "numba-cpu"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_eigsh(backend, dtype):
    Z = X.astype(dtype)
    S = gk.Gaussian(0.8)(Z, backend=backend)
    values, vectors = eigsh(S, k=4, v0=np.ones(60, dtype))
    exact = np.linalg.eigvalsh(oracle.matrix(oracle.terms_of(gk.Gaussian(0.8)), Z, Z).astype(float))
    # Weyl: eigenvalues move by at most the norm of the rounding of the matrix, and ARPACK stops at eps |lambda|
    rounding = tolerance(S.kernel, Z, Z, np.ones(60)).max() + 60 * np.finfo(dtype).eps * exact[-1]
    assert abs(np.sort(values) - exact[-4:]).max() <= rounding
    assert vectors.dtype == dtype


def test_conjugate_gradients(K):
    S = KERNEL(X, backend=K.backend)
    ridge = 0.1
    A = aslinearoperator(S) + ridge * aslinearoperator(np.eye(60))
    b = RNG.normal(size=60)
    target = 1e-10 * np.linalg.norm(b)
    solution, code = cg(A, b, **NO_RTOL, atol=target)
    assert code == 0
    # the recurrence's residual drifts from the true one by rounding only; |A| is at most 60 + ridge
    assert np.linalg.norm(S @ solution + ridge * solution - b) <= 2 * target


def test_cg_takes_it_unchanged():
    points = np.arange(6.0)[:, None]  # far apart: well conditioned
    S = gk.Gaussian(0.5)(points, backend="numpy")
    b = RNG.normal(size=6)
    solution, code = cg(S, b, **NO_RTOL, atol=1e-12)
    assert code == 0
    assert np.linalg.norm(S @ solution - b) <= 2e-12


def test_numpy_on_the_left_is_refused_in_words_of_python():
    with pytest.raises(TypeError, match="unsupported operand"):
        V @ KERNEL(X, Y)


def test_repr_and_explain(K):
    assert repr(K) == "KernelOperator(Matern32(scale=1.2), 60 x 40, d=2, float64, numpy on cpu)"
    for op in ("product", "gradient", "value_and_gradient", "logsumexp", "logsumexp_and_gradient"):
        explanation = K.explain(op)
        assert explanation.backend == K.backend
        assert f"{op} for 60 x 40 points in 2 dimensions" in str(explanation)
    assert K.explain(t=7).request.t == 7
    assert "1 dimension (" in str(KERNEL(X[:, :1]).explain())


def test_median_scale_is_resolved_from_the_sources():
    from scipy.spatial.distance import pdist

    K = gk.Gaussian("median")(X, Y)
    expected = np.sqrt(np.median(pdist(Y, "sqeuclidean")) / (2 * np.log(len(Y) + 1)))
    assert K.kernel.scale == pytest.approx(expected, rel=4 * np.finfo(float).eps)
    mixed = (gk.Gaussian("median") + gk.Laplace(2.0))(X, Y)
    assert [k.scale for _, k in mixed.kernel.terms] == [K.kernel.scale, 2.0]
    big = RNG.normal(size=(5000, 2))  # subsampled
    scale = gk.Gaussian("median")(big).kernel.scale
    whole = np.sqrt(np.median(pdist(big, "sqeuclidean")) / (2 * np.log(5001)))
    assert (
        abs(scale / whole - 1) <= 0.05
    )  # 2,000 of 5,000 points: five standard errors of a median are 4 percent


@pytest.mark.parametrize("size", [1e-140, 1e-8, 1e8, 1e140])
def test_median_scale_follows_the_units(size):
    # 140: squares leave the range of float64, the scale does not
    expected = gk.Gaussian("median")(Y).kernel.scale
    assert gk.Gaussian("median")(size * Y).kernel.scale == pytest.approx(size * expected, rel=1e-12)


def test_median_scale_of_repeated_points():
    repeated = np.concatenate([Y, np.zeros((10 * len(Y), Y.shape[1]))])
    assert np.isfinite(gk.Gaussian("median")(repeated).kernel.scale)


def test_explain_counts_columns(K):
    with pytest.raises(ValueError, match="t is 0"):
        K.explain("product", t=0)


def test_points_are_stored_once():
    K = KERNEL(X)
    assert K.Y is K.X
    assert np.shares_memory(K.X, X)
    assert K.T.X is K.X


def test_to_dense_of_far_points_is_finite():
    far = np.array([[0.0], [1e150]])
    assert np.isfinite(KERNEL(far, backend="numpy").to_dense()).all()


def extra_memory(function):
    """Return the largest extra memory of a second call in bytes; the first compiles. NumPy and Numba both report to tracemalloc."""
    function()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        function()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["numpy", "numba-cpu"])
def test_lazy_by_memory(backend):
    """The matrix would be 1.6 GB."""
    if backend == "numpy":
        points = RNG.normal(size=(20_000, 3)).astype("float32")
        K = KERNEL(points[:2_000], points, backend=backend)  # row blocks: a tenth of the rows tells
    else:
        points = RNG.normal(size=(20_000, 3)).astype("float32")
        K = KERNEL(points, backend=backend)
    assert extra_memory(lambda: K @ np.ones(20_000, "float32")) < 200e6


@pytest.mark.slow
@pytest.mark.parametrize("op", ["matvec", "value_and_gradient"])
def test_a_hundred_thousand_points_by_memory(op):
    """Measured by the operating system too, since compiled code need not tell Python what it takes."""
    resource = pytest.importorskip("resource")
    points = RNG.normal(size=(100_000, 3)).astype("float32")
    v = np.ones(len(points), "float32")
    gk.Gaussian()(points[:100], backend="numba-cpu").value_and_gradient(v[:100])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    K = gk.Gaussian()(points, backend="numba-cpu")
    assert K.explain().backend == "numba-cpu"
    result = getattr(K, op)(v)
    assert np.isfinite(result[0]).all()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300e3  # in kB
