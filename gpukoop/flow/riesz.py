r"""Implicit steps of the MMD flow for Riesz kernels: the energy never rises, whatever the step size.

On the line with the energy kernel the backward Euler step is solved exactly. In d dimensions the energy
is a difference of convex functions, attraction minus repulsion; the repulsion is linearised at the particles and
the rest minimised by Weiszfeld sweeps, each of which majorises: any number of them lowers the energy.

.. math:: y_i = \arg\min_y \frac{|y - z_i|^2}{2h} + \sum_j b_j |y - x_j|^r - \langle \mathrm{rep}_i, y \rangle, \qquad
          \mathrm{rep}_i = \frac rn \sum_{i'} |z_i - z_{i'}|^{r-2} (z_i - z_{i'})

References
----------
.. [1] R. Duong et al., Wasserstein Gradient Flows of MMD Functionals with Distance Kernel, arXiv 2408.07498 (the line).
.. [2] H. P. H. Luu et al., Non-geodesically-convex optimization in the Wasserstein space, NeurIPS 2024, arXiv 2406.00502
   (differences of convex functions: one part is linearised).
.. [3] Y. Vardi, C.-H. Zhang, The multivariate L1-median and associated data depth, PNAS 97, 2000 (sweeps that land on a
   sample).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from gpukoop.arrays import Array, like, namespace, to_host
from gpukoop.flow.descent import ARRIVED, mean, row_rms, uniform
from gpukoop.flow.loop import Info, State, Step
from gpukoop.flow.mmd import self_energy
from gpukoop.flow.sliced import line_energy
from gpukoop.kernels.formula.catalogue import Riesz
from gpukoop.kernels.formula.profile import AbstractRadial, Profile

# Each sweep is one pass over the n m pairs; the third already changes little, and any number keeps F from rising.
SWEEPS = 3
BISECTIONS = 60

_INVERSE = Profile(phi=lambda s: s**-0.5, dphi=lambda s: -0.5 * s**-1.5, kink=True, singular=True)
_POWER = Profile(
    phi=lambda s, power: s**-power,
    dphi=lambda s, power: -power * s ** (-power - 1),
    parameters=("power",),
    kink=True,
    singular=True,
)


@dataclass(frozen=True)
class InverseDistance(AbstractRadial):
    r"""Weights :math:`|x - y|^{-1}` of a Weiszfeld sweep; a pair at distance 0 is dropped."""

    profile: ClassVar[Profile] = _INVERSE


@dataclass(frozen=True)
class InversePower(AbstractRadial):
    r"""Weights :math:`|x - y|^{-2 p}`, p = ``power``; a pair at distance 0 is dropped."""

    power: float = 0.25
    profile: ClassVar[Profile] = _POWER


def weiszfeld_kernel(exponent: float) -> AbstractRadial:
    """Return the kernel |x - y|^(r - 2)."""
    return InverseDistance() if exponent == 1 else InversePower(power=1 - exponent / 2)


class Atoms:
    """Total weight of the samples that sit exactly where a point is, by search among their sorted bytes: no pairs."""

    def __init__(self, X: Array, weights: Array) -> None:
        rows, place = np.unique(_rows(X), return_inverse=True)
        self.rows = rows
        self.mass = np.bincount(place.ravel(), to_host(weights).astype(float))

    def at(self, Y: Array) -> np.ndarray:
        """Return the weight at every row of Y, (n,): zero almost everywhere."""
        wanted = _rows(Y)
        place = np.minimum(np.searchsorted(self.rows, wanted), len(self.rows) - 1)
        return np.where(self.rows[place] == wanted, self.mass[place], 0.0)


def _rows(X: Array) -> np.ndarray:
    host = np.ascontiguousarray(to_host(X) + 0.0)  # -0.0 and 0.0 are one place
    return host.view(f"S{host.dtype.itemsize * host.shape[1]}").ravel()


def line_implicit(Z: Array, X: Array, h: float, weights: Array | None = None) -> Array:
    r"""Return the exact backward Euler step of the energy distance flow on the line.

    .. math:: q_i + h (2 R(q_i) - 1) \ni a_i = z_{(i)} + h \frac{2i + 1}{n} - h, \qquad i = 0, 1, \ldots

    with R the distribution function of the samples, a step at each of them.

    Parameters
    ----------
    Z, X : arrays of shape (n, 1) and (m, 1)
        Particles and samples.
    h : float
        Step size; infinity in the limit puts particle i at its quantile.

    Returns
    -------
    array of shape (n, 1)
        In the order of Z; coinciding particles part.

    Notes
    -----
    Cost: O((n + m) log(n + m)). It is the minimiser of W2^2 / (2h) + F, so F never rises; for n = m and large h it
    reaches F = 0 exactly.
    """
    xp = namespace(Z)
    n = len(Z)
    z = Z[:, 0].astype(float)
    order = xp.argsort(z, kind="stable")
    x = X[:, 0].astype(float)
    rank = xp.argsort(x, kind="stable")
    x = x[rank]
    b = uniform(x) if weights is None else weights.astype(float)[rank]
    above = xp.cumsum(b)
    above[-1] = 1.0
    below = xp.concatenate([xp.zeros(1), above[:-1]])
    # The repulsion of n sorted particles is known beforehand, 2 rank / n - 1, since a step cannot change their order.
    a = z[order] + h * (2 * xp.arange(n) + 1) / n - h
    # The attraction is a step function, so y + h F(y) is increasing with jumps at the samples: its inverse is a search.
    k = xp.searchsorted(x + h * (2 * below - 1), a, side="right") - 1
    passed = xp.where(k >= 0, above[xp.maximum(k, 0)], 0.0)
    free = a - h * (2 * passed - 1)
    at = x[xp.maximum(k, 0)]
    # Below the upper end of the jump at sample k the particle sits on it; `free` is then left of the sample.
    q = xp.where((k >= 0) & (free <= at), at, free)
    result = xp.empty_like(z)
    result[order] = q
    return result.astype(Z.dtype)[:, None]


def sweep(
    Y: Array,
    Z: Array,
    repulsion: Array,
    X: Array,
    b: Array,
    h: float,
    r: float,
    atoms: Atoms,
    **options: Any,
) -> Array:
    """Return one Weiszfeld sweep from Y for the step from Z: a pass over n m pairs with d + 1 right-hand sides."""
    xp = namespace(Y)
    centre = X.mean(axis=0)
    K = weiszfeld_kernel(r)(Y, X, **options)
    # Sources relative to their mean: sums of x_j far from the origin would cancel.
    sums = r * (K @ xp.concatenate([b[:, None] * (X - centre), b[:, None]], axis=1))
    weight = sums[:, -1:]
    pull = sums[:, :-1] - weight * (Y - centre)
    residual = (Z - Y) / h + repulsion + pull
    # The sweep minimises a quadratic above the true energy that touches it at Y, hence no step length and no rise.
    stiffness = 1.0 / h + weight
    move = residual / stiffness
    mass = atoms.at(Y)
    held = np.flatnonzero(mass)
    if len(held):
        move[held] = _held(residual[held], stiffness[held], like(mass[held, None], Y), r)
    return Y + move


def _held(residual: Array, stiffness: Array, mass: Array, r: float) -> Array:
    r"""Return the step of points that sit on a sample of weight w: min of D t^2 / 2 - \|R\| t + w t^r along R."""
    xp = namespace(residual)
    size = xp.sqrt((residual**2).sum(axis=1, keepdims=True))
    # A residual of zero stays where it is; the one only keeps the quotient from being 0 / 0.
    size = xp.where(size > 0, size, 1.0)
    if r == 1:
        return xp.maximum(1.0 - mass / size, 0.0) * residual / stiffness
    # Between no move and the move without the sample: the derivative changes sign once there, as r >= 1.
    low, high = 0 * size, size / stiffness
    for _ in range(BISECTIONS):
        t = (low + high) / 2
        beyond = stiffness * t + r * mass * t ** (r - 1) > size
        low, high = xp.where(beyond, low, t), xp.where(beyond, t, high)
    return low * residual / size


def implicit_step(
    kernel: Riesz, X: Array, *, step_size: float, weights: Array | None = None, **options: Any
) -> Step:
    """Return the pure step whose energy never rises: exact on the line (energy kernel), DC in d dimensions.

    Parameters
    ----------
    kernel : Riesz
        Exponent in [1, 2): below 1 the repulsion is not concave and no such step is known.
    X : array of shape (m, d)
        Samples.
    step_size : float
        Any positive number.
    weights : array of shape (m,), optional
        Of the samples, sum 1.
    """
    r = float(kernel.exponent)
    if r < 1:
        raise ValueError(
            f"scheme='implicit' needs a Riesz exponent in [1, 2), got {r}: below 1 the repulsion is not convex; "
            "use scheme='explicit' or Energy()"
        )
    b = uniform(X) if weights is None else weights
    line = X.shape[1] == 1 and r == 1
    atoms = None if line else Atoms(X, b)
    e_xx = 0.0 if line else self_energy(kernel, X, b, **options)

    def move(Z: Array) -> tuple[Array, float]:
        if line or atoms is None:
            return line_implicit(Z, X, step_size, weights), line_energy(Z, X, weights)
        a = uniform(Z)
        zz, gradient = kernel(Z, **options).value_and_gradient(a)
        energy = 0.5 * (mean(zz) + e_xx) - mean(kernel(Z, X, **options) @ b)
        Y = Z
        for _ in range(SWEEPS):
            Y = sweep(Y, Z, -gradient, X, b, step_size, r, atoms, **options)
        return Y, energy

    def step(state: State, rng: np.random.Generator) -> tuple[State, Info]:
        Z = state.particles
        following, energy = move(Z)
        moved = row_rms(following - Z)
        measures = {"energy": energy, "displacement": moved}
        arrived = moved <= ARRIVED * float(np.finfo(Z.dtype).eps) * state.memory.width
        return State(following, memory=state.memory), Info(measures, arrived)

    return step
