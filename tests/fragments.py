"""The tensor-core program in NumPy, from packed words to sums: fragments laid out as the manual of PTX has them.

Written from the manual's tables and the table of the packing, lane by lane; it shares no code with the loop.
"""

import numpy as np

from gpukoop.kernels.cuda.form import log2_phi
from gpukoop.kernels.reference import evaluate

LANES = np.arange(32)
G, T = LANES >> 2, LANES & 3


def halves(words):
    """Return the two 16-bit numbers of words, the low one first, as float32 in a new last axis."""
    return np.ascontiguousarray(words).view(np.float16).reshape(*words.shape, 2).astype(np.float32)


def matrix_a(words):
    """Return (..., 16, 16) from A fragments of m16n8k16, (..., 32, 4)."""
    out = np.full((*words.shape[:-2], 16, 16), np.nan, np.float32)
    pairs = halves(words)
    for e, (row, column) in enumerate(((0, 0), (8, 0), (0, 8), (8, 8))):
        for b in range(2):
            out[..., G + row, column + 2 * T + b] = pairs[..., e, b]
    return out


def matrix_b(words):
    """Return (..., 16, 8) from B fragments of m16n8k16, (..., 32, 2)."""
    out = np.full((*words.shape[:-2], 16, 8), np.nan, np.float32)
    pairs = halves(words)
    for e in range(2):
        for b in range(2):
            out[..., 8 * e + 2 * T + b, G] = pairs[..., e, b]
    return out


def products(shape, words, tiles):
    """Return (x.y, side, right): scaled products (targets, sources), then what lies beside the points of a tile."""
    parts, chunks = shape.parts, shape.chunks
    sizes = [shape.groups * size for size in shape.group_words]
    points, side, right = np.split(tiles, np.cumsum(sizes)[:2], axis=1)
    A = matrix_a(words.reshape(-1, chunks, parts, 32, 4))
    B = matrix_b(points.reshape(-1, chunks, 32, parts, 2).swapaxes(2, 3))
    pairs = [(0, 0), (0, 1), (1, 0)] if parts == 2 else [(0, 0)]
    dot = 0.0
    for i, j in pairs[::-1]:  # small products first
        each = np.einsum("Gcrk,Jcks->GJrs", A[:, :, i], B[:, :, j], dtype=np.float32)
        dot = dot + each
    rows, columns = 16 * len(A), 8 * len(B)
    return dot.transpose(0, 2, 1, 3).reshape(rows, columns), side.reshape(-1, 24), right


def second(shape, values, right):
    """Return values (targets, sources) times right-hand sides, by m16n8k8: number t is source 2t, t + 4 is 2t + 1."""
    parts, columns = shape.right_parts, shape.columns
    words = np.ascontiguousarray(right).view(np.float32).reshape(-1, columns, 32, parts, 2)
    assert not (words[..., 0, :].copy().view(np.int32) & 0x1FFF).any(), "TF32 numbers"
    B = np.full((len(words), columns, 8, 8, parts), np.nan)  # (group, column, k, right-hand side)
    for part in range(parts):
        B[:, :, T, G, part] = words[..., part, 0]
        B[:, :, T + 4, G, part] = words[..., part, 1]
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    A = values.reshape(len(values), -1, 8)[:, :, order].astype(float)
    return np.einsum("iJk,Jckg->icg", A, B.sum(axis=-1)).reshape(len(values), -1)


def run(of, shape, grid, arguments):
    """Do what a launch does; return how many pairs were close."""
    (
        words, tiles, norms, scales, a, b, symbols, top, sums, moments, _,
        n, m, d, per, many, first, _,
    ) = arguments  # fmt: skip
    stretch, prescale, *values, cut = symbols
    n, m, d, per, many, first = (int(i) for i in (n, m, d, per, many, first))
    blocks, splits = grid
    assert len(tiles) == many
    assert len(norms) == blocks * shape.block_targets >= n
    assert (splits - 1) * per < many <= splits * per
    a, b = a.reshape(-1, d), b.reshape(-1, d)
    dot, side, right = products(shape, words, tiles)
    weight, factor = side[:, 1:16:2].view(np.float32), side[:, 16:].view(np.float32)
    z = norms[:, None] + side[:, 0:16:2].view(np.float32).ravel()
    q = z - scales[:, None] * (factor.ravel() * dot)
    close = q < cut * z if shape.close else np.zeros(q.shape, bool)
    i, j = np.nonzero(close)
    difference = a[np.minimum(i, n - 1)] - b[np.minimum(j, m - 1)]
    q[i, j] = stretch * (difference**2).sum(axis=1)
    assert len(values) == len(of.symbols)

    def at(tree, guard):
        with np.errstate(all="ignore"):
            found = np.broadcast_to(evaluate(tree, q, of.symbols, tuple(values)), q.shape).astype(
                np.float32
            )
        return np.where(q > 0, found, np.float32(0)) if guard else found

    v = weight.ravel()
    first_sum = slope = None
    kink = of.kink or of.singular
    if shape.log:
        logarithm = v + at(log2_phi(of), False)
        if shape.slope:
            first_sum = np.exp2(logarithm - top[:, None])
            slope = first_sum * at(of.log_slope, kink)
    else:
        phi = at(of.phi, of.singular)
        first_sum = v * phi if shape.value else phi
        if shape.slope:
            slope = v * at(of.dphi, kink)
    if shape.slope:
        share = np.where(close, slope, 0)[i, j]
        slope = np.where(close, np.float32(0), slope)
    for split in range(splits):
        of_split = slice(split * per * shape.tile, min(many, (split + 1) * per) * shape.tile)
        out = sums.reshape(-1, splits, n)[:, split]
        if shape.log and not shape.slope:
            peak = np.maximum(logarithm[:, of_split].max(axis=1), np.float32(-1e30))
            out[0] = np.exp2(logarithm[:, of_split] - peak[:, None]).sum(axis=1, dtype=float)[:n]
            out[1] = peak[:n]
        elif shape.slope or shape.width == 0:
            if shape.sums == 2 or not shape.slope:
                out[0] = first_sum[:, of_split].sum(axis=1, dtype=float)[:n]
            if shape.slope:
                out[-1] = slope[:, of_split].sum(axis=1, dtype=float)[:n]
        if shape.width:
            of_tiles = slice(split * per, min(many, (split + 1) * per))
            weighed = slope if shape.slope else first_sum
            part = second(shape, weighed[:, of_split], right[of_tiles])
            place = moments.reshape(splits, n, -1)[split]
            place += part[:n].astype(np.float32)
            if shape.slope:
                here = (j >= of_split.start) & (j < of_split.stop) & (i < n)
                width = min(place.shape[1], d - first)
                add = -prescale * share[here, None] * difference[here, first : first + width]
                np.add.at(place[:, :width], i[here], add)
    return int(close.sum())
