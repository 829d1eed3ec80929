"""Good arguments for the sweep of hostile ones, as in ``hostile_calls``: baselines, interop, maps, kinetics, generators, the rest."""

import functools
import tempfile
from pathlib import Path
from unittest.mock import patch

import numpy as np

import gpukoop as gk
from gpukoop import baselines, datasets, interop, kinetics, maps, metrics, spectrum, verdict
from gpukoop.baselines import scores
from gpukoop.sampler import neural

rng = np.random.default_rng(0)
X, Y = rng.normal(size=(40, 2)), rng.normal(size=(15, 2)) + 0.5
V = rng.normal(size=15)
FRAMES = np.cumsum(rng.normal(size=(90, 1)), axis=0) % 3.0
FEW = gk.KernelEDMD(gk.Gaussian(0.5), n_components=2, n_landmarks=10, reg=0.3, random_state=0)

# --- baselines: fitted to X, asked for samples


def drawn(name, **fixed):
    """Return (function, good arguments) of a baseline: samples after a fit; everything a number or an array may be hostile."""

    def function(X, n_samples, **parameters):
        model = getattr(baselines, name)(random_state=0, **fixed, **parameters)
        return model.fit(X).sample(n_samples)

    return function


BASELINES = {
    "KernelDensity": (drawn("KernelDensity"), {"X": X, "scale": 0.5, "n_samples": 5}),
    "GaussianMixture": (drawn("GaussianMixture"), {"X": X, "n_components": 2, "n_samples": 5}),
    "Langevin": (
        drawn("Langevin"),
        {"X": X, "scale": 0.5, "n_iter": 2, "step_size": 0.1, "n_samples": 5},
    ),
    "SVGD": (
        drawn("SVGD"),
        {"X": X, "scale": 0.5, "n_iter": 2, "step_size": 0.05, "n_samples": 5},
    ),
    "LAWGD": (
        patch.multiple(scores, DRAWS=150, LANDMARKS=15)(drawn("LAWGD")),
        {
            "X": X,
            "scale": 0.5,
            "n_components": 2,
            "n_iter": 2,
            "step_size": 0.05,
            "n_samples": 5,
        },
    ),
    "KernelDensity.score": (
        lambda Z: baselines.KernelDensity(0.5, random_state=0).fit(X).score(Z),
        {"Z": Y},
    ),
}

# --- interop: arrays, and what a function of the user returns

INTEROP = {
    "featurize": (
        lambda trajectory, features: interop.featurize(trajectory, features),
        {"trajectory": X, "features": "phi psi"},
    ),
    "featurize, answer": (
        lambda answer: interop.featurize(X, lambda trajectory: answer),
        {"answer": X},
    ),
}

# --- maps: one regression towards targets


def regressed(made, Z, targets, persistence):
    return made.start(Z).regress(Z, targets, persistence)(Z)


MAPS = {
    "RandomFeatureMap": (
        lambda Z, targets, persistence, n_features, scale, reg, learning_rate: regressed(
            maps.RandomFeatureMap(
                n_features, scale=scale, reg=reg, learning_rate=learning_rate, random_state=0
            ),
            Z,
            targets,
            persistence,
        ),
        {
            "Z": Y,
            "targets": Y + 0.1,
            "persistence": 2,
            "n_features": 5,
            "scale": 1.0,
            "reg": 1e-3,
            "learning_rate": 0.1,
        },
    ),
    "KernelMap": (
        lambda Z, targets, n_landmarks, reg: regressed(
            maps.KernelMap(gk.Gaussian(1.0), n_landmarks, reg=reg, random_state=0), Z, targets, 1
        ),
        {"Z": Y, "targets": Y + 0.1, "n_landmarks": 4, "reg": 1e-3},
    ),
    "StagewiseMap": (
        lambda Z, targets, block_size: regressed(
            maps.StagewiseMap(maps.RandomFeatureMap(5, random_state=0), block_size), Z, targets, 1
        ),
        {"Z": Y, "targets": Y + 0.1, "block_size": 2},
    ),
    "CallableMap": (
        lambda Z, targets, initial, learning_rate: regressed(
            maps.CallableMap(
                lambda p, Y: Y + p, lambda p, Y, G: G.sum(axis=0), initial, learning_rate
            ),
            Z,
            targets,
            1,
        ),
        {"Z": Y, "targets": Y + 0.1, "initial": np.zeros(2), "learning_rate": 0.1},
    ),
    "angles": (maps.angles, {"Z": X, "period": 360.0}),
    "torus": (maps.torus, {"values": X, "period": 360.0}),
    "project_circle": (lambda Z, arc: maps.project_circle(Z, arc=arc), {"Z": X, "arc": 3.0}),
    "project_simplex": (maps.project_simplex, {"Z": X}),
    "project_sphere": (maps.project_sphere, {"Z": X}),
    "project_torus": (maps.project_torus, {"Z": np.column_stack([X, X[::-1]])}),
}

