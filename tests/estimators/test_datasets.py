"""Every draw against the exact law it comes from; every exact number against an independent source.

Statistical bounds are multiples of the standard error of the statistic: at SIGMAS = 5 a sound sampler fails once in
two million. Seeds are fixed, so a test that passes keeps passing.
"""

import functools
import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import integrate, stats
from sklearn.neighbors import KNeighborsClassifier

from gpukoop import datasets
from gpukoop.datasets import diffusions, trajectories
from gpukoop.draws import random_generator

SIGMAS = 5.0
N = 20_000

DRAWS = {
    "quadruple_well": lambda n, s: datasets.quadruple_well(n, random_state=s, independent=True)[0],
    "double_well": lambda n, s: datasets.double_well(n, random_state=s, independent=True)[0],
    "ornstein_uhlenbeck": lambda n, s: datasets.ornstein_uhlenbeck(
        n, random_state=s, n_features=2, temperature=0.5, independent=True
    )[0],
    "circle": datasets.circle,
    "torus": datasets.torus,
    "eight_gaussians": datasets.eight_gaussians,
    "three_rings": functools.partial(datasets.three_rings, noise=0.05),
    "checkerboard": datasets.checkerboard,
    "moons": datasets.moons,
}
DRAWS["circle"] = lambda n, s: datasets.circle(n, random_state=s)
DRAWS["torus"] = lambda n, s: datasets.torus(n, random_state=s)
PARAMETERS = {
    "ornstein_uhlenbeck": {"n_features": 2, "temperature": 0.5},
    "three_rings": {"noise": 0.05},
}
PAIRS = (
    datasets.quadruple_well,
    datasets.double_well,
    datasets.ornstein_uhlenbeck,
    functools.partial(datasets.circle, lag_time=0.1),
    functools.partial(datasets.torus, lag_time=0.05),
    functools.partial(datasets.heat_equation, n_cells=4),
    functools.partial(datasets.allen_cahn, n_grid=4),
)


def names(pairs):
    return getattr(pairs, "func", pairs).__name__


def assert_mean(values, expected, *, bias=0.0, correlation=0.0):
    """Compare the mean over rows with its expectation, within SIGMAS standard errors and a known bias.

    Rows that form an AR(1) chain of this correlation have (1 + q) / (1 - q) times the variance of independent ones.
    """
    values = np.asarray(values, dtype=float)
    error = values.std(axis=0) * math.sqrt((1 + correlation) / (1 - correlation) / len(values))
    error = SIGMAS * error + bias
    gap = np.abs(values.mean(axis=0) - expected)
    assert (gap <= error + 1e-12).all(), f"off by {gap}, allowed {error}"


# --- exact values


def test_exact_values_of_the_quadruple_well_are_the_published_quadrature():
    answer = datasets.exact("quadruple_well", n_eigenvalues=14)
    axis = [0.74868, 6.00411, 11.6607, 18.6431]
    plane = sorted([a for a in axis for _ in range(2)] + [a + b for a in axis for b in axis])[:14]
    np.testing.assert_allclose(answer["eigenvalues"], plane, rtol=1e-5)  # the digits given
    assert answer["coverage"] == pytest.approx(38.07, abs=0.005)
    assert answer["mean_potential"] == pytest.approx(0.8345, abs=5e-5)
    assert math.sqrt(answer["normalization"]) == pytest.approx(1.973732, abs=5e-7)
    assert answer["covariance"][0, 0] == pytest.approx(0.83275, abs=5e-6)
    assert sorted(map(tuple, answer["centres"])) == [(-1, -1), (-1, 1), (1, -1), (1, 1)]


def test_exact_values_of_the_double_well():
    answer = datasets.exact("double_well", n_eigenvalues=5)
    given = [0.74868, 6.00411, 11.6607, 18.6431, 26.870]
    assert (np.abs(answer["eigenvalues"] - given) < [5e-6, 5e-6, 5e-5, 5e-5, 5e-4]).all()
    inside = integrate.quad(lambda x: math.exp(-((x * x - 1) ** 2)), 0.6, 1.4)[0]
    assert answer["coverage"] == pytest.approx(200 * inside / answer["normalization"], rel=1e-9)


