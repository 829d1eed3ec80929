"""Kinetics of laws with answers: chains of few states, wells, an Ornstein-Uhlenbeck process."""

import itertools

import numpy as np
import pytest
from scipy import linalg
from scipy.stats import binom
from sklearn.base import clone

import gpukoop as gk
from gpukoop import kinetics
from gpukoop.kinetics.blocks import SPAN, widening


def chain(T, n, rng, start=None):
    """States of a Markov chain with transition matrix T, from its stationary law or a given state."""
    if start is None:
        values, vectors = np.linalg.eig(T.T)
        law = np.real(vectors[:, np.argmax(np.real(values))])
        start = rng.choice(len(T), p=law / law.sum())
    edges, u = T.cumsum(axis=1), rng.random(n)
    states = np.empty(n, int)
    states[0] = start
    for i in range(1, n):
        states[i] = np.searchsorted(edges[states[i - 1]], u[i])
    return np.minimum(states, len(T) - 1)


def seen(states, rng, noise=0.1):
    """Frames on a line: state 0, 1, ... and noise that hides nothing."""
    return (states + noise * rng.normal(size=len(states)))[:, None]


A, B = 0.02, 0.04
TWO = np.array([[1 - A, A], [B, 1 - B]])
TWO_TIME = -1 / np.log(1 - A - B)  # 16.2 frames
FEW = gk.KernelEDMD(gk.Gaussian(0.4), n_components=1, n_landmarks=30, reg=0.3, random_state=0)


@pytest.mark.slow
def test_bands_cover_the_truth_as_often_as_they_say():
    """95 % bands over 100 seeds: 88 to 99 hits but for one case in a thousand; timescale, weight and passage time."""
    hits = np.zeros(3)
    for seed in range(100):
        rng = np.random.default_rng(seed)
        runs = [seen(chain(TWO, n, rng), rng) for n in (2_500, 1_500)]
        model = kinetics.KineticModel(FEW, lag=4, n_bootstrap=60, random_state=seed).fit(runs)
        states = kinetics.metastable_states(model, 2)
        hits += [
            model.timescales_lower_[0] < TWO_TIME < model.timescales_upper_[0],
            states.weights_lower[0] < 2 / 3 < states.weights_upper[0],
            states.mean_first_passage_times_lower[0, 1]
            < 1 / A
            < states.mean_first_passage_times_upper[0, 1],
        ]
    least, most = binom.ppf([0.001, 0.999], 100, 0.95)
    assert (hits >= max(least, 85)).all(), hits
    assert (hits <= most).all(), hits


def test_blocks_are_longer_than_the_slowest_timescale():
    rng = np.random.default_rng(0)
    run = seen(chain(TWO, 4_000, rng), rng)
    model = kinetics.KineticModel(FEW, lag=4).fit(run)
    assert all(b.m >= SPAN * model.timescales_[0] for b in model._learned.blocks)
    assert sum(b.m for b in model._learned.blocks) == 4_000 - 4
    many = [seen(chain(TWO, 150, rng), rng) for _ in range(40)]
    assert kinetics.KineticModel(FEW, lag=4).fit(many).n_blocks_ == 40  # whole runs


def test_runs_too_short_for_bands_say_so():
    rng = np.random.default_rng(1)
    run = seen(chain(TWO, 250, rng), rng)
    with pytest.warns(RuntimeWarning, match="too few for error bars"):
        result = kinetics.implied_timescales(run, [2], estimator=FEW, n_timescales=1)
    assert np.isnan(result.lower).all()
    assert np.isfinite(result.timescales).all()


def test_implied_timescales_are_flat_and_in_the_users_unit():
    rng = np.random.default_rng(2)
    run = seen(chain(TWO, 30_000, rng), rng)
    result = kinetics.implied_timescales(
        run, [8, 2, 4], estimator=FEW, n_timescales=2, frame_time=0.5
    )
    assert result.lags.tolist() == [2, 4, 8]
    assert result.lag_times.tolist() == [1, 2, 4]
    assert (result.lower[:, 0] < TWO_TIME / 2).all()
    assert (TWO_TIME / 2 < result.upper[:, 0]).all()
    assert np.isnan(result.timescales[:, 1]).all()  # the estimator has one mode
    # relative error of a switching time from 30,000 * 2 a b / (a + b) = 800 switches, 1 / sqrt(800), doubled by both ways
    assert result.timescales[:, 0] == pytest.approx(
        np.full(3, TWO_TIME / 2), rel=4 * 2 / np.sqrt(800)
    )


