r"""The catalogue: radial kernels k(x, y) = phi(s), s = |x - y|^2 / scale^2.

A new kernel is a final class with its profile: phi, its closed derivative dphi, and what happens at
s = 0. Everything else (every backend, gradients, documentation) follows from these two lines.
"""

from __future__ import annotations

import numbers
from dataclasses import dataclass, field
from typing import Any, ClassVar

from gpukoop.kernels.formula import transforms
from gpukoop.kernels.formula.expr import exp, sqrt
from gpukoop.kernels.formula.lengths import Scale
from gpukoop.kernels.formula.profile import AbstractRadial, Profile

LARGEST_CONSTANT = 1e150


@dataclass(frozen=True)
class Gaussian(AbstractRadial):
    r"""Gaussian kernel :math:`e^{-s/2} = e^{-|x-y|^2 / (2 \ell^2)}`: smooth, positive definite.

    Parameters
    ----------
    scale : float, array of shape (d,), "median" or "auto"
        Length l in the units of x, one for all features or one for each; the bandwidth eps of the diffusion-map literature is scale ** 2.

    References
    ----------
    .. [1] C. E. Rasmussen, C. K. I. Williams, Gaussian Processes for Machine Learning, 2006, eq. 4.9.
    """

    profile: ClassVar[Profile] = Profile(
        phi=lambda s: exp(-s / 2),
        dphi=lambda s: -exp(-s / 2) / 2,
        fourier=transforms.gaussian,
    )


@dataclass(frozen=True)
class Laplace(AbstractRadial):
    r"""Laplace kernel :math:`e^{-\sqrt s} = e^{-|x-y| / \ell}`: continuous with a kink, positive definite.

    Parameters
    ----------
    scale : float, array of shape (d,), "median" or "auto"
        Length l in the units of x, one for all features or one for each.

    References
    ----------
    .. [1] Rasmussen, Williams, 2006, eq. 4.14 with nu = 1/2.
    """

    profile: ClassVar[Profile] = Profile(
        phi=lambda s: exp(-sqrt(s)),
        # -inf at s = 0, hence the kink: the pair's x - y is 0 there and the sums select zero instead of inf * 0.
        dphi=lambda s: -exp(-sqrt(s)) / (2 * sqrt(s)),
        kink=True,
        fourier=transforms.matern(0.5),
    )


@dataclass(frozen=True)
class Matern32(AbstractRadial):
    r"""Matern kernel, nu = 3/2: :math:`(1 + \sqrt{3 s}) e^{-\sqrt{3 s}}`: once differentiable.

    Parameters
    ----------
    scale : float, array of shape (d,), "median" or "auto"
        Length l in the units of x, one for all features or one for each.

    References
    ----------
    .. [1] Rasmussen, Williams, 2006, eq. 4.17.
    """

    profile: ClassVar[Profile] = Profile(
        phi=lambda s: (1 + sqrt(3 * s)) * exp(-sqrt(3 * s)),
        # In closed form: the chain rule on phi gives (...) / sqrt(s), whose terms cancel only on paper, and 0 / 0 at s = 0.
        dphi=lambda s: -1.5 * exp(-sqrt(3 * s)),
        fourier=transforms.matern(1.5),
    )


@dataclass(frozen=True)
class Matern52(AbstractRadial):
    r"""Matern kernel, nu = 5/2: :math:`(1 + \sqrt{5 s} + 5 s / 3) e^{-\sqrt{5 s}}`: twice differentiable.

    Parameters
    ----------
    scale : float, array of shape (d,), "median" or "auto"
        Length l in the units of x, one for all features or one for each.

    References
    ----------
    .. [1] Rasmussen, Williams, 2006, eq. 4.17.
    """

    profile: ClassVar[Profile] = Profile(
        phi=lambda s: (1 + sqrt(5 * s) + 5 * s / 3) * exp(-sqrt(5 * s)),
        # As above; the terms in s^(-1/2) cancel.
        dphi=lambda s: -5 / 6 * (1 + sqrt(5 * s)) * exp(-sqrt(5 * s)),
        fourier=transforms.matern(2.5),
    )


@dataclass(frozen=True)
class InverseMultiquadric(AbstractRadial):
    r"""Inverse multiquadric :math:`(1 + s)^{-1/2}`: smooth with heavy tails, positive definite.

    Parameters
    ----------
    scale : float, array of shape (d,), "median" or "auto"
        Length l in the units of x, one for all features or one for each.

    References
    ----------
    .. [1] H. Wendland, Scattered Data Approximation, 2005, Theorem 6.13.
    """

    profile: ClassVar[Profile] = Profile(
        # No exponential to fold a scale into: the backends take a reciprocal root, one instruction on a GPU.
        phi=lambda s: (1 + s) ** -0.5,
        dphi=lambda s: -((1 + s) ** -1.5) / 2,
        fourier=transforms.inverse_multiquadric,
    )


