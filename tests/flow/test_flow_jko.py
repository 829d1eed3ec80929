"""JKO steps: P3, P4, the Moreau identity, every objective monotone for every tau."""

from functools import partial

import numpy as np
import pytest
import slow_jko

import gpukoop as gk
from gpukoop import metrics
from gpukoop.flow.coupling import exact_map
from gpukoop.flow.critic import (
    DIVERGENCES,
    CriticField,
    FourierDictionary,
    JoinedDictionary,
    KernelDictionary,
    PolynomialDictionary,
)
from gpukoop.flow.descent import Motion
from gpukoop.flow.drmmd import drmmd_field, kale_field
from gpukoop.flow.jko import gaussian_kl_step, jko_field, proximal_step
from gpukoop.flow.memory import Kept
from gpukoop.flow.mmd import mmd_field

# Closed laws hold for numbers in the units of the points.
MMDFlow = partial(gk.MMDFlow, units="absolute")
JKOFlow = partial(gk.JKOFlow, units="absolute")

RNG = np.random.default_rng(0)


def clouds(n=20, m=25, d=2, gap=0.5, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)), rng.normal(size=(m, d)) * 0.7 + gap


@pytest.mark.parametrize("tau", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("d", [1, 2])
def test_a_step_on_the_wasserstein_loss_has_ratio_one_over_one_plus_tau(d, tau):
    Z, X = clouds(40, 40, d=d)
    flow = JKOFlow("w2", tau=tau, n_steps=1).fit(X)
    for _ in range(4):
        before, Z = metrics.wasserstein(Z, X), flow.transport(Z)
        assert abs(metrics.wasserstein(Z, X) / before - 1 / (1 + tau)) < 1e-8


def test_a_step_on_a_quadratic_potential_is_closed():
    rng = np.random.default_rng(0)
    Z, a, stiffness, tau = rng.normal(size=(10, 3)), np.array([1.0, 0.0, 2.0]), 4.0, 0.7

    def potential(Y, memory, rng, iteration):
        energy = stiffness / 2 * ((Y - a) ** 2).sum(axis=1).mean()
        return Motion(-stiffness * (Y - a), energy)

    found, _ = proximal_step(potential, Z, tau, tol=1e-12)
    expected = (Z + tau * stiffness * a) / (1 + tau * stiffness)
    assert np.abs(found.particles - expected).max() < 1e-9


@pytest.mark.parametrize("tau", [0.1, 0.3])
def test_a_step_on_kl_between_normal_laws_is_closed(tau):
    # The target's law by Gauss-Hermite nodes: sums over samples are integrals for the exponential of a quadratic.
    x, w = np.polynomial.hermite_e.hermegauss(180)
    keep = w > 1e-200
    x, w = x[keep, None], w[keep] / w[keep].sum()
    z = np.random.default_rng(0).normal(size=(50, 1))
    z = 1.0 + 2.0 * (z - z.mean()) / z.std()
    field = CriticField(
        x, PolynomialDictionary(x, penalty=1.0), "kl", regularization=1e-13, weights=w
    )
    found, motion = proximal_step(field, z, tau, tol=1e-10)
    mean, deviation = gaussian_kl_step(1.0, 2.0, tau)
    assert abs(found.particles.mean() - mean) < 1e-6
    assert abs(found.particles.std() - deviation) < 1e-6
    # KL(N(1, 4) | N(0, 1)) itself, by both forms.
    assert motion.energy == pytest.approx((4 + 1 - 1) / 2 - np.log(2), abs=1e-6)


def test_the_closed_step_minimises_the_closed_objective():
    from scipy.optimize import minimize

    m, s, tau, target = 0.7, 2.5, 0.3, 1.5

    def objective(p):
        kl = (p[1] ** 2 + p[0] ** 2) / (2 * target**2) - np.log(p[1] / target) - 0.5
        return kl + ((p[0] - m) ** 2 + (p[1] - s) ** 2) / (2 * tau)

    best = minimize(objective, [m, s], tol=1e-14, bounds=[(None, None), (1e-3, None)]).x
    assert np.abs(best - gaussian_kl_step(m, s, tau, target)).max() < 1e-6
    assert gaussian_kl_step(0.0, 2.5, 0.3)[1] == pytest.approx(2.036399124, abs=1e-9)


def test_particles_of_a_quantile_grid_take_the_normal_step():
    from scipy.stats import norm

    q = norm.ppf((np.arange(2_000) + 0.5) / 2_000)[:, None]
    flow = JKOFlow("kl", tau=0.3, n_steps=1, critic="quadratic", regularization=1e-6).fit(q)
    end = flow.transport(0.5 + 1.5 * q[::4])
    mean, deviation = gaussian_kl_step(0.5, 1.5, 0.3)
    assert abs(end.mean() - mean) < 1e-2
    assert abs(end.std() - deviation) < 1e-2


def dictionaries(X):
    kernel = gk.Gaussian(1.0)
    polynomial = PolynomialDictionary(X)
    return (
        KernelDictionary(kernel, X),
        JoinedDictionary((KernelDictionary(kernel, X[:15]), polynomial)),
        JoinedDictionary((FourierDictionary(X, 1.0, 30, np.random.default_rng(0)), polynomial)),
    )


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_critics_give_gradients(divergence, which):
    Z, X = clouds()
    field = CriticField(X, dictionaries(X)[which], divergence, regularization=0.05)
    motion = field(Z, Kept())
    for i in (0, 9):
        for c in range(2):
            e = np.zeros_like(Z)
            e[i, c] = 1e-5
            slope = len(Z) * (field(Z + e, Kept()).energy - field(Z - e, Kept()).energy) / 2e-5
            assert abs(motion.velocity[i, c] + slope) < 1e-6 * np.abs(motion.velocity).max()


def test_chi2_with_a_kernel_critic_is_drmmd_and_the_f_dual_is_kale():
    Z, X = clouds()
    kernel, rho = gk.Gaussian(1.0), 0.05
    # The optimal critic lives in the span of both clouds.
    dictionary = KernelDictionary(kernel, np.concatenate([Z, X]))
    for divergence, peer, lam in (
        ("chi2", drmmd_field, 2 * rho),
        ("kl-dual", kale_field, rho),
    ):
        ours = CriticField(X, dictionary, divergence, regularization=rho)(Z, Kept())
        theirs = peer(kernel, X, regularization=lam)(Z, Kept(), RNG, 0)
        assert ours.energy == pytest.approx(theirs.energy / (1 + lam), rel=1e-8)
        assert np.abs(ours.velocity - theirs.velocity / (1 + lam)).max() < 1e-6


def test_donsker_varadhan_is_tighter_than_the_f_dual():
    Z, X = clouds()
    dictionary = dictionaries(X)[1]
    dv, dual = (
        CriticField(X, dictionary, name, regularization=0.05)(Z, Kept()).energy
        for name in ("kl", "kl-dual")
    )
    assert dv >= dual


def test_jensen_shannon_is_bounded_by_two_log_two():
    Z, X = clouds(gap=30.0)
    field = CriticField(X, dictionaries(X)[1], "js", regularization=1e-6)
    assert 1.3 < field(Z, Kept()).energy < 2 * np.log(2)


@pytest.mark.parametrize("objective", ["mmd", "kl", "kl-dual", "chi2", "js", "kale", "w2"])
def test_no_objective_ever_rises(objective):
    Z, X = clouds(30, 30)
    for tau in (1e-2, 1.0, 100.0):
        flow = JKOFlow(
            objective, tau=tau, n_steps=2, regularization=0.1, inner_iter=20, random_state=0
        ).fit(X)
        flow.transport(Z)
        F = flow.history_["energy"]
        assert np.isfinite(F).all()
        assert np.diff(F).max() <= 1e-12 * abs(F[0])
        assert F[-1] < F[0]


def test_riesz_objectives_take_the_implicit_steps():
    Z, X = clouds()
    for kernel in (gk.Energy(), gk.Riesz(exponent=1.5)):
        jko = JKOFlow("mmd", tau=3.0, n_steps=4, kernel=kernel).fit(X).transport(Z)
        mmd = MMDFlow(kernel, scheme="implicit", step_size=3.0, n_iter=4).fit(X).transport(Z)
        assert np.abs(jko - mmd).max() < 1e-13


def test_one_explicit_half_step_on_the_moreau_envelope_is_the_jko_step():
    Z, X = clouds(8, 12)
    tau = 0.6
    energy = mmd_field(gk.Gaussian(1.0), X)

    def envelope(Y):
        # inf over eta of W2^2 + 2 tau D is 2 tau times the minimum of the proximal objective.
        return 2 * tau * proximal_step(energy, Y, tau, tol=1e-9)[0].objective

    end = proximal_step(energy, Z, tau, tol=1e-9)[0].particles
    for i in (0, 5):
        for c in range(2):
            e = np.zeros_like(Z)
            e[i, c] = 1e-5
            slope = len(Z) * (envelope(Z + e) - envelope(Z - e)) / 2e-5
            assert abs(Z[i, c] - 0.5 * slope - end[i, c]) < 1e-7


def test_the_fixed_point_is_the_implicit_equation():
    Z, X = clouds()
    tau = 0.5
    field = mmd_field(gk.Gaussian(1.0), X)
    end = proximal_step(field, Z, tau, tol=1e-10)[0].particles
    assert np.abs(end - Z - tau * field(end, Kept(), RNG, 0).velocity).max() < 1e-8


def test_the_toy_saddle():
    # mu = delta_1, nu = delta_0, k = phi^2 x y: max over phi in [0, 1] of min_t (1 - t)^2 / 2 + phi^2 t^2.
    def potential(phi):
        return lambda Y, memory, rng, i: Motion(-2 * phi**2 * Y, phi**2 * float((Y**2).mean()))

    values = {
        phi: proximal_step(potential(phi), np.ones((1, 1)), 1.0, tol=1e-13)[0]
        for phi in np.linspace(0, 1, 11)
    }
    best = max(values, key=lambda phi: values[phi].objective)
    assert best == 1.0
    assert values[best].particles[0, 0] == pytest.approx(1 / 3, abs=1e-9)


@pytest.mark.parametrize("tau", [0.05, 0.2])
def test_a_map_step_follows_minus_the_gradient_to_first_order(tau):
    # As tau -> 0 the regressed step of the map is -tau times the gradient: the residual per tau halves with tau.
    Z, X = clouds(60, 60)
    energy = mmd_field(gk.Gaussian(1.0), X)
    v = energy(Z, Kept(), RNG, 0).velocity
    residual = []
    for t in (tau, tau / 2):
        field = jko_field(energy, t, tol=1e-10)
        G = gk.maps.RandomFeatureMap(50, random_state=0, reg=1e-9).start(Z)
        Phi = G.features(Z)
        projected = Phi @ np.linalg.lstsq(Phi, v, rcond=1e-10)[0]
        moved = G.regress(Z, Z + t * field(Z, Kept(), RNG, 0).velocity, float("inf"))
        residual.append(np.linalg.norm((moved(Z) - Z) / t - projected) / np.linalg.norm(projected))
    assert residual[1] == pytest.approx(residual[0] / 2, rel=0.15)


def test_a_parametric_flow_reaches_the_samples():
    X = np.random.default_rng(0).normal(size=(200, 2)) * 0.5 + 1.0
    flow = JKOFlow(
        "kl", tau=0.5, n_steps=6, critic="quadratic", random_state=0,
        generator=gk.maps.RandomFeatureMap(50, random_state=0),
    ).fit(X)  # fmt: skip
    drawn = flow.sample(2_000, random_state=1)
    assert np.abs(drawn.mean(axis=0) - X.mean(axis=0)).max() < 0.15
    assert np.abs(np.cov(drawn.T) - np.cov(X.T)).max() < 0.2


def test_weighted_samples():
    Z, X = clouds(20, 10)
    times = np.arange(1, 11)
    for objective in ("mmd", "kl", "js"):
        common = {"objective": objective, "tau": 0.3, "n_steps": 2, "critic": "quadratic"}
        common["kernel"] = gk.Gaussian(1.0)
        weighted = JKOFlow(**common).fit(X, sample_weight=times)
        repeated = JKOFlow(**common).fit(np.repeat(X, times, axis=0))
        if objective == "mmd":
            assert np.abs(weighted.transport(Z) - repeated.transport(Z)).max() < 1e-8
        else:  # the polynomial is standardised by the bare samples: penalties differ slightly
            assert np.abs(weighted.transport(Z) - repeated.transport(Z)).max() < 0.2
    with pytest.raises(ValueError, match="kale"):
        JKOFlow("kale").fit(X, sample_weight=times)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"objective": "hellinger"}, "objective"),
        ({"tau": 0}, "tau"),
        ({"n_steps": -1}, "n_steps"),
        ({"regularization": 0.0}, "regularization"),
        ({"critic": "deep"}, "critic"),
        ({"objective": "kl", "kernel": gk.Energy()}, "positive definite"),
        ({"objective": "kl", "critic": "features", "kernel": gk.Laplace()}, "Gaussian"),
        ({"inner_iter": 0}, "inner_iter"),
    ],
)
def test_bad_parameters_are_named(parameters, words):
    with pytest.raises(ValueError, match=words):
        JKOFlow(**parameters).fit(clouds()[1])


