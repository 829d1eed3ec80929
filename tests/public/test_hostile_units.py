"""Clouds, weights and laws in units that no square survives: distances against NumPy's extended precision and SciPy (issue 12)."""

import math

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import wasserstein_distance

import gpukoop as gk
from gpukoop import metrics
from gpukoop.spectrum.bandwidth import kernel_bandwidth


def normal(n, d, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


@pytest.fixture(autouse=True)
def _sums_that_compile_nothing():
    with gk.use_backend("numpy"):
        yield


def energy(X, Y):
    """Return the energy distance and its gradient in X, in the plainest way."""
    gap = 2 * cdist(X, Y).mean() - cdist(X, X).mean() - cdist(Y, Y).mean()
    length = lambda A, B: np.maximum(cdist(A, B), 1e-300)[:, :, None]
    toward = lambda A, B: ((A[:, None] - B) / length(A, B)).mean(axis=1)
    return gap, 2 / len(X) * (toward(X, Y) - toward(X, X))


def sliced(X, Y):
    directions = np.random.default_rng(0).standard_normal((128, X.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    lines = [np.sort(A @ directions.T, axis=0) for A in (X, Y)]
    return math.sqrt(((lines[0] - lines[1]) ** 2).mean())


UNITS = [("float64", u) for u in (1e-300, 1e-200, 1e-155, 1e155, 1e200, 1e300)]
UNITS += [("float32", u) for u in (1e-36, 1e-30, 1e-20, 1e20, 1e30, 1e36)]


@pytest.mark.parametrize(("dtype", "unit"), UNITS)
@pytest.mark.parametrize("d", [1, 3, 400])
def test_distances_that_torch_differentiates_are_homogeneous(d, dtype, unit):
    """The sliced distance was 0 in small units, "a perfect match"; the others refused what they can hold."""
    torch = pytest.importorskip("torch")
    X, Y = normal(20, d), normal(20, d, 1) + 0.5
    accuracy = 1e-9 if dtype == "float64" else 2e-5
    gap, slope = energy(X, Y)
    for call, expected in (
        (gk.torch.energy_distance, gap),
        (gk.torch.sliced_wasserstein, sliced(X, Y)),
    ):
        x = torch.tensor((X * unit).astype(dtype), requires_grad=True)
        y = torch.tensor((Y * unit).astype(dtype))
        found = call(x, y)
        assert found.item() / unit == pytest.approx(expected, rel=accuracy)
        found.backward()
        if call is gk.torch.energy_distance:
            np.testing.assert_allclose(x.grad.numpy(), slope, atol=1e-4 * np.abs(slope).max())
        else:  # of degree one: its slopes do not know the unit
            plain = torch.tensor(X, requires_grad=True)
            call(plain, torch.tensor(Y)).backward()
            np.testing.assert_allclose(x.grad.numpy(), plain.grad.numpy(), atol=1e-4)


@pytest.mark.parametrize("unit", [1e-40, 1e-36, 1e-30, 1e-25, 1e-20, 1e15])
def test_batches_in_many_features_in_any_unit(unit):
    """By products of matrices: squares of float32 vanished, and the MMD was NaN or 0."""
    torch = pytest.importorskip("torch")
    X, Y = ((A * unit).astype("float32") for A in (normal(20, 100), normal(20, 100, 1) + 0.5))
    x, y = X.astype(float) / unit, Y.astype(float) / unit
    k = lambda A, B: np.exp(-cdist(A, B, "sqeuclidean") / 200)
    exact = math.sqrt(k(x, x).mean() + k(y, y).mean() - 2 * k(x, y).mean())
    given = torch.tensor(X, requires_grad=True)
    kernel = gk.Gaussian(10 * unit)
    found = gk.torch.mmd(given, torch.tensor(Y), kernel)
    assert found.item() == pytest.approx(exact, rel=1e-4)
    found.backward()
    pull = (k(x, y)[:, :, None] * (x[:, None] - y)).mean(axis=1)
    push = (k(x, x)[:, :, None] * (x[:, None] - x)).mean(axis=1)
    slope = (pull - push) / 100 / len(x) / exact
    np.testing.assert_allclose(
        given.grad.numpy().astype(float) * unit, slope, atol=1e-3 * np.abs(slope).max()
    )


def test_a_divergence_that_its_dtype_cannot_hold_is_refused():
    torch = pytest.importorskip("torch")
    X, Y = normal(20, 2), normal(20, 2, 1) + 0.5
    exact = metrics.sinkhorn_divergence(X, Y, blur=1.0)
    for dtype, held, lost in (
        ("float32", (1e-18, 1e-15, 1e15, 1e18), (1e-40, 1e-30, 1e-24, 1e20, 1e30)),
        ("float64", (1e-150, 1e-100, 1e100, 1e150), ()),
    ):
        for unit in (*held, *lost):
            x, y = (torch.tensor((A * unit).astype(dtype)) for A in (X, Y))
            x.requires_grad_()
            if unit in lost:
                with pytest.raises(ValueError, match=r"range of the dtype"):
                    gk.torch.sinkhorn_divergence(x, y, blur=unit)
                continue
            found = gk.torch.sinkhorn_divergence(x, y, blur=unit)
            assert found.item() / unit / unit == pytest.approx(exact, rel=1e-3)
            found.backward()
            assert np.isfinite(x.grad.numpy()).all()
            assert float(x.grad.abs().max()) / unit > 1e-3


# --- weights of distances


def zeros_at_the_ends(n, seed, dtype):
    w = np.random.default_rng(seed).random(n) + 0.1
    w[[0, 7, -1]] = 0.0
    return w.astype(dtype)


METRICS = {
    "mmd": lambda A, B, pair: metrics.mmd(A, B, gk.Gaussian(1.0), weights=pair),
    "mmd by the median rule": lambda A, B, pair: metrics.mmd(A, B, weights=pair),
    "energy": lambda A, B, pair: metrics.energy_distance(A, B, weights=pair),
    "energy on the line": lambda A, B, pair: metrics.energy_distance(
        A[:, :1], B[:, :1], weights=pair
    ),
    "wasserstein": lambda A, B, pair: metrics.wasserstein(A, B, weights=pair),
    "on the line": lambda A, B, pair: metrics.wasserstein(A[:, :1], B[:, :1], weights=pair),
    "sliced": lambda A, B, pair: metrics.sliced_wasserstein(A, B, weights=pair),
    "sinkhorn": lambda A, B, pair: metrics.sinkhorn_divergence(A, B, blur=0.5, weights=pair),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("far", [1e8, 1e200, 1e308])
@pytest.mark.parametrize("name", METRICS)
def test_points_of_weight_zero_are_as_if_dropped(name, far, dtype):
    """Far away they decided the unit, and the distance of the others was 0; a sliver of rounding carried 1e169 on the line."""
    X, Y = normal(30, 2), normal(25, 2, 1) + 0.5
    a, b = zeros_at_the_ends(30, 2, dtype), zeros_at_the_ends(25, 3, dtype)
    expected = METRICS[name](X[a > 0], Y[b > 0], (a[a > 0], b[b > 0]))
    X[0], X[7], Y[-1] = far, -far, far
    assert METRICS[name](X, Y, (a, b)) == pytest.approx(expected, rel=1e-9)
    assert expected > 0.05


def test_the_distance_on_the_line_with_zeros_against_scipy():
    x, y, a, b = normal(30, 1)[:, 0], normal(25, 1, 1)[:, 0], *map(np.ones, (30, 25))
    a[[3, 29]], b[0] = 0.0, 0.0
    exact = wasserstein_distance(x[a > 0], y[b > 0])
    x[3], x[29], y[0] = 1e300, -1e300, 1e200
    for unit in (1e-310, 1e-60, 1.0, 1e300):
        found = metrics.wasserstein(
            x[:, None], y[:, None], order=1, weights=(a * unit, (b * unit).astype(float))
        )
        assert found == pytest.approx(exact, rel=1e-9)


def test_the_gradient_of_the_divergence_is_zero_at_points_of_weight_zero():
    X, Y = normal(30, 2), normal(25, 2, 1) + 0.5
    a = zeros_at_the_ends(30, 2, "float64")
    held = a > 0
    value, slope = metrics.sinkhorn_divergence(
        X[held], Y, blur=0.5, weights=(a[held], None), return_gradient=True
    )
    X[~held] = 1e200
    whole, every = metrics.sinkhorn_divergence(
        X, Y, blur=0.5, weights=(a, None), return_gradient=True
    )
    assert whole == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(every[held], slope, rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(every[~held], 0.0)


# --- laws in closed form


@pytest.mark.parametrize(
    ("d", "variance"), [(1, 1e-3), (40, 1.0), (40, 1e10), (400, 1.0), (400, 30.0), (1000, 0.1)]
)
def test_mmd_of_normal_laws_whose_determinants_leave_the_range(d, variance):
    """It was 0 from 40 features on: each law is a product over features, and products are sums of logarithms."""
    half = lambda m, s: -0.5 * d * (math.log1p(s) + m**2 / (1 + s))
    logs = [half(0.0, 2 * variance), half(0.0, 4 * variance), half(0.1, 3 * variance)]
    top = max(logs)
    share = [math.exp(log - top) for log in logs]
    exact = math.exp(top / 2) * math.sqrt(share[0] + share[1] - 2 * share[2])
    eye = variance * np.eye(d)
    found = metrics.gaussian_mmd(np.zeros(d), eye, np.full(d, 0.1), 2 * eye, 1.0)
    assert found == pytest.approx(exact, rel=1e-6)
    assert exact > 0
    with pytest.raises(ValueError, match="below the smallest number"):
        metrics.gaussian_mmd(np.zeros(400), 1e4 * np.eye(400), np.zeros(400), 2e4 * np.eye(400), 1)


@pytest.mark.parametrize("gap", [1e-300, 1e-200, 1e-170])
def test_means_close_beside_their_widths(gap):
    for width in (1e-140, 1e-100, 1.0):
        S = [[width**2]]
        assert metrics.gaussian_wasserstein([gap], S, [0.0], S) == pytest.approx(gap, rel=1e-12)


@pytest.mark.parametrize("unit", [1e-200, 1e-160, 1e-90, 1e90, 1e160, 1e200])
def test_divergence_of_a_density_in_any_unit(unit):
    X = normal(60, 2)
    density = lambda scale: lambda points: np.exp(-((points / scale) ** 2).sum(axis=1) / 2)
    exact = metrics.kl_divergence(X, density(1.0))
    assert metrics.kl_divergence(unit * X, density(unit)) == pytest.approx(exact, rel=1e-9)
    mixed = np.array([1.0, unit])
    assert metrics.kl_divergence(mixed * X, density(mixed)) == pytest.approx(exact, rel=1e-9)
    with pytest.raises(ValueError, match="spans less"):
        metrics.kl_divergence(unit * X[:, [0, 0]], density(unit))


# --- sums and bandwidths


@pytest.mark.parametrize(
    ("d", "alpha"), [(1, 1.6), (1, 2.0), (3, 2.6), (3, 5.0), (10, 6.1), (400, 201.2), (3000, 1600)]
)
def test_the_bandwidth_of_student_laws_is_their_variance(d, alpha):
    """A rational quadratic is Student's density with 2 alpha - d degrees of freedom; those of 2.2 were refused as infinite."""
    for scale in (1e-100, 2.0, 1e100):
        found = kernel_bandwidth(gk.RationalQuadratic(scale, alpha=alpha), d)
        exact = 2 * alpha / (2 * alpha - d - 2)
        assert found / scale / scale == pytest.approx(exact, rel=1e-6)
    with pytest.raises(ValueError, match="no finite second moment"):
        kernel_bandwidth(gk.RationalQuadratic(1.0, alpha=d / 2 + 1), d)


@pytest.mark.parametrize("scale", [1e-200, 1e-160, 1e160, 1e300])
def test_scales_whose_squares_are_no_numbers_have_no_bandwidth(scale):
    for kernel in (gk.Gaussian, gk.Laplace, gk.Matern52):
        with pytest.raises(ValueError, match="scales must lie between"):
            kernel_bandwidth(kernel(scale), 3)
        with pytest.raises(ValueError, match="scales must lie between"):
            gk.DiffusionMap(kernel(scale), 3).fit(normal(20, 2))
