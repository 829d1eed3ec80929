"""
Carrying the colours of one picture to another
==============================================

The colours of a picture are a cloud of points. A sliced Wasserstein flow moves the cloud of one picture onto that of
another, and each pixel takes the colour where its point ends.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_sample_image

import gpukoop as gk

flower = load_sample_image("flower.jpg")[::4, ::4] / 255.0
temple = load_sample_image("china.jpg")[::4, ::4] / 255.0
pixels, target = temple.reshape(-1, 3), flower.reshape(-1, 3)

flow = gk.WassersteinFlow("sliced", step_size=1.0, n_iter=30, n_projections=9, random_state=0)
flow.fit(target)
moved = np.clip(flow.transport(pixels), 0, 1).reshape(temple.shape)

before = gk.metrics.sliced_wasserstein(pixels, target)
after = gk.metrics.sliced_wasserstein(moved.reshape(-1, 3), target)
print(f"{len(pixels):,} colours, sliced W2 before {before:.3f}, after {after:.4f}")

figure, axes = plt.subplots(1, 3, figsize=(11, 2.9), layout="constrained")
for axis, image, title in zip(
    axes, (temple, flower, moved), ("picture", "colours to take", "picture in these colours")
):
    axis.imshow(image)
    axis.set(title=title, xticks=[], yticks=[])
plt.show()
