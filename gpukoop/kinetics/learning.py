"""One pass over trajectories, and what is learned from it at every lag: modes, and the blocks that say how sure they are."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import clone

from gpukoop.arrays import Array
from gpukoop.draws import RandomState
from gpukoop.kinetics.blocks import (
    MANY_RUNS,
    MOST_BLOCKS,
    SPAN,
    Basis,
    correlation,
    first_length,
    joins,
)
from gpukoop.lagged import Piece, check_lag, cut, runs_of, thinned
from gpukoop.spectrum import KernelEDMD
from gpukoop.spectrum.coordinates import functions_of_points
from gpukoop.spectrum.dictionary import check_reg
from gpukoop.spectrum.modes import ResolvedModes, resolved_modes
from gpukoop.spectrum.nystroem import Coordinates
from gpukoop.spectrum.pairs import BLOCKS, FOLDS, Moments
from gpukoop.spectrum.trajectory import SEEN, lagged_moments

if TYPE_CHECKING:
    from gpukoop.kinetics.reweighted import Reweighted

# Modes of the default estimator.
DEFAULT_MODES = 10
# Combinations beside the kept modes that a resampled operator may mix with them.
MIXED = 10


def unfitted(estimator: Any, random_state: RandomState) -> KernelEDMD:
    """Return a clone of the estimator, by default one of ten modes; raise unless it is a reversible KernelEDMD."""
    if estimator is None:
        return KernelEDMD(n_components=DEFAULT_MODES, random_state=random_state)
    if not isinstance(estimator, KernelEDMD):
        raise TypeError(
            f"estimator is {estimator!r}, expected a KernelEDMD such as KernelEDMD(n_components=5, n_landmarks=500)"
        )
    if estimator.reversible is not True:
        raise ValueError(
            "estimator has reversible=False, whose timescales are complex: kinetics are those of a reversible process; "
            "leave reversible=True"
        )
    return clone(estimator)


@dataclass(frozen=True)
class Learned:
    """Modes at one lag, and the blocks of pairs that they come from.

    Attributes
    ----------
    modes : ResolvedModes
    blocks : list of Moments
        Of p coordinates, by the rule of :mod:`gpukoop.kinetics.blocks`.
    W : ndarray of shape (p, q)
        Combinations of coordinates: the k kept modes, then those behind them.
    basis : Basis
        The blocks' moments in these combinations.
    c : float
        What the correlation of neighbouring blocks multiplies errors with, at least 1.
    groups : list of list of int
        Which of the fine blocks of :meth:`Material.moments` each block joins.
    """

    modes: ResolvedModes
    blocks: list[Moments]
    W: np.ndarray
    basis: Basis | Reweighted
    c: float
    groups: list[list[int]]


class Material:
    """Trajectories, the dictionary made of them, and a pass over them.

    Parameters
    ----------
    trajectories : list of arrays of shape (n, d), or one
    estimator : KernelEDMD
        Unfitted.
    lag : int
        In frames: of coordinates that are learned from pairs.
    """

    def __init__(self, trajectories: Any, estimator: KernelEDMD, lag: int) -> None:
        self.runs = runs_of(trajectories)
        self.lengths = [len(run) for run in self.runs]
        self.estimator = estimator
        estimator._check_parameters()
        self.seen: Array = thinned(self.runs, SEEN)
        self.base: Coordinates = estimator._dictionary(
            self.seen, self.runs, check_lag(self.runs, lag)
        )
        self.functions = functions_of_points(self.base.functions, estimator)

    def moments(self, lags: list[int], weight: Any = None) -> dict[int, list[Moments]]:
        """Return the moments of fine blocks of pairs at every lag, from one pass."""
        cuts = {}
        for lag in lags:
            check_lag(self.runs, lag)
            cuts[lag] = self.pieces(lag)
        return lagged_moments(self.functions, self.runs, cuts, weight)

    def pieces(self, lag: int) -> list[Piece]:
        """Return how the pairs of a lag are cut into fine blocks."""
        return cut(self.lengths, lag, first_length(self.lengths, lag), MOST_BLOCKS)

    def learn(self, fine: list[Moments], lag: int) -> Learned:
        """Return the modes of one lag, and the blocks of the rule that their slowest timescale sets."""
        estimator = self.estimator
        modes = resolved_modes(
            self.base,
            [sum(part[1:], part[0]) for part in _groups(fine, FOLDS * BLOCKS)],
            estimator.seen(self.seen),
            check_reg(estimator.reg),
            estimator.n_components,
            True,
        )
        c, groups = 1.0, [[i] for i in range(len(fine))]
        if len(self.runs) < MANY_RUNS:
            slowest = -lag / np.log(modes.mu[0])
            groups = joins([block.m for block in fine], max(lag, SPAN * slowest))
            fine = [sum((fine[i] for i in own[1:]), fine[own[0]]) for own in groups]
            c = correlation(sum(block.m for block in fine) / len(fine) / slowest)
        p = modes.p
        blocks = [block.leading(p) for block in fine]
        W = sum(blocks[1:], blocks[0]).modes()[1]
        behind = np.arange(modes.kept[-1] + 1, W.shape[1])[: len(modes.kept) + MIXED]
        W = W[:, np.concatenate([modes.kept, behind])]
        return Learned(modes, blocks, W, Basis.of(blocks, W), c, groups)


def _groups(blocks: list[Moments], most: int) -> list[list[Moments]]:
    edges = np.linspace(0, len(blocks), min(most, len(blocks)) + 1).astype(int)
    return [blocks[i:j] for i, j in pairwise(edges)]
