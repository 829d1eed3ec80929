"""Sorted sums of all directions at once, against one line at a time."""

import numpy as np
import pytest

from gpukoop.flow.sorting import energy_row, transport_row
from gpukoop.flow.sorting_batched import energy_rows, transport_rows

SIZES = [(50, 50), (50, 70), (70, 31), (1, 5), (5, 1), (1, 1)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("n", "m"), SIZES)
@pytest.mark.parametrize(
    ("rows", "row"), [(energy_rows, energy_row), (transport_rows, transport_row)]
)
def test_rows_are_lines(rows, row, n, m, ties, dtype):
    rng = np.random.default_rng(n + m)
    z, x = rng.normal(size=(4, n)) + 3, rng.normal(size=(4, m)) + 3
    if ties:
        z, x = np.round(z, 1), np.round(x, 1)
    z, x = z.astype(dtype), x.astype(dtype)
    velocity, energy = rows(z, x)
    lines = [row(z[p].astype(float), x[p].astype(float)) for p in range(4)]
    assert velocity.dtype == z.dtype
    # Running sums of all rows' numbers below 8, in float64, and a few roundings of such a number in its own dtype.
    bound = 8 * (4 * (n + m)) ** 2 * np.finfo(float).eps + 4 * 8 * np.finfo(dtype).eps
    assert np.abs(velocity - np.stack([v for v, _ in lines])).max() <= bound
    assert abs(energy - sum(e for _, e in lines)) <= 4 * 8 * bound


def test_a_particle_alone_keeps_its_target_to_the_bit():
    rng = np.random.default_rng(0)
    z, x = (rng.normal(size=(3, 40)).astype("float32") for _ in range(2))
    velocity, _ = transport_rows(z, x)
    assert (velocity == np.stack([transport_row(z[p], x[p])[0] for p in range(3)])).all()
