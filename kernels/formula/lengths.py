r"""Scales of kernels: a number, a rule by name, or one number for each feature.

With a scale for each feature, :math:`s = \sum_c (x_c - y_c)^2 / \ell_c^2`. Every backend sums over points divided by
:math:`a_c = \ell_c / \ell`, where :math:`\ell` is the geometric mean of the scales and the scale of the kernel it sees.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

if TYPE_CHECKING:  # profiles check their scales here
    from gpukoop.kernels.formula.profile import AbstractKernel

Scale: TypeAlias = float | str | tuple[float, ...]
Lengths: TypeAlias = tuple[float, ...] | None


def _bad_scale(value: object) -> NoReturn:
    raise ValueError(
        f"scale must be a finite number > 0, 'median' or 'auto', or a number > 0 for each feature, got {value!r}: "
        "it is the length of the kernel in the units of the points"
    )


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        _bad_scale(value)
    # True is the number 1 to Python, and as a scale it is a slip of the hand every time.
    if isinstance(value, bool) or not 0.0 < number < math.inf:
        _bad_scale(value)
    return number


def checked_scale(scale: Any) -> Scale:
    """Return a scale as a float, a tuple of floats or a known word, or raise."""
    if isinstance(scale, str):
        if scale not in ("median", "auto"):
            _bad_scale(scale)
        return scale
    # A tuple, so that kernels stay hashable: operators, programs and fits are found by their kernel.
    if hasattr(scale, "__len__") and getattr(scale, "ndim", 1) == 1 and len(scale):
        return tuple(_number(value) for value in scale)
    return _number(scale)


def mean_and_lengths(scale: Scale) -> tuple[float, Lengths]:
    """Return the geometric mean of numeric scales, and each over it; None if there is one scale for all features."""
    if not isinstance(scale, tuple):
        return float(scale), None
    # In logarithms: the product of a hundred scales of 1e-5 is 0 in float64.
    mean = math.exp(math.fsum(map(math.log, scale)) / len(scale))
    return mean, tuple(value / mean for value in scale)


def isotropic(kernel: AbstractKernel) -> tuple[AbstractKernel, Lengths]:
    """Return the kernel with one scale a term, and the lengths by which points are divided before it sees them.

    The lengths have geometric mean 1, so that scales stay in the units of x; None where no term has a scale for each feature.

    Raises
    ------
    ValueError
        If the terms of a sum disagree: no single distance would serve them.
    """
    # A constant has no length, whatever its scale.
    scales = [s for _, k in kernel.terms if not k.profile.constant for s in k.scales]
    if not any(isinstance(scale, tuple) for scale in scales):
        return kernel, None
    first = mean_and_lengths(scales[0])[1]
    if not all(_alike(first, mean_and_lengths(scale)[1]) for scale in scales):
        raise ValueError(
            f"{kernel!r}: in a sum of kernels the scales for each feature must be multiples of each other, so that one distance "
            "serves all terms: add the operators instead, as in k1(X, Y) + k2(X, Y)"
        )
    terms = [
        (c, radial.rescaled(lambda scale: mean_and_lengths(scale)[0])) for c, radial in kernel.terms
    ]
    whole = terms[0][0] * terms[0][1] if terms[0][0] != 1.0 else terms[0][1]
    for c, radial in terms[1:]:
        whole = whole + c * radial
    return whole, first


def _alike(a: Lengths, b: Lengths) -> bool:
    """Return whether lengths of geometric mean 1 are the same to rounding."""
    if a is None or b is None or len(a) != len(b):
        return False
    return all(math.isclose(p, q, rel_tol=1e-12) for p, q in zip(a, b, strict=True))
