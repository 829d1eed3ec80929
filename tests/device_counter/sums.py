"""Kernel sums on the stand-in: computed by the host and counted, or recorded as the launches of a device."""

from __future__ import annotations

import contextlib
import inspect
from dataclasses import replace

from device_counter.array import device, ndarray
from device_counter.ledger import note, quiet, recorded
from device_counter.module import counted_device


def _on_host(x):
    return x._host if isinstance(x, ndarray) else x


@contextlib.contextmanager
def counted_sums():
    """Let the host compute what ``backend="numba-cuda"`` is asked for on the stand-in: one "sum" each, nothing else."""
    from gpukoop.backends import BACKENDS, AbstractBackend

    real = BACKENDS["numba-cuda"]
    signature = inspect.signature(AbstractBackend.run)

    class Sums(AbstractBackend):
        name = "numba-cuda"
        precisions = real.precisions

        def missing(self):
            return None

        def refuses(self, request):
            return None

        def module(self):
            return BACKENDS["numpy"].module()

        def run(self, request, *args, **kwargs):
            bound = signature.bind(self, request, *args, **kwargs).arguments
            note("sum", name=f"sum {getattr(request, 'op', None) or request.operation}")
            here = replace(request, device="cpu", library="numpy", precision="fp32")
            chosen = BACKENDS["numba-cpu" if request.n * request.m > 2e5 else "numpy"]

            def compute():
                with quiet():
                    if "X" in bound:
                        X, Y, V = (_on_host(bound[name]) for name in "XYV")
                        Y = X if bound["X"] is bound["Y"] else Y
                        return chosen.run(here, X, Y, V, {})
                    clouds = request.clouds  # the points travel with the request
                    X, Y = _on_host(clouds.X), _on_host(clouds.Y)
                    same = type(clouds)(X, X if clouds.X is clouds.Y else Y)
                    return chosen.run(replace(here, clouds=same), _on_host(bound["V"]))

            return recorded(lambda: device(compute())) if request.device != "cpu" else compute()

    BACKENDS["numba-cuda"] = Sums()
    try:
        yield
    finally:
        BACKENDS["numba-cuda"] = real


# -- launches ------------------------------------------------------------------------------------
class Launches(list):
    """Launches in the place of a device's: (name, grid, block, arguments), not computed."""

    def function(self, name):
        """Return what stands for a loaded function."""
        return lambda grid, block, args: self.append((name, grid, block, args))


@contextlib.contextmanager
def recorded_launches():
    """Put the stand-in in place with every program loaded, and return it and what numba-cuda launches on it.

    A multiprocessor holds five blocks. ``backend="numba-cuda"`` is usable; results are empty arrays.
    """
    from unittest import mock

    from gpukoop.backends import BACKENDS
    from gpukoop.kernels.cuda import engine

    launches = Launches()
    of_engine = {
        "function": lambda self, program: launches.function(program.name),
        "loaded": lambda self, program: True,
        "capacity": lambda self, program: 660,
        "multiprocessors": lambda self: 132,
    }
    with (
        counted_device() as cupy,
        mock.patch.multiple(engine.CuPyEngine, **of_engine),
        mock.patch.object(type(BACKENDS["numba-cuda"]), "missing", return_value=None),
    ):
        engine.cupy_engine.cache_clear()
        yield cupy, launches
    engine.cupy_engine.cache_clear()
