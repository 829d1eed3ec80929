r"""Error bars of a reweighted model: the weights are learned anew in every resample of blocks.

With few ways back the weights are what a model knows worst. Resamples that keep them say nothing of that: of 200 runs
from one of three states, each half a relaxation time long, they gave a weight of .06 a band of .04 to .08, where .40 is right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np

from gpukoop.arrays import to_host
from gpukoop.kinetics.blocks import Basis, leading
from gpukoop.kinetics.equilibrium import stationary
from gpukoop.kinetics.learning import Learned, Material
from gpukoop.lagged import frames
from gpukoop.spectrum.trajectory import CHUNK

# Pairs, spread evenly over all, that resamples weight anew: 7 MB with 20 functions.
PAIRS = 20_000


@dataclass(frozen=True)
class Reweighted:
    """Moments of a reweighted model as :class:`gpukoop.kinetics.blocks.Basis` has them, with weights of each resample's own.

    Attributes
    ----------
    basis : Basis
        Of all pairs, with the weights of the model.
    W : ndarray of shape (p, s)
        Combinations of coordinates that weights are made of.
    ratio : ndarray of shape (m, s + 1)
        1 and the functions that weights are combinations of, at first frames of pairs.
    now, later : ndarrays of shape (m, q + 1)
        1 and the basis' functions at both frames.
    ratio_later : ndarray of shape (m, s + 1)
    block : ndarray of shape (m,)
        The block of each pair.
    """

    basis: Basis
    W: np.ndarray
    ratio: np.ndarray
    ratio_later: np.ndarray
    now: np.ndarray
    later: np.ndarray
    block: np.ndarray

    @classmethod
    def of(cls, material: Material, lag: int, first: Learned, second: Learned) -> Reweighted:
        """Return the moments of ``second``, whose weights are combinations of the functions of ``first``."""
        block_of = np.empty(sum(map(len, second.groups)), int)
        for b, group in enumerate(second.groups):
            block_of[group] = b
        step = -(-sum(max(0, n - lag) for n in material.lengths) // PAIRS)
        values: list[np.ndarray] = []  # (2, m, p) of both frames
        blocks: list[np.ndarray] = []
        size, before = max(step, CHUNK - CHUNK % step), 0
        for piece in material.pieces(lag):
            # every step-th of all pairs, so that short runs are not seen at their beginnings only
            begin = piece.first + -before % step
            before += piece.last - piece.first
            for start in range(begin, piece.last, size):
                stop = min(start + size, piece.last)
                chunk = frames(
                    material.runs[piece.run],
                    start,
                    stop + lag,
                    f"trajectories[{piece.run}]",
                    material.functions.sources,
                )
                pair = (chunk[: stop - start : step], chunk[lag::step])
                values.append(np.stack([to_host(material.functions.transform(Z)) for Z in pair]))
                blocks.append(np.full(values[-1].shape[1], block_of[piece.block]))
        P, Q = np.concatenate(values, axis=1).astype(float)
        rows = np.ones((len(P), 1))
        ratio, ratio_later, now, later = (
            np.hstack([rows, Z[:, : len(W)] @ W]) for W in (first.W, second.W) for Z in (P, Q)
        )
        basis = cast(Basis, second.basis)  # learned by blocks, like every model's first one
        return cls(basis, first.W, ratio, ratio_later, now, later, np.concatenate(blocks))

    def total(self, counts: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return C0 and Ct as means over pairs, of all blocks or with each block taken ``counts`` times."""
        if counts is None:
            return self.basis.total()
        w = counts[self.block] * np.maximum(self.ratio @ self.combination(counts), 0.0)
        C0 = (self.now.T * w) @ self.now + (self.later.T * w) @ self.later
        Ct = (self.now.T * w) @ self.later
        return C0 / (2 * w.sum()), (Ct + Ct.T) / (2 * w.sum())

    def combination(self, counts: np.ndarray) -> np.ndarray:
        """Return the weights that a resample learns, as a combination of 1 and the ``ratio`` functions, (s + 1,)."""
        drawn = self.ratio.T * (counts[self.block] / counts[self.block].sum())
        return stationary(drawn @ self.ratio, drawn @ self.ratio_later)

    def mu(self, k: int, counts: np.ndarray | None = None) -> np.ndarray:
        """Return the k leading eigenvalues of C0^-1 Ct beside the constant's, descending."""
        return leading(*self.total(counts), k)
