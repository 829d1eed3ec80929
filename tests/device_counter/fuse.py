"""Functions under ``cupy.fuse``: one launch each, on arrays of which they see one element."""

from __future__ import annotations

import numpy as np

from device_counter.array import device, ndarray
from device_counter.ledger import launch, recorded


class Fused:
    """What a function under ``cupy.fuse`` sees: no index, no shape, nothing that is not one number an element."""

    def __init__(self, values):
        self._values = values

    def astype(self, dtype):
        """Return it in another type."""
        return Fused(self._values.astype(dtype))

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        if method != "__call__" or kwargs:
            raise TypeError(f"a fused function cannot use {ufunc.__name__}.{method} with {kwargs}")
        with np.errstate(all="ignore"):
            return Fused(ufunc(*(_plain(i) for i in inputs)))


def _plain(x):
    return x._values if isinstance(x, Fused) else x


Fused = type("Fused", (Fused, np.lib.mixins.NDArrayOperatorsMixin), {"__module__": "cupy"})


def fuse(*args, **options):
    """Return a function that is one launch on arrays of the stand-in and itself on all others."""
    if not args:
        return lambda function: fuse(function, **options)
    function = args[0]
    name = options.get("kernel_name", function.__name__)

    def fused(*inputs):
        if any(isinstance(i, np.ndarray) and i.ndim for i in inputs):
            if any(isinstance(i, ndarray) for i in inputs):
                raise TypeError("a fused function takes CuPy arrays or NumPy arrays, not both")
            return function(*inputs)
        if not any(isinstance(i, ndarray) for i in inputs):
            return function(*inputs)
        launch(f"fused {name}")
        return recorded(lambda: compute(inputs))

    def compute(inputs):
        _fusing[0] = True
        try:
            found = function(*(Fused(i._host) if isinstance(i, ndarray) else i for i in inputs))
        finally:
            _fusing[0] = False
        if isinstance(found, tuple):
            return tuple(device(np.array(_plain(f))) for f in found)
        return device(np.array(_plain(found)))

    return fused


_fusing = [False]


def fused_call(function):
    """Return a function of the module as it works inside a fused function, and None outside."""

    def call(*args, **kwargs):
        if _fusing[0]:
            with np.errstate(all="ignore"):
                return Fused(function(*(_plain(a) for a in args), **kwargs))
        return None

    return call
