r"""MMD flow: particles descend half the squared maximum mean discrepancy to the samples.

========== ============================
Z (n, d)   particles z_i, law mu
X (m, d)   samples x_j, law nu
f          witness E_Z k(., z) - E_X k(., x)
h          step size
========== ============================

.. math:: F = \tfrac12 MMD^2, \qquad v_i = -n\, \partial F / \partial z_i = -\nabla f(z_i)

Two fused passes over n (n + m) pairs give velocity and energy together; no n x m array. On the line the energy
kernel is summed by sorting, :mod:`gpukoop.flow.sliced`.

References
----------
.. [1] M. Arbel, A. Korba, A. Salim, A. Gretton, Maximum Mean Discrepancy Gradient Flow, arXiv 1906.04370.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpukoop.arrays import Array, is_cupy
from gpukoop.flow.descent import Field, Motion, mean, uniform
from gpukoop.flow.memory import Kept
from gpukoop.fusion import fused
from gpukoop.kernels.formula.catalogue import Riesz
from gpukoop.kernels.formula.profile import AbstractKernel
from gpukoop.philox import standard_normal

Noise = Callable[[int], float]


def self_energy(
    kernel: AbstractKernel, X: Array, weights: Array | None = None, **options: Any
) -> float:
    """Return E k(x, x') over the samples: the part of the MMD that no particle moves. m^2 kernel values, once."""
    b = uniform(X) if weights is None else weights
    return float(mean(kernel(X, **options) @ b, b))


def mmd_field(
    kernel: AbstractKernel,
    X: Array,
    *,
    weights: Array | None = None,
    noise: Noise | None = None,
    unbiased: bool = False,
    **options: Any,
) -> Field:
    r"""Return the field of the MMD flow towards X.

    Parameters
    ----------
    kernel : kernel
        With numeric scales.
    X : array of shape (m, d)
        Samples.
    weights : array of shape (m,), optional
        Of the samples, sum 1; uniform by default.
    noise : callable, optional
        ``noise(i)`` is the strength beta of step i: the velocity is taken at :math:`z + \beta u`, u standard normal,
        while the particles stay where they are (Arbel et al., section 4).
    unbiased : bool
        Particles repel by the mean over the others, themselves left out: for batches of few particles, without noise. The energy
        stays that of the clouds.
    **options
        ``backend`` and ``tol`` of the kernel sums.

    Notes
    -----
    If grad k is L-Lipschitz (Gaussian: L = 1/scale^2) and h <= 2/(3L), a step lowers F by at least
    :math:`h (1 - 3hL/2) E|\nabla f|^2`. Without noise there is no guarantee of a global minimum: flows of
    smooth kernels get stuck; the energy kernel, noise or DrMMD go further.
    """
    b = uniform(X) if weights is None else weights
    # Once a run: samples do not move, and it is the largest of the three sums where there are more samples than particles.
    e_xx = self_energy(kernel, X, b, **options)

    def field(Z: Array, kept: Kept, rng: np.random.Generator, iteration: int) -> Motion:
        a = uniform(Z)
        beta = 0.0 if noise is None else noise(iteration)
        zz, repulsion = kernel(Z, **options).value_and_gradient(a)
        zx, attraction = kernel(Z, X, **options).value_and_gradient(b)
        # On a device the energy stays there, so that no step waits for a number that only the history wants.
        if is_cupy(Z):
            energy = _energy(zz, zx, e_xx, 1.0 / len(Z))
        else:
            energy = 0.5 * (mean(zz) + e_xx) - mean(zx)
        if unbiased:
            repulsion = repulsion * (len(Z) / max(1, len(Z) - 1))
        measures = {}
        if noise is not None:
            measures["noise"] = beta
        if beta:
            # The slope is taken at disturbed points, the particles stay where they are (Arbel et al. 2019): noise on the
            # particles would add a diffusion.
            there = Z + beta * standard_normal(rng, Z.shape, Z)
            repulsion = kernel(there, Z, **options).gradient(a)
            attraction = kernel(there, X, **options).gradient(b)
        return Motion(attraction - repulsion, energy, measures)

    return field


@fused
def _energy(xp: Any, zz: Any, zx: Any, e_xx: float, share: float) -> Any:
    return xp.sum((0.5 * (zz.astype(np.float64) + e_xx) - zx) * share)


def witness(
    kernel: AbstractKernel,
    Q: Array,
    Z: Array,
    X: Array,
    weights: Array | None = None,
    **options: Any,
) -> Array:
    """Return f at the points Q: positive where there are too many particles, negative where too few."""
    b = uniform(X) if weights is None else weights
    return kernel(Q, Z, **options) @ uniform(Z) - kernel(Q, X, **options) @ b


def is_energy(kernel: object) -> bool:
    """Return whether the kernel is -|x - y| itself, the one whose sums are sorted."""
    return isinstance(kernel, Riesz) and kernel.exponent == 1
