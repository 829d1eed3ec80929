"""Every public callable, one hostile value at a time: a right answer or one clear sentence of our own (issue 12).

A call must return finite numbers, and the right ones where the value means the same as the good one (a list, another order of
bytes, float32), or raise an error of ours: a ValueError or TypeError that a ``raise`` of this package made. NaN, a sentence of NumPy,
SciPy or Numba, and a wrong number fail. A public name that is neither in CALLS nor in ELSEWHERE fails, too.
"""

import inspect
import linecache
import numbers
import traceback
import warnings
from collections import Counter
from pathlib import Path

import hostile_rooms
import numpy as np
import pytest
from hostile_calls import PARTS, REFUSED

import gpukoop as gk
from gpukoop import datasets, metrics, sampler, spectrum

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
    "metrics.frechet_distance": (metrics.frechet_distance, {"X": X, "Y": Y}),
    "metrics.kernel_distance": (
        lambda X, Y, subset_size: metrics.kernel_distance(
            X, Y, kernel=gk.Gaussian(1.0), n_subsets=2, subset_size=subset_size
        ),
        {"X": X, "Y": Y, "subset_size": 10},
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
    "solve": (
        lambda X, y, **k: gk.solve(gk.Gaussian(1.0)(X), y, **k),
        {"X": X, "y": np.ones(30), "ridge": 0.5, "tol": 1e-8, "max_iter": 50},
    ),
    "logdet": (
        lambda X, ridge, n_probes: gk.logdet(gk.Gaussian(1.0)(X), ridge=ridge, n_probes=n_probes),
        {"X": X, "ridge": 0.5, "n_probes": 4},
    ),
    "trace": (
        lambda X, ridge: gk.trace(gk.Gaussian(1.0)(X), np.sqrt, ridge=ridge),
        {"X": X, "ridge": 0.5},
    ),
    "scale_derivative": (lambda u, v: gk.scale_derivative(K(), u, v), {"u": w, "v": V}),
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
CALLS |= {name: call for name, call in (PARTS | hostile_rooms.PARTS).items() if name not in CALLS}
# Public names that no hostile call reaches here, each with where it is tried or why not.
VALUE = "a value that a call returns, or an abstract class"
ELSEWHERE = {
    **dict.fromkeys(
        "metrics.KernelDistance metrics.TwoSampleTest verdict.TwoSampleTest verdict.Line verdict.Report sampler.ExponentialOverflow "
        "sampler.SpectralReport BackendError maps.AbstractLinearMap maps.AbstractMap sampler.AbstractFeatures "
        "sampler.AbstractTeacher algebra.AbstractOperator testing.Conformance cuda.Launch cuda.Plan kinetics.ChapmanKolmogorov "
        "kinetics.CrossValidation kinetics.ImpliedTimescales kinetics.MetastableStates kinetics.ModeCorrelation "
        "kinetics.Occupancy".split(),
        VALUE,
    ),
    "metrics.two_sample_test": "verdict.two_sample_test",
    "diagnose": "verdict.diagnose",
    "DiffusionMap": "spectrum.DiffusionMap",
    "KernelEDMD": "spectrum.KernelEDMD",
    "GeneratorEDMD": "spectrum.GeneratorEDMD",
    "KoopmanSampler": "sampler.KoopmanSampler.transport, tests/sampler/test_koopman_sampler.py, tests/public/test_hostile_state.py",
    "Generator": "generators.Generator",
    **dict.fromkeys(
        "linear.Estimate linear.SolveInfo linear.logdet linear.scale_derivative linear.solve linear.trace".split(),
        "tests/operators/test_linear.py",
    ),
    "Block": "algebra.Block",
    "Identity": "algebra.Identity",
    "backends": "takes nothing",
    "plot.require_matplotlib": "takes nothing",
    **dict.fromkeys("plot.pictures plot.training".split(), "tests/terminal/test_cli_train.py"),
}
# Arguments that ask for places: an IndexError of ours is a clear error there, and nowhere else.
PLACES = {("algebra.Selection", "rows"), ("sampler.mode_projector", "select")}


def public_callables():
    """Return every public name that can be called, room by room: those of the package, and of the modules it names."""
    names = {name: gk for name in gk.__all__ if callable(getattr(gk, name))}
    modules = {
        name: getattr(gk, name) for name in gk.__all__ if inspect.ismodule(getattr(gk, name))
    }
    for room, module in (modules | {"algebra": gk.algebra}).items():
        own = [
            n
            for n, thing in vars(module).items()
            if getattr(thing, "__module__", "") == module.__name__
        ]
        listed = getattr(module, "__all__", None) or [n for n in own if not n.startswith("_")]
        names |= {f"{room}.{name}": module for name in listed if callable(getattr(module, name))}
    return names


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


def ours(error, place=False):
    """Tell whether a ``raise`` of this package made the error; what Python or a library raises on its own does not count."""
    kinds = ValueError | TypeError | FloatingPointError  # the last of a training that diverged
    if place:
        kinds |= IndexError
    last = traceback.extract_tb(error.__traceback__)[-1]
    line = linecache.getline(last.filename, last.lineno)
    inside = Path(last.filename).resolve().is_relative_to(ROOT)
    return inside and "raise " in line and isinstance(error, kinds)


def outcome(function, arguments, place=False):
    """Return "error" or the numbers returned; fail on what is foreign or not finite."""
    with warnings.catch_warnings(), gk.use_backend("numpy"):
        warnings.simplefilter("ignore")
        try:
            found = numbers_in(function(**arguments))
        except Exception as error:  # noqa: BLE001
            if not ours(error, place) or len(str(error)) < 15:
                pytest.fail(f"foreign, or no sentence: {type(error).__name__}: {error}")
            return "error"
    assert np.isfinite(found).all(), "NaN or inf came out"
    return found


CASES = [
    (name, argument)
    for name, (_, good) in CALLS.items()
    for argument, value in good.items()
    if not callable(value) or name in REFUSED
]


def call_of(name):
    for room, module in (
        ("torch", "torch"),
        ("generators", "torch"),
        ("maps.TorchMap", "torch"),
        ("sampler.NeuralFeatures", "torch"),
        ("sampler.ImageFeatures", "torch"),
        ("metrics.ClassifierFeatures", "torch"),
        ("synthesize", "pandas"),
        ("plot", "matplotlib"),
        ("distributed", "distributed"),
    ):
        if f"{name}.".startswith(f"{room}."):
            pytest.importorskip(module)
    return CALLS[name]


@pytest.mark.parametrize(("name", "argument"), CASES, ids=["-".join(case) for case in CASES])
def test_hostile_values(name, argument):
    function, good = call_of(name)
    value, counts = good[argument], Counter()
    array = isinstance(value, np.ndarray)
    for label, hostile in (HOSTILE_ARRAYS if array else HOSTILE_NUMBERS).items():
        try:
            arguments = {**good, argument: hostile(value) if array else hostile}
            found = outcome(function, arguments, place=(name, argument) in PLACES)
        except pytest.fail.Exception as failure:
            pytest.fail(f"{label}: {failure}")
        except AssertionError as failure:
            pytest.fail(f"{label}: {failure}")
        counts["error" if isinstance(found, str) else "right"] += 1
    assert counts["error"] >= 4, f"hardly anything is refused: {counts}"


@pytest.mark.parametrize("name", CALLS)
def test_the_same_numbers_in_another_form(name):
    function, good = call_of(name)
    expected = outcome(function, good)
    if name in REFUSED:
        assert isinstance(expected, str)
        return
    assert isinstance(expected, np.ndarray), "the good arguments are refused"
    for argument, value in good.items():
        if not isinstance(value, np.ndarray):
            continue
        for label, form in SAME.items():
            place = (name, argument) in PLACES
            found = outcome(function, {**good, argument: form(value)}, place)
            if isinstance(found, str):
                assert label == "float32", label
                continue
            rounding = 1e-9 if expected.dtype == float else 1e-5
            accuracy = 2e-3 if label == "float32" else rounding
            np.testing.assert_allclose(found, expected, rtol=accuracy, atol=accuracy, err_msg=label)


def test_no_public_callable_is_forgotten():
    names = public_callables()
    assert {
        "sampler.sat",
        "plot.particles",
        "torch.mmd",
        "distributed.use_cluster",
        "KSWGD",
    } <= names.keys()
    tried = {".".join(name.partition(",")[0].split(".")[:2]) for name in CALLS} | ELSEWHERE.keys()
    tried |= {name.split(".")[0] for name in CALLS}
    for name in names:
        assert name in tried, f"{name}: add it to CALLS, or say in ELSEWHERE who tries it"
    for name in ELSEWHERE:
        assert name in names, f"{name} is no public name"