# --- lifts that are learned, after a training of two steps


def untrained(name):
    made = neural.NeuralFeatures(2, 4, width=5), neural.ImageFeatures((4, 4), 4, width=5)
    return made[name == "ImageFeatures"]


@functools.cache
def lift(name):
    made = untrained(name)
    return made.train(rng_of(1).normal(size=(30, made.n_coordinates)), n_paths=8, n_steps=2)


def rng_of(seed):
    return np.random.default_rng(seed)


def lifted(name, d):
    """Return the hostile calls of a lift: its training, and every verb after one."""
    x, times = rng_of(2).normal(size=(6, d)), np.linspace(0, 1, 6)
    after = lambda verb: lambda **given: getattr(lift(name), verb)(**given)
    return {
        "features": (after("features"), {"x": x, "t": times}),
        "features_and_jvp": (after("features_and_jvp"), {"x": x, "t": times, "u": x[::-1].copy()}),
        "decode": (after("decode"), {"e": np.ones((3, 4))}),
        "advance": (after("advance"), {"x": x, "t": 0.5}),
        "edit": (
            lambda x, factor: lift(name).edit(x, {0: factor}),
            {"x": x, "factor": 2.0},
        ),
        "interpolate": (after("interpolate"), {"a": x[0], "b": x[1], "n": 3}),
        "invertibility": (after("invertibility"), {"x": x}),
        "train": (
            lambda X, n_paths, n_steps, rate: (
                untrained(name).train(X, n_paths=n_paths, n_steps=n_steps, rate=rate).advance(x)
            ),
            {"X": np.repeat(x, 5, axis=0), "n_paths": 8, "n_steps": 2, "rate": 1e-3},
        ),
    }


LIFTS = {
    f"{name}.{verb}": call
    for name, d in (("NeuralFeatures", 2), ("ImageFeatures", 16))
    for verb, call in lifted(name, d).items()
}

# --- kinetics: models of one short run with few modes


@functools.cache
def model():
    return kinetics.KineticModel(FEW, n_bootstrap=3).fit(FRAMES)


@functools.cache
def states():
    return kinetics.metastable_states(model(), 2)


KINETICS = {
    "KineticModel": (
        lambda X, lag, frame_time, n_bootstrap, confidence: (
            kinetics.KineticModel(
                FEW,
                lag=lag,
                frame_time=frame_time,
                n_bootstrap=n_bootstrap,
                confidence=confidence,
            )
            .fit(X)
            .timescales_
        ),
        {"X": FRAMES, "lag": 1, "frame_time": 2.0, "n_bootstrap": 3, "confidence": 0.9},
    ),
    "implied_timescales": (
        lambda X, lag, n_timescales, frame_time, n_bootstrap: (
            kinetics.implied_timescales(
                X,
                [lag],
                estimator=FEW,
                n_timescales=n_timescales,
                frame_time=frame_time,
                n_bootstrap=n_bootstrap,
            ).timescales
        ),
        {"X": FRAMES, "lag": 1, "n_timescales": 1, "frame_time": 2.0, "n_bootstrap": 3},
    ),
    "cross_validate": (
        lambda X, lag, n_splits: (
            kinetics.cross_validate(
                X, {"reg": [0.1]}, lag=lag, estimator=FEW, n_splits=n_splits
            ).scores
        ),
        {"X": FRAMES, "lag": 1, "n_splits": 2},
    ),
    "metastable_states": (
        lambda n_states: kinetics.metastable_states(model(), n_states).weights,
        {"n_states": 2},
    ),
    "chapman_kolmogorov": (
        lambda n_steps: kinetics.chapman_kolmogorov(model(), states(), n_steps).predicted,
        {"n_steps": 2},
    ),
    "mode_correlation": (
        lambda features: kinetics.mode_correlation(model(), features).correlation,
        {"features": FRAMES[:, 0] ** 2},
    ),
    "occupancy": (
        lambda answer: kinetics.occupancy(model(), lambda frames: answer).weight,
        {"answer": FRAMES[:, 0] > 1.0},
    ),
    "forecast": (
        lambda observable, X0, times: kinetics.forecast(model(), observable, X0, times),
        {"observable": FRAMES[:, 0] ** 2, "X0": FRAMES[:5], "times": np.array([0.0, 1.0, 5.0])},
    ),
}

