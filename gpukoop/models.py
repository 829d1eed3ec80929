"""Fitted estimators on disk: what ``fit`` learned, kept for another day.

A file is sealed by its length and digest; it holds the identity of the fit, and a pickle. Reading a pickle runs what it says:
open only files that you, or someone you trust, have written.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from gpukoop.files import open_regular, read_sealed, write_sealed

_KIND = b"gpukoop model "
_MAGIC = _KIND + b"2\n"
_IDENTITY = 64  # hexadecimal digits, or blanks where no identity was asked for


def write_model(path: Path, estimator: Any, identity: str = "") -> None:
    """Write an estimator, fitted or not, whole or not at all.

    Raises
    ------
    TypeError
        If a part of it cannot be pickled, such as a lambda; the message says so.
    """
    try:
        data = pickle.dumps(estimator, protocol=5)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(
            f"{path}: {type(estimator).__name__} cannot be written ({error}): pass functions that a module defines, no lambdas"
        ) from None
    write_sealed(path, _MAGIC, identity.ljust(_IDENTITY).encode() + data)


def read_model(path: Path, identity: str | None = None) -> Any:
    """Return the estimator that a file holds; with ``identity``, only if it was written under the same one.

    Raises
    ------
    ValueError
        If it is no such file, or damaged, or of another identity.
    """
    if not path.is_file():
        raise ValueError(
            f"{path}: no such file; expected a model that `gpukoop fit` wrote, or the folder of `gpukoop train`"
        )
    try:
        data = read_sealed(path, _MAGIC)
    except ValueError as error:
        with open_regular(path) as file:
            ours = file.read(len(_KIND)) == _KIND
        what = "is damaged, or was written by another version" if ours else "is no model file"
        raise ValueError(
            f"{path} {what} ({error}): write one with `gpukoop fit`, or pass the folder that `gpukoop train` wrote"
        ) from None
    if identity is not None and data[:_IDENTITY].decode() != identity:
        raise ValueError(
            f"{path} holds another fit: its data, its parameters or its class differ; name another file, or delete this one"
        )
    try:
        return pickle.loads(data[_IDENTITY:])
    except Exception as error:  # noqa: BLE001
        # Damaged pickles raise anything.
        raise ValueError(f"{path} is damaged, or was written by another version: {error}") from None
