"""DiffusionMap against exact laws: at finite eps on quadratures, and in the limit from samples."""

import tracemalloc
import warnings

import numpy as np
import pytest
from scipy.special import ive, spherical_in
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

import gpukoop as gk
from gpukoop import datasets
from gpukoop.spectrum import DiffusionMap


def circle_grid(n=300):
    angle = 2 * np.pi * np.arange(n) / n
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def wells(n=4000, seed=0):
    return datasets.quadruple_well(n, independent=True, random_state=seed)[0]


@pytest.mark.parametrize("eps", [0.05, 0.1])
@pytest.mark.parametrize("rule", ["log", "linear"])
def test_circle_at_finite_eps(eps, rule):
    sigma = np.repeat([ive(k, 1 / eps) / ive(0, 1 / eps) for k in (1, 2, 3)], 2)
    exact = -2 * np.log(sigma) / eps if rule == "log" else 2 * (1 - sigma) / eps
    fitted = DiffusionMap(gk.Gaussian(eps**0.5), 6, rule=rule).fit(circle_grid())
    assert np.allclose(fitted.sigma_, sigma, atol=1e-9)
    assert np.allclose(fitted.eigenvalues_, exact, rtol=1e-6)


@pytest.mark.parametrize("eps", [0.1, 0.4])
def test_normal_law_at_finite_eps(eps):
    """The weights q ** -1/2 and D are right only if every power of sigma_1 comes out."""
    x = np.linspace(-8, 8, 401)[:, None]
    fitted = DiffusionMap(gk.Gaussian(eps**0.5), 4).fit(
        x, sample_weight=np.exp(-(x[:, 0] ** 2) / 2)
    )
    sigma = 2 * (1 + eps) / (2 + 3 * eps + 2 * eps**2)
    assert np.allclose(fitted.sigma_, sigma ** np.arange(1, 5), atol=1e-6)


def test_sphere_at_finite_eps():
    eps = 0.1
    height, weight = np.polynomial.legendre.leggauss(24)
    angle = 2 * np.pi * np.arange(48) / 48
    radius = np.sqrt(1 - height**2)[:, None]
    parts = (radius * np.cos(angle), radius * np.sin(angle), height[:, None] + 0 * angle)
    X = np.stack(parts, axis=2).reshape(-1, 3)
    fitted = DiffusionMap(gk.Gaussian(eps**0.5), 8).fit(X, sample_weight=np.repeat(weight, 48))
    sigma = [spherical_in(order, 1 / eps) / spherical_in(0, 1 / eps) for order in (1, 2)]
    assert np.allclose(fitted.sigma_, np.repeat(sigma, [3, 5]), atol=1e-6)


def test_torus():
    """The induced density of the surface enters as weights; eps = .05 biases by less than 6 per cent."""
    t, f = np.meshgrid(2 * np.pi * np.arange(80) / 80, 2 * np.pi * np.arange(34) / 34)
    R = 2 + 0.8 * np.cos(f)
    X = np.stack([R * np.cos(t), R * np.sin(t), 0.8 * np.sin(f)], axis=2).reshape(-1, 3)
    fitted = DiffusionMap(gk.Gaussian(0.05**0.5), 6).fit(X, sample_weight=R.ravel())
    exact = datasets.exact("torus")["eigenvalues"][:6]
    assert np.allclose(fitted.eigenvalues_, exact, rtol=0.06)


def test_circle_from_samples():
    X = datasets.circle(2000, random_state=0)
    X = X / np.linalg.norm(X, axis=1, keepdims=True)
    fitted = DiffusionMap(gk.Gaussian(0.05**0.5), 6).fit(X)
    # bias of eps = .05 (1.026, 4.10, 9.22) and the noise of 2,000 samples: sd .017, .08, .17
    assert np.allclose(fitted.eigenvalues_, [1.026, 1.026, 4.1, 4.1, 9.22, 9.22], rtol=0.07)


