"""KeOps' files on disk, made safe to share between processes and to survive one that was killed.

KeOps writes its lists of formulas when a process ends and its libraries when a compiler ends, both in place. A
process that is killed at that moment leaves a cut file behind, and every later ``import pykeops`` fails on it
until someone deletes it by hand. What cannot be read is deleted here: KeOps then writes it anew.
"""

from __future__ import annotations

import logging
import os
import pickletools
import stat
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

_logger = logging.getLogger("gpukoop")
# One file for all formulas.
LOCK = ".gpukoop.lock"
# Formulas that this process has compiled or loaded.
_compiled: set[str] = set()
_thread = threading.Lock()


def folder() -> Path:
    """Return KeOps' cache folder, by KeOps' own rule, without importing it."""
    chosen = os.environ.get("KEOPS_CACHE_FOLDER")
    return Path(chosen) if chosen else Path.home() / ".cache" / f"keops{version('keopscore')}"


def _is_whole_list(path: Path) -> bool:
    """Tell whether a list of formulas ends where a pickle ends; nothing in it is executed."""
    try:
        for _ in pickletools.genops(path.read_bytes()):
            pass
    except ValueError:
        return False
    return True


def _is_whole_library(path: Path) -> bool:
    """Tell whether a library holds all that its header announces: loading one that does not is a bus error."""
    with path.open("rb") as file:
        head = file.read(64)
    if head[:5] != b"\x7fELF\x02":  # not a 64-bit ELF file: only its being empty can be seen
        return bool(head)
    if len(head) < 64:
        return False
    (table,) = struct.unpack_from("<Q", head, 40)
    size, count = struct.unpack_from("<HH", head, 58)
    return path.stat().st_size >= table + size * count


def delete_cut_files(root: Path) -> list[Path]:
    """Delete lists of formulas and libraries that were cut short; return what was deleted."""
    deleted = []
    for pattern, is_whole in {"*_cache.pkl": _is_whole_list, "*.so": _is_whole_library}.items():
        for path in sorted(root.glob(f"*/{pattern}")):
            with suppress(OSError):  # gone, or not ours: KeOps says so itself
                if not is_whole(path):
                    path.unlink(missing_ok=True)
                    deleted.append(path)
                    _logger.warning("deleted %s: a process was killed while it wrote this", path)
    return deleted


@lru_cache(maxsize=1)
def genred() -> Callable[..., Any]:
    """Return KeOps' ``Genred`` for NumPy arrays, quiet, after a look at its files."""
    os.environ.setdefault("PYKEOPS_VERBOSE", "0")
    os.environ.setdefault("KEOPS_VERBOSE", "0")
    with _alone("the lists of formulas"):
        delete_cut_files(folder())
        import pykeops.numpy

    return pykeops.numpy.Genred


def _lock_file() -> int | None:
    """Open the lock in KeOps' own folder, None where there can be none.

    Not in the folder for temporary files, where anyone may put a link or a file of that name. Here, too, a link is not followed,
    and a file that another user made is left alone.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        folder().mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder() / LOCK, flags, 0o600)
    except (OSError, RuntimeError):  # no home, or one that cannot be written
        return None
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and status.st_nlink == 1:
        return descriptor
    os.close(descriptor)
    return None


@contextmanager
def _alone(what: str) -> Iterator[None]:
    """Let one thread in at a time and, where a lock can be had, one process."""
    import fcntl  # KeOps itself runs on Linux and macOS only

    with _thread:
        lock = _lock_file()
        try:
            if lock is not None:
                # Each locks the byte of its own checksum, so different formulas compile side by side.
                fcntl.lockf(lock, fcntl.LOCK_EX, 1, zlib.crc32(what.encode()))
            yield
        finally:
            if lock is not None:
                os.close(lock)


def call(formula: str, reduce: Callable[..., Any], *arrays: Any) -> Any:
    """Call a reduction, its first call in this process alone.

    A process that loads a library that another is still writing fails with "file too short".
    """
    if formula in _compiled:
        return reduce(*arrays)
    with _alone(formula):
        out = reduce(*arrays)
    _compiled.add(formula)
    return out
