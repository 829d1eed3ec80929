"""gpukoop: lazy kernel sums between millions of points, their spectra, and the flows they drive.

Importing it touches no GPU and compiles nothing. Estimators and the rooms around them are imported when they are
first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from gpukoop.backends import backends
from gpukoop.config import use_backend
from gpukoop.kernels.formula.catalogue import (
    Energy,
    Gaussian,
    InverseMultiquadric,
    Laplace,
    Matern32,
    Matern52,
    RationalQuadratic,
    Riesz,
)
from gpukoop.operator import BackendError, KernelOperator

__version__ = "0.1.0"

_ESTIMATORS = ("KSWGD", "MMDFlow", "WassersteinFlow", "JKOFlow", "KoopmanSampler")
_ROOMS = (
    "cuda",
    "datasets",
    "distributed",
    "maps",
    "metrics",
    "plot",
    "sampler",
    "spectrum",
    "testing",
    "verdict",
)

__all__ = [
    "BackendError",
    "Energy",
    "Gaussian",
    "InverseMultiquadric",
    "KernelOperator",
    "Laplace",
    "Matern32",
    "Matern52",
    "RationalQuadratic",
    "Riesz",
    "backends",
    "diagnose",
    "use_backend",
    *_ESTIMATORS,
    *_ROOMS,
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"gpukoop.{name}")
    if name in _ESTIMATORS:
        return getattr(import_module("gpukoop.estimators"), name)
    if name == "diagnose":
        return import_module("gpukoop.verdict").diagnose
    raise AttributeError(f"module 'gpukoop' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
