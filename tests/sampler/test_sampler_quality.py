"""One-step maps against the exact flow of a known mixture: orderings and rates, not digits (T10, T11, T13)."""

from functools import cache

import numpy as np
import pytest

from gpukoop.sampler import (
    Lift,
    MixtureTeacher,
    NystroemFeatures,
    Triples,
    assemble,
    denoiser,
    expm_action,
    generator,
    integrate,
    ridge,
    sat,
)

MIXTURE = MixtureTeacher(
    [0.5, 0.3, 0.2],
    [[1.5, 0], [-1, 1], [0, -2]],
    [[[0.3, 0.1], [0.1, 0.2]], [[0.1, 0], [0, 0.4]], [[0.2, -0.1], [-0.1, 0.3]]],
)
N = 24_000


@cache
def data():
    return MIXTURE.sample(100_000, np.random.default_rng(0))


@cache
def truth():
    x0 = np.random.default_rng(9).normal(size=(1500, 2))
    return x0, integrate(MIXTURE, x0, [0.0, 0.8, 1.0], n_steps=100)


def learned(slab=(0.0, 1.0), seed=0, ends=(False, False)):
    rng = np.random.default_rng(seed)
    t = rng.uniform(*slab, 150)
    x = (1 - t)[:, None] * rng.normal(size=(150, 2)) + t[:, None] * data()[:150]
    lift = Lift(2, [NystroemFeatures(x, t, scale=0.8, time_scale=0.6)])
    return lift, assemble(lift, Triples(data(), None, seed), N, slab=slab, ends=ends)


def rmse(x):
    return float(np.sqrt(((x - truth()[1][-1]) ** 2).sum(axis=1).mean()))


def test_oracle_below_sat_below_exponential():
    lift, moments = learned()
    x0, _ = truth()
    fresh = np.random.default_rng(4).normal(size=(4000, 2))
    ends = integrate(MIXTURE, fresh, [0.0, 1.0], n_steps=60)[-1]
    g = lift.lift(fresh, 0.0)
    for reg in (1e-8, 1e-5):
        lam = ridge(moments, reg)
        c = np.linalg.solve(g.T @ g / 4000 + lam * np.eye(lift.n_features), g.T @ ends / 4000)
        errors = [
            rmse(lift.product(x0, 0.0, P))
            for P in (
                c,
                sat(moments, lift, lam),
                expm_action(generator(moments, lift, lam), lift.decoder),
            )
        ]
        assert errors[0] < errors[1] < errors[2], errors  # T10
    assert errors[1] < 0.3
    assert errors[1] < 0.3 * rmse(x0)


@pytest.mark.slow
def test_a_new_lift_at_each_slab_brings_samples_closer():
    errors = []
    for n_slabs in (1, 2, 4, 8):
        x, _ = truth()
        for j in range(n_slabs):
            slab = (j / n_slabs, (j + 1) / n_slabs)
            lift, moments = learned(slab, seed=j)
            x = lift.product(x, slab[0], sat(moments, lift, ridge(moments, 1e-6)))
        errors.append(rmse(x))
    assert errors == sorted(errors, reverse=True), errors  # T11
    assert errors[-1] < 0.6 * errors[0]


def test_jump_and_denoise_beats_one_step():
    x0, states = truth()
    lift, moments = learned()
    one = rmse(lift.product(x0, 0.0, sat(moments, lift, ridge(moments, 1e-6))))
    lift, moments = learned((0.0, 0.8))
    there = lift.product(x0, 0.0, sat(moments, lift, ridge(moments, 1e-6)))
    lift, moments = learned((0.8, 1.0), ends=(True, False))
    two = rmse(lift.product(there, 0.8, denoiser(moments, ridge(moments, 1e-6), "a")))
    assert two < one
    exact = states[1]
    found = lift.product(exact, 0.8, denoiser(moments, ridge(moments, 1e-6), "a"))
    clean = exact + 0.2 * MIXTURE.velocity(exact, 0.8)
    assert np.sqrt(((found - clean) ** 2).sum(axis=1).mean()) < 0.1


def test_inverse_returns_near_the_start():
    from gpukoop.sampler import sat_inverse

    lift, moments = learned()
    x0, states = truth()
    back = lift.product(states[-1], 1.0, sat_inverse(moments, lift, ridge(moments, 1e-6)))
    assert np.sqrt(((back - x0) ** 2).sum(axis=1).mean()) < 0.5
