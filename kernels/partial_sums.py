"""A reduction in blocks: how targets and sources are cut, and how partial results are put together.

=== =============== ====================
n   targets         rows of a result
m   sources         summed over
=== =============== ====================
"""

from __future__ import annotations

import itertools

import numpy as np

from gpukoop.kernels.arrays import Array
from gpukoop.kernels.operation import Operation

# Results of a reduction in float64, its error estimate and its warnings.
Partial = tuple[tuple[Array, ...], float | None, tuple[str, ...]]

# Pairs worth a task: some 20 ms on a core, against about 1 ms that Dask spends on one.
PAIRS_PER_TASK = 2**25
# More blocks than this serve no cluster and burden the scheduler.
MAX_ROW_BLOCKS, MAX_SOURCE_BLOCKS = 256, 16
# Sources of one block: 2 MB in three dimensions, so that a few blocks lie in a worker's cache and network packets.
SOURCE_BLOCK = 2**18


def blocks(n: int, m: int) -> tuple[list[slice], list[slice]]:
    """Return slices of targets and of sources: a function of the sizes alone, so that results repeat bit for bit."""
    columns = min(MAX_SOURCE_BLOCKS, -(-m // SOURCE_BLOCK))
    rows = min(n, MAX_ROW_BLOCKS, max(2, n * m // (columns * PAIRS_PER_TASK)))
    return _cut(n, rows), _cut(m, columns)


def _cut(n: int, count: int) -> list[slice]:
    edges = np.linspace(0, n, count + 1).astype(int)
    return [slice(int(a), int(b)) for a, b in itertools.pairwise(edges)]


def combine(operation: Operation, a: Partial, b: Partial) -> Partial:
    """Return the reduction over two blocks of sources from those over each.

    Sums add. Log-sum-exps are combined by logaddexp, their gradients by the softmax weights exp(L_a - L), exp(L_b - L).
    """
    left, right = a[0], b[0]
    shapes = [[part.shape for part in parts] for parts in (left, right)]
    if shapes[0] != shapes[1]:  # would be broadcast in silence
        raise RuntimeError(f"two blocks of {operation} have the shapes {shapes[0]} and {shapes[1]}")
    if operation.log:
        L = np.logaddexp(left[0], right[0])
        parts: tuple[Array, ...] = (L,)
        if len(left) > 1:
            safe = np.where(L == -np.inf, 0.0, L)
            wa, wb = np.exp(left[0] - safe), np.exp(right[0] - safe)
            parts = L, wa[:, None] * left[1] + wb[:, None] * right[1]
    else:
        parts = tuple(p + q for p, q in zip(left, right, strict=True))
    estimates = [e for e in (a[1], b[1]) if e is not None]
    return parts, max(estimates) if estimates else None, a[2] + b[2]