# --- states

THREE = np.array([[0.975, 0.025, 0.0], [0.01, 0.98, 0.01], [0.0, 0.03, 0.97]])


def three_states(n, seed):
    rng = np.random.default_rng(seed)
    states = chain(THREE, n, rng)
    return states, seen(states, rng)


def exact_passage(T):
    n = len(T)
    out = np.zeros((n, n))
    for j in range(n):
        rest = [i for i in range(n) if i != j]
        out[rest, j] = np.linalg.solve(np.eye(n - 1) - T[np.ix_(rest, rest)], np.ones(n - 1))
    return out


def test_states_of_a_chain_are_its_states():
    states, X = three_states(40_000, 0)
    estimator = gk.KernelEDMD(
        gk.Gaussian(0.4), n_components=2, n_landmarks=60, reg=0.3, random_state=0
    )
    model = kinetics.KineticModel(estimator, lag=5).fit(X)
    found = kinetics.metastable_states(model, 3)
    chi = found.memberships(X)
    assert np.allclose(chi.sum(axis=1), 1)
    table = np.array([[np.mean(chi[states == s, j]) for j in range(3)] for s in range(3)])
    order = table.argmax(axis=0)  # state of the chain that each found state is
    assert sorted(order) == [0, 1, 2]
    assert table[order, range(3)].min() > 0.95
    values, vectors = np.linalg.eig(THREE.T)
    law = np.real(vectors[:, np.argmax(np.real(values))])
    law = (law / law.sum())[order]
    assert (found.weights_lower <= law).all()
    assert (law <= found.weights_upper).all()
    assert (np.diff(found.weights) <= 0).all()
    exact = exact_passage(THREE)[np.ix_(order, order)]
    away = ~np.eye(3, dtype=bool)
    inside = (found.mean_first_passage_times_lower <= exact) & (
        exact <= found.mean_first_passage_times_upper
    )
    assert inside[away].all()
    # committor between the ends of the chain, seen from the middle: .01 / (.01 + .01)
    ends = [int(np.flatnonzero(order == s)[0]) for s in (0, 2)]
    q = found.committor(*ends, X)
    assert np.mean(q[states == 1]) == pytest.approx(0.5, abs=0.05)
    assert np.mean(q[states == 0]) < 0.05
    assert np.mean(q[states == 2]) > 0.95


def test_pcca_finds_the_blocks_of_an_uncoupled_chain():
    """Exact eigenvectors of blocks with a weak coupling: memberships are the blocks; against brute force over A."""
    rng = np.random.default_rng(3)
    sizes = [4, 7, 5, 3]
    label = np.repeat(np.arange(4), sizes)
    K = rng.uniform(0.5, 1.0, (19, 19))
    K = (K + K.T) * np.where(label[:, None] == label, 1.0, 1e-3)
    law = K.sum(axis=1) / K.sum()
    S = K / np.sqrt(np.outer(K.sum(axis=1), K.sum(axis=1)))
    phi = np.linalg.eigh(S)[1][:, ::-1][:, 1:4] / np.sqrt(law)[:, None]
    frames = rng.choice(19, size=5_000, p=law)
    matrix = kinetics.pcca(phi[frames], 4)
    chi = matrix[0] + phi @ matrix[1:]
    assert (chi.argmax(axis=1)[:, None] == chi.argmax(axis=1)).tolist() == (
        label[:, None] == label
    ).tolist()
    assert chi.max(axis=1).min() > 0.98
    exact = [law[label == b].sum() for b in range(4)]
    assert np.allclose(np.sort(matrix[0]), np.sort(exact), atol=0.02)


