"""Every metric against a slow definition that shares no code with it, and against closed forms for Gaussians.

SIGMAS = 5 standard errors are allowed where a bound is statistical; seeds are fixed.
"""

import itertools
import math
from functools import partial

import numpy as np
import pytest
from scipy import integrate, optimize, stats
from scipy.spatial.distance import cdist, pdist

import gpukoop as gk
from gpukoop import datasets, metrics

SIGMAS = 5.0
ROUND = 1e-12  # of sums of a few hundred terms of order one
ROOT = 1e-7  # the same after a root of a difference that cancels


@pytest.fixture(autouse=True)
def _reference_sums():
    with gk.use_backend("numpy"):
        yield


def clouds(n=40, m=30, d=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)), 0.5 + 1.5 * rng.normal(size=(m, d))


# --- MMD


def test_mmd_is_the_v_statistic():
    X, Y = clouds()
    k = lambda A, B: np.exp(-cdist(A, B, "sqeuclidean") / (2 * 0.7**2)).mean()
    expected = math.sqrt(k(X, X) + k(Y, Y) - 2 * k(X, Y))
    assert metrics.mmd(X, Y, gk.Gaussian(0.7)) == pytest.approx(expected, rel=ROUND)


def test_mmd_takes_the_median_rule_over_both_clouds():
    X, Y = clouds()
    squared = np.median(pdist(np.vstack([X, Y]), "sqeuclidean"))
    scale = math.sqrt(squared / (2 * math.log(len(X) + len(Y) + 1)))
    expected = metrics.mmd(X, Y, gk.Gaussian(scale))
    assert metrics.mmd(X, Y) == pytest.approx(expected, rel=ROUND)
    assert metrics.mmd(Y, X, gk.Gaussian("median")) == pytest.approx(expected, rel=ROUND)


def test_mmd_of_collapsed_clouds_far_away_is_the_number_to_recognise():
    X, _ = clouds(d=2)
    point = np.full((50, 2), 100.0)
    own = np.exp(-cdist(X, X, "sqeuclidean") / 2).mean()
    assert metrics.mmd(X, point, gk.Gaussian(1.0)) == pytest.approx(math.sqrt(1 + own), rel=ROUND)


def test_mmd_estimates_the_closed_form():
    rng = np.random.default_rng(1)
    n, scale = 400, 0.8
    m1, S1 = np.zeros(2), np.array([[1.0, 0.3], [0.3, 0.5]])
    m2, S2 = np.array([0.5, -0.2]), np.array([[0.6, 0.0], [0.0, 1.2]])
    squares = [
        metrics.mmd(
            rng.multivariate_normal(m1, S1, n),
            rng.multivariate_normal(m2, S2, n),
            gk.Gaussian(scale),
        )
        ** 2
        for _ in range(12)
    ]
    # the V-statistic keeps k(0) = 1 on the diagonal: its bias is (1 - E k(x, x')) / n for each cloud
    own = [1 / math.sqrt(np.linalg.det(np.eye(2) + 2 * S / scale**2)) for S in (S1, S2)]
    expected = metrics.gaussian_mmd(m1, S1, m2, S2, scale) ** 2 + sum(1 - o for o in own) / n
    error = np.std(squares, ddof=1) / math.sqrt(len(squares))
    assert abs(np.mean(squares) - expected) < SIGMAS * error


def test_gaussian_mmd_against_quadrature():
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()

    def mean_kernel(m1, s1, m2, s2, scale):
        gap = m1 + s1 * nodes[:, None] - m2 - s2 * nodes
        return weights @ np.exp(-(gap**2) / (2 * scale**2)) @ weights

    laws = (0.3, 1.0), (-0.4, 0.5)
    squared = sum(mean_kernel(*law, *law, 1.3) for law in laws) - 2 * mean_kernel(
        *laws[0], *laws[1], 1.3
    )
    closed = metrics.gaussian_mmd(0.3, 1.0, -0.4, 0.25, 1.3)  # covariances, not deviations
    assert closed == pytest.approx(math.sqrt(squared), rel=1e-9)


