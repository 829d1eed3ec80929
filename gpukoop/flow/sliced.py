r"""Sliced flows by sorting: the energy distance and Wasserstein-2 along random directions, without pairs.

========= =========================================
P         directions theta_p, a tight frame
Z (n, d)  particles
X (m, d)  samples
========= =========================================

.. math:: v_i = -c_{d,1} \frac1P \sum_p \theta_p\, n g_i(\theta_p) \quad (MMD), \qquad
          v_i = \frac1P \sum_p \theta_p \big( Q_\nu^p(F_\mu^p(\theta_p z_i)) - \theta_p z_i \big) \quad (W_2)

Work O(P (n + m)(d + log(n + m))), memory O(block of directions x (n + m)). The sliced W2 velocity carries no factor
d: a tight frame, such as an orthonormal one, contracts the gap of the means by 1 - h/d.

References
----------
.. [1] J. Hertrich, C. Wald, F. Altekrueger, P. Hagemann, Generative Sliced MMD Flows with Riesz Kernels,
   arXiv 2305.11463.
.. [2] N. Bonneel et al., Sliced and Radon Wasserstein Barycenters of Measures, 2015.
"""

from __future__ import annotations

import math

import numpy as np

from gpukoop.arrays import Array, is_cupy, like, namespace, to_host
from gpukoop.centring import rounding, varying
from gpukoop.flow.descent import Field, Motion
from gpukoop.flow.directions import frames, riesz_constant
from gpukoop.flow.memory import Kept
from gpukoop.flow.sorting import (
    WIDE,
    energy_line,
    energy_row,
    push_back,
    transport_line,
    transport_row,
)
from gpukoop.flow.sorting_batched import energy_rows, transport_rows

# Numbers sorted at once, 64 MB in float64: a handful of arrays of this size are alive. A device has the memory for more.
BLOCK = 2**23
DEVICE_BLOCK = 2**26


def sliced(
    Z: Array, X: Array, directions: np.ndarray, flow: str, weights: Array | None = None
) -> tuple[Array, float]:
    r"""Return the velocity (n, d) and the energy of a sliced flow along given unit directions (P, d).

    Parameters
    ----------
    Z, X : arrays of shape (n, d) and (m, d)
    directions : array of shape (P, d)
        On the host.
    flow : {"energy", "wasserstein"}
        MMD^2 / 2 of the kernel -\|x - y\|, or sliced W2^2 / 2.
    weights : array of shape (m,), optional
        Of the samples, sum 1.

    Returns
    -------
    velocity : array of shape (n, d)
    energy : float
        Estimated with the same directions; exact for d = 1.
    """
    xp = namespace(Z)
    P, d = directions.shape
    factor = -riesz_constant(d) if flow == "energy" else 1.0
    theta = like(directions, Z)
    # Thin projections are as quick inside the loop over directions, and need no memory.
    thin = weights is None and d < WIDE and not is_cupy(Z)
    numbers = DEVICE_BLOCK if is_cupy(Z) else BLOCK
    block = max(1, numbers // (len(Z) if thin else len(Z) + len(X)))
    if not is_cupy(Z):
        block = max(block, 2)  # one direction a thread
    # Even blocks: a last one of a few directions would leave threads, or most of a device, idle.
    block = math.ceil(P / math.ceil(P / block))
    columns = (xp.ascontiguousarray(Z.T), xp.ascontiguousarray(X.T)) if thin else (Z.T, X.T)
    velocity, energy = xp.zeros_like(Z), 0.0
    for start in range(0, P, block):
        part = theta[start : start + block]
        z, x = columns if thin else (part @ columns[0], part @ columns[1])  # else (p, n), (p, m)
        if weights is None and is_cupy(Z):
            pushed, level = (energy_rows if flow == "energy" else transport_rows)(z, x)
        elif weights is None:
            pushed, level = (energy_line if flow == "energy" else transport_line)(
                z, x, part if thin else None
            )
        else:
            row = energy_row if flow == "energy" else transport_row
            found = [row(z[p], x[p], weights) for p in range(len(part))]
            pushed = xp.stack([f for f, _ in found])
            level = sum(e for _, e in found) if is_cupy(Z) else np.array([e for _, e in found])
        # The mean over directions times the constant that makes slices of lengths into lengths.
        velocity += (factor / P) * push_back(pushed, part)
        energy = energy + (level if is_cupy(Z) else float(level.sum()))
    return velocity, abs(factor) * energy / P


def sliced_field(X: Array, *, flow: str, n_projections: int, weights: Array | None = None) -> Field:
    """Return the field of the sliced flow towards X, with fresh directions at every step.

    Parameters
    ----------
    X : array of shape (m, d)
    flow : {"energy", "wasserstein"}
    n_projections : int
        P; d is one orthonormal frame, and above three dimensions multiples of d are best. On the line one direction is
        exact.
    weights : array of shape (m,), optional
        Of the samples, sum 1.
    """
    d = X.shape[1]
    varies = to_host(varying(X))
    some = bool(varies.any() and not varies.all())
    near = rounding(X)[~varies]
    rest = np.flatnonzero(varies)  # columns of the law; across the others it is a point

    def field(Z: Array, kept: Kept, rng: np.random.Generator, iteration: int) -> Motion:
        # Slices across columns in which all points agree would spread these by the errors of the others.
        if not some or (
            flow == "energy" and bool((abs(Z[:, ~varies] - X[:1, ~varies]) > near).any())
        ):
            velocity, energy = sliced(Z, X, frames(rng, n_projections, d), flow, weights)
            return Motion(velocity, energy)
        moved, energy = sliced(
            Z[:, rest], X[:, rest], frames(rng, n_projections, len(rest)), flow, weights
        )
        velocity = namespace(Z).zeros_like(Z)
        if flow == "wasserstein":
            # Full frames with the axes of these columns: each has one direction of d, and a point to go to.
            gap = X[:1, ~varies] - Z[:, ~varies]
            velocity[:, ~varies] = gap / d
            moved = moved * (len(rest) / d)
            energy = (len(rest) * energy + (gap**2).mean(axis=0).sum() / 2) / d
        velocity[:, rest] = moved
        return Motion(velocity, energy)

    return field


def line_energy(Z: Array, X: Array, weights: Array | None = None) -> float:
    r"""Return MMD^2 / 2 of the kernel -\|x - y\| on the line: exact, never negative, O((n + m) log(n + m))."""
    return sliced(Z, X, np.ones((1, 1)), "energy", weights)[1]
