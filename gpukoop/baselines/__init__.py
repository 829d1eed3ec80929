"""What the flows are measured against: plain samplers with the same verbs, ``fit(X)``, ``sample(n)``, ``diagnose()``.

``KernelDensity`` and ``GaussianMixture`` draw from a density fitted to the samples; ``Langevin`` and ``SVGD`` move particles by
the score of the kernel density, ``LAWGD`` by the spectrum of its generator. All work in columns divided by their deviations, so that units do not matter.
"""

from gpukoop.baselines.densities import GaussianMixture, KernelDensity
from gpukoop.baselines.scores import LAWGD, SVGD, Langevin

__all__ = ["LAWGD", "SVGD", "GaussianMixture", "KernelDensity", "Langevin"]
