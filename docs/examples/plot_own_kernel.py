"""
A kernel of your own
====================

Two formulas make a kernel: phi and its derivative, in s = squared distance / squared scale. Every backend, gradients and
log-sum-exps follow. A kernel class in your own file works like those of the package.
"""

from dataclasses import dataclass
from typing import ClassVar

import matplotlib.pyplot as plt
import numpy as np

import gpukoop as gk
from gpukoop.kernels.formula.expr import exp
from gpukoop.kernels.formula.profile import AbstractRadial, Profile


@dataclass(frozen=True)
class Compact(AbstractRadial):
    """Gaussian of the fourth power of the distance: flat at the top, thin in the tails."""

    profile: ClassVar[Profile] = Profile(
        phi=lambda s: exp(-s * s / 4),
        dphi=lambda s: -s * exp(-s * s / 4) / 2,
    )


r = np.linspace(0, 4, 200)[:, None]
origin, one = np.zeros((1, 1)), np.ones(1)
kernels = {
    "yours": Compact(),
    "Gaussian": gk.Gaussian(),
    "Matern52": gk.Matern52(),
    "Laplace": gk.Laplace(),
    "yours * Laplace + 0.2": Compact() * gk.Laplace() + 0.2,
}
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for name, kernel in kernels.items():
    value, slope = kernel(r, origin).value_and_gradient(one)
    axes[0].plot(r, value, label=name)
    axes[1].plot(r, slope)
axes[0].set(title="k(r)", xlabel="distance / scale")
axes[1].set(title="dk/dr", xlabel="distance / scale")
axes[0].legend()
plt.show()

# %%
# The conformance suite compares all backends of this machine with a slow reference, on your kernel.

report = gk.testing.check_backend("numba-cpu", kernels=[Compact(1.5)])
print(report)
X = np.random.default_rng(0).standard_normal((5_000, 3))
print(Compact(2.0)(X).explain("product"))
