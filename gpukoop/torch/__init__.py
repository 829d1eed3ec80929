"""Kernel sums and distances that PyTorch differentiates: the fused sums of gpukoop behind ``torch.autograd.Function``.

========================= ===================================== ===================================
function                  value                                 differentiable in
========================= ===================================== ===================================
``product``               K @ v                                 points, weights and the scale
``mmd``                   maximum mean discrepancy              both clouds
``energy_distance``       its square for the kernel -|x - y|    both clouds
``sinkhorn_divergence``   debiased entropic transport           both clouds
``sliced_wasserstein``    mean over lines                       both clouds
========================= ===================================== ===================================

``NeuralDictionary`` is a small network trained by the variational score of pairs, for ``GeneratorEDMD`` and so for KSWGD.

Tensors are read through DLPack where they are; results and gradients are tensors on the same device. First derivatives
only. PyTorch is an optional package (``pip install gpukoop[torch]``): without it this room says so when it is used.
"""

from gpukoop.torch.dictionary import NeuralDictionary
from gpukoop.torch.distances import (
    energy_distance,
    mmd,
    sinkhorn_divergence,
    sliced_wasserstein,
)
from gpukoop.torch.sums import product

__all__ = [
    "NeuralDictionary",
    "energy_distance",
    "mmd",
    "product",
    "sinkhorn_divergence",
    "sliced_wasserstein",
]
