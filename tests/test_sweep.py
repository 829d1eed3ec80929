"""Every public callable, one hostile value at a time: a right answer or one clear sentence of our own (issue 12).

A call must return finite numbers, and the right ones where the value means the same as the good one (a list, another order of
bytes, float32), or raise an error of ours: a ValueError or TypeError that a ``raise`` of this package made. NaN, a sentence of NumPy,
SciPy or Numba, and a wrong number fail. A public name that is neither in CALLS nor in ELSEWHERE fails, too.
"""

import linecache
import numbers
import traceback
import warnings
from pathlib import Path

import numpy as np
import pytest

import gpukoop as gk
from gpukoop import datasets, maps, metrics, sampler, spectrum

ROOT = Path(gk.__file__).resolve().parent.parent
rng = np.random.default_rng(0)
X, Y = rng.normal(size=(30, 2)), rng.normal(size=(25, 2)) + 0.5
S = np.array([[2.0, 0.3], [0.3, 1.0]])
m = np.array([0.5, -1.0])
A = rng.normal(size=(5, 5)) / 3
w = rng.random(30) + 0.1
V = rng.normal(size=25)


def drawn(name, **more):
    return (getattr(datasets, name), {"n_samples": 20, "random_state": 0, **more})


K = lambda X=X, Y=Y, **k: gk.Gaussian(1.0)(X, Y, **k)
fitted = lambda X, **k: spectrum.DiffusionMap(gk.Gaussian(1.0), 3, random_state=0).fit(X, **k)
# name: (function, good arguments)
CALLS = {
    "metrics.mmd": (metrics.mmd, {"X": X, "Y": Y}),
    "metrics.energy_distance": (metrics.energy_distance, {"X": X, "Y": Y}),
    "metrics.sliced_wasserstein": (
        metrics.sliced_wasserstein,
        {"X": X, "Y": Y, "n_projections": 8, "random_state": 0},
    ),
    "metrics.wasserstein": (metrics.wasserstein, {"X": X[:25], "Y": Y, "order": 2}),
    "metrics.sinkhorn_divergence": (
        metrics.sinkhorn_divergence,
        {"X": X, "Y": Y, "blur": 1.0, "n_iter": 50},
    ),
    "metrics.gaussian_mmd": (
        metrics.gaussian_mmd,
        {"m1": m, "S1": S, "m2": -m, "S2": 2 * S, "scale": 1.0},
    ),
    "metrics.gaussian_wasserstein": (
        metrics.gaussian_wasserstein,
        {"m1": m, "S1": S, "m2": -m, "S2": 2 * S},
    ),
    "metrics.gaussian_energy_distance": (
        metrics.gaussian_energy_distance,
        {"m1": 0.0, "s1": 1.0, "m2": 1.0, "s2": 2.0},
    ),
    "metrics.coverage": (metrics.coverage, {"X": X, "centres": Y, "radius": 0.5}),
    "metrics.nearest_neighbour_distance": (metrics.nearest_neighbour_distance, {"X": X}),
    "metrics.kl_divergence": (
        metrics.kl_divergence,
        {"X": X, "density": lambda z: np.exp(-(z**2).sum(axis=1)), "n_grid": 8},
    ),
    "metrics.iid_floor": (
        metrics.iid_floor,
        {"metric": metrics.mmd, "draw": datasets.moons, "n_samples": 20, "n_repeats": 2},
    ),
    **{
        f"datasets.{name}": drawn(name)
        for name in (
            "banana",
            "checkerboard",
            "circle",
            "double_well",
            "eight_gaussians",
            "moons",
            "ornstein_uhlenbeck",
            "quadruple_well",
            "three_rings",
            "torus",
            "unequal_mixture",
            "student_t",
        )
    },
    "spectrum.eigsh": (spectrum.eigsh, {"A": A @ A.T, "k": 2, "tol": 0.0, "random_state": 0}),
    "spectrum.DiffusionMap": (fitted, {"X": X, "sample_weight": w}),
    "spectrum.DiffusionMap.transform": (lambda Z: fitted(X).transform(Z), {"Z": Y}),
    "spectrum.DiffusionMap.gradient": (
        lambda Z, c: fitted(X).gradient(Z, c),
        {"Z": Y, "c": np.ones(3)},
    ),
    "sampler.expm_action": (sampler.expm_action, {"A": A, "B": np.ones(5), "t": 0.5}),
    "sampler.mode_projector": (
        sampler.mode_projector,
        {"A": np.diag([3.0, 2.0, 1.0]), "select": [0]},
    ),
    "Gaussian": (lambda scale: gk.Gaussian(scale)(X, Y) @ V, {"scale": 1.0}),
    "Laplace": (lambda scale: gk.Laplace(scale)(X, Y) @ V, {"scale": 1.0}),
    "Matern32": (lambda scale: gk.Matern32(scale)(X, Y) @ V, {"scale": 1.0}),
    "Matern52": (lambda scale: gk.Matern52(scale)(X, Y) @ V, {"scale": 1.0}),
    "InverseMultiquadric": (lambda scale: gk.InverseMultiquadric(scale)(X, Y) @ V, {"scale": 1.0}),
    "RationalQuadratic": (
        lambda scale, alpha: gk.RationalQuadratic(scale, alpha)(X, Y) @ V,
        {"scale": 1.0, "alpha": 1.0},
    ),
    "Riesz": (lambda exponent: gk.Riesz(exponent)(X, Y) @ V, {"exponent": 1.0}),
    "Energy": (lambda X: gk.Energy()(X) @ np.ones(30), {"X": X}),
    "KernelOperator": (lambda X, Y, tol: K(X, Y, tol=tol) @ V, {"X": X, "Y": Y, "tol": 1e-3}),
    "KernelOperator.product": (lambda v: K() @ v, {"v": V}),
    "KernelOperator.gradient": (lambda v: K().gradient(v), {"v": V}),
    "KernelOperator.value_and_gradient": (lambda v: K().value_and_gradient(v), {"v": V}),
    "KernelOperator.logsumexp": (lambda b: K().logsumexp(b), {"b": V}),
    "KSWGD": (
        lambda X: gk.KSWGD(n_components=3, total_time=0.1, random_state=0).fit(X).transport(Y),
        {"X": X},
    ),
    "KSWGD.transport": (
        lambda Z: gk.KSWGD(n_components=3, total_time=0.1, random_state=0).fit(X).transport(Z),
        {"Z": Y},
    ),
    "MMDFlow": (
        lambda X, Z, n_iter: gk.MMDFlow(n_iter=2).fit(X).transport(Z, n_iter),
        {"X": X, "Z": Y, "n_iter": 2},
    ),
    "WassersteinFlow": (
        lambda X, sample_weight: (
            gk.WassersteinFlow("exact", n_iter=1).fit(X, sample_weight=sample_weight).transport(Y)
        ),
        {"X": X, "sample_weight": w},
    ),
    "JKOFlow": (lambda X: gk.JKOFlow("w2", n_steps=1).fit(X).transport(Y), {"X": X}),
    "use_backend": (lambda name: gk.use_backend(name).__enter__(), {"name": "numpy"}),
}
# Public names that no hostile call reaches here, each with where it is tried or why not.
DATA = "its parameters are tried in tests/test_datasets.py"
PARTS = "a part of KoopmanSampler, which checks what reaches it"
VALUE = "a value that a call returns, or an abstract class"
ELSEWHERE = {
    **dict.fromkeys(
        "metrics.TwoSampleTest sampler.ExponentialOverflow sampler.SpectralReport sampler.Relaxation BackendError "
        "maps.AbstractLinearMap maps.AbstractMap sampler.AbstractFeatures sampler.AbstractTeacher".split(),
        VALUE,
    ),
    **dict.fromkeys(
        "datasets.allen_cahn datasets.density datasets.digits datasets.exact datasets.heat_equation datasets.mises_fisher "
        "datasets.potential "
        "datasets.project_circle datasets.project_sphere datasets.project_torus datasets.slow_well "
        "datasets.torus_angles".split(),
        DATA,
    ),
    "metrics.two_sample_test": "tests/test_verdict.py",
    "datasets.pairs": "tests/test_trajectories.py",
    **dict.fromkeys(
        "maps.angles maps.project_circle maps.project_simplex maps.project_sphere maps.project_torus maps.torus".split(),
        "tests/test_interop.py",
    ),
    "spectrum.KernelEDMD": "as DiffusionMap; tests/test_spectrum_koopman.py",
    "spectrum.GeneratorEDMD": "as DiffusionMap; tests/test_spectrum_generator.py",
    "spectrum.Monomials": "tests/test_spectrum_generator.py",
    "spectrum.Powers": "tests/test_spectrum_generator.py",
    "spectrum.LinearCoordinates": "tests/test_coordinates.py",
    "DiffusionMap": "spectrum.DiffusionMap",
    "KernelEDMD": "spectrum.KernelEDMD",
    "GeneratorEDMD": "spectrum.GeneratorEDMD",
    "KoopmanSampler": "seconds a fit; tests/test_koopman_sampler.py and tests/test_hostile_state.py",
    "Block": "tests/test_algebra.py",
    "Identity": "tests/test_algebra.py",
    "backends": "takes nothing",
    "diagnose": "tests/test_verdict.py",
    "Generator": "tests/test_generators.py",
    "maps.CallableMap": "tests/test_maps.py",
    "maps.KernelMap": "tests/test_maps.py",
    "maps.RandomFeatureMap": "tests/test_maps.py",
    "maps.StagewiseMap": "tests/test_maps.py",
    "maps.TorchMap": "tests/test_maps.py",
}
ROOMS = {"": gk, "metrics.": metrics, "datasets.": datasets, "spectrum.": spectrum, "maps.": maps}
HOSTILE_ARRAYS = {
    "nan": lambda a: _with(a, np.nan),
    "inf": lambda a: _with(a, -np.inf),
    "huge": lambda a: _with(a, 1e300),
    "tiny": lambda a: a * 1e-300,
    "empty": lambda a: a[:0],
    "one row": lambda a: a[:1],
    "flat": lambda a: a.reshape(-1)[:, None, None],
    "complex": lambda a: a + 1j,
    "masked": lambda a: np.ma.masked_array(a, mask=a > 0.5),
    "dates": lambda a: np.zeros(a.shape, "datetime64[D]"),
    "text": lambda a: a.astype(str),
    "objects": lambda a: np.full(a.shape, None),
    "ragged": lambda a: [[1.0], [1.0, 2.0]],
    "a word": lambda a: "points",
    "nothing": lambda a: None,
    "a set": lambda a: {1.0, 2.0},
}
HOSTILE_NUMBERS = {
    "nan": np.nan,
    "inf": np.inf,
    "minus": -1.0,
    "zero": 0,
    "huge": 1e308,
    "tiny": 1e-308,
    "a word": "many",
    "a list": [1.0, 2.0],
    "nothing": None,
    "complex": 1 + 1j,
    "true": True,
    "a half": 0.5,
    "an object": object(),
}
# Values that mean the same as the good ones.
SAME = {
    "other order": np.asfortranarray,
    "other bytes": lambda a: a.astype(a.dtype.newbyteorder()),
    "not contiguous": lambda a: np.repeat(a, 2, axis=0)[::2],
    "read-only": lambda a: _frozen(a),
    "float32": lambda a: a.astype(np.float32),
}


