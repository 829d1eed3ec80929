"""Good arguments for public callables, for the sweep of hostile ones: the parts of the sampler, plots, PyTorch, CUDA, the rest.

``name: (function, good arguments)``; the function returns numbers, or something that holds none. Every argument that is an array or
a number is replaced by hostile ones in turn.
"""

import copy
import functools

import numpy as np

import gpukoop as gk
from gpukoop import datasets, sampler, spectrum, testing, verdict
from gpukoop.algebra import AbstractOperator

rng = np.random.default_rng(0)
X, Y, U = rng.normal(size=(30, 2)), rng.normal(size=(25, 2)) + 0.5, rng.normal(size=(30, 2))
S = np.array([[2.0, 0.3], [0.3, 1.0]])
MEAN = np.array([0.5, -1.0])
TIMES = rng.random(30)
ROTATION = np.array([[-0.5, 0.4], [-0.4, -0.3]])


def seeded():
    return np.random.default_rng(0)


def values(features):
    """Return values and derivatives of features at good points."""
    return features.features_and_jvp(X, 0.5, U)


@functools.cache
def lift():
    return sampler.Lift(2, [sampler.PolynomialFeatures(2, 1, 1)])


@functools.cache
def moments():
    triples = sampler.Triples(X, None, 0)
    return sampler.assemble(lift(), triples, 2_000, n_bins=2, ends=(True, True))


@functools.cache
def fitted():
    made = gk.KoopmanSampler("polynomial", degree=1, time_degree=1, n_bins=1, random_state=0)
    return made.fit(X)


@functools.cache
def diffusion_map():
    return spectrum.DiffusionMap(gk.Gaussian(1.0), 3, random_state=0).fit(X)


@functools.cache
def fitted_walk():
    made = spectrum.KernelEDMD(gk.Gaussian(1.0), 2, reg=0.1, random_state=0)
    return made.fit(WALK[:-1], successors=WALK[1:])


def mixture(weights, means, covariances):
    return sampler.MixtureTeacher(weights, means, covariances).velocity(X, 0.5)


def moment_sums(a, b, n_features, n_coordinates, n_bins):
    return sampler.Moments((a, b), n_features, n_coordinates, n_bins).edge(1)


def relaxation(values, Z, t):
    return sampler.Relaxation(diffusion_map(), X).forecast(Z, values, t)


