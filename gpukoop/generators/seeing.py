r"""Features in which a generator's particles and samples are compared: a flow of images sees shapes in place of pixels.

The velocity v lives in the space of the features :math:`\phi`, and the network is regressed on it through them,

.. math:: \tfrac{1}{2 b} \sum_i |\phi(G_{\theta_k}(y_i)) + h\, v(\phi(G_{\theta_k}(y_i))) - \phi(G_\theta(y_i))|^2 .
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gpukoop.generators.networks import library

if TYPE_CHECKING:
    import torch

# Samples that go through the features at once.
BLOCK = 1_000


class Seen:
    """Features of points in the units of a network, themselves in units of their width over the samples.

    Parameters
    ----------
    features : callable
        Tensor (b, ...) in the units and the shape of the data -> tensor (b, ...), differentiable.
    centre, width : array of shape (d,) and float
        Units of the network.
    shape : tuple
        Of a sample.
    device : torch.device
    """

    def __init__(
        self, features: Any, centre: np.ndarray, width: float, shape: tuple[int, ...], device: Any
    ) -> None:
        torch = library()
        if not callable(features):
            raise TypeError(
                f"features is a {type(features).__name__}, expected a function of tensors or a torch.nn.Module"
            )
        self.features, self.shape, self.data_width, self.width = features, shape, width, 1.0
        self.centre = torch.as_tensor(centre, dtype=torch.float32, device=device)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the features (b, p) of points (b, d)."""
        torch = library()
        found = self.features((x * self.data_width + self.centre).unflatten(1, self.shape))
        if not isinstance(found, torch.Tensor) or len(found) != len(x):
            raise TypeError(
                "features returned something else than a tensor with a row for each sample"
            )
        return found.flatten(1) / self.width

    def of_samples(self, X: np.ndarray) -> np.ndarray:
        """Return the features of all samples, and take their width as the unit from now on."""
        torch = library()
        with torch.no_grad():
            parts = [
                self(torch.as_tensor(X[i : i + BLOCK], device=self.centre.device)).cpu().numpy()
                for i in range(0, len(X), BLOCK)
            ]
        found = np.concatenate(parts).astype(np.float32)
        self.width = float(np.sqrt(found.var(axis=0, dtype=float).mean()))
        if not 0 < self.width < np.inf:
            raise ValueError(
                f"the features of the samples have the width {self.width}: no law can be learnt in them"
            )
        return found / np.float32(self.width)
