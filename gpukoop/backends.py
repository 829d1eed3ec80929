"""The backends: what each can do, why it cannot, and what it costs.

A backend is one object. ``missing()`` says why it cannot run on this machine, ``refuses(request)`` why it cannot run
this request, both in words or None, and ``seconds(request)`` what it would cost. To add one, write a reduce
file in ``kernels/``, an object here and a row in :data:`RATES`.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np

from gpukoop.kernels.arrays import Array
from gpukoop.kernels.compiled import import_whole
from gpukoop.kernels.cuda.matrix.precision import PRECISIONS, no_matrix_units
from gpukoop.kernels.cuda.memory import Memory as CUDAMemory
from gpukoop.kernels.fourier import nufft
from gpukoop.kernels.fourier.boxes import Box
from gpukoop.kernels.fourier.memory import Memory as FourierMemory
from gpukoop.kernels.request import Clouds, Request


@dataclass(frozen=True)
class Rate:
    """Seconds of a request: ``start + pairs * (pair + d * feature + t * column) * factor``."""

    start: float
    pair: float
    feature: float
    column: float
    gradient: float = 2.0
    logsumexp: float = 1.5
    float64: float = 2.0


# Rewritten by bench/calibrate.py, which dates what it measured: AMD EPYC (AVX-512), 2 cores, shared with other work. The
# GPU row is no measurement but the issue-slot bound of the compiled code for one H100 at 85 percent.
RATES: dict[str, Rate] = {
    "numpy": Rate(0.00014, 1.8e-08, 5.5e-10, 3.6e-10, 2.3, 1, 1),  # 2026-11-25
    "numba-cpu": Rate(4.8e-05, 8.8e-11, 1.3e-11, 1.9e-11, 2.3, 2, 3.9),  # 2026-11-25
    "numba-cuda": Rate(3e-4, 3e-13, 7e-14, 1.4e-13, 1.7, 1.2, 8.0),
    "keops": Rate(0.00017, 4.7e-09, 2.7e-10, 1.1e-10, 2, 1.2, 1),  # 2026-11-25
}
# Fourier sums do not cost pairs: their row is kernels/fourier/cost.RATE.
# Host to device and back, bytes a second: PCIe 4 x16 at the usual efficiency.
COPY_RATE = 1.2e10


class AbstractBackend(ABC):
    """One way to compute the reductions."""

    name: str
    home: str  # the module with its reduce
    precisions: tuple[str, ...] = ("fp32",)
    writes_code: bool = False
    several_ways: bool = False
    several_costs: bool = False

    @abstractmethod
    def missing(self) -> str | None:
        """Return why this machine cannot run it, or None."""

    @abstractmethod
    def refuses(self, request: Request) -> str | None:
        """Return why it cannot run this request, or None."""

    def reason(self, request: Request) -> str | None:
        """Return why it cannot run this request here, or None: the machine, the precision, the request."""
        if (absent := self.missing()) is not None or request.precision in self.precisions:
            return absent or self.refuses(request)
        return no_matrix_units(self.name, request.precision)

    def module(self) -> ModuleType:
        """Return the reduce module; imported when first asked for."""
        return import_whole(self.home)

    def seconds(self, request: Request) -> float:
        """Return the estimated cost in seconds, copies included, first-call compilation not."""
        rate = RATES[self.name]
        pair = rate.pair + request.d * rate.feature + request.t * rate.column
        if request.operation.slope:
            pair *= rate.gradient
        if request.operation.log:
            pair *= rate.logsumexp
        if request.dtype == "float64":
            pair *= rate.float64
        if self.several_costs:
            pair *= self.module().share(request)
        return rate.start + request.n * request.m * pair + self.copies(request)

    def copies(self, request: Request) -> float:
        """Return seconds of moving points and results between host and device."""
        return 0.0

    def error_estimate(self, clouds: Clouds) -> float | None:
        """Return this backend's own estimate of the error of its last sums over these points; exact sums have none."""
        return None

    def missed(self, request: Request, estimate: float | None) -> str | None:
        """Return in words that an error estimate is above ``tol``, or None."""
        if estimate is None or request.tol is None or estimate <= request.tol:
            return None
        return (
            f"{self.name} did not reach tol={request.tol:g} in {request}: the error is estimated at "
            f"{estimate:.2g} relative to sum |v| k in the worst row"
        )

    def run(self, request: Request, V: Array) -> Any:
        """Run the reduction on the points of the request and weights (m, t), all native."""
        X, Y = points_of(request)
        weights = V[:, 0] if request.operation.log else V
        return self.module().reduce(
            request.kernel, request.operation, X, Y, weights, **self.options(request)
        )

    def warm_up(self, requests: list[Request]) -> None:  # noqa: B027 - most have nothing to do
        """Compile what requests will need, where that takes long; run nothing."""

    def way(self, request: Request) -> str:
        """Return in words which of its ways a request takes; "" where it has one."""
        return str(self.module().way(request)) if self.several_ways else ""

    def options(self, request: Request) -> dict[str, Any]:
        """Return the keywords of its ``reduce``."""
        return {"tol": request.tol}

    def code(self, *request: Any) -> str | None:
        """Return the text of what runs for (kernel, operation, d, t, dtype); None where no text is written."""
        return str(self.module().code(*request)) if self.writes_code else None


