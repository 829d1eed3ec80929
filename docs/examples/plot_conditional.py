"""
Conditional sampling with weights
=================================

A learned spectrum answers a second question without a new fit: which particles are likely to survive a killing rate? Here paths
die to the left of a line, and the weights give the law of the survivors.
"""

import matplotlib.pyplot as plt

import gpukoop as gk

X, Y = gk.datasets.quadruple_well(4_000, lag_time=0.01, independent=True, random_state=0)
flow = gk.KSWGD(n_components=30, lag_time=0.01, n_landmarks=400, random_state=0)
flow.fit(X, successors=Y)
Z = flow.sample(1_200)


def rate(Z):
    """Paths die at rate 3 where x < 0."""
    return 3.0 * (Z[:, 0] < 0)


times = (0.1, 0.5, 2.0)
figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), sharey=True, layout="constrained")
for axis, t in zip(axes, times):
    w = flow.weights(Z, rate, time=t)
    drawn = axis.scatter(*Z.T, c=w, s=6, vmin=0, vmax=1, cmap="viridis")
    left = w[Z[:, 0] < 0].sum() / w.sum()
    axis.set(title=f"t = {t:g}: {100 * left:.0f} % at x < 0", xlabel="x", aspect="equal")
axes[0].set_ylabel("y")
figure.colorbar(drawn, ax=axes, label="probability to survive until t", shrink=0.8)
plt.show()
