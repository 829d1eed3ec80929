"""Where the points of an operator go before a backend sees them: divided by lengths, or placed where their kernel is radial."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from gpukoop.arrays import Array, namespace
from gpukoop.kernels.formula.catalogue import InverseMultiquadric, RationalQuadratic
from gpukoop.kernels.formula.expr import exp, log
from gpukoop.kernels.formula.lengths import isotropic
from gpukoop.kernels.formula.placed import AbstractPlaced, Placement
from gpukoop.kernels.formula.profile import AbstractKernel, AbstractRadial, KernelSum, Profile
from gpukoop.kernels.operation import Operation
from gpukoop.scales import beyond_range, check_scales, divided

# c of far points in each dtype: its square is a normal number with room below it, and the range of distances grows by 1 / c.
UNITS = {"float32": 2.0**-57, "float64": 2.0**-480}


def place(kernel: AbstractKernel, X: Array, Y: Array) -> Placement:
    """Return the radial kernel that every backend knows, and the points that it acts on."""
    # Kernels of angles or products choose the space in which they are radial themselves.
    if isinstance(kernel, AbstractPlaced):
        return kernel.place(X, Y)
    radial, lengths = isotropic(kernel)
    check_scales(radial, X.dtype)
    if lengths is None:
        return _far_apart(Placement(radial, X, Y, None))
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

    return _far_apart(Placement(radial, x, y, back, lengths))


def _far_apart(near: Placement) -> Placement:
    """Return a placement as it is, or, where squares of distances leave the range and tails do not vanish, in other units."""
    X, Y = near.X, near.Y
    if not beyond_range(near.kernel, X, Y):
        return near
    far = far_kernel(near.kernel, X.dtype)
    if far is None:
        return near
    kernel, factor = far
    unit = X.dtype.type(factor)  # a power of two: nothing is rounded

    def back(G: Array) -> Array:
        G = G * unit.astype(G.dtype)
        return G if near.back is None else near.back(G)

    x = X * unit
    return Placement(kernel, x, x if Y is X else Y * unit, back, near.lengths)


@dataclass(frozen=True)
class FarTail(AbstractRadial):
    r"""Kernels that decay slowly, in units in which squares of distances stay in the range: ``unit`` is c, ``depth`` -log c^2.

    .. math:: \Big(1 + \frac{r^2}{2 \alpha \ell^2}\Big)^{-\alpha} = \exp\big(-\alpha (\log a - \log c^2)\big), \qquad
              a = c^2 + \frac{s}{2 \alpha}, \qquad s = \frac{c^2 r^2}{\ell^2}

    A power of the distance is a number where its square is none: 1e-200 at 1e200. Near pairs lose nothing in s, which is a
    normal number where it shows beside c^2; the logarithms lose two or three digits. Depth is a parameter so that no rule of
    powers multiplies it out.
    """

    alpha: float = 1.0
    unit: float = 0.5
    depth: float = math.log(4.0)
    profile: ClassVar[Profile] = Profile(
        phi=lambda s, alpha, unit, depth: exp(
            -alpha * (log(unit * unit + s / (2 * alpha)) + depth)
        ),
        dphi=lambda s, alpha, unit, depth: (
            -exp(-alpha * (log(unit * unit + s / (2 * alpha)) + depth))
            * (0.5 / (unit * unit + s / (2 * alpha)))
        ),
        parameters=("alpha", "unit", "depth"),
    )


def far_kernel(kernel: AbstractKernel, dtype: np.dtype) -> tuple[AbstractKernel, float] | None:
    """Return the same kernel for points times the number beside it, a power of two; None where it has no such form."""
    unit = UNITS[np.dtype(dtype).name]
    shortest = min(radial.length for _, radial in kernel.terms)
    factor = 2.0 ** round(math.log2(unit / shortest))
    terms = []
    for weight, radial in kernel.terms:
        if isinstance(radial, InverseMultiquadric):
            alpha = 0.5  # (1 + s)^(-1/2)
        elif isinstance(radial, RationalQuadratic):
            alpha = radial.alpha
        else:
            return None
        scale = radial.length * (factor / unit)
        tail = FarTail(scale, alpha=alpha, unit=unit, depth=-2 * math.log(unit))
        terms.append((weight, tail))
    return KernelSum(tuple(terms)), factor


def slope_back(result: Any, operation: Operation, placement: Placement) -> Any:
    """Return a result with its slope in the points themselves."""
    if placement.back is None or not operation.slope:
        return result
    value, slope = result if operation.value else (None, result)
    return operation.result(value, placement.back(slope))