# --- energy distance


@pytest.mark.parametrize(("n", "m"), [(40, 30), (1, 7), (25, 25)])
def test_energy_distance_sorted_and_pairwise_agree(n, m):
    X, Y = clouds(n, m, 1)
    X, Y = np.round(X, 1), np.round(Y, 1)  # ties within and between the clouds
    mean = lambda A, B: np.abs(A - B.T).mean()
    expected = 2 * mean(X, Y) - mean(X, X) - mean(Y, Y)
    assert metrics.energy_distance(X, Y) == pytest.approx(expected, rel=ROUND, abs=ROUND)
    root = stats.energy_distance(X[:, 0], Y[:, 0])
    assert metrics.energy_distance(X, Y) == pytest.approx(root**2, rel=ROUND)
    plane = [
        np.hstack([A, np.zeros_like(A)]) for A in (X, Y)
    ]  # the same distances, through the operator
    assert metrics.energy_distance(*plane) == pytest.approx(expected, rel=1e-9)


def test_gaussian_energy_distance_against_quadrature_and_draws():
    gap = lambda z: (stats.norm.cdf(z, 0.2, 1.0) - stats.norm.cdf(z, -0.5, 2.0)) ** 2
    expected = 2 * integrate.quad(gap, -30, 30, limit=200)[0]
    closed = metrics.gaussian_energy_distance(0.2, 1.0, -0.5, 2.0)
    assert closed == pytest.approx(expected, rel=1e-8)
    assert metrics.gaussian_energy_distance(1.0, 0.0, -1.0, 0.0) == pytest.approx(4.0)
    rng = np.random.default_rng(2)
    n = 2_000
    draws = [
        metrics.energy_distance(rng.normal(0.2, 1, (n, 1)), rng.normal(-0.5, 2, (n, 1)))
        for _ in range(12)
    ]
    # diagonal pairs of the V-statistic are 0: its bias is E|x - x'| / n for each cloud
    bias = 2 / math.sqrt(math.pi) * (1.0 + 2.0) / n
    error = np.std(draws, ddof=1) / math.sqrt(len(draws))
    assert abs(np.mean(draws) - closed - bias) < SIGMAS * error


# --- Wasserstein


def test_wasserstein_of_a_convex_gradient_is_its_displacement():
    X, _ = clouds(60, d=3)
    A = np.array([[1.5, 0.2, 0], [0.2, 0.8, 0.1], [0, 0.1, 2.0]])
    Y = X @ A + [1.0, 0, -2]
    expected = math.sqrt(np.mean(np.sum((X - Y) ** 2, axis=1)))
    shuffled = np.random.default_rng(0).permutation(Y)
    assert metrics.wasserstein(X, shuffled) == pytest.approx(expected, rel=ROUND)


def test_wasserstein_is_the_best_permutation():
    X, Y = clouds(6, 6, 2)
    cost = cdist(X, Y, "sqeuclidean")
    best = min(cost[range(6), p].mean() for p in itertools.permutations(range(6)))
    assert metrics.wasserstein(X, Y) == pytest.approx(math.sqrt(best), rel=ROUND)


@pytest.mark.parametrize("d", [1, 2])
def test_wasserstein_of_unequal_clouds_is_the_transport_problem(d):
    n, m = 6, 4
    X, Y = clouds(n, m, d)
    rows = np.kron(np.eye(n), np.ones(m))
    columns = np.kron(np.ones(n), np.eye(m))
    marginals = np.concatenate([np.full(n, 1 / n), np.full(m, 1 / m)])
    plan = optimize.linprog(
        cdist(X, Y, "sqeuclidean").ravel(), A_eq=np.vstack([rows, columns]), b_eq=marginals
    )
    assert metrics.wasserstein(X, Y) == pytest.approx(math.sqrt(plan.fun), rel=1e-9)


