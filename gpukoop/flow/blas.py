"""Small dense systems on one BLAS thread.

Threads of BLAS wait for each other by spinning: on a busy machine a system of 100 unknowns takes 20 times longer on
two threads than on one (measured). Flows solve thousands of such systems, so they take one thread each.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

# Matrices up to so many entries are solved on one thread; larger ones keep what the user has set.
SMALL = 2**20


@lru_cache(maxsize=1)
def _controller() -> Any:
    # Looking for the loaded libraries takes milliseconds; once is enough when NumPy's and SciPy's are loaded.
    import scipy.linalg  # noqa: F401
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

    return ThreadpoolController()


def one_thread(entries: int) -> AbstractContextManager[Any]:
    """Return a context in which BLAS runs on one thread if the matrix has at most ``SMALL`` entries."""
    if entries > SMALL:
        return nullcontext()
    return _controller().limit(limits=1, user_api="blas")
