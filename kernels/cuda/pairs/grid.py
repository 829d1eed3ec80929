"""How many pieces a reduction is cut into: enough blocks for every multiprocessor, and few of them in the last wave."""

from __future__ import annotations

from typing import Any

import numpy as np

# Blocks that a large device holds at once, where no device says otherwise: 132 multiprocessors of an H100, 5 blocks each.
MULTIPROCESSORS = 132
BLOCKS_OF_SM = 5
CAPACITY = MULTIPROCESSORS * BLOCKS_OF_SM
# Waves up to which finer pieces are looked for: beyond, the last one is a small share of them all.
WAVES = 32
# The same for rows that visit each pair once, whose pieces leave partial sums in memory.
FINEST = 8
# What a piece costs besides its tiles, in tiles: its targets are loaded, its results written and read again.
PIECE = 0.25
MOST_SPLITS = 65535
# Where no cut fills whole waves this well, the blocks of the last one are spread evenly instead.
FILLED = 0.92
# What a multiprocessor does with 0, 1, .. blocks, of what it does with five. With three it did 0.93 (H200, product of three
# features, 2.97 against 3.19 Tp/s, 2026-11-28); fewer hide too little latency and are taken in proportion.
BUSY = np.array([1.0, 0.31, 0.62, 0.93, 0.965, 1.0])


def split(
    rows: int, tiles: int, capacity: int = CAPACITY, multiprocessors: int | None = MULTIPROCESSORS
) -> tuple[int, int]:
    """Return (tiles a piece, pieces a row of blocks) with the least time on a device that holds ``capacity`` blocks.

    Parameters
    ----------
    rows : int
        Blocks of targets.
    tiles : int
        Tiles of sources, all of which every row visits.
    capacity, multiprocessors : int
        Blocks that the device holds at once, and how many multiprocessors share them; None where pieces differ in length, so
        that only short ones are even.

    Notes
    -----
    Blocks start in waves of ``capacity``; a wave takes the time of one piece. From 10^5 points on the cut loses less than
    8 % to the last wave (``tests/device/test_cuda_grid.py``). Fewer points may have no such cut. But blocks share the multiprocessor that
    they are on: a wave that is half empty takes half the time if no multiprocessor has more of its blocks than another.
    """
    most = min(tiles, MOST_SPLITS, max(1, -(-WAVES * capacity // rows)))
    wanted = np.arange(1, most + 1)
    per = -(-tiles // wanted)
    pieces = -(-tiles // per)
    waves = -(-rows * pieces // capacity)
    best = int(np.argmin(waves * (per + PIECE)))
    filled = efficiency(rows, tiles, int(per[best]), int(pieces[best]), capacity)
    if multiprocessors is not None and filled < FILLED:
        waves, resident = _resident(rows * pieces, capacity, multiprocessors)
        last = resident / BUSY[np.minimum(resident, BLOCKS_OF_SM)]
        best = int(np.argmin((waves * capacity / multiprocessors + last) * (per + PIECE)))
    return int(per[best]), int(pieces[best])


def _resident(blocks: Any, capacity: int, multiprocessors: int) -> tuple[Any, Any]:
    """Return the whole waves, and how many blocks of the last one are on the multiprocessor that has most of them."""
    return blocks // capacity, -(-(blocks % capacity) // multiprocessors)


def cut(lengths: list[int], capacity: int = CAPACITY) -> int:
    """Return the tiles a piece that rows of these different lengths are cut into, with the least time.

    Every row ends with a shorter piece. Rows that are cut as fine as :data:`FINEST` waves lose little to the last one, and
    some coarser cut fills its waves as well: without the search 18 % of a device waited.
    """
    rows = np.array(lengths)
    total = int(rows.sum())
    asked = np.ceil(total / (capacity * np.linspace(1, FINEST, 4 * FINEST))).astype(int)
    per = np.unique(np.maximum(1, np.concatenate([asked, asked + 1])))
    waves = -(-(-(-rows // per[:, None])).sum(axis=1) // capacity)
    return int(per[np.argmin(waves * (per + PIECE))])


def efficiency(rows: int, tiles: int, per: int, pieces: int, capacity: int = CAPACITY) -> float:
    """Return the share of the device's time that goes to tiles, if blocks start in waves."""
    waves = -(-rows * pieces // capacity)
    return rows * tiles / (capacity * waves * per)


def balance(
    rows: int,
    tiles: int,
    per: int,
    pieces: int,
    capacity: int = CAPACITY,
    multiprocessors: int = MULTIPROCESSORS,
) -> float:
    """Return the same share if the blocks of the last wave take the time that those on one multiprocessor need in turn."""
    waves, resident = _resident(rows * pieces, capacity, multiprocessors)
    return rows * tiles / ((waves * capacity + resident * multiprocessors) * per)
