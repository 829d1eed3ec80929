"""One BLAS thread for small dense steps: on a busy machine two threads spin for each other, up to 20 times slower."""

from __future__ import annotations

import os
import threading
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

# Bases of more numbers than this gain from threads: 64 MB in float64.
LARGE = 2**23


@lru_cache(maxsize=1)
def _controller() -> Any:
    # Finding the loaded libraries takes milliseconds; NumPy's and SciPy's are there by now.
    import scipy.linalg  # noqa: F401
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

    return ThreadpoolController()


def _libraries() -> list[Any]:
    return [library for library in _controller().lib_controllers if library.user_api == "blas"]


def _release(anybody: bool = False) -> None:
    # Newer threadpoolctl lets one thread at a time set OpenBLAS and ignores all others without a word, also the one that
    # writes back what another has set. Older ones have no such owner.
    from threadpoolctl import OpenBLASController

    if hasattr(OpenBLASController, "clear_controlling_thread"):
        OpenBLASController.clear_controlling_thread(force=anybody)


class _Limit:
    """One thread for BLAS while anybody asks for it; the numbers before come back when the last one has left.

    Differs from threadpoolctl's own context, which writes back what it found: of two that overlap, the second finds the
    first one's single thread and leaves it for ever. Numbers that a thread of the user's holds or sets stay the user's.
    """

    def __init__(self) -> None:
        self.lock, self.users = threading.Lock(), 0
        self.before: list[int] | None = None

    def __enter__(self) -> None:
        with self.lock:
            if not self.users:
                self.set()
            self.users += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.users -= 1
            if not self.users:
                self.restore()

    def set(self) -> None:
        libraries = _libraries()
        before = [library.num_threads for library in libraries]
        for library, number in zip(libraries, before, strict=True):
            if number != 1:
                library.set_num_threads(1)
        # Unchanged, there was nothing to change, or another thread owns the numbers.
        if [library.num_threads for library in libraries] != before:
            self.before = before

    def restore(self) -> None:
        if self.before is None:
            return
        # The last one to leave is not always the thread that set the numbers and owns them.
        _release(anybody=True)
        for library, number in zip(_libraries(), self.before, strict=True):
            if library.num_threads == 1:
                library.set_num_threads(number)
        self.before = None
        _release()


_limit = _Limit()


def _renew() -> None:
    """In a forked child nobody else is left: its own lock, and the limits of the parent's threads lifted."""
    global _limit
    _limit.restore()
    _limit = _Limit()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


def one_thread(entries: int) -> AbstractContextManager[Any]:
    """Return a context in which BLAS runs on one thread, unless the arrays are large."""
    return nullcontext() if entries > LARGE else _limit
