"""KSWGD: the algorithm's own laws, and end states judged against exact values and iid floors."""

import pickle
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

import gpukoop as gk
from gpukoop import datasets, metrics
from gpukoop.cli.demo import outside_wells
from gpukoop.flow.kswgd import moments, velocity
from gpukoop.spectrum import DiffusionMap

WELL = datasets.exact("quadruple_well")


@pytest.fixture(scope="module")
def well():
    """10,000 independent draws of the law, each with its successor one lag of .01 later."""
    return datasets.quadruple_well(10_000, lag_time=0.01, random_state=0, independent=True)


@pytest.fixture(scope="module")
def small():
    """A plain flow on 2,000 draws with 24 modes, float64."""
    X, _ = datasets.quadruple_well(2_000, random_state=1, independent=True)
    flow = gk.KSWGD(
        kernel=gk.Gaussian(0.3),
        n_components=24,
        step_size=0.1,
        coarse=False,
        validation_fraction=0,
    )
    return flow.fit(X)


@pytest.fixture(scope="module")
def cloud():
    return outside_wells(400, np.random.default_rng(2))


# ------------------------------------------------------------------ one step
def test_moments_are_the_means_of_the_modes(small, cloud):
    found = moments(small.spectrum_, cloud, {"backend": None, "tol": None})
    assert (
        np.abs(found.c - small.transform(cloud).mean(axis=0)).max() < 1e-10 * np.abs(found.c).max()
    )


def test_velocity_is_minus_the_gradient_of_the_moment_potential(small, cloud):
    spectrum = small.spectrum_
    found = moments(spectrum, cloud, {"backend": None, "tol": None})
    v = velocity(spectrum, found)
    expected = -spectrum.gradient(cloud, found.c / small.eigenvalues_)
    assert np.abs(v - expected).max() < 1e-9 * np.abs(expected).max()

    def potential(Z):
        return small.transform(Z) @ (found.c / small.eigenvalues_)

    h = 1e-5
    for axis in range(2):
        e = h * np.eye(2)[axis]
        slope = (potential(cloud + e) - potential(cloud - e)) / (2 * h)
        assert np.abs(v[:, axis] + slope).max() < 1e-6 * np.abs(v).max()


def test_every_particle_feels_the_others(small, cloud):
    options = {"backend": None, "tol": None}
    v = velocity(small.spectrum_, moments(small.spectrum_, cloud, options))
    moved = cloud.copy()
    moved[0] = [1.0, 1.0]
    w = velocity(small.spectrum_, moments(small.spectrum_, moved, options))
    assert (np.abs(v[1:] - w[1:]).max(axis=1) > 0).all()


def test_excess_mass_flows_to_the_empty_wells(small):
    rng = np.random.default_rng(3)
    Z = np.array([1.0, 1.0]) + 0.2 * rng.standard_normal((400, 2))
    moved = small.transport(Z, n_iter=10)
    assert moved.mean(axis=0).max() < Z.mean(axis=0).min()
    first, last = np.abs(small.history_["moments"][[0, -1], :3])
    assert (last < first).all()


@pytest.mark.slow
def test_moments_decay_at_rate_one_for_every_mode():
    X, _ = datasets.quadruple_well(6_000, random_state=1, independent=True)
    flow = gk.KSWGD(kernel=gk.Gaussian(0.3), n_components=24, step_size=0.1, coarse=False).fit(X)
    Z, _ = datasets.quadruple_well(6_000, random_state=5, independent=True)
    Z = Z[
        (Z[:, 0] > -0.9) | (np.arange(len(Z)) % 2 == 0)
    ]  # a quarter of the mass missing on the left
    flow.transport(Z, n_iter=45)
    early, late = np.abs(flow.history_["moments"])[[10, 40]]  # times 1 and 4
    lead = np.argsort(-early)[:4]
    rates = np.log(early[lead] / late[lead]) / 3.0
    # 1 for exact modes; 6,000 samples know <grad phi_k, grad phi_l> = lambda_k delta_kl to 5 percent, off-diagonal too.
    assert np.abs(rates - 1).max() < 0.12


