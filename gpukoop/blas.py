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


class _Limit:
    """One thread for BLAS while anybody asks for it; the number before comes back when the last one has left.

    Differs from threadpoolctl's own context, which writes back what it found: of two that overlap, the second finds the
    first one's single thread and leaves it for ever.
    """

    def __init__(self) -> None:
        self.lock, self.users = threading.Lock(), 0
        self.limit: Any = None

    def __enter__(self) -> None:
        with self.lock:
            if not self.users:
                self.limit = _controller().limit(limits=1, user_api="blas")
            self.users += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.users -= 1
            if not self.users and self.limit is not None:
                self.limit.restore_original_limits()
                self.limit = None


_limit = _Limit()


def _renew() -> None:
    """In a forked child nobody else is left: its own lock, and the limits of the parent's threads lifted."""
    global _limit
    if _limit.limit is not None:
        _limit.limit.restore_original_limits()
    _limit = _Limit()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


def one_thread(entries: int) -> AbstractContextManager[Any]:
    """Return a context in which BLAS runs on one thread, unless the arrays are large."""
    return nullcontext() if entries > LARGE else _limit
