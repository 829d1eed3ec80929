"""What the exponential chooses on its own is as near to the exact flow as the best that a user finds by hand (issue 12).

Errors are root mean square distances of trajectories at t = 1 from those of the exact flow, in units of the data, from base points
that no choice has seen.
"""

from functools import cache
from itertools import product

import numpy as np
import pytest

import gpukoop as gk
from gpukoop import metrics
from gpukoop.sampler import choice
from gpukoop.sampler.choice import REG_PATH
from gpukoop.sampler.diagnosis import exact_flow
from gpukoop.sampler.expm import ExponentialOverflow

N, N_TRAJECTORIES = 1200, 300


@pytest.fixture(autouse=True)
def _sums_that_compile_nothing():
    with gk.use_backend("numpy"):
        yield


def mixture(rng):
    centres = np.array([[1.5, 0.0], [-1.0, 1.0], [0.0, -2.0]])
    return centres[rng.choice(3, N, p=[0.5, 0.3, 0.2])] + 0.45 * rng.normal(size=(N, 2))


LAWS = {
    "moons": lambda rng: gk.datasets.moons(N, random_state=0),
    "three Gaussians": mixture,
    "narrow Gaussian": lambda rng: rng.normal(size=(N, 2)) @ [[2, 0.5], [0, 0.3]] + [5, 1],
    "heavy tails": lambda rng: rng.standard_t(5, size=(N, 2)),
    "exponential in three dimensions": lambda rng: rng.exponential(size=(N, 3)),
}
POLYNOMIALS = [
    {"dictionary": "polynomial", "degree": p, "time_degree": k}
    for p, k in product((1, 2, 3, 4), (1, 2))
]
KERNELS = [
    {"n_features": 100, "gaussian_part": part, "time_degree": k}
    for part, k in ((True, 1), (True, 2), (True, 6), (False, 2))
]


@cache
def data(law):
    return LAWS[law](np.random.default_rng(0))


def fitted(law, **options):
    return gk.KoopmanSampler(solver="exponential", random_state=0, **options).fit(data(law))


@cache
def ends(law):
    """Return base points and where the exact flow of the samples, in their frame, carries them."""
    flow = fitted(law, dictionary="polynomial", degree=1, reg=1e-3)._flow
    base = np.random.default_rng(5).normal(size=(N_TRAJECTORIES, data(law).shape[1]))
    return base, exact_flow(flow.learner, flow.data, base)[-1]


def error(law, learner, evolution):
    base, exact = ends(law)
    return float(np.sqrt(((evolution.transport(base) - exact) ** 2).sum(axis=1).mean()))


def errors_by_hand(law, options):
    """Return the errors of one set of options with every ridge of the path, 1e-7 to 1."""
    learner, found = fitted(law, reg=1e-3, **options)._flow.learner, []
    for reg in REG_PATH["exponential"]:
        try:
            found.append(error(law, learner, learner._evolution(learner.pooled(), reg)))
        except ExponentialOverflow:
            continue
    return found


CASES = [("polynomial", law) for law in LAWS]
CASES += [("kernels", law) for law in ("moons", "three Gaussians", "heavy tails")]


@pytest.mark.slow
@pytest.mark.parametrize(("dictionary", "law"), CASES)
def test_the_default_is_as_near_as_the_best_found_by_hand(dictionary, law):
    by_hand, default = {
        "polynomial": (POLYNOMIALS, {"dictionary": "polynomial"}),
        "kernels": (KERNELS, {"n_features": 100}),
    }[dictionary]
    found = [min(errors_by_hand(law, options)) for options in by_hand]
    learner = fitted(law, **default)._flow.learner
    chosen = error(law, learner, learner.single)
    # 256 trajectories choose: their error has a standard deviation of some 5 %
    assert chosen < 1.15 * min(found) + 0.02, (chosen, found, learner.reg, learner.recipe.degree)


@pytest.mark.slow
def test_trajectories_of_the_moons_end_a_fifth_off():
    """With all defaults .186 off; with 450 features .209, with 300 .22, with degree 6 in time and a ridge of 1e-3 besides .6."""
    X = gk.datasets.moons(2000, random_state=0)
    default, before = (
        gk.KoopmanSampler(solver="exponential", random_state=0, **options)
        .fit(X)
        .spectral_report(n_trajectories=N_TRAJECTORIES)
        .context["trajectory"]["1"]
        for options in ({}, {"n_features": 300, "time_degree": 6, "reg": 1e-3})
    )
    assert default < 0.2
    assert before > 0.6


def test_the_degree_of_the_polynomials_is_free_for_the_exponential_only():
    X = np.random.default_rng(0).exponential(size=(300, 2))
    for options, degrees in (
        ({"solver": "exponential"}, {2, 3, 4}),
        ({"solver": "exponential", "degree": 1}, {1}),
        ({"solver": "exponential", "reg": 1e-2}, {2, 3, 4}),
        ({"solver": "sat"}, {4}),
    ):
        flow = gk.KoopmanSampler("polynomial", random_state=0, **options).fit(X)
        recipe = flow._flow.learner.recipe
        assert recipe.degree in degrees
        assert [r.degree for r in recipe.candidates] == sorted(degrees, reverse=True)
        assert np.isfinite(flow.partial_fit(X).sample(20)).all()


def test_held_out_points_prefer_the_ridge_whose_samples_are_nearest():
    rng = np.random.default_rng(1)
    held_out = rng.normal(size=(80, 2))
    moved = {}

    def endpoints(reg, base):
        moved[reg] = base + {1e-8: 1.0, 1e-6: 0.1, 1e-4: 3.0}[reg]
        return moved[reg]

    path = choice.by_held_out(endpoints, held_out, 0, None)
    for reg, score in path:
        assert score == pytest.approx(metrics.energy_distance(moved[reg], held_out), rel=1e-9)
    assert min(path, key=lambda row: row[1])[0] == 1e-6
