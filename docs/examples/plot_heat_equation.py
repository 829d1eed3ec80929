"""
A random field
==============

The stochastic heat equation on a circle of 64 cells: every Fourier mode is an Ornstein-Uhlenbeck process, so the law is known.
KSWGD with powers of principal components moves fields that start in a narrow band, one unit off, onto it.
"""

import matplotlib.pyplot as plt
import numpy as np

import gpukoop as gk

cells = 64
answer = gk.datasets.exact("heat_equation", n_cells=cells)
X, _ = gk.datasets.heat_equation(2_000, random_state=0, n_cells=cells, independent=True)
start = 1.0 + 0.5 * np.random.default_rng(1).standard_normal((600, cells))

components = gk.spectrum.LinearCoordinates("pca", n_components=32).fit(X)
spectrum = gk.GeneratorEDMD(gk.spectrum.Powers(components), n_components=64)
spectrum.fit(X, diffusion=np.sqrt(2 * cells))
flow = gk.KSWGD(spectrum, step_size=0.1, total_time=12.0).fit(X)
Z = flow.transport(start)


def variances(fields):
    """Variances of the first eight Fourier amplitudes, over the exact ones."""
    return (fields @ answer["modes"] / cells).var(axis=0)[:8] / answer["variances"][:8]


print("start", variances(start).round(3))
print("end  ", variances(Z).round(3))

figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
place = np.arange(cells) / cells
for axis, fields, title in zip(axes, (start, Z, X), ("start", "end", "data")):
    axis.plot(place, fields[:12].T, lw=0.8)
    axis.set(title=f"{title}: 12 fields", xlabel="position / length of the circle", ylim=(-9, 9))
axes[0].set_ylabel("field")
plt.show()
