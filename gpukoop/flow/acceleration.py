r"""Anderson's acceleration of a fixed point u <- P(u), where vectors stay on their device and the host reads inner products.

The next iterate combines the last P(u) so that their residuals P(u) - u cancel best,

.. math:: \min_\gamma \Big| r - \sum_i \gamma_i (r - r_i) \Big|_w ,

in the norm of the weights w, for iterates that are free up to a constant.

References
----------
.. [1] D. G. Anderson, Iterative procedures for nonlinear integral equations, J. ACM 12, 1965.
"""

from __future__ import annotations

import numpy as np

from gpukoop.arrays import Array, namespace, to_host

# Residuals that are combined; more help little and condition badly.
WINDOW = 15
# Weights of an extrapolation that sum to more than this in modulus amplify rounding: the plain step is taken.
STEEP = 1e4


class Anderson:
    """The last iterates of a fixed point; ``len(history)`` is their number.

    Parameters
    ----------
    log_weights : array of shape (m,)
        Logarithms of the weights, sum 1, in the library and dtype of the iterates.
    """

    def __init__(self, log_weights: Array) -> None:
        xp, m = namespace(log_weights), len(log_weights)
        self.plain = xp.zeros((WINDOW + 1, m), log_weights.dtype)
        self.plain[WINDOW] = log_weights
        # Residuals times the root of the weights, the root itself, and one row that changes with every iterate.
        self.rows = xp.zeros((WINDOW + 2, m))
        self.rows[WINDOW] = xp.exp(0.5 * log_weights.astype(float))
        self.forget()

    def __len__(self) -> int:
        return self.filled

    def forget(self) -> None:
        """Start anew."""
        self.filled, self.last = 0, -1

    def add(self, plain: Array, residual: Array, row: Array) -> float:
        """Add an iterate; return the inner product of ``row`` with the root of the weights.

        Parameters
        ----------
        plain, residual, row : arrays of shape (m,)
            P(u), and P(u) - u and anything of which a weighted mean is wanted, both times the root of the weights.
        """
        k = self.last = (self.last + 1) % WINDOW
        self.filled = min(self.filled + 1, WINDOW)
        self.plain[k], self.rows[k], self.rows[WINDOW + 1] = plain, residual, row
        self.gram = to_host(self.rows @ self.rows.T)  # all that the host reads of an iterate
        return float(self.gram[WINDOW, WINDOW + 1])

    def extrapolated(self) -> Array:
        """Return the next iterate, plus the logarithms of the weights."""
        others = [(self.last - i) % WINDOW for i in range(1, self.filled)]
        share = np.zeros(WINDOW + 1)
        share[self.last] = share[WINDOW] = 1.0
        gamma = self._cancelling(others)
        if gamma is not None:
            share[others] = gamma
            share[self.last] -= gamma.sum()
        xp = namespace(self.plain)
        return xp.asarray(share, dtype=self.plain.dtype) @ self.plain

    def _cancelling(self, others: list[int]) -> np.ndarray | None:
        means, last = self.gram[WINDOW], self.last
        G = self.gram - np.outer(means, means)  # the constant must not enter
        cross = G[last, last] - G[last, others]
        gram = cross[:, None] - G[last, others] + G[np.ix_(others, others)]
        gram = gram + 1e-12 * np.trace(gram) * np.eye(len(gram))
        try:
            gamma = np.linalg.solve(gram, cross)
        except np.linalg.LinAlgError:
            return None
        return gamma if np.abs(gamma).sum() < STEEP else None