SAMPLER = {
    "AffineTeacher": (
        lambda B, c: sampler.AffineTeacher(B, c).velocity(X, 0.5),
        {"B": ROTATION, "c": MEAN},
    ),
    "CallableTeacher": (
        lambda answer: sampler.CallableTeacher(lambda x, t: answer).velocity(X, 0.5),
        {"answer": X + 1.0},
    ),
    "EmpiricalTeacher": (
        lambda Y, smooth: sampler.EmpiricalTeacher(Y, smooth=smooth).velocity(X, 0.5),
        {"Y": Y, "smooth": 0.5},
    ),
    "GaussianTeacher": (
        lambda mean, covariance: sampler.GaussianTeacher(mean, covariance).velocity(X, 0.5),
        {"mean": MEAN, "covariance": S},
    ),
    "MixtureTeacher": (
        mixture,
        {
            "weights": np.array([1.0, 2.0]),
            "means": np.array([MEAN, -MEAN]),
            "covariances": np.array([S, 2 * S]),
        },
    ),
    "as_teacher": (lambda source: sampler.as_teacher(source) and None, {"source": 3.0}),
    "integrate": (
        lambda x, times, n_steps: sampler.integrate(lambda y, t: -y, x, times, n_steps=n_steps),
        {"x": X, "times": np.array([0.0, 0.5, 1.0]), "n_steps": 4},
    ),
    "Clock": (lambda horizon: sampler.Clock("log", horizon).clock_time(0.5), {"horizon": 7.0}),
    "Frame": (
        lambda mean, size: sampler.Frame(mean, size).data_inside(X),
        {"mean": MEAN, "size": 2.0},
    ),
    "Latent": (lambda spec: sampler.Latent(spec).fit(X, 0), {"spec": 2}),
    "EndpointFeatures": (
        lambda mean, covariance: values(sampler.EndpointFeatures(mean, covariance)),
        {"mean": MEAN, "covariance": S},
    ),
    "FourierFeatures": (
        lambda d, M, scale, time_scale, spread, smoothness: values(
            sampler.FourierFeatures(
                d,
                M,
                scale=scale,
                time_scale=time_scale,
                rng=seeded(),
                spread=spread,
                smoothness=smoothness,
            )
        ),
        {"d": 2, "M": 10, "scale": 1.0, "time_scale": 1.0, "spread": 4.0, "smoothness": 2.5},
    ),
    "NystroemFeatures": (
        lambda landmarks, times, scale, time_scale: values(
            sampler.NystroemFeatures(landmarks, times, scale=scale, time_scale=time_scale)
        ),
        {"landmarks": X, "times": TIMES, "scale": 1.0, "time_scale": 1.0},
    ),
    "PolynomialFeatures": (
        lambda d, degree, time_degree, centre, half_width: values(
            sampler.PolynomialFeatures(d, degree, time_degree, centre=centre, half_width=half_width)
        ),
        {"d": 2, "degree": 2, "time_degree": 1, "centre": MEAN, "half_width": np.ones(2)},
    ),
    "UserFeatures": (
        lambda d: sampler.UserFeatures(sampler.PolynomialFeatures(2, 2, 1), d).n_features,
        {"d": 2},
    ),
    "Lift": (
        lambda d: sampler.Lift(d, [sampler.PolynomialFeatures(2, 1, 1)]).lift(X, 0.5),
        {"d": 2},
    ),
    "Moments": (
        moment_sums,
        {"a": 0.0, "b": 1.0, "n_features": 4, "n_coordinates": 2, "n_bins": 2},
    ),
    "Triples": (
        lambda data, seed: sampler.Triples(data, None, seed).walk(0, 1, 4).x1,
        {"data": X, "seed": 0},
    ),
    "assemble": (
        lambda n_triples, n_bins: sampler.assemble(
            lift(), sampler.Triples(X, None, 0), n_triples, n_bins=n_bins
        ).host("S"),
        {"n_triples": 500, "n_bins": 2},
    ),
    "ridge": (lambda reg: sampler.ridge(moments(), reg), {"reg": 1e-3}),
    "generator": (lambda lam: sampler.generator(moments(), lift(), lam), {"lam": 1e-3}),
    "sat": (
        lambda lam, upto: sampler.sat(moments(), lift(), lam, upto=upto),
        {"lam": 1e-3, "upto": 2},
    ),
    "sat_inverse": (lambda lam: sampler.sat_inverse(moments(), lift(), lam), {"lam": 1e-3}),
    "denoiser": (lambda lam: sampler.denoiser(moments(), lam, "b"), {"lam": 1e-3}),
    "growth_bound": (lambda lam: sampler.growth_bound(moments(), lam), {"lam": 1e-3}),
    "energy_ratio": (
        lambda c: sampler.energy_ratio(moments(), lift(), c),
        {"c": np.ones((lift().n_features, 2))},
    ),
    "Options": (lambda solver: sampler.Options(solver), {"solver": "sat"}),
    "Stage": (
        lambda lam: sampler.Stage(lift(), moments(), lam, sampler.Options()).forward(X),
        {"lam": 1e-3},
    ),
    "Evolution": (
        lambda t: sampler.Evolution(
            [sampler.Stage(lift(), moments(), 1e-3, sampler.Options())]
        ).transport(X, t),
        {"t": 0.5},
    ),
    "Relaxation": (relaxation, {"values": X[:, 0].copy(), "Z": Y, "t": 0.5}),
    "spectral_report": (lambda A: sampler.spectral_report(A).eigenvalues, {"A": ROTATION}),
    "images": (
        lambda samples, n_columns: sampler.images(samples, n_columns=n_columns) and None,
        {"samples": rng.random((3, 4)), "n_columns": 2},
    ),
    "picture": (
        lambda n: sampler.picture(fitted(), n_trajectories=n) and None,
        {"n": 3},
    ),
    "KoopmanSampler.transport": (
        lambda Z, t: fitted().transport(Z, t),
        {"Z": Y, "t": 0.5},
    ),
    "KoopmanSampler.trajectory": (
        lambda Z, times: fitted().trajectory(Z, times),
        {"Z": Y, "times": np.array([0.0, 0.5, 1.0])},
    ),
    "KoopmanSampler.sample": (
        lambda n, base: copy.copy(fitted()).set_params(base=base).sample(n, 0),
        {"n": 3, "base": "independent"},
    ),
    "KoopmanSampler.invert": (lambda X: fitted().invert(X), {"X": Y}),
}

