r"""Limited-memory BFGS where vectors stay on their device and the recursion runs on their inner products.

========== ===================================================================
u (N,)     the point, flat
W (2p, N)  the last p steps s and the changes y of the gradient that they made
G          inner products of the rows of W, on the host
========== ===================================================================

References
----------
.. [1] J. Nocedal, Updating quasi-Newton matrices with limited storage, Math. Comp. 35, 1980.
.. [2] W. Chen, Z. Wang, J. Zhou, Large-scale L-BFGS using MapReduce, NeurIPS 2014: the recursion on inner products.
"""

from __future__ import annotations

import numpy as np

from gpukoop.arrays import Array, namespace, to_host

PAIRS = 10


class InverseHessian:
    """What the last steps tell of the inverse Hessian; nothing at first, when it is the identity."""

    def __init__(self) -> None:
        self.rows: list[Array] = []  # s_1, y_1, s_2, y_2, ...
        self.gram = np.zeros((0, 0))

    def __bool__(self) -> bool:
        """Return whether there are pairs."""
        return bool(self.rows)

    def forget(self) -> None:
        """Start anew."""
        self.rows, self.gram = [], np.zeros((0, 0))

    def learn(self, s: Array, y: Array) -> None:
        """Add a step and the change of the gradient, unless the curvature along it is not positive."""
        rows = [*self.rows, s, y][-2 * PAIRS :]
        products = _products(rows, [s, y])  # (2p, 2)
        # s.y <= 0 would make H indefinite and the direction one of ascent; such a pair is forgotten, not damped.
        if not products[-2, 1] > np.finfo(float).eps * products[-1, 1]:
            return
        kept = len(rows) - 2
        gram = np.empty((kept + 2, kept + 2))
        # Inner products among the older pairs are known: a new pair costs one thin product and one look.
        gram[:kept, :kept] = self.gram[len(self.rows) - kept :, len(self.rows) - kept :]
        gram[:, kept:] = products
        gram[kept:, :] = products.T
        self.rows, self.gram = rows, gram

    def __matmul__(self, g: Array) -> Array:
        """Return H g: two passes over the coefficients of s, y and g, then one product."""
        if not self.rows:
            return g
        p, G = len(self.rows) // 2, self.gram
        at_g = _products(self.rows, [g])[:, 0]
        a, alpha = np.zeros(2 * p), np.zeros(p)  # H g = sum_i a_i W_i + c g
        for i in reversed(range(p)):
            s, y = 2 * i, 2 * i + 1
            alpha[i] = (at_g[s] + G[s] @ a) / G[s, y]
            a[y] -= alpha[i]
        # The scale of the identity between both loops: curvature along the last step (Nocedal, Wright 2006, eq. 7.20).
        c = G[-2, -1] / G[-1, -1]
        a *= c
        for i in range(p):
            s, y = 2 * i, 2 * i + 1
            a[s] += alpha[i] - (c * at_g[y] + G[y] @ a) / G[s, y]
        xp = namespace(g)
        return c * g + xp.asarray(a, dtype=g.dtype) @ xp.stack(self.rows)


def _products(rows: list[Array], vectors: list[Array]) -> np.ndarray:
    xp = namespace(rows[0])
    return to_host(xp.stack(rows) @ xp.stack(vectors).T).astype(float)
