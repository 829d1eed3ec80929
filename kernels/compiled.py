"""Compiled code on disk: machine code is kept under a name that hashes everything it depends on, beside its own digest.

Numba's own cache trusts its files: of 85 flipped bits one gave a wrong sum in silence and one in ten ended the process. Here
nothing is unpickled or linked before its SHA-256 agrees, folders and files must belong to this user, and where nothing can be
kept (a read-only home, a container without one, a full disk) the code is compiled for this process alone.

File layout: the SHA-256 of the payload, the payload. A stale file is never found, for its name no longer fits.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import linecache
import logging
import os
import secrets
import stat
import sys
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

_logger = logging.getLogger("gpukoop")
_lock = threading.RLock()
_DIGEST = hashlib.sha256().digest_size
# Without effect where the system has no such flag (Windows): there folders of other users cannot be written anyway.
_NOT_A_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_BINARY = getattr(os, "O_BINARY", 0)


def folder() -> Path | None:
    """Return where compiled code is kept: GPUKOOP_CACHE_DIR, or the platform's cache folder; None if there is no home."""
    try:
        chosen = os.environ.get("GPUKOOP_CACHE_DIR")
        if chosen:
            return Path(chosen).expanduser()
        if sys.platform == "win32":
            base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
        elif sys.platform == "darwin":
            base = str(Path.home() / "Library" / "Caches")
        else:
            base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    except RuntimeError:  # no HOME, and no entry of this user in the passwd file
        return None
    return Path(base) / "gpukoop"


def _ours(status: os.stat_result) -> bool:
    """Tell whether nobody else can have written it: this user owns it, and no group or other may write."""
    if not hasattr(os, "geteuid"):
        return True
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _room(kind: str) -> Path | None:
    """Return the folder of one kind of code if it is this user's own, else None."""
    root = folder()
    if root is None:
        return None
    path = root / kind
    try:
        status = path.lstat()
    except OSError:
        return None
    if not stat.S_ISDIR(status.st_mode) or not _ours(status):
        _logger.warning(
            "what is kept in %s is left alone: the folder is a link, belongs to another user, or others may write there",
            path,
        )
        return None
    return path


def read(kind: str, name: str) -> bytes | None:
    """Return what was kept under a name, or None: nothing was, it is damaged (then it is deleted), or it is not ours.

    Parameters
    ----------
    kind : str
        Name of its folder in the cache; code, and the classifiers of :mod:`gpukoop.metrics`.
    name : str
        A hash of everything that decides the code, fit for a file name.
    """
    room = _room(kind)
    if room is None:
        return None
    path = room / name
    try:
        # Non-blocking: a FIFO in the place of a file must not hold us up.
        descriptor = os.open(
            path, os.O_RDONLY | _BINARY | _NOT_A_LINK | getattr(os, "O_NONBLOCK", 0)
        )
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            data = file.read() if stat.S_ISREG(status.st_mode) and _ours(status) else b""
    except OSError:
        return None
    payload = data[_DIGEST:]
    if len(data) < _DIGEST or hashlib.sha256(payload).digest() != data[:_DIGEST]:
        _logger.warning("what is kept in %s is damaged: it is made anew", path)
        with contextlib.suppress(OSError):
            path.unlink()
        return None
    return payload


def keep(kind: str, name: str, payload: bytes) -> bool:
    """Keep compiled code under a name; False, with a line in the log, where that is not possible.

    The file appears whole or not at all; two processes may race, both write the same.
    """
    root = folder()
    if root is None:
        _logger.debug("nothing is kept: there is no home folder")
        return False
    partial = root / kind / f".{secrets.token_hex(16)}.partial"
    try:
        partial.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        room = _room(kind)
        if room is None:
            return False
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY | _NOT_A_LINK
        descriptor = os.open(partial, flags, 0o600)
        try:
            with open(descriptor, "wb") as file:
                file.write(hashlib.sha256(payload).digest() + payload)
            os.replace(partial, room / name)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise
    except OSError as error:
        _logger.debug("nothing is kept, %s cannot be written: %s", root, error)
        return False
    return True