def test_gaussian_wasserstein_is_the_optimal_affine_map():
    rng = np.random.default_rng(3)
    X = rng.normal(size=(80, 3))
    X = (X - X.mean(axis=0)) @ np.linalg.inv(
        np.linalg.cholesky(np.cov(X.T, bias=True))
    ).T  # N(0, I) moments
    root = np.array([[1.0, 0.3, 0], [0.3, 0.7, 0], [0, 0, 2.0]])
    Y = X @ root + [1, 2, 3]
    closed = metrics.gaussian_wasserstein(np.zeros(3), np.eye(3), [1, 2, 3], root @ root)
    assert metrics.wasserstein(X, Y) == pytest.approx(closed, rel=1e-10)
    S1, S2 = root @ root, np.diag([0.5, 1.0, 2.0])
    back = metrics.gaussian_wasserstein([1, 0, 0], S2, [0, 0, 0], S1)
    assert metrics.gaussian_wasserstein([0, 0, 0], S1, [1, 0, 0], S2) == pytest.approx(
        back, rel=ROUND
    )
    assert metrics.gaussian_wasserstein([0, 0, 0], S1, [0, 0, 0], S1) == pytest.approx(0, abs=ROOT)


def test_sliced_wasserstein_of_a_shift():
    X, _ = clouds(50, d=4)
    shift = np.array([1.0, -2.0, 0.5, 0.0])
    P = 4_000
    squared = metrics.sliced_wasserstein(X, X + shift, n_projections=P) ** 2
    # (theta . a)^2 = |a|^2 beta, beta ~ Beta(1/2, (d-1)/2) of mean 1/d
    beta = stats.beta(0.5, 1.5)
    a2 = shift @ shift
    assert abs(squared - a2 * beta.mean()) < SIGMAS * a2 * beta.std() / math.sqrt(P)


def test_sliced_wasserstein_on_the_line_is_wasserstein_and_repeats_do_not_matter():
    X, Y = clouds(31, 17, 1)
    assert metrics.sliced_wasserstein(X, Y) == pytest.approx(metrics.wasserstein(X, Y), rel=ROUND)
    X, Y = clouds(30, 20, 3)
    once = metrics.sliced_wasserstein(X, Y)
    again = metrics.sliced_wasserstein(np.repeat(X, 2, axis=0), np.repeat(Y, 3, axis=0))
    assert again == pytest.approx(once, rel=ROUND)  # 60 and 60 rows: the branch of equal sizes
    assert metrics.sliced_wasserstein(X, np.repeat(X, 3, axis=0)) == pytest.approx(0, abs=ROOT)


def test_sliced_wasserstein_blocks_and_seeds(monkeypatch):
    X, Y = clouds()
    value = metrics.sliced_wasserstein(X, Y)
    assert metrics.sliced_wasserstein(X, Y) == value
    assert metrics.sliced_wasserstein(X, Y, random_state=1) != value
    monkeypatch.setattr(metrics, "SORT_BLOCK", 5 * (len(X) + len(Y)))
    assert metrics.sliced_wasserstein(X, Y) == pytest.approx(value, rel=ROUND)


# --- one cloud


@pytest.mark.parametrize("d", [1, 2])
def test_kl_divergence_is_that_of_scipys_density_estimate(d):
    X, _ = clouds(200, d=d)
    low, high, k = -2.5, 2.0, 15
    axis = np.linspace(low, high, k)
    grid = np.stack(np.meshgrid(*[axis] * d, indexing="ij"), axis=-1).reshape(-1, d)
    p = stats.gaussian_kde(X.T)(grid.T)
    q = np.exp(-np.sum(grid**2, axis=1) / 2)
    p, q = p / p.sum(), q / q.sum()
    score = metrics.kl_divergence(
        X, lambda Z: 7 * np.exp(-np.sum(Z**2, axis=1) / 2), bounds=(low, high), n_grid=k
    )
    assert score == pytest.approx(np.sum(p * np.log(p / q)), rel=1e-9)


