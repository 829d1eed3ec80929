"""Arrays of other libraries: what came in, is it valid, and how results go back.

Outputs follow inputs: NumPy in, NumPy out; CuPy in, CuPy out on the same device; anything else that speaks
DLPack comes back as it came. Inside gpukoop there are two libraries only, NumPy on the host and CuPy
on a device, and ``namespace(x)`` says which one ``x`` belongs to.
"""

from __future__ import annotations

import contextlib
import logging
import numbers
import os
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpukoop import alarm
from gpukoop.kernels import arrays as ground
from gpukoop.kernels.arrays import Array, is_cupy, namespace

logger = logging.getLogger("gpukoop")

LARGEST_WHOLE = 2**53  # beyond, not every whole number is a float64
_DLPACK_CUDA = (2, 13)  # kDLCUDA and kDLCUDAManaged


@dataclass(frozen=True)
class Home:
    """Where an array lives: its library, its device, and the way back there."""

    library: str
    device: str
    restore: Callable[[Array], Array]


def same_memory(a: Array, b: Array) -> bool:
    """Return whether two arrays are one: the same memory, read in the same way."""
    if a is b:
        return True
    first, second = (
        getattr(x, "__cuda_array_interface__", None) or x.__array_interface__ for x in (a, b)
    )
    return all(first[k] == second[k] for k in ("data", "shape", "strides", "typestr"))


def to_host(x: Array) -> np.ndarray:
    """Return ``x`` as a NumPy array; the device is waited for, so what it has to say about earlier arrays is heard."""
    host = ground.to_host(x)
    if is_cupy(x):
        alarm.listen()
    return host


def like(x: Array, reference: Array) -> Array:
    """Return ``x`` in the library, device and dtype of ``reference``."""
    if is_cupy(x) and is_cupy(reference) and x.dtype == reference.dtype:
        if x.device == reference.device:
            return x  # on the path of every call
    native, _ = native_array(x, "array")
    if is_cupy(reference):
        import cupy

        with reference.device:
            return cupy.asarray(native, dtype=reference.dtype)
    return np.ascontiguousarray(to_host(native), dtype=reference.dtype)


def _same(x: Array) -> Array:
    return x


HOST = Home("numpy", "cpu", _same)


def native_array(x: Any, name: str) -> tuple[Array, Home]:
    """Return ``x`` as a NumPy or CuPy array without copying where possible, and its home."""
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array: fill or drop the masked rows first")
    if hasattr(x, "toarray") and hasattr(x, "nnz"):
        raise TypeError(
            f"{name} is a sparse matrix, expected a dense array: kernels need every coordinate; "
            f"pass {name}.toarray()"
        )
    if isinstance(x, np.ndarray):
        return np.asarray(x), HOST
    if is_cupy(x):
        return x, Home("cupy", f"cuda:{x.device.id}", _same)
    if hasattr(x, "__dlpack__") and hasattr(x, "__dlpack_device__"):
        return _from_dlpack(x, name)
    if x is None or isinstance(x, str | bytes | os.PathLike):
        shown = "None" if x is None else f"{str(x)[:60]!r}"
        raise TypeError(
            f"{name} is {shown}, expected an array of numbers"
            + ("" if x is None else ": read the file first, with numpy.load or pandas.read_csv")
        )
    try:
        return np.asarray(x), HOST
    except ValueError as error:
        raise ValueError(
            f"{name} is not a rectangular array of numbers ({type(x).__name__}): {error}"
        ) from None


def _from_dlpack(x: Any, name: str) -> tuple[Array, Home]:
    library = type(x).__module__.partition(".")[0]
    if getattr(x, "requires_grad", False):
        raise TypeError(
            f"{name} is a tensor that requires grad, and nothing here is differentiated through: pass {name}.detach(); "
            "gpukoop.torch has sums that PyTorch differentiates"
        )
    kind, index = x.__dlpack_device__()
    try:
        if int(kind) in _DLPACK_CUDA:
            import cupy

            with cupy.cuda.Device(int(index)):
                native: Array = cupy.from_dlpack(x)
            device = f"cuda:{int(index)}"
        else:
            native, device = np.from_dlpack(x), "cpu"
    except (BufferError, RuntimeError, TypeError, ImportError) as error:
        raise TypeError(
            f"{name} ({type(x).__name__}) could not be read through DLPack: {error}; pass a NumPy or "
            "CuPy array"
        ) from error
    if library == "torch":
        from importlib import import_module

        return native, Home(library, device, import_module("torch").from_dlpack)
    if hasattr(x, "__array_namespace__"):
        return native, Home(library, device, x.__array_namespace__().from_dlpack)
    return native, Home("numpy", device, _same)


