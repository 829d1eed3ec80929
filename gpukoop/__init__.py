"""gpukoop: lazy kernel sums between millions of points, their spectra, and the flows they drive.

Importing it touches no GPU and compiles nothing. Estimators and the rooms around them are imported when they are
first used.
"""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

from gpukoop.algebra import Block, Identity
from gpukoop.backends import backends
from gpukoop.config import use_backend
from gpukoop.kernels.formula.catalogue import (
    Constant,
    Energy,
    Gaussian,
    InverseMultiquadric,
    Laplace,
    Matern32,
    Matern52,
    RationalQuadratic,
    Riesz,
)
from gpukoop.kernels.formula.placed import Cosine, Periodic, Polynomial
from gpukoop.operator import BackendError, KernelOperator

if TYPE_CHECKING:  # what __getattr__ finds at run time, for type checkers and editors
    from gpukoop import (
        baselines,
        cuda,
        datasets,
        distributed,
        generators,
        interop,
        kernels,
        kinetics,
        linear,
        maps,
        metrics,
        plot,
        sampler,
        spectrum,
        testing,
        torch,
        verdict,
    )
    from gpukoop.estimators import KSWGD, JKOFlow, KoopmanSampler, MMDFlow, WassersteinFlow
    from gpukoop.generators import Generator
    from gpukoop.linear import logdet, scale_derivative, solve, trace
    from gpukoop.spectrum import DiffusionMap, GeneratorEDMD, KernelEDMD
    from gpukoop.synthesis import synthesize
    from gpukoop.verdict import diagnose

__version__ = "0.2.0"

# They ask Python to be told of its end, which it refuses once the main thread is over: a first fit in a function of atexit
# would fail, since scikit-learn imports them.
with suppress(ImportError):  # where there are no processes
    import_module("concurrent.futures.process")
    import_module("concurrent.futures.thread")

# Where the names live that are imported when they are first used.
_HOMES = {
    "DiffusionMap": "spectrum",
    "Generator": "generators",
    "GeneratorEDMD": "spectrum",
    "JKOFlow": "estimators",
    "KSWGD": "estimators",
    "KernelEDMD": "spectrum",
    "KoopmanSampler": "estimators",
    "MMDFlow": "estimators",
    "WassersteinFlow": "estimators",
    "diagnose": "verdict",
    "logdet": "linear",
    "scale_derivative": "linear",
    "solve": "linear",
    "synthesize": "synthesis",
    "trace": "linear",
}
_ROOMS = (
    "baselines",
    "cuda",
    "datasets",
    "distributed",
    "generators",
    "interop",
    "kernels",
    "kinetics",
    "linear",
    "maps",
    "metrics",
    "plot",
    "sampler",
    "spectrum",
    "testing",
    "torch",
    "verdict",
)

__all__ = [
    "KSWGD",
    "BackendError",
    "Block",
    "Constant",
    "Cosine",
    "DiffusionMap",
    "Energy",
    "Gaussian",
    "Generator",
    "GeneratorEDMD",
    "Identity",
    "InverseMultiquadric",
    "JKOFlow",
    "KernelEDMD",
    "KernelOperator",
    "KoopmanSampler",
    "Laplace",
    "MMDFlow",
    "Matern32",
    "Matern52",
    "Periodic",
    "Polynomial",
    "RationalQuadratic",
    "Riesz",
    "WassersteinFlow",
    "backends",
    "baselines",
    "cuda",
    "datasets",
    "diagnose",
    "distributed",
    "generators",
    "interop",
    "kernels",
    "kinetics",
    "linear",
    "logdet",
    "maps",
    "metrics",
    "plot",
    "sampler",
    "scale_derivative",
    "solve",
    "spectrum",
    "synthesize",
    "testing",
    "torch",
    "trace",
    "use_backend",
    "verdict",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"gpukoop.{name}")
    if name in _HOMES:
        return getattr(import_module(f"gpukoop.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'gpukoop' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
