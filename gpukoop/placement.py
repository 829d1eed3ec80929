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
    # Kernels of angles or products choose the space in which they are radial themselves.
    if isinstance(kernel, AbstractPlaced):
        return kernel.place(X, Y)
    radial, lengths = isotropic(kernel)
    check_scales(radial, X.dtype)
    if lengths is None:
        return Placement(radial, X, Y, None)
    if len(lengths) != X.shape[1]:
        raise ValueError(
            f"the kernel has {len(lengths)} scales and the points have {X.shape[1]} features: pass one scale for each feature, or a "
            "number for all"
        )

    # Where the points are, once: every slope is divided by it, and a copy from the host a call would be waited for.
    scales = namespace(X).asarray(lengths, dtype=X.dtype)
    x, y = divided(scales, X, Y)

    def back(G: Array) -> Array:
        # Gradients in x/l are l times those in x: divided once more, not multiplied.
        return G / scales.astype(G.dtype, copy=False)

    return Placement(radial, x, y, back, lengths)


def slope_back(result: Any, operation: Operation, placement: Placement) -> Any:
    """Return a result with its slope in the points themselves."""
    if placement.back is None or not operation.slope:
        return result
    value, slope = result if operation.value else (None, result)
    return operation.result(value, placement.back(slope))
