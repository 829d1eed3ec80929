r"""JKO steps: proximal steps in the Wasserstein metric, for any energy that is a velocity field.

.. math:: Z^+ = \arg\min_Y\; D(Y) + \frac1n \sum_i \frac{|y_i - z_i|^2}{2 \tau}

A :class:`~gpukoop.flow.descent.Field` gives D and -n dD/dy; the step minimises the sum by limited-memory BFGS with
backtracking, so that D never rises, whatever tau. Its first iteration is the explicit step, its fixed point the implicit
one. The penalty sums over dimensions and averages over particles.

The step is also one explicit step of size 1/2 on the Moreau envelope inf_eta W2^2(mu, eta) + 2 tau D(eta).

References
----------
.. [1] C. Caucheteux, C. Bonet, A. Korba, Generative Wasserstein Flows, arXiv 2605.31369.
.. [2] W. Hager, H. Zhang, A new conjugate gradient method with guaranteed descent and an efficient line search, SIAM J.
   Optim. 16, 2005, section 4: accept a step by its slope where rounding hides the decrease.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from gpukoop.arrays import Array
from gpukoop.flow.descent import Field, Motion, row_rms, width
from gpukoop.flow.loop import State, Step
from gpukoop.flow.memory import Kept, Memory
from gpukoop.flow.quasi_newton import InverseHessian

INNER = 100
SHORTENINGS = 30
ARMIJO = 1e-4
# The inner iteration ends when its step is below this times the width of the particles.
INNER_TOL = 1e-6
# Objectives that differ by so many roundings are equal: then the slope decides.
EQUAL = 4.0


# What a point is asked for: the field's motion, the objective, and tau times its gradient.
Evaluation: TypeAlias = Callable[[Array], tuple[Motion, float, Array]]


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
    kept: Kept | None = None,
    *,
    seed: int = 0,
    iteration: int = 0,
    n_iter: int = INNER,
    tol: float = INNER_TOL,
    double: bool = False,
) -> tuple[Prox, Motion]:
    r"""Return the proximal step from Z and the motion at Z (velocity, energy).

    Parameters
    ----------
    energy : Field
        The objective; drawn directions are the same in all inner iterations.
    Z : array of shape (n, d)
    tau : float
        Step in the convention of \|dx\|^2 / (2 tau).
    kept : Kept, optional
        What the field may start from.
    n_iter, tol : int and float
        Bounds of the inner iterations and of the last inner step relative to the width of Z.
    double : bool
        Move the particles in float64, whatever Z is: the rounding of float32 velocities hides the minimum of an
        objective whose functions are nearly dependent.

    Notes
    -----
    Cost: one evaluation of the field an inner iteration, a few more while it is far from the end; 5 to 60 as a rule. The
    objective falls monotonically.
    """
    size = len(Z)
    wide = width(Z) or 1.0
    # Below four roundings of the width a smaller residual is luck, whatever tolerance was asked.
    limit = max(tol, 4 * float(np.finfo(Z.dtype).eps)) * wide
    start = Z.astype(float) if double else Z
    warm = Kept() if kept is None else kept

    def at(Y: Array) -> tuple[Motion, float, Array]:
        """Return the motion, the objective and tau times its gradient; what the field keeps serves the next call."""
        found = energy(Y, warm, np.random.default_rng(seed), iteration)
        penalty = float(((Y - start).astype(float) ** 2).sum()) / (2 * tau * size)
        # Times tau: in these units the penalty has Hessian 1, and a full step is right where the energy is flat.
        return found, float(found.energy) + penalty, (Y - start) - tau * found.velocity

    first, value, slope = at(start)
    warm = first.kept
    Y, used, inverse = start, 0, InverseHessian()
    residual = row_rms(slope)
    while used < n_iter and residual > limit and math.isfinite(value):
        used += 1
        direction = -(inverse @ slope.ravel()).reshape(slope.shape)
        # Everything is in units of the penalty's Hessian: the derivative of the objective is this over tau n.
        rate = float((slope * direction).sum())
        # Rounding may turn the direction of an old memory uphill; the gradient itself never is.
        if not rate < 0:
            inverse.forget()
            direction, rate = -slope, -size * residual**2
        found = _shortened(at, Y, direction, value, rate, tau * size)
        if found is None:
            break
        trial, there, new_value, new_slope = found
        # All particles are one vector here, since the energy couples them.
        inverse.learn((trial - Y).ravel(), (new_slope - slope).ravel())
        warm = there.kept
        Y, value, slope = trial, new_value, new_slope
        residual = row_rms(slope)
    return Prox(Y, value, used, residual), first


def _shortened(
    at: Evaluation, Y: Array, direction: Array, value: float, rate: float, scale: float
) -> tuple[Array, Motion, float, Array] | None:
    """Return the first of shorter and shorter steps that lowers the objective enough, and what is found there, or None."""
    length = 1.0
    slack = EQUAL * float(np.finfo(float).eps) * abs(value)
    for _ in range(SHORTENINGS):
        with np.errstate(over="ignore", invalid="ignore"):
            trial = Y + length * direction
        # A direction of a bad curvature pair may leave the range of the dtype: shorter, without asking the energy.
        if math.isfinite(row_rms(trial)):
            there, new_value, slope = at(trial)
            if new_value <= value + ARMIJO * length * rate / scale:
                return trial, there, new_value, slope
            if new_value <= value + slack:
                turned = float((slope * direction).sum())
                # Hager and Zhang's approximate Wolfe test (2005): slopes have digits left where values have none.
                if 0.9 * rate <= turned <= (2 * ARMIJO - 1) * rate:
                    return trial, there, min(value, new_value), slope
            # The parabola through both values and the slope here, within bounds.
            gap = new_value - value - length * rate / scale
            best = -(length**2) * rate / scale / (2 * gap) if 0 < gap < math.inf else 0.0
            length = min(max(best, 0.1 * length), 0.5 * length)
        else:
            length /= 4
    return None


def jko_field(
    energy: Field,
    tau: float,
    *,
    n_iter: int = INNER,
    tol: float = INNER_TOL,
    double: bool = False,
) -> Field:
    """Return the field whose explicit step of size tau is the JKO step of ``energy``; see :func:`proximal_step`."""
    bounds: dict[str, Any] = {"n_iter": n_iter, "tol": tol, "double": double}

    def field(Z: Array, kept: Kept, rng: np.random.Generator, iteration: int) -> Motion:
        seed = int(rng.integers(2**62))
        found, here = proximal_step(energy, Z, tau, kept, seed=seed, iteration=iteration, **bounds)
        measures = {**here.measures, "inner_iter": found.n_iter}
        velocity = ((found.particles - Z) / tau).astype(Z.dtype, copy=False)
        return Motion(velocity, here.energy, measures, here.kept)

    return field


def field_of_step(step: Step, step_size: float) -> Field:
    """Return an implicit step of the loop as a field, for the training of maps."""

    def field(Z: Array, kept: Kept, rng: np.random.Generator, iteration: int) -> Motion:
        following, info = step(State(Z, iteration, Memory(kept=kept)), rng)
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
