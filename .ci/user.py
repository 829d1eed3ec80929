"""A user's script with one misspelt keyword, which a type checker must see; the marked ones are seen too, or their marks are unused."""

import numpy as np
from typing_extensions import assert_type

import gpukoop as gk

X = np.zeros((10, 2))
flow = gk.KSWGD(n_componets=3)  # the fault
spectrum = gk.KernelEDMD(gk.Gaussian(scale=1.0))
distance = gk.metrics.mmd(X, X)
assert_type(gk.Gaussian(scale=1.0)(X), gk.KernelOperator)

# Every other public estimator: --strict warns of a mark that hides nothing.
gk.DiffusionMap(n_componets=3)  # type: ignore[call-arg]
gk.Generator(latent_dims=3)  # type: ignore[call-arg]
gk.GeneratorEDMD(n_componets=3)  # type: ignore[call-arg]
gk.JKOFlow(n_step=3)  # type: ignore[call-arg]
gk.KernelEDMD(n_componets=3)  # type: ignore[call-arg]
gk.KoopmanSampler(n_feature=3)  # type: ignore[call-arg]
gk.MMDFlow(n_iters=3)  # type: ignore[call-arg]
gk.WassersteinFlow(n_iters=3)  # type: ignore[call-arg]
gk.baselines.GaussianMixture(n_componets=3)  # type: ignore[call-arg]
gk.baselines.KernelDensity(scales=1.0)  # type: ignore[call-arg]
gk.baselines.LAWGD(n_componets=3)  # type: ignore[call-arg]
gk.baselines.Langevin(n_iters=3)  # type: ignore[call-arg]
gk.baselines.SVGD(n_iters=3)  # type: ignore[call-arg]
gk.kinetics.KineticModel(n_bootstraps=3)  # type: ignore[call-arg]
gk.metrics.ClassifierFeatures(n_feature=3)  # type: ignore[call-arg]
gk.metrics.RandomConvolutions(n_feature=3)  # type: ignore[call-arg]
gk.spectrum.LinearCoordinates(n_componets=3)  # type: ignore[call-arg]
gk.torch.NeuralDictionary(n_function=3)  # type: ignore[call-arg]
