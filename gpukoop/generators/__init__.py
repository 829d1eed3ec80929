"""Neural generators: networks that follow the package's flows, trained by PyTorch.

A network G carries latent points to samples. At every step the flow of an objective says where the generated points of a
batch should go, and the network is regressed on that (:mod:`.training`); the sums are the ones that move particles, read from
the tensors without a copy. PyTorch is an optional package (``pip install gpukoop[torch]``).
"""

from gpukoop.generators.generator import Generator
from gpukoop.generators.networks import convolutional, perceptron
from gpukoop.generators.objectives import OBJECTIVES

__all__ = ["OBJECTIVES", "Generator", "convolutional", "perceptron"]
