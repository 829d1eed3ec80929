"""Exact sums beside the fast ones: for rows that are checked, and for rows that are put right."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np

from gpukoop.kernels import reference
from gpukoop.kernels.arrays import Array, namespace
from gpukoop.kernels.formula.profile import AbstractKernel
from gpukoop.kernels.operation import Operation

# Rows compared with exact sums at every call.
CHECKED_ROWS = 32
# From so many pairs on the compiled loops are faster even where their code must be loaded first.
COMPILED_PAIRS = 2**20


def exact(
    kernel: AbstractKernel,
    operation: Operation,
    X: Array,
    Y: Array,
    V: Array,
    *,
    wide: bool = True,
) -> Any:
    """Return an exact reduction; in float64 if ``wide``, else in the dtype of the points."""
    if wide:
        X, Y, V = (a.astype(float) for a in (X, Y, V))
    module: Any = reference
    many = len(X) * len(Y) * V.shape[1] >= COMPILED_PAIRS
    if many and namespace(X) is np and importlib.util.find_spec("numba") is not None:
        from gpukoop.kernels.cpu import reduce as cpu

        module = cpu
    X, Y, V = (namespace(X).ascontiguousarray(a) for a in (X, Y, V))
    return module.reduce(kernel, operation, X, Y, V, tol=None)


def check_rows(n: int) -> Array:
    """Return the rows to check: drawn once for every n, so that equal calls give equal bits."""
    return np.sort(np.random.default_rng(n).choice(n, min(n, CHECKED_ROWS), replace=False))