def test_kl_divergence_of_draws_of_the_quadruple_well_is_the_published_floor():
    draw = partial(datasets.quadruple_well, independent=True)
    target = partial(datasets.density, "quadruple_well")
    score = lambda X, _: metrics.kl_divergence(X, target, bounds=(-2, 2))
    for n, published, spread in ((1_000, 0.181, 0.019), (3_000, 0.102, 0.007)):
        mean, sd = metrics.iid_floor(score, draw, n, random_state=4)
        # two means of eight draws each
        assert abs(mean - published) < SIGMAS * max(sd, spread) * math.sqrt(2 / 8)


def test_kl_divergence_is_infinite_where_the_density_vanishes():
    X = datasets.checkerboard(500, 0)
    assert metrics.kl_divergence(X, partial(datasets.density, "checkerboard")) == math.inf


def test_coverage_counts_per_cent_of_points_near_any_centre():
    X = np.array([[0.0, 0], [0, 0.39], [0, 0.41], [5, 5]])
    assert metrics.coverage(X, np.array([[0, 0], [5, 5]]), 0.4) == 75.0
    answer = datasets.exact("quadruple_well")
    draws = datasets.quadruple_well(4_000, random_state=5, independent=True)[0]
    share = answer["coverage"] / 100
    error = 100 * math.sqrt(share * (1 - share) / 4_000)
    assert abs(metrics.coverage(draws, answer["centres"], 0.4) - 100 * share) < SIGMAS * error


def test_nearest_neighbour_distance_is_the_spacing_of_a_lattice_and_sees_collapse():
    lattice = 0.25 * np.array(list(itertools.product(range(5), repeat=2)), dtype=float)
    assert metrics.nearest_neighbour_distance(lattice) == pytest.approx(0.25, rel=ROUND)
    assert metrics.nearest_neighbour_distance(np.repeat(lattice, 2, axis=0)) == 0.0


# --- floors


def test_iid_floor_shrinks_like_the_root_of_n_and_is_beaten_by_nothing_else():
    # for a bounded kernel E MMD^2 = (1/n + 1/m) (k(0) - E k), here with n = m
    score = partial(metrics.mmd, kernel=gk.Gaussian(1.0))
    small, sd_small = metrics.iid_floor(score, datasets.moons, 100, n_repeats=12)
    large, sd_large = metrics.iid_floor(score, datasets.moons, 400, n_repeats=12)
    error = 0.5 * math.hypot(
        sd_small, 2 * sd_large
    )  # one reference each: its own error does not average out
    assert abs(small - 2 * large) < SIGMAS * 2 * error
    wrong, _ = metrics.iid_floor(
        score, datasets.eight_gaussians, 400, reference=datasets.moons(400, 9)
    )
    assert wrong > large + SIGMAS * sd_large


def test_iid_floor_takes_pairs_a_reference_and_a_seed():
    draw = partial(datasets.quadruple_well, independent=True)
    reference = draw(300, random_state=1)[0]
    sizes = []

    def score(X, R):
        sizes.append(len(X))
        assert R is reference
        return float(X[0, 0])

    first = metrics.iid_floor(score, draw, 50, n_repeats=3, reference=reference)
    assert sizes == [50] * 3
    assert metrics.iid_floor(score, draw, 50, n_repeats=3, reference=reference) == first
    assert first[1] > 0  # the draws differ
    other = metrics.iid_floor(lambda X, R: len(R), datasets.moons, 10, n_repeats=2, n_reference=30)
    assert other == (30.0, 0.0)


# --- input


METRICS = (metrics.mmd, metrics.energy_distance, metrics.sliced_wasserstein, metrics.wasserstein)


