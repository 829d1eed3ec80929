"""
New samples from samples, and whether they are good
===================================================

Two moons, one with a sixth of the mass of the other. ``KSWGD`` learns from 1,000 samples and makes 1,000 new ones; the
verdict compares them with samples that nothing was learned from. A kernel density does the same job beside it, and fails.
"""

import matplotlib.pyplot as plt

import gpukoop as gk

X = gk.datasets.moons(1_000, random_state=0, share=0.85)

flow = gk.KSWGD(random_state=0).fit(X)
Z = flow.sample(1_000)
smooth = gk.baselines.KernelDensity(random_state=0).fit(X).sample(1_000)

figure, axes = plt.subplots(1, 3, figsize=(11, 2.6), sharex=True, sharey=True, layout="constrained")
for axis, cloud, title in zip(axes, (X, Z, smooth), ("samples", "KSWGD", "kernel density")):
    axis.scatter(*cloud.T, s=3)
    axis.set(title=title, aspect="equal")
plt.show()

# %%
# The report has a line for each way in which samples go wrong. Failed lines are marked ``OFF``; a low p-value is bad.

print(gk.diagnose(Z, X))

# %%
print(gk.diagnose(smooth, X))
