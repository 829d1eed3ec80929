"""Generators: pushforward maps with parameters, the identity at the start, regressed on what a flow moves."""

from __future__ import annotations

from gpukoop.maps.base import AbstractLinearMap, AbstractMap
from gpukoop.maps.features import KernelMap, RandomFeatureMap
from gpukoop.maps.modules import CallableMap, TorchMap
from gpukoop.maps.stages import StagewiseMap

__all__ = [
    "AbstractLinearMap",
    "AbstractMap",
    "CallableMap",
    "KernelMap",
    "RandomFeatureMap",
    "StagewiseMap",
    "TorchMap",
]
