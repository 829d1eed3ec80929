"""Fits of spectra and samplers on a device: counted on the stand-in, and equal to the same fits on the host."""

import numpy as np
import pytest
from device_counter import counted_device, counted_sums
from sklearn.exceptions import ConvergenceWarning

import gpukoop as gk
from gpukoop.sampler import Lift, Moments, NystroemFeatures, PolynomialFeatures, Triples
from gpukoop.spectrum import DiffusionMap, KernelEDMD, eigsh
from gpukoop.spectrum.eigsh import eigenpairs
from gpukoop.spectrum.krylov import LOOSE
from gpukoop.spectrum.krylov_queued import queued_block_krylov

CUDA = "numba-cuda"
# A warm product makes at most three launches beside its own two.
SUM = 4


@pytest.fixture
def cupy():
    with counted_device() as module, counted_sums():
        yield module


def ring(n, seed=0):
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, 2 * np.pi, n)
    return np.stack([np.cos(angle), np.sin(angle)], 1) + 0.1 * rng.normal(size=(n, 2))


@pytest.mark.parametrize("teacher", [None, gk.sampler.GaussianTeacher(np.zeros(2), np.eye(2))])
def test_batches_together_are_batches_one_by_one(teacher):
    data = ring(700)
    rng = np.random.default_rng(1)
    blocks = [
        NystroemFeatures(data[:40], rng.random(40), scale=0.5, time_scale=1.0),
        PolynomialFeatures(2, 3, 2),
    ]
    lift = Lift(2, blocks)
    one, all_at_once = (Moments((0.1, 0.7), lift.n_features, 2, 4, (True, True)) for _ in range(2))
    triples = Triples(data, teacher, 5)
    for _ in range(3):
        one.update(lift, triples)
    all_at_once.update(lift, triples, 3)
    assert all_at_once.count == one.count
    np.testing.assert_array_equal(all_at_once.edge_counts, one.edge_counts)
    for name, total in one.sums.items():
        np.testing.assert_allclose(
            all_at_once.sums[name], total, rtol=1e-10, atol=1e-10 * abs(total).max()
        )


OPTIONS = {"n_features": 40, "random_state": 0}


@pytest.mark.parametrize(
    "options",
    [{}, {"distill": 0, "n_bins": 4, "reg": 1e-6}, {"dictionary": "fourier", "distill": 0}],
)
def test_a_koopman_fit_on_the_stand_in_is_the_fit_on_the_host(cupy, options):
    X = ring(1_000)
    here = gk.KoopmanSampler(**OPTIONS, **options, backend="numpy").fit(X)
    there = gk.KoopmanSampler(**OPTIONS, **options, backend=CUDA).fit(cupy.asarray(X))
    assert there.reg_ == here.reg_
    # The solves amplify rounding by the condition of the moments, at most 1 / reg.
    np.testing.assert_allclose(
        there.sample(200, random_state=1).get(), here.sample(200, random_state=1), atol=1e-6
    )
    np.testing.assert_allclose(there.certificate_, here.certificate_, rtol=1e-6)


@pytest.mark.slow
def test_launches_and_waits_of_a_koopman_fit(cupy):
    """At most a tenth of 44,700 launches, sums included, and as few looks as there are moments to solve."""
    X = cupy.asarray(ring(1_500).astype("float32"))
    with cupy.counting() as count:
        fitted = gk.KoopmanSampler(n_features=60, random_state=0, backend=CUDA).fit(X)
    assert count.kernels + SUM * count.sums <= 4_470, str(count)
    assert count.syncs <= 80, str(count)
    fitted.sample(100)
    with cupy.counting() as count:
        fitted.sample(1_000)
    assert count.kernels <= 30, str(count)
    assert (count.sums, count.syncs) == (1, 0), str(count)


def spread(n, law):
    rng = np.random.default_rng(2)
    if law == "rank 12":
        L = rng.normal(size=(n, 12))
        return L @ L.T / n
    values = np.linspace(1, 0, n)
    if law == "multiple":
        values[:40] = 2.0  # more copies than a block has columns
    Q = np.linalg.qr(rng.normal(size=(n, n)))[0]
    A = (Q * values) @ Q.T
    return (A + A.T) / 2


@pytest.mark.parametrize(
    ("law", "k"), [("rank 12", 20), ("multiple", 20), ("multiple", 45), ("even", 5)]
)
def test_queued_steps_find_what_lapack_finds(law, k):
    A = spread(300, law)
    wanted = np.linalg.eigvalsh(A)[::-1][:k]
    rng = np.random.default_rng(0)
    draw = lambda columns: rng.normal(size=(len(A), columns))
    theta, U, residual = queued_block_krylov(lambda V: A @ V, draw, len(A), k, 0.0)
    # A residual of r moves an eigenvalue by at most r.
    np.testing.assert_allclose(theta, wanted, rtol=0, atol=2 * residual * wanted[0] + 1e-14)
    assert residual <= LOOSE * np.finfo(float).eps
    np.testing.assert_allclose(U.T @ U, np.eye(k), atol=1e-13)


