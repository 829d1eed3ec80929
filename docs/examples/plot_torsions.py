"""
Angles: laws on a torus
=======================

Torsion angles wrap around: -pi and pi are the same. ``gk.maps.torus`` makes each angle a point on a circle, and
``project=`` keeps the particles of a flow on it. Nothing happens at the border of the square.
"""

import matplotlib.pyplot as plt
import numpy as np

import gpukoop as gk

# Two correlated angles: three basins, one of them across the border.
rng = np.random.default_rng(0)
centres = np.array([[-1.2, 2.9], [-1.3, -0.5], [1.0, 0.6]])
which = rng.choice(3, 1_500, p=[0.5, 0.35, 0.15])
data = centres[which] + rng.standard_normal((1_500, 2)) @ np.array([[0.35, 0.15], [0.0, 0.3]])
data = (data + np.pi) % (2 * np.pi) - np.pi

flow = gk.KSWGD(n_components=40, n_landmarks=400, project=gk.maps.project_torus, random_state=0)
flow.fit(gk.maps.torus(data))
new = gk.maps.angles(flow.sample(1_500))

figure, axes = plt.subplots(
    1, 2, figsize=(7.5, 3.8), sharex=True, sharey=True, layout="constrained"
)
for axis, angles, title in zip(axes, (data, new), ("data", "new")):
    axis.scatter(*angles.T, s=3)
    axis.set(
        title=title,
        aspect="equal",
        xlabel="phi (radians)",
        xlim=(-np.pi, np.pi),
        ylim=(-np.pi, np.pi),
    )
axes[0].set_ylabel("psi (radians)")
plt.show()

# %%
edges = np.linspace(-np.pi, np.pi, 13)
shares = [np.histogram2d(*a.T, bins=[edges, edges])[0] / len(a) for a in (data, new)]
print(
    f"total variation on a grid of 12 x 12 cells: {0.5 * np.abs(shares[0] - shares[1]).sum():.3f}"
)
print(
    f"share of each side of the border psi = pi: {np.mean(np.abs(new[:, 1]) > 2.5):.3f}, data {np.mean(np.abs(data[:, 1]) > 2.5):.3f}"
)
