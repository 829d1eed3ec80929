"""Systems, log-determinants, traces and slopes in the scales, against dense algebra and scikit-learn."""

import warnings
from collections import Counter
from copy import copy

import numpy as np
import pytest
from devices import KINDS, host, with_values
from scipy.spatial.distance import cdist
from sklearn.exceptions import ConvergenceWarning
from sklearn.kernel_ridge import KernelRidge

import gpukoop as gk
from gpukoop.backends import FourierBackend, NumbaCPUBackend
from gpukoop.linear.system import System

RNG = np.random.default_rng(0)
X = RNG.normal(size=(400, 3))
Y = np.stack([np.sin(2 * X).sum(axis=1), X[:, 0] * X[:, 1], RNG.normal(size=400)], axis=1)
RIDGE = 1e-2


@pytest.mark.parametrize("preconditioner", ["nystroem", None])
@pytest.mark.parametrize("kernel", [gk.Gaussian(1.0), gk.Matern32(0.7) + 0.5 * gk.Gaussian(2.0)])
def test_solutions_are_those_of_dense_algebra(kernel, preconditioner):
    K = kernel(X)
    A = K.to_dense() + RIDGE * np.eye(400)
    found, info = gk.solve(
        K, Y, ridge=RIDGE, preconditioner=preconditioner, tol=1e-9, return_info=True
    )
    assert info.converged
    # what is reported is what it is
    residual = np.linalg.norm(Y - A @ found, axis=0) / np.linalg.norm(Y, axis=0)
    np.testing.assert_allclose(info.residual, residual, rtol=1e-3, atol=1e-13)
    assert residual.max() <= 1e-9
    # |x - exact| <= |A^-1| |residual|
    exact = np.linalg.solve(A, Y)
    bound = 1e-9 * np.linalg.norm(Y, axis=0) / np.linalg.eigvalsh(A)[0]
    assert (np.linalg.norm(found - exact, axis=0) <= 1.01 * bound).all()
    assert gk.solve(K, Y[:, 0], ridge=RIDGE).shape == (400,)


def test_the_preconditioner_saves_iterations():
    K = gk.Gaussian(1.0)(X)
    _, with_it = gk.solve(K, Y[:, 0], ridge=RIDGE, return_info=True)
    _, without = gk.solve(K, Y[:, 0], ridge=RIDGE, preconditioner=None, return_info=True)
    assert with_it.rank > 0 == without.rank
    assert 5 * with_it.n_iter <= without.n_iter


def test_a_shift_in_the_operator_is_a_ridge():
    K = gk.Gaussian(1.0)(X)
    one = gk.solve(K + 0.25 * gk.Identity(400), Y, ridge=0.5)
    np.testing.assert_allclose(one, gk.solve(K, Y, ridge=0.75), rtol=1e-9)
    K2 = K + 2.0 * gk.Gaussian(0.3)(X[:, :2])  # two clouds: a sum of two products
    A = K2.to_dense() + RIDGE * np.eye(400)
    found = gk.solve(K2, Y, ridge=RIDGE, tol=1e-10)
    np.testing.assert_allclose(A @ found, Y, atol=1e-8)


def test_columns_of_any_size_share_their_products():
    columns = Y * [1e-200, 1e200, 0.0]
    found = gk.solve(gk.Gaussian(1.0)(X), columns, ridge=RIDGE)
    alone = gk.solve(gk.Gaussian(1.0)(X), Y[:, 0], ridge=RIDGE)
    np.testing.assert_allclose(found[:, 0] * 1e200, alone, rtol=1e-4, atol=1e-4 * abs(alone).max())
    assert (found[:, 2] == 0).all()
    assert np.isfinite(found).all()


