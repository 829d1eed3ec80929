"""Dictionaries: exact derivatives, products without the matrix, the head of the lift (T5, T15)."""

import math

import numpy as np
import pytest

import gpukoop as gk
from gpukoop.sampler import (
    Clock,
    EndpointFeatures,
    FourierFeatures,
    GaussianTeacher,
    Lift,
    NystroemFeatures,
    PolynomialFeatures,
    UserFeatures,
)

# Central differences with step h: truncation h^2 and rounding eps / h balance near 1e-5, at about 1e-9 of the derivatives here.
STEP = 1e-5
T5 = 1e-6


def landmarks(rng, d, m=40):
    return rng.normal(size=(m, d)), rng.random(m)


class Cubes:
    """A user's features: x^3 and t x."""

    def features(self, x, t):
        return np.concatenate([x**3, t[:, None] * x], axis=1)

    def features_and_jvp(self, x, t, u):
        rate = np.concatenate([3 * x**2 * u, x + t[:, None] * u], axis=1)
        return self.features(x, t), rate


def blocks(d):
    rng = np.random.default_rng(3)
    x, t = landmarks(rng, d)
    kernels = [
        gk.Gaussian(1.0),
        gk.Matern52(0.8),
        gk.InverseMultiquadric(1.0),
        gk.RationalQuadratic(1.0, 2.0),
        gk.Gaussian(0.7) + 0.5 * gk.Matern32(2.0),
    ]
    made = [NystroemFeatures(x, t, scale=0.9, time_scale=0.5, kernel=k) for k in kernels]
    made += [
        FourierFeatures(d, 30, scale=1.0, time_scale=0.5, rng=rng),
        FourierFeatures(d, 30, scale=1.0, time_scale=0.5, rng=rng, smoothness=1.5),
        PolynomialFeatures(d, 3, 4, centre=0.1, half_width=1.7),
        PolynomialFeatures(d, 4, 0),
        PolynomialFeatures(d, 1, 6),
        EndpointFeatures(np.arange(d) + 0.5, np.diag(0.3 + np.arange(d)) + 0.1),
        UserFeatures(Cubes(), d),
    ]
    return made


@pytest.mark.parametrize("d", [1, 2, 5])
def test_jvp_is_the_derivative(d):
    rng = np.random.default_rng(0)
    x, t, u = rng.normal(size=(20, d)), rng.random(20), rng.normal(size=(20, d))
    for block in blocks(d):
        phi, rate = block.features_and_jvp(x, t, u)
        ahead = block.features(x + STEP * u, t + STEP)
        behind = block.features(x - STEP * u, t - STEP)
        difference = (ahead - behind) / (2 * STEP)
        assert phi.shape == rate.shape == (20, block.n_features)
        np.testing.assert_allclose(phi, block.features(x, t), rtol=0, atol=1e-12 * abs(phi).max())
        # Whitened features divide by roots of eigenvalues down to 1e-8: measure against the size of the block.
        assert abs(rate - difference).max() < T5 * max(1.0, abs(rate).max()), block


@pytest.mark.parametrize("time", [0.0, 0.35, "each"])
def test_product_equals_features_times_weights(time):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(700, 2))
    t = rng.random(700) if time == "each" else time
    for block in blocks(2):
        P = rng.normal(size=(block.n_features, 3))
        dense = block.features(x, t) @ P
        bound = 1e-12 * (abs(dense).max() + _size(block))
        assert abs(block.product(x, t, P) - dense).max() < bound, block


def _size(block):
    """Weights of the landmarks are as large as the whitening: their sum cancels to the result."""
    whitening = getattr(block, "whitening", None)
    return 0.0 if whitening is None else float(abs(whitening).sum())


def test_lift_head_and_generator_of_time():
    rng = np.random.default_rng(2)
    x, t, u = rng.normal(size=(10, 2)), rng.random(10), rng.normal(size=(10, 2))
    lift = Lift(2, [PolynomialFeatures(2, 2, 1)])
    g, rate = lift.lift_and_generate(x, t, u)
    assert (g[:, 0] == 1).all()
    assert (g[:, 1] == t).all()
    assert (g[:, 2:4] == x).all()
    assert (rate[:, :4] == np.column_stack([np.zeros(10), np.ones(10), u])).all()
    assert (g @ lift.decoder == x).all()
    log = Lift(2, [PolynomialFeatures(2, 2, 1)], Clock.named("log"))
    g, slow = log.lift_and_generate(x, t, u)
    assert (g[:, 1] == 1 - t).all()
    np.testing.assert_allclose(slow[:, 1], -(1 - t), rtol=1e-15)
    np.testing.assert_allclose(slow[:, 2:], (1 - t)[:, None] * rate[:, 2:], rtol=1e-14)


def test_polynomials_span_each_product_once():
    """C(d + p, p) (K + 1) functions in all, the head included; their values are linearly independent."""
    for d, p, K in [(3, 4, 0), (1, 1, 16), (2, 3, 2), (2, 1, 0)]:
        lift = Lift(d, [PolynomialFeatures(d, p, K)])
        # With K = 0 the head adds t, which the products lack.
        assert lift.n_features == math.comb(d + p, p) * (K + 1) + (K == 0)
        rng = np.random.default_rng(0)
        g = lift.lift(rng.uniform(-1, 1, (400, d)), rng.random(400))
        assert np.linalg.matrix_rank(g) == lift.n_features


def test_endpoint_features_are_constant_along_the_gaussian_flow():
    S = np.array([[0.5, 0.2], [0.2, 0.3]])
    teacher = GaussianTeacher([1.0, -2.0], S)
    x0 = np.random.default_rng(0).normal(size=(50, 2))
    block = EndpointFeatures(teacher.mean, S)
    start = block.features(x0, 0.0)
    for t in (0.3, 0.9, 1.0):
        x = teacher.flow(x0, t)
        np.testing.assert_allclose(block.features(x, t), start, atol=1e-12)
        rate = block.features_and_jvp(x, t, teacher.velocity(x, t))[1]
        np.testing.assert_allclose(rate, 0.0, atol=1e-12)


def test_float32_products_stay_float32():
    x = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    for block in blocks(2)[:1] + blocks(2)[5:11]:
        lift = Lift(2, [block])
        P = np.random.default_rng(1).normal(size=(lift.n_features, 2))
        assert lift.product(x, 0.0, P).dtype == np.float32


def test_bad_features_are_named():
    with pytest.raises(TypeError, match="no method features_and_jvp"):
        UserFeatures(type("Half", (), {"features": lambda self, x, t: x})(), 2)
    with pytest.raises(ValueError, match="kink"):
        NystroemFeatures(
            np.zeros((2, 1)), np.zeros(2), scale=1.0, time_scale=1.0, kernel=gk.Laplace()
        )
    with pytest.raises(ValueError, match="more than"):
        PolynomialFeatures(30, 6, 3)