def points_of(request: Request) -> tuple[Array, Array]:
    """Return targets and sources of a request that is to run."""
    if request.clouds is None:
        raise ValueError(f"{request} has no points: it can be asked about, not run")
    return request.clouds.X, request.clouds.Y


def _missing(module: Callable[[], ModuleType], package: str) -> str | None:
    """Return what a reduce module says about this machine, or that its package does not import."""
    try:
        return module().missing()
    except ImportError as error:
        return f"{package} cannot be imported: {error}"


class NumPyBackend(AbstractBackend):
    """Row blocks in NumPy, or in CuPy for CuPy arrays: the reference."""

    name = "numpy"
    home = "gpukoop.kernels.reference"

    def missing(self) -> str | None:
        """Return None: NumPy is always there."""
        return None

    def refuses(self, request: Request) -> str | None:
        """Return None: the reference runs everything."""
        return None

    def run(self, request: Request, V: Array) -> Any:
        """Run it; a result beyond the range of its dtype is inf without a warning, as in compiled code."""
        with np.errstate(over="ignore"):
            return super().run(request, V)


class NumbaCPUBackend(AbstractBackend):
    """Parallel SIMD loops compiled by Numba."""

    name = "numba-cpu"
    home = "gpukoop.kernels.cpu.reduce"
    writes_code = several_ways = True

    def missing(self) -> str | None:
        """Return why Numba is absent, or None."""
        found = importlib.util.find_spec("numba")
        return None if found else "numba is not installed (pip install numba)"

    def refuses(self, request: Request) -> str | None:
        """Refuse device arrays: a round trip a call would hide where the time goes."""
        if request.device != "cpu":
            return "the points are on a GPU: move them to the host first (X.get())"
        return None


class NumbaCUDABackend(AbstractBackend):
    """Tiled CUDA code generated for Numba."""

    name = "numba-cuda"
    home = "gpukoop.kernels.cuda.reduce"
    writes_code = several_ways = several_costs = True
    precisions = PRECISIONS

    @lru_cache(maxsize=1)  # noqa: B019 - one object for the life of the process
    def missing(self) -> str | None:
        """Return why CUDA cannot be used, or None; creates no context."""
        return _missing(self.module, "numba-cuda")

    def refuses(self, request: Request) -> str | None:
        """Refuse TF32 where it would be ignored; host arrays are copied to the device."""
        cublas = import_whole("gpukoop.kernels.cuda.matrix.cublas")
        return cublas.refuses(request.precision, request.dtype, request.d)

    def options(self, request: Request) -> dict[str, Any]:
        """Return them; what was measured of the points, and the path that was taken, are remembered."""
        memory = None if request.clouds is None else request.clouds.memory(CUDAMemory)
        return {"tol": request.tol, "precision": request.precision, "memory": memory}

    def warm_up(self, requests: list[Request]) -> None:
        """Compile their programs side by side."""
        self.module().warm_up(requests)

    def copies(self, request: Request) -> float:
        """Return the transfers of host arrays."""
        size = 4 if request.dtype == "float32" else 8
        results = request.operation.numbers(request.d, request.t)
        numbers = (request.n + request.m) * request.d + request.m * request.t + request.n * results
        return size * numbers / COPY_RATE if request.device == "cpu" else 0.0


