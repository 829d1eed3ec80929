"""Weights of samples: whole numbers are repeated rows, zeros are dropped rows, and the law reached is the weighted one."""

import numpy as np
import pytest

import gpukoop as gk
from gpukoop.estimators.weights import repeated

RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 2)) * [1.0, 0.5]
TIMES = RNG.integers(1, 4, 120)
REPEATED = X.repeat(TIMES, axis=0)
Z = RNG.normal(size=(80, 2)) + 1.5

MMD = {
    "energy": {"step_size": 0.1},
    "gaussian": {"kernel": gk.Gaussian(0.7), "step_size": 0.2},
    "implicit": {"scheme": "implicit", "step_size": 1.0},
    "sliced": {"n_projections": 4, "step_size": 0.5},
    "noisy": {"kernel": gk.Gaussian(0.7), "noise": 0.1},
}


def together(learn, weighted, plain):
    """Return where both fits take the same particles."""
    return learn().fit(X, sample_weight=weighted).transport(Z), learn().fit(plain).transport(Z)


@pytest.mark.parametrize("name", MMD)
def test_mmd_flows_take_whole_weights_as_repeated_rows(name):
    learn = lambda: gk.MMDFlow(n_iter=8, random_state=0, **MMD[name])
    moved, expected = together(learn, 5.0 * TIMES, REPEATED)
    assert np.abs(moved - expected).max() < 1e-10
    assert np.abs(moved - learn().fit(X).transport(Z)).max() > 1e-4
    held = TIMES > 1
    moved, expected = together(learn, held.astype(float), X[held])
    assert np.array_equal(moved, expected)


def test_the_mmd_flow_on_the_line_goes_to_weighted_quantiles():
    x, w = X[:, :1], TIMES / TIMES.sum()
    flow = gk.MMDFlow(scheme="implicit", step_size=1e6, n_iter=1).fit(x, sample_weight=TIMES)
    moved = np.sort(flow.transport(Z[:, :1])[:, 0])
    order = np.argsort(x[:, 0])
    level = (np.arange(len(Z)) + 0.5) / len(Z)
    quantile = x[order, 0][np.searchsorted(np.cumsum(w[order]), level)]
    assert np.abs(moved - quantile).max() < 1e-4


def test_divergences_without_weights_refuse_them():
    for divergence in ("chi2", "kl"):
        flow = gk.MMDFlow(gk.Gaussian(1.0), regularization=0.1, divergence=divergence)
        with pytest.raises(ValueError, match="sample_weight= has no meaning"):
            flow.fit(X, sample_weight=TIMES)
        flow.fit(X, sample_weight=np.ones(120))  # equal weights are none


def kswgd(**options):
    return gk.KSWGD(
        kernel=gk.Gaussian(1.0),
        n_components=5,
        coordinates=None,
        validation_fraction=0,
        random_state=0,
        **options,
    )


def test_kswgd_takes_whole_weights_as_repeated_rows():
    """Spectrum to rounding; particles far off the law, whose moments are far above their noise, as well."""
    weighted, repeated = kswgd().fit(X, sample_weight=TIMES), kswgd().fit(REPEATED)
    assert weighted.eigenvalues_ == pytest.approx(repeated.eigenvalues_, rel=1e-9)
    assert np.allclose(np.abs(weighted.transform(Z)), np.abs(repeated.transform(Z)), atol=1e-7)
    for flow in (weighted, repeated):
        assert (
            flow.spectrum_.n_isolated_ == 0
        )  # a sample of a large weight has no neighbours, copies have each other
        assert flow.coarse_ is None
        assert flow.carried_.all()
    moved, expected = (f.transport(Z, n_iter=10) for f in (weighted, repeated))
    assert np.abs(moved - Z).max() > 0.3
    assert np.abs(moved - expected).max() < 1e-6
    assert np.abs(kswgd().fit(X).eigenvalues_ / weighted.eigenvalues_ - 1).max() > 1e-3
    held = TIMES > 1
    moved = kswgd().fit(X, sample_weight=held.astype(float)).transport(Z, n_iter=10)
    assert np.array_equal(moved, kswgd().fit(X[held]).transport(Z, n_iter=10))
    with pytest.raises(ValueError, match="pairs have no weights"):
        kswgd().fit(X, successors=X, sample_weight=TIMES)


def two_blobs(n, rng):
    left = rng.random(n) < 0.5
    return np.where(left, -2.0, 2.0)[:, None] + 0.5 * rng.normal(size=(n, 2)), left


