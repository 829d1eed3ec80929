"""The solves: exact fields, identities, rates, clocks, resumed passes (T1, T2, T5 to T9, T12)."""

from functools import cache
from itertools import product as cartesian

import numpy as np
import pytest

from gpukoop.sampler import (
    AffineTeacher,
    Clock,
    GaussianTeacher,
    Lift,
    MixtureTeacher,
    Moments,
    NystroemFeatures,
    Options,
    PolynomialFeatures,
    Stage,
    Triples,
    assemble,
    denoiser,
    expm_action,
    generator,
    ridge,
    sat,
    sat_inverse,
    spectral_report,
)
from gpukoop.sampler.solves import symmetrized

MIXTURE = MixtureTeacher(
    [0.5, 0.3, 0.2],
    [[1.5, 0], [-1, 1], [0, -2]],
    [[[0.3, 0.1], [0.1, 0.2]], [[0.1, 0], [0, 0.4]], [[0.2, -0.1], [-0.1, 0.3]]],
)
B = np.array([[-0.7, 0.3, 0.0], [0.1, -0.4, 0.2], [0.0, -0.2, 0.3]])
MEAN = 0.7


def quadrature(lift, variance, *, slab=(0.0, 1.0), n_t=80, n_x=40, ends=(False, False)):
    """Exact moments for data N(0.7, variance) on the line: Gauss-Legendre in clock time, Gauss-Hermite in x."""
    teacher = GaussianTeacher(MEAN, variance)
    moments = Moments(slab, lift.n_features, 1, 1, ends)
    nodes, w_s = np.polynomial.legendre.leggauss(n_t)
    s = slab[0] + (slab[1] - slab[0]) * (nodes + 1) / 2
    z, w_x = np.polynomial.hermite_e.hermegauss(n_x)
    w_x = w_x / w_x.sum()

    def at(time):
        return teacher.flow(z[:, None], time)

    t = np.repeat(lift.clock.time(s), n_x)
    x = np.concatenate([at(time) for time in lift.clock.time(s)])
    weights = np.outer(w_s / 2, w_x).ravel()[:, None]
    g, rate = lift.lift_and_generate(x, t, teacher.velocity(x, t))
    moments.sums = {"S": g.T @ (weights * g), "M": (g.T @ (weights * rate))[None]}
    edges = []
    for end, name in zip((0, 1), "ab", strict=True):
        time = float(lift.clock.time(slab[end]))
        edge = lift.lift(at(time), time)
        edges.append(edge.T @ (w_x[:, None] * edge))
        clean = at(time) + (1 - time) * teacher.velocity(at(time), time)
        moments.sums[f"Y{name}"] = edge.T @ (w_x[:, None] * clean)
    moments.sums["B"] = np.stack(edges)
    moments.count, moments.edge_counts = 1, np.ones(2)
    return moments


def line_lift(K, clock=None):
    return Lift(1, [PolynomialFeatures(1, 1, K)], clock)


def mixture_lift(n_landmarks=80, seed=0, slab=(0.0, 1.0)):
    rng = np.random.default_rng(seed)
    t = rng.uniform(*slab, n_landmarks)
    x1, x0 = MIXTURE.sample(n_landmarks, rng), rng.normal(size=(n_landmarks, 2))
    x = (1 - t)[:, None] * x0 + t[:, None] * x1
    return Lift(2, [NystroemFeatures(x, t, scale=0.8, time_scale=0.6)])


@cache
def mixture_data(n):
    return MIXTURE.sample(n, np.random.default_rng(1))


def sampled(lift, n, *, teacher=None, seed=0, n_data=50_000, **options):
    return assemble(lift, Triples(mixture_data(n_data), teacher, seed), n, **options)


def test_semigroup():
    lift = mixture_lift()
    moments = sampled(lift, 5_000)
    A = generator(moments, lift, ridge(moments, 1e-5))
    whole = expm_action(A, np.eye(len(A)), 1.0)
    parts = expm_action(A, expm_action(A, np.eye(len(A)), 0.4), 0.6)
    assert abs(whole - parts).max() < 1e-12 * abs(whole).max()  # T1