DATASETS = {
    name: (lambda Z, function=function: function(Z), {"Z": Z})
    for name, function, Z in (
        ("project_circle", datasets.project_circle, X),
        ("project_torus", datasets.project_torus, rng.normal(size=(10, 3)) + 1),
        ("project_sphere", datasets.project_sphere, rng.normal(size=(10, 3))),
        ("torus_angles", datasets.torus_angles, rng.normal(size=(10, 3)) + 1),
        ("density", lambda Z: datasets.density("banana", Z), X),
        ("potential", lambda Z: datasets.potential("quadruple_well", Z), X),
    )
} | {
    "exact": (
        lambda n, barrier: datasets.exact("double_well", n, barrier=barrier)["eigenvalues"],
        {"n": 3, "barrier": 1.0},
    ),
    "digits": (lambda n: datasets.digits(n, random_state=0), {"n": 5}),
    "mises_fisher": (lambda n: datasets.mises_fisher(n, random_state=0), {"n": 5}),
    "slow_well": (
        lambda n, lag_time, n_features, barrier, width: datasets.slow_well(
            n, lag_time, 0, n_features=n_features, barrier=barrier, width=width, independent=True
        ),
        {"n": 4, "lag_time": 0.01, "n_features": 2, "barrier": 1.0, "width": 1.0},
    ),
    "allen_cahn": (
        lambda n, lag_time, n_grid, diffusion, width, noise, burn_in: datasets.allen_cahn(
            n,
            lag_time,
            0,
            n_grid=n_grid,
            diffusion=diffusion,
            width=width,
            noise=noise,
            burn_in=burn_in,
        ),
        {
            "n": 3,
            "lag_time": 2e-5,
            "n_grid": 8,
            "diffusion": 1e-3,
            "width": 0.01,
            "noise": 1.0,
            "burn_in": 2,
        },
    ),
    "pairs": (
        lambda X, lag, stride: datasets.pairs(X, lag, stride=stride),
        {"X": X, "lag": 2, "stride": 1},
    ),
    # parameters of the laws
    "moons, parameters": (
        lambda noise, share: datasets.moons(9, 0, noise=noise, share=share),
        {"noise": 0.1, "share": 0.5},
    ),
    "eight_gaussians, parameters": (
        lambda radius, noise: datasets.eight_gaussians(9, 0, radius=radius, noise=noise),
        {"radius": 1.0, "noise": 0.1},
    ),
    "three_rings, parameters": (
        lambda radius, gap, noise: datasets.three_rings(9, 0, radius=radius, gap=gap, noise=noise),
        {"radius": 0.3, "gap": 0.5, "noise": 0.01},
    ),
    "student_t, parameters": (
        lambda degrees, n_features: datasets.student_t(
            9, 0, degrees=degrees, n_features=n_features
        ),
        {"degrees": 3.0, "n_features": 2},
    ),
    "ornstein_uhlenbeck, parameters": (
        lambda lag_time, n_features, temperature: datasets.ornstein_uhlenbeck(
            9, lag_time, 0, n_features=n_features, temperature=temperature
        ),
        {"lag_time": 0.1, "n_features": 2, "temperature": 1.0},
    ),
    "circle, parameters": (
        lambda lag_time, arc, inner_radius: datasets.circle(
            9, lag_time, 0, arc=arc, inner_radius=inner_radius, independent=True
        ),
        {"lag_time": 0.1, "arc": 3.0, "inner_radius": 1.0},
    ),
    "torus, parameters": (
        lambda R, rho: datasets.torus(9, None, 0, R=R, rho=rho),
        {"R": 2.0, "rho": 0.5},
    ),
    "double_well, parameters": (
        lambda lag_time, barrier: datasets.double_well(
            4, lag_time, 0, barrier=barrier, independent=True
        ),
        {"lag_time": 0.01, "barrier": 1.0},
    ),
    "banana, parameters": (lambda noise: datasets.banana(9, 0, noise=noise), {"noise": 0.3}),
}