def test_quadruple_well_from_samples():
    fitted = DiffusionMap(gk.Gaussian(0.1**0.5), 3, random_state=0).fit(wells())
    assert np.allclose(fitted.eigenvalues_, [0.7487, 0.7487, 1.4974], rtol=0.08)
    assert fitted.diffusivity_ == 1.0


def test_auto_scale_on_every_kind_of_data():
    """Auto resolves the last mode, or stops at isolated samples; a too small scale is refused by the share of isolated."""
    cases = {
        "wells": (wells(), 0.04, 0.18),
        "torus": (datasets.torus(800, random_state=0), 0.3, 0.7),
        "circle": (datasets.circle(1000, random_state=0), 0.01, 0.1),
        "normal": (np.random.default_rng(0).normal(size=(2000, 2)), 0.08, 0.4),
        "checkerboard": (datasets.checkerboard(2000, random_state=0), 0.05, 0.3),
    }
    for name, (X, low, high) in cases.items():
        fitted = DiffusionMap(n_components=32, random_state=0).fit(X)
        assert len(fitted.eigenvalues_) == 32, name
        assert low < fitted.bandwidth_ < high, (name, fitted.bandwidth_)
        assert fitted.sigma_[-1] > 0.005, name
        assert fitted.n_isolated_ <= 0.015 * len(X), name
        assert fitted.scale_ == pytest.approx(fitted.bandwidth_**0.5)


def test_normalisation_and_extension():
    X = wells(1500)
    fitted = DiffusionMap(gk.Gaussian(0.4), 12, random_state=0).fit(X)
    phi = fitted.transform(X)
    assert np.abs(phi.mean(axis=0)).max() < 1e-8
    assert np.abs((phi**2).mean(axis=0) - 1).max() < 1e-8
    # The extension at a sample is the eigenvector there: K Psi / K w = u.
    u = fitted.Psi_ / fitted.w_[:, None] * fitted.sigma_ - fitted.offset_
    assert np.abs(phi - u).max() < 1e-10
    D = fitted.w_ * (fitted.kernel_(X) @ fitted.w_)
    raw = phi + fitted.offset_
    gram = raw.T @ (D[:, None] * raw)
    scale = np.sqrt(np.diag(gram))
    assert np.abs(gram / np.outer(scale, scale) - np.eye(12)).max() < 1e-8
    slopes = fitted.gradient(X)
    energy = np.einsum("nrd,nsd->rs", slopes, slopes)[:6, :6] / len(X)
    root = np.sqrt(fitted.eigenvalues_[:6])
    assert np.abs(energy / np.outer(root, root) - np.eye(6)).max() < 0.15


def test_gradient_is_the_derivative():
    X = wells(600)
    fitted = DiffusionMap(gk.Gaussian(0.4), 5, random_state=0).fit(X)
    Z, h = X[:40] + 0.1, 1e-5
    slopes = fitted.gradient(Z)
    for a in range(2):
        step = h * np.eye(2)[a]
        difference = (fitted.transform(Z + step) - fitted.transform(Z - step)) / (2 * h)
        assert np.abs(slopes[:, :, a] - difference).max() < 1e-6
    c = np.array([1.0, -2.0, 0.5, 3.0, 0.0])
    assert np.abs(fitted.gradient(Z, c) - np.einsum("nrd,r->nd", slopes, c)).max() < 1e-10
    assert np.abs(fitted.moments(Z) - fitted.transform(Z).mean(axis=0)).max() < 1e-12
    with pytest.raises(ValueError, match=r"expected \(5,\)"):
        fitted.gradient(Z, c[:3])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_far_targets_are_finite_and_harmless(dtype):
    X = wells(600).astype(dtype)
    fitted = DiffusionMap(gk.Gaussian(0.3), 4, random_state=0).fit(X)
    near = X[:50] + dtype(0.05)
    Z = np.concatenate([near, np.array([[30.0, 30.0], [-1e3, 0.0]], dtype)])
    phi = fitted.transform(Z)
    assert phi.dtype == dtype
    assert np.isfinite(phi).all()
    u = fitted.Psi_ / fitted.w_[:, None] - fitted.offset_
    rows = [np.flatnonzero((X == z).all(axis=1))[0] for z in fitted.functions_.nearest(Z[-2:])]
    assert np.allclose(phi[-2:], u[rows], rtol=1e-5)
    assert (fitted.gradient(Z, np.ones(4))[-2:] == 0).all()
    assert (fitted.gradient(Z)[-2:] == 0).all()
    assert (phi[:-2] == fitted.transform(near)).all()
    assert fitted.functions_.far(Z).tolist() == [False] * 50 + [True] * 2
    assert (
        np.abs(fitted.moments(Z) - phi.mean(axis=0)).max()
        < 50 * np.finfo(dtype).eps * np.abs(u).max()
    )


