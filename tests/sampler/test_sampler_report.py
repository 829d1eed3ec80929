"""The action of the exponential, the spectral report and its gate, projectors (T14)."""

import numpy as np
import pytest
from scipy.linalg import expm, toeplitz
from scipy.sparse.linalg import expm_multiply

from gpukoop.sampler import ExponentialOverflow, expm_action, mode_projector, spectral_report


def grcar(n):
    first = np.zeros(n)
    first[:2] = 1.0, -1.0
    row = np.zeros(n)
    row[:4] = 1.0
    return toeplitz(first, row)


def derivative_on_monomials(n):
    """d/dt on 1, t, t^2, ...: nilpotent, one Jordan block."""
    return np.diag(np.arange(1.0, n), 1)


def random_matrix(n=40):
    return np.random.default_rng(0).normal(size=(n, n)) / np.sqrt(n)


@pytest.mark.parametrize(
    "A", [grcar(200), derivative_on_monomials(30), random_matrix()], ids=["grcar", "d/dt", "random"]
)
def test_action_equals_the_exponential(A):
    rng = np.random.default_rng(1)
    b = rng.normal(size=(len(A), 3))
    for t in (1.0, -0.5, 0.0):
        exact = expm_multiply(t * A, b) if t else b
        scale = abs(exact).max()
        assert abs(expm_action(A, b, t) - exact).max() < 1e-12 * scale
        assert abs(expm_action(A, b[:, 0], t) - exact[:, 0]).max() < 1e-12 * scale
    assert abs(expm_action(A, np.eye(len(A))) - expm(A)).max() < 1e-12 * abs(expm(A)).max()


def test_action_of_a_stiff_matrix_goes_through_scaling_and_squaring():
    A = np.diag([-1e6, -1.0, 0.5])
    np.testing.assert_allclose(expm_action(A, np.ones(3)), np.exp([-1e6, -1.0, 0.5]), rtol=1e-9)


@pytest.mark.parametrize("A", [np.diag([800.0, 1.0]), 1e300 * np.ones((3, 3)), 40 * grcar(60)])
@pytest.mark.parametrize("t", [1.0, 30.0])
def test_overflow_is_named(A, t):
    b = np.ones((len(A), 1))
    with pytest.raises(ExponentialOverflow, match=r"overflows float64.*solver='sat'"):
        expm_action(A, b, max(t, 20.0) if A[0, 0] == 40.0 else t)
    assert issubclass(ExponentialOverflow, OverflowError)
    assert issubclass(ExponentialOverflow, ValueError)


def test_action_checks_its_input():
    A = np.eye(3)
    for bad, message in [
        ((np.ones((2, 3)), np.ones(3)), "A has shape"),
        ((A, np.ones(4)), "B has shape"),
        ((A * np.nan, np.ones(3)), "A contains NaN"),
        ((A, [np.inf, 0, 0]), "B contains NaN or inf"),
        ((A, np.ones(3), np.inf), "t must be a finite number"),
    ]:
        with pytest.raises(ValueError, match=message):
            expm_action(*bad)
    assert (expm_action(np.zeros((2, 2), dtype=int), [1, 2]) == [1.0, 2.0]).all()


def test_modal_gate():
    jordan = np.diag(np.full(4, 0.5)) + np.diag(np.ones(3), 1)
    for A in (grcar(200), jordan, derivative_on_monomials(30)):
        report = spectral_report(A)
        assert not report.modal
        assert report.condition > 1e8
        with pytest.raises(ValueError, match="exceeds"):
            _ = report.modes
        assert "refused" in str(report)
    report = spectral_report(random_matrix())
    assert report.modal
    V = report.modes
    assert np.linalg.norm(random_matrix() @ V - V * report.eigenvalues) < 1e-12
    assert "accepted" in str(report)
    assert "every number is an eigenvalue" in str(report)


def test_report_numbers():
    report = spectral_report(derivative_on_monomials(30))
    assert report.spectral_abscissa == pytest.approx(0.0, abs=1e-10)
    assert report.numerical_abscissa == pytest.approx(25.0, rel=0.05)
    assert report.exponential_norm == pytest.approx(
        np.linalg.norm(expm(derivative_on_monomials(30)), 2)
    )
    normal = spectral_report(np.diag([-1.0, 0.0, 2.0]))
    assert (normal.eigenvalues == [2.0, 0.0, -1.0]).all()
    assert normal.condition == pytest.approx(1.0)
    assert normal.numerical_abscissa == pytest.approx(2.0)
    assert normal.residual < 1e-15
    assert spectral_report(np.diag([800.0, 0.0])).exponential_norm is None


def test_projector():
    A = np.random.default_rng(3).normal(size=(12, 12))
    for select in (lambda v: v.real > 0, lambda v: abs(v) > 2, lambda v: abs(v.imag) > 0):
        P = mode_projector(A, select)
        assert abs(P @ P - P).max() < 1e-11
        assert abs(P @ A - A @ P).max() < 1e-11
        rest = mode_projector(A, lambda v, s=select: ~s(v))
        assert abs(P + rest - np.eye(12)).max() < 1e-11
    assert (mode_projector(A, lambda v: v.real < np.inf) == np.eye(12)).all()
    assert not mode_projector(A, []).any()


def test_projector_differs_from_the_pseudo_inverse_of_eigenvectors():
    A = np.random.default_rng(3).normal(size=(12, 12))
    values, V = np.linalg.eig(A)
    kept = values.real > 0
    orthogonal = (V[:, kept] @ np.linalg.pinv(V[:, kept])).real
    assert abs(orthogonal - mode_projector(A, lambda v: v.real > 0)).max() > 0.1


def test_projector_keeps_jordan_blocks_whole():
    A = np.zeros((4, 4))
    A[:2, :2] = [[0, 1], [0, 0]]
    A[2:, 2:] = np.diag([1.0, 2.0])
    A[0, 3] = 0.3
    P = mode_projector(A, lambda v: abs(v) < 0.5)
    assert abs(P @ P - P).max() < 1e-14
    assert abs(P @ A - A @ P).max() < 1e-14
    assert np.trace(P) == pytest.approx(2.0)


def test_projector_wants_both_of_a_pair():
    A = np.array([[0.0, 1.0], [-1.0, 0.0]])
    with pytest.raises(ValueError, match="not its conjugate"):
        mode_projector(A, [0])