def test_the_wells_coverage_is_the_integral_over_the_discs():
    density = lambda y, x: math.exp(-((x * x - 1) ** 2) - (y * y - 1) ** 2)
    half = lambda x: math.sqrt(max(0.16 - (x - 1) ** 2, 0.0))
    disc = integrate.dblquad(density, 0.6, 1.4, lambda x: 1 - half(x), lambda x: 1 + half(x))[0]
    answer = datasets.exact("quadruple_well")
    assert answer["coverage"] == pytest.approx(400 * disc / answer["normalization"], rel=1e-7)


def test_exact_spectra_of_manifolds():
    torus = datasets.exact("torus", n_eigenvalues=16)["eigenvalues"]
    given = [0.2572, 0.2572, 0.9028, 0.9028, 1.5402, 1.6775, 1.8, 1.8, 1.814, 1.814, 2.0909, 2.0909]
    np.testing.assert_allclose(torus, [*given, 2.6029, 2.6029, 2.9366, 2.9366], atol=5.1e-5)
    assert datasets.exact("circle", 5)["eigenvalues"].tolist() == [1, 1, 4, 4, 9]
    half = datasets.exact("circle", 3, arc=math.pi)["eigenvalues"]
    np.testing.assert_allclose(half, [1, 4, 9], rtol=1e-14)


def test_a_thin_torus_is_a_circle_times_a_small_circle():
    R, rho = 1.0, 0.01  # the first modes are those of the axis circle, k^2 / R^2 up to (rho / R)^2
    values = datasets.exact("torus", 6, R=R, rho=rho)["eigenvalues"]
    np.testing.assert_allclose(values, [1, 1, 4, 4, 9, 9], rtol=10 * rho**2)


@pytest.mark.parametrize(
    ("d", "expected"), [(1, [1, 2, 3, 4]), (2, [1, 1, 2, 2, 2, 3, 3, 3, 3, 4])]
)
def test_ornstein_uhlenbeck_eigenvalues_count_the_hermite_products(d, expected):
    answer = datasets.exact("ornstein_uhlenbeck", len(expected), n_features=d, temperature=3.0)
    assert answer["eigenvalues"].tolist() == expected


# --- draws against the law


@pytest.mark.parametrize("name", DRAWS)
def test_draws_have_the_exact_mean_and_covariance(name):
    X = DRAWS[name](N, 1)
    answer = datasets.exact(name, **PARAMETERS.get(name, {}))
    assert X.dtype == np.float64
    assert X.shape == (N, len(answer["mean"]))
    assert_mean(X, answer["mean"])
    centred = X - answer["mean"]
    assert_mean(centred[:, :, None] * centred[:, None, :], answer["covariance"])


PLANAR = ("quadruple_well", "eight_gaussians", "three_rings", "checkerboard", "moons")


@pytest.mark.parametrize("name", PLANAR)
def test_densities_integrate_to_one_and_draws_follow_them(name):
    bins, fine = 12, 24
    cells = bins * fine
    edge = 2.4  # holds all but 1e-6 of every law
    centre = -edge + (np.arange(cells) + 0.5) * (2 * edge / cells)
    grid = np.stack(np.meshgrid(centre, centre, indexing="ij"), axis=-1).reshape(-1, 2)
    mass = datasets.density(name, grid, **PARAMETERS.get(name, {})).reshape(cells, cells)
    mass = mass * (2 * edge / cells) ** 2
    moment = (mass.ravel()[:, None] * grid).sum(axis=0)
    assert mass.sum() == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(moment, datasets.exact(name)["mean"], atol=1e-4)
    expected = N * mass.reshape(bins, fine, bins, fine).sum(axis=(1, 3)).ravel()
    X = DRAWS[name](N, 2)
    counts = np.histogram2d(*X.T, bins=bins, range=[(-edge, edge)] * 2)[0].ravel()
    enough = expected >= 5  # Pearson's statistic needs expected counts of 5
    statistic = np.sum((counts[enough] - expected[enough]) ** 2 / expected[enough])
    assert statistic < stats.chi2.isf(1e-6, enough.sum() - 1)
    assert counts[~enough].sum() <= stats.poisson.isf(1e-6, expected[~enough].sum())