def test_one_outlier_changes_nothing():
    X = wells(3000)
    kernel = gk.Gaussian(0.1**0.5)
    clean = DiffusionMap(kernel, 3, random_state=0).fit(X)
    dirty = DiffusionMap(kernel, 3, random_state=0).fit(np.concatenate([X, [[6.0, 6.0]]]))
    assert dirty.n_isolated_ == clean.n_isolated_ + 1
    assert np.allclose(dirty.eigenvalues_, clean.eigenvalues_, rtol=0.02)


@pytest.mark.parametrize("landmarks", ["uniform", "kmeans++", "leverage"])
def test_landmarks_equal_the_full_map(landmarks):
    X, kernel = wells(), gk.Gaussian(0.1**0.5)
    full = DiffusionMap(kernel, 6, random_state=0).fit(X)
    few = DiffusionMap(kernel, 6, n_landmarks=500, landmarks=landmarks, random_state=0).fit(X)
    assert len(few.sources_) <= 500
    # Rayleigh-Ritz: from above, by the share of the modes that the landmarks miss.
    assert (few.eigenvalues_ > full.eigenvalues_ * (1 - 1e-6)).all()
    assert np.allclose(few.eigenvalues_[:3], full.eigenvalues_[:3], rtol=0.015)
    phi = few.transform(X)
    assert np.abs(phi.mean(axis=0)).max() < 1e-8
    assert np.abs(phi.var(axis=0) - 1).max() < 1e-8


@pytest.mark.slow
def test_memory_stays_far_below_the_matrix():
    X = np.random.default_rng(0).normal(size=(20_000, 2)).astype(np.float32)
    gk.Gaussian(0.5)(X[:100]) @ np.ones((100, 16), np.float32)
    tracemalloc.start()
    DiffusionMap(gk.Gaussian(0.5), 3, random_state=0, tol=1e-2, backend="numba-cpu").fit(X)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6


@pytest.mark.parametrize("kernel", [gk.Matern52(0.25), gk.Gaussian(0.2) + 0.5 * gk.Gaussian(0.4)])
def test_other_kernels_have_their_own_bandwidth(kernel):
    """Uniform on a square: lambda = pi^2 / 4 on [0, 2], twice; eps of other kernels is their second moment."""
    X = 2 * (np.stack(np.meshgrid(*[np.arange(40)] * 2), axis=2).reshape(-1, 2) + 0.5) / 40
    fitted = DiffusionMap(kernel, 2).fit(X)
    assert np.allclose(fitted.eigenvalues_, np.pi**2 / 4, rtol=0.12)


