"""The Chapman-Kolmogorov test: what the model at one lag predicts against what the data show after several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from gpukoop.draws import check_count
from gpukoop.kinetics.blocks import Basis, standard, widening
from gpukoop.kinetics.model import fitted
from gpukoop.kinetics.states import MetastableStates
from gpukoop.lagged import cut
from gpukoop.spectrum.coordinates import functions_of_points
from gpukoop.spectrum.trajectory import lagged_moments

# Chance that a Markovian model fails.
LEVEL = 0.05


@dataclass(frozen=True)
class ChapmanKolmogorov:
    """Prediction and estimate of the probability to go from state i to state j; ``gk.plot.chapman_kolmogorov`` draws them.

    Attributes
    ----------
    lag_times : ndarray of shape (k,)
    predicted, estimated : ndarrays of shape (k, n, n)
    predicted_error, estimated_error : ndarrays of shape (k, n, n)
        Half widths of their bands.
    largest_z : float
        Largest difference in units of its own standard error, over all entries and lags behind the first.
    limit : float
        What a Markovian model exceeds with probability .05 at most, by Bonferroni's bound.
    """

    lag_times: np.ndarray
    predicted: np.ndarray
    estimated: np.ndarray
    predicted_error: np.ndarray
    estimated_error: np.ndarray
    largest_z: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether no difference is beyond chance."""
        return self.largest_z <= self.limit

    @property
    def largest_difference(self) -> float:
        """Largest difference between prediction and estimate, a probability."""
        return float(np.abs(self.predicted - self.estimated).max())


def chapman_kolmogorov(model: Any, states: MetastableStates, n_steps: int = 5) -> ChapmanKolmogorov:
    r"""Return what the model predicts for 1 to ``n_steps`` lags and what is estimated there.

    .. math:: P_{ij}(t) = \frac{\langle\chi_i, T_t\, \chi_j\rangle}{\langle\chi_i, 1\rangle}, \qquad
              T_{k\tau} = T_\tau^k \text{ predicted, } C_0^{-1} C_{k\tau} \text{ estimated}

    Parameters
    ----------
    model : KineticModel
        Fitted.
    states : MetastableStates
        Of that model.
    n_steps : int
        Lags.

    Returns
    -------
    ChapmanKolmogorov

    Notes
    -----
    Both operators act in the span of the model's functions, and both are resampled with the same blocks, so that the error of
    their difference is known. Cost: one more pass over the trajectories. A test of much data fails for small reasons: look
    at ``largest_difference`` too. Of a reweighted model the resamples keep the learned weights: errors are too small, and
    ``passed`` may be False by noise alone.

    References
    ----------
    .. [1] J.-H. Prinz et al., Markov models of molecular kinetics: generation and validation, Journal of Chemical Physics
       134, 2011, section IV.F.
    """
    learned = fitted(model)
    if states._model is not model:
        raise ValueError(
            "states are those of another model: pass those of metastable_states(model, n_states)"
        )
    steps = check_count(n_steps, "n_steps", least=2)
    material, lag = model._material, model.lag
    combined = material.base.functions.of(np.arange(learned.modes.p)).combined(learned.W)
    functions = functions_of_points(combined, material.estimator)
    lags = [lag * (k + 1) for k in range(steps)]
    lengths = [n - lags[-1] + lag for n in material.lengths]
    if max(lengths) <= lag:
        raise ValueError(
            f"n_steps is {steps}: {lags[-1]} frames are more than the longest run has; ask for fewer steps"
        )
    # every lag sees the pairs that start in the same frames, in the same blocks
    pieces = cut(lengths, lag, max(b.m for b in learned.blocks) * 0.999, model.n_blocks_)
    if model._ratio is None:
        found = lagged_moments(functions, material.runs, dict.fromkeys(lags, pieces))
        bases = [Basis.of(found[k], np.eye(combined.n_modes)) for k in lags]
    else:  # weights are functions of all coordinates
        found = lagged_moments(
            material.functions, material.runs, dict.fromkeys(lags, pieces), model._ratio
        )
        p = learned.modes.p
        bases = [Basis.of([b.leading(p) for b in found[k]], learned.W) for k in lags]
    n_blocks = len(found[lag])
    rng = np.random.default_rng(model.n_bootstrap)
    counts = rng.multinomial(n_blocks, np.full(n_blocks, 1 / n_blocks), size=model.n_bootstrap)
    chi = states.coefficients(combined.n_modes)
    predicted, estimated = _both(bases, chi, None)
    drawn = np.array([_both(bases, chi, c.astype(float)) for c in counts])  # (b, 2, k, n, n)
    wide = widening(n_blocks, learned.c, model.confidence)
    error = drawn.std(axis=0, ddof=1) * wide
    gap = (drawn[:, 0] - drawn[:, 1]).std(axis=0, ddof=1)[1:] * standard(n_blocks, learned.c)
    # entries that agree to rounding have no error to speak of
    z = np.abs(predicted - estimated)[1:] / np.maximum(gap, 1e-9)
    limit = float(stats.t.isf(LEVEL / (2 * z.size), n_blocks - 1))
    times = model.lag_time_ * np.arange(1, steps + 1)
    return ChapmanKolmogorov(times, predicted, estimated, error[0], error[1], float(z.max()), limit)


def _both(
    bases: list[Basis], chi: np.ndarray, counts: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return P_ij at every lag, from powers of the first operator and from each lag's own."""
    C0, Ct = bases[0].total(counts)
    T = np.linalg.solve(C0, Ct)
    weights = C0[0] @ chi
    predicted, estimated, power = [], [], np.eye(len(T))
    for basis in bases:
        power = power @ T
        own0, own = basis.total(counts)
        predicted.append(chi.T @ C0 @ power @ chi / weights[:, None])
        estimated.append(chi.T @ own @ chi / (own0[0] @ chi)[:, None])
    return np.array(predicted), np.array(estimated)