def test_near_equilibrium_a_step_multiplies_the_moments_by_one_minus_tau(small):
    rng = np.random.default_rng(4)
    X = small.X_ + 0.01 * np.array([1.0, 0.0]) + 0.01 * rng.standard_normal(small.X_.shape)
    options = {"backend": None, "tol": None}
    c = moments(small.spectrum_, X, options).c
    lead = np.argsort(-np.abs(c))[:2]
    for tau in (0.1, 0.5):
        v = velocity(small.spectrum_, moments(small.spectrum_, X, options))
        after = moments(small.spectrum_, X + tau * v, options).c
        # 2,000 samples know <grad phi_k, grad phi_l> = lambda_k delta_kl to 5 percent, off the diagonal too.
        assert np.allclose(after[lead] / c[lead], 1 - tau, atol=0.2 * tau)
    after = X
    size = [np.abs(c).max()]
    for _ in range(6):
        v = velocity(small.spectrum_, moments(small.spectrum_, after, options))
        after = after + 2.6 * v
        size.append(np.abs(moments(small.spectrum_, after, options).c).max())
    assert size[-1] > 3 * size[0]


def test_similarity_of_the_plane_changes_nothing(small, cloud):
    factor, shift = 7.0, np.array([30.0, -12.0])
    c, s = np.cos(0.6), np.sin(0.6)
    turn = np.array([[c, -s], [s, c]])

    def there(Z):
        return factor * Z @ turn.T + shift

    other = clone(small).set_params(kernel=gk.Gaussian(0.3 * factor)).fit(there(small.X_))
    assert np.allclose(other.eigenvalues_ * factor**2, small.eigenvalues_, rtol=1e-8)
    a, b = small.transport(cloud, n_iter=5), other.transport(there(cloud), n_iter=5)
    assert np.abs(there(a) - b).max() < 1e-7 * factor


def test_unit_of_the_lag_time_does_not_matter(well, cloud):
    X, Y = (A[:2_000] for A in well)
    ends = []
    for unit in (0.01, 10.0):
        flow = gk.KSWGD(
            kernel=gk.Gaussian(0.4),
            n_components=8,
            lag_time=unit,
            step_size=0.1,
            total_time=1.0,
            coarse=False,
            random_state=0,
        )
        ends.append(flow.fit(X, successors=Y).transport(cloud))
    assert np.abs(ends[0] - ends[1]).max() < 1e-6


def test_far_particle_is_pulled_in_and_leaves_the_others_alone(small, cloud):
    for X, Z in ((small.X_, cloud), (small.X_.astype(np.float32), cloud.astype(np.float32))):
        flow = clone(small).fit(X)
        far = np.concatenate([Z, np.full((1, 2), 30.0, Z.dtype)])  # 100 scales away
        alone = flow.transport(Z, n_iter=1)
        with pytest.warns(RuntimeWarning, match="so far from the data"):
            both = flow.transport(far, n_iter=1)
        assert np.isfinite(both).all()
        assert flow.history_["far"].tolist() == [1]
        towards = (both[-1] - far[-1]) @ np.array([-1.0, -1.0]) / np.sqrt(2)
        assert 0.8 * flow.spectrum_.scale_ < towards < 1.01 * flow.spectrum_.scale_
        # The far particle is one of n + 1: it changes every moment by at most |phi|_max / (n + 1).
        bound = np.abs(flow.transform(X)).max() / len(far)
        change = moments(flow.spectrum_, far, {}).c - moments(flow.spectrum_, Z, {}).c
        assert np.abs(change).max() < 2.5 * bound
        assert np.abs(both[:-1] - alone).max() < flow.spectrum_.scale_


# ------------------------------------------------------------------ whole runs
def judge(Z, draws, seed=50):
    reference, _ = datasets.quadruple_well(10_000, random_state=seed, independent=True)
    kernel = gk.Gaussian(metrics.median_scale(reference))

    def mmd(A):
        return metrics.mmd(A, reference, kernel)

    floors = [
        datasets.quadruple_well(len(Z), random_state=seed + 1 + i, independent=True)[0]
        for i in range(4)
    ]
    return {
        "coverage": metrics.coverage(Z, WELL["centres"], 0.4),
        "V": datasets.potential("quadruple_well", Z).mean(),
        "mmd": mmd(Z) / np.mean([mmd(A) for A in floors]),
        "neighbour": metrics.nearest_neighbour_distance(Z)
        / np.mean([metrics.nearest_neighbour_distance(A) for A in floors]),
    }


