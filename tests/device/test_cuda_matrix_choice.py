"""Which path and precision sums over many features take, and who may be asked for them."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

import gpukoop as gk
from gpukoop.backends import BACKENDS
from gpukoop.kernels.cuda.matrix import cublas as cublas_cuda
from gpukoop.kernels.cuda.matrix import sums as matrix_cuda
from gpukoop.kernels.cuda.matrix.choice import CLOSE_SHARE, Cloud, choose
from gpukoop.kernels.cuda.matrix.precision import check_precision
from gpukoop.kernels.cuda.memory import Memory
from gpukoop.kernels.formula.catalogue import (
    Energy,
    Gaussian,
    InverseMultiquadric,
    Laplace,
    Matern32,
)


def chosen(kernel, far=1.0, share=0.0, op="product", precision="fp32", tol=None, m=10_000):
    return choose(kernel, op, m, 100, "float32", precision, tol, Cloud(far, share))


def test_a_smooth_kernel_of_a_small_cloud_has_no_close_pairs():
    for kernel in (Gaussian(1.0), InverseMultiquadric(1.0), Gaussian(1.0) + Gaussian(2.0)):
        assert chosen(kernel, share=0.5).path == "matrix"
        assert chosen(kernel).cut == 0
    assert chosen(Gaussian(1.0), far=1e4).cut > 0
    assert chosen(Gaussian(1.0), far=1e4, tol=0.5).cut == 0
    for kernel in (Laplace(1.0), Matern32(1.0), Energy(), Gaussian(1.0) + Laplace(1.0)):
        assert chosen(kernel).cut > 0
    assert chosen(Gaussian(1.0), op="gradient").cut > 0


def test_many_close_pairs_and_overflow_go_to_differences():
    assert chosen(Laplace(1.0), share=0.9 * CLOSE_SHARE).path == "matrix"
    many = chosen(Laplace(1.0), share=1.1 * CLOSE_SHARE)
    assert many.path == "difference"
    assert "close" in many.why
    assert chosen(Laplace(1.0), share=0.9 * CLOSE_SHARE, op="gradient").path == "difference"
    for far in (1e37, np.inf, np.nan):
        assert "overflow" in chosen(Gaussian(1.0), far=far).why


def test_tf32_that_would_miss_tol_becomes_three_products():
    assert chosen(Gaussian(1.0), precision="tf32").precision == "tf32"
    # ln 2 * 2^-8 for a cloud of radius 1
    assert chosen(Gaussian(1.0), precision="tf32", tol=3e-3).precision == "tf32"
    assert chosen(Gaussian(1.0), precision="tf32", tol=2e-3).precision == "3xtf32"
    assert chosen(Energy(), precision="tf32", tol=1e-4).precision == "3xtf32"


def test_few_features_stay_in_registers():
    assert not matrix_cuda.applies("float32", 16, "fp32")
    assert matrix_cuda.applies("float32", 25, "fp32")
    assert matrix_cuda.applies("float64", 25, "fp32")
    assert matrix_cuda.applies("float32", 16, "tf32")
    assert not matrix_cuda.applies("float32", 15, "3xtf32")


# -- who may be asked for it ----------------------------------------------------------------------
@pytest.mark.parametrize("name", ["bf16", None, 32, ""])
def test_an_unknown_precision_is_named(name):
    with pytest.raises(ValueError, match=r"'fp32', '3xtf32', 'tf32', got " + re.escape(repr(name))):
        gk.Gaussian()(np.zeros((3, 20), np.float32), precision=name)
    assert check_precision("tf32") == "tf32"


@pytest.mark.parametrize("backend", ["numpy", "numba-cpu", "keops", "fourier"])
def test_backends_without_tensor_cores_refuse_in_words(backend):
    K = gk.Gaussian()(np.zeros((3, 20), np.float32), backend=backend, precision="tf32")
    if BACKENDS[backend].missing() is None:
        words = "has no tensor cores: precision='tf32' is for numba-cuda, d >= 16, float32"
        with pytest.raises(gk.BackendError, match=words):
            K @ np.ones(3)


@pytest.mark.parametrize(
    ("dtype", "d", "words"),
    [("float64", 20, "these are float64"), ("float32", 15, "d >= 16"), ("float32", 16, "no units")],
)
def test_numba_cuda_refuses_what_it_would_ignore(dtype, d, words, monkeypatch):
    monkeypatch.setattr(type(BACKENDS["numba-cuda"]), "missing", lambda self: None)
    monkeypatch.setattr(cublas_cuda, "no_tensor_cores", lambda: "no units")
    K = gk.Gaussian()(np.zeros((3, d), dtype), backend="numba-cuda", precision="3xtf32")
    with pytest.raises(gk.BackendError, match=words):
        K.explain()
    assert gk.Gaussian()(np.zeros((3, d), dtype), backend="numba-cuda").explain().backend


def test_precision_and_memory_reach_the_reduction(monkeypatch):
    backend, seen = BACKENDS["numba-cuda"], {}
    monkeypatch.setattr(type(backend), "missing", lambda self: None)
    monkeypatch.setattr(cublas_cuda, "no_tensor_cores", lambda: None)

    def reduce(kernel, operation, X, Y, V, **how):
        seen.update(how)
        return np.zeros((len(X), 1), X.dtype)

    monkeypatch.setattr(type(backend), "module", lambda self: SimpleNamespace(reduce=reduce))
    K = gk.Gaussian()(np.zeros((3, 20), np.float32), backend="numba-cuda", precision="tf32")
    K.T @ np.ones(3, np.float32)
    assert seen["precision"] == "tf32"
    assert seen["memory"] is K.T.clouds.memory(Memory)
