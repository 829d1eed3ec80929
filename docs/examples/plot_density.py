"""
A density of 100,000 points
===========================

A sum over 100,000 sources at every pixel of a picture. With a tolerance the sum skips terms that are too small to matter.
"""

import time

import matplotlib.pyplot as plt
import numpy as np

import gpukoop as gk

X = gk.datasets.three_rings(100_000, random_state=0, noise=0.03).astype(np.float32)
x, y = np.linspace(-1, 2.5, 200, dtype=np.float32), np.linspace(-1, 1, 120, dtype=np.float32)
x, y = x + X[:, 0].mean() - x.mean(), y
grid = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
scale = 0.03
weights = np.full(len(X), 1 / (2 * np.pi * scale**2 * len(X)), dtype=np.float32)


def seconds(operator):
    """Time a second product: the first one compiles or plans."""
    operator @ weights
    begin = time.perf_counter()
    values = operator @ weights
    return values, time.perf_counter() - begin


exact, slow = seconds(gk.Gaussian(scale)(grid, X, backend="numba-cpu"))
quick, fast = seconds(gk.Gaussian(scale)(grid, X, backend="numba-cpu", tol=1e-4))
pairs = len(grid) * len(X)
print(f"{pairs / 1e9:.1f} thousand million pairs: exact {slow:.2f} s, tol=1e-4 {fast:.2f} s")
print(f"largest difference {np.abs(quick - exact).max() / exact.max():.1e} of the largest density")

# %%
figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
drawn = axis.pcolormesh(x, y, quick.reshape(len(y), len(x)), cmap="magma")
axis.set(title="kernel density of 100,000 points, tol=1e-4", xlabel="x", ylabel="y", aspect="equal")
figure.colorbar(drawn, shrink=0.8, label="density")
plt.show()