def points(
    x: Any, name: str, *, n_features: int | None = None, other: str = "X"
) -> tuple[Array, Home]:
    """Return points as a contiguous finite (n, d) float array, and their home.

    Whole numbers, booleans and half precision become float64, which ``logging`` is told.

    Parameters
    ----------
    x : array
        What the user passed.
    name : str
        What the user calls it; every message starts with it.
    n_features : int, optional
        Columns that ``other`` has.
    other : str
        Name of the array that fixes ``n_features``.

    Raises
    ------
    TypeError, ValueError
        If it is not a finite array of real numbers of shape (n >= 1, d >= 1).
    """
    native, home = native_array(x, name)
    if not native.dtype.isnative:  # files of another machine: same numbers, other order of bytes
        native = native.astype(native.dtype.newbyteorder("="))
    native = _as_float(native, x, name)
    if native.ndim != 2:
        raise ValueError(
            f"{name} has shape {native.shape}, expected (n, d), n points of d features. Reshape your data: "
            f"{name}.reshape(-1, 1) if it has one feature, {name}.reshape(1, -1) if it is one point"
        )
    if native.shape[0] < 1:
        raise ValueError(
            f"{name} has 0 sample(s) (shape={native.shape}) while a minimum of 1 is required: it is empty"
        )
    if native.shape[1] < 1:
        raise ValueError(
            f"{name} has 0 feature(s) (shape={native.shape}) while a minimum of 1 is required."
        )
    if n_features is not None and native.shape[1] != n_features:
        raise ValueError(
            f"{name} has {native.shape[1]} features, {other} has {n_features}: both need the same columns"
        )
    require_finite(native, name, getattr(x, "columns", None))
    return namespace(native).ascontiguousarray(native), home


def vector(v: Any, name: str, size: int, reference: Array, each: str) -> Array:
    """Return ``size`` finite real numbers, one ``each``, in the library, device and dtype of ``reference``."""
    native, _ = native_array(v, name)
    _require_real(native, name, f"one {each}")
    if native.shape != (size,):
        raise ValueError(f"{name} has shape {native.shape}, expected ({size},): one {each}")
    require_finite(native, name)
    return like(native, reference)


def _require_real(native: Array, name: str, what: str) -> None:
    if native.dtype.kind not in "fiub":
        raise TypeError(f"{name} has dtype {native.dtype}, expected real numbers: {what}")


def _as_float(native: Array, x: Any, name: str) -> Array:
    """Return numbers as float32 or float64; raise on text, dates, missing values and complex numbers."""
    if native.dtype in (np.float32, np.float64):
        warn_of_rounding(native, name, x)
        return native
    if native.dtype.kind == "c":
        raise ValueError(
            f"Complex data not supported: {name} has dtype {native.dtype}; pass real numbers"
        )
    mixed = native.dtype == object and native.ndim == 2  # a frame of numbers, flags and the like
    if mixed:
        _require_numbers(native, getattr(x, "columns", None), name)
    elif native.dtype.kind not in "iub" and native.dtype != np.float16:
        what = "text" if native.dtype.kind in "US" else f"dtype {native.dtype}"
        raise TypeError(
            f"{name} has {what} ({type(x).__name__}), expected numbers in float32 or float64: encode categories, for instance "
            "with sklearn.preprocessing.OneHotEncoder, and turn dates into times"
        )
    warn_of_rounding(native, name, x)
    logger.info("%s has dtype %s: computed as float64", name, native.dtype)
    return native.astype(np.float64)


