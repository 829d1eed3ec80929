"""Tables of samples: NumPy files, CSV and Parquet, read with the names of their columns and written with them.

CSV and Parquet go through pandas, an optional extra: ``pip install gpukoop[tables]``.
"""

from __future__ import annotations

import csv
import io
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from gpukoop.arrays import to_host
from gpukoop.files import DAMAGED, open_regular, read_npy, require_file

ENDINGS = (".npz", ".npy", ".csv", ".parquet")
_INSTALL = "pip install 'gpukoop[tables]'"


def read_table(path: Path) -> Any:
    """Return an array of a .npy or .npz file, or a frame of a .csv or .parquet file.

    The first line of a CSV file names the columns, unless all of it is numbers; 0, 1, 2, ... before lines with fractions are
    the names that pandas gives (of one or two columns they may be numbers: refused). A column without a name is an index that was written with the samples, and refused.

    Raises
    ------
    ValueError
        If there is no such file or it cannot be read; the message names it.
    ImportError
        If it needs pandas and there is none.
    """
    ending = path.suffix.lower()
    if ending not in (".csv", ".parquet"):
        return read_npy(path)
    require_file(path, "table")
    pandas = _pandas(path)
    try:
        with open_regular(path) as file:
            data = file.read()
        if ending == ".parquet":
            return pandas.read_parquet(io.BytesIO(data), page_checksum_verification=True)
        return _csv(pandas, data)
    except (*DAMAGED, csv.Error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} is not a readable {ending[1:]} table ({reason})") from None


def _csv(pandas: Any, data: bytes) -> Any:
    """Return the frame of a CSV file; raise ValueError where a guess would be needed."""
    names = not _unnamed(data)
    with warnings.catch_warnings():
        # Lines longer than the first: pandas would drop cells, or take the first column away as an index.
        warnings.simplefilter("error", pandas.errors.ParserWarning)
        try:
            frame = pandas.read_csv(io.BytesIO(data), header=0 if names else None, index_col=False)
        except pandas.errors.ParserWarning:
            raise ValueError("its lines have more cells than its first one") from None
    nameless = [c for c, name in enumerate(_cells(data, 0)) if names and not name]
    if nameless:
        raise ValueError(
            f"column {nameless[0]} has no name, like an index that pandas wrote: use to_csv(index=False), or name it"
        )
    if frame.shape[1] == 1 and frame.dtypes.iloc[0].kind not in "fiub":
        for mark, word in ((";", "semicolons"), ("\t", "tabs")):
            if mark in str(frame.columns[0]) or mark in str(frame.iloc[0, 0] if len(frame) else ""):
                raise ValueError(f"its cells are separated by {word}, expected commas")
    for position, dtype in enumerate(frame.dtypes):
        if dtype.kind not in "fiub":
            # one cell of text makes text of all: let the message name that cell
            cells = frame.iloc[:, position]
            numbers = pandas.to_numeric(cells, errors="coerce").astype(object)
            frame.isetitem(position, numbers.where(numbers.notna(), cells))
    return frame


def _cells(data: bytes, line: int) -> list[str]:
    """Return the cells of one of the first lines of a CSV file."""
    lines = data.split(b"\n", line + 1)
    text = lines[line].decode("utf-8", "replace") if line < len(lines) else ""
    return [cell.strip() for cell in next(csv.reader([text.strip().lstrip("\ufeff")]), [])]


def _unnamed(data: bytes) -> bool:
    """Return whether the first line of a CSV file is data: every cell a number, and they are no names 0, 1, 2, ..."""
    first, second = _cells(data, 0), _cells(data, 1)
    try:
        [float(cell) for cell in first]
    except ValueError:
        return False
    if not first or first != [str(c) for c in range(len(first))]:
        return bool(first)
    if len(first) < 3 or all(cell.lstrip("-").isdigit() for cell in second):
        raise ValueError(
            f"its first line {','.join(first[:4])} may be names or numbers: name the columns by words"
        )
    return False


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
            frame.to_parquet(buffer, index=False, write_page_checksum=True, use_dictionary=False)
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
