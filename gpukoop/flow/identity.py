"""What a run is: one digest of everything that decides its result, so that no checkpoint is continued by another run."""

from __future__ import annotations

import builtins
import dataclasses
import dis
import enum
import hashlib
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import PurePath
from typing import Any

import numpy as np

from gpukoop.arrays import is_cupy, to_host
from gpukoop.kernels.formula.profile import AbstractKernel

NAME = "checkpoint_name"
# Methods that a dataclass writes for its class.
GENERATED = (
    "__init__",
    "__repr__",
    "__eq__",
    "__lt__",
    "__le__",
    "__gt__",
    "__ge__",
    "__hash__",
    "__replace__",
)
# What is installed changes with its version only; what the user wrote is followed into everything that it reads.
INSTALLED = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib"))


def identity(value: Any) -> str:
    """Return the digest of a value.

    Arrays enter with dtype and shape, generators with their state, functions and classes that the user wrote with their code,
    their defaults and the globals that they read.

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

    kind = type(value)
    text(kind.__module__, kind.__qualname__)
    chosen = getattr(value, NAME, None)
    if isinstance(chosen, str) and chosen:
        text(NAME, chosen)
    elif value is None or isinstance(
        value, bool | int | float | complex | str | bytes | np.generic | np.dtype | enum.Enum
    ):
        text(repr(value))
    elif isinstance(value, PurePath | types.ModuleType):
        text(str(value))
    elif isinstance(value, type):
        text(str(value))
        members(_methods(value))
    elif isinstance(value, np.ndarray) or is_cupy(value):
        # Contiguous: a transposed view of the same numbers is the same array to a reader, and is hashed as one.
        native = np.ascontiguousarray(to_host(value))
        text(native.dtype.descr if native.dtype.names else native.dtype.str, value.shape)
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
        members(_methods(kind))
    elif isinstance(value, Mapping):
        text(len(value))
        # By name: dictionaries that were filled in another order are equal.
        members(sorted(((repr(key), value[key]) for key in value), key=lambda item: item[0]))
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
    elif isinstance(value, np.ufunc):
        text(value.__name__)
    elif isinstance(value, types.BuiltinFunctionType):
        # a.dot is a function of a, not only of its name
        members([(value.__name__, value.__self__)])
    elif isinstance(value, types.FunctionType):
        text(value.__module__, value.__qualname__)
        if not _importable(value):
            # super() needs a cell, too, but only for the class itself
            if value.__name__ == "<lambda>" or value.__code__.co_freevars not in (
                (),
                ("__class__",),
            ):
                raise _unknown(value, where)
            members(_code(value))
    elif isinstance(value, property):
        members([("get", value.fget), ("set", value.fset)])
    elif isinstance(value, staticmethod | classmethod):
        members([("function", value.__func__)])
    elif dataclasses.is_dataclass(value):
        members((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
        members(_methods(kind))
    elif _ours(kind):
        members(sorted(vars(value).items()))
        members(_methods(kind))
    elif _importable(value):
        text(value.__module__, value.__qualname__)
    else:
        raise _unknown(value, where)


def _code(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield what decides the result of a function: its code, that of functions inside it, defaults, and globals it reads."""
    yield "defaults", function.__defaults__
    yield "keywords", function.__kwdefaults__
    codes, read = [function.__code__], set()
    for code in codes:
        # An inner function's code object prints its address, which is another one in every process.
        inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
        codes.extend(inner)
        plain = [c for c in code.co_consts if not isinstance(c, types.CodeType)]
        yield code.co_name, (code.co_code, repr(plain), code.co_names)
        read |= {i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}
    for name in sorted(read):
        if name in function.__globals__:
            yield name, function.__globals__[name]
        elif not hasattr(builtins, name):
            yield name, None  # a name that is not there yet


def _methods(kind: type) -> Iterator[tuple[str, Any]]:
    """Yield the methods and attributes of the classes that the user wrote, among a class and its bases."""
    for base in kind.__mro__:
        if base is not object and not _installed(base):
            # what a dataclass writes itself follows from its fields
            made = GENERATED if dataclasses.is_dataclass(base) else ()
            for name, member in sorted(vars(base).items()):
                function = isinstance(member, types.FunctionType) and name not in made
                if function or not name.startswith(("__", "_abc_")):
                    yield f"{base.__qualname__}.{name}", member


def _installed(thing: Any) -> bool:
    """Tell whether a class or function belongs to an installed package or to Python."""
    module = sys.modules.get(thing.__module__ or "")
    name = (thing.__module__ or "").partition(".")[0]
    file = getattr(module, "__file__", None) or ""
    return name in ("gpukoop", "builtins") or file.startswith(INSTALLED)


def _importable(function: Any) -> bool:
    """Tell whether a function is what an installed module has under its name."""
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    name = getattr(function, "__qualname__", None) or ""
    return module is not None and _installed(function) and getattr(module, name, None) is function


def _ours(kind: type) -> bool:
    """Tell whether everything that an object of this class does lies in its attributes."""
    return any(base.__module__.partition(".")[0] in ("gpukoop", "sklearn") for base in kind.__mro__)


def _unknown(value: Any, where: str) -> TypeError:
    shown = getattr(value, "__qualname__", None) or type(value).__qualname__
    return TypeError(
        f"checkpoint: {where} is {shown}, which cannot be told from another such object, so the run could be continued "
        f"with another one: pass a function defined in a module, or give it a name: f.{NAME} = 'sphere of radius 2'"
    )