def test_more_states_than_slow_modes_are_warned_about_or_refused():
    """The second timescale of the double well is .167: gone after a lag of 1."""
    X, _ = gk.datasets.double_well(20_000, lag_time=0.1, random_state=0)
    estimator = gk.KernelEDMD(n_components=3, n_landmarks=60, random_state=0)
    model = kinetics.KineticModel(estimator, lag=10, frame_time=0.1).fit(X)
    with pytest.raises(ValueError, match="ask for at most"):
        kinetics.metastable_states(model, 9)
    with pytest.warns(RuntimeWarning, match="decayed within the lag"):
        kinetics.metastable_states(model, 3)


# --- predictions


def test_chapman_kolmogorov_passes_a_chain_and_fails_a_hidden_one():
    """Two states of which one hides two of very unequal lifetimes: what is seen is no Markov process at a short lag."""
    _, X = three_states(40_000, 5)
    estimator = gk.KernelEDMD(
        gk.Gaussian(0.4), n_components=2, n_landmarks=60, reg=0.3, random_state=0
    )
    model = kinetics.KineticModel(estimator, lag=5).fit(X)
    result = kinetics.chapman_kolmogorov(model, kinetics.metastable_states(model, 3), 4)
    assert result.passed
    assert result.largest_difference < 0.05
    assert np.allclose(result.predicted[0], result.estimated[0])
    assert np.allclose(result.predicted.sum(axis=2), 1)
    rng = np.random.default_rng(6)
    hidden = np.array([[0.9, 0.1, 0.0], [0.1, 0.895, 0.005], [0.0, 0.005, 0.995]])
    dark = seen((chain(hidden, 40_000, rng) > 0).astype(int), rng)
    model = kinetics.KineticModel(FEW, lag=2).fit(dark)
    result = kinetics.chapman_kolmogorov(model, kinetics.metastable_states(model, 2), 6)
    assert not result.passed


def test_forecast_of_an_ornstein_uhlenbeck_process():
    """E[X_t] = x e^-t and E[X_t^2] = 1 + (x^2 - 1) e^-2t, to the noise of 2,000 relaxation times."""
    X, _ = gk.datasets.ornstein_uhlenbeck(20_000, lag_time=0.1, random_state=0)
    estimator = gk.KernelEDMD(n_components=4, n_landmarks=100, random_state=0)
    model = kinetics.KineticModel(estimator, lag=5, frame_time=0.1).fit(X)
    x, t = np.array([[-1.5], [0.0], [1.0]]), np.array([0.5, 1.0, 2.0])
    found = kinetics.forecast(model, lambda Z: np.stack([Z[:, 0], Z[:, 0] ** 2], axis=1), x, t)
    first = np.exp(-t)[:, None] * x[:, 0]
    second = 1 + np.exp(-2 * t)[:, None] * (x[:, 0] ** 2 - 1)
    assert found.shape == (3, 3, 2)
    assert np.abs(found[:, :, 0] - first).max() < 0.15
    assert np.abs(found[:, :, 1] - second).max() < 0.25
    one = kinetics.forecast(model, lambda Z: Z[:, 0], x, t)
    assert np.allclose(one, found[:, :, 0])  # each observable is forecast by itself
    constant = kinetics.forecast(model, lambda Z: np.full(len(Z), 2.5), x, t)
    assert np.allclose(constant, 2.5)
    large = kinetics.forecast(model, lambda Z: 1e6 + 1e-3 * Z[:, 0], x, t)
    assert np.allclose((large - 1e6) * 1e3, found[:, :, 0], atol=1e-4)
    listed = kinetics.forecast(model, X[:, 0], x, t)
    assert np.abs(listed - first).max() < 0.15
    shifted = kinetics.forecast(model, 1e6 + X[:, 0], x, t)
    assert np.allclose(shifted - 1e6, listed, atol=1e-6)
    correlation = kinetics.mode_correlation(model, lambda Z: np.concatenate([Z, np.abs(Z)], axis=1))
    assert abs(correlation.correlation[0, 0]) > 0.98
    assert abs(correlation.correlation[1, 0]) < 4 * correlation.error[1, 0] + 0.02
    with pytest.raises(ValueError, match="looks forward"):
        kinetics.forecast(model, X[:, 0], x, [-1.0])


