"""The modules that stand where ``import cupy`` and ``import cupyx`` look."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import types
from dataclasses import replace

import numpy as np

from device_counter import ledger
from device_counter.array import Device, Graph, host, ndarray, run
from device_counter.fuse import fuse, fused_call
from device_counter.ledger import CHECKED, WAITS, counting, launch, note, quiet


def _asarray(x, dtype=None, order=None, **_):
    if isinstance(x, ndarray):
        return x if dtype is None or np.dtype(dtype) == x.dtype else x.astype(dtype)
    if isinstance(x, list | tuple) and any(isinstance(i, ndarray) for i in x):
        return run("stack", lambda *a: np.stack(a), tuple(x), {})
    note("copy")
    return ndarray(np.array(x, dtype=dtype, order=order if order in ("C", "F") else None))


def _ascontiguousarray(x, dtype=None):
    if not isinstance(x, ndarray):
        return _asarray(x, dtype)
    result = np.ascontiguousarray(x._host, dtype=dtype)
    return x if result is x._host else x._same(lambda a: np.ascontiguousarray(a, dtype=dtype))


def _attribute(name):
    if name.startswith("__"):
        raise AttributeError(name)
    thing = getattr(np, name)
    if isinstance(thing, type) or not callable(thing) or name in ("result_type", "errstate"):
        return thing
    fused = fused_call(thing)

    def call(*args, **kwargs):
        found = fused(*args, **kwargs)
        if found is not None:
            return found
        if name in WAITS:
            note("sync")
        return run(name, thing, args, kwargs)

    return call


def _linalg(name):
    if name.startswith("__"):
        raise AttributeError(name)
    thing = getattr(np.linalg, name)

    def call(*args, **kwargs):
        if name in CHECKED and ledger.current[0].checked:
            note("sync")
        found = run(f"linalg.{name}", thing, args, kwargs)
        return tuple(found) if isinstance(found, tuple) else found

    return call


@contextlib.contextmanager
def _errstate(*, linalg="raise", **_):
    before = ledger.current[0]
    ledger.current[0] = replace(before, checked=linalg != "ignore")
    try:
        yield
    finally:
        ledger.current[0] = replace(before, counts=ledger.current[0].counts)


def _scipy(module, name):
    return lambda *args, **kwargs: run(name, getattr(module, name), args, kwargs)


class RawKernel:
    """A launch of source text: one of :data:`RAW`, by its name."""

    def __init__(self, code, name, **_):
        self._name = name

    def __call__(self, grid, block, args, **_):
        launch(self._name)
        RAW[self._name](*(host(a) for a in args))


def _outside(x, size, lowest, highest, bell, call):
    seen = x.ravel(order="K")[: int(size)]
    if not np.all((lowest <= seen) & (seen <= highest)):
        ctypes.c_int64.from_address(int(bell)).value = int(call)


# What gpukoop writes in CUDA C, in NumPy.
RAW = {"outside": _outside, "spin": lambda cycles: None}


def pinned(size):
    """Return memory of the host with an address."""
    memory = (ctypes.c_char * size)()
    memory.ptr = ctypes.addressof(memory)
    return memory


class Stream(contextlib.nullcontext):
    """The only stream."""

    ptr = 0
    null: Stream

    def __init__(self, *_, **__):
        super().__init__()

    def begin_capture(self, mode=None):
        """Record from here on; what is asked for is computed once, which a device would not do."""
        ledger.tape[0] = []

    def end_capture(self):
        """Return what was recorded."""
        tape, ledger.tape[0] = ledger.tape[0], None
        return Graph(tape)

    # Nothing waits here: the moment between a launch and its end is for a device to show.
    done = False

    def synchronize(self):
        """Wait."""
        note("sync")


class Pool:
    """The memory pool, which lends nothing."""

    def used_bytes(self):
        """Return none."""
        return 0

    def free_all_blocks(self):
        """Free none."""


class MemoryPool:
    """The only memory."""

    malloc = None


def _modules(graphs):
    import scipy.linalg
    import scipy.special

    cupy = types.ModuleType("cupy")
    cupy.ndarray, cupy.__version__, cupy.__getattr__ = ndarray, "14.0", _attribute
    cupy.asarray = cupy.array = _asarray
    cupy.ascontiguousarray, cupy.fuse = _ascontiguousarray, fuse
    cupy.asnumpy = lambda x: x.get() if isinstance(x, ndarray) else np.asarray(x)
    cupy.ndim = lambda x: x.ndim if hasattr(x, "ndim") else np.ndim(x)
    cupy.shape = lambda x: x.shape if hasattr(x, "shape") else np.shape(x)
    cupy.counting, cupy.note, cupy.quiet = counting, note, quiet
    cupy.linalg = types.ModuleType("cupy.linalg")
    cupy.linalg.__getattr__ = _linalg
    cupy.cuda = types.ModuleType("cupy.cuda")
    cupy.cuda.get_current_stream = lambda *_: Stream()
    cupy.cuda.get_device_id = lambda: 0
    cupy.cuda.Device, cupy.cuda.Stream = Device, Stream
    if graphs:
        cupy.cuda.Graph, cupy.cuda.MemoryPool = Graph, MemoryPool
        cupy.cuda.using_allocator = lambda allocator: contextlib.nullcontext()
    cupy.cuda.alloc_pinned_memory, cupy.RawKernel = pinned, RawKernel
    cupy.get_default_memory_pool = Pool
    cupyx, scipy_ = types.ModuleType("cupyx"), types.ModuleType("cupyx.scipy")
    linalg, special = (
        types.ModuleType("cupyx.scipy.linalg"),
        types.ModuleType("cupyx.scipy.special"),
    )
    cupyx.errstate, cupyx.scipy = _errstate, scipy_
    scipy_.linalg, scipy_.special = linalg, special
    linalg.__getattr__ = lambda name: _scipy(scipy.linalg, name)
    special.__getattr__ = lambda name: _scipy(scipy.special, name)
    modules = (cupy, cupy.linalg, cupy.cuda, cupyx, scipy_, linalg, special)
    return {m.__name__: m for m in modules}


@contextlib.contextmanager
def counted_device(graphs=False):
    """Put the stand-in where ``import cupy`` looks, and return it; without ``graphs`` it is a CuPy that records none."""
    modules = _modules(graphs)
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield modules["cupy"]
    finally:
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module