def test_affine_field_is_exact():
    """T2: d = 3, monomials of degree <= 4 and time; eigenvalues are sums of those of B, the one-step map is exact."""
    teacher = AffineTeacher(B, [0.2, -0.1, 0.3])
    lift = Lift(3, [PolynomialFeatures(3, 4, 0)])
    data = np.random.default_rng(0).normal(size=(4000, 3))
    moments = assemble(lift, Triples(data, teacher, 0), 4_000)
    A = generator(moments, lift, 0.0)
    beta = np.linalg.eigvals(B)
    expected = [n @ beta for n in map(np.array, cartesian(range(5), repeat=3)) if 0 < n.sum() <= 4]
    report = spectral_report(A[2:, 2:])
    found = report.eigenvalues
    assert len(found) == len(expected) == 34
    gaps = abs(found[:, None] - np.array(expected)[None])
    assert gaps.min(axis=0).max() < 1e-10
    assert gaps.min(axis=1).max() < 1e-10
    x0 = np.random.default_rng(1).normal(size=(200, 3))
    exact = teacher.flow(x0)
    one_step = lift.product(x0, 0.0, expm_action(A, lift.decoder))
    assert abs(one_step - exact).max() < 1e-10
    assert report.modal, "T14: the quotient of an affine control has readable modes"
    assert not spectral_report(A).modal, "T14: constant and time are a Jordan block"


def test_time_row_is_exact_whatever_the_ridge():
    lift = mixture_lift()
    moments = sampled(lift, 5_000)
    x0 = np.random.default_rng(0).normal(size=(50, 2))
    for reg in (0.0, 1e-6, 1e-3):
        A = generator(moments, lift, ridge(moments, reg))
        assert (A[:, 1] == np.eye(len(A))[0]).all()
        assert (A[:, 0] == 0).all()
        if reg == 1e-3:
            arrived = lift.lift(x0, 0.0) @ expm_action(A, np.eye(len(A))[:, 1])
            assert abs(arrived - 1.0).max() < 1e-14  # T5


def test_summation_by_parts():
    lift = line_lift(8)
    exact = quadrature(lift, 0.25)
    slope = exact.slope(1)
    jump = exact.host("B", 1) - exact.host("B", 0)
    assert abs(slope + slope.T - jump).max() < 1e-10  # T6
    lift = mixture_lift()
    gaps = []
    for n in (20_000, 80_000):
        moments = sampled(lift, n)
        slope = moments.slope(1)
        jump = moments.host("B", 1) - moments.host("B", 0)
        gaps.append(np.linalg.norm(slope + slope.T - jump) / np.linalg.norm(jump))
    assert gaps[0] < 4e-2
    assert 0.3 < gaps[1] / gaps[0] < 0.8  # N^-1/2 is 0.5, one realisation each


@pytest.mark.parametrize("lam", [1e-9, 1e-6, 1e-3])
def test_energy_identities(lam):
    lift = mixture_lift()
    moments = sampled(lift, 4_000)
    Ba, Bb = moments.host("B", 0), moments.host("B", 1)
    C = lift.decoder
    c = sat(moments, lift, lam, symmetrize=True)
    energy = np.einsum("ij,ik,kj->", c, Ba, c) + 2 * lam * (c**2).sum()
    energy += np.einsum("ij,ik,kj->", c - C, Bb, c - C)
    assert energy == pytest.approx(np.trace(C.T @ Bb @ C), rel=1e-10)  # T7
    assert np.einsum("ij,ik,kj->", c, Ba, c) <= np.trace(C.T @ Bb @ C)
    c = sat_inverse(moments, lift, lam, symmetrize=True)
    energy = np.einsum("ij,ik,kj->", c, Bb, c) + 2 * lam * (c**2).sum()
    energy += np.einsum("ij,ik,kj->", c - C, Ba, c - C)
    assert energy == pytest.approx(np.trace(C.T @ Ba @ C), rel=1e-10)
    slope = symmetrized(moments.slope(1), Ba, Bb)
    np.testing.assert_allclose(slope + slope.T, Bb - Ba, atol=1e-13 * abs(Bb).max())


@pytest.mark.parametrize("variance", [0.04, 0.25, 4.0])
@pytest.mark.parametrize(("K", "bound"), [(8, 1e-4), (16, 1e-8)])
def test_sat_converges_spectrally_on_gaussians(variance, K, bound):
    lift = line_lift(K)
    moments = quadrature(lift, variance)
    z, w = np.polynomial.hermite_e.hermegauss(40)
    w = w / w.sum()
    x0, x1 = z[:, None], MEAN + np.sqrt(variance) * z[:, None]
    ahead = lift.product(x0, 0.0, sat(moments, lift, 0.0))
    back = lift.product(x1, 1.0, sat_inverse(moments, lift, 0.0))
    assert np.sqrt(w @ (ahead - x1)[:, 0] ** 2) < bound  # T8
    assert np.sqrt(w @ (back - x0)[:, 0] ** 2) < bound


