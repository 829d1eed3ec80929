"""
Four wells from one trajectory
==============================

A particle diffuses in a potential with four wells. From pairs of its states we learn the slow eigenfunctions of the
motion, and these move a new cloud into the wells, with the right share in each.
"""

import matplotlib.pyplot as plt
import numpy as np

import gpukoop as gk

X, Y = gk.datasets.quadruple_well(4_000, lag_time=0.01, independent=True, random_state=0)
flow = gk.KSWGD(n_components=48, lag_time=0.01, n_landmarks=400, init="gaussian", random_state=0)
flow.fit(X, successors=Y)
print("rates", flow.eigenvalues_[:4].round(3), "exact .749, .749, 1.497")

# %%
# All particles start in one narrow cloud on the barrier. ``transport`` records where they are.

frames = []
start = 0.1 * np.random.default_rng(1).standard_normal((1_500, 2))
end = flow.transport(start, callback=lambda i, Z: frames.append(Z.copy()) and None)
middle = frames[len(frames) // 4]

figure = gk.plot.particles(
    start,
    middle,
    end,
    density="quadruple_well",
    titles=["start", "a quarter of the time", "end", "exact density"],
)
plt.show()

# %%
# Does the end look like independent draws? The floor is what independent draws of the law reach among themselves.


def draw(n, random_state=None):
    """Independent draws of the law."""
    return gk.datasets.quadruple_well(n, independent=True, random_state=random_state)[0]


quadrant = (end[:, 0] > 0) + 2 * (end[:, 1] > 0)
print("share in each well", (np.bincount(quadrant, minlength=4) / len(end)).round(3))
distance = gk.metrics.energy_distance(end, draw(1_500, random_state=5))
floor, spread = gk.metrics.iid_floor(gk.metrics.energy_distance, draw, 1_500, n_repeats=4)
print(f"energy distance to fresh draws {distance:.4f}, floor {floor:.4f} (deviation {spread:.4f})")