@dataclass(frozen=True)
class RationalQuadratic(AbstractRadial):
    r"""Rational quadratic kernel :math:`(1 + s / (2 \alpha))^{-\alpha}`: a scale mixture of Gaussians.

    Parameters
    ----------
    scale : float, array of shape (d,), "median" or "auto"
        Length l in the units of x, one for all features or one for each.
    alpha : float > 0
        Tail exponent; large values approach the Gaussian.

    References
    ----------
    .. [1] Rasmussen, Williams, 2006, eq. 4.19.
    """

    alpha: float = 1.0
    profile: ClassVar[Profile] = Profile(
        # alpha is a runtime number, so this is exp2(-alpha log2(...)); a half-integral alpha written as a constant would be
        # roots.
        phi=lambda s, alpha: (1 + s / (2 * alpha)) ** -alpha,
        dphi=lambda s, alpha: -((1 + s / (2 * alpha)) ** (-alpha - 1)) / 2,
        parameters=("alpha",),
        fourier=transforms.rational_quadratic,
    )


# Distance itself has a root that hardware computes; a general exponent needs log2 and exp2.
_ENERGY = Profile(
    # Minus the distance, so that sums of v with sum zero are positive: energy distances are MMDs (Sejdinovic et al. 2013).
    phi=lambda s: -sqrt(s),
    dphi=lambda s: -1 / (2 * sqrt(s)),
    kink=True,
    positive=False,
    distance=True,
)
_RIESZ = Profile(
    # Not positive and without a decay: cells cannot be left out, and log-sum-exps do not exist.
    phi=lambda s, exponent: -(s ** (exponent / 2)),
    dphi=lambda s, exponent: -exponent / 2 * s ** (exponent / 2 - 1),
    parameters=("exponent",),
    kink=True,
    positive=False,
)


@dataclass(frozen=True)
class Riesz(AbstractRadial):
    r"""Riesz kernel :math:`-|x-y|^r`, 0 < r < 2: conditionally positive definite, not positive.

    It has no length: scaling the points by c multiplies it by c ** r. The gradient has a kink at x = y,
    where a pair contributes zero.

    Parameters
    ----------
    exponent : float in (0, 2)
        r; 1 is the energy distance, :func:`Energy`.

    References
    ----------
    .. [1] J. Hertrich, C. Wald, F. Altekrueger, P. Hagemann, Generative Sliced MMD Flows with Riesz
       Kernels, arXiv 2305.11463, section 2.
    """

    # A scale would be a second name for a factor (c |x - y|)^r = c^r |x - y|^r, so it is no parameter.
    scale: float | str = field(default=1.0, init=False, repr=False)
    exponent: float = 1.0

    def __post_init__(self) -> None:
        value = self.exponent
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < value < 2:
            raise ValueError(
                f"Riesz: exponent must be a number in (0, 2), got {value!r}: "
                "1 is the energy distance; at 2 the kernel sees only the mean"
            )
        object.__setattr__(self, "exponent", float(value))

    @property
    def profile(self) -> Profile:  # type: ignore[override]
        """The profile; exponent 1 has its own, without a logarithm."""
        return _ENERGY if self.exponent == 1 else _RIESZ


@dataclass(frozen=True)
class Constant(AbstractRadial):
    """The constant kernel: the same number for every pair, an intercept; ``k + 0.5`` adds one.

    Parameters
    ----------
    value : float > 0
    """

    scale: Scale = field(default=1.0, init=False, repr=False)
    value: float = 1.0
    profile: ClassVar[Profile] = Profile(
        phi=lambda s, value: value,
        dphi=lambda s, value: 0.0,
        parameters=("value",),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        # Sums of 10^6 squares of it must still be finite in float64.
        if self.value > LARGEST_CONSTANT:
            raise ValueError(
                f"Constant: value must be at most {LARGEST_CONSTANT:.0e}, so that sums are numbers, got {self.value!r}"
            )


def Energy() -> Riesz:
    """Return :class:`Riesz` with exponent 1, -|x - y|: the kernel of the energy distance.

    Returns
    -------
    Riesz
    """
    return Riesz(exponent=1.0)


# Names under which the catalogue is offered on the command line and walked by the tests.
CATALOGUE: dict[str, Any] = {
    "gaussian": Gaussian,
    "laplace": Laplace,
    "matern32": Matern32,
    "matern52": Matern52,
    "inverse_multiquadric": InverseMultiquadric,
    "rational_quadratic": RationalQuadratic,
    "riesz": Riesz,
    "energy": Energy,
}
