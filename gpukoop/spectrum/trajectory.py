"""Moments of coordinates over trajectories of any length: one evaluation a frame, many lags, bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gpukoop.arrays import Array, namespace
from gpukoop.lagged import Piece, check_lag, cut, frames, runs_of
from gpukoop.spectrum.nystroem import Coordinates
from gpukoop.spectrum.pairs import BLOCKS, FOLDS, Moments, pair_moments
from gpukoop.spectrum.ratio import RatioFunctions

# Frames whose coordinates are held at once, beside those of one lag: 26 MB with 200 coordinates.
CHUNK = 2**14
# Frames, evenly spread over all runs, that the dictionary is made of and its functions are calibrated on.
SEEN = 50_000
# Blocks that a stream keeps: between this and half of it.
MOST_BLOCKS = 2 * FOLDS * BLOCKS


def lagged_moments(
    functions: RatioFunctions,
    runs: list[Any],
    cuts: dict[int, list[Piece]],
    weight: Callable[[Array], Array] | None = None,
) -> dict[int, list[Moments]]:
    """Return, for every lag, the moments of its blocks of pairs.

    Parameters
    ----------
    functions : RatioFunctions
        p coordinates.
    runs : list of arrays of shape (n, d)
    cuts : dict of int to list of Piece
        Lags in frames, and how their pairs are cut into blocks.
    weight : callable, optional
        (b, p) values of the coordinates at the first frames of pairs -> (b,) weights of the pairs.

    Notes
    -----
    Cost: each frame is evaluated once, whatever the number of lags; O((CHUNK + longest lag) p + blocks p^2) memory.
    """
    found: dict[int, list[Moments | None]] = {
        lag: [None] * (1 + max(piece.block for piece in pieces)) for lag, pieces in cuts.items()
    }
    longest = max(cuts)
    for i, run in enumerate(runs):
        mine = {lag: [piece for piece in pieces if piece.run == i] for lag, pieces in cuts.items()}
        if not any(mine.values()):
            continue
        for start in range(0, len(run), CHUNK):
            stop = min(start + CHUNK, len(run))
            chunk = frames(
                run,
                start,
                min(stop + longest, len(run)),
                f"trajectories[{i}]",
                functions.sources,
            )
            # Every frame once for all lags: kernel sums are what a fit costs, moments are small products.
            values = functions.transform(chunk).astype(float)
            for lag, pieces in mine.items():
                for piece in pieces:
                    # A block may reach over several chunks; each adds the part that it holds.
                    a, b = max(piece.first, start) - start, min(piece.last, stop) - start
                    if a < b:
                        own = found[lag][piece.block]
                        P, Q = values[a:b], values[a + lag : b + lag]
                        new = pair_moments(P, Q, None if weight is None else weight(P))
                        found[lag][piece.block] = new if own is None else own + new
    return {lag: [block for block in blocks if block is not None] for lag, blocks in found.items()}


def fold_cut(lengths: list[int], lag: int) -> list[Piece]:
    """Return pieces in FOLDS * BLOCKS blocks: contiguous stretches, or groups of whole runs where these are many."""
    total = sum(max(0, n - lag) for n in lengths)
    return cut(lengths, lag, total / (FOLDS * BLOCKS), FOLDS * BLOCKS)


@dataclass(frozen=True)
class Stream:
    """Moments of pairs that arrive in chunks, kept in at most 2 * FOLDS * BLOCKS blocks of equal length.

    When there are more, neighbours are joined, so that memory does not grow and the spread of the blocks stays the error
    of their mean.

    Attributes
    ----------
    base : Coordinates
        The dictionary.
    seen : array of shape (n, d)
        Frames that it was made of.
    lag : int
        In frames.
    blocks : tuple of Moments
    size : float
        Pairs that a closed block has at least.
    tail : array of shape (lag, p) or None
        Coordinates of the last frames, whose successors are still to come.
    """

    base: Coordinates
    seen: Array
    lag: int
    blocks: tuple[Moments, ...] = ()
    size: float = 0.0
    tail: Array | None = None

    def extended(self, chunk: Array, continues: bool) -> Stream:
        """Return the stream with frames (n, d) more: of a new run, or the next ones of the same run."""
        blocks, size = list(self.blocks), self.size
        values = self.base.functions.transform(chunk).astype(float)
        if continues and self.tail is not None:
            values = namespace(values).concatenate([self.tail, values])
        for start in range(0, len(values) - self.lag, CHUNK):
            stop = min(start + CHUNK, len(values) - self.lag)
            P, Q = values[start:stop], values[start + self.lag : stop + self.lag]
            if blocks and blocks[-1].m < size:
                blocks[-1] = blocks[-1] + pair_moments(P, Q)
            else:
                blocks.append(pair_moments(P, Q))
            if len(blocks) > MOST_BLOCKS:
                # Neighbours are merged when there are too many, so memory is bounded and blocks stay contiguous, whatever
                # comes.
                blocks = [sum(two[1:], two[0]) for two in _in_twos(blocks)]
                size = float(np.median([block.m for block in blocks]))
        return replace(self, blocks=tuple(blocks), size=size, tail=values[-self.lag :].copy())


def _in_twos(blocks: list[Moments]) -> list[list[Moments]]:
    return [blocks[i : i + 2] for i in range(0, len(blocks), 2)]


def trajectory_moments(functions: RatioFunctions, trajectories: Any, lag: int) -> list[Moments]:
    """Return the moments of all pairs of a list of runs in FOLDS * BLOCKS blocks."""
    runs = runs_of(trajectories)
    lag = check_lag(runs, lag)
    return lagged_moments(functions, runs, {lag: fold_cut([len(r) for r in runs], lag)})[lag]
