"""Arithmetic of lazy operators against that of their matrices."""

import numpy as np
import pytest
import scipy.sparse.linalg as sla

import gpukoop as gk
from gpukoop.algebra import Combination, Selection
from gpukoop.spectrum import eigsh

rng = np.random.default_rng(0)
X, Y = rng.normal(size=(40, 2)), rng.normal(size=(30, 2))
v = rng.normal(size=30)
G, L = gk.Gaussian(scale=1.0), gk.Laplace(scale=2.0)


def agree(operator, matrix, v):
    """To rounding: a few terms of some 40 addends, each right to 64 eps of its absolute sum."""
    size = (np.abs(matrix) @ np.abs(v)).max() + 1
    assert operator.shape == matrix.shape
    assert np.abs(operator @ v - matrix @ v).max() < 64 * np.finfo(float).eps * size
    assert np.abs(operator.matmat(np.stack([v, -v], 1))[:, 1] + matrix @ v).max() < 1e-12 * size
    u = np.linspace(-1, 1, matrix.shape[0])
    assert np.abs(operator.rmatvec(u) - u @ matrix).max() < 1e-12 * size
    assert np.abs(operator.to_dense() - matrix).max() < 1e-12
    assert np.abs(operator.T.to_dense() - matrix.T).max() < 1e-12


@pytest.mark.slow
def test_multiples_and_sums_of_kernels_are_one_pass():
    K, M = G(X, Y), L(X, Y)
    A, B = K.to_dense(), M.to_dense()
    for operator, matrix in [
        (2 * K, 2 * A),
        (-K, -A),
        (K / 4, A / 4),
        (np.float64(3) * K, 3 * A),
        (K + M, A + B),
        (K - 0.5 * M, A - 0.5 * B),
    ]:
        assert isinstance(operator, gk.KernelOperator)
        agree(operator, matrix, v)
    assert repr((K + M).kernel) == repr(G + L)


@pytest.mark.slow
def test_sums_on_other_points_are_lazy():
    K, M = G(X, Y), L(X, Y + 1.0)
    total = K + 2 * M - K
    assert isinstance(total, Combination)
    agree(total, 2 * M.to_dense(), v)
    # of another accuracy: not one pass, because each has promised its own
    assert isinstance(K + L(X, Y, tol=1e-3), Combination)
    # a kernel joins the term whose points it shares
    assert len((K + M + L(X, Y)).terms) == 2


def test_shifted_system_is_solved_by_scipy():
    K = G(X)
    A = K + 0.1 * gk.Identity(40)
    matrix = K.to_dense() + 0.1 * np.eye(40)
    agree(A, matrix, X[:, 0])
    assert np.abs(A.diagonal() - np.diag(matrix)).max() < 1e-14
    b = np.sin(np.arange(40.0))
    exact = np.linalg.solve(matrix, b)
    for solver in (sla.cg, sla.minres, sla.gmres):
        found, failed = solver(A, b, **({"rtol": 1e-10, "maxiter": 500}))
        assert failed == 0
        assert np.abs(found - exact).max() < 1e-6 * np.abs(exact).max()
    values, _ = eigsh(A, 3)
    assert values == pytest.approx(np.linalg.eigvalsh(matrix)[::-1][:3], rel=1e-12)
    assert len((A + gk.Identity(40) - 0.1 * gk.Identity(40)).terms) == 2
    assert A.dtype == np.float64
    assert (G(X.astype(np.float32)) + gk.Identity(40)).dtype == np.float32


@pytest.mark.parametrize(
    "rows", [slice(3, 30, 2), [5, 5, -1], np.arange(40) % 3 == 0, np.array([], int)], ids=repr
)
def test_some_rows_and_columns(rows):
    K = G(X, Y)
    A = K.to_dense()
    rows = rows if isinstance(rows, slice) else np.array(rows)
    if len(A[rows]):
        assert isinstance(K[rows], gk.KernelOperator)
        agree(K[rows], A[rows], v)
        agree(K[rows, 4:9], A[rows, 4:9], v[:5])
    S = G(X) + gk.Identity(40)
    M = S.to_dense()
    if len(A[rows]):
        agree(S[rows, rows], M[rows][:, rows], np.linspace(0, 1, len(M[rows])))


def test_a_square_of_rows_stays_symmetric():
    part = G(X)[:7, :7]
    assert part.X is part.Y
    assert isinstance(gk.Identity(5)[1:], Selection)


def test_blocks():
    k = G
    A = gk.Block([[k(X), k(X, Y)], [k(Y, X), None]])
    matrix = np.block(
        [[k(X).to_dense(), k(X, Y).to_dense()], [k(Y, X).to_dense(), np.zeros((30, 30))]]
    )
    agree(A, matrix, rng.normal(size=70))
    agree(A + gk.Identity(70), matrix + np.eye(70), rng.normal(size=70))
    agree(A[10:50, ::3], matrix[10:50, ::3], rng.normal(size=24))
    with pytest.raises(ValueError, match="row 0 of blocks has sizes"):
        gk.Block([[k(X), k(Y)]])
    with pytest.raises(ValueError, match="None alone has no size"):
        gk.Block([[k(X), None]])
    with pytest.raises(TypeError, match="a block is ndarray"):
        gk.Block([[np.eye(2)]])


def test_what_is_no_array_says_so():
    K = G(X)
    with pytest.raises(TypeError, match=r"A\.to_dense\(\) forms all 1600 numbers"):
        np.asarray(K)
    with pytest.raises(TypeError, match=r"write A \+ 0\.1 \* gpukoop\.Identity\(40\)"):
        K + 0.1
    with pytest.raises(TypeError, match="cannot add ndarray to a lazy operator"):
        K + np.eye(40)
    with pytest.raises(TypeError, match="cannot add ndarray to a lazy operator"):
        np.eye(40) + K
    with pytest.raises(TypeError, match="multiplied by a number, got ndarray"):
        K * np.ones(40)
    with pytest.raises(ValueError, match=r"shapes \(40, 40\) and \(40, 30\)"):
        K + G(X, Y)
    with pytest.raises(IndexError, match="is one row as an operator"):
        K[3]
    with pytest.raises(IndexError, match="rows reach from 0 to 40"):
        K[[0, 40]]
    with pytest.raises(ValueError, match="v has shape"):
        (K + gk.Identity(40)) @ np.ones(3)
    with pytest.raises(ZeroDivisionError):
        K / 0
    with pytest.raises(ValueError, match="finite"):
        K * np.inf
