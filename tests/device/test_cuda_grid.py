"""How sums are cut into blocks: everything is covered once, and little of the device waits for the last wave."""

import heapq
import itertools

import numpy as np
import pytest

from gpukoop.kernels.cuda.packing import Clouds
from gpukoop.kernels.cuda.pairs.grid import balance, cut, efficiency, split
from gpukoop.kernels.cuda.pairs.plan import Plan, Sizes
from gpukoop.kernels.cuda.symmetric.plan import SymmetricPlan
from gpukoop.kernels.formula.catalogue import Gaussian
from gpukoop.kernels.operation import OPERATIONS, PRODUCT

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


def greedy(durations, capacity):
    """Return when the last of some blocks ends, each started as soon as one before it has ended."""
    ends = [0.0] * capacity
    for duration in durations:
        heapq.heapreplace(ends, ends[0] + duration)
    return max(ends)


def test_blocks_started_in_waves_are_what_a_device_that_starts_them_one_by_one_does():
    rows, tiles, capacity = 98, 782, 660
    per, pieces = split(rows, tiles, capacity)
    durations = [min(per, tiles - p * per) for _ in range(rows) for p in range(pieces)]
    share = rows * tiles / capacity / greedy(durations, capacity)
    assert share >= efficiency(rows, tiles, per, pieces, capacity) - 1e-12


# op, d, t, dtype: register tiles of 8 to 1 targets, wide frames, several columns, two clouds of any sizes.
FRAMES = [
    ("product", 3, 1, "float32"),
    ("product", 10, 16, "float32"),
    ("product", 3, 1, "float64"),
    ("value_and_gradient", 10, 1, "float32"),
    ("logsumexp_and_gradient", 17, 1, "float64"),
    ("product", 100, 1, "float32"),
    ("gradient", 100, 1, "float64"),
]


@pytest.mark.parametrize(("op", "d", "t", "dtype"), FRAMES)
def test_plans_of_two_clouds_fill_the_device_in_every_frame(op, d, t, dtype):
    few = SIZES[::7]
    for capacity in CAPACITIES[::5]:
        for n, m in [*zip(few, few, strict=True), (10**5, 3 * 10**6), (3 * 10**6, 10**5)]:
            clouds = Clouds(n, m, d, dtype, False)
            part = Plan(Gaussian(1.0), Sizes(OPERATIONS[op], clouds, t, capacity=capacity)).parts[0]
            share = efficiency(part.rows, part.tiles, part.per, part.splits, capacity)
            assert share >= 0.92, (n, m, capacity)


@pytest.mark.parametrize("op", OPERATIONS)
@pytest.mark.parametrize("d", [2, 3, 10])
@pytest.mark.parametrize(("n", "m"), [(10**5, 1000), (1000, 10**5), (10**5, 2000)])
def test_a_thin_problem_keeps_every_multiprocessor_busy(op, d, n, m):
    """Too few tiles to fill waves of 660 blocks: multiprocessors of an H200 have the same number of blocks, three or more."""
    clouds = Clouds(n, m, d, "float32", False)
    part = Plan(Gaussian(1.0), Sizes(OPERATIONS[op], clouds, 1)).parts[0]
    cut_so = part.rows, part.tiles, part.per, part.splits
    assert part.rows * part.splits >= 2 * 132
    assert max(efficiency(*cut_so), balance(*cut_so)) >= 0.92


def test_an_uneven_wave_is_given_up_for_an_even_one():
    """196 rows of 16 tiles: three pieces a row put five blocks on some multiprocessors and four on others, two put three on all."""
    per, pieces = split(196, 16, 660)
    assert (per, pieces) == (8, 2)
    assert balance(196, 16, 8, 2) > 0.98 > 0.8 > balance(196, 16, 6, 3)


def test_lists_are_cut_finer_because_their_lengths_differ():
    """Blocks that visit an eighth of the tiles and blocks that visit all: those of one list share it evenly."""
    for n, capacity in itertools.product(SIZES[:20:4], CAPACITIES[::5]):
        clouds = Clouds(n, n, 3, "float32", False)
        part = Plan(Gaussian(1.0), Sizes(PRODUCT, clouds, 1, listed=True, capacity=capacity)).parts[
            0
        ]
        counts = np.random.default_rng(n).integers(part.tiles // 8, part.tiles, part.rows)
        edges = counts[:, None] * np.arange(part.splits + 1) // part.splits
        durations = np.diff(edges, axis=1).ravel()
        assert durations.sum() / capacity / greedy(durations, capacity) >= 0.92, (n, capacity)


@pytest.mark.parametrize(
    ("d", "t", "dtype"), [(3, 1, "float32"), (10, 1, "float32"), (3, 4, "float32")]
)
def test_rows_that_visit_each_pair_once_fill_the_device(d, t, dtype):
    for n, capacity in itertools.product(SIZES[:20:8], CAPACITIES[::5]):
        sizes = Sizes(PRODUCT, Clouds(n, n, d, dtype, True), t, capacity=capacity)
        part = SymmetricPlan(Gaussian(1.0), sizes).parts[0]
        work = time = 0.0
        for band in part.bands:
            lengths = [part.tiles - row * part.own for row in range(band.top, band.bottom)]
            starts = band.per * np.arange(band.pieces)
            durations = [max(0, min(band.per, of - at)) for of in lengths for at in starts]
            work, time = work + sum(lengths), time + greedy(durations, capacity)
        assert work / capacity / time >= 0.92, (n, capacity)


def test_rows_of_different_lengths_are_cut_into_whole_pieces():
    assert cut([5, 3, 1], 660) == 1
    assert cut([10_000] * 660, 660) >= 1250


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