def test_forecasts_at_short_times():
    """Far out, at twice the deviation, where modes are known worst: what is known now is known soon."""
    X, _ = gk.datasets.ornstein_uhlenbeck(10_000, lag_time=0.1, random_state=0)
    estimator = gk.KernelEDMD(n_components=4, n_landmarks=60, reg=0.1, random_state=0)
    model = kinetics.KineticModel(estimator, lag=2, frame_time=0.1, n_bootstrap=2).fit(X)
    x, t = np.array([[-2.0], [0.0], [2.0]]), np.array([0.0, 0.05, 0.1, 0.2])
    exact = 1 + np.exp(-2 * t)[:, None] * (x[:, 0] ** 2 - 1)
    found = kinetics.forecast(model, lambda Z: Z[:, 0] ** 2, x, t)
    assert np.abs(found[0] - exact[0]).max() < 1e-8
    assert np.abs(found - exact).max() < 0.1
    modes = kinetics.forecast(model, X[:, 0] ** 2, x, t)
    assert np.abs(found - exact)[1].max() < 0.3 * np.abs(modes - exact)[1].max()


def test_a_region_seen_a_dozen_times_has_a_wide_band():
    rng = np.random.default_rng(7)
    rare = np.array([[0.999, 0.001], [0.4, 0.6]])
    run = seen(chain(rare, 12_000, rng), rng)
    model = kinetics.KineticModel(
        gk.KernelEDMD(gk.Gaussian(0.05), n_components=1, n_landmarks=60, reg=0.3, random_state=0),
        lag=1,
    ).fit(run)
    found = kinetics.occupancy(model, lambda Z: Z[:, 0] > 0.5)
    exact = 0.001 / 0.401
    assert 5 <= found.n_visits <= 25
    assert found.lower < exact < found.upper
    assert found.upper / found.lower > np.exp(2 * 1.9 * np.sqrt(2 / found.n_visits))
    never = kinetics.occupancy(model, lambda Z: Z[:, 0] > 5)
    assert (never.weight, never.n_visits) == (0.0, 0)
    assert never.upper > 0


# --- runs out of equilibrium


def test_runs_from_one_state_are_warned_about_and_reweighted():
    """400 runs of 40 frames, all from state 1, of a chain that forgets in 16: weights come out wrong, or are mended.

    14,400 pairs see some 190 cycles, so that the weight 2/3 is known to 2/9 sqrt(2 / 190) = .023 at best.
    """
    rng = np.random.default_rng(8)
    runs = [seen(chain(TWO, 40, rng, start=1), rng) for _ in range(400)]
    with pytest.warns(RuntimeWarning, match="did not start in equilibrium"):
        wrong = kinetics.KineticModel(FEW, lag=4).fit(runs)
    right = kinetics.KineticModel(FEW, lag=4, reweight=True).fit(runs)
    weights = [kinetics.metastable_states(m, 2) for m in (wrong, right)]
    heavy = [float(s.weights[s.memberships(np.array([[0.0]]))[0].argmax()]) for s in weights]
    assert heavy[0] < 0.60
    assert heavy[1] == pytest.approx(2 / 3, abs=3 * 0.023)
    assert right.timescales_[0] == pytest.approx(TWO_TIME, rel=0.15)
    result = kinetics.chapman_kolmogorov(right, weights[1], 3)
    assert result.passed
    # so does a region: 1 / 3 of the law, more of the frames
    region = [kinetics.occupancy(m, lambda Z: Z[:, 0] > 0.5) for m in (wrong, right)]
    assert region[0].weight > 0.38
    assert region[1].weight == pytest.approx(1 - heavy[1], abs=0.02)
    assert region[1].n_frames == region[0].n_frames
    assert region[1].lower < 1 / 3 < region[1].upper


