"""Near-linear sums: transforms and grids against their bounds, sums against exact ones, and what is refused."""

import warnings

import numpy as np
import pytest
from scipy.integrate import quad

import gpukoop as gk
from gpukoop.backends import BACKENDS
from gpukoop.dispatch import AccuracyWarning
from gpukoop.kernels.formula.profile import trace
from gpukoop.kernels.fourier import modes as fourier_modes
from gpukoop.kernels.fourier import nufft as fourier_plans
from gpukoop.kernels.fourier import sum as fourier_sum
from gpukoop.kernels.fourier.memory import Memory
from gpukoop.kernels.reference import evaluate
from gpukoop.testing import check_backend, tolerance

pytest.importorskip("finufft", reason="finufft is not installed (pip install gpukoop[fourier])")

SMOOTH = [
    gk.Gaussian(0.5),
    gk.Matern52(0.8),
    gk.InverseMultiquadric(0.7),
    gk.RationalQuadratic(0.6, alpha=1.5),
    gk.Gaussian(0.5) + 0.5 * gk.InverseMultiquadric(2.0),
    gk.Gaussian(0.5) - 0.25 * gk.Gaussian(1.0),
]
ALL = [*SMOOTH, gk.Matern32(0.8), gk.Laplace(0.8)]


def phi(kernel, r):
    t = trace(kernel)
    return evaluate(t.phi, (t.prescale * np.asarray(r)) ** 2, t.symbols, t.values)


def run(K, op, v):
    return K @ v if op == "product" else getattr(K, op)(v)


