"""
Unrolling a surface with a diffusion map
========================================

Eigenfunctions of the Laplacian on scikit-learn's S-curve. The first follows the length of the strip, and a later one its width.
Colours show the function's value, or the position along the strip. The functions can be evaluated at new points, with gradients.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import make_s_curve

import gpukoop as gk

X, position = make_s_curve(2_500, noise=0.02, random_state=0)
model = gk.DiffusionMap(gk.Gaussian(0.25), n_components=8, alpha=1.0).fit(X[:2_000])
phi = model.transform(X[2_000:])  # at points that the map has not seen
print("eigenvalues", model.eigenvalues_.round(2))

along = [
    abs(np.corrcoef(phi[:, k], np.cos(np.pi * (position[2_000:] / 9.43 + 0.5)))[0, 1])
    for k in range(8)
]
across = [abs(np.corrcoef(phi[:, k], np.cos(np.pi * X[2_000:, 1] / 2))[0, 1]) for k in range(8)]
first, width = int(np.argmax(along)), int(np.argmax(across))
print(
    f"function {first} follows the length ({along[first]:.3f}), function {width} the width ({across[width]:.3f})"
)

figure = plt.figure(figsize=(11, 3.6), layout="constrained")
for panel, (k, title) in enumerate(
    [(first, "follows the length"), (width, "follows the width")], 1
):
    axis = figure.add_subplot(1, 3, panel, projection="3d")
    axis.scatter(*X[2_000:].T, c=phi[:, k], s=8, cmap="coolwarm")
    axis.view_init(10, -70)
    axis.set_axis_off()
    axis.set_title(f"eigenfunction {k} {title}")
axis = figure.add_subplot(1, 3, 3)
axis.scatter(phi[:, first], phi[:, width], c=position[2_000:], s=8)
axis.set(
    title="the strip, unrolled", xlabel=f"eigenfunction {first}", ylabel=f"eigenfunction {width}"
)
plt.show()
