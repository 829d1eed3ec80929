"""A stand-in for CuPy: it refuses to be mixed with NumPy arrays or converted silently, as CuPy's arrays do.

It proves that arrays stay in their library from input to result; it proves nothing about CuPy's own functions or devices.
"""

import contextlib
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from device_counter import RAW, pinned


class Device(contextlib.nullcontext):
    id = 0


class StandIn(np.lib.mixins.NDArrayOperatorsMixin):
    """A NumPy array behind a type of the module "cupy"."""

    device = Device()

    def __init__(self, a):
        self._a = a

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return wrapped(getattr(self._a, name))

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed")

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        return wrapped(getattr(ufunc, method))(*inputs, **options)

    def __len__(self):
        return len(self._a)

    def __bool__(self):
        return bool(self._a)

    def __getitem__(self, key):
        return wrapped(self._a[getattr(key, "_a", key)])  # CuPy takes NumPy arrays as indices

    def __setitem__(self, key, value):
        wrapped(self._a.__setitem__)(key, value)

    def get(self):
        return self._a


StandIn.__module__ = "cupy"


def inside(x):
    if isinstance(x, (list, tuple)):
        return type(x)(map(inside, x))
    if isinstance(x, np.ndarray) and x.ndim:
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    return x._a if isinstance(x, StandIn) else x


def wrapped(x):
    """Return a function of NumPy as one on stand-ins, and an array as a stand-in."""
    if isinstance(x, np.ndarray):
        return StandIn(x)
    if not callable(x) or isinstance(x, type):
        return x
    return lambda *args, **options: wrapped(
        x(*map(inside, args), **{k: inside(v) for k, v in options.items()})
    )


@pytest.fixture
def cupy(monkeypatch):
    module = ModuleType("cupy")
    module.__getattr__ = lambda name: wrapped(getattr(np, name))
    module.asarray = lambda x, **options: StandIn(np.array(getattr(x, "_a", x), **options))
    module.RawKernel = lambda code, name: lambda grid, block, args: RAW[name](*map(inside, args))
    module.cuda = SimpleNamespace(alloc_pinned_memory=pinned)
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module
