"""
New rows of a table
===================

The wine table of scikit-learn: 178 rows, 13 columns, units from tenths to thousands. Standardised coordinates make the
columns comparable. Can a classifier tell new rows from old ones?
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_wine
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import cross_val_score

import gpukoop as gk

wine = load_wine()
X, names = wine.data, wine.feature_names
flow = gk.KSWGD(n_components=30, coordinates="standardize", random_state=0).fit(X)
Z = flow.sample(len(X))

rows, origin = np.vstack([X, Z]), np.repeat([0, 1], len(X))
forest = RandomForestClassifier(100, random_state=0)
accuracy = cross_val_score(forest, rows, origin, cv=5).mean()
print(f"a forest tells new rows from old ones in {100 * accuracy:.0f} % of cases (50 % is chance)")
print("deviation, new over old:", (Z.std(axis=0) / X.std(axis=0)).round(2))

# %%
# Pairs of columns, and all correlations.

figure, axes = plt.subplots(1, 3, figsize=(12, 3.7), layout="constrained")
for axis, (a, b) in zip(axes, [("alcohol", "proline"), ("flavanoids", "hue")]):
    i, j = names.index(a), names.index(b)
    axis.scatter(X[:, i], X[:, j], s=10, label="old")
    axis.scatter(Z[:, i], Z[:, j], s=10, marker="x", label="new")
    axis.set(xlabel=a, ylabel=b)
axes[0].legend()
upper = np.triu_indices(len(names), 1)
axes[2].scatter(np.corrcoef(X.T)[upper], np.corrcoef(Z.T)[upper], s=10)
axes[2].axline((0, 0), slope=1, c="k", lw=0.5)
axes[2].set(xlabel="correlation, old", ylabel="correlation, new", aspect="equal")
plt.show()
