r"""Weights that turn pairs of runs started anywhere into pairs of the stationary law.

.. math:: w(x) = u^T b(x), \qquad E[w(x)\, b(y)] = E[w(x)\, b(x)], \qquad E[w(x)] = 1

A lag leaves the stationary law as it is; w is the density ratio that it leaves so, among combinations of 1 and the slow
coordinates.

References
----------
.. [1] H. Wu, F. Nueske, F. Paul, S. Klus, P. Koltai, F. Noe, Variational Koopman models: slow collective variables and
   molecular kinetics from short off-equilibrium simulations, Journal of Chemical Physics 146, 2017.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gpukoop.arrays import Array, namespace
from gpukoop.kinetics.learning import Learned


def equilibrium_ratio(learned: Learned) -> Callable[[Array], Array]:
    """Return the function from coordinates (b, p) at first frames to weights (b,), at least 0."""
    total, W = sum(learned.blocks[1:], learned.blocks[0]), learned.W
    m, q = total.m, W.shape[1]
    C00, C01 = np.empty((2, q + 1, q + 1))
    x, y = W.T @ total.x / m, W.T @ total.y / m
    C00[0, 0] = C01[0, 0] = 1.0
    C00[0, 1:] = C00[1:, 0] = C01[1:, 0] = x
    C01[0, 1:] = y
    C00[1:, 1:], C01[1:, 1:] = W.T @ total.xx @ W / m, W.T @ total.xy @ W / m
    # u^T (C01 - C00) = 0; the first column is 0 = 0 and gives way to the normalisation
    system = (C01 - C00).T
    system[0] = C00[0]
    right = np.zeros(q + 1)
    right[0] = 1.0
    u = np.linalg.lstsq(system, right, rcond=1e-10)[0]
    combination = W @ u[1:]

    def weight(P: Array) -> Array:
        xp = namespace(P)
        values = u[0] + P[:, : len(combination)] @ xp.asarray(combination)
        return xp.maximum(values, 0.0)

    return weight