@pytest.mark.parametrize("name", ["double_well", "ornstein_uhlenbeck"])
def test_draws_on_the_line_follow_their_density(name):
    draw = getattr(datasets, name)(N, random_state=3, independent=True)[0][:, 0]
    x = np.linspace(-9, 9, 20_001)
    cdf = integrate.cumulative_trapezoid(datasets.density(name, x[:, None]), x, initial=0)
    assert cdf[-1] == pytest.approx(1, abs=1e-6)
    assert stats.kstest(draw, lambda z: np.interp(z, x, cdf)).pvalue > 1e-6


def test_coverage_and_mean_potential_of_the_drawn_wells():
    X = DRAWS["quadruple_well"](N, 4)
    answer = datasets.exact("quadruple_well")
    nearest = np.linalg.norm(X[:, None] - answer["centres"], axis=2).min(axis=1)
    assert_mean(100.0 * (nearest < answer["radius"]), answer["coverage"])
    assert_mean(datasets.potential("quadruple_well", X), answer["mean_potential"])


def test_the_torus_tube_angle_follows_the_surface_law():
    angle = datasets.torus_angles(datasets.torus(N, random_state=5))[:, 1]
    law = lambda f: (2 * (f + math.pi) + 0.8 * np.sin(f)) / (4 * math.pi)
    assert stats.kstest(angle, law).pvalue > 1e-6
    density = datasets.exact("torus")["tube_angle_density"]
    assert integrate.quad(density, -math.pi, 0.3)[0] == pytest.approx(law(0.3))


def test_circle_radii_are_uniform_in_area_and_arcs_stay_arcs():
    X = datasets.circle(N, random_state=6, inner_radius=0.5)
    assert_mean(np.sum(X**2, axis=1), (1 + 0.25) / 2)
    half = datasets.circle(N, random_state=6, arc=math.pi)
    assert half[:, 1].min() >= 0
    answer = datasets.exact("circle", arc=math.pi)
    assert_mean(half, answer["mean"])
    np.testing.assert_allclose(answer["mean"], [0, 2 / math.pi], atol=1e-14)


def test_labels_name_the_component():
    X, labels = datasets.eight_gaussians(2_000, 7, return_labels=True)
    distance = np.linalg.norm(X[:, None] - datasets.exact("eight_gaussians")["centres"], axis=2)
    # half the gap between neighbours is 3.8 sd: a share of 1e-4 lies nearer to another centre
    assert np.mean(distance.argmin(axis=1) == labels) > 0.995
    X, labels = datasets.moons(2_000, 7, noise=0.0, return_labels=True)
    np.testing.assert_allclose(np.linalg.norm(X[labels == 0], axis=1), 1)
    np.testing.assert_allclose(np.linalg.norm(X[labels == 1] - [1, 0.5], axis=1), 1)


# --- pairs


@pytest.mark.parametrize("pairs", PAIRS, ids=names)
def test_a_trajectory_is_one_and_independent_pairs_are_not(pairs):
    X, Y = pairs(
        50, random_state=0, **({"independent": False} if names(pairs) == "allen_cahn" else {})
    )
    assert X.shape == Y.shape
    assert X.dtype == Y.dtype == np.float64
    np.testing.assert_array_equal(X[1:], Y[:-1])
    X, Y = pairs(50, random_state=0, independent=True)
    assert not np.isin(X[1:], Y).any()


def test_wells_move_as_their_generator_says():
    lag = 0.01
    X, Y = datasets.quadruple_well(N, lag, random_state=8, independent=True)
    # E (Y - X)^2 = 2 lag - lag^2 E V'^2 + O(lag^3), and E V'^2 = E V'' = 12 E x^2 - 4
    curvature = 12 * datasets.exact("quadruple_well")["covariance"][0, 0] - 4
    expected = 2 * lag - lag**2 * curvature
    assert_mean((Y - X) ** 2, expected, bias=2 * lag**3 * curvature**2)
    assert_mean((Y - X) * X, -expected / 2, bias=lag**3 * curvature**2)  # detailed balance


