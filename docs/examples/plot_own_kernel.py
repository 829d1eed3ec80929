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
from gpukoop.kernels.formula.expr import exp, sqrt
from gpukoop.kernels.formula.profile import AbstractRadial, Profile


@dataclass(frozen=True)
class Hyperbolic(AbstractRadial):
    """A Gaussian at the top, a Laplace kernel in the tails; positive definite in any dimension."""

    profile: ClassVar[Profile] = Profile(
        phi=lambda s: exp(1 - sqrt(1 + s)),
        dphi=lambda s: -exp(1 - sqrt(1 + s)) / (2 * sqrt(1 + s)),
    )


r = np.linspace(0, 4, 200)[:, None]
origin, one = np.zeros((1, 1)), np.ones(1)
kernels = {
    "yours": Hyperbolic(),
    "Gaussian": gk.Gaussian(),
    "Matern52": gk.Matern52(),
    "Laplace": gk.Laplace(),
    "yours * Laplace + 0.2": Hyperbolic() * gk.Laplace() + 0.2,
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
# Is the derivative right? Compare with differences, and the compiled loops with the slow reference.

X = np.random.default_rng(0).standard_normal((2_000, 3))
v = np.ones(len(X))
K = Hyperbolic(2.0)(X[:50], X)
step = 1e-5 * np.eye(3)[0]
ahead, behind = Hyperbolic(2.0)(X[:50] + step, X) @ v, Hyperbolic(2.0)(X[:50] - step, X) @ v
print("gradient against differences", np.abs(K.gradient(v)[:, 0] - (ahead - behind) / 2e-5).max())
for backend, reason in gk.backends().items():
    if reason is None and backend in ("numpy", "numba-cpu"):
        print(backend, (Hyperbolic(2.0)(X[:50], X, backend=backend) @ v)[:2])
print(K.explain("product"))
