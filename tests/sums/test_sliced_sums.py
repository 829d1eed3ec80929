"""Sums by slices to one dimension: the slices themselves, their means, and error bars that hold."""

import warnings
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
from scipy.special import hyp1f1

import gpukoop as gk
from gpukoop.dispatch import AccuracyWarning
from gpukoop.kernels.formula.profile import AbstractRadial, Profile
from gpukoop.kernels.fourier.memory import Memory
from gpukoop.kernels.fourier.modes import absolute
from gpukoop.kernels.fourier.sliced import directions as sliced_directions
from gpukoop.kernels.fourier.sliced import sums as sliced_sums
from gpukoop.kernels.fourier.sliced.line import DistanceLine, FourierLine

pytest.importorskip("finufft", reason="finufft is not installed (pip install gpukoop[fourier])")


def errors(kernel, X, Y, V, tol, op="product"):
    """Return (relative error of the worst row, estimate, directions)."""
    K = kernel(X, Y, backend="fourier", tol=tol)
    exact = kernel(X, Y, backend="numba-cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AccuracyWarning)
        got = K @ V if op == "product" else K.gradient(V)
    density = np.abs(absolute(kernel)(X, Y, backend="numba-cpu") @ np.abs(V))
    if op == "product":
        error = np.abs(got - exact @ V) / density
    else:
        unit = min(float(k.scale) for _, k in kernel.terms)
        error = np.abs(got - exact.gradient(V)).max(axis=-1) * unit / density
    return error.max(), K.error_estimate_, K.clouds.memory(Memory).n_directions


@pytest.mark.parametrize("d", [4, 5, 10])
def test_slice_of_a_gaussian_is_the_hypergeometric_function(d):
    x = np.linspace(-4, 4, 60)
    line = FourierLine(gk.Gaussian(1.5), d, 8.0, 1e-6, True, "float64")
    value, slope = line(x, np.zeros(1), np.ones((1, 1)), True, True)
    f = lambda t: hyp1f1(d / 2, 0.5, -(t**2) / (2 * 1.5**2))
    assert np.abs(value[:, 0] - f(x)).max() < 1e-6
    assert np.abs(slope[:, 0] - (f(x + 1e-5) - f(x - 1e-5)) / 2e-5).max() < 1e-6


def test_distances_on_a_line_are_sorted_exactly():
    """With ties: sources at a target contribute nothing to either sum."""
    rng = np.random.default_rng(0)
    x, y, V = rng.integers(0, 20, 50) / 4, rng.integers(0, 20, 80) / 4, rng.normal(size=(80, 2))
    value, slope = DistanceLine(-1.5)(x, y, V, True, True)
    D = x[:, None] - y[None, :]
    assert np.abs(value + 1.5 * np.abs(D) @ V).max() < 1e-12
    assert np.abs(slope + 1.5 * np.sign(D) @ V).max() < 1e-12


@pytest.mark.parametrize("d", [1, 2, 3, 4, 9])
def test_batches_are_unit_vectors_and_fair(d):
    found = np.concatenate(list(sliced_directions.batches(d, 16, 400, 0)))
    assert np.allclose((found**2).sum(axis=1), 1)
    assert np.abs(found.T @ found / len(found) - np.eye(d) / d).max() < 0.02
    frame = next(sliced_directions.batches(9, 16, 1, 0))
    assert np.allclose(frame @ frame.T, np.eye(9))


@pytest.mark.slow
@pytest.mark.parametrize("sign", [False, True])
def test_error_bar_covers_in_nine_of_ten_seeds(sign):
    """The true error of the worst of all rows, ten dimensions, ten clouds."""
    covered = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        X, v = rng.normal(size=(1200, 10)).astype("float32"), rng.normal(size=1200)
        v = (v if sign else np.abs(v)).astype("float32")
        error, estimate, _ = errors(gk.Gaussian(3.0), X, X, v, 0.3)
        covered += error <= estimate
        assert estimate < 30 * error, "an error bar that says something"
    assert covered >= 9


@pytest.mark.parametrize(
    ("kernel", "op"),
    [
        (gk.Gaussian(3.0), "gradient"),
        (gk.Matern52(4.0), "gradient"),
        (gk.InverseMultiquadric(1.0), "gradient"),
        (gk.Laplace(4.0), "product"),
        (gk.Energy(), "gradient"),
        (gk.Gaussian(3.0) + 0.1 * gk.Energy(), "product"),
    ],
    ids=repr,
)
def test_kernels_in_six_dimensions(kernel, op):
    rng = np.random.default_rng(3)
    X, Y, V = rng.normal(size=(400, 6)), rng.normal(size=(500, 6)), rng.normal(size=(500, 2))
    error, estimate, _ = errors(kernel, X, Y, V, 0.2, op)
    assert error <= estimate <= 0.2


def test_energy_in_low_dimensions():
    """One dimension is exact; even angles in the plane reach 1e-4 where random ones would need a million."""
    rng = np.random.default_rng(0)
    for d, tol in ((1, 1e-12), (2, 2e-3), (3, 2e-2)):
        X, Y, V = rng.normal(size=(600, d)), rng.normal(size=(700, d)), rng.normal(size=700)
        for op in ("product", "gradient"):
            error, estimate, used = errors(gk.Energy(), X, Y, V, tol, op)
            assert error <= estimate <= tol, (d, op)
            assert used <= sliced_sums.MAX_DIRECTIONS
        if d == 2:
            assert errors(gk.Energy(), X, Y, V, tol)[0] < 1e-4


def test_more_directions_for_a_smaller_tolerance():
    rng = np.random.default_rng(0)
    X, v = rng.normal(size=(500, 8)), rng.normal(size=500)
    used = [errors(gk.Gaussian(4.0), X, X, v, tol)[2] for tol in (0.9, 0.01)]
    assert used[0] < used[1]


def test_a_miss_warns_and_the_operator_stays_linear():
    rng = np.random.default_rng(0)
    X, v = rng.normal(size=(500, 12)), rng.normal(size=500)
    K = gk.Gaussian(2.0)(X, backend="fourier", tol=1e-3)
    with pytest.warns(AccuracyWarning, match="did not reach tol=0.001"):
        one = K @ v
    with pytest.warns(AccuracyWarning):
        two = K @ (-2 * v)
    assert np.allclose(two, -2 * one, rtol=1e-3, atol=1e-6 * np.abs(v).sum())
    assert K.error_estimate_ > 1e-3


def test_auto_leaves_small_tolerances_to_exact_sums():
    X = np.zeros((100_000, 10), "float32")
    assert gk.Gaussian(2.0)(X, tol=1e-4).explain().backend != "fourier"
    assert gk.Energy()(X[:, :3], tol=1e-6).explain().backend != "fourier"
    assert gk.Energy()(X[:, :1], tol=1e-6).explain().backend == "fourier", "sorting is exact"
    assert gk.Gaussian(2.0)(X, backend="fourier", tol=1e-4).explain().backend == "fourier"


def test_refusals_are_words():
    X = np.random.default_rng(0).normal(size=(50, 5))
    for kernel, op, words in (
        (gk.Riesz(0.5), "product", "cannot be sorted"),
        (gk.Laplace(), "gradient", "kink decays too slowly"),
    ):
        with pytest.raises(gk.BackendError, match=words):
            kernel(X, backend="fourier", tol=1e-2).explain(op)
    with pytest.raises(ValueError, match="scale is too small for the points"):
        _ = gk.Gaussian(1e-7)(X, backend="fourier", tol=1e-2) @ np.ones(50)


CLOUD = np.random.default_rng(0).normal(size=(60, 2))


@dataclass(frozen=True)
class Power(AbstractRadial):
    """A user's kernel whose ``exponent`` has nothing to do with Riesz's."""

    exponent: float = 1.0

    profile: ClassVar[Profile] = Profile(
        phi=lambda s, exponent: (1 + s) ** -exponent,
        dphi=lambda s, exponent: -exponent * (1 + s) ** (-exponent - 1),
        parameters=("exponent",),
    )


@dataclass(frozen=True)
class Distance(AbstractRadial):
    """A user's distance, in scales."""

    profile: ClassVar[Profile] = replace(gk.Energy().profile)


def test_what_a_kernel_is_stands_in_its_profile_not_in_the_names_of_its_attributes():
    K = Power()(CLOUD, tol=1e-2, backend="fourier")
    with pytest.raises(gk.BackendError, match="no transform in closed form"):
        K @ np.ones(len(CLOUD))
    got = Power()(CLOUD, tol=1e-2) @ np.ones(len(CLOUD))
    squared = ((CLOUD[:, None] - CLOUD[None]) ** 2).sum(axis=-1)
    np.testing.assert_allclose(got, (1 / (1 + squared)).sum(axis=1), rtol=1e-10)


def test_a_distance_of_another_scale_is_sorted_in_its_units():
    v = np.random.default_rng(1).normal(size=len(CLOUD))
    with warnings.catch_warnings():
        warnings.simplefilter("error", AccuracyWarning)
        got = Distance(scale=3.0)(CLOUD, tol=1e-2, backend="fourier") @ v
    apart = np.sqrt(((CLOUD[:, None] - CLOUD[None]) ** 2).sum(axis=-1)) / 3
    assert (np.abs(got + apart @ v) <= 1e-2 * (apart @ np.abs(v))).all()
