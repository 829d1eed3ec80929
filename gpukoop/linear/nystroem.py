r"""The Nystroem preconditioner: the part of K that landmarks see is inverted, the rest is left to the iterations.

.. math:: K \approx F F^T = U \Lambda U^T, \qquad
          P^{-1} = I + U \left( \frac{\alpha}{\Lambda + \mu} - 1 \right) U^T, \qquad \alpha = \lambda_r + \mu

so that the eigenvalues of :math:`P^{-1} (K + \mu I)` lie between about :math:`\mu` and
:math:`\alpha + |K - F F^T|`. Landmarks are pivots of a Cholesky factorisation, drawn with a probability proportional to what the
diagonal has left, a block at a time.

References
----------
.. [1] Z. Frangella, J. A. Tropp, M. Udell, Randomized Nystroem preconditioning, SIAM J. Matrix Anal. Appl. 44, 2023 (the
   preconditioner).
.. [2] Y. Chen, E. N. Epperly, J. A. Tropp, R. J. Webber, Randomly pivoted Cholesky, Comm. Pure Appl. Math. 2025 (the landmarks).
"""

from __future__ import annotations

import numpy as np

from gpukoop.arrays import Array, to_host
from gpukoop.linear.system import System

# Landmarks drawn at once: enough for matrix products, few enough that one block does not repeat itself.
_BLOCK = 64
# Landmarks by default: BASE + GROWTH sqrt(n), so that factorising, n r^2, stays near the cost of a few exact products, n^2.
_BASE, _GROWTH = 100, 2.0
_MEMORY = 2**30  # bytes of F
# Below this share of the largest eigenvalue directions of a block, and of F, are rounding.
_ROUNDING = 1e-13


def default_rank(n: int) -> int:
    """Return the number of landmarks that a system of n rows gets unless told otherwise."""
    return max(1, min(n, _BASE + int(_GROWTH * n**0.5), _MEMORY // (8 * n)))


def indefinite(what: str) -> ValueError:
    """Return the error of an operator that is not positive definite."""
    return ValueError(
        f"K + ridge I is not positive definite ({what}): use a positive definite kernel, such as Gaussian or Matern, with "
        "positive weights, or a larger ridge"
    )


def factor(system: System, rank: int, rng: np.random.Generator) -> Array:
    """Return F (n, r), r <= rank, with F F' near K; r is smaller where the rest is below the shift."""
    xp, n = system.xp, system.n
    left = system.diagonal()
    largest = float(left.max())
    if float(left.min()) < 0:
        raise indefinite(f"its diagonal reaches {float(left.min()):.3g}")
    F = xp.empty((n, rank))
    # Numbers of the operator have its dtype, so that is what the diagonal is known to.
    noise = largest * float(np.finfo(system.K.dtype).eps) * n**0.5
    r = 0
    while r < rank:
        chances = np.maximum(to_host(left), 0.0)
        total = chances.sum()
        positive = int(np.count_nonzero(chances > noise))
        if total <= system.shift or not positive:
            break
        chances[chances <= noise] = 0.0
        size = min(_BLOCK, rank - r, positive)
        pivots = rng.choice(n, size=size, replace=False, p=chances / chances.sum())
        new = system.columns(pivots) - F[:, :r] @ F[xp.asarray(pivots), :r].T
        core = to_host(new[xp.asarray(pivots)])
        values, vectors = np.linalg.eigh((core + core.T) / 2)
        if values[0] < -(noise * size + 1e-6 * values[-1]):
            raise indefinite(f"a block of it has the eigenvalue {values[0]:.3g}")
        kept = values > max(noise, _ROUNDING * values[-1])
        if not kept.any():
            break
        new = new @ xp.asarray(vectors[:, kept] / np.sqrt(values[kept]))
        F[:, r : r + new.shape[1]] = new
        left -= (new**2).sum(axis=1)
        r += new.shape[1]
    return F[:, :r]


class Preconditioner:
    """P of a system, with its inverse, the root of that, and its log-determinant.

    Attributes
    ----------
    rank : int
        Directions inverted.
    logdet : float
        Of P, on the host.
    """

    def __init__(self, system: System, rank: int | None, rng: np.random.Generator) -> None:
        xp = system.xp
        if rank is None:
            rank = default_rank(system.n)
        F = factor(system, min(rank, system.n), rng)
        gram = to_host(F.T @ F)
        values, vectors = np.linalg.eigh(gram) if len(gram) else (np.empty(0), gram)
        kept = values > _ROUNDING * values.max(initial=0.0)
        values, vectors = values[kept], vectors[:, kept]
        self.rank = len(values)
        # U = F W has orthonormal columns. It is not formed: that would be the dearest product of all, and hold F twice.
        self._F, self._W = F, xp.asarray(vectors / np.sqrt(values))
        # Where F is all of K, the rest is the shift alone.
        low = values.min() if self.rank == rank and self.rank else 0.0
        least = low + system.shift
        if least <= 0 and self.rank:
            least = values.min()
        shares = least / (values + system.shift)
        self.logdet = float(-np.log(shares).sum())
        self._inverse = xp.asarray(shares - 1)
        self._root = xp.asarray(np.sqrt(shares) - 1)

    def solve(self, R: Array) -> Array:
        """Return P^-1 R."""
        return R + self._scaled(self._inverse, R)

    def root(self, R: Array) -> Array:
        """Return P^-1/2 R."""
        return R + self._scaled(self._root, R)

    def _scaled(self, shares: Array, R: Array) -> Array:
        """Return U diag(shares) U' R."""
        return self._F @ (self._W @ (shares[:, None] * (self._W.T @ (self._F.T @ R))))