def assert_right(found):
    assert abs(found["coverage"] - WELL["coverage"]) < 4.0, found
    assert abs(found["V"] - WELL["mean_potential"]) < 0.1 * WELL["mean_potential"], found
    assert found["mmd"] < 2.0, found
    assert 0.5 < found["neighbour"] < 2.0, found


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("pairs", [False, True], ids=["samples", "pairs"])
def test_quadruple_well_from_outside(well, pairs, seed):
    X, Y = (A.astype(np.float32) for A in well)
    start = outside_wells(3_000, np.random.default_rng(seed)).astype(np.float32)
    flow = gk.KSWGD(lag_time=0.01, random_state=seed, step_size=0.1)
    flow.fit(X, successors=Y if pairs else None)
    Z = flow.transport(start)
    assert Z.dtype == np.float32
    assert flow.backend_ == "numba-cpu"
    assert_right(judge(Z, X))


@pytest.mark.slow
def test_published_bandwidth_strands_the_plain_flow_and_not_the_default(well):
    X = well[0].astype(np.float32)
    start = outside_wells(3_000, np.random.default_rng(0)).astype(np.float32)
    kernel = gk.Gaussian(np.sqrt(0.02))
    common = {"kernel": kernel, "n_landmarks": 1_000, "step_size": 0.1, "random_state": 0}
    plain = gk.KSWGD(coarse=False, **common).fit(X)
    default = gk.KSWGD(**common).fit(X)
    assert plain.coarse_ is None
    assert default.coarse_ is not None
    assert judge(plain.transport(start), X)["V"] > 1.0
    assert_right(judge(default.transport(start), X))


@pytest.mark.parametrize("law", [datasets.moons, datasets.three_rings, datasets.student_t])
def test_a_coarser_spectrum_is_truly_coarser_or_none(law):
    X = law(300, 0)
    made = {
        how: gk.KSWGD(n_components=5, coarse=how, random_state=0).fit(X) for how in (True, "auto")
    }
    assert made[True].coarse_.scale_ >= 1.5 * made[True].spectrum_.scale_
    wide = made["auto"].coarse_
    assert wide is None or wide.scale_ >= 1.5 * made["auto"].spectrum_.scale_


def test_torus_from_a_small_patch():
    X = datasets.torus(800, random_state=0)
    rng = np.random.default_rng(1)
    angle = np.array([0.0, np.pi / 2]) + rng.uniform(-0.3, 0.3, (2_000, 2))
    ring = 2.0 + 0.8 * np.cos(angle[:, 1])
    start = np.stack(
        [ring * np.cos(angle[:, 0]), ring * np.sin(angle[:, 0]), 0.8 * np.sin(angle[:, 1])], axis=1
    )
    flow = gk.KSWGD(n_components=60, step_size=0.1, project=datasets.project_torus).fit(X)
    Z = flow.transport(start)
    assert np.abs(datasets.project_torus(Z) - Z).max() < 1e-9
    assert metrics.sliced_wasserstein(Z, X) < 0.06
    floor = metrics.nearest_neighbour_distance(datasets.torus(2_000, random_state=2))
    assert 0.5 < metrics.nearest_neighbour_distance(Z) / floor < 2.0


@pytest.mark.slow
@pytest.mark.parametrize("tol", [1e-4, 1e-6])
def test_fourier_sums_give_the_same_trajectory(tol):
    pytest.importorskip("finufft")
    X, _ = datasets.quadruple_well(6_000, random_state=0, independent=True)
    start = np.random.default_rng(0).uniform(-2, 2, (4_000, 2))
    spectrum = DiffusionMap(gk.Gaussian(0.4), n_components=24, random_state=0).fit(X)
    common = {"spectrum": spectrum, "step_size": 0.1, "coarse": False}
    exact = gk.KSWGD(backend="numba-cpu", **common).fit(X).transport(start, n_iter=20)
    flow = gk.KSWGD(backend="fourier", tol=tol, **common).fit(X)
    assert flow.backend_ == "fourier"
    assert np.abs(flow.transport(start, n_iter=20) - exact).max() < tol * np.abs(exact).max()
    # A particle so far out that its sums underflow needs logarithmic sums, which stay exact.
    with pytest.warns(RuntimeWarning, match="so far from the data"):
        flow.transport(np.concatenate([start, np.full((1, 2), 40.0)]), n_iter=1)


