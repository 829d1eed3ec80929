"""Coordinates: the kernel sees g(x), gradients come back, particles move as little as their coordinates need."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.base import clone

import gpukoop as gk
from gpukoop import datasets
from gpukoop.spectrum import LinearCoordinates
from gpukoop.spectrum.coordinates import UserCoordinates

RNG = np.random.default_rng(0)
X = RNG.normal(size=(400, 3)) @ np.array([[2.0, 0.3, 0.0], [0.0, 1.0, 0.5], [0.0, 0.0, 0.2]])


class Polar:
    """A nonlinear pair of coordinates with a product typed by hand."""

    def transform(self, X):
        return np.stack([np.hypot(X[:, 0], X[:, 1]), X[:, 2] ** 3 / 3], axis=1)

    def vjp(self, X, G):
        r = np.hypot(X[:, 0], X[:, 1])
        return np.stack(
            [G[:, 0] * X[:, 0] / r, G[:, 0] * X[:, 1] / r, G[:, 1] * X[:, 2] ** 2], axis=1
        )


def test_linear_coordinates_are_what_they_say():
    unit = np.exp(np.log(X.std(axis=0)).mean())
    G = LinearCoordinates("standardize").fit_transform(X)
    assert np.allclose(G.std(axis=0), unit)
    assert np.allclose(np.corrcoef(G.T), np.corrcoef(X.T))
    G = LinearCoordinates("whiten").fit_transform(X)
    assert np.allclose(np.cov(G.T, bias=True), unit**2 * np.eye(3))
    pca = LinearCoordinates("pca", n_components=2).fit(X)
    assert np.allclose(pca.matrix_.T @ pca.matrix_, np.eye(2))
    variances = np.linalg.eigvalsh(np.cov(X.T, bias=True))[::-1]
    assert np.allclose(pca.transform(X).var(axis=0), variances[:2])
    assert LinearCoordinates("pca").fit(X).matrix_.shape == (
        3,
        2 + (variances[2] > 0.01 * variances.sum()),
    )
    flat = np.hstack([X, np.ones((400, 1))])
    assert np.isfinite(LinearCoordinates("standardize").fit_transform(flat)).all()
    assert LinearCoordinates("whiten").fit_transform(flat).shape == (400, 3)
    assert clone(pca).get_params() == {"method": "pca", "n_components": 2}


@pytest.mark.parametrize("method", ["standardize", "whiten", "pca"])
def test_weights_of_samples_enter_all_moments(method):
    """Whole ones are repeated rows, rows of weight zero are none; and the covariance is NumPy's."""
    times = np.random.default_rng(3).integers(0, 4, len(X))
    weighted = LinearCoordinates(method).fit(X, sample_weight=0.7 * times)
    repeated = LinearCoordinates(method).fit(np.repeat(X, times, axis=0))
    assert np.allclose(weighted.mean_, repeated.mean_, rtol=1e-12)
    assert np.allclose(weighted.transform(X) ** 2, repeated.transform(X) ** 2, rtol=1e-9)
    assert not np.allclose(LinearCoordinates(method).fit(X).matrix_, weighted.matrix_, rtol=1e-3)
    w = np.exp(X[:, 0])
    found = LinearCoordinates(method).fit(X, sample_weight=w)
    moments = found.matrix_.T @ np.cov(X.T, aweights=w, ddof=0) @ found.matrix_
    if method == "standardize":
        assert np.allclose(np.diag(moments), moments[0, 0])
    else:
        assert np.allclose(moments, np.diag(np.diag(moments)), atol=1e-9 * moments.max())
    with pytest.raises(ValueError, match="pairs of coordinates='tica' have no weights"):
        LinearCoordinates("tica").fit(X, successors=X, sample_weight=w)


def test_tica_finds_the_slow_coordinate_and_its_time():
    rates, lag = np.array([0.2, 3.0, 4.0]), 0.3
    Z = RNG.normal(size=(5_000, 3))
    W = np.exp(-rates * lag) * Z + np.sqrt(1 - np.exp(-2 * rates * lag)) * RNG.normal(size=Z.shape)
    mixing = np.array([[1.0, 2.0, 0.0], [0.0, 5.0, 1.0], [1.0, 0.0, 9.0]])
    found = LinearCoordinates("tica").fit(Z @ mixing, successors=W @ mixing)
    # others relax fifteen times as fast: distances after the slow time do not see them
    assert found.matrix_.shape == (3, 1)
    assert abs(np.corrcoef(found.transform(Z @ mixing)[:, 0], Z[:, 0])[0, 1]) > 0.99
    # 5,000 pairs know mu = .942 to .0047, so a time of 16.7 lags to 8 per cent
    assert abs(found.timescales_[0] / (1 / (rates[0] * lag)) - 1) < 0.25
    every = LinearCoordinates("tica", n_components=3).fit(Z @ mixing, successors=W @ mixing)
    assert (np.diff(every.timescales_) < 0).all()


