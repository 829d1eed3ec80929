"""Arrays of PyTorch and JAX in every public function that takes arrays: the same numbers, and points come back where they were.

The calls are those of the sweep (``test_sweep.CALLS``) with their arrays in another library.
"""

import warnings

import numpy as np
import pytest
from test_sweep import CALLS, REFUSED, numbers_in

import gpukoop as gk

# Rooms of their own tensors, or whose arrays are pictures.
APART = (
    "torch.",
    "generators.",
    "plot.",
    "distributed.",
    "cuda.",
    "datasets.images",
    "maps.TorchMap",
)
# Calls whose arrays are the points that the answer belongs to, so that the answer must come back in their library.
THERE = set(
    "spectrum.eigsh spectrum.DiffusionMap.transform spectrum.DiffusionMap.gradient sampler.expm_action Energy KernelOperator "
    "solve KSWGD.transport MMDFlow sampler.integrate sampler.Relaxation sampler.KoopmanSampler.transport "
    "sampler.KoopmanSampler.trajectory sampler.KoopmanSampler.invert datasets.project_circle datasets.project_torus "
    "datasets.project_sphere datasets.torus_angles datasets.density datasets.potential datasets.pairs algebra.Block "
    "algebra.Combination Cosine baselines.KernelDensity baselines.GaussianMixture baselines.Langevin baselines.SVGD "
    "baselines.LAWGD interop.featurize maps.RandomFeatureMap maps.KernelMap maps.StagewiseMap maps.CallableMap maps.angles "
    "maps.torus maps.project_circle maps.project_simplex maps.project_sphere maps.project_torus spectrum.LinearCoordinates "
    "spectrum.LinearCoordinates.inverse spectrum.LinearCoordinates.vjp spectrum.LinearCoordinates.gradients "
    "spectrum.LinearCoordinates.lift".split()
)
# The others, each with its reason: a sweep that grows must say where the new answer belongs.
FITTED = "the points of the call are those of a fit or an operator in NumPy arrays, and the answer belongs to them"
STATISTIC = "numbers about the data, on the host by their documentation"
PART = "a part of the sampler, which is given native arrays"
HERE = {
    **dict.fromkeys(
        "KernelOperator.product KernelOperator.gradient KernelOperator.value_and_gradient KernelOperator.logsumexp KSWGD "
        "WassersteinFlow JKOFlow scale_derivative algebra.Selection".split(),
        FITTED,
    ),
    **dict.fromkeys(
        "sampler.mode_projector sampler.spectral_report spectrum.KernelEDMD spectrum.GeneratorEDMD kinetics.pcca testing.tolerance "
        "kinetics.KineticModel kinetics.implied_timescales kinetics.cross_validate kinetics.mode_correlation kinetics.forecast "
        "metrics.RandomConvolutions metrics.ClassifierFeatures".split(),
        STATISTIC,
    ),
    **dict.fromkeys(
        "sampler.AffineTeacher sampler.CallableTeacher sampler.EmpiricalTeacher sampler.GaussianTeacher sampler.MixtureTeacher "
        "sampler.Frame sampler.EndpointFeatures sampler.NystroemFeatures sampler.PolynomialFeatures sampler.Triples".split(),
        PART,
    ),
    **{
        f"sampler.{lift}Features.{verb}": PART
        for lift in ("Neural", "Image")
        for verb in "features features_and_jvp decode advance edit interpolate train".split()
    },
    "interop.featurize, answer": "the answer of the caller's own function, made float64 on the host",
}
NAMES = [
    name
    for name, (_, good) in CALLS.items()
    if name not in REFUSED
    and not name.startswith((*APART, "synthesize"))
    and any(isinstance(value, np.ndarray) and value.ndim for value in good.values())
]


def torch_tensors():
    torch = pytest.importorskip("torch")
    return torch.Tensor, lambda a: torch.tensor(np.ascontiguousarray(a))


def jax_arrays():
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)
    return jax.Array, jax.numpy.asarray


LIBRARIES = {"torch": torch_tensors, "jax": jax_arrays}


def leaves(result):
    if isinstance(result, tuple | list):
        return [leaf for part in result for leaf in leaves(part)]
    return [result]


def on_host(result):
    if isinstance(result, tuple | list):
        return [on_host(part) for part in result]
    return np.asarray(result) if hasattr(result, "__dlpack__") else result


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("name", NAMES)
def test_arrays_of_another_library(name, library):
    kind, make = LIBRARIES[library]()
    function, good = CALLS[name]
    moved = {
        key: make(value)
        if isinstance(value, np.ndarray) and value.ndim and value.dtype.kind in "fiu"
        else value
        for key, value in good.items()
    }
    with warnings.catch_warnings(), gk.use_backend("numpy"):
        warnings.simplefilter("ignore")
        here, there = function(**good), function(**moved)
    np.testing.assert_allclose(
        numbers_in(on_host(there)), numbers_in(here), rtol=1e-6, atol=1e-8, err_msg=name
    )
    arrays = [leaf for leaf in leaves(there) if getattr(leaf, "ndim", 0)]
    if name in THERE:
        assert arrays
        assert all(isinstance(leaf, kind) for leaf in arrays), [type(leaf) for leaf in arrays]
    elif arrays:
        assert name in HERE, f"{name}: does its answer belong where the arrays are, or not?"


@pytest.mark.parametrize("library", LIBRARIES)
def test_runs_of_different_lengths(library):
    kind, make = LIBRARIES[library]()
    runs = [make(np.arange(12.0).reshape(6, 2)), make(np.arange(8.0).reshape(4, 2))]
    X, Y = gk.datasets.pairs(runs, lag=2, stride=2)
    assert isinstance(X, kind)
    assert isinstance(Y, kind)
    np.testing.assert_array_equal(np.asarray(X)[:, 0], [0.0, 4.0, 0.0])
    np.testing.assert_array_equal(np.asarray(Y)[:, 0], [4.0, 8.0, 4.0])