def test_the_drift_of_the_wells_is_the_slope_of_their_potential():
    Z, h, d = np.random.default_rng(0).uniform(-1.5, 1.5, (30, 2)), 1e-3, 1e-6
    ends = diffusions._walk_wells(Z, np.zeros((30, 1, 2)), h, False, 1.0)
    shifts = d * np.eye(2)
    slope = [
        (datasets.potential("quadruple_well", Z + e) - datasets.potential("quadruple_well", Z - e))
        / (2 * d)
        for e in shifts
    ]
    # central differences of a quartic: 4 x d^2 of truncation, 1e-9 of rounding
    np.testing.assert_allclose((Z - ends) / h, np.stack(slope, axis=1), atol=1e-8)


def test_the_slow_mode_of_the_wells_decays_at_its_eigenvalue():
    # E X_0 X_t = sum over odd modes of c_k^2 exp(-lambda_k t): from t = 0.5 on the next one, 11.7, is below 0.3 %
    slowest, following = datasets.exact("double_well")["eigenvalues"][[0, 2]]
    near, far = (
        np.prod(datasets.double_well(N, lag, 9, independent=True), axis=0) for lag in (0.5, 1.0)
    )
    assert_mean(far - near * math.exp(-slowest * 0.5), 0.0, bias=math.exp(-following * 0.5))


def test_a_long_trajectory_samples_the_law():
    n, lag = 100_000, 0.01
    X, _ = datasets.quadruple_well(n, lag, random_state=10)
    answer = datasets.exact("quadruple_well")
    # x^2 is even: its slowest mode is the second of the axis, so total time T holds T lambda / 2 independent draws
    rate = datasets.exact("double_well")["eigenvalues"][1]
    error = (X**2).std(axis=0) * math.sqrt(2 / (rate * n * lag))
    gap = np.abs(np.mean(X**2, axis=0) - answer["covariance"][0, 0])
    assert (gap < SIGMAS * error).all(), (gap, error)


@pytest.mark.parametrize("independent", [False, True])
def test_ornstein_uhlenbeck_transition_is_exact(independent):
    lag, temperature = 0.7, 2.0
    X, Y = datasets.ornstein_uhlenbeck(
        N, lag, 11, n_features=3, temperature=temperature, independent=independent
    )
    kicks = Y - math.exp(-lag) * X
    assert_mean(kicks, 0.0)
    assert_mean(kicks**2, temperature * (1 - math.exp(-2 * lag)))
    assert_mean(kicks * X, 0.0)
    assert_mean(X**2, temperature, correlation=0.0 if independent else math.exp(-2 * lag))


@pytest.mark.parametrize("arc", [2 * math.pi, math.pi, 1.0])
def test_brownian_motion_on_an_arc_has_its_eigenfunction(arc):
    lag = 0.2
    X, Y = datasets.circle(N, lag, 12, arc=arc, independent=True)
    k = 1 if arc == 2 * math.pi else math.pi / arc
    mode = lambda Z: math.sqrt(2) * np.cos(k * np.arctan2(Z[:, 1], Z[:, 0]))
    slowest = datasets.exact("circle", 1, arc=arc)["eigenvalues"][0]
    assert_mean(mode(X) * mode(Y), math.exp(-slowest * lag))
    assert_mean(mode(Y), 0.0)


def test_brownian_motion_on_the_torus_keeps_the_surface_law_and_moves_at_unit_speed():
    R, rho = 2.0, 0.8
    _, Y = datasets.torus(N, 1.0, 13, independent=True)
    # without the drift E cos f would have fallen from rho / 2R = 0.2 to 0.2 exp(-1 / rho^2) = 0.04
    assert_mean(np.cos(datasets.torus_angles(Y)[:, 1]), rho / (2 * R), bias=1e-3)
    lag = 0.01
    X, Y = datasets.torus(N, lag, 14, independent=True)
    # E |Y - X|^2 = 2 lag E |grad x|^2 - lag^2 E |Laplacian x|^2: tangent dimension, mean curvature vector
    f = np.linspace(-math.pi, math.pi, 2_001)
    law = (R + rho * np.cos(f)) / (2 * math.pi * R)
    curvature = integrate.trapezoid(law * (1 / rho + np.cos(f) / (R + rho * np.cos(f))) ** 2, f)
    squared = np.sum((Y - X) ** 2, axis=1)
    assert_mean(squared, 4 * lag - lag**2 * curvature, bias=(lag * curvature) ** 2 * lag)
    np.testing.assert_allclose(datasets.project_torus(Y), Y, atol=1e-12)