# --- generators and dictionaries of networks: a step or two


def network(n_inputs, shape):
    return gk.generators.perceptron(n_inputs, shape[0], hidden=4, layers=1)


def generated(X, n_samples, **parameters):
    made = gk.Generator(
        network, "energy", validation_fraction=0.0, device="cpu", random_state=0, **parameters
    )
    return made.fit(X).sample(n_samples)


def parameters_of(module):
    return np.concatenate([p.detach().numpy().ravel() for p in module.parameters()]).shape[0]


GENERATORS = {
    "Generator": (
        generated,
        {
            "X": X,
            "n_samples": 3,
            "n_iter": 1,
            "batch_size": 16,
            "latent_dim": 2,
            "step_size": 1.0,
            "learning_rate": 1e-3,
            "ema_decay": 0.9,
            "clip": 1.0,
            "persistence": 1,
        },
    ),
    "perceptron": (
        lambda n_inputs, n_outputs, hidden, layers: parameters_of(
            gk.generators.perceptron(n_inputs, n_outputs, hidden=hidden, layers=layers)
        ),
        {"n_inputs": 2, "n_outputs": 2, "hidden": 4, "layers": 1},
    ),
    "convolutional": (
        lambda n_inputs, side, hidden, channels: parameters_of(
            gk.generators.convolutional(n_inputs, (side, side), hidden=hidden, channels=channels)
        ),
        {"n_inputs": 2, "side": 8, "hidden": 4, "channels": 2},
    ),
}


def small_network():
    """Return the same network at every call."""
    import torch

    torch.manual_seed(0)
    return gk.generators.perceptron(2, 2, hidden=4, layers=1)


NETWORKS = {
    "TorchMap": (
        lambda Z, targets, learning_rate: regressed(
            maps.TorchMap(small_network(), None, learning_rate),
            Z,
            targets,
            1,
        ),
        {"Z": Y, "targets": Y + 0.1, "learning_rate": 0.1},
    ),
}
DICTIONARIES = {
    "NeuralDictionary": (
        lambda X, successors, n_functions, width, depth, n_epochs, learning_rate: (
            gk.torch.NeuralDictionary(
                n_functions, width, depth, n_epochs, learning_rate, random_state=0
            )
            .fit(X, successors=successors)
            .score_
        ),
        {
            "X": X,
            "successors": 0.9 * X,
            "n_functions": 2,
            "width": 4,
            "depth": 1,
            "n_epochs": 1,
            "learning_rate": 1e-3,
        },
    ),
}

# --- what else was only named


@functools.cache
def walked():
    return gk.KernelEDMD(
        gk.Gaussian(0.5), n_components=2, n_landmarks=10, reg=0.3, random_state=0
    ).fit(FRAMES[:-1], successors=FRAMES[1:])


SPECTRA = {
    "LinearCoordinates": (
        lambda X, n_components: spectrum.LinearCoordinates("pca", n_components).fit(X).transform(X),
        {"X": X, "n_components": 1},
    ),
    "LinearCoordinates.inverse": (
        lambda G: spectrum.LinearCoordinates("whiten").fit(X).inverse(G),
        {"G": Y},
    ),
    "LinearCoordinates.vjp": (
        lambda Z, G: spectrum.LinearCoordinates("whiten").fit(X).vjp(Z, G),
        {"Z": Y, "G": 0.1 * Y},
    ),
    "LinearCoordinates.gradients": (
        lambda Z, G: spectrum.LinearCoordinates("whiten").fit(X).gradients(Z, G),
        {"Z": Y, "G": np.stack([Y, -Y], axis=1)},
    ),
    "LinearCoordinates.lift": (
        lambda Z, motion: spectrum.LinearCoordinates("whiten").fit(X).lift(Z, motion),
        {"Z": Y, "motion": 0.1 * Y},
    ),
    "KernelEDMD.score": (
        lambda Z, successors: walked().score(Z, successors=successors),
        {"Z": FRAMES[:40].copy(), "successors": FRAMES[1:41].copy()},
    ),
    "Powers": (
        lambda degree: spectrum.Powers(
            spectrum.LinearCoordinates("standardize").fit(X), degree
        ).features(X),
        {"degree": 2},
    ),
}


