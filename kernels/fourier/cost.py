"""What a Fourier sum costs, and in which box: the numbers behind refusals and the cost table."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gpukoop.kernels.formula.profile import AbstractKernel
from gpukoop.kernels.fourier.boxes import Box
from gpukoop.kernels.fourier.modes import MAX_MODES, Grid, find_grid, needs
from gpukoop.kernels.operation import Operation

# Relative density sum |v| k / (sum |v| k(0)) of a typical target, as long as nobody has measured it.
TYPICAL_DENSITY = 1e-2


@dataclass(frozen=True)
class FourierRate:
    """Seconds of a Fourier sum on all cores, for one complex column.

    Attributes
    ----------
    start : float
        Plans, coefficients, box.
    point : float
        One target or source: sorting and moving it.
    cell : float
        One cell of its stencil of (digits + 1)^d.
    mode : float
        One mode of the grid, both FFTs included.
    pair : float
        One exact pair: checked rows, outliers and the rows that are put right.
    float64 : float
        Factor for double precision.
    """

    start: float
    point: float
    cell: float
    mode: float
    pair: float
    float64: float = 2.0


# Read off by hand, 2026-11-25, from timings of FINUFFT 2.5 on two shared cores of an AMD EPYC (AVX-512); good to a factor 2.
RATE = FourierRate(start=2e-2, point=2e-8, cell=3e-10, mode=6e-8, pair=3e-10)
# Of a device: not measured yet, those of the host. Rewritten by bench/calibrate.py --device cuda.
DEVICE_RATE = RATE


def rate_of(device: str) -> FourierRate:
    """Return the rates where points are, "cpu" or "cuda:0"."""
    return RATE if device == "cpu" else DEVICE_RATE


def density_accuracy(tol: float, density: float) -> float:
    """Return the absolute accuracy, relative to sum |v| k(0), that meets ``tol`` at that relative density."""
    return max(tol * density / 4, 1e-13)


def choose(
    kernel: AbstractKernel,
    boxes: tuple[Box, ...],
    n: int,
    m: int,
    accuracy: float,
    tol: float,
    slope: bool,
    rate: FourierRate,
) -> tuple[Box, Grid] | None:
    """Return the cheapest box and its grid, or None if no box has one."""
    found: list[tuple[float, int, Box, Grid]] = []
    for box in boxes:
        grid = grid_for(kernel, box, accuracy, tol, slope)
        if grid is not None:
            # Points outside the box are summed exactly against all others: a box that leaves many out pays for them here.
            exact = box.outliers[0] * m + box.outliers[1] * n
            found.append((grid.size * rate.mode + exact * rate.pair, len(found), box, grid))
    return min(found)[2:] if found else None


def grid_for(
    kernel: AbstractKernel, box: Box, accuracy: float, tol: float, slope: bool
) -> Grid | None:
    """Return a grid for ``accuracy``, or for ``tol`` alone where that asks for far fewer modes.

    Where the transform decays like a power, the last digits are expensive and not needed: truncation acts like a blur of
    the kernel, so its error is relative to near sources, not to all of them. The check has the last word.
    """
    loose = find_grid(kernel, box.widths, tol / 2, slope)
    tight = find_grid(kernel, box.widths, min(accuracy, tol / 2), slope)
    if loose is None or tight is None:
        return loose
    # Up to four times the modes are paid for digits in every row; more are not.
    return tight if tight.size <= 4 * loose.size else loose


def refusal(kernel: AbstractKernel, boxes: tuple[Box, ...], tol: float, slope: bool) -> str | None:
    """Return why no box has a grid, or None."""
    if any(find_grid(kernel, box.widths, tol / 2, slope) for box in boxes):
        return None
    box = min(boxes, key=lambda b: math.prod(b.widths))
    modes = needs(kernel, box.widths, tol, slope)
    size = " x ".join(f"{w:.3g}" for w in box.widths)
    if math.isinf(modes):
        return (
            "the transform of this kernel decays too slowly for its gradient (a kink at 0): "
            "use exact sums"
        )
    return (
        f"the scale is too small for the box: {kernel!r} at tol={tol:g} on a box of {size} needs "
        f"{modes:.1e} Fourier modes, more than {MAX_MODES:.1e}: use exact sums, a larger tol or a larger scale"
    )


def seconds(
    grid: Grid | None,
    box: Box | None,
    n: int,
    m: int,
    d: int,
    t: int,
    operation: Operation,
    tol: float,
    dtype: str,
    rate: FourierRate,
) -> float:
    """Return the cost of a reduction on a grid; that of the exact rows and columns included."""
    if grid is None or box is None:
        return math.inf
    columns = t + 1  # weights and their absolute values, two to a transform
    results = columns + (t * d if operation.slope else 0)
    single = dtype == "float32" and tol >= 1e-5
    digits = (1 if single else 3) - math.log10(tol * TYPICAL_DENSITY)
    point = rate.point + rate.cell * min(digits, 14.0) ** d
    total = m * columns / 2 * point + n * results / 2 * point
    total += grid.size * (columns + results) / 4 * rate.mode
    # The check: 32 rows against all sources.
    exact = 32 * m * (2.0 if operation.slope else 1.0)
    exact += box.outliers[0] * m + box.outliers[1] * n
    return rate.start + total * (1.0 if single else rate.float64) + exact * rate.pair
