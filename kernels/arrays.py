"""The two array libraries inside gpukoop: NumPy on the host and CuPy on a device.

CuPy is imported only where one of its arrays has come in, so that nothing here needs it.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

# An array of either library; the type checker knows no common one.
Array: TypeAlias = Any


def is_cupy(x: object) -> bool:
    """Return whether ``x`` is a CuPy array, without importing CuPy."""
    return type(x).__module__.partition(".")[0] == "cupy"


def namespace(x: Array) -> ModuleType:
    """Return the module whose functions act on ``x``: numpy or cupy."""
    if is_cupy(x):
        import cupy

        return cupy
    return np


def to_host(x: Array) -> np.ndarray:
    """Return ``x`` as a NumPy array."""
    return x.get() if is_cupy(x) else np.asarray(x)
