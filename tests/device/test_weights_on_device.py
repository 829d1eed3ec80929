"""``sample_weight`` and ``weights=`` as CuPy arrays, on the stand-in: what comes out is what NumPy arrays give."""

import numpy as np
import pytest
from devices import KINDS, host, with_values

import gpukoop as gk

rng = np.random.default_rng(0)
X, Z = rng.normal(size=(60, 2)), rng.normal(size=(50, 2)) + 0.3
ON_X, ON_Z = rng.uniform(0.5, 2, 60), rng.uniform(0.5, 1, 50)
ON_X[:3] = 0  # no sample at all


def flow(estimator):
    return lambda X, Z, w, u: estimator.fit(X, sample_weight=w).transport(Z)


CASES = {
    "sinkhorn": lambda b: flow(gk.WassersteinFlow("sinkhorn", n_iter=2, backend=b, random_state=0)),
    "exact": lambda b: flow(gk.WassersteinFlow("exact", n_iter=2, random_state=0)),
    "sliced": lambda b: flow(gk.WassersteinFlow("sliced", n_iter=2, random_state=0)),
    "jko mmd": lambda b: flow(gk.JKOFlow("mmd", n_steps=1, backend=b, random_state=0)),
    "jko w2": lambda b: flow(gk.JKOFlow("w2", n_steps=1, backend=b, random_state=0)),
    "diffusion map": lambda b: (
        lambda X, Z, w, u: (
            gk.spectrum.DiffusionMap(gk.Gaussian(1.0), n_components=3, backend=b, random_state=0)
            .fit(X, sample_weight=w + 0.1)
            .transform(Z)
        )
    ),
    "wasserstein": lambda b: lambda X, Z, w, u: gk.metrics.wasserstein(Z, X, weights=(u, w)),
    "sinkhorn divergence": lambda b: (
        lambda X, Z, w, u: gk.metrics.sinkhorn_divergence(Z, X, blur=0.5, weights=(u, w))
    ),
    "diagnose": lambda b: (
        lambda X, Z, w, u: [
            line.value
            for line in gk.diagnose(
                Z, X, sample_weight=w, particle_weight=u, n_permutations=99, random_state=0
            ).lines
        ]
    ),
}


@pytest.fixture(params=KINDS)
def lent(request):
    with with_values(request) as found:
        yield found


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore")
def test_weights_on_a_device_are_weights_on_the_host(name, lent):
    asarray = lent.cupy.asarray
    here = CASES[name]("numpy")(X, Z, ON_X, ON_Z)
    there = CASES[name]("numba-cuda")(*(asarray(a) for a in (X, Z, ON_X, ON_Z)))
    mixed = CASES[name]("numba-cuda")(asarray(X), asarray(Z), ON_X, ON_Z)
    for found in (there, mixed):  # the couplings are iterated to 1e-6
        np.testing.assert_allclose(host(found), here, rtol=0, atol=1e-5 if lent.real else 2e-6)
