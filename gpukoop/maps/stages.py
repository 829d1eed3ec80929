"""Stage-wise maps: each stage learns the displacement of a whole block of steps, the map is their composition."""

from __future__ import annotations

import copy
from typing import Any

from gpukoop.arrays import Array, namespace, points
from gpukoop.draws import check_count
from gpukoop.maps.base import AbstractLinearMap, AbstractMap


class StagewiseMap(AbstractMap):
    """Composition of maps of one kind, added one at a time: the published way to learn long flows.

    During training, particles move freely for ``block_size`` steps; then a fresh map is regressed on the displacement of
    the block and the particles are REPLACED by its output, so that errors show and later stages correct them.

    Parameters
    ----------
    base : RandomFeatureMap or KernelMap
        What a stage is; each stage is started at the particles of its block.
    block_size : int
        Steps of a stage.
    """

    def __init__(self, base: AbstractLinearMap, block_size: int = 10) -> None:
        self.base = base
        self.block_size = block_size

    stages: tuple[AbstractLinearMap, ...] = ()

    def start(self, Y: Any) -> StagewiseMap:
        """Return the identity: no stage yet."""
        native, _ = points(Y, "Y")
        if not isinstance(self.base, AbstractLinearMap):
            raise TypeError(
                f"base is {self.base!r}, expected RandomFeatureMap(...) or KernelMap(...)"
            )
        check_count(self.block_size, "block_size")
        other = copy.copy(self)
        other.stages = ()
        other.parameters = namespace(native).zeros((0, native.shape[1]), dtype=native.dtype)
        return other

    def __call__(self, Y: Any) -> Array:
        """Return the output of the last stage."""
        self._need_start()
        for stage in self.stages:
            Y = stage(Y)
        return Y

    def regress(self, Y: Array, targets: Array, persistence: float = 1) -> StagewiseMap:
        """Return the map with one more stage, from G(Y) to the targets."""
        from_here = self(Y)
        stage = self.base.start(from_here).regress(from_here, targets, persistence)
        other = copy.copy(self)
        other.stages = (*self.stages, stage)
        return other
