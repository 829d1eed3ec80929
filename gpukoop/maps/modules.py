"""Thin adapters: any callable with parameters, and any ``torch.nn.Module``, as a generator."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gpukoop.arrays import Array, like, points, to_host
from gpukoop.checks import real_array
from gpukoop.draws import check_positive
from gpukoop.maps.base import AbstractMap, check_targets
from gpukoop.maps.regression import check_persistence


def _steps(persistence: float) -> int:
    K = check_persistence(persistence)
    if math.isinf(K):
        raise ValueError(
            "persistence=inf is a linear regression: use RandomFeatureMap or KernelMap, or a finite persistence"
        )
    return int(K)


class CallableMap(AbstractMap):
    r"""Generator from a function of parameters and points, with its vector-Jacobian product.

    Parameters
    ----------
    function : callable
        ``function(parameters, Y) -> (n, d)``.
    pullback : callable
        ``pullback(parameters, Y, R)`` -> :math:`\sum_i J_i^\top r_i` in the shape of the parameters.
    initial : array
        Parameters at the start; the map should be near the identity there.
    learning_rate : float
        Of the gradient steps.
    """

    def __init__(
        self,
        function: Callable[[Any, Any], Any],
        pullback: Callable[[Any, Any, Any], Any],
        initial: Any,
        learning_rate: float = 0.1,
    ) -> None:
        self.function = function
        self.pullback = pullback
        self.initial = initial
        self.learning_rate = learning_rate

    def start(self, Y: Any) -> CallableMap:
        """Return the map with the initial parameters."""
        native, _ = points(Y, "Y")
        check_positive(self.learning_rate, "learning_rate")
        initial = real_array(self.initial, "initial")
        if not initial.size:
            raise ValueError(
                "initial is empty, expected the parameters of the function at the start"
            )
        return self.with_parameters(like(initial, native))

    def __call__(self, Y: Any) -> Array:
        """Return function(parameters, Y)."""
        return self.function(self._need_start(), Y)

    def regress(self, Y: Array, targets: Array, persistence: float = 1) -> CallableMap:
        """Return the map after ``persistence`` gradient steps on |targets - G(Y)|^2 / (2 b)."""
        theta = self._need_start()
        check_positive(self.learning_rate, "learning_rate")
        Y, _ = points(Y, "Y")
        targets = check_targets(targets, Y)
        for _ in range(_steps(persistence)):
            residual = targets - self.function(theta, Y)
            theta = theta + self.learning_rate * self.pullback(theta, Y, residual) / len(Y)
        return self.with_parameters(theta)


class TorchMap(AbstractMap):
    """Generator G(y) = y + N(y) - N_0(y) from a ``torch.nn.Module`` N, so that any network starts at the identity.

    Parameters
    ----------
    module : torch.nn.Module
        (n, d) -> (n, d); copied, never changed.
    optimizer : callable, optional
        ``optimizer(parameters) -> torch.optim.Optimizer``; plain gradient descent by default. It is made anew at every
        regression, since a map is its parameters and nothing else.
    learning_rate : float
        Of the default optimizer.

    Notes
    -----
    Points go in and out through DLPack; parameters are one vector, so that checkpoints hold them.
    """

    def __init__(
        self,
        module: Any,
        optimizer: Callable[[Any], Any] | None = None,
        learning_rate: float = 0.1,
    ) -> None:
        self.module = module
        self.optimizer = optimizer
        self.learning_rate = learning_rate

    def start(self, Y: Any) -> TorchMap:
        """Return the identity; the network as it is becomes its own offset."""
        points(Y, "Y")
        check_positive(self.learning_rate, "learning_rate")
        other = copy.copy(self)
        other.module = copy.deepcopy(self.module)
        return other.with_parameters(self._vector(self.module))

    def __call__(self, Y: Any) -> Array:
        """Return G(Y) in the library and dtype of Y."""
        import torch

        native, home = points(Y, "Y")
        with torch.no_grad():
            moved = self._loaded()(self._tensor(native)) - self.module(self._tensor(native))
        return home.restore(native + like(moved.cpu().numpy(), native))

    def regress(self, Y: Any, targets: Any, persistence: float = 1) -> TorchMap:
        """Return the map after ``persistence`` optimizer steps on |targets - G(Y)|^2 / (2 b)."""
        import torch

        native, _ = points(Y, "Y")
        check_positive(self.learning_rate, "learning_rate")
        y = self._tensor(native)
        with torch.no_grad():
            wanted = self._tensor(check_targets(targets, native)) - y + self.module(y)
        network = self._loaded()
        parameters = list(network.parameters())
        make = self.optimizer
        if self.learning_rate > torch.finfo(y.dtype).max:
            raise ValueError(
                f"learning_rate is {self.learning_rate:g}, beyond the {y.dtype} of the module"
            )
        optimizer = (
            torch.optim.SGD(parameters, self.learning_rate) if make is None else make(parameters)
        )
        for _ in range(_steps(persistence)):
            optimizer.zero_grad()
            loss = ((wanted - network(y)) ** 2).sum() / (2 * len(y))
            loss.backward()
            optimizer.step()
        found = self._vector(network)
        if not np.isfinite(found).all():
            raise ValueError(
                f"the regression of {len(y)} targets left the finite numbers: lower learning_rate, or rescale the points"
            )
        return self.with_parameters(found)

    def _loaded(self) -> Any:
        """Return a copy of the network with this map's parameters."""
        import torch

        network = copy.deepcopy(self.module)
        # A copy: steps of an optimizer write into the parameters, which are this map's own.
        vector = torch.as_tensor(to_host(self._need_start()).copy())
        torch.nn.utils.vector_to_parameters(
            vector.to(next(network.parameters())), network.parameters()
        )
        return network

    def _vector(self, network: Any) -> np.ndarray:
        import torch

        return (
            torch.nn.utils.parameters_to_vector(network.parameters()).detach().cpu().numpy().copy()
        )

    def _tensor(self, Y: Array) -> Any:
        import torch

        first = next(self.module.parameters())
        tensor = torch.as_tensor(to_host(Y)).to(device=first.device, dtype=first.dtype)
        if not bool(tensor.isfinite().all()):
            raise ValueError(
                f"points reach {abs(to_host(Y)).max():.3g}, beyond the {first.dtype} of the module: rescale them, or pass "
                "module.double()"
            )
        return tensor
