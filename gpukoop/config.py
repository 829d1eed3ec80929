"""Which backend the user wants: ``use_backend`` and ``GPUKOOP_BACKEND``; and on which cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_chosen: ContextVar[str | None] = ContextVar("gpukoop_backend", default=None)
# Set by gpukoop.distributed.use_cluster; an object with ``run``, as gpukoop.dispatch calls it.
cluster: ContextVar[Any] = ContextVar("gpukoop_cluster", default=None)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Compute with one backend inside a ``with`` block.

    Stands above ``GPUKOOP_BACKEND`` and below an explicit ``backend=`` argument. "auto" inside a block
    gives the choice back to the cost table. Threads and nested blocks do not leak into each other.

    Parameters
    ----------
    name : str
        "numpy", "numba-cpu", "numba-cuda", "keops", "fourier" or "auto".

    Yields
    ------
    None

    Raises
    ------
    ValueError
        If no backend has that name.
    """
    from gpukoop.backends import check_name

    token = _chosen.set(check_name(name, "use_backend"))
    try:
        yield
    finally:
        _chosen.reset(token)


def wanted_backend(argument: str | None) -> tuple[str, str]:
    """Return (backend name or "auto", who said so): argument > context > environment > cost."""
    from gpukoop.backends import check_name

    if argument is not None:
        return check_name(argument, "backend="), "the backend= argument"
    context = _chosen.get()
    if context is not None:
        return context, "use_backend"
    environment = os.environ.get("GPUKOOP_BACKEND", "").strip()
    if environment:
        return check_name(environment, "GPUKOOP_BACKEND"), "GPUKOOP_BACKEND"
    return "auto", "cost"
