"""Arrays of the stand-in: they compute with NumPy, and each call is a launch in the ledger."""

from __future__ import annotations

import contextlib
import sys
import types

import numpy as np

from device_counter.ledger import WAITS, launch, note, quiet, recorded

METHODS = (
    "sum max min mean var std any all argmax argmin prod cumsum trace dot argsort sort nonzero conj take "
    "partition clip round repeat searchsorted"
)


def host(x):
    """Return what stands on the stand-in's device as NumPy, uncounted."""
    if isinstance(x, ndarray):
        return x._host
    if isinstance(x, tuple | list):
        return type(x)(host(i) for i in x)
    if isinstance(x, slice):
        return slice(host(x.start), host(x.stop), host(x.step))
    if isinstance(x, np.ndarray) and x.ndim:
        raise TypeError(f"Unsupported type {type(x)}")
    return x


def device(r):
    """Return NumPy's results as arrays of the stand-in, uncounted."""
    if isinstance(r, np.ndarray):
        return ndarray(r)
    if isinstance(r, np.generic):
        return ndarray(np.asarray(r))
    if isinstance(r, tuple):
        return tuple(device(i) for i in r)
    if isinstance(r, list):
        return [device(i) for i in r]
    return r


def run(name, function, args, kwargs):
    launch(name)

    def compute():
        with np.errstate(all="ignore"):
            found = function(*(host(a) for a in args), **{k: host(v) for k, v in kwargs.items()})
        return device(found)

    return recorded(compute)


class Device(contextlib.nullcontext):
    """The only device."""

    id = 0
    compute_capability = "90"

    def __init__(self, *_):
        super().__init__()

    def __eq__(self, other):
        return isinstance(other, Device)

    __hash__ = None

    def synchronize(self):
        """Wait."""
        note("sync")


class ndarray(np.lib.mixins.NDArrayOperatorsMixin):
    """An array of the stand-in."""

    __array_priority__ = 100
    __hash__ = None

    def __init__(self, values):
        self._host = values

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Use `.get()`.")

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **kwargs):
        extra = {} if out is None else {"out": host(tuple(out))}
        call = getattr(ufunc, method)
        result = run(ufunc.__name__, lambda *a, **k: call(*a, **extra, **k), inputs, kwargs)
        return result if out is None else out[0]

    def __array_function__(self, function, types_, args, kwargs):
        if not all(issubclass(t, ndarray) for t in types_):
            return NotImplemented
        return getattr(sys.modules["cupy"], function.__name__)(*args, **kwargs)

    shape = property(lambda self: self._host.shape)
    ndim = property(lambda self: self._host.ndim)
    dtype = property(lambda self: self._host.dtype)
    size = property(lambda self: self._host.size)
    nbytes = property(lambda self: self._host.nbytes)
    itemsize = property(lambda self: self._host.itemsize)
    strides = property(lambda self: self._host.strides)
    flags = property(lambda self: self._host.flags)
    device = property(lambda self: Device())
    data = property(lambda self: types.SimpleNamespace(ptr=self._host.ctypes.data))
    T = property(lambda self: ndarray(self._host.T))
    real = property(lambda self: ndarray(self._host.real))
    imag = property(lambda self: ndarray(self._host.imag))

    def __len__(self):
        return len(self._host)

    def get(self, *_, **__):
        """Return it as a NumPy array."""
        note("sync")
        note("copy")
        return self._host.copy()

    def item(self, *args):
        """Return one number."""
        note("sync")
        return self._host.item(*args)

    def tolist(self):
        """Return its numbers."""
        return self.get().tolist()

    def __bool__(self):
        note("sync")
        return bool(self._host)

    def __float__(self):
        note("sync")
        return float(self._host)

    def __int__(self):
        note("sync")
        return int(self._host)

    def __index__(self):
        note("sync")
        return self._host.__index__()

    def __iter__(self):
        return (device(i) for i in self._host)

    def _key(self, key):
        if isinstance(key, tuple):
            return tuple(self._key(i) for i in key)
        if isinstance(key, ndarray):
            if key.dtype == bool:
                note("sync")
            return key._host
        if isinstance(key, np.ndarray | list):
            note("copy")
            if np.asarray(key).dtype == bool:
                note("sync")
        return key

    def __getitem__(self, key):
        if _by_arrays(key):
            launch("getitem by arrays")
            at = self._key(key)
            return recorded(lambda: device(self._host[at]))
        at = self._key(key)
        part = self._host[at]
        if isinstance(part, np.generic):  # one number is a view too
            part = self._host[(*(at if isinstance(at, tuple) else (at,)), ...)]
        return device(part)

    def __setitem__(self, key, value):
        launch("setitem")
        at = self._key(key)

        def write():
            with np.errstate(all="ignore"):
                self._host[at] = host(value)

        recorded(write)

    def astype(self, dtype, order="K", copy=True, **_):
        """Return it in another type."""
        if not copy and np.dtype(dtype) == self.dtype:
            return self
        return run("astype", lambda a: a.astype(dtype, order=order), (self,), {})

    def copy(self, order="C"):
        """Return a copy on the device."""
        return run("copy", lambda a: a.copy(order), (self,), {})

    def fill(self, value):
        """Fill it."""
        launch("fill")
        recorded(lambda: self._host.fill(value))

    def view(self, *args):
        """Return the same bytes."""
        return ndarray(self._host.view(*args))

    def reshape(self, *shape, **kwargs):
        """Return another shape, copied where it must be."""
        return self._same(lambda a: a.reshape(*shape, **kwargs))

    def ravel(self, *args):
        """Return it flat, copied where it must be."""
        return self._same(lambda a: a.ravel(*args))

    def _same(self, function):
        result = function(self._host)
        if result.size and not np.shares_memory(result, self._host):
            launch("copy")
            return recorded(lambda: ndarray(function(self._host)))
        return ndarray(result)

    def transpose(self, *axes):
        """Return other axes."""
        return ndarray(self._host.transpose(*axes))

    def squeeze(self, *axes):
        """Return fewer axes."""
        return ndarray(self._host.squeeze(*axes))

    def swapaxes(self, *axes):
        """Return other axes."""
        return ndarray(self._host.swapaxes(*axes))


def _by_arrays(key):
    keys = key if isinstance(key, tuple) else (key,)
    return any(isinstance(k, ndarray | np.ndarray | list) for k in keys)


def _method(name):
    def method(self, *args, **kwargs):
        if name in WAITS:
            note("sync")
        return run(name, lambda a, *b, **k: getattr(a, name)(*b, **k), (self, *args), kwargs)

    return method


for _name in METHODS.split():
    setattr(ndarray, _name, _method(_name))
ndarray.__module__ = "cupy"


def _overwrite(old, new):
    if isinstance(old, ndarray):
        if not np.shares_memory(old._host, new._host):
            np.copyto(old._host, new._host)
    elif isinstance(old, tuple | list):
        for a, b in zip(old, new, strict=True):
            _overwrite(a, b)


class Graph:
    """What was recorded."""

    def __init__(self, tape):
        self.tape = tape

    def launch(self, stream=None):
        """Do all of it again: one launch."""
        note("kernel", name="graph")
        with quiet():
            for function, result in self.tape:
                _overwrite(result, function())
