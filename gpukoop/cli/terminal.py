"""What a command says to its terminal, and where its results may go: streams that close, files that cannot be written."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any


def complain(text: str) -> None:
    """Print one line of trouble to standard error."""
    with contextlib.suppress(OSError, ValueError):  # standard error is closed, too
        print(f"gpukoop: {text}", file=sys.stderr)


def worded(error: BaseException) -> bool:
    """Tell whether an error speaks to the user: raised in words by this package, or by the system about a file or memory."""
    if isinstance(error, OSError | ImportError | MemoryError):
        return bool(str(error))
    frames = traceback.extract_tb(error.__traceback__)
    inside = frames and Path(frames[-1].filename).is_relative_to(Path(__file__).parents[1])
    return bool(inside and "raise" in (frames[-1].line or "") and str(error))


def write_log(doing: str) -> str:
    """Write the traceback of the present error to a file of its own and return its name."""
    try:
        descriptor, name = tempfile.mkstemp(prefix="gpukoop-", suffix=".log")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(f"{doing}\n\n{traceback.format_exc()}")
    except OSError:
        return "none, no folder for it can be written"
    return name


def finish_printing() -> None:
    """Flush what was printed; a reader that has gone (``gpukoop info | head -1``) or a full device is no failure of the work."""
    if sys.stdout is None:  # closed by the shell: gpukoop info >&-
        return
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        # Python flushes once more when it ends, and would complain there.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(text: str) -> None:
    """Print to standard output; what its encoding lacks is escaped, and for the rest see :func:`finish_printing`."""
    try:
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        print(text.encode(encoding, "backslashreplace").decode(encoding))
    except OSError:
        finish_printing()


def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning as one line, in place of ``warnings.showwarning``."""
    print(f"gpukoop: warning: {' '.join(str(message).split())}", file=sys.stderr)


class _Lines(logging.Handler):
    """Writes what the package logs to standard error, a line each."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        complain(record.getMessage())


_LINES = _Lines()


def show_choices(wanted: bool) -> None:
    """Show or hide what the package says about its choices: scale, modes, backend, steps."""
    logger = logging.getLogger("gpukoop")
    logger.removeHandler(_LINES)
    logger.setLevel(logging.NOTSET)
    if wanted:
        logger.addHandler(_LINES)
        logger.setLevel(logging.INFO)


def folder(path: Path) -> None:
    """Raise unless a folder is there or can be made."""
    if path.exists() and not path.is_dir():
        raise ValueError(
            f"--out {path} is a file, expected a folder (it is made if it is not there)"
        )
    there = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not _takes_files(there):
        raise ValueError(f"--out {path} cannot be made or written: choose another folder")


def _takes_files(path: Path) -> bool:
    """Tell whether a file can be made in a folder: by one without a name, for permissions alone do not say (/proc, quotas)."""
    try:
        with tempfile.TemporaryFile(dir=path):
            return os.access(path, os.W_OK)
    except OSError:
        return False


def writable(path: Path, *endings: str) -> None:
    """Raise unless a file of one of these endings, if any, can be written: asked before the work starts."""
    if endings and path.suffix not in endings:
        raise ValueError(f"{path}: expected a file name that ends in {' or '.join(endings)}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected a file name")
    if not path.parent.is_dir():
        raise ValueError(f"the folder of {path} does not exist: make it first")
    there = path.exists()
    if there and not path.is_file():
        raise ValueError(f"{path} is no ordinary file, expected a file name")
    if not _takes_files(path.parent) or (there and not os.access(path, os.W_OK)):
        raise ValueError(
            f"{path} cannot be written: choose another file, or change its permissions"
        )
