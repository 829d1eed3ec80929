"""Which estimator and which lag: variational scores on stretches of trajectories that were not learned from."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from sklearn.base import clone
from sklearn.model_selection import ParameterGrid
from sklearn.utils.validation import check_is_fitted

from gpukoop.draws import RandomState, check_count
from gpukoop.kinetics.blocks import Basis
from gpukoop.kinetics.learning import unfitted
from gpukoop.lagged import Piece, check_lag, runs_of
from gpukoop.spectrum.coordinates import functions_of_points
from gpukoop.spectrum.trajectory import lagged_moments

Score = Literal["VAMP-2", "VAMP-E"]
SCORES = ("VAMP-2", "VAMP-E")


@dataclass(frozen=True)
class CrossValidation:
    """Held-out scores of every setting.

    Attributes
    ----------
    settings : list of dict
        As the grid says, ``lag`` among them.
    scores : ndarray of shape (settings, folds)
        Of a setting that could not be fitted nan. Scores of different lags do not compare: longer lags score less.
    """

    settings: list[dict[str, Any]]
    scores: np.ndarray

    def best(self, lag: int | None = None) -> dict[str, Any]:
        """Return the setting with the best mean score, of one lag if it is given."""
        mean = self.scores.mean(axis=1)
        chosen = [
            i
            for i, setting in enumerate(self.settings)
            if (lag is None or setting.get("lag") == lag) and np.isfinite(mean[i])
        ]
        if not chosen:
            raise ValueError(f"no setting of lag {lag} could be fitted and scored")
        return self.settings[max(chosen, key=lambda i: mean[i])]


def vamp_score(
    estimator: Any, trajectories: Any, lag: int, score: Score = "VAMP-2", n_modes: int | None = None
) -> float:
    r"""Return a variational score of fitted eigenfunctions on other trajectories.

    .. math:: \text{VAMP-2}: \| G_0^{-1/2} G_\tau G_0^{-1/2} \|_F^2, \qquad
              \text{VAMP-E}: \mathrm{tr}(2 S G_\tau - S G_0 S G_0), \qquad S = \mathrm{diag}(1, \mu_1, ..., \mu_r)

    with G the moments of (1, phi_1, ..., phi_r) on these trajectories, symmetrised. VAMP-2 judges the span of the functions,
    VAMP-E the functions and their eigenvalues. Both count 1 for the constant.

    Parameters
    ----------
    estimator : KernelEDMD
        Fitted, reversible.
    trajectories : array of shape (n, d), or list of such arrays
    lag : int
        In frames.
    score : {"VAMP-2", "VAMP-E"}
    n_modes : int, optional
        Score the first so many only: settings with more modes are not better for it.

    Returns
    -------
    float
        The larger the better; 1 is the share of the constant.

    References
    ----------
    .. [1] H. Wu, F. Noe, Variational approach for learning Markov processes from time series data, Journal of Nonlinear
       Science 30, 2020, eqs. 22 and 26.
    """
    if score not in SCORES:
        raise ValueError(f"score is {score!r}, expected one of {', '.join(SCORES)}")
    check_is_fitted(estimator, "functions_")
    runs = runs_of(trajectories)
    lag = check_lag(runs, lag)
    pieces = [Piece(i, 0, len(run) - lag, 0) for i, run in enumerate(runs) if len(run) > lag]
    k = len(estimator.mu_)
    if n_modes is not None:
        k = min(k, check_count(n_modes, "n_modes"))
    functions = functions_of_points(estimator.functions_.of(np.arange(k)), estimator)
    moments = lagged_moments(functions, runs, {lag: pieces})[lag]
    G0, Gt = Basis.of(moments, np.eye(k)).total()
    if score == "VAMP-2":
        M = np.linalg.solve(G0, Gt)
        return float(np.trace(M @ M))
    S = np.diag([1.0, *estimator.mu_[:k]])
    return float(np.trace(2 * S @ Gt - S @ G0 @ S @ G0))


def cross_validate(
    trajectories: Any,
    grid: dict[str, list[Any]] | list[dict[str, list[Any]]],
    *,
    lag: int | None = None,
    estimator: Any = None,
    score: Score = "VAMP-2",
    n_modes: int | None = None,
    n_splits: int = 5,
    random_state: RandomState = 0,
) -> CrossValidation:
    """Return held-out variational scores over a grid of kernels, scales, components, landmarks and lags.

    Parameters
    ----------
    trajectories : array of shape (n, d), or list of such arrays of different lengths
    grid : dict of str to list
        Parameters of ``KernelEDMD``, and ``lag``; such as ``{"kernel": [gk.Gaussian(0.3), gk.Gaussian(1.0)], "lag": [10]}``.
    lag : int, optional
        In frames, if the grid has none.
    estimator : KernelEDMD, optional
        Everything that the grid leaves open.
    score, n_modes
        As in :func:`vamp_score`.
    n_splits : int
        Folds: contiguous fifths of all frames. Nothing of a fold, its dictionary included, is learned from it.
    random_state : int, Generator, RandomState or None
        Landmarks (of the default estimator).

    Returns
    -------
    CrossValidation

    Raises
    ------
    ValueError
        If no setting can be fitted.

    Warns
    -----
    RuntimeWarning
        If a setting cannot be fitted.

    Notes
    -----
    Cost: ``n_splits`` fits a setting.
    """
    runs = runs_of(trajectories)
    folds = check_count(n_splits, "n_splits", least=2)
    if sum(len(run) for run in runs) < folds:
        raise ValueError(
            f"n_splits is {folds}, the trajectories have {sum(len(run) for run in runs)} frames: ask for fewer folds"
        )
    base = unfitted(estimator, random_state)
    settings = [dict(setting) for setting in ParameterGrid(grid)]
    scores = np.full((len(settings), folds), np.nan)
    failure: ValueError | None = None
    for i, setting in enumerate(settings):
        own = check_lag(runs, setting.get("lag", lag))
        parameters = {name: value for name, value in setting.items() if name != "lag"}
        for fold in range(folds):
            learned, held = _split(runs, fold, folds)
            fit = clone(base).set_params(**parameters)
            try:
                fit.fit(learned, lag=own)
            except ValueError as error:  # such as a scale without neighbours: other settings may do
                failure = error
                warnings.warn(
                    f"{setting} could not be fitted and scores nan: {error}",
                    RuntimeWarning,
                    stacklevel=2,
                )
                break
            scores[i, fold] = vamp_score(fit, held, own, score, n_modes)
    if failure is not None and not np.isfinite(scores.mean(axis=1)).any():
        raise failure
    return CrossValidation(settings, scores)


def _split(runs: list[Any], fold: int, folds: int) -> tuple[list[Any], list[Any]]:
    """Return the runs without a contiguous share of all frames, and that share; no piece joins what was cut apart."""
    total = sum(len(run) for run in runs)
    first, last = fold * total // folds, (fold + 1) * total // folds
    learned, held, offset = [], [], 0
    for run in runs:
        a, b = (min(max(edge - offset, 0), len(run)) for edge in (first, last))
        offset += len(run)
        learned += [part for part in (run[:a], run[b:]) if len(part)]
        held += [run[a:b]] if b > a else []
    return learned, held
