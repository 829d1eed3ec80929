r"""Features in which a generator's particles and samples are compared: a flow of images sees shapes in place of pixels.

The velocity v lives in the space of the features :math:`\phi`, and the network is regressed on it through them,

.. math:: \tfrac{1}{2 b} \sum_i |\phi(G_{\theta_k}(y_i)) + h\, v(\phi(G_{\theta_k}(y_i))) - \phi(G_\theta(y_i))|^2 .

Several features make several spaces, each with a velocity of its own: the objective is the sum over them. A few features that matter
are then not drowned by the distances of thousands of pixels.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from gpukoop.generators.networks import library
from gpukoop.generators.samples import within

if TYPE_CHECKING:
    import torch

# Samples that go through the features at once.
BLOCK = 1_000


class Seen:
    """Features of points in the units of a network, side by side; each space in units of its own width over the samples.

    One space has unit mean variance, as the points of a network have; several have that of the largest in total, each of them, so
    that all have a say.

    Parameters
    ----------
    features : callable
        Tensor (b, ...) in the units and the shape of the data -> tensor (b, ...), or a tuple of such, differentiable.
    centre, width : array of shape (d,) and float
        Units of the network.
    shape : tuple
        Of a sample.
    device : torch.device

    Attributes
    ----------
    spaces : list of slice
        Columns of each space.
    width : float
        Unit of the first space in the units of the features.
    """

    def __init__(
        self, features: Any, centre: np.ndarray, width: float, shape: tuple[int, ...], device: Any
    ) -> None:
        torch = library()
        if not callable(features):
            raise TypeError(
                f"features is a {type(features).__name__}, expected a function of tensors or a torch.nn.Module"
            )
        self.features, self.shape, self.data_width = features, shape, width
        self.centre = torch.as_tensor(centre, dtype=torch.float32, device=device)
        self.units: list[float] = []
        self.spaces: list[slice] = []

    @property
    def width(self) -> float:
        """Return the unit of the first space, which lengths given by the user are divided by."""
        return self.units[0]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the features (b, p) of points (b, d)."""
        torch = library()
        parts = [
            part if unit == 1 else part / unit
            for part, unit in zip(self._parts(x), self.units, strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _parts(self, x: torch.Tensor) -> list[torch.Tensor]:
        torch = library()
        found = self.features((x * self.data_width + self.centre).unflatten(1, self.shape))
        parts = list(found) if isinstance(found, tuple | list) else [found]
        for part in parts:
            if not isinstance(part, torch.Tensor) or len(part) != len(x):
                raise TypeError(
                    "features returned something else than a tensor with a row for each sample, or a tuple of such"
                )
        if not parts:
            raise TypeError("features returned an empty tuple, expected at least one tensor")
        return [part.flatten(1) for part in parts]

    def of_samples(self, X: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
        """Return the features of all samples, and take their widths, within the classes, as units from now on."""
        torch = library()
        with torch.no_grad():
            blocks = [
                [part.cpu().numpy() for part in self._parts(self._there(X[i : i + BLOCK]))]
                for i in range(0, len(X), BLOCK)
            ]
        found = [np.concatenate(part).astype(np.float32) for part in zip(*blocks, strict=True)]
        wide = max(part.shape[1] for part in found)
        for part in found:
            width = float(np.sqrt(within(part, labels).var(axis=0, dtype=float).sum() / wide))
            if not 0 < width < np.inf:
                raise ValueError(
                    f"the features of the samples have the width {width}: no law can be learnt in them"
                )
            part /= np.float32(width)
            self.units.append(width)
        ends = np.cumsum([0, *(part.shape[1] for part in found)])
        self.spaces = [slice(int(a), int(b)) for a, b in itertools.pairwise(ends)]
        return np.concatenate(found, axis=1)

    def _there(self, X: np.ndarray) -> Any:
        return library().as_tensor(X, device=self.centre.device)