class MachineCode:
    """The cache of one compiled function, as Numba's dispatchers ask for it: ``dispatcher._cache = MachineCode(...)``.

    Parameters
    ----------
    kind : str
        Name of its folder in the cache.
    identity : str
        Everything that decides the machine code beside the signature and the processor.
    dump : callable
        ``dump(compiled) -> bytes or None``; None says that it cannot be kept.
    restore : callable
        ``restore(target_context, bytes) -> compiled``.
    """

    def __init__(
        self,
        kind: str,
        identity: str,
        dump: Callable[[Any], bytes | None],
        restore: Callable[[Any, bytes], Any],
    ) -> None:
        self.kind, self.identity = kind, identity
        self.dump, self.restore = dump, restore

    @property
    def cache_path(self) -> str:
        """The folder, for Numba's statistics."""
        return str(folder())

    def _name(self, sig: Any, codegen: Any) -> str:
        text = f"{self.identity}\n{sig}\n{codegen.magic_tuple()}"
        return hashlib.sha256(text.encode()).hexdigest()

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the compiled function for a signature, None if it is not there or not fit for use."""
        target_context.refresh()
        name = self._name(sig, target_context.codegen())
        data = read(self.kind, name)
        if data is None:
            return None
        try:
            return self.restore(target_context, data)
        # The digest fits, so this is code of another world (a library that changed under the same version): LLVM raises
        # RuntimeError, pickle nearly anything. Compiling anew is right whatever it is.
        except Exception as error:  # noqa: BLE001
            _logger.warning("compiled code of %s cannot be used, compiling it anew: %r", sig, error)
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep the compiled function of a signature."""
        payload = self.dump(data)
        if payload is not None:
            keep(self.kind, self._name(sig, data.codegen), payload)


@cache
def _load(text: str, kind: str, fingerprint: str) -> ModuleType:
    digest = hashlib.sha256((text + fingerprint).encode()).hexdigest()[:24]
    name = f"_gpukoop_{kind}_{digest}"
    module = ModuleType(name)
    module.__file__ = file = f"<{name}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    sys.modules[name] = (
        module  # before it runs: code that comes from the disk looks its module up by name
    )
    try:
        exec(compile(text, file, "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def load(text: str, kind: str, fingerprint: str) -> ModuleType:
    """Return a generated module, executed once a process; safe from several threads.

    Parameters
    ----------
    text : str
        The module; its functions keep their machine code with :class:`MachineCode`.
    kind : str
        Part of its name.
    fingerprint : str
        Everything that decides the machine code beside the text.
    """
    with _lock:
        return _load(text, kind, fingerprint)


# Held while a backend's modules are imported: a child forked meanwhile would wait for ever for the import to end.
_importing = threading.RLock()
# Locks of imports and compilers, in the order in which a thread takes them.
_compilers: list[Any] = [_importing, _lock]


def import_whole(name: str) -> ModuleType:
    """Return a module by name; no process forks while it is being imported."""
    if name in sys.modules and not getattr(sys.modules[name].__spec__, "_initializing", False):
        return sys.modules[name]
    threads = os.environ.get("NUMBA_NUM_THREADS", "").strip()
    if threads.lstrip("+-").isdigit() and int(threads) < 1:  # Numba would not say what to change
        raise ValueError(
            f"the environment variable NUMBA_NUM_THREADS is {threads}, expected 1 or more: set another number, or unset it"
        )
    with _importing:
        return importlib.import_module(name)


def hold_while_forking(lock: Any) -> None:
    """Let no process fork while a thread holds this lock: the child would wait for ever for an owner it lacks."""
    _compilers.append(lock)


def _acquire_all() -> None:
    for lock in _compilers:
        lock.acquire()


def _release_all() -> None:
    for lock in reversed(_compilers):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_acquire_all, after_in_parent=_release_all, after_in_child=_release_all
    )
