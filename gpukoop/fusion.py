"""Elementwise formulas that are one launch on a device, written once for NumPy and CuPy."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from gpukoop.arrays import is_cupy


def fused(formula: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``formula(xp, *arrays)`` as a function of the arrays: one launch where they are CuPy's.

    Parameters
    ----------
    formula : callable
        Arithmetic, functions of ``xp`` and comparisons of arrays that broadcast, and one last reduction
        ``xp.sum(..., axis=...)`` or the like. No index, no shape, no branch on values; it is traced once for each choice of
        dtypes.

    Notes
    -----
    ``cupy.fuse`` compiles the formula when it is first called; on NumPy arrays it runs as it stands.

    Examples
    --------
    >>> import numpy as np
    >>> @fused
    ... def squares(xp, x, y):
    ...     return xp.sum(x * x + y * y, axis=1)
    >>> squares(np.ones((2, 3)), np.ones((1, 3)))
    array([6., 6.])
    """

    @functools.wraps(formula)
    def call(*arrays: Any) -> Any:
        if any(is_cupy(a) for a in arrays):
            import cupy

            return _on_device(formula, cupy)(*arrays)
        return formula(np, *arrays)

    return call


@functools.cache
def _on_device(formula: Callable[..., Any], cupy: ModuleType) -> Callable[..., Any]:
    return cupy.fuse(kernel_name=formula.__name__)(lambda *arrays: formula(cupy, *arrays))