@pytest.mark.parametrize(
    "chosen",
    ["standardize", "whiten", "pca", Polar()],
    ids=["standardize", "whiten", "pca", "polar"],
)
def test_gradients_come_back(chosen):
    spectrum = gk.DiffusionMap(n_components=3, coordinates=chosen, random_state=0).fit(X)
    Z, step = X[:7], 1e-5
    slopes = spectrum.gradient(Z)
    assert slopes.shape == (7, 3, 3)
    for c in range(3):
        e = step * np.eye(3)[c]
        change = (spectrum.transform(Z + e) - spectrum.transform(Z - e)) / (2 * step)
        assert np.abs(slopes[:, :, c] - change).max() < 1e-6 * np.abs(slopes).max()
    c = np.array([1.0, -2.0, 0.5])
    assert np.allclose(spectrum.gradient(Z, c), np.einsum("nrd,r->nd", slopes, c))
    assert np.allclose(spectrum.moments(Z), spectrum.transform(Z).mean(axis=0))


def test_a_map_in_coordinates_is_a_map_of_the_coordinates():
    made = LinearCoordinates("whiten").fit(X)
    there = gk.DiffusionMap(n_components=4, random_state=0).fit(made.transform(X))
    here = gk.DiffusionMap(n_components=4, coordinates=made, random_state=0).fit(X)
    assert np.allclose(here.eigenvalues_, there.eigenvalues_)
    assert np.allclose(here.transform(X), there.transform(made.transform(X)))
    assert here.n_features_in_ == 3


def test_a_scale_for_each_feature_is_a_coordinate():
    scales = np.array([1.0, 0.5, 0.1])
    unit = np.exp(np.log(scales).mean())
    ard = gk.DiffusionMap(gk.Gaussian(scales), n_components=4).fit(X)
    plain = gk.DiffusionMap(gk.Gaussian(unit), n_components=4).fit(X / scales * unit)
    assert np.allclose(ard.eigenvalues_, plain.eigenvalues_)
    assert ard.scale_ == pytest.approx(unit)
    with pytest.raises(ValueError, match="both say what a distance is"):
        gk.DiffusionMap(gk.Gaussian(scales), coordinates="whiten", n_components=4).fit(X)


@pytest.mark.parametrize(
    "made", [LinearCoordinates("pca", n_components=2).fit(X), UserCoordinates(Polar())]
)
def test_a_lift_moves_the_coordinates_and_no_more(made):
    Z = X[:20] + 1.0
    motion = 1e-5 * RNG.normal(size=(20, 2))
    moved = made.lift(Z, motion)
    assert np.abs(made.transform(moved) - made.transform(Z) - motion).max() < 1e-8
    # the shortest motion lies in the rows of the Jacobian
    J = np.stack([made.vjp(Z, np.tile(e, (20, 1))) for e in np.eye(2)], axis=1)
    rest = moved - Z
    within = np.linalg.pinv(J) @ (J @ rest[:, :, None])
    assert np.abs(within[:, :, 0] - rest).max() < 1e-9


@pytest.mark.parametrize("chosen", ["standardize", "whiten"])
def test_no_column_has_a_unit(chosen):
    B = datasets.banana(300, 0)
    stretch = np.array([1.0, 100.0])
    flow = gk.KSWGD(n_components=10, coordinates=chosen, total_time=1.0, random_state=0)
    plain = clone(flow).fit(B).sample(200)
    wide = clone(flow).fit(B * stretch).sample(200) / stretch
    assert np.abs(wide - plain).max() < 1e-3 * np.abs(plain).max()


def test_coordinates_of_fewer_features_leave_the_rest_to_the_particles():
    Z = RNG.normal(size=(100, 3))
    flow = gk.KSWGD(
        n_components=5, coordinates=LinearCoordinates("pca", n_components=1), random_state=0
    ).fit(X)
    moved = flow.transport(Z, n_iter=5) - Z
    axis = flow.spectrum_.coordinates_.matrix_[:, 0]
    assert np.abs(moved).max() > 1e-3
    assert np.abs(moved - (moved @ axis)[:, None] * axis).max() < 1e-12


def test_what_cannot_be_is_said():
    with pytest.raises(ValueError, match="coordinates must be None, 'standardize'"):
        gk.DiffusionMap(coordinates="polar", n_components=2).fit(X)
    with pytest.raises(TypeError, match="an object with transform"):
        gk.KSWGD(coordinates=3).fit(X)
    with pytest.raises(ValueError, match="learned from pairs"):
        gk.KSWGD(coordinates="tica").fit(X)
    fitted = gk.DiffusionMap(n_components=2).fit(X)
    with pytest.raises(ValueError, match="a fitted spectrum has its own"):
        gk.KSWGD(fitted, coordinates="whiten").fit(X)


