"""Files: they appear whole or not at all, and what is no array is refused in words."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import secrets
import stat
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np

_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def _memory() -> int:
    """Return the bytes of the machine's memory; a terabyte where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 2**40


# Samples that do not fit into memory are refused before they are read, whatever their file takes on the disk.
LARGEST = _memory()
_LENGTH = 16  # hexadecimal digits
LONGEST_NAME = 230  # bytes, of 255 on most disks: a partial file adds its own
# What NumPy and zipfile raise on files that are cut, altered, or of another kind; their headers are Python text.
DAMAGED = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    EOFError,
    OSError,
    OverflowError,
    MemoryError,
    RecursionError,
    SyntaxError,
    NotImplementedError,
    RuntimeError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` so that ``path`` holds all of it or what it held before.

    A symbolic link stays one, its target is replaced; a file that is there keeps its permissions, a new one has those of any
    new file. The partial file beside it has a name that cannot be foreseen and is never a link.

    Raises
    ------
    OSError
        If the folder is missing, not writable or full; the message names the path.
    """
    partial: Path | None = None
    try:
        target = Path(os.path.realpath(path))
        mode = _mode_of(target)
        if mode is not None and not stat.S_ISREG(mode):
            with open(
                target, "wb"
            ) as stream:  # a device or a pipe takes bytes and is never replaced
                stream.write(data)
            return
        partial = target.parent / f".{target.name[:100]}.{secrets.token_hex(8)}.tmp"
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o666)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if mode is not None:
            os.chmod(partial, stat.S_IMODE(mode))
        os.replace(partial, target)
    except BaseException as error:
        if partial is not None:
            with contextlib.suppress(OSError):
                partial.unlink()
        if isinstance(error, OSError):
            raise OSError(error.errno, f"cannot write {path}: {error.strerror}") from error
        raise


def _mode_of(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None


def open_regular(path: Path) -> IO[bytes]:
    """Open an ordinary file; raise OSError on a device, a pipe or a folder, without waiting for what they would send."""
    descriptor = os.open(
        path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    )
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(0, "it is no ordinary file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def file_path(value: Any, name: str) -> Path:
    """Return the path of a file, or raise with its name where no file can be called that."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} is {value!r}, expected the path of a file")
    path = Path(value)
    if not path.name or "\0" in str(path) or len(os.fsencode(path.name)) > LONGEST_NAME:
        raise ValueError(
            f"{name} {str(path)[:60]!r} is no name of a file: it is empty, too long, or has a zero byte"
        )
    return path


def write_sealed(path: Path, magic: bytes, payload: bytes) -> None:
    """Write a line that says what this is, the length and the digest of the payload, and the payload; see :func:`read_sealed`."""
    length, digest = f"{len(payload):0{_LENGTH}x}", hashlib.sha256(payload).hexdigest()
    write_atomically(path, magic + f"{length}\n{digest}\n".encode() + payload)


def read_sealed(path: Path, magic: bytes) -> bytes:
    """Return the payload of a file of this kind.

    Kind and length are looked at before anything is read: a device has no end, and a sparse file takes all memory.

    Raises
    ------
    ValueError
        If it is of another kind, or cut, or altered, be it by one bit.
    OSError
        If it cannot be read, or is no ordinary file.
    """
    with open_regular(path) as file:
        head = file.read(len(magic) + _LENGTH + 66)
        if not head.startswith(magic):
            raise ValueError("it is of another kind")
        length = os.fstat(file.fileno()).st_size - len(head)
        told, digest, end = head[len(magic) :][: _LENGTH + 1], head[-65:-1], head[-1:]
        if told != f"{length:0{_LENGTH}x}\n".encode() or end != b"\n":
            raise ValueError("it is cut or altered")
        payload = file.read(length)
    if digest != hashlib.sha256(payload).hexdigest().encode():
        raise ValueError("it is altered")
    return payload


def require_file(path: Path, kind: str) -> None:
    """Raise in words unless an ordinary file is there."""
    there = os.path.exists(path)  # which answers also for links that lead in circles
    if not there or not path.is_file():
        found = "no such file" if not there else "is no ordinary file"
        found = "is a folder" if there and path.is_dir() else found
        raise ValueError(f"{path}: {found}; expected a {kind} with one row a sample")


def read_npy(path: Path) -> np.ndarray:
    """Return the array of a .npy file, or that of a .npz file that holds one array or one called ``particles``.

    Raises
    ------
    ValueError
        If there is no such file, or it is damaged or of another kind; the message names it.
    """
    require_file(path, ".npy file")
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > LARGEST:
                raise ValueError(_too_large(size))
            zipped = file.read(4) == b"PK\x03\x04"
            file.seek(0)
            return _zipped(file) if zipped else read_array(file)
    except DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{path} is not a readable .npy file of numbers ({reason}): write it with numpy.save"
        ) from None


def _too_large(size: float) -> str:
    return f"it has {size / 2**30:.0f} GB, and this machine {LARGEST / 2**30:.0f} GB of memory"


def read_array(file: IO[bytes]) -> np.ndarray:
    """Return the array of an open .npy file; raise ValueError if there is more in it, or pickled objects."""
    array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
    if file.read(1):
        raise ValueError("there is more in the file than its header announces")
    return array


def _zipped(file: IO[bytes]) -> np.ndarray:
    with zipfile.ZipFile(file) as archive:
        # An archive ends with 22 bytes after their mark, and its comment: zipfile passes over what follows.
        file.seek(-min(file.seek(0, os.SEEK_END), 22 + 2**16), os.SEEK_END)
        tail = file.read()
        if len(tail) - tail.rfind(b"PK\x05\x06") != 22 + len(archive.comment):
            raise ValueError("there is more in the file than its archive")
        names = [name for name in archive.namelist() if name.endswith(".npy")]
        chosen = names[0] if len(names) == 1 else "particles.npy"
        if chosen not in names:
            raise ValueError(f"it holds {len(names)} arrays and none called 'particles'")
        return read_member(archive, chosen)


def read_member(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Return one array of a .npz file, checked by its CRC; raise ValueError if it inflates to more than the memory holds."""
    size = archive.getinfo(name).file_size
    if size > LARGEST:
        raise ValueError(_too_large(size))
    return read_array(io.BytesIO(archive.read(name)))
