"""Generators: pushforward maps with parameters, the identity at the start, regressed on what a flow moves.

Beside them maps of manifolds: angles to points of a torus and back, and the nearest points of circle, torus, sphere and
simplex, ready for ``project=``.
"""

from __future__ import annotations

from gpukoop.maps.base import AbstractLinearMap, AbstractMap
from gpukoop.maps.features import KernelMap, RandomFeatureMap
from gpukoop.maps.manifolds import (
    angles,
    project_circle,
    project_simplex,
    project_sphere,
    project_torus,
    torus,
)
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
    "angles",
    "project_circle",
    "project_simplex",
    "project_sphere",
    "project_torus",
    "torus",
]