MAPS = {
    "RandomFeatureMap": (
        lambda n_features, reg: (
            gk.maps.RandomFeatureMap(n_features, reg=reg, random_state=0).fit(X, U).predict(Y)
            if hasattr(gk.maps.RandomFeatureMap, "fit")
            else None
        ),
        {"n_features": 5, "reg": 1e-3},
    ),
}

SPECTRA = {
    "KernelEDMD": (
        lambda X, successors: (
            spectrum.KernelEDMD(gk.Gaussian(1.0), 2, reg=0.1, random_state=0)
            .fit(X, successors=successors)
            .eigenvalues_
        ),
        {"X": X, "successors": 0.9 * X},
    ),
    "GeneratorEDMD": (
        lambda X, drift: (
            spectrum.GeneratorEDMD(spectrum.Monomials(2), n_components=2)
            .fit(X, drift=drift, diffusion=1.0)
            .eigenvalues_
        ),
        {"X": X, "drift": -X},
    ),
    "Monomials": (
        lambda degree: (
            spectrum.GeneratorEDMD(spectrum.Monomials(degree), n_components=1)
            .fit(X, drift=-X, diffusion=1.0)
            .eigenvalues_
        ),
        {"degree": 2},
    ),
}

WALK = np.cumsum(rng.normal(size=(80, 2)), axis=0) % 3.0
KINETICS = {
    "pcca": (
        lambda phi, n: gk.kinetics.pcca(phi, n),
        {"phi": np.column_stack([np.sign(X[:, 0]) + 0.01 * X[:, 1]]), "n": 2},
    ),
    "vamp_score": (
        lambda X, lag: gk.kinetics.vamp_score(fitted_walk(), X, lag),
        {"X": WALK, "lag": 1},
    ),
}

VERDICT = {
    "two_sample_test": (
        lambda X, Y, n_permutations: (
            verdict.two_sample_test(X, Y, n_permutations=n_permutations).p_value
        ),
        {"X": X, "Y": Y, "n_permutations": 19},
    ),
    "diagnose": (
        lambda Z, X, n_permutations: verdict.diagnose(Z, X, n_permutations=n_permutations) and None,
        {"Z": U, "X": X, "n_permutations": 99},
    ),
}


def tensor(a):
    import torch

    if not isinstance(a, np.ndarray) or a.dtype.kind != "f" or np.ma.isMaskedArray(a):
        return a  # what is no array of numbers goes in as it is
    return torch.tensor(a.astype(a.dtype.newbyteorder("=")))


TORCH = {
    "product": (
        lambda X, Y, v: gk.torch.product(gk.Gaussian(1.0), tensor(X), tensor(Y), tensor(v)).numpy(),
        {"X": X, "Y": Y, "v": Y[:, 0].copy()},
    ),
    "mmd": (lambda X, Y: gk.torch.mmd(tensor(X), tensor(Y)).item(), {"X": X, "Y": Y}),
    "energy_distance": (
        lambda X, Y: gk.torch.energy_distance(tensor(X), tensor(Y)).item(),
        {"X": X, "Y": Y},
    ),
    "sliced_wasserstein": (
        lambda X, Y, n: gk.torch.sliced_wasserstein(tensor(X), tensor(Y), n_projections=n).item(),
        {"X": X, "Y": Y, "n": 4},
    ),
    "sinkhorn_divergence": (
        lambda X, Y, blur: gk.torch.sinkhorn_divergence(
            tensor(X), tensor(Y), blur=blur, n_iter=20
        ).item(),
        {"X": X, "Y": Y, "blur": 1.0},
    ),
}

