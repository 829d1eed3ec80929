"""One BLAS thread for small dense steps: on a busy machine two threads spin for each other, up to 20 times slower."""

from __future__ import annotations

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


def one_thread(entries: int) -> AbstractContextManager[Any]:
    """Return a context in which BLAS runs on one thread, unless the arrays are large."""
    return nullcontext() if entries > LARGE else _controller().limit(limits=1, user_api="blas")