def read_back(images):
    """Return what is read of images in a file; what is no array stands for the path."""
    if not isinstance(images, np.ndarray):
        return datasets.images(images)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npy"
        np.save(path, np.asarray(images), allow_pickle=True)
        return datasets.images(path)


DATASETS = {
    "images": (read_back, {"images": rng.random((3, 9, 8))}),
    "heat_equation": (
        lambda n, lag_time, n_cells, diffusion, decay, noise: datasets.heat_equation(
            n, lag_time, 0, n_cells=n_cells, diffusion=diffusion, decay=decay, noise=noise
        ),
        {
            "n": 4,
            "lag_time": 0.1,
            "n_cells": 6,
            "diffusion": 0.01,
            "decay": 1.0,
            "noise": 1.0,
        },
    ),
}
PICTURES, LABELS = rng.random((12, 8, 9)), np.arange(12.0) % 3
METRICS = {
    "RandomConvolutions": (
        lambda X, Z: metrics.RandomConvolutions().fit(X).transform(Z),
        {"X": PICTURES, "Z": PICTURES[:4].copy()},
    ),
    "ClassifierFeatures": (
        lambda X, y, n_features, n_epochs, validation_fraction: (
            metrics.ClassifierFeatures(n_features, n_epochs, validation_fraction, cache=False)
            .fit(X, y)
            .transform(PICTURES)
        ),
        {
            "X": PICTURES,
            "y": LABELS,
            "n_features": 3,
            "n_epochs": 1,
            "validation_fraction": 0.2,
        },
    ),
}


def new_rows(X, n_samples):
    """Return new rows of a frame; what makes no frame is passed on."""
    import pandas

    frame = pandas.DataFrame(X) if isinstance(X, np.ndarray) and X.ndim == 2 else X
    return gk.synthesize(frame, n_samples).to_numpy().astype(float)


VERDICT = {
    "distance_multiple": (
        lambda Z, X: verdict.distance_multiple(Z, X, np.random.default_rng(0)),
        {"Z": Y, "X": X},
    ),
}
KERNELS = {
    "kernels.radial": (
        lambda formula, scale, a: gk.kernels.radial(formula or "", scale=scale, a=a)(X, Y) @ V,
        {"formula": "exp(-a * s)", "scale": 1.0, "a": 2.0},
    ),
    "synthesize": (new_rows, {"X": X, "n_samples": 5}),
    "Constant": (lambda value: (gk.Gaussian(1.0) + gk.Constant(value))(X, Y) @ V, {"value": 1.0}),
    "Cosine": (lambda X, weight: gk.Cosine(weight=weight)(X, Y) @ V, {"X": X, "weight": 1.0}),
    "Periodic": (
        lambda period, scale: gk.Periodic(period, scale)(X, Y) @ V,
        {"period": 1.0, "scale": 1.0},
    ),
    "Polynomial": (
        lambda degree, offset, scale: gk.Polynomial(degree, offset, scale)(X, Y) @ V,
        {"degree": 2, "offset": 1.0, "scale": 1.0},
    ),
}
ROOMS = {
    "baselines": BASELINES,
    "interop": INTEROP,
    "maps": MAPS | NETWORKS,
    "sampler": LIFTS,
    "kinetics": KINETICS,
    "generators": GENERATORS,
    "torch": DICTIONARIES,
    "spectrum": SPECTRA,
    "datasets": DATASETS,
    "metrics": METRICS,
    "verdict": VERDICT,
}
PARTS = KERNELS | {
    f"{room}.{name}": call for room, calls in ROOMS.items() for name, call in calls.items()
}
