"""
Kernel ridge regression on a lazy operator
==========================================

``K + ridge * Identity`` is an operator like any other: SciPy's conjugate gradients solve with it, and no matrix is stored.
The prediction is a product with another operator, and its slope comes in the same pass.
"""

import matplotlib.pyplot as plt
import numpy as np
from scipy.sparse.linalg import cg

import gpukoop as gk

rng = np.random.default_rng(0)
X = rng.uniform(-3, 3, (4_000, 2))
truth = np.sin(2 * X[:, 0]) * np.cos(X[:, 1])
y = truth + 0.2 * rng.standard_normal(4_000)

kernel, ridge = gk.Gaussian(0.8), 1.0
K = kernel(X)  # 4,000 x 4,000, never stored
steps = []
weights, failed = cg(K + ridge * gk.Identity(len(X)), y, rtol=1e-6, callback=steps.append)
print(f"{len(steps)} iterations, failed: {bool(failed)}")
print(f"root mean square error {np.sqrt(np.mean((K @ weights - truth) ** 2)):.3f}, noise 0.2")

# %%
# ``gk.solve`` does the same with a preconditioner, for any number of right-hand sides.

again, info = gk.solve(K, y, ridge=ridge, return_info=True)
print(f"{info.n_iter} iterations with a Nystroem preconditioner of rank {info.rank}")
print(f"largest difference of the predictions {np.abs(K @ (again - weights)).max():.1e}")

# %%
# Prediction and gradient on a grid, from one pass over the pairs.

line = np.linspace(-3, 3, 60)
grid = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
value, slope = kernel(grid, X).value_and_gradient(weights)

figure, axis = plt.subplots(figsize=(5.5, 4.5), layout="constrained")
drawn = axis.pcolormesh(line, line, value.reshape(60, 60), cmap="coolwarm")
few = np.s_[::5, ::5]
at, arrows = grid.reshape(60, 60, 2)[few], slope.reshape(60, 60, 2)[few]
axis.quiver(at[..., 0], at[..., 1], arrows[..., 0], arrows[..., 1], color="0.2", scale=40)
axis.set(title="prediction and its gradient", xlabel="x", ylabel="y", aspect="equal")
figure.colorbar(drawn, label="prediction")
plt.show()