def test_the_noise_block_does_not_change_a_bit(monkeypatch):
    whole = (
        datasets.quadruple_well(1_000, 0.01, 15),
        datasets.quadruple_well(1_000, 0.01, 15, independent=True),
    )
    monkeypatch.setattr(trajectories, "NOISE_BLOCK", 64)
    for independent in (False, True):
        for a, b in zip(
            whole[independent],
            datasets.quadruple_well(1_000, 0.01, 15, independent=independent),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)


# --- images


def test_the_target_rendering_shifts_the_domain_but_stays_legible():
    X, y = datasets.digits(1_600, 0, return_labels=True)
    T, labels = datasets.digits(1_600, 0, rendering="target", return_labels=True)
    np.testing.assert_array_equal(y, labels)
    assert X.min() >= 0
    assert T.min() >= 0
    assert X.max() == T.max() == 1.0
    score = lambda A, B: KNeighborsClassifier(1).fit(A[:800], y[:800]).score(B[800:], y[800:])
    # standard error of a share of 800 is at most 0.018
    assert score(X, X) > 0.95
    assert score(T, T) > 0.93
    assert 0.5 < score(X, T) < 0.75


def test_digits_come_without_repetition_and_all_by_default():
    assert datasets.digits().shape == (1_797, 64)
    part = datasets.digits(500, 3)
    assert len(np.unique(part, axis=0)) == len(part)
    with pytest.raises(ValueError, match="there are 1797 digits"):
        datasets.digits(2_000)
    with pytest.raises(ValueError, match="choose 'source' or 'target'"):
        datasets.digits(rendering="usps")


def test_allen_cahn_takes_the_step_of_its_equation():
    g, lag, D, eps = 5, 1e-5, 2e-3, 0.02
    X, Y = datasets.allen_cahn(1, lag, 0, n_grid=g, diffusion=D, width=eps, noise=0.0, burn_in=3)
    u, expected = X.reshape(g, g), np.empty((g, g))
    for i in range(g):
        for j in range(g):
            around = u[i - 1, j] + u[(i + 1) % g, j] + u[i, j - 1] + u[i, (j + 1) % g]
            lap = (around - 4 * u[i, j]) * g * g
            expected[i, j] = u[i, j] + lag * (D * lap + (u[i, j] - u[i, j] ** 3) / eps**2)
    np.testing.assert_allclose(Y.reshape(g, g), expected, rtol=1e-12)


def test_allen_cahn_noise_has_its_size_and_fields_separate():
    lag, s = 2e-5, 1.4142
    X, Y = datasets.allen_cahn(400, lag, 1, n_grid=16, independent=True)
    drift = lambda u: (u - u**3) / 0.01**2
    u = X.reshape(-1, 16, 16)
    lap = sum(np.roll(u, k, axis) for k in (1, -1) for axis in (1, 2)) - 4 * u
    kick = (Y.reshape(u.shape) - u - lag * (1e-3 * 256 * lap + drift(u))).ravel()
    assert_mean(kick, 0.0)
    assert_mean(kick**2, s * s * lag, bias=1e-4 * s * s * lag)
    assert np.mean(np.abs(Y) > 0.8) > 0.9
    with pytest.raises(ValueError, match=r"pass n_substeps=\d+ or more"):
        datasets.allen_cahn(10, 1e-2)


# --- projections


def test_projections_return_the_nearest_point():
    Z = np.random.default_rng(0).normal(size=(40, 3))
    t, f = (a.ravel() for a in np.meshgrid(*[np.linspace(-math.pi, math.pi, 400)] * 2))
    w = 2 + 0.8 * np.cos(f)
    surface = np.stack([w * np.cos(t), w * np.sin(t), 0.8 * np.sin(f)], axis=1)
    near = datasets.project_torus(Z)
    for z, p in zip(Z, near, strict=True):
        best = np.linalg.norm(surface - z, axis=1).min()
        assert np.linalg.norm(p - z) <= best + 1e-12  # no grid point is nearer
        assert np.linalg.norm(p - z) >= best - 0.03  # the grid is within 0.022 of every point
    np.testing.assert_allclose(datasets.project_torus(near), near, atol=1e-12)
    for arc in (2 * math.pi, math.pi, 4.0):
        angle = np.linspace(0, arc, 4_001)
        curve = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        for z, p in zip(Z[:, :2], datasets.project_circle(Z[:, :2], arc=arc), strict=True):
            best = np.linalg.norm(curve - z, axis=1).min()
            assert best - 2e-3 <= np.linalg.norm(p - z) <= best + 1e-12