@pytest.mark.parametrize("variance", [0.04, 0.25, 4.0])
def test_sat_with_sampled_moments_and_a_teacher(variance):
    """The exact map solves the sampled equations too: below 1e-6 at K = 16 with 300,000 triples."""
    lift = line_lift(16)
    teacher = GaussianTeacher(MEAN, variance)
    data = teacher.sample(50_000, np.random.default_rng(0))
    moments = assemble(lift, Triples(data, teacher, 0), 300_000)
    x0 = np.random.default_rng(1).normal(size=(1000, 1))
    error = lift.product(x0, 0.0, sat(moments, lift, 0.0)) - teacher.flow(x0)
    assert np.sqrt((error**2).mean()) < 1e-6


def test_teacher_free_generator_approaches_the_exact_one():
    """T9: with the same points x_t, the distance of the two generators halves when N grows fourfold."""
    lift = Lift(2, [PolynomialFeatures(2, 2, 2)])
    distances = []
    for n in (4_000, 16_000, 64_000):
        runs = []
        for seed in range(3):  # the mean of three runs: one run scatters by a quarter
            options = {"seed": seed, "n_data": 200_000}
            free = sampled(lift, n, **options)
            taught = sampled(lift, n, teacher=MIXTURE, **options)
            A, exact = (generator(m, lift, ridge(m, 1e-6)) for m in (free, taught))
            runs.append(np.linalg.norm(A - exact) / np.linalg.norm(exact))
        distances.append(np.mean(runs))
    rates = [distances[0] / distances[1], distances[1] / distances[2]]
    assert all(2 * 0.7 < rate < 2 * 1.3 for rate in rates), distances


@pytest.mark.parametrize("variance", [0.04, 0.25, 4.0])
def test_log_clock(variance):
    """T12: the spectrum does not grow, and one step with a last denoising is the endpoint to 1e-5."""
    for K in (4, 8, 16):
        lift = line_lift(K, Clock("log", 8.0))
        moments = quadrature(lift, variance, slab=(0.0, 8.0), n_t=200, ends=(True, True))
        A = generator(moments, lift, 0.0)
        assert np.linalg.eigvals(A).real.max() < 0.1
    z = np.linspace(-3, 3, 200)[:, None]
    density = np.exp(-(z**2) / 2)
    for solver in ("exponential", "sat"):
        stage = Stage(lift, moments, 0.0, Options(solver, final="finish"))
        error = stage.forward(z) - (MEAN + np.sqrt(variance) * z)
        assert np.sqrt((density * error**2).sum() / density.sum()) < 1e-5, solver


def test_denoiser_is_the_conditional_mean():
    lift = line_lift(8)
    moments = quadrature(lift, 0.25, slab=(0.6, 1.0), ends=(True, False))
    teacher = GaussianTeacher(MEAN, 0.25)
    x = teacher.flow(np.linspace(-2, 2, 50)[:, None], 0.6)
    found = lift.product(x, 0.6, denoiser(moments, 0.0, "a"))
    assert abs(found - (x + 0.4 * teacher.velocity(x, 0.6))).max() < 1e-10


def test_interrupted_pass_continues_with_the_same_bits(tmp_path):
    lift = mixture_lift()
    whole = sampled(lift, 30_000, n_bins=4)
    stopped = sampled(lift, 30_000, n_bins=4, callback=lambda m: m.batches == 2)
    assert stopped.batches == 2
    stopped.save(tmp_path / "moments.npz")
    resumed = sampled(lift, 30_000, moments=Moments.load(tmp_path / "moments.npz"))
    assert resumed.count == whole.count
    for name in whole.sums:
        assert (resumed.sums[name] == whole.sums[name]).all(), name


def test_every_point_is_seen_once_a_pass():
    data = np.arange(1000.0)[:, None]
    triples = Triples(data, None, 0)
    seen = np.concatenate([triples.draw(i, 250)[1] for i in range(8)]).ravel()
    assert (np.sort(seen[:1000]) == data.ravel()).all()
    assert (np.sort(seen[1000:]) == data.ravel()).all()
    assert (seen[:1000] != seen[1000:]).any()


def test_bins_sum_to_the_slab():
    lift = mixture_lift(40)
    moments = sampled(lift, 20_000, n_bins=4)
    x0 = np.random.default_rng(0).normal(size=(500, 2))
    from gpukoop.sampler import integrate

    exact = integrate(MIXTURE, x0, [0, 0.25, 0.5, 0.75, 1.0], n_steps=100)
    for k in (1, 2, 3, 4):
        moved = lift.product(x0, 0.0, sat(moments, lift, ridge(moments, 1e-6), upto=k))
        assert np.sqrt(((moved - exact[k]) ** 2).sum(axis=1).mean()) < 0.45