def test_parameters_and_errors():
    X = wells(200)
    with pytest.raises(ValueError, match="n_components is 200, X has 200 samples"):
        DiffusionMap(n_components=200).fit(X)
    with pytest.raises(ValueError, match="all samples of X are equal"):
        DiffusionMap(n_components=2).fit(np.ones((50, 2)))
    with pytest.raises(ValueError, match="values <= 0"):
        DiffusionMap(gk.Energy(), 2).fit(X)
    with pytest.raises(ValueError, match="no finite second moment"):
        DiffusionMap(gk.InverseMultiquadric(0.5), 2).fit(X)
    with pytest.raises(ValueError, match="contains NaN"):
        DiffusionMap(n_components=2).fit(np.full((50, 2), np.nan))
    with pytest.raises(ValueError, match=r"expected \(n, d\)"):
        DiffusionMap(n_components=2).fit(X[:, 0])
    with pytest.raises(ValueError, match="no neighbours"):
        DiffusionMap(gk.Gaussian(1e-6), 2).fit(X)
    with pytest.raises(ValueError, match="unknown landmarks"):
        DiffusionMap(n_components=2, n_landmarks=50, landmarks="best").fit(X)
    with pytest.raises(ValueError, match="rule is 'exp'"):
        DiffusionMap(n_components=2, rule="exp").fit(X)
    with pytest.warns(ConvergenceWarning, match="lower the scale"):
        fitted = DiffusionMap(gk.Gaussian(3.0), 100).fit(X)
    assert np.isfinite(fitted.transform(X)).all()
    with pytest.warns(ConvergenceWarning, match="fall into 2 pieces"):
        fitted = DiffusionMap(gk.Gaussian(0.3), 3).fit(np.concatenate([X, X + 50]))
    assert (fitted.eigenvalues_ > 0).all()
    fitted = clone(DiffusionMap(gk.Gaussian(0.3), 3, random_state=0)).fit(np.concatenate([X, X]))
    assert np.isfinite(fitted.eigenvalues_).all()
    assert DiffusionMap(n_components=3, random_state=0).fit(X).backend_ in gk.backends()


def test_auto_scale_of_repeated_samples():
    # Halving eps until copies are each other's only neighbours would tear the map into points.
    once = np.random.default_rng(0).normal(size=(60, 2))
    repeated = np.repeat(once, 5, axis=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*modes are resolved", ConvergenceWarning)
        fitted = DiffusionMap(n_components=100, random_state=0).fit(repeated)
    assert 0.2 < fitted.scale_ < 1.0
    assert fitted.eigenvalues_[0] > 0.3  # 1 for the normal law, 0 in pieces
    atom = np.concatenate([once, np.zeros((200, 2))])
    assert np.isfinite(DiffusionMap(n_components=3, random_state=0).fit(atom).eigenvalues_).all()


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_a_handful_of_samples(n):
    X = np.random.default_rng(1).normal(size=(n, 2))
    fitted = DiffusionMap(n_components=1, random_state=0).fit(X)
    assert np.isfinite(fitted.transform(X)).all()


@pytest.mark.parametrize(
    ("c", "error", "words"),
    [
        (np.ones(2), ValueError, "^c has shape"),
        (np.ones((3, 1)), ValueError, "^c has shape"),
        (np.full(3, np.nan), ValueError, "^c contains NaN"),
        (np.ones(3) + 0j, TypeError, "^c has dtype complex128"),
        (["a", "b", "c"], TypeError, "^c has dtype"),
    ],
)
def test_bad_coefficients(c, error, words):
    fitted = DiffusionMap(n_components=3, random_state=0).fit(wells(100))
    with pytest.raises(error, match=words):
        fitted.gradient(wells(5), c)


@pytest.mark.parametrize(
    ("mass", "error", "words"),
    [
        (np.ones(99), ValueError, "has shape"),
        (-np.ones(100), ValueError, "must not be negative"),
        (np.zeros(100), ValueError, "may be zero"),
        (np.full(100, np.inf), ValueError, "contains NaN or inf"),
        ("equal", TypeError, "expected an array of numbers"),
    ],
)
def test_bad_masses(mass, error, words):
    with pytest.raises(error, match=f"^sample_weight .*{words}|{words}"):
        DiffusionMap(n_components=3).fit(wells(100), sample_weight=mass)


@pytest.mark.parametrize("n_landmarks", [2, 3, 5])
def test_a_handful_of_landmarks(n_landmarks):
    fitted = DiffusionMap(n_components=1, n_landmarks=n_landmarks, random_state=0).fit(wells(300))
    assert np.isfinite(fitted.transform(wells(50))).all()
    with pytest.warns(ConvergenceWarning, match="of 30 modes are resolved"):
        DiffusionMap(n_components=30, n_landmarks=n_landmarks, random_state=0).fit(wells(300))