def test_projections_keep_the_dtype_and_have_values_where_nothing_is_nearest():
    assert datasets.project_torus(np.zeros((2, 3), np.float32)).dtype == np.float32
    np.testing.assert_allclose(datasets.project_circle(np.zeros((1, 2))), [[1, 0]])
    np.testing.assert_allclose(datasets.project_torus(np.array([[2.0, 0, 0]])), [[2.8, 0, 0]])
    with pytest.raises(ValueError, match=r"pass an array of shape \(n, 3\)"):
        datasets.project_torus(np.zeros((2, 2)))


# --- random states, errors


def test_a_seed_repeats_and_a_stream_is_spawned():
    a, b = (datasets.quadruple_well(20, random_state=3)[0] for _ in range(2))
    np.testing.assert_array_equal(a, b)
    rng = np.random.default_rng(0)
    c, d = datasets.moons(20, rng), datasets.moons(20, rng)
    assert not np.array_equal(c, d)
    assert rng.random() == np.random.default_rng(0).random()
    legacy = np.random.RandomState(0)
    e = datasets.moons(20, legacy)
    assert legacy.rand() == np.random.RandomState(0).rand()
    assert not np.array_equal(e, datasets.moons(20, legacy))
    assert not np.array_equal(datasets.moons(20), datasets.moons(20))
    for wrong in ("0", 1.5, -1, True):
        with pytest.raises(TypeError, match="random_state is"):
            random_generator(wrong)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: datasets.quadruple_well(0), ValueError, "n_samples is 0"),
        (
            lambda: datasets.quadruple_well(10.0),
            TypeError,
            "n_samples is 10.0: pass a whole number",
        ),
        (lambda: datasets.quadruple_well(10, lag_time=0), ValueError, "lag_time is 0: .* > 0"),
        (lambda: datasets.quadruple_well(10, lag_time="x"), TypeError, "lag_time is 'x'"),
        (
            lambda: datasets.quadruple_well(500, 50.0, 0, n_substeps=10),
            ValueError,
            "raise n_substeps",
        ),
        (lambda: datasets.ornstein_uhlenbeck(5, temperature=-1), ValueError, "temperature is -1"),
        (lambda: datasets.ornstein_uhlenbeck(5, n_features=0), ValueError, "n_features is 0"),
        (lambda: datasets.circle(5, arc=7), ValueError, "arc is 7"),
        (lambda: datasets.circle(5, inner_radius=2), ValueError, "inner_radius is 2"),
        (lambda: datasets.torus(5, R=1, rho=2), ValueError, "rho = 2.0 is not below R = 1.0"),
        (lambda: datasets.moons(5, noise=math.nan), ValueError, "noise is nan: .* >= 0"),
        (lambda: datasets.exact("triple_well"), ValueError, "choose one of quadruple_well"),
        (lambda: datasets.exact("torus", r=1), TypeError, "shaped by R, rho"),
        (lambda: datasets.exact("torus", 0), ValueError, "n_eigenvalues is 0"),
        (lambda: datasets.exact(["torus"]), ValueError, "choose one of"),
        (lambda: datasets.potential("double_well", ["a"]), TypeError, "Z has dtype <U1"),
        (lambda: datasets.density("torus", np.zeros((1, 3))), ValueError, "no density is known"),
        (lambda: datasets.density("three_rings", np.zeros((1, 2))), ValueError, "noise > 0"),
        (lambda: datasets.density("moons", np.zeros((1, 3))), ValueError, r"\(n, 2\)"),
        (
            lambda: datasets.potential("moons", np.zeros((1, 2))),
            ValueError,
            "no potential is known",
        ),
    ],
)
def test_errors_say_what_came_and_what_to_do(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_importing_the_data_sets_compiles_nothing():
    code = "import sys, gpukoop.datasets; print('numba' in sys.modules, 'sklearn' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.split() == ["False", "False"]