# KeOps unrolls them: beyond, its compilers do not end.
MOST_KEOPS_RESULTS = 512


class KeOpsBackend(AbstractBackend):
    """KeOps formulas."""

    name = "keops"
    home = "gpukoop.kernels.keops.reduce"
    writes_code = True

    @lru_cache(maxsize=1)  # noqa: B019 - one object for the life of the process
    def missing(self) -> str | None:
        """Return why KeOps cannot be used, or None."""
        return _missing(self.module, "pykeops")

    def refuses(self, request: Request) -> str | None:
        """Refuse device arrays and requests whose first call would not end."""
        if request.device != "cpu":
            return "KeOps takes NumPy arrays, not CuPy's: use numba-cuda, or move the points to the host"
        if request.operation.numbers(request.d, request.t) > MOST_KEOPS_RESULTS:
            return f"KeOps unrolls columns and features in its code: more than {MOST_KEOPS_RESULTS} results a target do not compile"
        return None

    def seconds(self, request: Request) -> float:
        """Return the cost; a new formula costs some 10 s to compile, so it is never picked for speed alone."""
        return super().seconds(request) + 10.0


class FourierBackend(AbstractBackend):
    """Near-linear sums to a tolerance: nonuniform transforms for d <= 3, slices to one dimension above.

    Above three dimensions, and for the energy kernel, the error bar of the slices is reported but rarely small: the cost
    table sends work there for loose tolerances only, ``backend="fourier"`` whenever it is asked to.
    """

    name = "fourier"
    home = "gpukoop.kernels.fourier.reduce"

    def missing(self) -> str | None:
        """Return why FINUFFT is absent, or None."""
        return _missing(lambda: nufft, "finufft")

    def refuses(self, request: Request) -> str | None:
        """Refuse exact sums, log-sum-exps, kernels without a transform and scales too small for the box."""
        if request.device != "cpu":
            absent = nufft.missing("cupy")
            if absent:
                return absent
        return self.module().refuses(request, self._boxes(request))

    def seconds(self, request: Request) -> float:
        """Return the cost: points, modes of the cheapest box, and the exact rows and columns."""
        return self.module().seconds(request, self._boxes(request))

    def _boxes(self, request: Request) -> tuple[Box, ...]:
        """Return where the points lie; () as long as there are none, or no box is needed."""
        if request.clouds is None:
            return ()
        memory, points = request.clouds.memory(FourierMemory), points_of(request)
        return memory.candidates(request.kernel, *points, request.tol)

    def error_estimate(self, clouds: Clouds) -> float | None:
        """Return the estimate that every Fourier sum makes of its error."""
        return clouds.memory(FourierMemory).error_estimate

    def options(self, request: Request) -> dict[str, Any]:
        """Return them; boxes, plans, angles and the error estimate are remembered."""
        memory = None if request.clouds is None else request.clouds.memory(FourierMemory)
        return {"tol": request.tol, "memory": memory}


BACKENDS: dict[str, AbstractBackend] = {
    b.name: b
    for b in (
        NumPyBackend(),
        NumbaCPUBackend(),
        NumbaCUDABackend(),
        KeOpsBackend(),
        FourierBackend(),
    )
}


def check_name(name: object, where: str) -> str:
    """Return a backend name or "auto"; raise on anything else."""
    if isinstance(name, str) and (name in BACKENDS or name == "auto"):
        return name
    raise ValueError(f"{where}: unknown backend {name!r}; known are {', '.join(BACKENDS)} and auto")


def backends() -> dict[str, str | None]:
    """Return every backend with the reason why this machine cannot run it, None if it can.

    Examples
    --------
    >>> import gpukoop as gk
    >>> gk.backends()["numpy"] is None
    True
    """
    return {name: backend.missing() for name, backend in BACKENDS.items()}
