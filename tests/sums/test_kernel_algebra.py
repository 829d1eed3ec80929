"""Products, powers, constants and placed kernels against NumPy, on every backend that runs here, and their CUDA text."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

import gpukoop as gk
from gpukoop.kernels.formula.expr import exp
from gpukoop.kernels.formula.profile import AbstractRadial, Profile

RNG = np.random.default_rng(0)
X, Y, V = RNG.normal(size=(23, 3)), RNG.normal(size=(31, 3)), RNG.normal(size=31)
BACKENDS = ["numpy", "numba-cpu"]


def squared(A, B):
    return ((A[:, None] - B[None]) ** 2).sum(-1)


def gaussian(A, B, scale):
    return np.exp(-squared(A, B) / (2 * scale**2))


def laplace(A, B, scale):
    return np.exp(-np.sqrt(squared(A, B)) / scale)


def quadratic(A, B, scale, alpha):
    return (1 + squared(A, B) / scale**2 / (2 * alpha)) ** -alpha


def cosine(A, B):
    return (A @ B.T) / np.linalg.norm(A, axis=1)[:, None] / np.linalg.norm(B, axis=1)


def periodic(A, B, period, scale):
    sines = np.sin(np.pi * (A[:, None] - B[None]) / period) ** 2
    return np.exp(-2 * sines.sum(-1) / scale**2)


RADIAL = {
    "product": (
        gk.Gaussian(0.7) * gk.RationalQuadratic(scale=1.3, alpha=2.0),
        lambda A, B: gaussian(A, B, 0.7) * quadratic(A, B, 1.3, 2.0),
    ),
    "of sums": (
        (gk.Gaussian(0.7) + 0.5 * gk.Laplace(2.0)) * (gk.Matern32(1e9) + 1.0),
        lambda A, B: 2 * (gaussian(A, B, 0.7) + 0.5 * laplace(A, B, 2.0)),
    ),
    "power": (gk.RationalQuadratic(0.8) ** 2.5, lambda A, B: quadratic(A, B, 0.8, 1.0) ** 2.5),
    "energy squared": (gk.Energy() ** 2, squared),
    "power of a product": (
        (2.0 * gk.Gaussian(0.9) * gk.Gaussian(1.7)) ** 2,
        lambda A, B: (2 * gaussian(A, B, 0.9) * gaussian(A, B, 1.7)) ** 2,
    ),
    "constants": (
        3.0 + gk.Gaussian(0.9) - 0.5,
        lambda A, B: 2.5 + gaussian(A, B, 0.9),
    ),
    "constant": (gk.Constant(0.3), lambda A, B: np.full((len(A), len(B)), 0.3)),
    "feature scales": (
        gk.Gaussian([1.0, 2.0, 4.0]) * gk.Laplace([2.0, 4.0, 8.0]),
        lambda A, B: (
            gaussian(A / [1, 2, 4], B / [1, 2, 4], 1.0) * laplace(A / [1, 2, 4], B / [1, 2, 4], 2.0)
        ),
    ),
}
PLACED = {
    "cosine": (gk.Cosine(), cosine),
    "linear": (gk.Polynomial(1, offset=0.0), lambda A, B: A @ B.T),
    "cubic": (
        0.5 * gk.Polynomial(3, offset=0.7, scale=2.0),
        lambda A, B: 0.5 * (A @ B.T / 4 + 0.7) ** 3,
    ),
    "periodic": (gk.Periodic(1.5, scale=0.8), lambda A, B: periodic(A, B, 1.5, 0.8)),
}
ALL = RADIAL | PLACED


def slope_by_differences(matrix, A, B, v, h=1e-5):
    out = np.empty(A.shape)
    for c in range(A.shape[1]):
        step = np.zeros(A.shape[1])
        step[c] = h
        out[:, c] = (matrix(A + step, B) - matrix(A - step, B)) @ v / (2 * h)
    return out


@pytest.mark.parametrize("name", ALL)
def test_sums_and_slopes(name):
    kernel, matrix = ALL[name]
    K, expected = kernel(X, Y, backend="numpy"), matrix(X, Y)
    bound = 1e-12 * np.abs(expected).max()
    assert np.abs(K.to_dense() - expected).max() < bound
    value, slope = K.value_and_gradient(V)
    assert np.abs(value - expected @ V).max() < len(V) * 4 * bound
    assert np.abs(K.T @ V[:23] - expected.T @ V[:23]).max() < len(V) * 4 * bound
    exact = slope_by_differences(matrix, X, Y, V)
    assert np.abs(slope - exact).max() < 1e-7 * max(1.0, np.abs(exact).max())
    columns = K.gradient(np.stack([V, 2 * V], axis=1))
    assert np.abs(columns[:, 1] - 2 * slope).max() < 1e-12 * max(1.0, np.abs(slope).max())
    assert np.abs((3.0 * K) @ V - 3 * value).max() < len(V) * 12 * bound
    single = kernel(X.astype("float32"), Y.astype("float32"), backend="numpy")
    assert np.abs(single.to_dense() - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["of sums", "power", "constants", "cubic"])
def test_compiled_loops_agree(name):
    kernel, _ = ALL[name]
    results = []
    for backend in BACKENDS:
        K = kernel(X, Y, backend=backend)
        assert K.explain("value_and_gradient").backend == backend
        results.append(K.value_and_gradient(V))
    for exact, found in zip(*results, strict=True):
        assert np.abs(found - exact).max() < 1e-12 * np.abs(exact).max()


@pytest.mark.parametrize("name", [n for n in ALL if ALL[n][0].positive])
def test_logarithms(name):
    kernel, matrix = ALL[name]
    if len(getattr(kernel, "parts", ())) == 1 or not hasattr(kernel, "parts"):
        value, slope = kernel(X, Y, backend="numpy").logsumexp_and_gradient(V)
        weights = matrix(X, Y) * np.exp(V)
        assert np.abs(value - np.log(weights.sum(1))).max() < 1e-12
        exact = slope_by_differences(matrix, X, Y, np.exp(V)) / weights.sum(1)[:, None]
        assert np.abs(slope - exact).max() < 1e-7 * max(1.0, np.abs(exact).max())


def test_far_apart_a_product_keeps_its_logarithm():
    """Both factors underflow at 60 scales; the sum of their exponents does not."""
    far = X + 60.0
    kernel = gk.Gaussian(1.0) * gk.RationalQuadratic(1.0)
    value, slope = kernel(far, Y).logsumexp_and_gradient(np.zeros(31))
    exponents = -squared(far, Y) / 2 - np.log1p(squared(far, Y) / 2)
    top = exponents.max(1)
    assert np.allclose(value, top + np.log(np.exp(exponents - top[:, None]).sum(1)), rtol=1e-12)
    assert np.isfinite(slope).all()


def test_named_scales_are_resolved_in_every_factor():
    kernel = gk.Gaussian("median") * gk.Laplace("median") ** 2
    (_, resolved), *_ = kernel(X).kernel.terms
    assert [k.scale for k, _ in resolved.factors] == [gk.operator.median_scale(X)] * 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["product"])
def test_cuda_text_compiles(name):
    """One PTX a kernel; what float64 there is, is the compensated sum that every kernel has."""
    pytest.importorskip("numba_cuda")
    try:
        ptx = gk.cuda.compile_ptx(RADIAL[name][0], "value_and_gradient", d=3)
    except gk.BackendError as error:
        pytest.skip(str(error))
    assert ".visible .entry" in ptx
    plain = gk.cuda.compile_ptx(gk.Gaussian(1.0), "value_and_gradient", d=3)
    counts = [
        sum(".f64" in line and ".reg" not in line for line in text.splitlines())
        for text in (ptx, plain)
    ]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("name", PLACED)
def test_placed_kernels_on_cuda_are_their_radial_kernel(name):
    """What a device would be given: the radial kernel of the placed points."""
    pytest.importorskip("numba_cuda")
    operator = PLACED[name][0](X, Y)
    radial = operator.request(gk.kernels.operation.PRODUCT, 1).kernel
    assert ".visible .entry" in gk.cuda.compile_ptx(radial, "product", d=operator.clouds.X.shape[1])


def test_what_is_refused():
    with pytest.raises(ValueError, match="whole power"):
        gk.Energy() ** 0.5
    with pytest.raises(ValueError, match="power > 0"):
        gk.Gaussian(1.0) ** -1
    with pytest.raises(TypeError, match=r"operators add, k1\(X, Y\) \+ k2"):
        gk.Cosine() + gk.Gaussian(1.0)
    with pytest.raises(TypeError, match="no function of the distance"):
        gk.Polynomial() * gk.Gaussian(1.0)
    with pytest.raises(ValueError, match="expected a positive kernel"):
        gk.KSWGD(kernel=gk.Cosine()).fit(X)
    with pytest.raises(ValueError, match="a point at 0"):
        gk.Cosine()(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="degree must be a whole number"):
        gk.Polynomial(1.5)
    K = gk.Cosine()(X, Y) + gk.Gaussian(1.0)(X, Y)  # what the message says to do
    assert np.allclose(K @ V, (cosine(X, Y) + gaussian(X, Y, 1.0)) @ V)


def test_eigenvalues_of_the_linear_kernel_are_those_of_the_covariance():
    values, _ = gk.spectrum.eigsh(gk.Polynomial(1, offset=0.0)(X), 3)
    assert np.allclose(values, np.linalg.eigvalsh(X.T @ X)[::-1])


@dataclass(frozen=True)
class Sech(AbstractRadial):
    """1 / cosh(sqrt(s)) in a user's own file: two lines, every backend."""

    profile: ClassVar[Profile] = Profile(
        phi=lambda s: 2 / (exp(s) + exp(-s)),
        dphi=lambda s: -2 * (exp(s) - exp(-s)) / (exp(s) + exp(-s)) ** 2,
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_kernel_class_in_the_users_own_file(backend):
    """What CONTRIBUTING.md and the docstring of AbstractRadial promise."""
    K = Sech(scale=2.0)(X, Y, backend=backend)
    expected = 1 / np.cosh(squared(X, Y) / 4)
    assert np.allclose(K @ V, expected @ V, rtol=1e-12)
    exact = slope_by_differences(lambda A, B: 1 / np.cosh(squared(A, B) / 4), X, Y, V)
    assert np.abs(K.gradient(V) - exact).max() < 1e-7
    product = (Sech(2.0) * gk.Gaussian(1.0))(X, Y, backend=backend)
    assert np.allclose(product @ V, (expected * gaussian(X, Y, 1.0)) @ V, rtol=1e-12)
    assert np.isfinite(
        gk.MMDFlow(kernel=Sech(2.0), n_iter=2, random_state=0).fit(X).sample(5)
    ).all()