def test_bands_of_reweighted_runs_know_that_weights_are_learned():
    """200 runs of half a relaxation time, all from one of three wells of a torsion: few ways back, so bands are wide, and hold."""
    n = 40
    angle = 2 * np.pi * np.arange(n) / n
    V = 2 * np.cos(3 * angle) + 0.6 * np.cos(angle - 1)
    rates = np.zeros((n, n))
    for i in range(n):
        for j in ((i + 1) % n, i - 1):
            rates[i, j] = (n / (2 * np.pi)) ** 2 * np.exp((V[i] - V[j]) / 2)
    rates -= np.diag(rates.sum(axis=1))
    T, law = linalg.expm(0.05 * rates), np.exp(-V) / np.exp(-V).sum()
    hits = 0
    for seed in range(3):
        rng = np.random.default_rng(seed)
        states = [chain(T, 60, rng, start=int(law.argmax())) for _ in range(200)]
        runs = [gk.maps.torus(angle[s][:, None]) for s in states]
        estimator = gk.KernelEDMD(n_components=3, n_landmarks=40, random_state=0)
        model = kinetics.KineticModel(estimator, lag=4, reweight=True, n_bootstrap=60).fit(runs)
        found = kinetics.metastable_states(model, 3)
        exact = law @ found.memberships(gk.maps.torus(angle[:, None]))
        hits += ((found.weights_lower < exact) & (exact < found.weights_upper)).sum()
        # every block once: the same moments as the model has
        total = model._learned.basis.total(np.ones(model.n_blocks_))
        assert np.allclose(total[1], model._learned.basis.total()[1], atol=1e-8)
        # errors of correlations learn the weights anew, too: by hand over all pairs
        told = kinetics.mode_correlation(model, lambda Z: Z)
        basis = model._learned.basis
        first = np.concatenate([run[:-4] for run in runs])
        both = np.hstack([first, model.transform(first)])
        drawn = []
        for c in model._counts:
            w = c[basis.block] * np.maximum(basis.ratio @ basis.combination(c), 0.0)
            joint = np.cov(both.T, aweights=w, ddof=0)
            sd = np.sqrt(np.diag(joint))
            drawn.append((joint / np.outer(sd, sd))[:2, 2:])
        n_blocks = model.n_blocks_
        by_hand = np.std(drawn, axis=0, ddof=1) * np.sqrt(n_blocks / (n_blocks - 1))
        assert np.allclose(told.error, by_hand, rtol=1e-4)
    assert hits >= 8


def test_occupancy_of_a_reweighted_model_relearns_the_weights_whatever_the_blocks_of_its_frames():
    """Five long runs: the band of half of the frames is that of the same resamples of weights, done by hand."""
    rng = np.random.default_rng(12)
    runs = [seen(chain(TWO, 3_000, rng), rng) for _ in range(5)]
    model = kinetics.KineticModel(FEW, lag=4, reweight=True, n_bootstrap=60).fit(runs)
    found = kinetics.occupancy(model, lambda Z: Z[:, 0] > 0.5)
    basis = model._learned.basis  # of every pair, in the model's blocks
    inside = np.concatenate([run[:-4, 0] > 0.5 for run in runs])
    assert len(inside) == len(basis.block)  # fewer than PAIRS: all of them
    shares = []
    for c in model._counts:
        w = c[basis.block] * (basis.ratio @ basis.combination(c))
        shares.append(w[inside].sum() / w.sum())
    factor = np.exp(
        widening(model.n_blocks_, model._learned.c, 0.95) * np.log(shares).std(axis=0, ddof=1)
    )
    least = np.exp(1.96 * np.sqrt(2 / found.n_visits))
    assert found.upper == pytest.approx(found.weight * max(factor, least), rel=1e-3)
    assert found.lower == pytest.approx(found.weight / max(factor, least), rel=1e-3)


def test_occupancy_is_never_surely_nothing_where_a_frame_was():
    """Three frames at the end of a run start no pair, so they have no weight: the band is that of no visit at least."""
    rng = np.random.default_rng(13)
    runs = [seen(chain(TWO, 300, rng), rng) for _ in range(30)]
    runs[3][-3:] += 20
    model = kinetics.KineticModel(FEW, lag=5, reweight=True, n_bootstrap=20).fit(runs)
    found = kinetics.occupancy(model, lambda Z: Z[:, 0] > 15)
    assert (found.n_visits, found.n_frames, found.weight, found.lower) == (1, 3, 0.0, 0.0)
    assert found.upper >= 3 * 5 / 9_000
    assert found.upper >= kinetics.occupancy(model, lambda Z: Z[:, 0] > 50).upper


