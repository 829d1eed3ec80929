"""Feynman-Kac weights against Mehler's formula, exact semigroups of small chains, and what they must obey."""

import functools

import numpy as np
import pytest
from scipy.linalg import expm

import gpukoop as gk
from gpukoop import datasets
from gpukoop.spectrum.killing import survival


def mehler(Z, a, t):
    """Return E exp(-int_0^t a |X_s|^2 ds) of the Ornstein-Uhlenbeck process from Z, and b of its exp(-b |z|^2 / 2).

    u = exp(-A - b z^2 / 2) solves u_t = u'' - z u' - a z^2 u if A' = b and b' = 2 (a - b - b^2), both 0 at the start.
    """
    k = np.sqrt(1 + 4 * a)
    b = 2 * a * np.tanh(k * t) / (k + np.tanh(k * t))
    A = (np.log(np.cosh(k * t) + np.sinh(k * t) / k) - t) / 2
    return np.exp(-A * Z.shape[1] - b * (Z**2).sum(axis=1) / 2), b


def test_mehler_solves_its_equation():
    z, a, t, h = np.linspace(-2, 2, 9)[:, None], 0.7, 0.8, 1e-3
    u = lambda z, t: mehler(z, a, t)[0]
    rate = (u(z, t + h) - u(z, t - h)) / (2 * h)
    slope = (u(z + h, t) - u(z - h, t)) / (2 * h)
    curvature = (u(z + h, t) + u(z - h, t) - 2 * u(z, t)) / h**2
    np.testing.assert_allclose(
        rate, curvature - z[:, 0] * slope - a * z[:, 0] ** 2 * u(z, t), atol=1e-5
    )


@functools.cache
def ornstein_uhlenbeck_flow(pairs):
    X, Y = datasets.ornstein_uhlenbeck(4_000, 0.1, 1, independent=True)
    flow = gk.KSWGD(lag_time=0.1, random_state=0)
    return flow.fit(X, successors=Y) if pairs else flow.fit(X)


@pytest.mark.parametrize("pairs", [False, True], ids=["samples", "pairs"])
@pytest.mark.parametrize(("a", "t"), [(0.5, 0.1), (0.5, 1.0), (0.1, 1.0)])
def test_weights_are_those_of_mehler(pairs, a, t):
    Z, _ = datasets.ornstein_uhlenbeck(2_000, 0.1, 101, independent=True)
    flow = ornstein_uhlenbeck_flow(pairs)
    u = flow.weights(Z, lambda z: a * (z**2).sum(axis=1), t)
    exact, b = mehler(Z, a, t)
    assert np.sqrt(np.mean((u - exact) ** 2) / np.mean(exact**2)) < 0.03
    assert u.mean() == pytest.approx(exact.mean(), rel=0.03)
    # the weighted law is normal with variance 1 / (1 + b); particles themselves know theirs to sqrt(2 / n)
    spread = np.average(Z[:, 0] ** 2, weights=u)
    assert spread == pytest.approx(np.average(Z[:, 0] ** 2, weights=exact), rel=0.03)
    assert spread == pytest.approx(1 / (1 + b), rel=0.03 + 4 * np.sqrt(2 / 2_000))


class Chain:
    """The spectrum of a reversible random walk on k states of equal mass: everything is a matrix."""

    def __init__(self, k, rng):
        A = rng.random((k, k))
        L = -(A + A.T)
        np.fill_diagonal(L, 0.0)
        self.L = L - np.diag(L.sum(axis=1))
        values, vectors = np.linalg.eigh(self.L)
        self.eigenvalues_ = values[1:]
        self.modes = vectors[:, 1:] * np.sqrt(k)

    def transform(self, X):
        return self.modes[X[:, 0].astype(int)]


