"""Timescales against the lag, with confidence bands: where they stop to depend on it, the modes are Markovian."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpukoop.arrays import to_host
from gpukoop.draws import RandomState, check_count, check_positive, random_generator
from gpukoop.kinetics.blocks import FEWEST_BLOCKS, band, resamples, timescales_of
from gpukoop.kinetics.equilibrium import drift, warn_of_drift
from gpukoop.kinetics.learning import Material, unfitted
from gpukoop.spectrum.asymmetry import warn_of_asymmetry


@dataclass(frozen=True)
class ImpliedTimescales:
    """Timescales at every lag; ``gk.plot.implied_timescales`` draws them.

    Attributes
    ----------
    lags : ndarray of shape (l,)
        In frames.
    lag_times : ndarray of shape (l,)
        In the unit of ``frame_time``, as are all times here.
    timescales, lower, upper : ndarrays of shape (l, k)
        Descending along a row; nan where fewer modes are resolved, or fewer than five blocks leave no band.
    confidence : float
        Of every band by itself.
    n_blocks : ndarray of shape (l,)
        Blocks that were resampled.
    """

    lags: np.ndarray
    lag_times: np.ndarray
    timescales: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    confidence: float
    n_blocks: np.ndarray


def check_confidence(confidence: float) -> float:
    """Return a level in (0, 1), or raise."""
    if not 0 < check_positive(confidence, "confidence") < 1:
        raise ValueError(f"confidence is {confidence}: pass a share in (0, 1), such as 0.95")
    return float(confidence)


def warn_of_few_blocks(n_blocks: int) -> None:
    """Warn that there are too few blocks for bands."""
    if n_blocks < FEWEST_BLOCKS:
        warnings.warn(
            f"the trajectories are {n_blocks} block(s) of five slowest timescales long: too few for error bars, which are nan. "
            "Longer runs, or more of them, give some",
            RuntimeWarning,
            stacklevel=4,
        )


def implied_timescales(
    trajectories: Any,
    lags: Sequence[int],
    *,
    estimator: Any = None,
    n_timescales: int = 3,
    frame_time: float = 1.0,
    n_bootstrap: int = 100,
    confidence: float = 0.95,
    random_state: RandomState = 0,
) -> ImpliedTimescales:
    r"""Return the slowest timescales at several lags, with bands from resampled blocks.

    .. math:: t_k(\tau) = -\tau / \log \mu_k(\tau)

    Parameters
    ----------
    trajectories : array of shape (n, d), or list of such arrays of different lengths
        Frames at equal distances in time, started in equilibrium.
    lags : sequence of int
        In frames.
    estimator : KernelEDMD, optional
        Unfitted; its kernel, landmarks, ``n_components`` and ``reg`` are used. Ten modes by default.
    n_timescales : int, default=3
        k, at most so many as the estimator resolves.
    frame_time : float
        Time between two frames, in the unit that the results shall have.
    n_bootstrap : int
        Resamples of blocks.
    confidence : float
        Of each band.
    random_state : int, Generator, RandomState or None
        Landmarks (of the default estimator) and resamples.

    Returns
    -------
    ImpliedTimescales

    Warns
    -----
    RuntimeWarning
        If there are fewer than five blocks at some lag, the runs did not start in equilibrium, or they are not those of a
        reversible process.

    Notes
    -----
    The dictionary is made once, each frame is evaluated once for all lags, and a resample is a small eigenproblem, so bands
    cost little. Resamples keep the dictionary and the number of its coordinates: what another choice of kernel would change
    is not in the band; :func:`cross_validate` compares choices.

    References
    ----------
    .. [1] W. C. Swope, J. W. Pitera, F. Suits, Describing protein folding kinetics by molecular dynamics simulations, Journal
       of Physical Chemistry B 108, 2004: timescales against the lag.
    """
    unit = check_positive(frame_time, "frame_time")
    k = check_count(n_timescales, "n_timescales")
    check_count(n_bootstrap, "n_bootstrap", least=2)
    check_confidence(confidence)
    rng = random_generator(random_state)
    wanted = sorted({check_count(lag, "lags") for lag in lags})
    if not wanted:
        raise ValueError("lags is empty: pass at least one number of frames")
    material = Material(trajectories, unfitted(estimator, random_state), wanted[0])
    shape = (len(wanted), k)
    times, lower, upper = (np.full(shape, np.nan) for _ in range(3))
    sizes = np.zeros(len(wanted), int)
    moments = material.moments(wanted)
    asymmetries, p_value = [], 1.0
    for i, lag in enumerate(wanted):
        learned = material.learn(moments.pop(lag), lag)
        asymmetries.append(learned.modes.asymmetry)
        found = min(k, len(learned.modes.mu))
        sizes[i] = len(learned.blocks)
        counts = resamples(sizes[i], n_bootstrap, rng)
        times[i, :found] = timescales_of(learned.modes.mu[:found], lag * unit)
        drawn = timescales_of(np.array([learned.basis.mu(found, c) for c in counts]), lag * unit)
        lower[i, :found], upper[i, :found] = band(
            times[i, :found], drawn, int(sizes[i]), learned.c, confidence
        )
        if i == 0:
            phi = to_host(learned.modes.functions.transform(material.estimator.seen(material.seen)))
            slowest = float(times[0, 0]) / unit
            p_value = drift(phi.astype(float), material.lengths, slowest)
    warn_of_few_blocks(int(sizes.min()))
    warn_of_asymmetry(max(asymmetries, key=lambda found: found.excess))
    warn_of_drift(p_value)
    return ImpliedTimescales(
        np.array(wanted), np.array(wanted) * unit, times, lower, upper, float(confidence), sizes
    )