def test_warnings_of_pairs_that_are_not_reversible_point_at_the_line_of_the_user():
    rng = np.random.default_rng(14)
    ring = 0.9 * np.eye(4) + 0.1 * np.roll(np.eye(4), 1, axis=1)
    angle = chain(ring, 4_000, rng) * np.pi / 2
    X = np.stack([np.cos(angle), np.sin(angle)], axis=1) + 0.1 * rng.normal(size=(4_000, 2))
    edmd = gk.KernelEDMD(n_components=2, n_landmarks=30, random_state=0)
    flow = gk.KSWGD(n_components=2, n_landmarks=30, random_state=0)
    for call in (
        lambda: clone(edmd).fit(X[:-1], successors=X[1:]),
        lambda: clone(edmd).fit([X], lag=1),
        lambda: clone(edmd).fit_transform(X[:-1], successors=X[1:]),
        lambda: clone(flow).fit(X[:-1], successors=X[1:]),
        lambda: kinetics.KineticModel(edmd, n_bootstrap=2).fit(X),
        lambda: kinetics.cross_validate([X], {"n_landmarks": [20]}, lag=1, estimator=edmd),
    ):
        with pytest.warns(RuntimeWarning) as told:
            call()
        told = [w for w in told if "not those of a reversible process" in str(w.message)]
        assert told
        assert {w.filename for w in told} == {__file__}


def test_runs_in_equilibrium_are_not_warned_about():
    """One alarm in a thousand; warnings are errors here."""
    for seed in range(5):
        rng = np.random.default_rng(100 + seed)
        runs = [seen(chain(TWO, 40, rng), rng) for _ in range(100)]
        assert kinetics.KineticModel(FEW, lag=4).fit(runs).drift_p_value_ > 1e-3


def test_timescales_of_runs_out_of_equilibrium_and_of_a_ring_are_warned_about():
    """A model says so; whoever only looks at timescales against the lag is told, too."""
    rng = np.random.default_rng(8)
    runs = [seen(chain(TWO, 40, rng, start=1), rng) for _ in range(400)]
    with pytest.warns(RuntimeWarning, match="did not start in equilibrium") as told:
        kinetics.implied_timescales(runs, [4, 8], estimator=FEW, n_timescales=1, n_bootstrap=2)
    assert len(told) == 1
    # four states of a ring, of which the next one is four times as likely as the one before: exact mu .9 +- .06 i
    ring = (
        0.9 * np.eye(4)
        + 0.08 * np.roll(np.eye(4), 1, axis=1)
        + 0.02 * np.roll(np.eye(4), -1, axis=1)
    )
    angle = chain(ring, 4_000, rng) * np.pi / 2
    X = np.stack([np.cos(angle), np.sin(angle)], axis=1) + 0.1 * rng.normal(size=(4_000, 2))
    with pytest.warns(RuntimeWarning, match="not those of a reversible process") as told:
        kinetics.implied_timescales(X, [1, 4], estimator=FEW, n_timescales=1, n_bootstrap=2)
    assert len(told) == 1
    assert told[0].filename == __file__


# --- scores


