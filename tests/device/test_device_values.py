"""Every estimator, spectrum and metric on CuPy arrays: the same as the same run on NumPy arrays.

Run on the stand-in everywhere and on a device with ``pytest -m gpu`` (``devices.py``). In float64, so that both runs take the
same decisions; on the stand-in the sums are the host's own, on a device they differ by rounding, which flows carry on.
"""

import contextlib

import numpy as np
import pytest
from devices import KINDS, host, with_values

import gpukoop as gk
from gpukoop import metrics, spectrum

with contextlib.suppress(ImportError):
    import ot  # noqa: F401 - before the stand-in, which it would take for CuPy

CUDA = "numba-cuda"
RNG = np.random.default_rng(0)
X = RNG.normal(size=(80, 2))
SUCCESSORS = 0.9 * X + 0.3 * RNG.normal(size=(80, 2))
Z = RNG.normal(size=(60, 2)) * 0.7 + 0.4
SEED = {"random_state": 0}


@pytest.fixture(params=KINDS)
def lent(request):
    with with_values(request) as found:
        yield found


FLOWS = {
    "KSWGD": lambda b: gk.KSWGD(
        n_components=4, coarse=False, validation_fraction=0, total_time=0.2, backend=b, **SEED
    ),
    "KSWGD langevin": lambda b: gk.KSWGD(
        n_components=4,
        coarse=False,
        validation_fraction=0,
        total_time=0.2,
        langevin=0.01,
        backend=b,
        **SEED,
    ),
    "MMD": lambda b: gk.MMDFlow(gk.Gaussian(1.0), n_iter=4, backend=b, **SEED),
    "MMD momentum and noise": lambda b: gk.MMDFlow(
        gk.Gaussian(1.0), n_iter=4, momentum=0.5, noise=0.05, backend=b, **SEED
    ),
    "MMD implicit": lambda b: gk.MMDFlow(scheme="implicit", n_iter=3, backend=b, **SEED),
    "MMD sliced": lambda b: gk.MMDFlow(n_projections=4, n_iter=3, **SEED),
    "DrMMD": lambda b: gk.MMDFlow(
        gk.Gaussian(1.0), regularization=0.1, step_size=0.01, n_iter=3, backend=b, **SEED
    ),
    "KALE": lambda b: gk.MMDFlow(
        gk.Gaussian(1.0),
        regularization=0.1,
        divergence="kl",
        step_size=0.01,
        n_iter=3,
        backend=b,
        **SEED,
    ),
    "W2 sinkhorn": lambda b: gk.WassersteinFlow("sinkhorn", blur=0.5, n_iter=3, backend=b, **SEED),
    "W2 exact": lambda b: gk.WassersteinFlow("exact", n_iter=3, backend=b, **SEED),
    "W2 sliced": lambda b: gk.WassersteinFlow("sliced", n_iter=3, **SEED),
    **{
        f"JKO {objective}": lambda b, o=objective: gk.JKOFlow(
            o, n_steps=1, n_features=20, backend=b, **SEED
        )
        for objective in ("mmd", "kl", "chi2", "js", "kale", "w2")
    },
}
SPECTRA = {
    "DiffusionMap": lambda b: spectrum.DiffusionMap(
        gk.Gaussian(1.0), n_components=4, backend=b, **SEED
    ),
    "KernelEDMD": lambda b: spectrum.KernelEDMD(
        gk.Gaussian(1.0), n_components=4, reg=1e-3, backend=b, **SEED
    ),
}
METRICS = {
    "mmd": lambda Z, X, b: metrics.mmd(Z, X, gk.Gaussian(1.0), backend=b),
    "energy_distance": lambda Z, X, b: metrics.energy_distance(Z, X, backend=b),
    "sliced_wasserstein": lambda Z, X, b: metrics.sliced_wasserstein(Z, X, **SEED),
    "wasserstein": lambda Z, X, b: metrics.wasserstein(Z, X),
    "sinkhorn_divergence": lambda Z, X, b: metrics.sinkhorn_divergence(Z, X, blur=0.5),
    "frechet_distance": lambda Z, X, b: metrics.frechet_distance(Z, X),
    "kernel_distance": lambda Z, X, b: (
        metrics.kernel_distance(Z, X, kernel=gk.Gaussian(1.0), n_subsets=2, subset_size=9).value
    ),
    "kl_divergence": lambda Z, X, b: metrics.kl_divergence(
        Z, lambda x: np.exp(-(x**2).sum(axis=1) / 2) / (2 * np.pi), n_grid=10
    ),
    "coverage": lambda Z, X, b: metrics.coverage(Z, X[:5], 1.0),
    "nearest_neighbour_distance": lambda Z, X, b: metrics.nearest_neighbour_distance(Z),
    "two_sample_test": lambda Z, X, b: (
        metrics.two_sample_test(Z, X, n_permutations=99, backend=b).statistic
    ),
    "iid_floor": lambda Z, X, b: metrics.iid_floor(
        lambda A, B: metrics.mmd(A, B, gk.Gaussian(1.0), backend=b),
        lambda n, random_state: X[:n],
        20,
        n_repeats=2,
        reference=Z,
    )[0],
}