PLOT = {
    "particles": (lambda X: gk.plot.particles(X) and None, {"X": X}),
    "spectrum": (
        lambda found, exact: gk.plot.spectrum(found, exact) and None,
        {"found": np.arange(1.0, 4.0), "exact": np.arange(1.0, 3.0)},
    ),
    "history": (
        lambda energy, step_size: gk.plot.history({"energy": energy}, step_size=step_size) and None,
        {"energy": np.arange(5.0, 1.0, -1.0), "step_size": 0.1},
    ),
    "png": (lambda dots: gk.plot.png(gk.plot.spectrum(np.ones(2)), dots) and None, {"dots": 20}),
    "demo": (lambda result: gk.plot.demo(result) and None, {"result": None}),
    "verdict": (lambda report: gk.plot.verdict(report) and None, {"report": None}),
    "implied_timescales": (lambda result: gk.plot.implied_timescales(result), {"result": None}),
    "chapman_kolmogorov": (lambda result: gk.plot.chapman_kolmogorov(result), {"result": None}),
    "flow_animation": (
        lambda frames, fps: gk.plot.flow_animation(frames, "/nowhere/at/all.gif", fps=fps),
        {"frames": X, "fps": 5},
    ),
}

TESTING = {
    "tolerance": (
        lambda X, Y, v: testing.tolerance(gk.Gaussian(1.0), X, Y, v),
        {"X": X, "Y": Y, "v": Y[:, 0].copy()},
    ),
    "check_backend": (
        lambda backend: (
            testing.check_backend(backend, shapes=[(3, 4, 2, 1)], dtypes=["float64"]) and None
        ),
        {"backend": "numpy"},
    ),
    "expected_failed_checks": (
        lambda: testing.expected_failed_checks(gk.MMDFlow()) and None,
        {},
    ),
}

CUDA = {
    "launch_plan": (
        lambda n, m, d, t: (
            gk.cuda.launch_plan(gk.Gaussian(1.0), "product", n=n, m=m, d=d, t=t) and None
        ),
        {"n": 50, "m": 40, "d": 3, "t": 2},
    ),
    "compile_ptx": (
        lambda d, t: (
            gk.cuda.compile_ptx(gk.Gaussian(1.0), "product", d=d, t=t, form="auto") and None
        ),
        {"d": 0, "t": 1},
    ),
}

DISTRIBUTED = {"use_cluster": (gk.distributed.use_cluster, {"client": "tcp://nowhere:1"})}


class Doubling(AbstractOperator):
    """An operator of the user, twice the identity."""

    def __init__(self, n):
        self.n = n

    shape = property(lambda self: (self.n, self.n))
    dtype = np.dtype(float)
    T = property(lambda self: self)
    reference = property(lambda self: np.zeros(self.n))

    def _apply(self, v):
        return 2 * v


K = gk.Gaussian(1.0)(X, backend="numpy")
ALGEBRA = {
    "Identity": (lambda n: gk.Identity(n).to_dense(), {"n": 4}),
    "Block": (lambda v: gk.Block([[K, None], [None, K]]) @ v, {"v": rng.normal(size=60)}),
    "Combination": (
        lambda factor, v: (factor * K + gk.Identity(30)) @ v,
        {"factor": 2.0, "v": TIMES},
    ),
    "Selection": (lambda rows, v: K[rows] @ v, {"rows": np.array([0, 2]), "v": TIMES}),
}
ROOMS = {
    "sampler": SAMPLER,
    "datasets": DATASETS,
    "spectrum": SPECTRA,
    "verdict": VERDICT,
    "kinetics": KINETICS,
    "torch": TORCH,
    "plot": PLOT,
    "testing": TESTING,
    "cuda": CUDA,
    "distributed": DISTRIBUTED,
    "algebra": ALGEBRA,
}
# Good arguments that a call refuses, for nothing else can be tried without another machine, or seconds.
REFUSED = {
    "sampler.as_teacher",
    "plot.demo",
    "plot.verdict",
    "plot.implied_timescales",
    "plot.chapman_kolmogorov",
    "plot.flow_animation",
    "cuda.compile_ptx",
    "distributed.use_cluster",
}
PARTS = {f"{room}.{name}": call for room, calls in ROOMS.items() for name, call in calls.items()}