def warn_of_rounding(native: Array, name: str, x: Any = None) -> None:
    """Warn where whole numbers, in an array or in the frame ``x`` it was made of, are too large for float64 to tell neighbours apart."""
    ends: list[Any] = []
    if native.dtype.kind in "iu" and native.size and native.dtype.itemsize == 8:
        ends = [int(native.max()), int(native.min())]
    elif native.dtype == object:
        ends = list(native.flat)
    elif hasattr(x, "iter_columns") or hasattr(x, "iterrows"):  # polars, pandas
        columns = x.iter_columns() if hasattr(x, "iter_columns") else (c for _, c in x.items())
        whole = [c for c in columns if str(c.dtype).lower().startswith(("int64", "uint64"))]
        ends = [end for c in whole for end in (c.max(), c.min())]
    if any(isinstance(e, numbers.Integral) and abs(int(e)) > LARGEST_WHOLE for e in ends):
        warnings.warn(
            f"{name} has whole numbers beyond 2^53, which float64 rounds: neighbours may become one; subtract a common offset first",
            UserWarning,
            stacklevel=4,
        )


def _require_numbers(native: np.ndarray, columns: Any, name: str) -> None:
    """Raise and name the first cell of an array of objects that is no number."""
    for (i, c), cell in np.ndenumerate(native):
        if not isinstance(cell, numbers.Real):
            column = f"column {c}" if columns is None else f"column {columns[c]!r}"
            raise TypeError(
                f"{name} holds {cell!r} in row {i}, {column}: the argument must be free of strings and hold numbers only; "
                "encode categories, for instance with sklearn.preprocessing.OneHotEncoder, and fill or drop missing values"
            )


_checked: ContextVar[bool] = ContextVar("checked", default=True)


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Let arrays on a device pass as finite inside: a look at them would make the host wait for the device."""
    before = _checked.set(False)
    try:
        yield
    finally:
        _checked.reset(before)


def _trusted(native: Array) -> bool:
    return is_cupy(native) and not _checked.get()


def require_finite(native: Array, name: str, columns: Any = None) -> None:
    """Raise if there is a NaN or an infinity, and say where the first one is, in a frame by the name of its column."""
    if _trusted(native):
        return
    xp = namespace(native)
    bad = ~xp.isfinite(native)
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(to_host(bad))[0])
        where = "" if columns is None else f", column {columns[first[1]]!r}"
        raise ValueError(
            f"{name} contains NaN or inf, {int(bad.sum())} value(s), the first at index {first}{where}: drop or "
            "repair these rows first"
        )


def weights(v: Any, name: str, m: int, reference: Array, *, infinite: bool = False) -> Array:
    """Return weights as an (m, t) array in the library, device and dtype of ``reference``.

    ``infinite=True`` allows -inf, the logarithm of an absent weight.
    """
    native = v if is_cupy(v) else native_array(v, name)[0]
    _require_real(native, name, "one weight per source point")
    if native.ndim not in (1, 2):
        raise ValueError(f"{name} has shape {native.shape}, expected ({m},) or ({m}, t)")
    if native.shape[0] != m:
        raise ValueError(
            f"{name} has {native.shape[0]} rows, K has {m} columns: pass one weight per source point"
        )
    if native.ndim == 2 and native.shape[1] == 0:
        raise ValueError(f"{name} has no column (shape {native.shape}): pass at least one")
    if is_cupy(native) and is_cupy(reference):
        moved = like(native, reference)
        if not moved.flags.c_contiguous:
            moved = namespace(moved).ascontiguousarray(moved)
        if not _trusted(native):
            alarm.watch(moved, name, infinite=infinite)
    else:
        moved = like(_weights_on_host(to_host(native), name, reference.dtype, infinite), reference)
    return moved if moved.ndim == 2 else moved[:, None]


def _weights_on_host(v: np.ndarray, name: str, dtype: np.dtype, infinite: bool) -> np.ndarray:
    """Return finite weights in the dtype of the points; ``infinite`` allows minus infinity."""
    require_finite(np.where(v == -np.inf, 0.0, v) if infinite else v, name)
    with np.errstate(over="ignore"):
        moved = v.astype(dtype, copy=False)
    shorter = moved.dtype.itemsize < v.dtype.itemsize
    if shorter and np.isinf(moved).sum() > np.isinf(v).sum():
        raise ValueError(
            f"{name} has values beyond the range of {moved.dtype}, the dtype of the points: scale {name} down, "
            "or pass the points as float64"
        )
    return moved
