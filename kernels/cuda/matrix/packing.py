r"""Points and weights in the order of fragments, as :mod:`gpukoop.kernels.cuda.matrix.tensor` reads them.

A point is multiplied by a power of two of its own that brings its largest coordinate to 2^14 .. 2^15, and split into one
or two numbers of 16 bits, 11 of them significant: two hold x up to 2^-22 of a coordinate, or 2^-40 of the largest, whichever is
more. So they are what two TF32 numbers hold, in half the words and at twice the rate of the units.

======== ================================= ============================================================
array    shape                             order
======== ================================= ============================================================
points A (rows / 16, chunk, part, lane, 4) words e = 2 a + h: row g + 8 h, features 16 c + 8 a + 2 t, + 1
points B (groups, chunk, lane, part, 2)    words a: source g, features 16 c + 8 a + 2 t, + 1
side     (groups, 24)                      n and v of sources 0 .. 7 in turns; then 2 s
right    (groups, column, lane, part, 2)   words e: source 2 t + e, right-hand side 8 c + g
======== ================================= ============================================================
"""

from __future__ import annotations

from types import ModuleType

import numpy as np

from gpukoop.kernels.arrays import Array
from gpukoop.kernels.cuda.matrix.precision import round_tf32
from gpukoop.kernels.cuda.matrix.shape import Shape, ceil

# The largest coordinate of a point is brought below 2^TOP; the largest 16-bit number is 65504.
TOP = 15


def split(x: Array, parts: int, xp: ModuleType) -> tuple[list[Array], Array]:
    """Return (parts, scales): float16 arrays whose sum times ``scales`` is x, float32 of shape (rows, d)."""
    # A power of two for each point and not for the cloud: an outlier would push the others out of float16's exponents.
    _, exponent = xp.frexp(abs(x).max(axis=1))
    # frexp gives max < 2^exponent, so the scaled coordinates lie below 2^15, and half of float16's exponents are for smaller
    # ones.
    exponent = TOP - exponent.astype(np.int32)
    rest = xp.ldexp(x, exponent[:, None])
    found = []
    for _ in range(parts):
        found.append(rest.astype(np.float16))
        # Exact: float16 keeps 11 of 24 bits, and what is left has the same exponent or a smaller one (Ootomo, Yokota 2022).
        rest = rest - found[-1].astype(np.float32)
    return found, xp.ldexp(xp.ones(len(x), np.float32), -exponent)


def rounded(x: Array, xp: ModuleType) -> Array:
    """Return the points that one part stands for."""
    (part,), scales = split(x, 1, xp)
    return part.astype(np.float32) * scales[:, None]


def _words(part: Array, rows: int, chunks: int, xp: ModuleType) -> Array:
    """Return a part, (rows, d), as pairs of features in words, padded, (rows, chunk, 2 a, 4 t)."""
    out = xp.zeros((rows, 16 * chunks), np.float16)
    out[: len(part), : part.shape[1]] = part
    # Two neighbouring features are one register of a fragment; zeros beyond d multiply to nothing and need no test.
    return out.view(np.int32).reshape(rows, chunks, 2, 4)


def targets(x: Array, shape: Shape, xp: ModuleType) -> tuple[Array, Array]:
    """Return (words, scales) of the targets; rows are padded to whole blocks by the caller."""
    parts, scales = split(x, shape.parts, xp)
    rows, c = len(x), shape.chunks
    stacked = xp.stack([_words(part, rows, c, xp) for part in parts], axis=1)
    # (G, h, g, part, c, a, t) -> (G, c, part, g, t, a, h)
    # Order of the fragment of A: registers a0 to a3 of a lane are (row g, g + 8) by (features 2t, 2t + 8), made neighbours
    # here.
    both = stacked.reshape(rows // 16, 2, 8, shape.parts, c, 2, 4)
    return xp.ascontiguousarray(both.transpose(0, 4, 3, 2, 6, 5, 1)).ravel(), scales


def source_points(y: Array, shape: Shape, xp: ModuleType) -> tuple[Array, Array]:
    """Return (words, scales) of the sources, (m / 8, words) and (m,): what does not change with the weights."""
    parts, scales = split(y, shape.parts, xp)
    m, c = len(y), shape.chunks
    stacked = xp.stack([_words(part, m, c, xp) for part in parts], axis=1)
    # (J, g, part, c, a, t) -> (J, c, g, t, part, a)
    # High and low words of a source side by side: a lane reads both parts of its fragment of B as one 16-byte word.
    both = stacked.reshape(m // 8, 8, shape.parts, c, 2, 4).transpose(0, 3, 1, 5, 2, 4)
    return xp.ascontiguousarray(both).reshape(m // 8, -1), scales


def sources(
    points: tuple[Array, Array],
    norms: Array,
    weights: Array,
    right: Array | None,
    shape: Shape,
    xp: ModuleType,
) -> Array:
    """Return the tiles of the sources, one row a tile; ``right`` (m, width) are right-hand sides in float32."""
    words, scales = points
    m = len(scales)
    tiles = m // shape.tile
    side = xp.empty((m // 8, 24), np.float32)
    side[:, 0:16:2] = norms.reshape(-1, 8)
    side[:, 1:16:2] = weights.reshape(-1, 8)
    # The 2 of 2 x.y rides on the scale, a power of two, so it costs neither an instruction nor a digit.
    side[:, 16:] = 2 * scales.reshape(-1, 8)
    columns = [words, side.view(np.int32)]
    if right is not None:
        wide = xp.zeros((m, 8 * shape.columns), np.float32)
        wide[: len(right), : right.shape[1]] = right
        high = round_tf32(wide)
        both = [high, wide - high][: shape.right_parts]
        # (J, t, e, c, g, part) -> (J, c, g, t, part, e)
        # Kept in float32 words of TF32: values of the kernel, the other factor, span too many exponents for 16 bits.
        stacked = xp.stack(both, axis=-1).view(np.int32)
        stacked = stacked.reshape(m // 8, 4, 2, shape.columns, 8, shape.right_parts)
        columns.append(stacked.transpose(0, 3, 4, 1, 5, 2))
    return xp.concatenate([a.reshape(tiles, -1) for a in columns], axis=1)


def padded(size: int, step: int) -> int:
    """Return the next multiple of ``step``."""
    return ceil(size, step) * step
