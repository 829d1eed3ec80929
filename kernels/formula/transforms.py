r"""Fourier transforms of radial profiles, where they exist in closed form.

A transform is written for scale 1 in d dimensions, as a function of :math:`w = |\xi| \ge 0`:

.. math:: \hat k(w) = \int_{R^d} \varphi(|x|^2)\, e^{-i \xi \cdot x}\, dx

A kernel of scale l has the transform :math:`l^d\, \hat k(l w)`. ``tests/sums/test_fourier.py`` inverts each of them and
compares with phi.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from gpukoop.kernels.arrays import Array


def gaussian(w: Array, d: int) -> Array:
    r"""Return :math:`(2 \pi)^{d/2} e^{-w^2/2}`, the transform of :math:`e^{-s/2}`."""
    return (2 * math.pi) ** (d / 2) * np.exp(-(w**2) / 2)


def matern(nu: float) -> Callable[..., Array]:
    r"""Return the transform of the Matern kernel of smoothness nu.

    .. math:: 2^d \pi^{d/2} \frac{\Gamma(\nu + d/2) (2 \nu)^\nu}{\Gamma(\nu)} (2 \nu + w^2)^{-\nu - d/2}

    References
    ----------
    .. [1] C. E. Rasmussen, C. K. I. Williams, Gaussian Processes for Machine Learning, 2006, eq. 4.15 (there in
       cycles: w = 2 pi s).
    """

    def transform(w: Array, d: int) -> Array:
        order = nu + d / 2
        # At scale 1: nu multiplies s inside the kernel, hence the (2 nu)^nu in front and 2 nu beside w^2.
        front = 2**d * math.pi ** (d / 2) * math.gamma(order) * (2 * nu) ** nu / math.gamma(nu)
        return front * (2 * nu + w**2) ** -order

    return transform


def multiquadric(w: Array, d: int, beta: float, length: float = 1.0) -> Array:
    r"""Return the transform of :math:`(1 + r^2 / a^2)^{-\beta}`, a = ``length``.

    .. math:: a^d \frac{2 \pi^{d/2}}{\Gamma(\beta)} \left(\frac{a w}{2}\right)^{\beta - d/2} K_{d/2 - \beta}(a w)

    It is infinite at w = 0 where :math:`\beta \le d/2`: the kernel is then not integrable.

    References
    ----------
    .. [1] H. Wendland, Scattered Data Approximation, 2005, Theorem 6.13.
    """
    from scipy.special import kve  # here: it would be a third of the time of `import gpukoop`

    w = np.asarray(w, float)
    order = beta - d / 2
    with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
        u = length * w
        front = math.log(2.0) + d / 2 * math.log(math.pi) - math.lgamma(beta) + d * math.log(length)
        # kve is K_v(u) e^u: the exponent is added in logarithms, so large arguments underflow to 0 and not to nan
        value = np.exp(front + order * np.log(u / 2) + np.log(kve(abs(order), u)) - u)
    # K_v(u) u^v tends to 2^(v - 1) Gamma(v): the limit is the integral of the kernel, written where the product is inf * 0.
    at_zero = math.inf
    if order > 0:
        at_zero = length**d * math.pi ** (d / 2) * math.exp(math.lgamma(order) - math.lgamma(beta))
    value = np.where(np.isfinite(value), value, at_zero)
    # exp(-700) is about the end of float64: beyond it the logarithms above are right and their exponential is noise.
    return np.where(u > 700, 0.0, np.where(u == 0, at_zero, value))


def inverse_multiquadric(w: Array, d: int) -> Array:
    """Return the transform of (1 + s)^(-1/2)."""
    return multiquadric(w, d, 0.5)


def rational_quadratic(w: Array, d: int, alpha: float) -> Array:
    """Return the transform of (1 + s / (2 alpha))^(-alpha)."""
    return multiquadric(w, d, alpha, math.sqrt(2 * alpha))
