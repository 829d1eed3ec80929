"""What a generator is: a map with parameters, the identity at the start, that is regressed on moved targets."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from typing import Any, TypeVar

import numpy as np

from gpukoop.arrays import Array, like, namespace, points
from gpukoop.blas import one_thread
from gpukoop.maps.regression import check_persistence, landweber, ridge
from gpukoop.versions import Persistent

# Feature values held at once when a map is evaluated: 32 MB in float64.
BLOCK = 2**22

M = TypeVar("M", bound="AbstractMap")


class AbstractMap(Persistent, ABC):
    """A map G of latent points (n, d) to points (n, d) with an array of parameters.

    Maps are values: ``start``, ``with_parameters`` and ``regress`` return a new map and leave this one alone.
    """

    parameters: Array | None = None

    @abstractmethod
    def start(self: M, Y: Array) -> M:
        """Return the identity map, prepared for latent points like Y."""

    @abstractmethod
    def __call__(self, Y: Array) -> Array:
        """Return G(Y), (n, d)."""

    @abstractmethod
    def regress(self: M, Y: Array, targets: Array, persistence: float = 1) -> M:
        """Return the map after ``persistence`` gradient steps on |targets - G(Y)|^2 / (2 b), Y and targets frozen.

        ``persistence=inf`` is the limit, ridge regression of the parameters' change.
        """

    def with_parameters(self: M, parameters: Array) -> M:
        """Return the map with other parameters."""
        other = copy.copy(self)
        other.parameters = parameters
        return other

    def _need_start(self) -> Array:
        if self.parameters is None:
            raise ValueError(
                f"{type(self).__name__} has no parameters yet: call start(Y) with latent points first"
            )
        return self.parameters


class AbstractLinearMap(AbstractMap):
    """G(y) = y + features(y) W: linear in its parameters W (q, d), zero at the start.

    Subclasses store ``reg`` and ``learning_rate``, prepare themselves in :meth:`start` and say what the features are.
    """

    reg: float
    learning_rate: float | None

    @abstractmethod
    def features(self, Y: Array) -> Array:
        """Return the features of latent points, (n, q)."""

    def _prepared(self, Y: Any) -> Array:
        native, _ = points(Y, "Y")
        parameters = self._need_start()
        if native.shape[1] != parameters.shape[1]:
            raise ValueError(
                f"Y has {native.shape[1]} features, the map was started with {parameters.shape[1]}: latent "
                "and data dimension agree"
            )
        return native

    def __call__(self, Y: Any) -> Array:
        """Return G(Y), in row blocks: O(block x q) memory."""
        native = self._prepared(Y)
        W = self._need_start()
        xp = namespace(native)
        size = max(1, BLOCK // len(W))
        with one_thread(min(size, len(native)) * len(W)):
            moved = [
                like(self.features(native[i : i + size]) @ W, native)
                for i in range(0, len(native), size)
            ]
        _, home = points(Y, "Y")
        return home.restore(native + xp.concatenate(moved))

    def regress(self, Y: Any, targets: Any, persistence: float = 1) -> Any:
        """Return the map after ``persistence`` Landweber steps, or the ridge limit for infinity.

        Notes
        -----
        Cost: K b q d, or b q min(b, q) for the limit. ``reg`` bounds the limit only.
        """
        native = self._prepared(Y)
        wanted = check_targets(targets, native)
        K = check_persistence(persistence)
        check_map_numbers(self.reg, self.learning_rate)  # a map's attributes may be set at any time
        Phi = self.features(native)
        W = self._need_start()
        with one_thread(Phi.size):
            R = wanted - native - Phi @ W
            change = (
                ridge(Phi, R, self.reg)
                if math.isinf(K)
                else landweber(Phi, R, int(K), self.learning_rate)
            )
        return self.with_parameters(W + like(change, W))


def check_targets(targets: Any, Y: Array) -> Array:
    """Return where points are wanted in the library of Y, or raise unless there is one target for each."""
    native, _ = points(targets, "targets", n_features=Y.shape[1], other="Y")
    if len(native) != len(Y):
        raise ValueError(
            f"targets has {len(native)} rows, Y has {len(Y)}: one target for each point"
        )
    return like(native, Y)


def check_map_numbers(reg: Any, learning_rate: Any) -> None:
    """Raise unless reg >= 0 and learning_rate is None or > 0."""
    if isinstance(reg, bool) or not isinstance(reg, int | float) or not 0 <= reg < math.inf:
        raise ValueError(
            f"reg must be a finite number >= 0, got {reg!r}: the ridge of persistence=inf"
        )
    rate = learning_rate
    if rate is not None and (
        isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < math.inf
    ):
        raise ValueError(f"learning_rate must be None or a finite number > 0, got {rate!r}")


def zeros(n_features: int, Y: Array) -> Array:
    """Return the parameters of the identity, (q, d)."""
    return namespace(Y).zeros((n_features, Y.shape[1]), dtype=Y.dtype)


def affine(Y: Array, rest: Array) -> Array:
    """Return [y, 1, rest]."""
    xp = namespace(Y)
    return xp.concatenate([Y, xp.ones((len(Y), 1), dtype=Y.dtype), rest], axis=1)


def check_scale(scale: Any) -> Any:
    """Return a scale that is a positive number or "median"."""
    number = isinstance(scale, int | float | np.floating) and not isinstance(scale, bool)
    if scale == "median" or (number and 0 < scale < math.inf):
        return scale
    raise ValueError(f"scale must be a finite number > 0 or 'median', got {scale!r}")
