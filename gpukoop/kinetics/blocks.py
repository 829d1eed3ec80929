r"""Error bars from resampling blocks of trajectories, by one rule.

Frames of a trajectory depend on each other, so pairs are not resampled one by one but in blocks:

* with 20 runs or more, whole runs, in groups of neighbours if there are more than 60;
* with fewer, contiguous stretches of at least five times the slowest timescale (and of the lag), at most 60 of them.

Means of neighbouring stretches are correlated, and resampling them as if they were not makes errors too small. With
correlations that decay like those of the slowest mode, exp(-t / t_1), the error of a mean is c times what stretches of length
l t_1 say,

.. math:: c = \left(1 - \frac{1 - e^{-l}}{l}\right)^{-1/2}

which is 1.12 at l = 5; of whole runs c is 1. A positive quantity q (a timescale, a weight, a passage time) gets the band

.. math:: q \exp(\pm c\, t_{B-1} \sqrt{B / (B - 1)}\; \mathrm{sd}(\log q^*))

over resamples q*, B blocks and the quantile t of Student's law: few blocks give wide bands. Fewer than five give none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from gpukoop.spectrum.pairs import Moments

# Slowest timescales in a block: what is left of the correlation of neighbours is 12 per cent of an error.
SPAN = 5.0
# Runs from which on they are resampled whole.
MANY_RUNS = 20
# Blocks held: each is three matrices of p coordinates.
MOST_BLOCKS = 60
# Blocks whose spread is an error at all.
FEWEST_BLOCKS = 5


@dataclass(frozen=True)
class Basis:
    """Functions b = (1, coordinates) and their moments in B blocks.

    Attributes
    ----------
    C0, Ct : ndarrays of shape (B, q + 1, q + 1)
        Sums of b b^T over both halves of the pairs, and of b(x) b(y)^T, symmetrised; entry [0, 0] is the number of pairs.
    """

    C0: np.ndarray
    Ct: np.ndarray

    @classmethod
    def of(cls, blocks: list[Moments], W: np.ndarray) -> Basis:
        """Return the moments of combinations W (p, q) of the coordinates."""
        C0 = np.empty((len(blocks), W.shape[1] + 1, W.shape[1] + 1))
        Ct = np.empty_like(C0)
        for b, block in enumerate(blocks):
            C0[b, 0, 0] = Ct[b, 0, 0] = block.m
            first = W.T @ (block.x + block.y) / 2
            C0[b, 0, 1:] = C0[b, 1:, 0] = Ct[b, 0, 1:] = Ct[b, 1:, 0] = first
            C0[b, 1:, 1:] = W.T @ (block.xx + block.yy) @ W / 2
            cross = W.T @ block.xy @ W
            Ct[b, 1:, 1:] = (cross + cross.T) / 2
        return cls(C0, Ct)

    def total(self, counts: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return C0 and Ct as means over pairs, of all blocks or with each block taken ``counts`` times."""
        w = np.ones(len(self.C0)) if counts is None else counts
        C0, Ct = (np.tensordot(w, C, axes=1) for C in (self.C0, self.Ct))
        return C0 / C0[0, 0], Ct / Ct[0, 0]

    def mu(self, k: int, counts: np.ndarray | None = None) -> np.ndarray:
        """Return the k leading eigenvalues of C0^-1 Ct beside the constant's, descending."""
        return leading(*self.total(counts), k)


def leading(C0: np.ndarray, Ct: np.ndarray, k: int) -> np.ndarray:
    """Return the k leading eigenvalues of C0^-1 Ct beside the constant's, descending."""
    L = np.linalg.inv(np.linalg.cholesky(C0))
    values: np.ndarray = np.linalg.eigvalsh(L @ Ct @ L.T)[::-1][1 : k + 1]
    return values


def joins(sizes: list[float], least: float) -> list[list[int]]:
    """Return the numbers of neighbours that are joined until they have at least ``least`` pairs together."""
    found: list[list[int]] = []
    open_: list[int] = []
    for i in range(len(sizes)):
        open_.append(i)
        if sum(sizes[j] for j in open_) >= least:
            found.append(open_)
            open_ = []
    if open_:
        found = [*found[:-1], found[-1] + open_] if found else [open_]
    return found


def first_length(lengths: list[int], lag: int) -> float:
    """Return the least pairs of the blocks that are measured before the timescales are known."""
    if len(lengths) >= MANY_RUNS:
        return np.inf
    return max(float(lag), sum(max(0, n - lag) for n in lengths) / MOST_BLOCKS)


def resamples(n_blocks: int, n_bootstrap: int, rng: np.random.Generator) -> np.ndarray:
    """Return how often each block is drawn in each resample, (n_bootstrap, n_blocks)."""
    return rng.multinomial(n_blocks, np.full(n_blocks, 1 / n_blocks), size=n_bootstrap).astype(
        float
    )


def correlation(length: float) -> float:
    """Return c of the module's formula, for neighbouring stretches ``length`` slowest timescales long."""
    return float(1 / np.sqrt(1 + np.expm1(-length) / length))


def standard(n_blocks: int, c: float) -> float:
    """Return the factor from the standard deviation over resamples of blocks to a standard error."""
    return float(c * np.sqrt(n_blocks / (n_blocks - 1)))


def widening(n_blocks: int, c: float, confidence: float) -> float:
    """Return the factor from the standard deviation over resamples to half the width of a band; nan with too few blocks."""
    if n_blocks < FEWEST_BLOCKS:
        return float("nan")
    return float(stats.t.ppf((1 + confidence) / 2, n_blocks - 1)) * standard(n_blocks, c)


def band(
    value: np.ndarray, drawn: np.ndarray, n_blocks: int, c: float, confidence: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the lower and upper ends of the bands of positive values, from resamples of them along axis 0."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        logs = np.log(np.maximum(drawn, np.finfo(float).tiny))
        factor = np.exp(widening(n_blocks, c, confidence) * logs.std(axis=0, ddof=1))
    return value / factor, value * factor


def timescales_of(mu: np.ndarray, lag_time: float) -> np.ndarray:
    """Return -lag_time / log(mu), 0 where mu <= 0: decayed within the lag."""
    safe = np.clip(mu, np.finfo(float).tiny, 1 - 1e-12)
    return -lag_time / np.log(safe)
