"""
Dynamics that turn: complex eigenvalues
=======================================

A diffusion with a rotation is not reversible. The reversible estimate is wrong about it, and says so; with
``reversible=False`` the eigenvalues are complex: real parts are rates of decay, imaginary parts frequencies.
"""

import warnings

import matplotlib.pyplot as plt
import numpy as np
from scipy.linalg import expm

import gpukoop as gk

lag, turn = 0.2, 3.0
rng = np.random.default_rng(0)
step = expm(-lag * np.array([[1.0, turn], [-turn, 1.0]]))
X = rng.standard_normal((6_000, 2))
Y = X @ step.T + np.sqrt(1 - np.exp(-2 * lag)) * rng.standard_normal(X.shape)

options = {"n_components": 5, "lag_time": lag, "n_landmarks": 200, "reg": 0.2, "random_state": 0}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    reversible = gk.KernelEDMD(gk.Gaussian("median"), **options).fit(X, successors=Y)
print(str(caught[0].message))
model = gk.KernelEDMD(gk.Gaussian("median"), reversible=False, **options).fit(X, successors=Y)

j, k = np.meshgrid(range(3), range(3))
exact = (j * (1 + turn * 1j) + k * (1 - turn * 1j)).ravel()

figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
axes[0].scatter(exact.real, exact.imag, s=90, facecolors="none", edgecolors="k", label="exact")
axes[0].scatter(model.eigenvalues_.real, model.eigenvalues_.imag, s=20, label="reversible=False")
axes[0].scatter(
    reversible.eigenvalues_, 0 * reversible.eigenvalues_, marker="x", label="symmetrised"
)
axes[0].set(xlabel="rate of decay", ylabel="angular frequency", xlim=(-0.3, 4.5), ylim=(-7, 7))
axes[0].legend()

phase = np.angle(model.transform(X[:2_000])[:, 0])
drawn = axes[1].scatter(*X[:2_000].T, c=phase, cmap="twilight", s=6)
axes[1].set(title="phase of the first eigenfunction", xlabel="x", ylabel="y", aspect="equal")
figure.colorbar(drawn, label="phase (radians)")
plt.show()
