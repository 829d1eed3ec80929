"""The stand-in for CuPy counts what it says: without this the bounds of other tests would mean nothing."""

import sys

import numpy as np
import pytest
from device_counter import counted_device, counted_sums

import gpukoop as gk


@pytest.fixture
def cupy():
    with counted_device() as module, counted_sums():
        yield module


def test_launches_synchronisations_and_copies(cupy):
    a = np.arange(6.0).reshape(3, 2)
    cases = [
        (lambda x: x + 1, (1, 0, 0)),
        (lambda x: np.sqrt(x) * 2, (2, 0, 0)),
        (lambda x: x.sum(axis=0), (1, 0, 0)),
        (lambda x: x.T.reshape(-1), (1, 0, 0)),  # not contiguous: a copy on the device
        (lambda x: x.reshape(-1), (0, 0, 0)),
        (lambda x: x @ x.T, (1, 0, 0)),
        (lambda x: float(x.max()), (1, 1, 0)),
        (lambda x: x[x > 2], (2, 1, 0)),
        (lambda x: x[np.array([0, 1])], (1, 0, 1)),
        (lambda x: x.get(), (0, 1, 1)),
        (lambda x: cupy.asarray(a), (0, 0, 1)),
        (lambda x: cupy.linalg.cholesky(cupy.eye(3)), (5, 1, 0)),
        (lambda x: cupy.fuse(lambda y, z: cupy.where(y > z, y * y, 0.0))(x, x), (1, 0, 0)),
        (lambda x: x.__iadd__(x), (1, 0, 0)),
    ]
    for call, expected in cases:
        x = cupy.asarray(a)
        with cupy.counting() as count:
            call(x)
        assert (count.kernels, count.syncs, count.copies) == expected, str(count)


def test_it_computes(cupy):
    a = np.random.default_rng(0).normal(size=(4, 3))
    x = cupy.asarray(a)
    np.testing.assert_array_equal((cupy.exp(-x) @ x.T).get(), np.exp(-a) @ a.T)
    fused = cupy.fuse(lambda y, z: cupy.sqrt(y * y + abs(z)))
    np.testing.assert_array_equal(fused(x, x[0]).get(), np.sqrt(a * a + abs(a[0])))


def test_what_cupy_refuses_is_refused(cupy):
    x = cupy.asarray(np.ones(3))
    with pytest.raises(TypeError, match="Unsupported type"):
        _ = x + np.ones(3)
    with pytest.raises(TypeError, match="Implicit conversion"):
        np.asarray(x)
    with pytest.raises((TypeError, AttributeError)):
        cupy.fuse(lambda y: y[0])(x)


def test_a_sum_is_counted_once_and_is_right(cupy):
    a = np.random.default_rng(0).normal(size=(30, 2))
    x, v = cupy.asarray(a), cupy.asarray(np.ones(30))
    K = gk.Gaussian(1.0)(x, backend="numba-cuda")
    with cupy.counting() as count:
        got = K @ v
    assert count.sums == 1
    np.testing.assert_allclose(got.get(), gk.Gaussian(1.0)(a, backend="numpy") @ np.ones(30))


def test_it_leaves_no_trace():
    with counted_device() as module, counted_sums():
        assert sys.modules["cupy"] is module
    assert sys.modules.get("cupy") is not module
    assert type(gk.backends()) is dict
    from gpukoop.backends import BACKENDS, NumbaCUDABackend

    assert type(BACKENDS["numba-cuda"]) is NumbaCUDABackend