def test_exact_targets_do_not_depend_on_the_order_of_samples():
    Z, X = clouds(30, 30)
    order = np.random.default_rng(0).permutation(30)
    assert np.abs(exact_map(Z, X)[0] - exact_map(Z, X[order])[0]).max() < 1e-14


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("gap", [0.5, 2.5])
def test_critics_are_those_of_the_slow_newton_iteration(divergence, gap):
    Z, X = clouds(40, 50, gap=gap)
    weights = RNG.random(50)
    field = CriticField(
        X, dictionaries(X)[1], divergence, regularization=0.02, weights=weights / weights.sum()
    )
    found, value, _ = field.critic(Z)
    P, S = field.dictionary.features(Z), field.dictionary.features(X)
    beta, slow = slow_jko.critic(P, S, field.b, field.rho, divergence)
    assert value == pytest.approx(slow, rel=1e-12)
    # The penalty bounds the curvature from below: a gap of values bounds that of coefficients.
    assert (field.rho * (found - beta) ** 2).sum() / 2 <= 1e-12 * max(1.0, abs(slow))
    _, warm, _ = field.critic(Z, found)
    assert warm == pytest.approx(slow, rel=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("divergence", ["kl", "chi2", "js"])
def test_a_step_ends_where_the_slow_one_ends(divergence, dtype):
    """Same objective to the tolerance of both solvers, for float32 particles too, with a bounded number of evaluations."""
    Z, X = (a.astype(dtype) for a in clouds(60, 80, gap=1.0))
    tau, calls = 0.1, []
    dictionary = JoinedDictionary(
        (KernelDictionary(gk.Gaussian(1.0), X[:40]), PolynomialDictionary(X))
    )
    field = CriticField(X, dictionary, divergence, regularization=0.01)

    def counted(*arguments):
        calls.append(1)
        return field(*arguments)

    found, _ = proximal_step(counted, Z, tau, double=True)
    memory = {}

    def energy(Y):
        memory["beta"], value = slow_jko.critic(
            dictionary.features(Y),
            field.at_samples,
            field.b,
            field.rho,
            divergence,
            memory.get("beta"),
        )
        hy = dictionary.features(Y) @ memory["beta"]
        pull = np.exp(-np.logaddexp(0, hy)) if divergence == "js" else np.ones(len(Y))
        return -dictionary.gradient(Y, memory["beta"]) * pull[:, None], value

    Y, value = slow_jko.proximal_step(energy, Z.astype(float), tau)
    assert found.objective == pytest.approx(value, rel=1e-8)
    assert np.abs(found.particles - Y).max() < 1e-4
    assert found.residual <= 4 * 1.2e-7 * 3  # the width of both clouds is below 3
    assert len(calls) < 60


def test_float32_particles_take_few_evaluations():
    """What made a step take a minute was float32 in the line search: some thousand evaluations that got nowhere."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 3)).astype("float32")
    Z = rng.normal(size=(200, 3)).astype("float32") + 1
    for objective in ("kl", "chi2", "js"):
        flow = JKOFlow(objective, n_steps=2, random_state=0).fit(X)
        moved = flow.transport(Z)
        assert moved.dtype == np.float32
        assert flow.history_["inner_iter"].max() < 100, objective
        assert np.diff(flow.history_["energy"]).max() < 0
