"""A stand-in for CuPy that computes with NumPy and counts what a program would ask of a device.

How to use it::

    from device_counter import counted_device, counted_sums

    with counted_device() as cupy, counted_sums():     # ``import cupy`` finds the stand-in; both undo themselves
        X = cupy.asarray(numbers)
        with cupy.counting() as count:
            gk.Gaussian(1.0)(X, backend="numba-cuda") @ v
        count.kernels, count.syncs, count.copies, count.sums
        print(count)                                    # with the lines that synchronised and copied

======== ======================================================================================================
kernels  launches: ufuncs, reductions, indexing with arrays, fills, copies on the device, products of matrices
syncs    the host waits: ``float(x)``, ``bool(x)``, boolean masks, ``nonzero``, checked factorisations, ``x.get()``
copies   between host and device, either way: ``asarray`` of NumPy arrays and of numbers, ``x.get()``, lists as indices
sums     kernel sums, if :func:`counted_sums` replaces them (their own launches are bounded elsewhere)
======== ======================================================================================================

To count the launches of the real reductions instead, leave :func:`counted_sums` out and call ``cupy.note("kernel")``
where a launch would stand. What CuPy refuses is refused: NumPy arrays beside CuPy arrays, ``numpy.asarray`` of a CuPy array.
Composite calls are counted by estimates, :data:`COMPOSITE`; all others are one launch. A function under ``cupy.fuse``
is one launch, and sees variables that only know arithmetic, ufuncs and one final reduction. A stream under capture records; the
graph does the same again, into the same memory, as one launch, and what waits or copies is refused.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import inspect
import sys
import traceback
import types
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

TESTS = Path(__file__).parent
# Launches of one call, read from CuPy's source where it is more than one; library calls are estimates.
COMPOSITE = {
    "argsort": 3,
    "sort": 2,
    "var": 3,
    "std": 4,
    "concatenate": 2,
    "stack": 2,
    "hstack": 2,
    "nonzero": 4,
    "flatnonzero": 4,
    "argwhere": 4,
    "unique": 8,
    "quantile": 12,
    "median": 4,
    "partition": 4,
    "searchsorted": 1,
    "eye": 2,
    "diag": 2,
    "linalg.qr": 8,
    "linalg.eigh": 4,
    "linalg.svd": 6,
    "linalg.solve": 4,
    "linalg.inv": 4,
    "linalg.cholesky": 3,
    "linalg.norm": 2,
    "allclose": 4,
}
VIEWS = {"reshape", "ravel", "transpose", "broadcast_to", "moveaxis", "swapaxes", "expand_dims"}
VIEWS |= {"squeeze", "atleast_1d", "atleast_2d", "diagonal", "empty", "empty_like", "shape", "ndim"}
WAITS = {"nonzero", "flatnonzero", "argwhere", "unique", "allclose"}
# cuSOLVER's return code is read by the host unless cupyx.errstate(linalg="ignore") says not to.
CHECKED = {"qr", "eigh", "eigvalsh", "svd", "solve", "inv", "cholesky", "lstsq", "pinv"}
METHODS = (
    "sum max min mean var std any all argmax argmin prod cumsum trace dot argsort sort nonzero conj take "
    "partition clip round repeat searchsorted"
)


class Count:
    """What was asked of the device since it was made."""

    def __init__(self):
        self.kinds = collections.Counter()
        self.calls = collections.Counter()  # launches by name
        self.where = collections.Counter()  # (kind, file:line) of synchronisations and copies

    kernels = property(lambda self: self.kinds["kernel"])
    syncs = property(lambda self: self.kinds["sync"])
    copies = property(lambda self: self.kinds["copy"])
    sums = property(lambda self: self.kinds["sum"])

    def __str__(self):
        head = f"{self.kernels} kernels, {self.syncs} syncs, {self.copies} copies, {self.sums} sums"
        sites = [f"  {n:5d} {kind} at {site}" for (kind, site), n in self.where.most_common()]
        calls = ", ".join(f"{name} {n}" for name, n in self.calls.most_common())
        return "\n".join([head, *sites, f"  {calls}"])


@dataclass(frozen=True)
class _Ledger:
    counts: tuple[Count, ...] = ()
    checked: bool = True


_ledger = [_Ledger()]


def _site():
    for frame in reversed(traceback.extract_stack(limit=25)):
        path = Path(frame.filename)
        if TESTS not in path.parents and ("gpukoop" in path.parts or "kernels" in path.parts):
            return f"{path.parent.name}/{path.name}:{frame.lineno}"
    return "outside"


def note(kind, n=1, name=None):
    """Count ``n`` of a kind, "kernel", "sync", "copy" or "sum"."""
    if kind in ("sync", "copy"):
        _refused_in_capture(f"a {kind}")
    site = _site() if kind in ("sync", "copy") and _ledger[0].counts else None
    for count in _ledger[0].counts:
        count.kinds[kind] += n
        if name is not None:
            count.calls[name] += n
        if site is not None:
            count.where[kind, site] += n


def _launch(name):
    if name not in VIEWS:
        note("kernel", COMPOSITE.get(name, 1), name)


# What a stream under capture has been asked for: (function without arguments, its result), or None.
_tape: list[list | None] = [None]


def _recorded(function):
    """Return what a function gives; under capture it is computed, and computed again into the same memory by a replay."""
    result = function()
    if _tape[0] is not None:
        _tape[0].append((function, result))
    return result


def _overwrite(old, new):
    if isinstance(old, ndarray):
        if not np.shares_memory(old._host, new._host):
            np.copyto(old._host, new._host)
    elif isinstance(old, tuple | list):
        for a, b in zip(old, new, strict=True):
            _overwrite(a, b)


def _refused_in_capture(what):
    if _tape[0] is not None:
        raise RuntimeError(f"cudaErrorStreamCaptureUnsupported: {what} in a stream under capture")


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


@contextlib.contextmanager
def counting():
    """Count what happens inside."""
    before, count = _ledger[0], Count()
    _ledger[0] = replace(before, counts=(*before.counts, count))
    try:
        yield count
    finally:
        _ledger[0] = before


@contextlib.contextmanager
def quiet():
    """Count nothing of what happens inside: what runs on the device itself."""
    before = _ledger[0]
    _ledger[0] = _Ledger()
    try:
        yield
    finally:
        _ledger[0] = before


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


def _run(name, function, args, kwargs):
    _launch(name)

    def compute():
        with np.errstate(all="ignore"):
            found = function(*(host(a) for a in args), **{k: host(v) for k, v in kwargs.items()})
        return device(found)

    return _recorded(compute)


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
        result = _run(ufunc.__name__, lambda *a, **k: call(*a, **extra, **k), inputs, kwargs)
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
            _launch("getitem by arrays")
            at = self._key(key)
            return _recorded(lambda: device(self._host[at]))
        at = self._key(key)
        part = self._host[at]
        if isinstance(part, np.generic):  # one number is a view too
            part = self._host[(*(at if isinstance(at, tuple) else (at,)), ...)]
        return device(part)

    def __setitem__(self, key, value):
        _launch("setitem")
        at = self._key(key)

        def write():
            with np.errstate(all="ignore"):
                self._host[at] = host(value)

        _recorded(write)

    def astype(self, dtype, order="K", copy=True, **_):
        """Return it in another type."""
        if not copy and np.dtype(dtype) == self.dtype:
            return self
        return _run("astype", lambda a: a.astype(dtype, order=order), (self,), {})

    def copy(self, order="C"):
        """Return a copy on the device."""
        return _run("copy", lambda a: a.copy(order), (self,), {})

    def fill(self, value):
        """Fill it."""
        _launch("fill")
        _recorded(lambda: self._host.fill(value))

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
            _launch("copy")
            return _recorded(lambda: ndarray(function(self._host)))
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
        return _run(name, lambda a, *b, **k: getattr(a, name)(*b, **k), (self, *args), kwargs)

    return method


for _name in METHODS.split():
    setattr(ndarray, _name, _method(_name))
ndarray.__module__ = "cupy"


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


def _fuse(*args, **options):
    """Return a function that is one launch on arrays of the stand-in and itself on all others."""
    if not args:
        return lambda function: _fuse(function, **options)
    function = args[0]
    name = options.get("kernel_name", function.__name__)

    def fused(*inputs):
        if any(isinstance(i, np.ndarray) and i.ndim for i in inputs):
            if any(isinstance(i, ndarray) for i in inputs):
                raise TypeError("a fused function takes CuPy arrays or NumPy arrays, not both")
            return function(*inputs)
        if not any(isinstance(i, ndarray) for i in inputs):
            return function(*inputs)
        _launch(f"fused {name}")
        return _recorded(lambda: compute(inputs))

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


def _fused_call(function):
    """Return a function of the module as it works inside a fused function, and None outside."""

    def call(*args, **kwargs):
        if _fusing[0]:
            with np.errstate(all="ignore"):
                return Fused(function(*(_plain(a) for a in args), **kwargs))
        return None

    return call


# -- the modules --------------------------------------------------------------------------------
def _asarray(x, dtype=None, order=None, **_):
    if isinstance(x, ndarray):
        return x if dtype is None or np.dtype(dtype) == x.dtype else x.astype(dtype)
    if isinstance(x, list | tuple) and any(isinstance(i, ndarray) for i in x):
        return _run("stack", lambda *a: np.stack(a), tuple(x), {})
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
    fused = _fused_call(thing)

    def call(*args, **kwargs):
        found = fused(*args, **kwargs)
        if found is not None:
            return found
        if name in WAITS:
            note("sync")
        return _run(name, thing, args, kwargs)

    return call


def _linalg(name):
    if name.startswith("__"):
        raise AttributeError(name)
    thing = getattr(np.linalg, name)

    def call(*args, **kwargs):
        if name in CHECKED and _ledger[0].checked:
            note("sync")
        found = _run(f"linalg.{name}", thing, args, kwargs)
        return tuple(found) if isinstance(found, tuple) else found

    return call


@contextlib.contextmanager
def _errstate(*, linalg="raise", **_):
    before = _ledger[0]
    _ledger[0] = replace(before, checked=linalg != "ignore")
    try:
        yield
    finally:
        _ledger[0] = replace(before, counts=_ledger[0].counts)


def _scipy(module, name):
    return lambda *args, **kwargs: _run(name, getattr(module, name), args, kwargs)


class RawKernel:
    """A launch of source text: one of :data:`RAW`, by its name."""

    def __init__(self, code, name, **_):
        self._name = name

    def __call__(self, grid, block, args, **_):
        _launch(self._name)
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
        _tape[0] = []

    def end_capture(self):
        """Return what was recorded."""
        tape, _tape[0] = _tape[0], None
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
    cupy.ascontiguousarray, cupy.fuse = _ascontiguousarray, _fuse
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


def _on_host(x):
    return x._host if isinstance(x, ndarray) else x


# -- kernel sums --------------------------------------------------------------------------------
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

            return _recorded(lambda: device(compute())) if request.device != "cpu" else compute()

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
