"""Metastable states of a model: memberships, weights, rates, passage times and committors, with error bars."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpukoop.arrays import Array, namespace
from gpukoop.draws import check_count
from gpukoop.kinetics.learning import Learned
from gpukoop.kinetics.model import KineticModel, fitted
from gpukoop.kinetics.pcca import pcca


@dataclass(frozen=True)
class MetastableStates:
    """States of PCCA+, by falling weight.

    Attributes
    ----------
    weights, weights_lower, weights_upper : ndarrays of shape (n,)
        Shares of the stationary law, with their bands.
    generator : ndarray of shape (n, n)
        Rates between the states, per unit of time: rows sum to 0. Entries that are 0 may come out slightly negative.
    mean_first_passage_times, mean_first_passage_times_lower, mean_first_passage_times_upper : ndarrays of shape (n, n)
        From state i (row) to state j, 0 on the diagonal, in the model's unit of time.
    timescales : ndarray of shape (n - 1,)
        Those of the model that the states are made of.
    """

    weights: np.ndarray
    weights_lower: np.ndarray
    weights_upper: np.ndarray
    generator: np.ndarray
    mean_first_passage_times: np.ndarray
    mean_first_passage_times_lower: np.ndarray
    mean_first_passage_times_upper: np.ndarray
    timescales: np.ndarray
    _model: KineticModel
    _A: np.ndarray

    @property
    def n_states(self) -> int:
        """Number of states, n."""
        return len(self.weights)

    def memberships(self, X: Any) -> Array:
        """Return the probabilities (m, n) that points belong to the states, in the library and on the device of X."""
        phi = self._model.transform(X)
        xp = namespace(phi)
        A = xp.asarray(self._A)
        chi = xp.clip(A[0] + phi[:, : self.n_states - 1] @ A[1:], 0.0, 1.0)
        return chi / chi.sum(axis=1, keepdims=True)

    def committor(self, source: int, target: int, X: Any) -> Array:
        r"""Return the probability (m,) to reach state ``target`` before state ``source`` from points.

        .. math:: q(x) = \sum_i \chi_i(x)\, q_i, \qquad q_{source} = 0, \quad q_{target} = 1, \quad
                  \sum_j Q_{ij} q_j = 0 \text{ else}

        Parameters
        ----------
        source, target : int
            Two states.
        X : array of shape (m, d)

        Notes
        -----
        Accuracy: of the order of the ratio of the first timescale left out to the last one that the states are made of. Measured
        root mean square error in three wells, between discs of radius .3: .014 between the two deep ones (ratio 1 / 10), .08
        from a deep one to the shallow one (1 / 5), whose state is reached more often than its disc.
        """
        n = self.n_states
        for name, state in (("source", source), ("target", target)):
            if check_count(state, name, least=0) >= n:
                raise ValueError(f"{name} is {state}, expected a state from 0 to {n - 1}")
        if source == target:
            raise ValueError(f"source and target are both {source}: pass two states")
        q = np.zeros(n)
        q[target] = 1.0
        inner = [i for i in range(n) if i not in (source, target)]
        if inner:
            Q = self.generator
            q[inner] = np.linalg.solve(Q[np.ix_(inner, inner)], -Q[inner, target])
        chi = self.memberships(X)
        return chi @ namespace(chi).asarray(np.clip(q, 0.0, 1.0))

    def coefficients(self, n_functions: int) -> np.ndarray:
        """Return the memberships as combinations of 1 and the model's functions, (1 + n_functions, n)."""
        return _coefficients(fitted(self._model), self._A, n_functions)


def metastable_states(model: Any, n_states: int) -> MetastableStates:
    r"""Return metastable states by PCCA+ on the slowest eigenfunctions.

    .. math:: Q = A^{-1}\, \mathrm{diag}(0, -1/t_1, ..., -1/t_{n-1})\, A

    Parameters
    ----------
    model : KineticModel
        Fitted.
    n_states : int
        n, from 2 to one more than the model has modes. A good number has a gap behind timescale n - 1.

    Returns
    -------
    MetastableStates

    Notes
    -----
    Bands are of the weights, rates and passage times of these states: their memberships are not chosen anew in a resample.
    """
    learned = fitted(model)
    n = check_count(n_states, "n_states", least=2)
    r = len(model.timescales_)
    if n > r + 1:
        raise ValueError(
            f"n_states is {n}, the model has {r} modes: ask for at most {r + 1} states, or fit more modes"
        )
    if model.estimator_.is_noise_[n - 2]:
        warnings.warn(
            f"n_states is {n}, which needs mode {n - 1}: it has decayed within the lag ({model.timescales_[n - 2]:.3g} against "
            f"{model.lag_time_:.3g}) or is noise, and the states and rates made of it mean nothing. Ask for fewer states, or "
            "use a shorter lag",
            RuntimeWarning,
            stacklevel=2,
        )
    A = pcca(model.phi_[:, : n - 1], n, model.weights())
    A = A[:, np.argsort(-A[0])]
    chi = _coefficients(learned, A, learned.W.shape[1])
    weights, Q = _rates(learned.basis.total(), chi, model.lag_time_)
    drawn = [_rates(learned.basis.total(c), chi, model.lag_time_) for c in model._counts]
    times = _passage(Q)
    lower, upper = model._band(weights, np.array([w for w, _ in drawn]))
    away = ~np.eye(n, dtype=bool)
    bands = np.zeros((2, n, n))
    bands[:, away] = model._band(times[away], np.array([_passage(q)[away] for _, q in drawn]))
    return MetastableStates(
        weights,
        lower,
        np.minimum(upper, 1.0),
        Q,
        times,
        bands[0],
        bands[1],
        model.timescales_[: n - 1],
        model,
        A,
    )


def _coefficients(learned: Learned, A: np.ndarray, n_functions: int) -> np.ndarray:
    total = sum(learned.blocks[1:], learned.blocks[0])
    mean, covariance = total.law_of_x()
    n = len(A)
    W = learned.W[:, : n - 1]
    spread = np.sqrt(((covariance @ W) * W).sum(axis=0))
    out = np.zeros((n_functions + 1, n))
    out[1:n] = A[1:] / spread[:, None]
    out[0] = A[0] - (mean @ W / spread) @ A[1:]
    return out


def _rates(
    moments: tuple[np.ndarray, np.ndarray], chi: np.ndarray, lag_time: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights and the generator of the operator in the span of the memberships."""
    C0, Ct = moments
    P = np.linalg.solve(chi.T @ C0 @ chi, chi.T @ Ct @ chi)
    mu, V = np.linalg.eig(P)
    rates = np.log(np.clip(mu.real, 1e-12, 1.0)) / lag_time
    Q = (V * rates) @ np.linalg.inv(V)
    return C0[0] @ chi, Q.real


def _passage(Q: np.ndarray) -> np.ndarray:
    """Return the mean first passage times of a generator, (n, n)."""
    n = len(Q)
    times = np.zeros((n, n))
    for j in range(n):
        others = [i for i in range(n) if i != j]
        times[others, j] = np.linalg.solve(Q[np.ix_(others, others)], -np.ones(n - 1))
    return times
