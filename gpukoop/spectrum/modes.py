"""From moments of pairs to modes: how many coordinates, which eigenpairs, and which of them mean something."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from gpukoop.arrays import Array
from gpukoop.spectrum.asymmetry import DECAYED, Asymmetry
from gpukoop.spectrum.dictionary import coordinates_above
from gpukoop.spectrum.nystroem import Coordinates
from gpukoop.spectrum.pairs import (
    FOLDS,
    Moments,
    best_reg,
    carriers,
    folds_of,
    held_out_scores,
    noise_level,
)
from gpukoop.spectrum.ratio import RatioFunctions
from gpukoop.spectrum.rotating import RotatingFunctions, whole_pairs

logger = logging.getLogger("gpukoop")

# Folds of fewer pairs than this cannot score ten modes; then sigma_min is FALLBACK.
FEWEST, FALLBACK = 20, 0.1
# An eigenfunction that fewer samples carry (a fiftieth of them, if they are few) is slow by chance: a handful of
# points in a tail whose successors happen to stay there. Measured: 5 to 16 for such modes of 20,000 Gaussian
# pairs, 43 and more for the first four true ones.
CARRIERS = 30.0
# Below this a mode has decayed within one lag: its eigenvalue is noise.
SMALLEST_MU = 1e-3
# mu = 1 within this is a mode that never decays in the data.
LARGEST_MU = 1 - 1e-9


@dataclass(frozen=True)
class ResolvedModes:
    """Modes that outlive a lag and are carried by many samples; attributes as those of ``KernelEDMD``.

    ``p`` coordinates were used, and ``kept`` are the numbers of the modes among all of theirs.
    """

    mu: np.ndarray
    functions: RatioFunctions | RotatingFunctions
    is_noise: np.ndarray
    n_spurious: int
    reg: float
    reg_path: dict[float, np.ndarray]
    asymmetry: Asymmetry
    p: int
    kept: np.ndarray


def resolved_modes(
    base: Coordinates,
    blocks: list[Moments],
    X: Array,
    reg: float | None,
    r: int,
    reversible: bool,
) -> ResolvedModes:
    """Return at most r modes from the moments of contiguous blocks of pairs.

    Parameters
    ----------
    base : Coordinates
        The dictionary.
    blocks : list of Moments
        Of its coordinates.
    X : array of shape (n, d)
        Samples that say how many of them carry a mode.
    reg : float or None
        sigma_min; None takes it from the held-out score.
    r : int
    reversible : bool
    """
    m = sum(block.m for block in blocks)
    reg_path: dict[float, np.ndarray] = {}
    if reg is None:
        reg = FALLBACK
        # Fewer pairs than that score noise; a moderate number of coordinates is then the safer answer.
        if m >= FEWEST * FOLDS and len(blocks) >= FOLDS:
            reg_path = held_out_scores(base.sigma, folds_of(blocks), r, reversible)
            reg = best_reg(reg_path)
    p = coordinates_above(base.sigma, reg)
    blocks = [block.leading(p) for block in blocks]
    asymmetry = Asymmetry.of(blocks)
    total = sum(blocks[1:], blocks[0])
    mu, W = total.modes() if reversible else total.rotating_modes()
    size = mu if reversible else np.abs(mu)
    # Twice as many as asked, because some will turn out to be carried by a handful of samples.
    slow = int((size > SMALLEST_MU)[: 2 * r].sum())
    if not slow:
        raise ValueError(
            f"no mode survives one lag (largest mu {size[0]:.1e} after {p} coordinates): are the successors "
            "in the order of X? If so, use a shorter lag_time"
        )
    mean, covariance = total.law_of_x()
    coordinates, W = base.functions.of(np.arange(p)), W[:, :slow]
    functions: RatioFunctions | RotatingFunctions
    if reversible:
        # Under the law of X and not of both halves: that is the law whose functions the user asked for.
        variance = ((covariance @ W) * W).sum(axis=0)
        functions = coordinates.combined(W).normalised(mean @ W, variance)
    else:
        functions = RotatingFunctions.of_modes(coordinates, W, mean, covariance)
    carried = np.flatnonzero(carriers(functions, X) >= min(CARRIERS, len(X) / 50))
    carried = whole_pairs(mu, carried, r)
    n_spurious = int((np.arange(slow) < carried.max(initial=0)).sum()) + 1 - len(carried)
    if not len(carried):
        raise ValueError(
            f"no mode is left: each is carried by fewer than {CARRIERS:.0f} samples, or n_components = {r} cuts a "
            "conjugate pair: raise the scale of the kernel, or n_components"
        )
    if len(carried) < r:
        logger.info("KernelEDMD keeps %d of %d modes with reg = %g", len(carried), r, reg)
    size = size[carried]
    # Symmetrising adds two independent halves: the noise of a sum over its norm is larger by the root of two.
    edge = noise_level(W.shape[0], total.m) * (np.sqrt(2) if reversible else 1.0)
    is_noise = size < max(DECAYED, edge)
    if is_noise.any():
        logger.info(
            "KernelEDMD: %d of %d modes are noise, |mu| < %.2g: decayed within one lag_time, or too few pairs "
            "(is_noise_ says which)",
            is_noise.sum(),
            len(size),
            max(DECAYED, edge),
        )
    # By modulus, so that the angle of a complex one stays.
    mu = mu[carried] * np.minimum(1.0, LARGEST_MU / size)
    return ResolvedModes(
        mu, functions.of(carried), is_noise, n_spurious, reg, reg_path, asymmetry, p, carried
    )
