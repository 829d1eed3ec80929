"""How sums are cut into blocks: everything is covered once, and little of the device waits for the last wave."""

import itertools

import numpy as np
import pytest

from gpukoop.kernels.cuda.pairs.grid import efficiency, split

# Blocks a multiprocessor (64 to 128 registers a thread) times multiprocessors: A100, H100, H200, B200.
CAPACITIES = [blocks * count for blocks, count in itertools.product((4, 5, 6, 8), (108, 132, 148))]
SIZES = np.unique(np.geomspace(1e5, 3e6, 40).astype(int) + np.arange(40) * 37).tolist()


@pytest.mark.parametrize("targets", [1, 2, 4, 8])
@pytest.mark.parametrize("tile", [64, 128])
def test_no_size_from_a_hundred_thousand_on_loses_more_than_8_percent(targets, tile):
    for n, capacity in itertools.product(SIZES, CAPACITIES):
        for m in (n, 100_000):
            rows, tiles = -(-n // (128 * targets)), -(-m // tile)
            assert efficiency(rows, tiles, *split(rows, tiles, capacity), capacity) >= 0.92, (n, m)


@pytest.mark.parametrize("rows", [1, 2, 7, 98, 5000])
@pytest.mark.parametrize("tiles", [1, 2, 63, 782, 100_000])
def test_pieces_cover_all_tiles_and_none_is_empty(rows, tiles):
    per, pieces = split(rows, tiles)
    assert (pieces - 1) * per < tiles <= pieces * per
    assert pieces <= 65535


def test_few_targets_are_split_until_the_device_is_full():
    per, pieces = split(1, 8000)
    assert pieces >= 600
    assert per <= 14
