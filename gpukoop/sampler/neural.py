"""Networks of learned lifts: a perceptron for coordinates, convolutions for images. Training: :mod:`gpukoop.sampler.encoding`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, final

import numpy as np

from gpukoop.draws import check_count
from gpukoop.sampler.encoding import AbstractNeuralFeatures, host, library

# Channels at half and at a quarter of the side of an image, and sides of the filters.
CHANNELS, SIDE = (16, 32), 4


def silu(a: Any) -> tuple[Any, Any]:
    r"""Return :math:`a\, \sigma(a)` and its slope :math:`\sigma (1 + a (1 - \sigma))`."""
    gate = library().sigmoid(a)
    return a * gate, gate * (1 + a * (1 - gate))


def _drawn(source: Any, dtype: Any, *sizes: int, inputs: int) -> Any:
    """Return normal numbers of the variance 1 / inputs."""
    return library().randn(*sizes, generator=source, dtype=dtype) / inputs**0.5


@final
class NeuralFeatures(AbstractNeuralFeatures):
    """Features e(x, t) of a network with two hidden layers; pass it as ``dictionary=`` after :meth:`train`.

    Parameters
    ----------
    n_coordinates : int
        d.
    n_features : int
        M.
    width : int
        Of the hidden layers.
    random_state : int
        Seed of weights and batches.

    Attributes
    ----------
    losses : dict of lists
        One number for each step and loss.
    operator, decoder : arrays of shape (M, M) and (M, d)
        A and d as trained; zero before.

    Notes
    -----
    As a dictionary it differs from the published method in what follows training: A and the decoder are solved for, in closed form,
    with the features fixed. The decoder is linear. Runs on the CPU, float64.

    References
    ----------
    .. [1] E. Turan et al., Unfolding Generative Flows with Koopman Operators, arXiv 2506.22304.
    """

    def __init__(
        self, n_coordinates: int, n_features: int = 32, *, width: int = 64, random_state: int = 0
    ) -> None:
        torch = library()
        super().__init__(n_coordinates, n_features, random_state)
        check_count(width, "width")
        # A generator of its own: the process-wide stream of torch stays as it is.
        source = torch.Generator().manual_seed(random_state)
        d, M = self.n_coordinates, self.n_features

        def layer(rows: int, columns: int) -> list[Any]:
            W = _drawn(source, torch.float64, rows, columns, inputs=rows)
            return [W, torch.zeros(columns, dtype=torch.float64)]

        self.weights = layer(d + 1, width) + layer(width, width) + layer(width, M)
        self.linear = torch.zeros(M, d, dtype=torch.float64)

    @property
    def decoder(self) -> np.ndarray:
        """Return the matrix of the decoder, (M, d)."""
        return host(self.linear)

    def _parameters(self) -> list[Any]:
        return [*self.weights, self.linear]

    def _encode(self, z: Any, zdot: Any = None) -> Any:
        # Differs from torch.func.jvp in compiling nothing.
        h, rate, W = z, zdot, self.weights
        for i in (0, 2):
            a = h @ W[i] + W[i + 1]
            h, slope = silu(a)
            if rate is not None:
                rate = (rate @ W[i]) * slope
        e = h @ W[4] + W[5]
        return e if rate is None else (e, rate @ W[4])

    def _decode(self, e: Any) -> Any:
        return e @ self.linear

    def _pictures(self, rows: np.ndarray) -> np.ndarray:
        return rows @ self.decoder


@final
class ImageFeatures(AbstractNeuralFeatures):
    r"""Features e(x, t) of images by two strided convolutions, with a decoder of two transposed ones.

    Parameters
    ----------
    shape : (height, width) or (height, width, colours)
        Sides are multiples of 4. Points are flattened images, colours last.
    n_features : int
        M.
    width : int
        Of the dense layer between convolutions and features, of encoder and decoder.
    random_state : int
        Seed of weights and batches.
    device : str
        Where it is trained and evaluated, in float32.

    Attributes
    ----------
    losses : dict of lists
        One number for each step and loss.
    operator : array of shape (M, M)
        A as trained; zero before.

    Notes
    -----
    The time is one more plane of the image. The decoder is not linear: its picture of a mode w is the derivative of d along w at
    the mean feature of the data: to first order what is edited is a sum of such pictures. As a dictionary of the sampler the decoder
    is solved for anew, and linear.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        n_features: int = 64,
        *,
        width: int = 128,
        random_state: int = 0,
        device: str = "cpu",
    ) -> None:
        torch = library()
        if len(shape) not in (2, 3):
            raise ValueError(
                f"shape is {shape}, expected (height, width) or (height, width, colours)"
            )
        height, wide, colours = (check_count(side, "shape") for side in (*shape, 1)[:3])
        if height % 4 or wide % 4:
            raise ValueError(
                f"images are {height} x {wide}: two halvings need sides that are multiples of 4; pad them"
            )
        super().__init__(height * wide * colours, n_features, random_state)
        check_count(width, "width")
        self.planes = colours, height, wide
        source = torch.Generator().manual_seed(random_state)
        half, quarter = CHANNELS
        self.small = quarter, height // 4, wide // 4
        flat, M = math.prod(self.small), self.n_features

        def layer(*sizes: int, inputs: int, outputs: int) -> list[Any]:
            W = _drawn(source, torch.float32, *sizes, inputs=inputs)
            return [W.to(device), torch.zeros(outputs, device=device)]

        # A transposed convolution of stride 2 adds a quarter of its filter into each pixel.
        cells, spread = SIDE * SIDE, SIDE * SIDE // 4
        into = colours + 1
        self.encoder = [
            *layer(half, into, SIDE, SIDE, inputs=into * cells, outputs=half),
            *layer(quarter, half, SIDE, SIDE, inputs=half * cells, outputs=quarter),
            *layer(flat, width, inputs=flat, outputs=width),
            *layer(width, M, inputs=width, outputs=M),
        ]
        self.decoder = [
            *layer(M, width, inputs=M, outputs=width),
            *layer(width, flat, inputs=width, outputs=flat),
            *layer(quarter, half, SIDE, SIDE, inputs=quarter * spread, outputs=half),
            *layer(half, colours, SIDE, SIDE, inputs=half * spread, outputs=colours),
        ]

    def _parameters(self) -> list[Any]:
        return [*self.encoder, *self.decoder]

    def _planes(self, z: Any) -> Any:
        """Return rows (x, t) as images (n, colours + 1, height, width), the last plane constant."""
        colours, height, wide = self.planes
        x = z[:, :-1].unflatten(1, (height, wide, colours)).permute(0, 3, 1, 2)
        return library().cat([x, z[:, -1, None, None, None].expand(-1, 1, height, wide)], dim=1)

    def _encode(self, z: Any, zdot: Any = None) -> Any:
        convolve = library().nn.functional.conv2d
        W, b = self.encoder[::2], self.encoder[1::2]
        strided = lambda W: lambda h: convolve(h, W, stride=2, padding=1)
        dense = lambda W: lambda h: h.flatten(1) @ W
        # All layers are linear up to their biases, which a derivative leaves out.
        layers: list[Callable[[Any], Any]] = [strided(W[0]), strided(W[1]), dense(W[2])]
        h, rate = self._planes(z), None if zdot is None else self._planes(zdot)
        for layer, bias in zip(layers, b, strict=False):
            a = layer(h)
            h, slope = silu(a + bias.reshape(-1, *[1] * (a.ndim - 2)))
            rate = None if rate is None else layer(rate) * slope
        e = h @ W[3] + b[3]
        return e if rate is None else (e, rate @ W[3])

    def _decode(self, e: Any) -> Any:
        torch = library()
        spread = torch.nn.functional.conv_transpose2d
        W, b = self.decoder[::2], self.decoder[1::2]
        h = silu(e @ W[0] + b[0])[0]
        h = silu(h @ W[1] + b[1])[0].unflatten(1, self.small)
        h = silu(spread(h, W[2], b[2], stride=2, padding=1))[0]
        return spread(h, W[3], b[3], stride=2, padding=1).permute(0, 2, 3, 1).flatten(1)

    def _pictures(self, rows: np.ndarray) -> np.ndarray:
        torch = library()
        there = self._tensor(np.broadcast_to(self.mean, rows.shape))
        parts = [
            torch.autograd.functional.jvp(self._decode, there, self._tensor(part))[1]
            for part in (rows.real, rows.imag)
        ]
        return host(parts[0]) + 1j * host(parts[1])