def test_queued_steps_end_where_the_products_know_no_better():
    A, rng, calls = spread(300, "even"), np.random.default_rng(0), []

    def noisy(V):
        calls.append(1)
        return A @ V + 1e-5 * rng.normal(size=V.shape)

    draw = lambda columns: rng.normal(size=(len(A), columns))
    with pytest.warns(ConvergenceWarning, match="no more accurate"):
        theta, _, residual = queued_block_krylov(noisy, draw, len(A), 5, 0.0)
    assert len(calls) < 200
    assert residual < 1e-3
    # noise of 1e-5 in every entry of a symmetric matrix of 300 moves eigenvalues by 2 sqrt(300) times that at most
    np.testing.assert_allclose(theta, np.linalg.eigvalsh(A)[::-1][:5], atol=4e-4)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_eigsh_on_the_stand_in_is_eigsh_on_the_host(cupy, dtype):
    X = ring(700).astype(dtype)
    here = eigenpairs(gk.Gaussian(0.2)(X, backend="numpy"), 8, method="block", random_state=0)
    K = gk.Gaussian(0.2)(cupy.asarray(X), backend=CUDA)
    there = eigenpairs(K, 8, method="block", random_state=0)
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(there.values.get(), here.values, rtol=200 * eps)
    overlap = np.abs((there.vectors.get() * here.vectors).sum(axis=0))
    gaps = np.abs(np.diff(here.values)).min() / here.values[0]
    np.testing.assert_allclose(overlap, 1, atol=100 * eps / gaps)
    assert there.passes <= here.passes + 3
    assert there.vectors.dtype == dtype


def test_eigsh_says_when_a_device_gives_no_numbers(cupy):
    class Broken:
        shape, dtype, reference = (600, 600), np.dtype("float64"), cupy.zeros(1)

        def matmat(self, V):
            return V * np.nan

    with pytest.raises(ValueError, match="NaN or inf"):
        eigsh(Broken(), 3, random_state=0)


def test_waits_of_eigsh(cupy):
    """The host looks every four products; 13 products took 95 waits and 72 copies when it looked at each."""
    K = gk.Gaussian(0.1)(cupy.asarray(ring(1_500).astype("float32")), backend=CUDA)
    with cupy.counting() as count:
        pairs = eigenpairs(K, 10, random_state=0)
    assert count.sums == pairs.passes
    assert count.kernels <= 28 * count.sums + 40, str(count)
    assert count.syncs <= 4 + -(-count.sums // 4) + 2, str(count)
    assert count.copies <= count.syncs + 5, str(count)


def test_a_diffusion_map_on_the_stand_in_is_the_map_on_the_host(cupy):
    X, Z = ring(600), ring(50, seed=9)
    for options in ({}, {"n_landmarks": 550}):
        options = {"n_components": 5, "random_state": 0, **options}
        here = DiffusionMap(backend="numpy", **options).fit(X)
        with cupy.counting() as count:
            there = DiffusionMap(backend=CUDA, **options).fit(cupy.asarray(X))
        np.testing.assert_allclose(there.eigenvalues_, here.eigenvalues_, rtol=1e-8)
        assert there.scale_ == pytest.approx(here.scale_, rel=1e-12)
        found, wanted = there.transform(cupy.asarray(Z)).get(), here.transform(Z)
        np.testing.assert_allclose(np.abs((found * wanted).mean(0)), (wanted**2).mean(0), rtol=1e-6)
        # 97 waits and 64 copies with 13 sums when every array was looked at
        assert count.syncs <= 30, str(count)
        assert count.copies <= 30, str(count)


def test_edmd_on_the_stand_in_is_edmd_on_the_host(cupy):
    X, Y = gk.datasets.ornstein_uhlenbeck(700, lag_time=0.2, random_state=0, independent=True)
    options = {"n_components": 2, "lag_time": 0.2, "random_state": 0}
    here = KernelEDMD(backend="numpy", **options).fit(X, successors=Y)
    with cupy.counting() as count:
        there = KernelEDMD(backend=CUDA, **options).fit(cupy.asarray(X), successors=cupy.asarray(Y))
    assert there.reg_ == here.reg_
    np.testing.assert_allclose(there.eigenvalues_, here.eigenvalues_, rtol=1e-8)
    np.testing.assert_allclose(there.asymmetry_, here.asymmetry_, rtol=1e-5, atol=1e-9)
    # 1,530 launches, 448 waits, 162 copies and 55 sums before
    assert count.kernels <= 700, str(count)
    assert count.syncs <= 44, str(count)
    assert count.copies <= 44, str(count)
    assert count.sums <= 25, str(count)
