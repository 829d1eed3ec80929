"""Targets and sources of a Fourier sum: which box, which points outside it, their angles on its grid."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpukoop.kernels.arrays import Array, is_cupy, namespace, to_host
from gpukoop.kernels.formula.profile import AbstractKernel
from gpukoop.kernels.fourier import cost
from gpukoop.kernels.fourier.boxes import Box, deviation
from gpukoop.kernels.fourier.check import check_rows
from gpukoop.kernels.fourier.modes import MAX_MODES, Grid
from gpukoop.kernels.fourier.nufft import Cloud, Setup

# A grid of more modes that costs twenty times all pairs: few points in a vast box. They are all summed exactly.
SMALL_GRID, WASTE = 2**19, 20
# Columns of one pass, and the memory of their spectra.
PASS_COLUMNS, SPECTRA_BYTES = 8, 2**28
# So many targets at the rim of a cloud may well be summed exactly.
RIM = 512


class Geometry:
    """Targets and sources of an operator: box, outliers, and their angles on the grids they have met."""

    def __init__(self, X: Array, Y: Array, candidates: tuple[Box, ...]) -> None:
        self.X, self.Y, self.candidates = X, Y, candidates
        self.rate = cost.rate_of("cuda" if is_cupy(X) else "cpu")
        self.box: Box | None = None
        # Indices of the inner and outer rows; None where all are inside.
        self.near_x: Array = None
        self.far_x: Array = None
        self.near_y: Array = None
        self.far_y: Array = None

    def plan(self, kernel: AbstractKernel, tol: float, slope: bool) -> tuple[Box, Grid] | None:
        """Return the cheapest box with a grid for typical rows; None if all pairs cost less than any grid."""
        n, m, rate = len(self.X), len(self.Y), self.rate
        typical = cost.density_accuracy(tol, cost.TYPICAL_DENSITY)
        best = cost.choose(kernel, self.candidates, n, m, typical, tol, slope, rate)
        if best is None and MAX_MODES * rate.mode > WASTE * n * m * rate.pair:
            return None
        if best is None:
            raise ValueError(cost.refusal(kernel, self.candidates, tol, slope))
        wasteful = best[1].size * rate.mode > WASTE * n * m * rate.pair
        return None if best[1].size > SMALL_GRID and wasteful else best

    def columns(self, kernel: AbstractKernel, tol: float, slope: bool) -> int:
        """Return how many columns one pass takes: their spectra lie in memory together."""
        best = self.plan(kernel, tol, slope)
        size = best[1].size if best else 1
        return max(1, min(PASS_COLUMNS, SPECTRA_BYTES // (32 * size)))

    def choose(self, box: Box) -> None:
        """Split off the points outside a box."""
        if box is self.box:
            return
        self.box = box
        self.near_x, self.far_x = box.split(self.X) or (None, None)
        self.near_y, self.far_y = (
            (self.near_x, self.far_x) if self.Y is self.X else box.split(self.Y) or (None, None)
        )
        self.inner_x = self.X if self.near_x is None else self.X[self.near_x]
        self.inner_y = self.inner_x if self.Y is self.X else self.Y
        if self.Y is not self.X and self.near_y is not None:
            self.inner_y = self.Y[self.near_y]
        self._rows: np.ndarray | None = None
        self._clouds: dict[Any, tuple[Cloud, Cloud]] = {}

    def rows(self) -> Array:
        """Return the inner targets to compare with exact sums: random ones, and three at the rim of a large cloud.

        At most RIM targets are farther out than the middle one of these three.
        """
        if self._rows is None:
            n, box = len(self.inner_x), self.box
            # The same rows for every product of this operator, so that an error bar compares with the one before.
            self._rows = check_rows(n)
            if box is not None and n > 32 * RIM:
                xp = namespace(self.inner_x)
                # A transform errs most at the rim, where the kernel meets its periodic copies; random rows would rarely look
                # there.
                far = deviation(self.inner_x, box.middle, box.spread)
                ranks = [n - 2 * RIM, n - RIM, n - RIM // 2]
                self._rows = np.concatenate(
                    [self._rows, to_host(xp.argpartition(far, ranks)[ranks])]
                )
        return self._rows

    def clouds(self, grid: Grid, plan: Setup) -> tuple[Cloud, Cloud]:
        """Return targets and sources as angles of a grid, kept for the next product."""
        key = grid.periods, plan.real, grid.size
        if key not in self._clouds:
            angles = self._angles(self.inner_x, grid, plan)
            sources = (
                angles if self.inner_y is self.inner_x else self._angles(self.inner_y, grid, plan)
            )
            self._clouds = {  # one grid at a time: angles are as large as the points
                key: (
                    Cloud(angles, grid.size, pieces=False),
                    Cloud(sources, grid.size, pieces=True),
                )
            }
        return self._clouds[key]

    def _angles(self, X: Array, grid: Grid, plan: Setup) -> list[Array]:
        # Centred in float64 before rounding: an angle then has an error of 1e-7 of the box, not of its distance to 0.
        if self.box is None:
            raise RuntimeError("no box chosen")
        ends = zip(self.box.low, self.box.high, grid.periods, strict=True)
        return [
            ((X[:, c].astype(float) - (a + b) / 2) * (2 * math.pi / P)).astype(plan.real)
            for c, (a, b, P) in enumerate(ends)
        ]
