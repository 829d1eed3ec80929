"""Tables of samples: NumPy files, CSV and Parquet, read with the names of their columns and written with them.

CSV and Parquet go through pandas, an optional extra: ``pip install gpukoop[tables]``.
"""

from __future__ import annotations

import io
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from gpukoop.arrays import to_host
from gpukoop.files import open_regular, read_npy

ENDINGS = (".npz", ".npy", ".csv", ".parquet")
_INSTALL = "pip install 'gpukoop[tables]'"


def read_table(path: Path) -> Any:
    """Return an array of a .npy or .npz file, or a frame of a .csv or .parquet file.

    The first line of a CSV file names the columns, unless all of it is numbers.

    Raises
    ------
    ValueError
        If there is no such file or it cannot be read; the message names it.
    ImportError
        If it needs pandas and there is none.
    """
    if path.suffix not in (".csv", ".parquet"):
        return read_npy(path)
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "no such file"
        raise ValueError(f"{path}: {found}; expected a table with one row a sample")
    pandas = _pandas(path)
    try:
        with open_regular(path) as file:
            data = file.read()
        if path.suffix == ".parquet":
            return pandas.read_parquet(io.BytesIO(data))
        return pandas.read_csv(io.BytesIO(data), header=None if _unnamed(data) else 0)
    except (ValueError, OSError, LookupError, MemoryError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} is not a readable {path.suffix[1:]} table ({reason})") from None


def _unnamed(data: bytes) -> bool:
    """Return whether the first line of a CSV file is data: every cell a number."""
    first = data.partition(b"\n")[0].decode("utf-8", "replace").strip().lstrip("\ufeff")
    try:
        [float(cell.strip().strip('"')) for cell in first.split(",")]
    except ValueError:
        return False
    return True


def table_bytes(path: Path, Z: Any, names: Any = None, **more: Any) -> bytes:
    """Return the file of particles (n, d) that the ending of ``path`` asks for.

    ``names`` are those of columns, where it holds them; ``more`` are further arrays of a .npz file.
    """
    values = to_host(Z)
    buffer = io.BytesIO()
    if path.suffix == ".npz":
        np.savez_compressed(buffer, particles=values, **more)
    elif path.suffix == ".npy":
        np.save(buffer, values)
    else:
        columns = [f"x{c}" for c in range(values.shape[1])] if names is None else list(names)
        frame = _pandas(path).DataFrame(values, columns=columns)
        if path.suffix == ".csv":
            frame.to_csv(buffer, index=False)
        else:
            frame.to_parquet(buffer, index=False)
    return buffer.getvalue()


def require_writer(path: Path) -> None:
    """Raise unless the packages that ``path`` needs are installed: asked before the work starts."""
    if path.suffix in (".csv", ".parquet"):
        _pandas(path)


def _pandas(path: Path) -> Any:
    """Return pandas; raise in words where it, or pyarrow for Parquet, is missing."""
    try:
        if path.suffix == ".parquet":
            import_module("pyarrow")
        return import_module("pandas")
    except ImportError as error:
        raise ImportError(f"{path} needs {error.name}: {_INSTALL}") from None
