"""Velocity fields against their definition, their flows and each other (T4)."""

import numpy as np
import pytest

from gpukoop.sampler import (
    AffineTeacher,
    EmpiricalTeacher,
    GaussianTeacher,
    MixtureTeacher,
    as_teacher,
    integrate,
)
from gpukoop.sampler.triples import batch_velocity

MIXTURE = MixtureTeacher(
    [0.5, 0.3, 0.2],
    [[1.5, 0], [-1, 1], [0, -2]],
    [[[0.3, 0.1], [0.1, 0.2]], [[0.1, 0], [0, 0.4]], [[0.2, -0.1], [-0.1, 0.3]]],
)


@pytest.mark.parametrize("t", [0.2, 0.6, 0.9])
def test_mixture_velocity_is_the_conditional_mean(t):
    """Bins of x_t: the mean of x1 - x0 minus v(x_t) within a bin is 0 within 3 standard errors (T4)."""
    rng = np.random.default_rng(0)
    n = 200_000
    x1, x0 = MIXTURE.sample(n, rng), rng.normal(size=(n, 2))
    x = (1 - t) * x0 + t * x1
    excess = (x1 - x0) - MIXTURE.velocity(x, t)
    cells = np.floor(x / 0.5).astype(int)
    _, which = np.unique(cells, axis=0, return_inverse=True)
    counts = np.bincount(which.ravel())
    scores = []
    for c in range(2):
        total = np.bincount(which.ravel(), weights=excess[:, c])
        square = np.bincount(which.ravel(), weights=excess[:, c] ** 2)
        full = counts > 100
        mean = total[full] / counts[full]
        error = np.sqrt((square[full] / counts[full] - mean**2) / counts[full])
        scores.append(mean / error)
    scores = np.concatenate(scores)
    # z-scores of k independent bins: their mean square is 1 +- 4 sqrt(2/k), and few exceed 3.
    assert abs(np.mean(scores**2) - 1) < 4 * np.sqrt(2 / len(scores))
    assert np.mean(abs(scores) > 3) < 0.02


def test_rk4_of_the_gaussian_field_is_affine():
    S = np.array([[0.5, 0.2], [0.2, 0.3]])
    teacher = GaussianTeacher([0.7, -1.0], S)
    x0 = np.random.default_rng(0).normal(size=(100, 2))
    states = integrate(teacher, x0, [0.0, 0.5, 1.0], n_steps=200)
    values, Q = np.linalg.eigh(S)
    exact = teacher.mean + x0 @ (Q * np.sqrt(values)) @ Q.T
    assert abs(states[-1] - exact).max() < 1e-8  # T4
    assert abs(states[1] - teacher.flow(x0, 0.5)).max() < 1e-8
    assert abs(teacher.flow(x0) - exact).max() < 1e-14


def test_affine_flow():
    B, c = np.array([[-0.5, 1.0], [-1.0, 0.2]]), np.array([0.3, -0.4])
    teacher = AffineTeacher(B, c)
    x0 = np.random.default_rng(0).normal(size=(30, 2))
    assert abs(integrate(teacher, x0, [0, 1], n_steps=200)[-1] - teacher.flow(x0)).max() < 1e-9
    singular = AffineTeacher(np.zeros((2, 2)), c)
    np.testing.assert_allclose(singular.flow(x0), x0 + c, rtol=1e-14)


@pytest.mark.parametrize("smooth", [0.0, 0.3])
def test_empirical_velocity_is_the_mixture_of_its_points(smooth):
    rng = np.random.default_rng(0)
    Y = rng.normal((3.0, 0.0), 1.0, size=(50, 2))
    width = max(smooth, 1e-9)
    exact = MixtureTeacher(np.ones(50), Y, np.broadcast_to(width**2 * np.eye(2), (50, 2, 2)))
    teacher = EmpiricalTeacher(Y, smooth=smooth, last=1e-3)
    x = rng.normal(size=(40, 2)) * 2
    for t in (0.0, 1e-9, 0.1, 0.5, 0.97):
        v = teacher.velocity(x, t)
        assert abs(v - exact.velocity(x, t)).max() < 1e-6, t
        each = teacher.velocity(x, np.full(40, t))
        assert abs(v - each).max() < 1e-6 * (1 + abs(v).max()), t


def test_mixture_flow_carries_the_law():
    rng = np.random.default_rng(0)
    moved = integrate(MIXTURE, rng.normal(size=(20_000, 2)), [0, 1], n_steps=60)[-1]
    drawn = MIXTURE.sample(20_000, rng)
    spread = np.sqrt((moved.var(axis=0) + drawn.var(axis=0)) / 20_000)
    assert (abs(moved.mean(axis=0) - drawn.mean(axis=0)) < 4 * spread).all()


def test_batch_velocity_is_unbiased_and_quieter():
    """E[f(x_t) (v_batch - v)] = 0 within 4 standard errors, with a fraction of the variance of x1 - x0."""
    rng = np.random.default_rng(0)
    n = 16_384
    x1, x0, t = MIXTURE.sample(n, rng), rng.normal(size=(n, 2)), rng.random(n)
    x = (1 - t)[:, None] * x0 + t[:, None] * x1
    exact = MIXTURE.velocity(x, t)
    quiet = batch_velocity(x1, x, t) - exact
    loud = (x1 - x0) - exact
    assert (quiet**2).mean() < 0.1 * (loud**2).mean()
    for f in (np.ones(n), x[:, 0], x[:, 1] * t, np.cos(2 * x[:, 0])):
        # Blocks of 1024 points share their noise: standard errors from block means.
        block = (f[:, None] * quiet).reshape(16, -1, 2).mean(axis=1)
        error = block.std(axis=0, ddof=1) / 4
        assert (abs(block.mean(axis=0)) < 4 * error + 1e-12).all()


def test_batch_velocity_of_one_point_is_its_own():
    x0, x1, t = np.array([[0.3, -1.0]]), np.array([[2.0, 1.0]]), np.array([0.4])
    x = 0.6 * x0 + 0.4 * x1
    np.testing.assert_allclose(batch_velocity(x1, x, t), x1 - x0, rtol=1e-12)


def test_teachers_are_checked():
    with pytest.raises(TypeError, match="expected an object with velocity"):
        as_teacher(3)
    wrong = as_teacher(lambda x, t: x[:, :1])
    with pytest.raises(ValueError, match="velocity has shape"):
        wrong.velocity(np.zeros((4, 2)), 0.5)
    broken = as_teacher(lambda x, t: x * np.nan)
    with pytest.raises(ValueError, match="NaN"):
        broken.velocity(np.zeros((4, 2)), 0.5)
    with pytest.raises(ValueError, match="negative eigenvalue"):
        GaussianTeacher([0.0, 0.0], [[1.0, 2.0], [2.0, 1.0]])
    with pytest.raises(ValueError, match="'rk4' or 'euler'"):
        integrate(MIXTURE, np.zeros((1, 2)), [0, 1], method="heun")
