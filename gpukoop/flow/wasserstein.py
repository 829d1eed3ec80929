r"""Wasserstein-2 flows: particles follow the Kantorovich potential of a coupling with the samples.

========== ================================
Z (n, d)   particles, weights 1/n
X (m, d)   samples, weights b
T          barycentric map of the coupling
h          step size
========== ================================

============= ============ ======================= ======================================================
coupling      F            velocity at z_i         exact law
============= ============ ======================= ======================================================
exact         W2^2 / 2     T z_i - z_i             n = m: W2 shrinks by 1 - h, the pairing stays
sinkhorn      S_eps        T_zx z_i - T_zz z_i     the gap of the means shrinks by 1 - h at every eps
sliced        SW2^2 / 2    :mod:`.sliced`          the gap of the means shrinks by 1 - h/d, full frame
============= ============ ======================= ======================================================

Without debiasing the Sinkhorn flow minimises OT_eps, whose minimiser is not the law of the samples but its deconvolution
by N(0, eps): the variance of a Gaussian ends at max(sigma^2 - eps, 0), so at a large blur all particles collapse to the
mean. Keep ``debias=True``.

References
----------
.. [1] Y.-J. Huang, Z. Malik, Generative Modeling by Minimizing the Wasserstein-2 Loss, arXiv 2406.13619.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpukoop.arrays import Array, namespace
from gpukoop.flow.coupling import exact_map
from gpukoop.flow.descent import Field, Motion, row_rms
from gpukoop.flow.memory import Kept
from gpukoop.flow.sinkhorn import (
    SCALING,
    problem,
    solve,
    solve_symmetric,
    transport_value,
)
from gpukoop.flow.sliced import sliced_field


def exact_field(X: Array, *, weights: Array | None = None, fixed: bool = True) -> Field:
    """Return the field of the W2 flow with an exact coupling.

    Parameters
    ----------
    X : array of shape (m, d)
    weights : array of shape (m,), optional
        Sum 1.
    fixed : bool
        The particles move by this flow alone. For n = m the pairing of the first step is then optimal for all
        (the flow stays on the geodesic) and one assignment serves the whole run; other sizes are solved anew.
    """

    def field(Z: Array, kept: Kept, rng: np.random.Generator, iteration: int) -> Motion:
        target = kept.target
        if target is None or target.shape != Z.shape:
            target, energy = exact_map(Z, X, weights)
        else:
            energy = row_rms(target - Z) ** 2 / 2
        # Only a permutation stays optimal along its own straight lines; a plan that splits mass is solved again.
        keep = fixed and weights is None and len(Z) == len(X)
        return Motion(target - Z, energy, kept=Kept(target=target) if keep else Kept())

    return field


class SinkhornField:
    """Field of the Sinkhorn divergence S_eps(Z, X), potentials warm-started from the last step.

    Parameters
    ----------
    X : array of shape (m, d)
    blur : float
        sqrt(eps).
    weights : array of shape (m,), optional
        Sum 1.
    debias : bool
        False minimises OT_eps, which collapses; see the module.
    step_size : float
        h of the flow: along it the samples' potential shrinks by 1 - h, so the next solve starts from (1 - h) g.
    n_iter, tol : int and float
        Bounds of the inner iterations and of the marginal error.
    own : float, optional
        OT_eps of the samples with themselves, solved for by default; a constant that moves no particle, so pass 0 where a
        batch of samples is seen once and its energy need not be debiased.
    scaling : float
        Factor between two blurs of the annealing of the first solve.
    **options
        ``backend`` and ``tol`` of the sums.
    """

    def __init__(
        self,
        X: Array,
        *,
        blur: float,
        weights: Array | None = None,
        debias: bool = True,
        step_size: float = 0.0,
        n_iter: int = 200,
        tol: float = 1e-6,
        own: float | None = None,
        scaling: float = SCALING,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.X, self.blur, self.weights, self.debias = X, blur, weights, debias
        # After a step of length h the particles have 1 - h of their way left, and so, in first order, have the potentials.
        self.shrink = min(1.0, max(0.0, 1.0 - step_size))
        self.limits: dict[str, Any] = {"n_iter": n_iter, "tol": tol, "scaling": scaling}
        self.options = options or {}
        self.own = own or 0.0
        if debias and own is None:
            p = problem(X, X, weights, weights, **self.options)
            # The samples' own term moves no particle; it only makes the energy zero where both clouds agree.
            self.own = float(transport_value(p, solve_symmetric(p, blur, **self.limits)))

    def __call__(self, Z: Array, kept: Kept, rng: np.random.Generator, iteration: int) -> Motion:
        """Return T_zx - T_zz and S_eps at the particles."""
        p = problem(Z, self.X, None, self.weights, **self.options)
        start = kept.potential
        if start is not None:
            start = self.shrink * start
        found = solve(p, self.blur, start=start, **self.limits)
        target = p.feasible_map(found, self.blur)
        energy: Any = transport_value(p, found)
        measures = {"marginal_error": found.error, "sinkhorn_iter": found.n_iter}
        if not self.debias:
            return Motion(target - Z, energy, measures, Kept(potential=found.g))
        q = problem(Z, Z, **self.options)
        old = kept.own
        # A start of another length belongs to another batch of particles and would be noise.
        mine = solve_symmetric(
            q, self.blur, start=None if old is None or len(old) != len(Z) else old, **self.limits
        )
        centre = q.feasible_map(mine, self.blur)
        energy = energy - 0.5 * (transport_value(q, mine) + self.own)
        measures["marginal_error"] = max(found.error, mine.error)
        return Motion(target - centre, energy, measures, Kept(own=mine.f, potential=found.g))


def minibatch(field_of: Any, X: Array, batch_size: int, weights: Array | None = None) -> Field:
    """Return the field that couples random batches of particles and samples.

    Parameters
    ----------
    field_of : callable
        ``field_of(batch) -> Field`` towards a batch of samples.
    X : array of shape (m, d)
    batch_size : int
        Particles and samples of a batch.
    weights : array of shape (m,), optional
        Probabilities with which samples enter a batch.

    Notes
    -----
    Biased: the stationary law of minibatch couplings lies above the sampling floor, and the energy is the
    mean over batches, larger than that of the clouds. Enlarge the batch, or use ``coupling="sinkhorn"`` without one.
    """
    from gpukoop.arrays import to_host

    p = None if weights is None else to_host(weights).astype(float)

    def field(Z: Array, kept: Kept, rng: np.random.Generator, iteration: int) -> Motion:
        xp = namespace(Z)
        velocity = xp.empty_like(Z)
        total = 0.0
        # Every particle is in one batch a step: drawing with replacement would move some twice and leave a third where it
        # was.
        order = rng.permutation(len(Z))
        for start in range(0, len(Z), batch_size):
            rows = order[start : start + batch_size]
            size = min(len(rows), len(X))
            chosen = rng.choice(len(X), size, replace=p is not None, p=p)
            # A cold start for each batch: potentials of other points would have to be unlearned first.
            motion = field_of(X[chosen])(Z[rows], Kept(), rng, iteration)
            velocity[rows] = motion.velocity
            total += motion.energy * len(rows) / len(Z)
        return Motion(velocity, total)

    return field


__all__ = ["SinkhornField", "exact_field", "minibatch", "sliced_field"]
