"""What a run is: one digest of everything that decides its result, so that no checkpoint is continued by another run."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import types
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import PurePath
from typing import Any

import numpy as np

from gpukoop.arrays import is_cupy, to_host
from gpukoop.kernels.formula.profile import AbstractKernel

NAME = "checkpoint_name"


def identity(value: Any) -> str:
    """Return the digest of a value: arrays with dtype and shape, generators with their state, functions with their code.

    Raises
    ------
    TypeError
        If part of it cannot be told from another: a lambda, a function made by another, an object of a foreign class. An
        attribute ``checkpoint_name`` (a text that the user answers for) makes it identifiable.
    """
    digest = hashlib.sha256()
    _write(value, digest.update, "the run", set())
    return digest.hexdigest()


def _write(value: Any, put: Callable[[bytes], None], where: str, above: set[int]) -> None:
    """Pass the bytes of a value on; ``above`` holds the objects that contain it."""

    def text(*parts: object) -> None:
        for part in parts:
            data = str(part).encode()
            put(b"%d:" % len(data) + data)

    if id(value) in above:
        text("a part of itself")
        return
    inside = above | {id(value)}

    def members(items: Any) -> None:
        for name, member in items:
            text(name)
            _write(member, put, f"{where}.{name}", inside)

    text(type(value).__module__, type(value).__qualname__)
    chosen = getattr(value, NAME, None)
    if isinstance(chosen, str) and chosen:
        text(NAME, chosen)
    elif value is None or isinstance(
        value, bool | int | float | complex | str | bytes | np.generic | np.dtype | enum.Enum
    ):
        text(repr(value))
    elif isinstance(value, PurePath | types.ModuleType | type):
        text(str(value))
    elif isinstance(value, np.ndarray) or is_cupy(value):
        # Contiguous: a transposed view of the same numbers is the same array to a reader, and is hashed as one.
        native = np.ascontiguousarray(to_host(value))
        text(native.dtype.str, native.shape)
        if native.dtype.hasobject:
            members(enumerate(native.ravel().tolist()))
        else:
            put(native.tobytes())
    elif isinstance(value, np.random.Generator):
        _write(value.bit_generator.state, put, where, inside)
    elif isinstance(value, np.random.RandomState):
        _write(value.get_state(legacy=False), put, where, inside)
    elif isinstance(value, AbstractKernel):
        text(repr(value))
    elif isinstance(value, Mapping):
        text(len(value))
        # By name: dictionaries that were filled in another order are equal.
        members(sorted(value.items(), key=lambda item: str(item[0])))
    elif isinstance(value, list | tuple):
        text(len(value))
        members(enumerate(value))
    elif isinstance(value, set | frozenset):
        # Sets have no order, and that of strings changes from process to process.
        text(sorted(map(repr, value)))
    elif isinstance(value, partial):
        members([("func", value.func), ("args", value.args), ("keywords", value.keywords)])
    elif isinstance(value, types.MethodType):
        members([("self", value.__self__), ("function", value.__func__)])
    elif isinstance(value, np.ufunc | types.BuiltinFunctionType):
        text(value.__name__)
    elif isinstance(value, types.FunctionType):
        _function(value, text, where)
    elif dataclasses.is_dataclass(value):
        members((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
    elif _ours(type(value)):
        members(sorted(vars(value).items()))
    else:
        raise _unknown(value, where)


def _function(value: types.FunctionType, text: Callable[..., None], where: str) -> None:
    if value.__name__ == "<lambda>" or value.__closure__:
        raise _unknown(value, where)
    code = value.__code__
    # An inner function's code object prints its address, which is another one in every process.
    constants = [c for c in code.co_consts if not isinstance(c, types.CodeType)]
    text(value.__module__, value.__qualname__, code.co_code.hex(), repr(constants), code.co_names)
    text(repr(value.__defaults__), repr(value.__kwdefaults__))


def _ours(kind: type) -> bool:
    """Tell whether everything that an object of this class does lies in its attributes."""
    return any(base.__module__.partition(".")[0] in ("gpukoop", "sklearn") for base in kind.__mro__)


def _unknown(value: Any, where: str) -> TypeError:
    shown = getattr(value, "__qualname__", None) or type(value).__qualname__
    return TypeError(
        f"checkpoint: {where} is {shown}, which cannot be told from another such object, so the run could be continued "
        f"with another one: pass a function defined in a module, or give it a name: f.{NAME} = 'sphere of radius 2'"
    )
