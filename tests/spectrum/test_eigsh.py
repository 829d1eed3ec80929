"""eigsh against numpy.linalg, on operators that break one-vector methods."""

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
from sklearn.exceptions import ConvergenceWarning

import gpukoop as gk
from gpukoop.spectrum import eigsh
from gpukoop.spectrum.eigsh import eigenpairs
from gpukoop.spectrum.krylov import ROUNDING
from gpukoop.spectrum.markov import MarkovOperator, sampling_weights


def points(n, d, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(dtype)


def residual(A, values, vectors):
    R = A @ vectors - vectors * values
    return np.linalg.norm(R, axis=0).max() / np.abs(values).max()


@pytest.mark.parametrize("method", ["auto", "block", "lanczos", "dense"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_agrees_with_numpy(method, dtype):
    K = gk.Gaussian(0.5)(points(700, 3, dtype))
    dense = K.to_dense().astype(float)
    exact = np.linalg.eigvalsh(dense)[::-1][:20]
    values, vectors = eigsh(K, 20, method=method, random_state=0)
    bound = 4 * ROUNDING * np.finfo(dtype).eps * exact[0]
    assert values.dtype == vectors.dtype == dtype
    assert np.abs(values - exact).max() < bound
    assert residual(dense, values.astype(float), vectors.astype(float)) < bound
    assert np.abs(vectors.T @ vectors - np.eye(20)).max() < 100 * np.finfo(dtype).eps


@pytest.mark.parametrize("k", [10, 20])
def test_rank_below_the_subspace(k):
    """The float32 Gaussian on the line has numerical rank 15: one-vector Lanczos returns NaN on it."""
    X = points(1200, 1, np.float32)
    exact = np.linalg.eigvalsh(gk.Gaussian(3.0)(X.astype(float)).to_dense())[::-1][:k]
    values, vectors = eigsh(gk.Gaussian(3.0)(X), k, method="block", random_state=0)
    assert np.isfinite(vectors).all()
    assert np.abs(values - exact).max() < ROUNDING * np.finfo(np.float32).eps * exact[0]
    assert np.abs(vectors.T @ vectors - np.eye(k)).max() < 1e-5


def test_multiplicity_above_the_block():
    diagonal = np.concatenate([np.ones(40), np.zeros(960)])
    A = scipy.sparse.diags(diagonal).tocsr()
    values, _ = eigsh(A, 45, method="block", random_state=0)
    assert np.allclose(values[:40], 1.0)
    assert np.allclose(values[40:], 0.0)


def test_restart_and_algebraic_order():
    """Largest algebraic, not largest modulus; slow decay forces restarts."""
    diagonal = np.concatenate([[-5.0, -4.0], 1.0 / np.arange(1, 1500)])
    pairs = eigenpairs(scipy.sparse.diags(diagonal), 6, method="block", tol=1e-9, random_state=1)
    assert np.allclose(pairs.values, 1.0 / np.arange(1, 7), atol=5e-9)
    assert pairs.residual <= 1e-9


class OnlyMatvec:
    """The least that eigsh asks for."""

    def __init__(self, A):
        self.A, self.shape, self.dtype = A, A.shape, A.dtype

    def matvec(self, x):
        return self.A @ x


def test_every_kind_of_operator():
    B = points(60, 60)
    A = B @ B.T
    exact = np.linalg.eigvalsh(A)[::-1][:3]
    linear = scipy.sparse.linalg.aslinearoperator(A)
    for operator in (A, scipy.sparse.csr_matrix(A), linear, OnlyMatvec(A)):
        for method in ("block", "dense"):
            values, _ = eigsh(operator, 3, method=method, random_state=0)
            assert np.allclose(values, exact, rtol=1e-12)
    assert np.allclose(eigsh(A, 60)[0], np.linalg.eigvalsh(A)[::-1], atol=1e-10)


def test_a_fifth_of_arpack_products():
    """32 pairs of a diffusion map at the same residual: at most a fifth of ARPACK's visits to all entries."""
    X = points(2500, 3)
    K = gk.Gaussian(0.5)(X)
    S = MarkovOperator(K, sampling_weights(K, np.ones(len(X)), 0.5)[1])
    block = eigenpairs(S, 32, method="block", tol=1e-7, random_state=0)
    arpack = eigenpairs(S, 32, method="lanczos", tol=1e-7, random_state=0)
    assert block.residual <= 1e-7
    assert 5 * block.passes <= arpack.passes
    assert np.allclose(block.values, arpack.values, atol=1e-7)


def test_same_seed_same_bits():
    K = gk.Gaussian(0.5)(points(800, 2))
    first, second = (eigsh(K, 5, random_state=3)[1] for _ in range(2))
    assert (first == second).all()


def test_errors_in_words():
    A = np.eye(5)
    with pytest.raises(ValueError, match="expected \\(n, n\\)"):
        eigsh(np.ones((5, 4)), 2)
    with pytest.raises(ValueError, match="k is 6, A has 5 eigenvalues"):
        eigsh(A, 6)
    with pytest.raises(ValueError, match="unknown method 'magic'"):
        eigsh(A, 2, method="magic")
    with pytest.raises(ValueError, match="tol is -1"):
        eigsh(A, 2, tol=-1)
    with pytest.raises(ValueError, match="NaN"):
        eigsh(np.full((5, 5), np.nan), 2, method="block")
    for method in ("block", "dense", "auto"):
        with pytest.raises(ValueError, match="not symmetric"):
            eigsh(np.triu(points(50, 50)), 2, method=method)
    for tol in (None, "small", np.nan, True):
        with pytest.raises(ValueError, match=r"tol is .*expected a number in"):
            eigsh(A, 2, tol=tol)


def test_noisy_products_warn_and_stay_finite():
    B = points(300, 300)
    rng = np.random.default_rng(0)

    class Noisy(OnlyMatvec):
        def matvec(self, x):
            y = self.A @ x
            return y * (1 + 1e-6 * rng.normal(size=len(y)))

    with pytest.warns(ConvergenceWarning, match="no more accurate"):
        values, _ = eigsh(Noisy(B @ B.T), 4, method="block", tol=1e-13, random_state=0)
    assert np.allclose(values, np.linalg.eigvalsh(B @ B.T)[::-1][:4], rtol=1e-5)


def libraries():
    import array_api_strict

    # before NumPy 2.1 it does not hand on what came through DLPack, which is read-only there
    if np.lib.NumpyVersion(np.__version__) >= "2.1.0":
        yield "array_api_strict", array_api_strict.asarray
    torch = pytest.importorskip("torch")
    yield "torch", torch.from_numpy


class InTorch:
    """An operator whose products take and give tensors, and whose dtype is one of torch's."""

    def __init__(self, A):
        self.reference, self.shape, self.dtype = A, tuple(A.shape), A.dtype

    def matvec(self, x):
        assert type(x) is type(self.reference)
        return self.reference @ x


@pytest.mark.parametrize("n", [60, 700])  # dense, block
def test_results_are_in_the_library_of_the_operator(n):
    B = points(n, n) / np.sqrt(n)
    A, X = B @ B.T, points(n, 3, np.float32)
    K = gk.Gaussian(1.0)
    for name, make in libraries():
        cases = [
            (make(A), A),
            (K(make(X.copy())), K(X).to_dense()),
            (
                K(make(X.copy())) + 0.5 * gk.Identity(n),
                K(X).to_dense() + 0.5 * np.eye(n, dtype=np.float32),
            ),
        ]
        if name == "torch":
            cases.append((InTorch(make(A)), A))
        for operator, dense in cases:
            values, vectors = eigsh(operator, 3, random_state=0)
            assert type(values).__module__.partition(".")[0] == name
            assert type(values) is type(vectors)
            values, vectors = (np.asarray(a) for a in (values, vectors))
            assert vectors.shape == (n, 3)
            assert values.dtype == vectors.dtype == dense.dtype
            exact = np.linalg.eigvalsh(dense.astype(float))[::-1][:3]
            eps = np.finfo(values.dtype).eps
            assert np.abs(values - exact).max() < 4 * ROUNDING * eps * exact[0]
            assert residual(dense.astype(float), values, vectors) < 4 * ROUNDING * eps
