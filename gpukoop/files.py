"""Files: they appear whole or not at all, and what is no array is refused in words."""

from __future__ import annotations

import os
import tempfile
import tokenize
from pathlib import Path

import numpy as np


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` so that ``path`` holds all of it or what it held before.

    Raises
    ------
    OSError
        If the folder is missing, not writable or full; the message names the path.
    """
    descriptor, temporary = -1, ""
    try:
        descriptor, temporary = tempfile.mkstemp(
            prefix=f".{path.name}.", suffix=".tmp", dir=path.parent
        )
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes the file private; give it the mode an ordinary new file has.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except OSError as error:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
        raise OSError(error.errno, f"cannot write {path}: {error.strerror}") from error


def read_npy(path: Path) -> np.ndarray:
    """Return the array of a .npy file.

    Raises
    ------
    ValueError
        If there is no such file, or it is damaged or of another kind; the message names it.
    """
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "no such file"
        raise ValueError(f"{path}: {found}; expected a .npy file with one row a sample")
    try:
        with path.open("rb") as file:
            array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
    # what NumPy raises on files that are cut, altered, or of another kind; their headers are Python text
    except (
        ValueError,
        TypeError,
        EOFError,
        OSError,
        OverflowError,
        MemoryError,
        RecursionError,
        SyntaxError,
        tokenize.TokenError,
    ) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{path} is not a readable .npy file of numbers ({reason}): write it with numpy.save"
        ) from None
    return array