def test_a_torch_module_is_a_coordinate():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)
    ).double()
    spectrum = gk.DiffusionMap(n_components=2, coordinates=module, random_state=0).fit(X)
    with torch.no_grad():
        seen = module(torch.from_numpy(X)).numpy()
    assert np.allclose(spectrum.transform(X), spectrum.functions_.transform(seen))
    Z, step = X[:5], 1e-5
    slopes = spectrum.gradient(Z, np.array([1.0, 1.0]))
    for c in range(3):
        e = step * np.eye(3)[c]
        change = (spectrum.transform(Z + e) - spectrum.transform(Z - e)).sum(axis=1) / (2 * step)
        assert np.abs(slopes[:, c] - change).max() < 1e-6 * np.abs(slopes).max()
    assert gk.KSWGD(n_components=2, coordinates=module, random_state=0).fit(X).transport(
        Z, n_iter=2
    ).shape == (5, 3)


@pytest.mark.slow
def test_the_slow_coordinate_among_fast_ones_is_seen_with_tica():
    lag = 0.5
    P, Q = datasets.slow_well(2_000, lag_time=lag, random_state=0, independent=True)
    flow = gk.KSWGD(coordinates="tica", lag_time=lag, n_landmarks=300, random_state=0).fit(
        P, successors=Q
    )
    exact = datasets.exact("slow_well")
    Z = flow.sample(2_000)
    barrier = 100 * (np.abs(Z[:, 0]) < 0.3).mean()
    assert abs(barrier - exact["barrier_share"]) < 2.0
    assert abs(flow.eigenvalues_[0] / exact["eigenvalues"][0] - 1) < 0.1


def test_trajectories_and_chunks_have_coordinates_too():
    rng = np.random.default_rng(3)
    Z = rng.normal(size=(2_000, 2))
    for i in range(1, len(Z)):
        Z[i] = 0.9 * Z[i - 1] + np.sqrt(1 - 0.81) * Z[i]
    Z = Z * [1.0, 50.0]
    options = {
        "n_components": 2,
        "reg": 0.3,
        "coordinates": "standardize",
        "n_landmarks": 100,
        "random_state": 0,
    }
    whole = gk.KernelEDMD(**options).fit(Z, lag=1)
    plain = gk.KernelEDMD(**{**options, "coordinates": None}).fit(Z / [1.0, 50.0], lag=1)
    stream = gk.KernelEDMD(**options).partial_fit(Z[:1_000]).partial_fit(Z[1_000:], continues=True)
    assert whole.coordinates_ is not None
    # mu = .9 of 2,000 frames: known to .01, a rate to 10 per cent
    for fitted in (whole, stream, plain):
        assert abs(fitted.eigenvalues_[0] / -np.log(0.9) - 1) < 0.35
        assert fitted.transform(Z[:3]).shape == (3, 2)


def test_whole_numbers_are_numbers():
    """A matrix cast to the integers of its argument would be no matrix."""
    g = LinearCoordinates("whiten").fit(np.random.default_rng(0).normal(size=(50, 2)) * [1.0, 3.0])
    G = np.array([[1, 2], [-3, 0]])
    assert np.array_equal(g.inverse(G), g.inverse(G.astype(float)))
    assert np.array_equal(g.inverse(G.tolist()), g.inverse(G.astype(float)))
    assert np.array_equal(g.vjp(G, G), g.vjp(G.astype(float), G.astype(float)))


def test_what_is_no_number_is_refused_and_a_step_that_runs_away_is_left_to_its_loop():
    from gpukoop.flow.descent import begin
    from gpukoop.flow.lifted import in_coordinates

    X = np.random.default_rng(0).normal(size=(40, 2)) * [1.0, 100.0]
    fitted = gk.spectrum.LinearCoordinates("standardize").fit(X)
    for verb, given in (
        ("inverse", (np.full((3, 2), np.nan),)),
        ("vjp", (X[:3], np.full((3, 2), np.inf))),
        ("lift", (X[:3], np.full((3, 2), np.nan))),
    ):
        with pytest.raises(ValueError, match="contains NaN or inf"):
            getattr(fitted, verb)(*given)
    with pytest.raises(ValueError, match="motion has 2 rows, X has 3: one row per point"):
        fitted.lift(X[:3], np.zeros((2, 2)))

    def away(state, rng):
        return replace(state, particles=state.particles + np.inf), None

    state = in_coordinates(away, fitted)(begin(X, X), np.random.default_rng(0))[0]
    assert not np.isfinite(state.particles).any()
