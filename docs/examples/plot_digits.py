"""
New digits, class by class
==========================

1,797 images of 8 x 8 pixels. A Koopman sampler learns in 16 principal components, for each digit separately but with a
shared dictionary. A classifier that was trained on real images reads the new ones.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.neighbors import KNeighborsClassifier

import gpukoop as gk

X, y = gk.datasets.digits(return_labels=True)
sampler = gk.KoopmanSampler(
    n_features=150, latent=16, n_slabs=2, n_triples=6_000, reg=1e-3, random_state=0
).fit(X, y)

labels = np.repeat(np.arange(10), 40)
Z = np.clip(sampler.sample(len(labels), y=labels), 0, 1)
read = KNeighborsClassifier(5).fit(X, y).predict(Z)
print(
    f"a classifier reads {100 * (read == labels).mean():.0f} % of the new digits as what they were meant to be"
)

# %%
# Upper half: images of the data. Lower half: new ones.

rng = np.random.default_rng(0)
real = [X[rng.permutation(np.flatnonzero(y == k))[:4]] for k in range(10)]
new = [Z[labels == k][:4] for k in range(10)]
figure, axes = plt.subplots(2, 1, figsize=(7, 6), layout="constrained")
for axis, images, title in zip(axes, (real, new), ("data", "new")):
    cells = np.pad(np.reshape(images, (10, 4, 8, 8)), ((0, 0), (0, 0), (1, 1), (1, 1)))
    axis.imshow(cells.transpose(1, 2, 0, 3).reshape(40, 100), cmap="gray_r")
    axis.set(title=title, xticks=[], yticks=[])
plt.show()