# ------------------------------------------------------------------ conventions
def test_stopping_rule(small):
    flow = small
    flow.transport(flow.X_)  # the samples themselves have zero moments
    assert flow.converged_
    assert flow.n_iter_ == 0
    flow.transport(0.7 * flow.X_[:200], n_iter=2)
    assert not flow.converged_
    assert flow.n_iter_ == 2
    assert set(flow.history_) == {"moments", "dissipation", "displacement", "limited", "far"}
    assert flow.history_["moments"].shape == (2, 24)
    assert np.allclose(flow.history_["dissipation"], (flow.history_["moments"] ** 2).sum(axis=1))


def test_repeatable_and_inputs_untouched(small, cloud):
    before = cloud.copy()
    a = small.transport(cloud, n_iter=3)
    b = small.transport(cloud, n_iter=3)
    assert (a == b).all()
    assert (cloud == before).all()
    assert (small.sample(19, random_state=1) == small.sample(19, random_state=1)).all()
    assert (small.sample(19, random_state=1) != small.sample(19, random_state=2)).any()


def test_no_step_moves_a_particle_further_than_one_scale(small, cloud):
    clouds = [cloud]
    small.transport(cloud, n_iter=5, callback=lambda i, Z: clouds.append(Z.copy()))
    steps = [np.linalg.norm(b - a, axis=1).max() for a, b in pairwise(clouds)]
    assert max(steps) <= small.spectrum_.scale_ * (1 + 1e-12)


def test_fitted_spectrum_serves_as_spectrum(small, cloud):
    spectrum = DiffusionMap(gk.Gaussian(0.3), n_components=24).fit(small.X_)
    flow = gk.KSWGD(spectrum=spectrum, step_size=0.1, coarse=False).fit(small.X_)
    assert np.allclose(flow.transport(cloud, n_iter=3), small.transport(cloud, n_iter=3), atol=1e-8)


def test_a_step_forms_no_product_of_particles_and_modes_or_sources():
    X, _ = datasets.quadruple_well(500, random_state=1, independent=True)
    flow = gk.KSWGD(kernel=gk.Gaussian(0.4), n_components=100, coarse=False).fit(
        X.astype(np.float32)
    )
    Z = np.random.default_rng(0).uniform(-1.5, 1.5, (200_000, 2)).astype(np.float32)
    flow.transport(Z[:1000], n_iter=1)
    tracemalloc.start()
    flow.transport(Z, n_iter=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6  # (n, r) in float32 would be 80 MB, (n, m) 400 MB


def test_checkpointed_run_continues_to_the_same_bits(small, cloud, tmp_path):
    whole = small.transport(cloud, n_iter=6)
    path = tmp_path / "run.ckpt"

    class Killed(Exception):
        pass

    def kill(i, Z):
        if i == 3:
            raise Killed

    with pytest.raises(Killed):
        small.transport(cloud, n_iter=6, callback=kill, checkpoint=path, checkpoint_every=2)
    calls = []
    again = small.transport(
        cloud, n_iter=6, callback=lambda i, Z: calls.append(i), checkpoint=path, checkpoint_every=2
    )
    assert calls == [4, 5]
    assert (again == whole).all()
    with pytest.raises(ValueError, match=r"run\.ckpt belongs to another run"):
        small.transport(cloud[:50], n_iter=6, checkpoint=path)


X_GOOD = np.random.default_rng(0).standard_normal((60, 2))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_components": 0}, "n_components"),
        ({"n_components": 60}, "n_components"),
        ({"n_components": 2.5}, "n_components"),
        ({"step_size": 0.0}, "step_size"),
        ({"step_size": float("nan")}, "step_size"),
        ({"total_time": -1.0}, "total_time"),
        ({"lag_time": 0.0}, "lag_time"),
        ({"n_landmarks": 1}, "n_landmarks"),
        ({"backend": "cuda"}, "unknown backend 'cuda'"),
        ({"kernel": "rbf"}, "kernel"),
        ({"kernel": gk.Energy()}, "positive"),
        ({"spectrum": "pca"}, "spectrum"),
        ({"spectrum": "edmd"}, "successors"),
        ({"spectrum": DiffusionMap()}, "fitted"),
        ({"project": 3}, "project"),
        ({"init": "zeros"}, "init"),
        ({"coarse": "no"}, "coarse"),
        ({"tol": 2.0}, "tol"),
        ({"random_state": -1}, "random_state"),
    ],
)
def test_bad_parameters_name_themselves(change, words):
    flow = gk.KSWGD(**{"n_components": 4, **change})
    with pytest.raises((ValueError, TypeError), match=words):
        flow.fit(X_GOOD).sample(3)


