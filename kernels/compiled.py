"""Compiled code on disk: generated modules are written to a folder where Numba can cache them.

Numba refuses to cache a function made by ``exec``. A module in a real file is cached beside it, provided
that it is in ``sys.modules`` before it is executed (or the next process cannot find it). The file's name is a
hash of everything that decides the machine code, so a stale file is never found and nothing is invalidated.
"""

from __future__ import annotations

import hashlib
import importlib.util
import linecache
import logging
import os
import pickle
import sys
import threading
from functools import cache
from pathlib import Path
from types import ModuleType

_logger = logging.getLogger("gpukoop")
_lock = threading.Lock()
# What Python and Numba raise on a damaged file of compiled code (a full disk, a process killed while copying).
_DAMAGED = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ImportError,
)


def folder() -> Path:
    """Return where compiled code is kept: GPUKOOP_CACHE_DIR, or the platform's cache folder."""
    chosen = os.environ.get("GPUKOOP_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "gpukoop"


def _write(text: str, kind: str, name: str) -> Path | None:
    """Write the module unless it is there; None if no folder can be written."""
    path = folder() / kind / f"{name}.py"
    try:
        if path.read_text(encoding="utf-8") == text:
            return path
    except OSError:
        pass
    # Two processes may race: each writes its own file, and os.replace is atomic.
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        _logger.debug("compiled code will not be kept, %s cannot be written: %s", path, error)
        return None
    return path


def _execute(text: str, name: str, path: Path | None) -> ModuleType:
    if path is not None:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"cannot import generated code from {path}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            try:
                spec.loader.exec_module(module)
            except _DAMAGED as error:
                _logger.warning(
                    "compiled code of %s is damaged, compiling it anew: %r", path, error
                )
                for compiled in (path.parent / "__pycache__").glob(f"{name}.*"):
                    compiled.unlink(missing_ok=True)
                spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module
    module = ModuleType(name)
    file = f"<{name}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    exec(compile(text.replace("cache=True", "cache=False"), file, "exec"), module.__dict__)
    return module


@cache
def _load(text: str, kind: str, fingerprint: str) -> ModuleType:
    digest = hashlib.sha256((text + fingerprint).encode()).hexdigest()[:24]
    name = f"_gpukoop_{kind}_{digest}"
    return _execute(text, name, _write(text, kind, name))


def load(text: str, kind: str, fingerprint: str) -> ModuleType:
    """Return a generated module, compiled or from the disk cache; safe from several threads.

    Parameters
    ----------
    text : str
        The module.
    kind : str
        Name of its folder in the cache.
    fingerprint : str
        Everything that decides the machine code beside the text.
    """
    with _lock:
        return _load(text, kind, fingerprint)