def on_device(found):
    return type(found).__module__.partition(".")[0] == "cupy"


def agree(there, here, lent, digits=1e-9):
    """The couplings of Sinkhorn and the inner steps of JKO end at a tolerance of 1e-6 of the width."""
    bound = digits if not lent.real else max(1e-5, digits)
    np.testing.assert_allclose(host(there), here, rtol=bound, atol=bound)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FLOWS)
def test_flows(name, lent):
    here = FLOWS[name]("numpy").fit(X).transport(Z)
    flow = FLOWS[name](CUDA).fit(lent.cupy.asarray(X))
    there = flow.transport(lent.cupy.asarray(Z))
    assert on_device(there)
    loose = {"W2 sinkhorn": 1e-5, "MMD implicit": 1e-5, "KALE": 1e-6}
    agree(there, here, lent, 1e-4 if name.startswith("JKO") else loose.get(name, 1e-8))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SPECTRA)
def test_spectra(name, lent):
    def fitted(backend, *arrays):
        chosen = SPECTRA[name](backend)
        if name == "KernelEDMD":
            return chosen.fit(arrays[0], successors=arrays[1])
        return chosen.fit(arrays[0])

    here = fitted("numpy", X, SUCCESSORS)
    there = fitted(CUDA, lent.cupy.asarray(X), lent.cupy.asarray(SUCCESSORS))
    agree(there.eigenvalues_, here.eigenvalues_, lent, 1e-6)
    features, slopes = there.transform(lent.cupy.asarray(Z)), there.gradient(lent.cupy.asarray(Z))
    assert on_device(features)
    assert on_device(slopes)
    # an eigenvector has no sign
    agree(abs(features), abs(here.transform(Z)), lent, 1e-5)
    agree(abs(slopes), abs(here.gradient(Z)), lent, 1e-4)


def test_eigsh(lent):
    K = gk.Gaussian(1.0)(lent.cupy.asarray(X), backend=CUDA)
    values, vectors = spectrum.eigsh(K, 4, random_state=0)
    here, _ = spectrum.eigsh(gk.Gaussian(1.0)(X, backend="numpy"), 4, random_state=0)
    agree(values, here, lent, 1e-6)
    residual = K @ vectors - vectors * values
    assert float(abs(residual).max()) <= 1e-5 * float(values.max())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", METRICS)
def test_metrics(name, lent):
    here = METRICS[name](Z, X, "numpy")
    there = METRICS[name](lent.cupy.asarray(Z), lent.cupy.asarray(X), CUDA)
    agree(np.asarray(float(there)), float(here), lent, 1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dictionary", ["nystroem", "fourier", "polynomial"])
def test_koopman_sampler(dictionary, lent):
    def run(X, Z):
        more = {"degree": 2} if dictionary == "polynomial" else {"n_features": 20}
        sampler = gk.KoopmanSampler(dictionary, reg=1e-3, **more, **SEED)
        return sampler.fit(X).transport(Z)

    there = run(lent.cupy.asarray(X), lent.cupy.asarray(Z))
    assert on_device(there)
    agree(there, run(X, Z), lent, 1e-3)


@pytest.mark.filterwarnings("ignore")
def test_a_generator_is_trained(lent):
    def run(X, Z, backend):
        made = gk.maps.RandomFeatureMap(n_features=20, scale=1.0, random_state=0)
        flow = gk.MMDFlow(gk.Gaussian(1.0), n_iter=3, generator=made, backend=backend, **SEED)
        return flow.fit(X).transport(Z)

    there = run(lent.cupy.asarray(X), lent.cupy.asarray(Z), CUDA)
    assert on_device(there)
    agree(there, run(X, Z, "numpy"), lent, 1e-5)


def test_generator_edmd(lent):
    def fitted(X):
        return spectrum.GeneratorEDMD(spectrum.Monomials(2)).fit(X, drift=-X, diffusion=1.0)

    there = fitted(lent.cupy.asarray(X))
    agree(there.eigenvalues_, fitted(X).eigenvalues_, lent, 1e-6)


def test_nothing_is_left_out():
    """Whoever adds an estimator or a metric of points adds a case."""
    tested = {type(make("numpy")).__name__ for make in (*FLOWS.values(), *SPECTRA.values())}
    tested |= {"KoopmanSampler", "GeneratorEDMD"}
    tested |= {
        "Generator"
    }  # lives on PyTorch's devices: tests/generators/test_generators.py, and nothing yet on CUDA
    estimators = {name for name in gk.__all__ if hasattr(getattr(gk, name), "fit")}
    assert estimators <= tested
    closed_forms = {name for name in metrics.__all__ if name.startswith("gaussian_")}
    values = {"TwoSampleTest", "KernelDistance"}
    of_images = {"ClassifierFeatures", "RandomConvolutions"}  # live on the host
    assert set(metrics.__all__) - closed_forms - values - of_images == set(METRICS)
