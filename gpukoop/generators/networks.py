"""Default networks: a perceptron for tables, transposed convolutions for images. Any module (b, latent) -> (b, d) will do."""

from __future__ import annotations

import itertools
import math
from importlib import import_module
from typing import TYPE_CHECKING, Any

from gpukoop.draws import check_count

if TYPE_CHECKING:
    import torch

HIDDEN, LAYERS = 256, 3
# Channels at half of the side of an image.
CHANNELS = 8
# Smallest share of its range at which a pixel starts.
STEEP = 0.02


def library() -> Any:
    """Return the torch module, or say how to install it."""
    try:
        return import_module("torch")
    except ImportError as error:
        raise ImportError(
            "a neural generator needs PyTorch, which is not installed: pip install gpukoop[torch]; without it, "
            "gpukoop.maps has generators in closed form"
        ) from error


def check_network(network: torch.nn.Module) -> None:
    """Raise unless the module has parameters that can be learnt."""
    torch = library()
    parameters = list(network.parameters())
    if any(isinstance(p, torch.nn.parameter.UninitializedParameter) for p in parameters):
        raise ValueError(
            "network has lazy layers without sizes yet: call it on one batch before it is passed"
        )
    if not any(p.requires_grad for p in parameters):
        raise ValueError(
            "network has no parameter that can be learnt: all are frozen, or there are none"
        )


def checked_output(found: Any, n: int, d: int) -> Any:
    """Return what a network made of n latent points; raise unless it is a row of d numbers for each."""
    torch = library()
    if not isinstance(found, torch.Tensor):
        raise TypeError(
            f"network returned a {type(found).__name__}, expected a tensor of shape ({n}, {d})"
        )
    if tuple(found.shape) != (n, d):
        raise ValueError(
            f"network returned shape {tuple(found.shape)} for {n} points, expected ({n}, {d}): images flattened, colours last"
        )
    return found


def perceptron(
    n_inputs: int, n_outputs: int, *, hidden: int = HIDDEN, layers: int = LAYERS
) -> torch.nn.Module:
    """Return a fully connected network with SiLU between its layers.

    Parameters
    ----------
    n_inputs, n_outputs : int
        Latent dimension (and classes), and d.
    hidden, layers : int
        Width and number of the hidden layers.

    Returns
    -------
    torch.nn.Module
    """
    nn = library().nn
    given = {"n_inputs": n_inputs, "n_outputs": n_outputs, "hidden": hidden, "layers": layers}
    for name, value in given.items():
        check_count(value, name)
    sizes = [n_inputs, *[hidden] * layers]
    parts: list[Any] = []
    for wide, narrow in itertools.pairwise(sizes):
        parts += [nn.Linear(wide, narrow), nn.SiLU()]
    return nn.Sequential(*parts, nn.Linear(sizes[-1], n_outputs))


def convolutional(
    n_inputs: int,
    shape: tuple[int, ...],
    *,
    hidden: int = 2 * HIDDEN,
    channels: int = CHANNELS,
) -> torch.nn.Module:
    """Return a decoder to images: two linear layers to half of the side, one transposed convolution.

    Parameters
    ----------
    n_inputs : int
        Latent dimension (and classes).
    shape : (height, width) or (height, width, colours)
        Even sides.
    hidden : int
        Width of the first layer.
    channels : int
        At half of the side.

    Returns
    -------
    torch.nn.Module
        (b, n_inputs) -> (b, height * width * colours), colours last, as rows of flattened images are.

    Notes
    -----
    On a CPU a second convolution on the way up costs three times as much a step and brings less (bench/results.md). No batch
    normalization: a generated point must not depend on the others of its batch, or the targets of a flow would belong to another
    function than the one that is regressed.
    """
    nn = library().nn
    check_count(n_inputs, "n_inputs")
    height, width, *rest = (check_count(side, "shape") for side in shape)
    colours = rest[0] if rest else 1
    if height % 2 or width % 2:
        raise ValueError(
            f"images are {height} x {width}: the default network needs even sides; pad them, or pass network="
        )
    check_count(hidden, "hidden")
    small = (check_count(channels, "channels"), height // 2, width // 2)
    return nn.Sequential(
        nn.Linear(n_inputs, hidden),
        nn.SiLU(),
        nn.Linear(hidden, math.prod(small)),
        nn.SiLU(),
        nn.Unflatten(1, small),
        nn.ConvTranspose2d(channels, colours, 4, stride=2, padding=1),
        _colours_last(nn),
    )


def bounded(network: torch.nn.Module, lowest: Any, highest: Any) -> torch.nn.Module:
    r"""Return a network whose outputs stay between two bounds, as the pixels of an image do.

    .. math:: a + (b - a)\, \sigma(G(y) + c)

    with c such that G = 0 gives 0, the mean of the samples in the units of a generator.

    Parameters
    ----------
    network : torch.nn.Module
    lowest, highest : arrays of shape (d,)
        a and b; around zero.
    """
    torch = library()
    low, high = (torch.as_tensor(x, dtype=torch.float32) for x in (lowest, highest))
    # Pixels that are hardly ever lit start near their bound, but where the sigmoid still has a slope.
    start = torch.logit((-low / (high - low)).clamp(STEEP, 1 - STEEP))
    return _bounded()(network, low, high - low, start)


def _bounded() -> Any:
    torch = library()
    module: Any = torch.nn.Module

    class Bounded(module):
        """A network inside its bounds, which are kept with its parameters."""

        def __init__(self, network: Any, low: Any, extent: Any, start: Any) -> None:
            super().__init__()
            self.network = network
            self.register_buffer("low", low)
            self.register_buffer("extent", extent)
            self.register_buffer("start", start)

        def forward(self, y: Any) -> Any:
            return self.low + self.extent * torch.sigmoid(self.network(y) + self.start)

    return Bounded


def _colours_last(nn: Any) -> Any:
    module: Any = nn.Module

    class ColoursLast(module):
        """(b, c, h, w) -> (b, h w c)."""

        def forward(self, x: Any) -> Any:
            return x.permute(0, 2, 3, 1).flatten(1)

    return ColoursLast()