def test_what_cannot_be_solved_is_said():
    K = gk.Gaussian(1.0)(X)
    with pytest.raises(ValueError, match="not positive definite"):
        gk.solve(gk.Energy()(X), Y)
    with pytest.raises(ValueError, match="not positive definite"):
        gk.solve(-1.0 * K, Y, ridge=0.1, preconditioner=None)
    with pytest.raises(ValueError, match="not positive definite"):
        gk.logdet(gk.Energy()(X), ridge=0.1, preconditioner=None)
    with pytest.raises(ValueError, match="square"):
        gk.solve(gk.Gaussian(1.0)(X, X[:10]), Y)
    with pytest.raises(ValueError, match="not symmetric"):
        gk.solve(gk.Gaussian(1.0)(X, X[::-1]), Y, ridge=0.1)
    with pytest.raises(ValueError, match="one value per row"):
        gk.solve(K, Y[:10])
    with pytest.raises(ValueError, match="'nystroem' or None"):
        gk.solve(K, Y, preconditioner="ilu")
    with pytest.raises(TypeError, match="lazy operator"):
        gk.solve(K.to_dense(), Y)
    with pytest.warns(ConvergenceWarning, match="raise max_iter"):
        _, info = gk.solve(K, Y, ridge=1e-6, preconditioner=None, max_iter=3, return_info=True)
    assert not info.converged
    assert info.n_iter == 3


