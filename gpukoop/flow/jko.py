r"""JKO steps: proximal steps in the Wasserstein metric, for any energy that is a velocity field.

.. math:: Z^+ = \arg\min_Y\; D(Y) + \frac1n \sum_i \frac{|y_i - z_i|^2}{2 \tau}

A :class:`~gpukoop.flow.descent.Field` gives D and -n dD/dy; the step descends the sum with Barzilai-Borwein
lengths and backtracking, so that D never rises, whatever tau. One iteration of length tau is the explicit step;
its fixed point is the implicit one. The penalty sums over dimensions and averages over particles.

The step is also one explicit step of size 1/2 on the Moreau envelope inf_eta W2^2(mu, eta) + 2 tau D(eta).

References
----------
.. [1] C. Caucheteux, C. Bonet, A. Korba, Generative Wasserstein Flows, arXiv 2605.31369.
.. [2] J. Barzilai, J. M. Borwein, Two-point step size gradient methods, IMA J. Numer. Anal. 8, 1988.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gpukoop.arrays import Array
from gpukoop.flow.descent import Field, Motion, row_rms, width
from gpukoop.flow.loop import State, Step

INNER = 100
HALVINGS = 30
ARMIJO = 1e-4
# The inner iteration ends when its step is below this times the width of the particles.
INNER_TOL = 1e-6
# Longest inner step in units of tau: curvature estimated near zero must not throw the particles away.
LONGEST = 10.0


@dataclass(frozen=True)
class Prox:
    """Where a proximal step ends, what it minimised there, and the inner iterations."""

    particles: Array
    objective: float
    n_iter: int
    residual: float


def proximal_step(
    energy: Field,
    Z: Array,
    tau: float,
    memory: dict[str, Array] | None = None,
    *,
    seed: int = 0,
    iteration: int = 0,
    n_iter: int = INNER,
    tol: float = INNER_TOL,
) -> tuple[Prox, Motion]:
    r"""Return the proximal step from Z and the motion at Z (velocity, energy).

    Parameters
    ----------
    energy : Field
        The objective; drawn directions are the same in all inner iterations.
    Z : array of shape (n, d)
    tau : float
        Step in the convention of \|dx\|^2 / (2 tau).
    memory : dict, optional
        What the field may start from.
    n_iter, tol : int and float
        Bounds of the inner iterations and of the last inner step relative to the width of Z.

    Notes
    -----
    Cost: one evaluation of the field an inner iteration; 3 to 30 as a rule. The objective falls monotonically.
    """
    size = len(Z)
    wide = width(Z) or 1.0
    limit = max(tol, 4 * float(np.finfo(Z.dtype).eps)) * wide
    first = here = energy(Z, memory or {}, np.random.default_rng(seed), iteration)
    Y, value, used = Z, first.energy, 0
    slope = -first.velocity
    length, residual = tau, tau * row_rms(slope)
    while used < n_iter and residual > limit and math.isfinite(value):
        used += 1
        square = row_rms(slope) ** 2
        accepted = False
        for _ in range(HALVINGS):
            with np.errstate(over="ignore", invalid="ignore"):
                trial = Y - length * slope
            if not math.isfinite(row_rms(trial)):
                length /= 4
                continue
            there = energy(
                trial, {**(memory or {}), **here.memory}, np.random.default_rng(seed), iteration
            )
            penalty = float(((trial - Z).astype(float) ** 2).sum()) / (2 * tau * size)
            if there.energy + penalty <= value - ARMIJO * length * square:
                accepted = True
                break
            length /= 4
        if not accepted:
            break
        new_slope = (trial - Z) / tau - there.velocity
        moved, turned = trial - Y, new_slope - slope
        curvature = float((moved * turned).sum())
        Y, here, value, slope = trial, there, there.energy + penalty, new_slope
        length = float((moved * moved).sum()) / curvature if curvature > 0 else tau
        length = min(length, LONGEST * tau)
        residual = tau * row_rms(slope)
    return Prox(Y, value, used, residual), first


def jko_field(energy: Field, tau: float, *, n_iter: int = INNER, tol: float = INNER_TOL) -> Field:
    """Return the field whose explicit step of size tau is the JKO step of ``energy``."""

    def field(
        Z: Array, memory: dict[str, Array], rng: np.random.Generator, iteration: int
    ) -> Motion:
        seed = int(rng.integers(2**62))
        found, here = proximal_step(
            energy, Z, tau, memory, seed=seed, iteration=iteration, n_iter=n_iter, tol=tol
        )
        measures = {**here.measures, "inner_iter": found.n_iter}
        return Motion((found.particles - Z) / tau, here.energy, measures, here.memory)

    return field


def field_of_step(step: Step, step_size: float) -> Field:
    """Return an implicit step of the loop as a field, for the training of maps."""

    def field(
        Z: Array, memory: dict[str, Array], rng: np.random.Generator, iteration: int
    ) -> Motion:
        following, info = step(State(Z, iteration, memory), rng)
        measures = dict(info.measures)
        energy = measures.pop("energy")
        measures.pop("displacement", None)
        return Motion((following.particles - Z) / step_size, energy, measures)

    return field


def gaussian_kl_step(
    mean: float, deviation: float, tau: float, target_deviation: float = 1.0
) -> tuple[float, float]:
    r"""Return mean and deviation after one JKO step of KL(. | N(0, s^2)) from a normal law, per axis.

    .. math:: m^+ = \frac{m}{1 + \tau / s^2}, \qquad
              \sigma^+ = \frac{\sigma + \sqrt{\sigma^2 + 4 \tau (1 + \tau / s^2)}}{2 (1 + \tau / s^2)}

    Examples
    --------
    >>> round(gaussian_kl_step(0.0, 2.5, 0.3)[1], 8)
    2.03639912
    """
    shrink = 1 + tau / target_deviation**2
    root = math.sqrt(deviation**2 + 4 * tau * shrink)
    return mean / shrink, (deviation + root) / (2 * shrink)