@pytest.mark.parametrize("metric", METRICS)
def test_two_cloud_metrics_share_their_contract(metric):
    X, Y = clouds(20, 20, 2)
    before = X.copy(), Y.copy()
    value = metric(X, Y)
    assert isinstance(value, float)
    assert value > 0
    assert metric(Y, X) == pytest.approx(value, rel=1e-9)
    assert metric(X, X.copy()) == pytest.approx(0, abs=ROOT)
    assert metric(X + 3, Y + 3) == pytest.approx(value, rel=1e-7)
    for kept, now in zip(before, (X, Y), strict=True):
        np.testing.assert_array_equal(kept, now)
    assert metric(X, np.rint(4 * Y).astype(int)) == metric(
        X, np.rint(4 * Y)
    )  # whole numbers are numbers
    # float32 points are rounded, the sums are not: 1e-6 is 20 roundings of the coordinates
    assert metric(X.astype(np.float32), Y.astype(np.float32)) == pytest.approx(value, rel=1e-6)
    for bad, error, words in (
        (Y[:, :1], ValueError, "Y has 1 features, X has 2"),
        (Y[0], ValueError, r"Y has shape \(2,\)"),
        (Y[:0], ValueError, "Y has 0 sample"),
        (np.where(Y == Y[3, 1], np.nan, Y), ValueError, r"Y contains NaN or inf.*\(3, 1\)"),
        (Y.astype(str), TypeError, "Y has text"),
    ):
        with pytest.raises(error, match=words):
            metric(X, bad)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda X: metrics.mmd(X, X, "gaussian"), TypeError, "kernel is 'gaussian'"),
        (
            lambda X: metrics.sliced_wasserstein(X, X, n_projections=0),
            ValueError,
            "n_projections is 0",
        ),
        (
            lambda X: metrics.wasserstein(np.zeros((10_001, 2)), np.ones((10_001, 2))),
            ValueError,
            "an assignment of 10001, the limit is 10000",
        ),
        (
            lambda X: metrics.kl_divergence(np.ones((9, 2)), lambda Z: Z[:, 0]),
            ValueError,
            "no density can be",
        ),
        (
            lambda X: metrics.kl_divergence(np.ones((9, 4)), lambda Z: Z[:, 0]),
            ValueError,
            "at most 3",
        ),
        (lambda X: metrics.kl_divergence(X, lambda Z: Z), ValueError, r"expected \(2500,\)"),
        (
            lambda X: metrics.kl_divergence(X, lambda Z: Z[:, 0], bounds=(2, 1)),
            ValueError,
            "bounds is",
        ),
        (
            lambda X: metrics.kl_divergence(X, lambda Z: np.ones(len(Z)), bounds=(900, 901)),
            ValueError,
            "no point of X is near the grid",
        ),
        (
            lambda X: metrics.coverage(X, np.zeros((1, 3)), 1.0),
            ValueError,
            "centres has 3 features",
        ),
        (lambda X: metrics.coverage(X, np.zeros((1, 2)), 0.0), ValueError, "radius is 0"),
        (
            lambda X: metrics.coverage(X, "wells", 1.0),
            TypeError,
            "centres is .wells., expected an array",
        ),
        (lambda X: metrics.kl_divergence(X, X), TypeError, "density is of type ndarray"),
        (lambda X: metrics.iid_floor(1.0, datasets.moons, 9), TypeError, "metric is of type float"),
        (lambda X: metrics.iid_floor(metrics.mmd, X, 9), TypeError, "draw is of type ndarray"),
        (lambda X: metrics.nearest_neighbour_distance(X[:1]), ValueError, "needs at least 2"),
        (
            lambda X: metrics.iid_floor(metrics.mmd, datasets.moons, 9, n_repeats=1),
            ValueError,
            "n_repeats is 1",
        ),
        (
            lambda X: metrics.gaussian_mmd([0, 0], np.eye(3), [0, 0], np.eye(2), 1),
            ValueError,
            "S1 has shape",
        ),
        (
            lambda X: metrics.gaussian_mmd(0, -1, 0, 1, 1),
            ValueError,
            "S1 has a negative eigenvalue",
        ),
        (lambda X: metrics.gaussian_energy_distance(0, -1, 0, 1), ValueError, "s1 is -1"),
    ],
)
def test_errors_say_what_came_and_what_to_do(call, error, words):
    with pytest.raises(error, match=words):
        call(clouds(20, 20, 2)[0])
