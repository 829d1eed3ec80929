"""MMD, DrMMD and KALE flows: P5, P10, P11, P15, their limits and symmetries."""

from functools import partial

import numpy as np
import pytest

import gpukoop as gk
from gpukoop import metrics
from gpukoop.flow import gram
from gpukoop.flow.drmmd import drmmd_field, kale_field
from gpukoop.flow.gram import RidgeSolver
from gpukoop.flow.memory import Kept
from gpukoop.flow.mmd import mmd_field
from gpukoop.kernels.formula.catalogue import CATALOGUE

# Closed laws hold for numbers in the units of the points.
MMDFlow = partial(gk.MMDFlow, units="absolute")
WassersteinFlow = partial(gk.WassersteinFlow, units="absolute")

RNG = np.random.default_rng(0)
KERNELS = [make() for make in CATALOGUE.values()] + [
    gk.Riesz(exponent=1.5),
    gk.Gaussian(0.5) + 0.5 * gk.Matern32(2.0),
]


def clouds(n=20, m=27, d=2, gap=0.5, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)), rng.normal(size=(m, d)) * 0.7 + gap


def difference_quotient(field, Z, memory=None, h=1e-5):
    """Return the largest error of the velocity against -n dF/dz, relative to the largest velocity."""
    rng = np.random.default_rng(0)
    motion = field(Z, Kept(), rng, 0)
    worst = 0.0
    for i in (0, len(Z) // 2):
        for c in range(Z.shape[1]):
            e = np.zeros_like(Z)
            e[i, c] = h
            up, down = (field(Z + s * e, Kept(), rng, 0).energy for s in (1, -1))
            worst = max(worst, abs(motion.velocity[i, c] + len(Z) * (up - down) / (2 * h)))
    return worst / np.abs(motion.velocity).max()


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@pytest.mark.parametrize("backend", ["numpy", "numba-cpu"])
def test_velocity_is_minus_n_times_the_gradient(kernel, backend, require):
    require(backend)
    Z, X = clouds()
    field = mmd_field(kernel, X, backend=backend)
    assert difference_quotient(field, Z) < 1e-6
    squared = 2 * field(Z, Kept(), RNG, 0).energy
    assert abs(squared - metrics.mmd(Z, X, kernel) ** 2) < 1e-12


@pytest.mark.parametrize("lam", [1e-3, 0.1, 1.0, 100.0])
@pytest.mark.parametrize("make", [drmmd_field, kale_field])
def test_regularised_velocities_are_gradients(make, lam):
    Z, X = clouds()
    assert difference_quotient(make(gk.Gaussian(1.0), X, regularization=lam), Z) < 1e-6


def test_large_regularisation_is_the_mmd_and_small_the_divergence():
    Z, X = clouds()
    kernel = gk.Gaussian(1.0)
    half = mmd_field(kernel, X)(Z, Kept(), RNG, 0).energy
    for make, limit in ((drmmd_field, 2 * half), (kale_field, half)):
        far = [
            make(kernel, X, regularization=lam)(Z, Kept(), RNG, 0).energy for lam in (100, 1e4, 1e6)
        ]
        error = np.abs(np.array(far) / limit - 1)
        assert error[0] < 2e-2
        assert error[1] < 1e-3
        assert error[2] < 1e-5
    # A common finite support: particles repeat the samples with counts, so that the density ratio is known.
    X = np.random.default_rng(1).normal(size=(8, 2)) * 2
    count = np.array([1, 2, 3, 1, 2, 4, 2, 1])
    Z = np.repeat(X, count, axis=0)
    p = count / count.mean()
    chi2, kl = np.mean((p - 1) ** 2), np.mean(p * np.log(p))
    for make, limit in ((drmmd_field, chi2), (kale_field, kl)):
        near = [
            make(kernel, X, regularization=lam)(Z, Kept(), RNG, 0).energy
            for lam in (1e-2, 1e-4, 1e-7)
        ]
        error = np.abs(np.array(near) / limit - 1)
        assert (np.diff(error) < 0).all()
        assert error[1] < 1e-2
        assert error[2] < 1e-3


def test_drmmd_is_its_moreau_envelope():
    Z, X = clouds()
    m, lam = len(X), 0.3
    K = gk.Gaussian(1.0)
    energy = drmmd_field(K, X, regularization=lam)(Z, Kept(), RNG, 0).energy
    # min over g in R^m of mean g^2 + |m_mu - m_nu - (1/m) sum_j g_j k(x_j, .)|^2 / lam, signed mass allowed.
    Kxx = K(X).to_dense()
    a = K(X, Z).to_dense().mean(axis=1) - Kxx.mean(axis=1)
    squared = metrics.mmd(Z, X, K) ** 2
    g = np.linalg.solve(np.eye(m) / m + Kxx / (m**2 * lam), a / (m * lam))
    envelope = np.mean(g**2) + (squared - 2 * g @ a / m + g @ Kxx @ g / m**2) / lam
    assert abs(energy - (1 + lam) * envelope) < 1e-10


def test_landmarks_streams_and_factors_solve_the_same_system(monkeypatch):
    Z, X = clouds(30, 60)
    kernel, lam = gk.Gaussian(1.0), 0.05
    exact = drmmd_field(kernel, X, regularization=lam)(Z, Kept(), RNG, 0)
    all_of_them = drmmd_field(kernel, X, regularization=lam, landmarks=X)(Z, Kept(), RNG, 0)
    assert np.abs(all_of_them.velocity - exact.velocity).max() < 1e-8
    few = drmmd_field(kernel, X, regularization=lam, landmarks=X[::2])
    assert abs(few(Z, Kept(), RNG, 0).energy / exact.energy - 1) < 1e-2
    assert difference_quotient(few, Z) < 1e-6
    kale = kale_field(kernel, X, regularization=lam)(Z, Kept(), RNG, 0)
    monkeypatch.setattr(gram, "LARGEST_DENSE", 10)
    monkeypatch.setattr("gpukoop.flow.drmmd.NEWTON_DENSE", 10)
    streamed = drmmd_field(kernel, X, regularization=lam)(Z, Kept(), RNG, 0)
    assert np.abs(streamed.velocity - exact.velocity).max() < 1e-8 * np.abs(exact.velocity).max()
    lazy = kale_field(kernel, X, regularization=lam)(Z, Kept(), RNG, 0)
    assert np.abs(lazy.velocity - kale.velocity).max() < 1e-8 * np.abs(kale.velocity).max()


def test_conjugate_gradients_start_from_the_last_solution(monkeypatch):
    monkeypatch.setattr(gram, "LARGEST_DENSE", 10)
    _, X = clouds(1, 80)
    solver = RidgeSolver(gk.Gaussian(1.0), X, 0.01)
    a = np.random.default_rng(0).normal(size=80)
    alpha = solver.solve(a)
    K = gk.Gaussian(1.0)(X).to_dense() + 80 * 0.01 * np.eye(80)
    assert np.abs(K @ alpha - a).max() < 1e-8
    calls = []
    monkeypatch.setattr(
        gram.Gram, "__matmul__", lambda self, v: calls.append(1) or self.operator @ v / self.m
    )
    assert np.abs(solver.solve(a, alpha) - alpha).max() < 1e-8
    assert len(calls) <= 2


def test_dissipation_inequality_and_descent_of_a_smooth_kernel():
    Z, X = clouds(60, 60, gap=1.5)
    scale = 1.0
    L = 1 / scale**2
    h = 2 / (3 * L)
    for factor in (0.25, 1.0):
        flow = MMDFlow(gk.Gaussian(scale), step_size=factor * h, n_iter=100).fit(X)
        flow.transport(Z)
        F, D = flow.history_["energy"], flow.history_["dissipation"]
        bound = -factor * h * (1 - 1.5 * factor * h * L) * D
        # 2e-16: rounding of F itself, a mean of numbers of size one.
        assert (np.diff(F) <= bound + 2e-16).all()
        assert np.diff(F).max() < 1e-14


@pytest.mark.parametrize("h", [1e-2, 1.0, 30.0, 1e3])
@pytest.mark.parametrize(
    ("d", "kernel"),
    [(1, gk.Energy()), (1, gk.Riesz(exponent=1.5)), (3, gk.Energy()), (3, gk.Riesz(exponent=1.4))],
    ids=str,
)
def test_implicit_steps_never_raise_the_energy(d, kernel, h):
    rng = np.random.default_rng(0)
    for Z, X in (
        (rng.normal(size=(40, d)) - 5, rng.normal(size=(30, d))),
        (np.zeros((25, d)), rng.normal(size=(25, d))),
    ):
        Z[:3] = X[:3]  # particles that sit on samples
        flow = MMDFlow(kernel, scheme="implicit", step_size=h, n_iter=60).fit(X)
        flow.transport(Z)
        F = flow.history_["energy"]
        assert np.diff(F).max() <= 1e-14 * F[0]
        assert F[-1] < F[0]


def test_the_implicit_step_on_the_line_is_the_jko_minimiser():
    rng = np.random.default_rng(0)
    Z, X, h = rng.normal(size=(12, 1)), rng.normal(size=(9, 1)), 0.4
    flow = MMDFlow(scheme="implicit", step_size=h, n_iter=1).fit(X)
    end = flow.transport(Z)

    def objective(Y):
        order = np.argsort(Z[:, 0])
        return metrics.energy_distance(Y, X) / 2 + np.mean(
            (np.sort(Y[:, 0]) - Z[order, 0]) ** 2
        ) / (2 * h)

    best = objective(end)
    for size in (1e-3, 1e-2, 0.1, 1.0):
        for _ in range(200):
            assert objective(end + size * rng.normal(size=end.shape)) >= best - 1e-14


def test_one_large_implicit_step_matches_the_samples_exactly():
    rng = np.random.default_rng(0)
    Z, X = rng.normal(size=(50, 1)) + 1, rng.normal(size=(50, 1))
    flow = MMDFlow(scheme="implicit", step_size=100.0, n_iter=5).fit(X)
    assert np.array_equal(np.sort(flow.transport(Z), axis=0), np.sort(X, axis=0))
    assert flow.history_["energy"][-1] == 0
    assert flow.converged_


def test_explicit_steps_rattle_where_implicit_ones_descend():
    Z, X = clouds(60, 60, d=1, gap=3)
    flow = MMDFlow(step_size=1.0, n_iter=100).fit(X)
    flow.transport(Z)
    assert (np.diff(flow.history_["energy"])[50:] > 0).any()


def test_a_particle_on_a_sample_stays_only_if_the_others_let_it():
    X = np.array([[0.0, 0.0], [0.1, 0.0], [-0.1, 0.0], [0.0, 0.1], [0.0, -0.1]])
    flow = MMDFlow(scheme="implicit", step_size=1e3, n_iter=1).fit(X)
    assert np.abs(flow.transport(np.zeros((1, 2)))).max() < 1e-15
    flow.fit(X + np.array([1.0, 0.0]))
    away = np.zeros((1, 2))
    flow.fit(np.concatenate([X + np.array([1.0, 0.0]), away]))
    assert flow.transport(away)[0, 0] > 0.1


def test_symmetries():
    Z, X = clouds(15, 20, d=3)
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    shift, factor, order = np.array([3.0, -2.0, 1.0]), 2.5, np.random.default_rng(2).permutation(15)
    for make, f in (
        (lambda s: MMDFlow(gk.Gaussian(s), step_size=0.3 * s**2, n_iter=5), factor),
        (lambda s: MMDFlow(gk.Energy(), step_size=0.3 * s, n_iter=5), factor),
        (
            lambda s: MMDFlow(gk.Gaussian(s), regularization=0.1, step_size=0.02 * s**2, n_iter=5),
            factor,
        ),
        (lambda s: WassersteinFlow("exact", step_size=0.3, n_iter=5), factor),
        (
            lambda s: WassersteinFlow(
                "sinkhorn", blur=0.5 * s, step_size=0.3, n_iter=3, sinkhorn_tol=1e-10
            ),
            factor,
        ),
    ):
        base = make(1.0).fit(X).transport(Z)
        moved = make(f).fit(f * X @ rotation + shift).transport(f * Z @ rotation + shift)
        assert np.abs(moved - (f * base @ rotation + shift)).max() < 1e-7
        assert np.abs(make(1.0).fit(X).transport(Z[order]) - base[order]).max() < 1e-9


def test_noise_moves_where_the_gradient_is_taken_and_nothing_else():
    Z, X = clouds(30, 30)
    quiet = MMDFlow(gk.Gaussian(1.0), step_size=0.2, n_iter=5, random_state=0).fit(X)
    loud = MMDFlow(
        gk.Gaussian(1.0), step_size=0.2, n_iter=5, noise=lambda i: 0.5 * (i < 2), random_state=0
    ).fit(X)
    a, b = quiet.transport(Z), loud.transport(Z)
    assert np.abs(a - b).max() > 1e-3
    assert loud.history_["noise"].tolist() == [0.5, 0.5, 0, 0, 0]
    assert quiet.history_["energy"][0] == loud.history_["energy"][0]
    # The displacement stays that of a velocity: noise is not added to the particles.
    assert loud.history_["displacement"][0] < 2 * quiet.history_["displacement"][0]
    assert np.array_equal(b, loud.transport(Z))


@pytest.mark.slow
def test_noise_injection_ends_at_a_lower_energy():
    # The setting of Arbel et al., Gaussian kernel of scale 2, with a step ten times larger and 50 times fewer steps.
    ratios = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        X, Z = rng.normal(size=(100, 1)), rng.normal(size=(100, 1)) * 0.5 + 10
        ends = []
        for noise in (0.0, lambda i: 10.0 * (i < 800)):
            flow = MMDFlow(
                gk.Gaussian(2.0), step_size=1.0, n_iter=2_000, noise=noise, random_state=seed
            ).fit(X)
            flow.transport(Z)
            ends.append(flow.history_["energy"][-1])
        ratios.append(ends[0] / ends[1])
    assert np.median(ratios) >= 5


def test_momentum_accumulates_velocity():
    Z, X = clouds(20, 20)
    h, mu = 0.1, 0.6
    flow = MMDFlow(gk.Gaussian(1.0), step_size=h, momentum=mu, n_iter=3).fit(X)
    field = mmd_field(gk.Gaussian(1.0), X)
    Y, G = Z, 0.0
    for i in range(3):
        G = field(Y, Kept(), RNG, i).velocity + mu * G
        Y = Y + h * G
    assert np.abs(flow.transport(Z) - Y).max() < 1e-13


@pytest.mark.parametrize("divergence", ["chi2", "kl"])
def test_regularised_flows_descend_on_three_rings(divergence):
    X = gk.datasets.three_rings(120, random_state=0)
    Z = X.mean(axis=0) + 0.05 * np.random.default_rng(0).normal(size=(100, 2))
    lam = 0.03
    flow = MMDFlow(
        gk.Gaussian(0.3),
        regularization=lam,
        divergence=divergence,
        step_size=0.1 * lam,
        n_iter=100,
    ).fit(X)
    before = metrics.energy_distance(Z, X)
    assert metrics.energy_distance(flow.transport(Z), X) < 0.5 * before
    F = flow.history_["energy"]
    assert np.diff(F).max() < 0
    assert F[-1] < 0.1 * F[0]


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"step_size": 0.0}, "step_size"),
        ({"step_size": float("nan")}, "step_size"),
        ({"n_iter": -1}, "n_iter"),
        ({"scheme": "rk4"}, "scheme"),
        ({"scheme": "implicit", "kernel": gk.Gaussian()}, "Riesz"),
        ({"scheme": "implicit", "kernel": gk.Riesz(exponent=0.5)}, "exponent"),
        ({"scheme": "implicit", "momentum": 0.5}, "momentum"),
        ({"momentum": 1.0}, "momentum"),
        ({"noise": -1.0}, "noise"),
        ({"n_projections": 5, "kernel": gk.Gaussian()}, "Energy"),
        ({"n_projections": 0}, "n_projections"),
        ({"regularization": 0.1}, "positive definite"),
        ({"regularization": -0.1, "kernel": gk.Gaussian()}, "regularization"),
        ({"divergence": "kl", "kernel": gk.Gaussian()}, "regularization"),
        ({"n_landmarks": 5}, "n_landmarks"),
        ({"tol": 2.0}, "tol"),
        ({"generator": 3}, "generator"),
    ],
)
def test_bad_parameters_are_named(parameters, words):
    with (
        pytest.raises(ValueError, match=words)
        if words != "generator"
        else pytest.raises(TypeError, match=words)
    ):
        MMDFlow(**parameters).fit(clouds()[1])


def test_a_kernel_that_is_none_is_named():
    with pytest.raises(TypeError, match="kernel"):
        MMDFlow(kernel="gaussian").fit(clouds()[1])