def _with(a, value):
    a = a.astype(float)
    a.flat[a.size // 2] = value
    return a


def _frozen(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def numbers_in(result):
    if isinstance(result, tuple | list):
        return np.concatenate([numbers_in(r) for r in result] or [np.zeros(0)])
    if isinstance(result, spectrum.DiffusionMap):
        return result.eigenvalues_
    if isinstance(result, numbers.Number | np.ndarray):
        return np.ravel(np.asarray(result))
    return np.zeros(0)


def ours(error):
    """Tell whether a ``raise`` of this package made the error; what Python or a library raises on its own does not count."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    line = linecache.getline(last.filename, last.lineno)
    inside = Path(last.filename).resolve().is_relative_to(ROOT)
    return inside and "raise " in line and isinstance(error, ValueError | TypeError)


def outcome(function, arguments):
    """Return "error" or the numbers returned; fail on what is foreign or not finite."""
    with warnings.catch_warnings(), gk.use_backend("numpy"):
        warnings.simplefilter("ignore")
        try:
            found = numbers_in(function(**arguments))
        except Exception as error:  # noqa: BLE001
            if not ours(error) or len(str(error)) < 15:
                pytest.fail(f"foreign, or no sentence: {type(error).__name__}: {error}")
            return "error"
    assert np.isfinite(found).all(), "NaN or inf came out"
    return found


CASES = [
    (name, argument, label)
    for name, (_, good) in CALLS.items()
    for argument, value in good.items()
    for label in (
        HOSTILE_ARRAYS
        if isinstance(value, np.ndarray)
        else HOSTILE_NUMBERS
        if isinstance(value, numbers.Number)
        else ()
    )
]


def bad_value(value, label):
    return HOSTILE_ARRAYS[label](value) if isinstance(value, np.ndarray) else HOSTILE_NUMBERS[label]


@pytest.mark.parametrize(
    ("name", "argument", "label"), CASES, ids=["-".join(case).replace(" ", "_") for case in CASES]
)
def test_hostile_value(name, argument, label):
    function, good = CALLS[name]
    outcome(function, {**good, argument: bad_value(good[argument], label)})


@pytest.mark.parametrize("name", CALLS)
def test_the_same_numbers_in_another_form(name):
    function, good = CALLS[name]
    expected = outcome(function, good)
    assert isinstance(expected, np.ndarray), "the good arguments are refused"
    for argument, value in good.items():
        if not isinstance(value, np.ndarray):
            continue
        for label, form in SAME.items():
            found = outcome(function, {**good, argument: form(value)})
            if isinstance(found, str):
                assert label == "float32", label
                continue
            accuracy = 2e-3 if label == "float32" else 1e-9
            np.testing.assert_allclose(found, expected, rtol=accuracy, atol=accuracy, err_msg=label)


def test_no_public_callable_is_forgotten():
    for prefix, room in ROOMS.items():
        for name in room.__all__:
            thing = getattr(room, name)
            if callable(thing):
                assert {f"{prefix}{name}"} & (CALLS.keys() | ELSEWHERE.keys()), (
                    f"{prefix}{name}: add it to CALLS, or say in ELSEWHERE who tries it"
                )
    known = {f"{prefix}{name}" for prefix, room in ROOMS.items() for name in room.__all__}
    known |= {f"sampler.{name}" for name in sampler.__all__}
    for name in (*CALLS, *ELSEWHERE):
        stem = (
            ".".join(name.split(".")[:2])
            if name.partition(".")[0] + "." in ROOMS or name.startswith("sampler.")
            else name.split(".")[0]
        )
        assert stem in known, f"{name} is no public name"