@pytest.mark.parametrize("init", ["data", "gaussian", "mixture"])
def test_kswgd_samples_the_weighted_law(init):
    """Two blobs of equal numbers, weights 4 and 1: four fifths of the particles belong to the first."""
    points, left = two_blobs(800, np.random.default_rng(1))
    weight = np.where(left, 4.0, 1.0)
    flow = gk.KSWGD(
        n_components=12, n_landmarks=200, step_size=0.1, total_time=4.0, init=init, random_state=0
    )
    flow.fit(points, sample_weight=weight)
    start = flow._start(1_000, np.random.default_rng(0))
    mean = weight @ points / weight.sum()
    assert np.abs(start.mean(axis=0) - mean).max() < 0.25  # the unweighted mean is 1.2 away
    share = (flow.transport(start)[:, 0] < 0).mean()
    expected = 4 * left.mean() / (1 + 3 * left.mean())
    # 1,000 draws would be off by .013, and weights of 800 samples by as much
    assert share == pytest.approx(expected, abs=0.05)
    if init != "gaussian":  # some of whose particles end between the blobs
        assert flow.diagnose(flow.transport(start))["basins"].p_value > 1e-3


def test_half_the_samples_without_weight_raise_no_alarm():
    """Where the law is a part of the samples, particles that stay on it have not stood still."""
    points, left = two_blobs(600, np.random.default_rng(2))
    flow = gk.MMDFlow(n_iter=3, random_state=0).fit(points, sample_weight=np.where(left, 1.0, 1e-3))
    moved = flow.sample(300)
    assert (moved[:, 0] < 0).mean() > 0.99


def test_the_koopman_sampler_repeats_rows():
    given = {"n_features": 20, "reg": 1e-3, "distill": 0, "random_state": 0}
    weighted = gk.KoopmanSampler(**given).fit(X, sample_weight=7 * TIMES)
    repeated = gk.KoopmanSampler(**given).fit(REPEATED)
    assert np.array_equal(weighted.sample(50), repeated.sample(50))
    held = TIMES > 1
    dropped = gk.KoopmanSampler(**given).fit(X, sample_weight=held.astype(float))
    assert np.array_equal(dropped.sample(50), gk.KoopmanSampler(**given).fit(X[held]).sample(50))
    labels = (X[:, 0] > 0).astype(int)
    classes = gk.KoopmanSampler(**given).fit(X, labels, sample_weight=TIMES)
    again = gk.KoopmanSampler(**given).fit(REPEATED, labels.repeat(TIMES))
    assert np.array_equal(classes.sample(40, y=1), again.sample(40, y=1))


@pytest.mark.parametrize("weight", [np.pi, 0.3, 1e-4, 1 + 1e-9])
def test_weights_that_are_no_whole_numbers_are_repeated_to_the_nearest_row(weight):
    w = np.where(X[:, 0] < 0, weight, 1.0)
    w[3] = 0.0
    rows, labels = repeated(w, np.arange(120.0)[:, None], np.arange(120))
    assert np.array_equal(rows[:, 0], labels)
    times = np.bincount(labels, minlength=120)
    assert times[3] == 0
    assert np.abs(times / len(rows) - w / w.sum()).max() <= 1 / len(rows) + 1e-8
    assert len(rows) == (119 if weight == 1 + 1e-9 else 2_000 if weight != 0.3 else times.sum())


def metrics():
    kernel = gk.Gaussian(0.6)
    return {
        "mmd": lambda A, B, **w: gk.metrics.mmd(A, B, kernel, **w),
        "energy": gk.metrics.energy_distance,
        "energy on the line": lambda A, B, **w: gk.metrics.energy_distance(A[:, :1], B[:, :1], **w),
        "sliced": gk.metrics.sliced_wasserstein,
        "exact": gk.metrics.wasserstein,
    }


@pytest.mark.parametrize("name", metrics())
def test_metrics_take_whole_weights_as_repeated_rows(name):
    metric, other = metrics()[name], RNG.integers(1, 3, len(Z))
    value = metric(X, Z, weights=(TIMES, 3.0 * other))
    assert value == pytest.approx(metric(REPEATED, Z.repeat(other, axis=0)), rel=1e-9)
    assert abs(value - metric(X, Z)) > 1e-4
    assert metric(X, Z, weights=(TIMES, None)) == pytest.approx(metric(REPEATED, Z), rel=1e-9)
    held = TIMES > 1
    dropped = metric(X, Z, weights=(held.astype(float), None))
    assert dropped == pytest.approx(metric(X[held], Z), rel=1e-9)
    assert metric(X, X[::-1], weights=(TIMES, TIMES[::-1])) == pytest.approx(0.0, abs=1e-7)
    for bad in ((np.ones(3), None), (-TIMES, None), np.ones(120)):
        with pytest.raises(ValueError, match="weights"):
            metric(X, Z, weights=bad)


def test_the_weighted_energy_distance_is_its_double_sum():
    """Against the sum over pairs, typed out."""
    a, b = TIMES / TIMES.sum(), np.full(len(Z), 1 / len(Z))
    gap = lambda A, B: np.linalg.norm(A[:, None] - B, axis=2)
    value = 2 * a @ gap(X, Z) @ b - a @ gap(X, X) @ a - b @ gap(Z, Z) @ b
    assert gk.metrics.energy_distance(X, Z, weights=(TIMES, None)) == pytest.approx(value)
