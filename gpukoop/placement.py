"""Where the points of an operator go before a backend sees them: divided by lengths, or placed where their kernel is radial."""

from __future__ import annotations

from typing import Any

from gpukoop.arrays import Array, namespace
from gpukoop.kernels.formula.lengths import isotropic
from gpukoop.kernels.formula.placed import AbstractPlaced, Placement
from gpukoop.kernels.formula.profile import AbstractKernel
from gpukoop.kernels.operation import Operation
from gpukoop.scales import check_scales, divided


def place(kernel: AbstractKernel, X: Array, Y: Array) -> Placement:
    """Return the radial kernel that every backend knows, and the points that it acts on."""
    if isinstance(kernel, AbstractPlaced):
        return kernel.place(X, Y)
    radial, lengths = isotropic(kernel)
    check_scales(radial, X.dtype)
    if lengths is None:
        return Placement(radial, X, Y, None)

    def back(G: Array) -> Array:
        return G / namespace(G).asarray(lengths, dtype=G.dtype)

    x, y = divided(lengths, X, Y)
    return Placement(radial, x, y, back, lengths)


def slope_back(result: Any, operation: Operation, placement: Placement) -> Any:
    """Return a result with its slope in the points themselves."""
    if placement.back is None or not operation.slope:
        return result
    value, slope = result if operation.value else (None, result)
    return operation.result(value, placement.back(slope))