def test_survival_is_the_exponential_of_the_matrix():
    rng = np.random.default_rng(0)
    chain, X = Chain(7, rng), np.arange(7.0)[:, None]
    c = rng.normal(size=7)
    for t in (1e-3, 0.2, 3.0):
        u = survival(chain, X, X[[3, 0]], c, c[[3, 0]], t)
        expected = (expm(-t * (chain.L + np.diag(c))) @ np.ones(7))[[3, 0]]
        # Strang: the error of a step of h is h^3 times commutators, of all steps t h^2 times them
        np.testing.assert_allclose(u, expected, rtol=2e-3)
    c[2] = np.inf  # the state is forbidden: what is left is the matrix without it
    free = np.arange(7) != 2
    expected = expm(-0.2 * (chain.L + np.diag(np.where(free, c, 0)))[np.ix_(free, free)]) @ np.ones(
        6
    )
    u = survival(chain, X, X, c, c, 0.2)
    assert u[2] == 0
    np.testing.assert_allclose(u[free], expected, rtol=0.06)


def test_no_killing_kills_none_and_short_times_reweight():
    X = datasets.moons(600, 0)
    Z = datasets.moons(200, 1).astype(np.float32)
    flow = gk.KSWGD(n_components=20, random_state=0).fit(X)
    assert (flow.weights(Z, lambda z: np.zeros(len(z))) == 1).all()
    assert flow.weights(Z, lambda z: np.zeros(len(z))).dtype == np.float32
    np.testing.assert_allclose(
        flow.weights(Z, lambda z: np.full(len(z), 2.0), 0.3), np.exp(-0.6), rtol=1e-5
    )
    likelihood = lambda z: np.exp(-((z[:, 0] - 1) ** 2) / 0.3)
    t = 1e-6
    u = flow.weights(Z, lambda z: -np.log(likelihood(z)) / t, t)
    np.testing.assert_allclose(u, likelihood(Z), rtol=1e-3, atol=1e-6)
    # more killing, fewer survivors; survival falls with time
    c = lambda z: (z[:, 0] > 0.5) * 3.0
    first, second, more = (
        flow.weights(Z, f, t) for f, t in ((c, 0.1), (c, 0.3), (lambda z: 2 * c(z), 0.1))
    )
    assert (second <= first + 0.02).all()
    assert (more <= first + 0.02).all()
    assert first.min() >= 0
    assert first.max() <= 1


def test_resampled_particles_are_conditioned():
    X, _ = datasets.quadruple_well(1_500, random_state=0, independent=True)
    Z, _ = datasets.quadruple_well(1_000, random_state=1, independent=True)
    flow = gk.KSWGD(random_state=0).fit(X)
    wall = lambda z: np.where(z[:, 0] > 0, 0.0, np.inf)
    w = flow.weights(Z, wall, 0.2)
    assert (w[Z[:, 0] <= 0] == 0).all()
    right = Z[:, 0] > 0
    near, far = right & (Z[:, 0] < 0.3), right & (Z[:, 0] > 0.9)
    assert w[near].mean() < 0.8 * w[far].mean()  # who starts at the wall is likelier to meet it
    drawn = flow.resample(Z, wall, 0.2, n_samples=500, random_state=0)
    assert drawn.shape == (500, 2)
    assert (drawn[:, 0] > 0).all()
    assert drawn[:, 0].mean() == pytest.approx(np.average(Z[:, 0], weights=w), abs=0.02)
    counts = np.unique(flow.resample(Z, wall, 0.2, random_state=0), axis=0, return_counts=True)[1]
    assert counts.max() <= np.ceil(len(Z) * w.max() / w.sum())  # systematic: rounded up at most
    with pytest.raises(ValueError, match="no particle survives"):
        flow.resample(Z, lambda z: np.full(len(z), np.inf), 0.2)


@pytest.mark.parametrize(
    ("rate", "time", "error", "words"),
    [
        (3, 1.0, TypeError, "potential is of type int"),
        (lambda z: z, 1.0, ValueError, r"has shape \(100, 2\) for 100 points"),
        (lambda z: np.full(len(z), np.nan), 1.0, ValueError, "NaN or minus infinity"),
        (lambda z: z[:, 0], -1.0, ValueError, "time is -1.0"),
    ],
)
def test_a_rate_is_checked(rate, time, error, words):
    X = np.random.default_rng(0).normal(size=(100, 2))
    flow = gk.KSWGD(n_components=5, random_state=0).fit(X)
    with pytest.raises(error, match=words):
        flow.weights(X, rate, time)