def cloud(n, m, d, t, dtype, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (n, d), (m, d), (m, t)
    return [rng.normal(size=s).astype(dtype) for s in shapes]


# -- transforms and grids -----------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [k for k in ALL if len(k.terms) == 1], ids=repr)
def test_transforms_invert_to_the_profile(kernel):
    """In one dimension phi(r) is the cosine integral of its transform, in three a sine integral."""
    (_, k), r = kernel.terms[0], 0.9
    scale, values = float(k.scale), tuple(k.values.values())

    def khat(w, d):
        return float(k.profile.fourier(np.array([w * scale]), d, *values)[0]) * scale**d

    # IMQ and RQ have a singularity at 0 that is integrable; the weights make the oscillation exact.
    head = quad(lambda w: khat(w, 1) * np.cos(w * r), 1e-12, 1, limit=400)[0]
    tail = quad(lambda w: khat(w, 1), 1, np.inf, weight="cos", wvar=r)[0]
    assert (head + tail) / np.pi == pytest.approx(float(phi(kernel, r)), abs=2e-6)
    head = quad(lambda w: khat(w, 3) * w * np.sin(w * r), 1e-12, 1, limit=400)[0]
    tail = quad(lambda w: khat(w, 3) * w, 1, np.inf, weight="sin", wvar=r)[0]
    assert (head + tail) / (2 * np.pi**2 * r) == pytest.approx(float(phi(kernel, r)), abs=2e-6)


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("kernel", ALL, ids=repr)
def test_grids_keep_their_bound(kernel, d):
    """Every difference in the box is within delta of the kernel, however the grid was chosen."""
    delta, widths = 3e-3, (6.0, 5.0, 7.0)[:d]
    grid = fourier_modes.find_grid(kernel, widths, delta, False)
    if grid is None:
        assert fourier_modes.needs(kernel, widths, delta, False) > fourier_modes.MAX_MODES
        return
    b = fourier_modes.coefficients(kernel, grid)
    r = np.random.default_rng(0).uniform(-1, 1, size=(60, d)) * np.array(widths)
    r[:20] *= 0.05
    total = np.broadcast_to(b, (len(r), *b.shape))
    for x, P, M in zip(r.T[::-1], grid.periods[::-1], grid.cutoffs[::-1], strict=True):
        waves = np.exp(2j * np.pi / P * x[:, None] * np.arange(-M, M + 1))
        total = np.einsum("i...m,im->i...", total, waves)
    error = np.abs(total.real - phi(kernel, np.linalg.norm(r, axis=1)))
    assert error.max() <= delta * fourier_modes.height(kernel)


def test_a_breathing_box_keeps_its_grid():
    """The steps of a flow share coefficients and plans."""
    kernel = gk.Gaussian(0.5)
    grids = {
        fourier_modes.find_grid(kernel, (8.0 + s, 8.0 - s), 1e-5, True)
        for s in np.linspace(0, 0.01, 5)
    }
    assert len(grids) == 1


# -- sums ---------------------------------------------------------------------------------------------


def test_conformance():
    """The suite that every backend passes, with a tolerance; kinked and rough kernels where they are possible."""
    check_backend(
        "fourier",
        kernels=[gk.Gaussian(0.5) + 0.25 * gk.Matern52(2.0)],
        shapes=[(60, 80, 1, 1), (1, 90, 2, 3), (70, 1, 2, 1), (30, 40, 3, 2)],
        tol=1e-4,
    )
    check_backend(
        "fourier", kernels=[gk.Laplace()], ops=["product"], shapes=[(60, 80, 1, 1)], tol=1e-2
    )


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("kernel", SMOOTH, ids=repr)
@pytest.mark.parametrize(("dtype", "tol"), [("float32", 1e-4), ("float64", 1e-3)])
def test_every_row_is_within_tol(kernel, d, dtype, tol):
    if d == 3 and not isinstance(kernel, gk.Gaussian):
        tol = 1e-2  # rough kernels have large grids in three dimensions: the same code, less time
    X, Y, V = cloud(1500, 2000, d, 2, dtype)
    V[:, 1] = np.abs(V[:, 1])
    K = kernel(X, Y, backend="fourier", tol=tol)
    assert K.explain("value_and_gradient").backend == "fourier"
    got = K.value_and_gradient(V)
    exact = kernel(X, Y, backend="numpy").value_and_gradient(V)
    bounds = tolerance(kernel, X, Y, V, "value_and_gradient", tol=tol)
    for a, b, bound in zip(got, exact, bounds, strict=True):
        assert a.dtype == b.dtype
        assert (np.abs(a - b) <= bound).all()
    assert 0 < K.error_estimate_ <= tol
    if d < 3 or isinstance(kernel, gk.Gaussian):
        assert K.clouds.memory(Memory).geometry.box is not None, (
            "transformed, not all rows summed exactly"
        )
    assert np.array_equal(K @ V[:, 0], K @ V[:, 0]), "equal calls give equal bits"


@pytest.mark.parametrize("sign", [False, True])
def test_the_estimate_covers_the_worst_row(sign):
    kernel = gk.Gaussian(0.3)
    for seed in range(5):
        X, Y, V = cloud(2000, 3000, 2, 1, "float64", seed)
        V = V if sign else np.abs(V)
        K = kernel(X, Y, backend="fourier", tol=1e-3)
        error = np.abs(K @ V - kernel(X, Y, backend="numpy") @ V)
        density = kernel(X, Y, backend="numpy") @ np.abs(V)
        assert (error / density).max() <= K.error_estimate_ <= 1e-3


def test_transposed_and_symmetric_products():
    X, Y, _V = cloud(900, 1100, 2, 1, "float64")
    kernel, u = gk.Gaussian(0.5), np.random.default_rng(1).normal(size=900)
    K = kernel(X, Y, backend="fourier", tol=1e-4)
    bound = tolerance(kernel, Y, X, u, tol=1e-4)
    assert (np.abs(K.rmatvec(u) - kernel(Y, X, backend="numpy") @ u) <= bound).all()
    assert 0 < K.error_estimate_ <= 1e-4
    S = kernel(X, backend="fourier", tol=1e-4)
    assert (
        np.abs(S @ u - kernel(X, backend="numpy") @ u) <= tolerance(kernel, X, X, u, tol=1e-4)
    ).all()


def test_many_columns_of_all_sizes():
    """Columns travel together, but each is accurate by itself."""
    X, Y, V = cloud(800, 1000, 2, 11, "float64")
    V *= 10.0 ** np.arange(-5, 6)
    V[:, 3] = 0
    kernel = gk.Gaussian(1.0)
    K = kernel(X, Y, backend="fourier", tol=1e-4)
    exact = kernel(X, Y, backend="numpy") @ V
    assert (np.abs(K @ V - exact) <= tolerance(kernel, X, Y, V, tol=1e-4)).all()


def test_particles_far_away_are_summed_exactly():
    """Five of them a million scales away, targets and sources: the grid stays that of the cloud."""
    X, Y, V = cloud(2000, 2500, 2, 1, "float64")
    X[:5] += 1e6
    Y[7:10] += 1e6
    kernel = gk.Gaussian(0.5)
    K = kernel(X, Y, backend="fourier", tol=1e-5)
    got = K.value_and_gradient(V)
    exact = kernel(X, Y, backend="numpy").value_and_gradient(V)
    for a, b, bound in zip(
        got, exact, tolerance(kernel, X, Y, V, "value_and_gradient", tol=1e-5), strict=True
    ):
        assert (np.abs(a - b) <= bound).all()
    geometry = K.clouds.memory(Memory).geometry
    assert set(range(5)) <= set(geometry.far_x)
    assert len(geometry.far_x) < 50


def test_a_shift_changes_nothing():
    """Angles are centred before they are rounded."""
    X, Y, V = cloud(1000, 1000, 2, 1, "float64")
    kernel = gk.Gaussian(0.5)
    near = kernel(X, Y, backend="fourier", tol=1e-5) @ V
    far = kernel(X + 1e4, Y + 1e4, backend="fourier", tol=1e-5) @ V
    assert (np.abs(far - near) <= 2 * tolerance(kernel, X, Y, V, tol=1e-5)).all()


def test_plans_are_kept(monkeypatch):
    """A second product sorts nothing, and a step of a flow makes no plan."""
    made, sorted_ = [], []

    class Counted(fourier_plans._Plan):
        def __init__(self, *args):
            made.append(args)
            super().__init__(*args)

        def visit(self, cloud, place):
            before = self.owner, self.place
            super().visit(cloud, place)
            if (self.owner, self.place) != before:
                sorted_.append(place)

    fourier_plans.release()
    monkeypatch.setattr(fourier_plans, "_Plan", Counted)
    X, _, V = cloud(3000, 3000, 2, 1, "float32")
    kernel = gk.Gaussian(0.5)
    K = kernel(X, backend="fourier", tol=1e-4)
    _ = K @ V
    made.clear(), sorted_.clear()
    _ = K @ V
    assert not made
    assert not sorted_
    _ = kernel(X * np.float32(1.0001), backend="fourier", tol=1e-4) @ V
    assert not made
    assert sorted_
    fourier_plans.release()


def test_sources_in_pieces_give_the_same_sum(monkeypatch):
    """Large clouds are spread in pieces, each by one thread, so that bits repeat."""
    X, Y, V = cloud(1000, 4000, 2, 1, "float64")
    K = gk.Gaussian(1.0)(X, Y, backend="fourier", tol=1e-5)
    whole = K @ V
    monkeypatch.setattr(fourier_plans, "PIECE", 500)
    L = gk.Gaussian(1.0)(X, Y, backend="fourier", tol=1e-5)
    pieces = L @ V
    assert len(L.clouds.memory(Memory).geometry._clouds.popitem()[1][1].slices) > 1
    assert (np.abs(pieces - whole) <= 2 * tolerance(L.kernel, X, Y, V, tol=1e-5)).all()
    assert np.array_equal(pieces, gk.Gaussian(1.0)(X, Y, backend="fourier", tol=1e-5) @ V)


# -- misses, refusals, costs --------------------------------------------------------------------------


@pytest.fixture
def spoiled(monkeypatch):
    """Transforms that are wrong by a percent everywhere, as after a bug or a broken library."""
    right = fourier_plans.values

    def wrong(setup, cloud, rows, count):
        out = right(setup, cloud, rows, count)
        return out + 0.01 * np.abs(out).max() * np.sin(np.arange(out.size)).reshape(out.shape)

    monkeypatch.setattr(fourier_sum, "values", wrong)
    monkeypatch.setattr(fourier_sum, "FREE_PAIRS", 0)


def test_a_miss_of_a_chosen_backend_warns(spoiled):
    X, Y, V = cloud(16_000, 16_000, 2, 1, "float64")
    K = gk.Gaussian(0.5)(X, Y, backend="fourier", tol=1e-6)
    with pytest.warns(AccuracyWarning, match="did not reach tol=1e-06"):
        _ = K @ V
    assert K.error_estimate_ > 1e-3


def test_a_miss_in_auto_is_computed_exactly_and_loudly(spoiled, monkeypatch):
    X, Y, V = cloud(16_000, 16_000, 2, 1, "float64")
    K = gk.Gaussian(0.5)(X, Y, tol=1e-6)
    fourier = BACKENDS["fourier"]
    monkeypatch.setattr(type(fourier), "seconds", lambda self, request: 1e-9)
    assert K.explain().backend == "fourier"
    with pytest.warns(AccuracyWarning, match=r"numba-cpu computes it instead|numpy computes it"):
        got = K @ V
    rows = slice(0, 50)
    exact = gk.Gaussian(0.5)(X[rows], Y, backend="numpy") @ V
    assert (np.abs(got[rows] - exact) <= 2 * tolerance(K.kernel, X[rows], Y, V, tol=1e-6)).all()
    assert K.error_estimate_ is None


@pytest.mark.parametrize(
    ("kernel", "options", "op", "words"),
    [
        (gk.Gaussian(), {}, "product", "tol=None asks for exact sums"),
        (gk.Gaussian(), {"tol": 1e-4}, "logsumexp", "log-sum-exp"),
        (gk.Gaussian(1e-5), {"tol": 1e-4}, "product", "scale is too small for the box"),
        (gk.Laplace(), {"tol": 1e-4}, "gradient", "decays too slowly"),
        (gk.Laplace(), {"tol": 1e-4}, "product", "scale is too small for the box"),
        (gk.Riesz(0.5), {"tol": 1e-4}, "product", "no transform in closed form"),
        (gk.Gaussian(), {"tol": 1e-15}, "product", "below what transforms reach"),
    ],
)
def test_refusals_are_words(kernel, options, op, words):
    X, _, V = cloud(300, 300, 2, 1, "float64")
    with pytest.raises(gk.BackendError, match=words):
        run(kernel(X, backend="fourier", **options), op, V[:, 0])


def test_missing_library_says_what_to_install(monkeypatch):
    monkeypatch.setattr(fourier_plans.importlib.util, "find_spec", lambda name: None)
    assert "pip install gpukoop[fourier]" in fourier_plans.missing()
    assert "pip install gpukoop[cuda" in fourier_plans.missing("cupy")


def test_the_cost_table_knows():
    """Large sums go to transforms, small sums, small scales and tol=None to exact ones; the table says why."""
    X, _, _ = cloud(100_000, 1, 2, 1, "float32")
    assert gk.Gaussian(0.5)(X, tol=1e-4).explain().backend == "fourier"
    assert gk.Gaussian(0.5)(X).explain().backend != "fourier"
    assert gk.Gaussian(0.5)(X[:200], tol=1e-4).explain().backend != "fourier"
    table = gk.Gaussian(1e-4)(X, tol=1e-4).explain()
    assert table.backend != "fourier"
    assert "the scale is too small for the box" in str(table)
    Z = np.random.default_rng(0).normal(size=(20_000, 3)).astype("float32")
    assert gk.Gaussian(0.02)(Z, tol=1e-4).explain().backend != "fourier", "an FFT for few points"


def test_all_points_equal():
    X = np.ones((50, 2))
    K = gk.Gaussian(1.0)(X, backend="fourier", tol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.allclose(K @ np.ones(50), 50, rtol=1e-5)


def test_a_flow_follows_the_exact_one():
    """KSWGD, 20 steps: the same particles on exact and on Fourier sums, to the tolerance of the sums."""
    X, _ = gk.datasets.quadruple_well(1500, random_state=0)
    Z = np.random.default_rng(1).normal(size=(1000, 2))
    flow = gk.KSWGD(n_components=12, kernel=gk.Gaussian(0.5), tol=1e-5, random_state=0).fit(X)
    ends = []
    for backend in ("numba-cpu", "fourier"):
        with gk.use_backend(backend):
            ends.append(flow.transport(Z, n_iter=20))
    moved = np.abs(ends[0] - Z).max()
    assert moved > 0.1
    # Twenty steps, each with an error of tol relative to sums that are divided by one another.
    assert np.abs(ends[1] - ends[0]).max() < 20 * 1e-5 * moved
