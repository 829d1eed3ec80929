"""One scale for each feature: points are divided before a backend sees them, gradients after; the truth is typed in x."""

import numpy as np
import oracle
import pytest

import gpukoop as gk

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(50, 3)) * [1.0, 10.0, 0.1], RNG.normal(size=(40, 3)) * [1.0, 10.0, 0.1]
V = RNG.normal(size=(40, 2))
SCALES = np.array([0.7, 9.0, 0.2])
KERNELS = {
    "gaussian": gk.Gaussian(SCALES),
    "laplace": gk.Laplace(SCALES),
    "matern32": gk.Matern32(list(SCALES)),
    "matern52": gk.Matern52(tuple(SCALES)),
    "inverse multiquadric": gk.InverseMultiquadric(SCALES),
    "rational quadratic": gk.RationalQuadratic(SCALES, alpha=1.5),
    "sum": gk.Gaussian(SCALES) + 0.5 * gk.Laplace(3 * SCALES),
}
# The largest sum of |v| k is 40; some 50 roundings of points, distances and exponentials.
SLACK = {"float64": 1e-13, "float32": 2e-4}


def truth(kernel, X, Y):
    """Return terms at scale 1 or a factor of it, and the points divided by the scales."""
    terms = []
    for c, name, numbers in (
        (c, *oracle.terms_of(unit(k))[0][1:]) for c, k in getattr(kernel, "parts", ((1.0, kernel),))
    ):
        terms.append((c, name, numbers))
    return terms, np.asarray(X, float) / SCALES, np.asarray(Y, float) / SCALES


def unit(kernel):
    factor = kernel.scale[0] / SCALES[0]
    return type(kernel)(**{**kernel.values, "scale": factor})


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("backend", ["numpy", "numba-cpu"])
@pytest.mark.parametrize("name", KERNELS)
def test_every_reduction_is_that_of_the_formula(name, backend, dtype):
    kernel = KERNELS[name]
    x, y, v = (a.astype(dtype) for a in (X, Y, V))
    terms, Xs, Ys = truth(kernel, x, y)
    K = kernel(x, y, backend=backend)
    assert K.explain("value_and_gradient", t=2).backend == backend
    slack = SLACK[dtype]
    assert np.abs(K @ v - oracle.product(terms, Xs, Ys, v)).max() < 40 * slack
    assert np.abs(K.T @ x[:, 0] - oracle.product(terms, Ys, Xs, x[:, 0])).max() < 50 * slack
    assert np.abs(K.to_dense() - oracle.matrix(terms, Xs, Ys)).max() < 10 * slack
    assert np.abs(K.diagonal() - np.diag(oracle.matrix(terms, Xs, Ys))).max() < 10 * slack
    exact = oracle.gradient(terms, Xs, Ys, v) / SCALES
    assert (np.abs(K.gradient(v) - exact) < 80 * slack / SCALES).all()
    value, slope = K.value_and_gradient(v)
    assert (np.abs(slope - exact) < 80 * slack / SCALES).all()
    assert np.abs(value - K @ v).max() < 40 * slack
    L, slope = K.logsumexp_and_gradient(v[:, 0])
    exact_L, exact_slope = oracle.logsumexp_and_gradient(terms, Xs, Ys, v[:, 0])
    assert np.abs(L - exact_L).max() < 40 * slack
    assert (np.abs(slope - exact_slope / SCALES) < 80 * slack / SCALES).all()
    assert np.abs(K.logsumexp(v[:, 0]) - exact_L).max() < 40 * slack


def test_central_differences():
    K = gk.Matern52(SCALES)
    step = 1e-5 * SCALES
    slope = K(X, Y).gradient(V[:, 0])
    for c in range(3):
        e = np.eye(3)[c] * step
        change = (K(X + e, Y) @ V[:, 0] - K(X - e, Y) @ V[:, 0]) / (2 * step[c])
        assert np.abs(slope[:, c] - change).max() * SCALES[c] < 1e-8


def test_fourier_sums_take_them_too():
    K = gk.Gaussian(SCALES)
    fast = K(X, Y, backend="fourier", tol=1e-6)
    assert fast.explain().backend == "fourier"
    assert np.abs(fast @ V - K(X, Y, backend="numpy") @ V).max() < 1e-6 * np.abs(V).sum()


def test_one_cloud_stays_one_and_operators_combine():
    K = gk.Gaussian(SCALES)(X)
    assert K.clouds.X is K.clouds.Y  # what visits each pair once asks for this
    assert np.abs((2 * K + K) @ X - 3 * (K @ X)).max() < 1e-12 * np.abs(K @ X).max()
    rows = np.arange(5)
    assert np.array_equal(K[rows, rows].to_dense(), K.to_dense()[:5, :5])
    other = gk.Gaussian(SCALES[::-1])(X)
    assert np.abs((K + other) @ X - (K @ X + other @ X)).max() < 1e-12 * np.abs(K @ X).max()


def test_equal_scales_are_one_scale():
    one, many = gk.Gaussian(0.7)(X, Y), gk.Gaussian([0.7] * 3)(X, Y)
    assert np.abs(one.gradient(V) - many.gradient(V)).max() < 1e-13
    assert gk.Gaussian([0.7, 0.7]) == gk.Gaussian((0.7, 0.7))
    assert hash(gk.Gaussian(SCALES))


def test_what_cannot_be_is_said():
    with pytest.raises(ValueError, match="2 scales and the points have 3 features"):
        gk.Gaussian([1.0, 2.0])(X, Y)
    with pytest.raises(ValueError, match="add the operators instead"):
        (gk.Gaussian(SCALES) + gk.Gaussian(1.0))(X, Y)
    for bad in ([1.0, -1.0, 1.0], [], [[1.0, 2.0]], [1.0, np.nan], ["a"], [True, False]):
        with pytest.raises(ValueError, match="or a number > 0 for each feature"):
            gk.Gaussian(bad)
    with pytest.raises(ValueError, match="a scale for each feature"):
        gk.cuda.launch_plan(gk.Gaussian(SCALES), "product", n=10, m=10, d=3)
