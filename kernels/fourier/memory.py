"""What Fourier sums remember of two clouds of points between calls."""

from __future__ import annotations

from dataclasses import dataclass

from gpukoop.kernels.arrays import Array
from gpukoop.kernels.formula.profile import AbstractKernel
from gpukoop.kernels.fourier.boxes import Box, boxes
from gpukoop.kernels.fourier.geometry import Geometry


@dataclass(eq=False)
class Memory:
    """Boxes and angles of two clouds, and what the last sum said of itself.

    Attributes
    ----------
    error_estimate : float or None
        Of the last sum, relative to sum |v| k in the worst row.
    n_directions : int or None
        How many directions the last sliced sum took.
    geometry : Geometry or None
        Box, outliers and angles, once there was a transform.
    """

    error_estimate: float | None = None
    n_directions: int | None = None
    geometry: Geometry | None = None
    _boxes: tuple[Box, ...] | None = None

    def boxes(self, X: Array, Y: Array) -> tuple[Box, ...]:
        """Return the boxes of the points, looked for once."""
        if self._boxes is None:
            self._boxes = boxes(X, Y)
        return self._boxes

    def candidates(
        self, kernel: AbstractKernel, X: Array, Y: Array, tol: float | None
    ) -> tuple[Box, ...]:
        """Return the boxes that a choice of backend depends on; () where Fourier sums would need none."""
        if tol is None or X.shape[1] > 3 or any(k.profile.fourier is None for _, k in kernel.terms):
            return ()
        return self.boxes(X, Y)

    def geometry_of(self, X: Array, Y: Array) -> Geometry:
        """Return the geometry of the points, made anew where others have come."""
        if self.geometry is None or self.geometry.X is not X or self.geometry.Y is not Y:
            if self.geometry is not None:
                self._boxes = None
            self.geometry = Geometry(X, Y, self.boxes(X, Y))
        return self.geometry
