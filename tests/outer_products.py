"""What a launch of the loop of outer products computes, in NumPy: whole clouds at once, from its arguments alone."""

import numpy as np

from gpukoop.kernels.cuda.form import log2_phi
from gpukoop.kernels.reference import evaluate


def run(of, shape, grid, arguments):
    """Do what a launch does; return how many pairs were close."""
    x, y, nx, ny, v, a, b, symbols, sums, *sizes = arguments
    n, m, d, features, width, height, per, tiles, rare = map(int, sizes)
    blocks, splits = grid
    assert len(nx) == width == blocks * shape.targets >= n
    assert len(ny) == height == tiles * shape.sources >= m
    assert (splits - 1) * per < tiles <= splits * per
    assert rare == 64
    assert features % 4 == 0
    assert d <= features < d + 4
    x, y = x.reshape(-1, width), y.reshape(-1, height)
    assert len(x) % 16 == 0  # whole chunks are copied
    assert not x[d:].any()
    assert not y[d:].any()
    stretch, _, *values, cut = symbols
    norms = nx[:, None] + ny
    q = norms - 2 * (x[:features].T @ y[:features])
    close = q < cut * norms if shape.close else np.zeros(q.shape, bool)
    i, j = np.nonzero(close)
    difference = a.reshape(-1, d)[np.minimum(i, n - 1)] - b.reshape(-1, d)[np.minimum(j, m - 1)]
    q[i, j] = stretch * (difference**2).sum(axis=1)

    def at(tree, guard):
        with np.errstate(all="ignore"):
            found = np.broadcast_to(evaluate(tree, q, of.symbols, tuple(values)), q.shape)
        return np.where(q > 0, found, 0).astype(np.float32) if guard else found.astype(np.float32)

    out = sums.reshape(-1, splits, n)
    each = at(log2_phi(of), False) + v if shape.log else at(of.phi, of.singular) * v
    for split in range(splits):
        part = each[:, split * per * shape.sources : (split + 1) * per * shape.sources]
        if shape.log:
            peak = np.maximum(part.max(axis=1), np.float32(-1e30))
            out[1, split] = peak[:n]
            part = np.exp2(part - peak[:, None])
        out[0, split] = part.sum(axis=1, dtype=float)[:n]
    return int(close.sum())
