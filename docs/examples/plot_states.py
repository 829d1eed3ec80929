"""
Metastable states, committors and passage times
===============================================

PCCA+ turns slow eigenfunctions into states. The committor between two of them is the probability to reach one before the
other. Between opposite wells it is near one half in the two wells beside the way.
"""

import matplotlib.pyplot as plt
import numpy as np

import gpukoop as gk

runs = [gk.datasets.quadruple_well(4_000, lag_time=0.05, random_state=seed)[0] for seed in range(5)]
estimator = gk.KernelEDMD(n_components=3, n_landmarks=200, random_state=0)
model = gk.kinetics.KineticModel(estimator, lag=4, frame_time=0.05, n_bootstrap=50).fit(runs)
states = gk.kinetics.metastable_states(model, 4)

for i in range(4):
    print(
        f"state {i}: weight {states.weights[i]:.3f}"
        f" (95 % band {states.weights_lower[i]:.3f} to {states.weights_upper[i]:.3f})"
    )
print("mean first-passage times\n", states.mean_first_passage_times.round(2))

# %%
# Memberships on a grid, and the committor from the state at the lower left to the one at the upper right; the white line is one half.

axis_ = np.linspace(-1.8, 1.8, 80)
grid = np.stack(np.meshgrid(axis_, axis_), -1).reshape(-1, 2)
seen = (gk.datasets.potential("quadruple_well", grid) < 4).reshape(80, 80)
memberships = states.memberships(grid)
centres = np.array([grid[m.argmax()] for m in memberships.T])
source, target = centres.sum(axis=1).argmin(), centres.sum(axis=1).argmax()

panels = [memberships[:, i] for i in range(4)] + [states.committor(source, target, grid)]
titles = [f"membership {i}" for i in range(4)] + [f"committor, {source} to {target}"]
figure, axes = plt.subplots(1, 5, figsize=(13, 2.9), sharey=True, layout="constrained")
for axis, values, title in zip(axes, panels, titles):
    values = np.where(seen, values.reshape(80, 80), np.nan)
    drawn = axis.contourf(axis_, axis_, values, levels=np.linspace(0, 1, 11), cmap="viridis")
    axis.set(title=title, aspect="equal", xlabel="x")
axes[0].set_ylabel("y")
axes[-1].contour(
    axis_, axis_, np.where(seen, panels[-1].reshape(80, 80), np.nan), [0.5], colors="w"
)
figure.colorbar(drawn, ax=axes, shrink=0.8, label="probability")
plt.show()