def test_float32_points_say_how_far_they_come():
    K = gk.Gaussian(1.0)(X.astype(np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gk.solve(K, Y, ridge=1.0, tol=1e-5)
    with pytest.warns(ConvergenceWarning, match="float64"):
        gk.solve(K, Y, ridge=1e-4, tol=1e-12)


@pytest.mark.slow
def test_kernel_ridge_predicts_as_scikit_learns():
    """n = 5,000: test errors agree to what the residual leaves."""
    rng = np.random.default_rng(1)
    P = rng.uniform(-2, 2, size=(6_000, 3))
    z = np.sin(P).sum(axis=1) * P[:, 0] + 0.1 * rng.normal(size=6_000)
    P, Q, z, new = P[:5_000], P[5_000:], z[:5_000], z[5_000:]
    scale, ridge = 0.8, 0.1
    theirs = KernelRidge(alpha=ridge, kernel="rbf", gamma=1 / (2 * scale**2)).fit(P, z).predict(Q)
    kernel = gk.Gaussian(scale)
    ours = kernel(Q, P) @ gk.solve(kernel(P), z, ridge=ridge, tol=1e-8)
    error = lambda guess: np.sqrt(np.mean((guess - new) ** 2))
    assert error(ours) == pytest.approx(error(theirs), rel=1e-6)
    assert 0.09 < error(ours) < 0.12  # the noise is .1


@pytest.mark.parametrize("preconditioner", ["nystroem", None])
def test_log_determinants_lie_within_their_errors(preconditioner):
    """Of 12 estimates no more than two miss by two errors (chance of three: .02), and none by five."""
    K = gk.Matern32(1.0)(X)
    exact = np.linalg.slogdet(K.to_dense() + RIDGE * np.eye(400))[1]
    found = [
        gk.logdet(
            K, ridge=RIDGE, preconditioner=preconditioner, rank=150, random_state=i, max_iter=200
        )
        for i in range(12)
    ]
    score = np.array([(value - exact) / error for value, error in found])
    assert (abs(score) > 2).sum() <= 2
    assert abs(score).max() < 5
    if preconditioner:
        assert max(error for _, error in found) < 0.02 * abs(exact)


def test_traces_of_functions():
    K = gk.Gaussian(1.0)(X)
    e = np.linalg.eigvalsh(K.to_dense()) + RIDGE
    for f in (lambda e: 1 / e, np.sqrt, lambda e: e / (e + 1)):
        value, error = gk.trace(K, f, ridge=RIDGE, n_probes=32)
        assert abs(value - f(e).sum()) < 4 * error
        assert error < 0.2 * f(e).sum()
    assert gk.trace(K, ridge=RIDGE) == (pytest.approx(e.sum(), rel=1e-12), 0.0)
    # few points: the iteration ends in an invariant subspace
    small = gk.Gaussian(1.0)(X[:3])
    value, _ = gk.trace(small, np.exp, n_probes=400)
    exact = np.exp(np.linalg.eigvalsh(small.to_dense())).sum()
    assert value == pytest.approx(exact, rel=0.1)
    with pytest.raises(ValueError, match="finite number for every eigenvalue"):
        gk.trace(K, lambda e: np.log(e - 1e9), ridge=RIDGE)


def test_steps_that_do_not_resolve_a_function_are_told():
    """Every step changes little where hundreds are needed: half of them are what a rule is compared with."""
    points = np.random.default_rng(0).normal(size=(800, 3))
    K = gk.Gaussian(1.0)(points)
    e = np.linalg.eigvalsh(K.to_dense()).clip(0)
    for shift, steps in ((1e-4, 100), (1e-2, 20)):
        with pytest.warns(ConvergenceWarning, match="not resolved"):
            gk.trace(K, lambda e, shift=shift: e / (e + shift), max_iter=steps)
    value, error = gk.trace(K, lambda e: e / (e + 1e-2))
    assert abs(value - (e / (e + 1e-2)).sum()) < 4 * error


def long_double(kernel, scale, A, B, u, v):
    """u' K v in 80-bit numbers."""
    A, B = (a.astype(np.longdouble) / np.asarray(scale, np.longdouble) for a in (A, B))
    s = ((A[:, None] - B[None]) ** 2).sum(axis=2)
    k = {
        "Gaussian": lambda s: np.exp(-s / 2),
        "Matern32": lambda s: (1 + np.sqrt(3 * s)) * np.exp(-np.sqrt(3 * s)),
        "InverseMultiquadric": lambda s: (1 + s) ** np.longdouble(-0.5),
    }[kernel](s)
    return float("nan") if k.dtype != np.longdouble else (u * (k @ v)).sum()


@pytest.mark.parametrize("name", ["Gaussian", "Matern32", "InverseMultiquadric"])
@pytest.mark.parametrize("each", [False, True], ids=["one scale", "a scale for each feature"])
def test_slopes_in_the_scales(name, each):
    A, B = X[:60] + 100.0, X[60:130] + 100.0
    u, v = Y[:60, :2], Y[60:130, :2]
    scale = np.array([0.7, 1.1, 2.0]) if each else np.array(0.8)
    found = gk.scale_derivative(getattr(gk, name)(scale if each else 0.8)(A, B), u, v)
    assert found.shape == scale.shape
    h = np.longdouble(1e-6)
    for c in np.ndindex(scale.shape):
        up, down = (scale.astype(np.longdouble) for _ in range(2))
        up[c] += h
        down[c] -= h
        exact = float(
            (long_double(name, up, A, B, u, v) - long_double(name, down, A, B, u, v)) / (2 * h)
        )
        assert found[c] == pytest.approx(exact, rel=1e-9, abs=1e-9)


def test_slopes_of_sums_and_what_has_none():
    u = Y[:, 0]
    kernel = 2.0 * gk.Gaussian(0.5) + gk.Laplace(1.5)
    found = gk.scale_derivative(kernel(X), u)
    parts = [gk.scale_derivative(k(X), u) for k in (gk.Gaussian(0.5), gk.Laplace(1.5))]
    np.testing.assert_allclose(found, [2 * parts[0], parts[1]], rtol=1e-12)
    for bad in (gk.Energy(), gk.Gaussian(1.0) * gk.Laplace(1.0)):
        with pytest.raises(ValueError, match="no single scale"):
            gk.scale_derivative(bad(X), u)
    with pytest.raises(TypeError, match="no function of the distance"):
        gk.scale_derivative(gk.Cosine()(X), u)
    with pytest.raises(ValueError, match="pass v"):
        gk.scale_derivative(gk.Gaussian(1.0)(X, X[:9]), u)


def test_torch_tensors_come_back():
    torch = pytest.importorskip("torch")
    K = gk.Gaussian(1.0)(torch.from_numpy(X))
    found = gk.solve(K, torch.from_numpy(Y), ridge=RIDGE)
    assert isinstance(found, torch.Tensor)
    np.testing.assert_allclose(
        found.numpy(), gk.solve(gk.Gaussian(1.0)(X), Y, ridge=RIDGE), rtol=1e-6
    )
    here, there = (gk.logdet(gk.Gaussian(1.0)(A), ridge=RIDGE) for A in (X, torch.from_numpy(X)))
    assert there == pytest.approx(here, rel=1e-9)
    scale = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    P, u = torch.from_numpy(X), torch.from_numpy(Y[:, 0].copy())
    (u @ gk.torch.product(gk.Gaussian(0.8), P, P, u, scale=scale)).backward()
    own = gk.scale_derivative(gk.Gaussian(0.8)(P), u)
    assert float(scale.grad) == pytest.approx(float(own), rel=1e-10)


@pytest.fixture(params=KINDS)
def lent(request):
    with with_values(request) as found:
        yield found


def test_on_a_device(lent):
    there = lent.cupy.asarray(X)
    here = gk.Gaussian(1.0)(X, backend="numpy")
    K = gk.Gaussian(1.0)(there, backend="numba-cuda")
    found = gk.solve(K, lent.cupy.asarray(Y), ridge=RIDGE, tol=1e-9)
    assert type(found).__module__.partition(".")[0] == "cupy"
    np.testing.assert_allclose(host(found), gk.solve(here, Y, ridge=RIDGE, tol=1e-9), atol=1e-5)
    for call in (
        lambda K: gk.logdet(K, ridge=RIDGE).value,
        lambda K: gk.trace(K, np.sqrt, ridge=RIDGE).value,
        lambda K: gk.scale_derivative(K, Y),
    ):
        np.testing.assert_allclose(call(K), call(here), rtol=1e-6)


def counting(monkeypatch):
    """Return who ran how many sums, filled as they run."""
    ran = Counter()
    run = FourierBackend.run, NumbaCPUBackend.run
    for backend, of in zip((FourierBackend, NumbaCPUBackend), run, strict=True):

        def counted(self, request, V, of=of):
            ran[self.name] += 1
            return of(self, request, V)

        monkeypatch.setattr(backend, "run", counted)
    return ran


def test_fourier_sums_iterate_and_exact_ones_judge(monkeypatch):
    """What iterates is seen in the backends; the residual is held against one of exact sums in blocks."""
    rng = np.random.default_rng(3)
    P = rng.uniform(-2, 2, size=(12_000, 2))
    z = np.sin(3 * P).sum(axis=1)
    K = gk.Gaussian(0.5)(P)
    assert K.explain().backend == "numba-cpu"
    ran = counting(monkeypatch)
    x, info = gk.solve(K, z, ridge=0.1, return_info=True)
    assert info.converged
    assert info.n_fourier == info.n_iter > 0
    assert ran == {"fourier": info.n_iter, "numba-cpu": 1}
    rest = z - 0.1 * x
    for i in range(0, 12_000, 2_000):
        rest[i : i + 2_000] -= np.exp(-2 * cdist(P[i : i + 2_000], P, "sqeuclidean")) @ x
    np.testing.assert_allclose(np.linalg.norm(rest) / np.linalg.norm(z), info.residual, rtol=1e-3)
    # A backend by name is kept.
    with pytest.warns(ConvergenceWarning):
        _, info = gk.solve(
            gk.Gaussian(0.5)(P, backend="numba-cpu"), z, ridge=0.1, max_iter=1, return_info=True
        )
    assert info.n_fourier == 0 < info.n_iter


def test_bad_fourier_sums_are_left(monkeypatch):
    """Sums that are 30 % off, or of the wrong sign, cost an attempt, not the answer."""
    P = np.random.default_rng(4).uniform(-2, 2, size=(3_000, 2))
    K, z = gk.Gaussian(0.5)(P), np.sin(3 * P).sum(axis=1)

    def wrong(factor):
        def twin(system):
            rough = copy(system)
            rough.exact = False
            rough.K = factor * system.K
            return rough

        return twin

    for factor in (1.3, -1.0):
        monkeypatch.setattr(System, "by_fourier", wrong(factor))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            _, info = gk.solve(K, z, ridge=0.1, return_info=True)
        assert info.converged
        assert info.n_fourier < info.n_iter