def test_cross_validation_prefers_the_scale_that_sees_the_states():
    rng = np.random.default_rng(9)
    runs = [seen(chain(TWO, n, rng), rng) for n in (2_000, 1_000)]
    grid = {"kernel": [gk.Gaussian(0.3), gk.Gaussian(30.0)], "lag": [4]}
    for score in ("VAMP-2", "VAMP-E"):
        found = kinetics.cross_validate(runs, grid, estimator=FEW, score=score)
        assert found.scores.shape == (2, 5)
        assert found.best()["kernel"].terms[0][1].scale == pytest.approx(0.3)
        # both scores of the exact function are 1 + mu^2
        best = found.scores.mean(axis=1).max()
        assert best == pytest.approx(1 + (1 - A - B) ** 8, abs=0.1)
    grid = {"kernel": [gk.Gaussian(1e-6), gk.Gaussian(0.3)]}
    with pytest.warns(RuntimeWarning, match="could not be fitted.*raise the scale"):
        found = kinetics.cross_validate(runs, grid, lag=4, estimator=FEW, n_splits=2)
    assert np.isnan(found.scores[0]).all()
    assert found.best()["kernel"].terms[0][1].scale == pytest.approx(0.3)
    with (
        pytest.warns(RuntimeWarning, match="could not be fitted"),
        pytest.raises(ValueError, match="no neighbours"),
    ):
        kinetics.cross_validate(runs, {"kernel": [gk.Gaussian(1e-6)]}, lag=4, estimator=FEW)
    learned, held = kinetics.scores._split(runs, 1, 5)
    assert sum(map(len, learned)) + sum(map(len, held)) == 3_000
    assert all(len(part) for part in itertools.chain(learned, held))
    with pytest.raises(ValueError, match="VAMP-2, VAMP-E"):
        kinetics.vamp_score(FEW, runs, 4, "VAMP-1")


def test_wrong_arguments_are_refused_in_words():
    rng = np.random.default_rng(10)
    run = seen(chain(TWO, 500, rng), rng)
    for arguments, words in (
        ({"estimator": gk.KernelEDMD(reversible=False)}, "complex"),
        ({"confidence": 1.0}, r"share in \(0, 1\)"),
        ({"lag": 0}, "lag is 0"),
    ):
        with pytest.raises(ValueError, match=words):
            kinetics.KineticModel(**arguments).fit(run)
    with pytest.raises(TypeError, match="expected a KernelEDMD"):
        kinetics.KineticModel(gk.DiffusionMap()).fit(run)
    with pytest.raises(TypeError, match="expected a fitted KineticModel"):
        kinetics.metastable_states(FEW, 2)
    with pytest.raises(TypeError, match=r"a dict, expected a list of arrays: pass list"):
        kinetics.KineticModel().fit({"first": run})
    with pytest.raises(ValueError, match="n_splits is 10, the trajectories have 4 frames"):
        kinetics.cross_validate(run[:4], {"n_components": [1]}, lag=1, n_splits=10)
    with pytest.raises(ValueError, match="n_modes is 0"):
        kinetics.vamp_score(clone(FEW).fit(run, lag=1), run, 1, n_modes=0)
    models = [kinetics.KineticModel(FEW, n_bootstrap=2).fit(run[start:]) for start in (0, 10)]
    with pytest.raises(ValueError, match="states are those of another model"):
        kinetics.chapman_kolmogorov(models[0], kinetics.metastable_states(models[1], 2))


@pytest.mark.slow
def test_figures_show_bands_and_the_line_of_the_lag(tmp_path):
    pytest.importorskip("matplotlib")
    _, X = three_states(8_000, 11)
    estimator = gk.KernelEDMD(
        gk.Gaussian(0.4), n_components=2, n_landmarks=40, reg=0.3, random_state=0
    )
    times = kinetics.implied_timescales(X, [2, 5], estimator=estimator, n_timescales=2)
    figure = gk.plot.implied_timescales(times, unit="ps", path=tmp_path / "a.png")
    (axes,) = figure.axes
    drawn = [line.get_xydata() for line in axes.lines]
    assert any(np.array_equal(xy, np.stack([[2, 2], [5, 5]])) for xy in drawn)
    assert any(np.allclose(xy[:, 1], times.timescales[:, 0]) for xy in drawn)
    model = kinetics.KineticModel(estimator, lag=5).fit(X)
    test = kinetics.chapman_kolmogorov(model, kinetics.metastable_states(model, 3), 3)
    figure = gk.plot.chapman_kolmogorov(test, path=tmp_path / "b.png")
    assert len(figure.axes) == 9
    assert np.allclose(figure.axes[1].lines[0].get_ydata(), test.predicted[:, 0, 1])
    assert (tmp_path / "a.png").stat().st_size > 1000
    assert (tmp_path / "b.png").stat().st_size > 1000
