"""Normal draws by place: Random123's own vectors, the law, and the same numbers everywhere."""

import numpy as np
import pytest
from device_counter import counted_device
from scipy import stats

from gpukoop import philox

# kat_vectors of Random123: counter, key and the words they turn into.
VECTORS = [
    ("00000000 " * 6, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff " * 6, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        "243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize(("arguments", "expected"), VECTORS)
def test_published_vectors(arguments, expected):
    arguments = [np.uint64(int(word, 16)) for word in arguments.split()]
    assert [f"{int(word):08x}" for word in philox.words(*arguments)] == expected.split()


def draws(count, dtype="float64", seed=0):
    return philox.standard_normal(np.random.default_rng(seed), (count,), np.empty(0, dtype))


def test_arrays_compiled_loops_and_the_device_give_the_same_numbers():
    n = philox.FEW
    few, many = draws(n), draws(3 * philox.CHUNK)
    # log and cos of two libraries: some units in the last place of numbers below 9.
    bound = 8 * 9 * np.finfo(float).eps
    assert np.abs(few - many[:n]).max() <= bound
    with counted_device() as cupy, cupy.counting() as count:
        there = philox.standard_normal(np.random.default_rng(0), (n,), cupy.empty(0, "float64"))
    assert (count.kernels, count.syncs, count.copies) == (2, 0, 0)
    assert np.abs(there.get() - many[:n]).max() <= bound


def test_float32_is_the_rounding_of_float64():
    for count in (100, 3 * philox.FEW):
        wide = draws(count)
        assert np.abs(draws(count, "float32") - wide).max() <= 9 * np.finfo("float32").eps


def test_a_state_means_the_numbers_and_the_next_state_others():
    rng = np.random.default_rng(5)
    shape = (50, 2)
    first, second = (philox.standard_normal(rng, shape, np.empty(0)) for _ in range(2))
    again = philox.standard_normal(np.random.default_rng(5), shape, np.empty(0))
    assert (first == again).all()
    assert not (first == second).any()


def test_the_law_is_normal():
    """Moments and the distribution function within bounds that a right generator breaks once in 10^5 seeds each."""
    n = 400_000
    x = draws(n, seed=1)
    quantile = stats.norm.isf(0.5e-5)
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((x**power).mean() - mean) <= quantile * np.sqrt(variance / n)
    # Kolmogorov: P(sqrt(n) D > t) -> 2 exp(-2 t^2)
    t = np.sqrt(np.log(2e5) / 2)
    assert stats.kstest(x, "norm").statistic <= t / np.sqrt(n)
    # Neighbours, of which two share one counter, and the squares of such: correlations of independent numbers.
    for y in (x, x**2 - 1):
        for lag in (1, 2, 3):
            scale = np.sqrt((y**2).mean() ** 2 / n)
            assert abs((y[lag:] * y[:-lag]).mean()) <= quantile * scale
    assert np.abs(x).max() < 8.7
