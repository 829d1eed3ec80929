"""
Flows towards the same eight clusters
=====================================

Four flows start in the same narrow cloud and move towards 800 samples of eight Gaussians. What they minimise differs: the
MMD of the energy kernel, a sliced and an entropic Wasserstein distance, and implicit (JKO) steps of the MMD. The energy
distance hardly notices a few particles between the clusters: a small distance is not a good sample, hence the verdict.
"""

import matplotlib.pyplot as plt
import numpy as np

import gpukoop as gk

X = gk.datasets.eight_gaussians(800, random_state=0)
start = 0.2 * np.random.default_rng(1).standard_normal((800, 2))
flows = {
    "MMD, energy kernel": gk.MMDFlow(step_size=0.3, n_iter=150, momentum=0.7, random_state=0),
    "sliced Wasserstein": gk.WassersteinFlow("sliced", step_size=1.0, n_iter=60, random_state=0),
    "Sinkhorn": gk.WassersteinFlow("sinkhorn", blur=0.1, step_size=0.3, n_iter=20, random_state=0),
    "JKO steps of the MMD": gk.JKOFlow(n_steps=20, random_state=0),
}

figure, axes = plt.subplots(2, 2, figsize=(7, 7), sharex=True, sharey=True, layout="constrained")
energies = {}
for axis, (name, flow) in zip(axes.flat, flows.items()):
    flow.fit(X)
    Z = flow.transport(start)
    energies[name] = np.asarray(flow.history_["energy"])
    axis.plot(*np.stack([start[::8], Z[::8]]).transpose(2, 0, 1), c="0.85", lw=0.5)
    axis.scatter(*X.T, s=2, c="0.6", label="samples")
    axis.scatter(*Z.T, s=3, c="C1", label="particles")
    distance = gk.metrics.energy_distance(Z, X)
    axis.set(title=f"{name}\nenergy distance {distance:.0e}", aspect="equal")
handles = axes[0, 0].get_legend_handles_labels()
figure.legend(*handles, loc="outside lower center", ncols=2)
plt.show()

# %%
# Each flow lowers its own energy, so the curves are shown as shares of their first values.

figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
for name, energy in energies.items():
    axis.semilogy(np.linspace(0, 1, len(energy)), energy / energy[0], label=name)
axis.set(xlabel="share of the steps", ylabel="energy / first energy")
axis.legend()
plt.show()