@pytest.mark.parametrize(
    ("X", "words"),
    [
        (np.where(np.arange(120).reshape(60, 2) == 7, np.nan, X_GOOD), r"NaN or inf.*\(3, 1\)"),
        (np.where(np.arange(120).reshape(60, 2) == 7, np.inf, X_GOOD), "NaN or inf"),
        (X_GOOD[:0], "0 sample"),
        (X_GOOD[:, :0], "0 feature"),
        (X_GOOD[:, 0], "reshape"),
        (np.full((60, 2), "a"), "text|str|dtype <U1"),
        (np.ones((60, 2)), "coincide|identical|differ|equal"),
        (X_GOOD[:1], "n_samples=1|1 sample"),
    ],
    ids=["nan", "inf", "empty", "no-feature", "1-D", "text", "constant", "one"],
)
def test_bad_samples_name_what_came(X, words):
    with pytest.raises((ValueError, TypeError), match=words):
        gk.KSWGD(n_components=4).fit(X)


def test_bad_particles_and_successors():
    flow = gk.KSWGD(n_components=4).fit(X_GOOD)
    with pytest.raises(ValueError, match="3 features, but KSWGD is expecting 2"):
        flow.transport(np.ones((5, 3)))
    with pytest.raises(ValueError, match="n_samples"):
        flow.sample(0)
    with pytest.raises(ValueError, match="n_iter"):
        flow.transport(X_GOOD, n_iter=-1)
    with pytest.raises(ValueError, match="successors has 10 rows, X has 60"):
        gk.KSWGD(n_components=4).fit(X_GOOD, successors=X_GOOD[:10])
    with pytest.raises(ValueError, match="successors="):
        gk.KSWGD(n_components=4).fit(X_GOOD, X_GOOD)
    broken = gk.KSWGD(n_components=4, project=lambda Z: Z[:3]).fit(X_GOOD)
    with pytest.raises(ValueError, match="project returned"):
        broken.transport(X_GOOD, n_iter=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "X",
    [
        X_GOOD,
        X_GOOD[:, :1],
        X_GOOD * [1.0, 0.0],
        X_GOOD @ [[1.0, 2.0], [0.0, 0.0]],
        1e-8 * X_GOOD,
        1e8 * X_GOOD,
        X_GOOD + 1e8,
        np.repeat(X_GOOD[:30], 5, axis=0),
        np.concatenate([X_GOOD, np.zeros((150, 2))]),
        X_GOOD[:2],
        X_GOOD[:3],
        X_GOOD[:5],
    ],
    ids="good line constant collinear small large far copies atom two three five".split(),
)
def test_defaults_give_no_warning(X):
    flow = gk.KSWGD(total_time=0.2, random_state=0).fit(X)
    Z = flow.sample(10)
    assert np.isfinite(Z).all()
    assert np.isfinite(flow.eigenvalues_).all()


def test_number_of_modes_that_was_asked_for_is_not_cut_in_silence():
    with pytest.warns(ConvergenceWarning, match="of 50 modes are resolved"):
        gk.KSWGD(n_components=50, random_state=0).fit(X_GOOD)


