r"""Drift: particles climb the log ratio of two kernel densities, that of the samples and their own.

========== ==================================================
Z (n, d)   particles
X (m, d)   samples
p_s, q_s   kernel densities of X and of Z at the scale s; q_s at z_i leaves z_i itself out
========== ==================================================

.. math:: v_i = \sum_s w_s\, s^2\, \nabla \log \frac{p_s}{q_s}(z_i)

For a Gaussian s^2 grad log p_s(z) is the mean shift: the way from z to the weighted mean of the samples around it. Samples
attract, particles repel, and equal clouds stand still. Both terms are lengths, whatever the distance, so a particle far from
all samples still finds the way to the nearest one, where the gradient of an MMD with the same scale has vanished.

References
----------
.. [1] M. Deng, H. Li, T. Li, Y. Du, K. He, Generative Modeling via Drifting, arXiv 2602.04770.
.. [2] Y. Cheng, Mean Shift, Mode Seeking, and Clustering, IEEE PAMI 17, 1995.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpukoop.arrays import Array, namespace
from gpukoop.flow.descent import Field, Motion
from gpukoop.flow.memory import Kept
from gpukoop.kernels.formula.catalogue import Gaussian

# Share of the others in the density at a particle below which they are summed without it: the difference to 1 would be rounding.
SEEN = 1e-4
# Pairs whose distances are held at a time where they are.
PAIRS = 2**22


def drift_field(
    X: Array,
    scales: Sequence[float],
    *,
    weights: Sequence[float] | None = None,
    **options: Any,
) -> Field:
    """Return the field of the drift towards X.

    Parameters
    ----------
    X : array of shape (m, d)
        Samples.
    scales : sequence of float
        Lengths s in the units of the points; several let near and far be seen at once.
    weights : sequence of float, optional
        w_s; equal with sum 1 by default, so that a single step of size 1 does not overshoot.
    **options
        ``backend`` and ``tol`` of the kernel sums.

    Notes
    -----
    The energy in ``history_`` is the mean of log q_s - log p_s over particles and scales, an estimate of the
    Kullback-Leibler divergence. The velocity leaves out how a particle changes the density at the others, so the energy is a
    measure of progress and not what the step descends. Cost: two passes with gradients over n (n + m) pairs a scale.
    """
    if not scales:
        raise ValueError("scales is empty: pass at least one length")
    shares = np.full(len(scales), 1 / len(scales)) if weights is None else np.asarray(weights)
    even = namespace(X).full(len(X), -np.log(len(X)), dtype=X.dtype)

    def field(Z: Array, kept: Kept, rng: np.random.Generator, iteration: int) -> Motion:
        xp = namespace(Z)
        velocity, energy = xp.zeros_like(Z), 0.0
        equal = xp.zeros(len(Z), dtype=Z.dtype)
        for scale, share in zip(scales, shares, strict=True):
            log_p, towards = Gaussian(scale)(Z, X, **options).logsumexp_and_gradient(even)
            log_all, away = Gaussian(scale)(Z, **options).logsumexp_and_gradient(equal)
            # z_i sees itself with weight 1 and gradient 0: what remains are the others.
            others = -xp.expm1(-log_all)
            seen = others > SEEN
            away = xp.where(seen, 1 / xp.where(seen, others, 1), 0)[:, None] * away
            log_q = log_all + xp.log(xp.where(seen, others, 1))
            alone = xp.flatnonzero(~seen)
            if len(alone) and len(Z) > 1:
                log_q[alone], away[alone] = _without_itself(Z, alone, scale)
            # Times the squared scale each gradient of a log density is a mean shift, a length; scales then weigh alike.
            velocity += float(share * scale**2) * (towards - away)
            log_q -= np.log(max(1, len(Z) - 1))
            energy += float(share) * float((log_q - log_p).astype(float).mean())
        return Motion(velocity, energy)

    return field


def _without_itself(Z: Array, rows: Array, scale: float) -> tuple[Array, Array]:
    """Return the log of the sum over the others of exp(-r^2 / 2 s^2), and its gradient, at some of the points.

    Distances are products of matrices in double precision: the points may be all, and of many dimensions.
    """
    xp = namespace(Z)
    z = (Z - Z.mean(axis=0)).astype(float)
    lengths = (z**2).sum(axis=1)
    log_q, slope = xp.empty(len(rows), dtype=Z.dtype), xp.empty_like(Z[rows])
    block = max(1, PAIRS // len(z))
    for start in range(0, len(rows), block):
        part = slice(start, start + block)
        here = rows[part]
        exponent = z[here] @ z.T - lengths / 2
        exponent -= lengths[here, None] / 2
        exponent /= scale**2
        exponent[xp.arange(len(here)), here] = -np.inf
        top = exponent.max(axis=1)
        e = xp.exp(exponent - top[:, None])
        total = e.sum(axis=1)
        log_q[part] = top + xp.log(total)
        slope[part] = ((e @ z) / total[:, None] - z[here]) / scale**2
    return log_q, slope
