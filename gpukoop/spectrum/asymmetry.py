r"""Whether pairs come from a reversible process: the antisymmetric part of their cross moments, with its error.

.. math:: A_{ij} = \tfrac12\, E[u_i(x)\, u_j(y) - u_j(x)\, u_i(y)]

is zero for every pair of functions of a stationary reversible process, (x, y) and (y, x) having one law there. The
functions u are the leading left singular functions of the cross moments: those of a rotation are leading
however far it turns within a lag, where the modes of the symmetrised moments are not.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from scipy import stats

from gpukoop.fitted import outside
from gpukoop.spectrum.pairs import Moments, noise_level

# Functions compared: fifteen pairs. Currents live in the slow functions; more pairs only dilute the level.
LEADING = 6
# Chance that any pair of a reversible process is called asymmetric, if its block means are normal.
LEVEL = 1e-3
# Singular values below this multiple of the noise belong to directions that noise has turned.
CLEAR = 2.0
# Functions that have decayed further within one lag than three relaxation times carry no current worth a word.
DECAYED = float(np.exp(-3))
# Pairs in a block: below, its moments of the fourth order are far from normal.
FEWEST = 10
# Blocks whose spread is an error at all.
FEWEST_BLOCKS = 5


@dataclass(frozen=True)
class Asymmetry:
    """The antisymmetric moment that stands out most, its standard error, and what chance would allow in those units."""

    moment: float
    error: float
    limit: float

    @property
    def significant(self) -> bool:
        """Whether a reversible process would show so much in less than one run of a thousand."""
        return self.moment > self.limit * self.error

    @property
    def excess(self) -> float:
        """The moment in units of what chance would allow; 0 if it was not measured."""
        found = self.moment / max(self.limit * self.error, np.finfo(float).tiny)
        return float(np.nan_to_num(found))

    @classmethod
    def of(cls, blocks: list[Moments]) -> Asymmetry:
        """Measure it; all nan where there are too few pairs, or fewer than two functions outlive a lag.

        Parameters
        ----------
        blocks : list of Moments
            Of contiguous stretches, which are independent if they are longer than the relaxation time. The error is
            that of their mean, from their spread, so that it holds for trajectories too.

        Returns
        -------
        Asymmetry
        """
        total = sum(blocks[1:], blocks[0])
        if len(blocks) < FEWEST_BLOCKS or min(block.m for block in blocks) < FEWEST:
            return cls(np.nan, np.nan, np.nan)
        M, W = total.whitened()
        U, s, _ = np.linalg.svd(M)
        lead = min(LEADING, int((s > max(DECAYED, CLEAR * noise_level(len(s), total.m))).sum()))
        if lead < 2:
            return cls(np.nan, np.nan, np.nan)
        V = W @ U[:, :lead]
        mean = total.mean()
        i, j = np.triu_indices(lead, 1)
        parts = [V.T @ block.cross(mean) @ V for block in blocks]
        A = np.array([(C - C.T)[i, j] / 2 for C in parts])  # (blocks, pairs)
        moment = np.abs(A.mean(axis=0))
        error = A.std(axis=0, ddof=1) / np.sqrt(len(A))
        most = int((moment / np.maximum(error, np.finfo(float).tiny)).argmax())
        limit = float(stats.t.isf(LEVEL / (2 * len(i)), len(A) - 1))
        return cls(float(moment[most]), float(error[most]), limit)


def warn_of_asymmetry(found: Asymmetry) -> None:
    """Warn of pairs that a reversible process does not show."""
    if found.significant:
        warnings.warn(
            "the pairs are not those of a reversible process in its stationary law: two leading functions have an "
            f"antisymmetric moment of {found.moment:.2g} +- {found.error:.1g}, where 0 is expected. The eigenvalues are "
            "those of the symmetrised process; KernelEDMD(reversible=False) gives the complex ones of the process itself",
            RuntimeWarning,
            stacklevel=outside(),
        )