def test_particles_at_any_distance():
    flow = gk.KSWGD(n_components=4, total_time=0.2, random_state=0).fit(X_GOOD)
    for distance in (1e5, 1e9, 1e30):
        start = np.concatenate([X_GOOD, X_GOOD[:5] + distance])
        with pytest.warns(RuntimeWarning, match="5 particle"):
            Z = flow.transport(start)
        assert np.isfinite(Z).all()
        # far particles count as their nearest samples: bounded moments, whatever the rounding of large logarithms
        largest = np.abs(flow.transform(X_GOOD)).max()
        assert np.abs(flow.history_["moments"]).max() <= largest
    with pytest.raises(ValueError, match="range of float32"):
        gk.KSWGD(n_components=4, random_state=0).fit(X_GOOD.astype(np.float32)).transport(
            np.full((1, 2), 1e30, np.float32)
        )


@pytest.mark.slow
def test_a_second_fit_forgets_the_flow():
    flow = gk.KSWGD(n_components=3, total_time=0.2, random_state=0).fit(X_GOOD)
    flow.sample(5)
    flow.fit(X_GOOD[:, :1])
    assert not {"n_iter_", "converged_", "history_"} & set(vars(flow))


def test_parameters_changed_after_fit_are_checked():
    flow = gk.KSWGD(n_components=3, random_state=0).fit(X_GOOD)
    for name, bad in (("step_size", 0), ("step_size", "a"), ("total_time", -1), ("project", 3)):
        with pytest.raises((ValueError, TypeError), match=f"^{name} is"):
            clone(flow).set_params(**{name: bad}).fit(X_GOOD)
        broken = pickle.loads(pickle.dumps(flow)).set_params(**{name: bad})
        with pytest.raises((ValueError, TypeError), match=f"^{name} is"):
            broken.transport(X_GOOD)


def test_columns_of_transform_have_names():
    flow = gk.KSWGD(n_components=3, random_state=0).fit(X_GOOD)
    assert list(flow.get_feature_names_out()) == ["kswgd0", "kswgd1", "kswgd2"]


def test_a_dictionary_of_ones_own_leads_the_flow():
    """Monomials of a normal law are its Hermite polynomials: mean and covariance of the particles end at those of the data."""
    X = np.random.default_rng(4).standard_normal((2_000, 2)) @ [[1.0, 0.4], [0.0, 0.8]]
    spectrum = gk.spectrum.GeneratorEDMD(gk.spectrum.Monomials(2), 5).fit(X)
    flow = gk.KSWGD(spectrum, step_size=0.1, total_time=14.0).fit(X)
    assert flow.backend_ == "dictionary"
    start = 0.3 * np.random.default_rng(5).normal(size=(300, 2)) + [1.0, -0.8]
    step, state, _, _ = flow._plan(start, None, 0)
    c, slopes = flow.transform(start).mean(axis=0), spectrum.gradient(start)
    floor = np.sqrt(1 / 300 + 1 / 2_000)  # modes below it are left alone
    v = -np.einsum("nkd,k->nd", slopes, np.where(np.abs(c) > floor, c, 0) / spectrum.eigenvalues_)
    np.testing.assert_allclose(
        step(state, np.random.default_rng(0))[0].particles, start + 0.1 * v, rtol=1e-9
    )
    Z = flow.transport(start)
    assert np.abs(c).max() > 10 * floor
    assert (np.abs(flow.transform(Z).mean(axis=0)) < 1.05 * floor).all()
    np.testing.assert_allclose(Z.mean(axis=0), X.mean(axis=0), atol=2 * floor)
    np.testing.assert_allclose(np.cov(Z.T), np.cov(X.T), atol=3 * floor)
    with pytest.raises(ValueError, match="langevin and coarse=True follow a kernel estimate"):
        gk.KSWGD(spectrum, langevin=0.1).fit(X_GOOD)
    with pytest.raises(ValueError, match="fit it first"):
        gk.KSWGD(gk.spectrum.GeneratorEDMD()).fit(X_GOOD)


def test_start_must_be_finite():
    flow = gk.KSWGD(n_components=3, init=lambda n, rng: np.full((n, 2), np.nan)).fit(X_GOOD)
    with pytest.raises(ValueError, match=r"^init\(n, rng\) contains NaN"):
        flow.sample(3)
