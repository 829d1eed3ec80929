"""
New rows of a table
===================

The wine table of scikit-learn: 178 rows, 13 columns, units from tenths to thousands. Standardised coordinates make the
columns comparable. Can a classifier tell new rows from rows that nobody learned from?
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_wine
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import cross_val_score, train_test_split

import gpukoop as gk

wine = load_wine()
names = wine.feature_names
X, unseen = train_test_split(wine.data, test_size=60, random_state=0)
flow = gk.KSWGD(n_components=20, coordinates="standardize", random_state=0).fit(X)
Z = flow.sample(len(unseen))


def told_apart(A, B):
    """Share of rows that a forest assigns to the right cloud, held out; one half is chance."""
    rows, origin = np.vstack([A, B]), np.repeat([0, 1], [len(A), len(B)])
    forest = RandomForestClassifier(100, random_state=0)
    return cross_val_score(forest, rows, origin, cv=5).mean()


print(f"new rows against unseen ones: told apart in {100 * told_apart(Z, unseen):.0f} % of cases")
print("deviation, new over old:", (Z.std(axis=0) / X.std(axis=0)).round(2))

# %%
# The unseen rows matter. Against the rows that were learned from, a share far below one half would be no good sign: each new row then
# has an old neighbour with the other label, which misleads the forest.

print(f"new rows against learned ones: {100 * told_apart(Z, X[: len(Z)]):.0f} %")

# %%
# Pairs of columns, and all correlations.

figure, axes = plt.subplots(1, 3, figsize=(12, 3.7), layout="constrained")
for axis, (a, b) in zip(axes, [("alcohol", "proline"), ("flavanoids", "hue")]):
    i, j = names.index(a), names.index(b)
    axis.scatter(X[:, i], X[:, j], s=10, label="learned from")
    axis.scatter(Z[:, i], Z[:, j], s=10, marker="x", label="new")
    axis.set(xlabel=a, ylabel=b)
axes[0].legend()
upper = np.triu_indices(len(names), 1)
axes[2].scatter(np.corrcoef(X.T)[upper], np.corrcoef(Z.T)[upper], s=10)
axes[2].axline((0, 0), slope=1, c="k", lw=0.5)
axes[2].set(xlabel="correlation, learned from", ylabel="correlation, new", aspect="equal")
plt.show()
