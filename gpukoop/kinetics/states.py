"""Metastable states of a model: memberships, weights, rates, passage times and committors, with error bars."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpukoop.arrays import Array, namespace, points
from gpukoop.draws import check_count, check_positive
from gpukoop.fitted import check_columns
from gpukoop.kinetics.committor import Committor
from gpukoop.kinetics.learning import Learned
from gpukoop.kinetics.model import KineticModel, fitted
from gpukoop.kinetics.pcca import pcca

# Membership from which on a state counts as met.
CORE = 0.8


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

    def committor(self, source: Any, target: Any, X: Any, *, core: float = CORE) -> Array:
        r"""Return the probability (m,) to reach one set before another from points.

        .. math:: q(x) = P(\text{a run from } x \text{ meets the target before the source})

        Parameters
        ----------
        source, target : int or callable
            A state, which is met where its membership is ``core`` or more; or a set, (n, d) -> (n,) of True inside.
        X : array of shape (m, d)
        core : float, default=0.8
            Above .5, so that states have no point in common, and below 1.

        Returns
        -------
        array of shape (m,)
            Library and device of X; 0 in the source, 1 in the target.

        Raises
        ------
        ValueError
            If the sets have frames in common, the trajectories never meet one of them, or a point lies between them where no
            frame does.

        Warns
        -----
        RuntimeWarning
            If visits between two frames, which are not seen, change q by more than .05 (root mean square).

        Notes
        -----
        Galerkin's method for windows of the model's lag that stop where they meet a set, see
        ``gpukoop.kinetics.committor``. Cost: one more pass over the trajectories. Accuracy: q is that of the process seen at
        its frames; a visit between two of them does not count, so that a set much smaller than the way of one frame is met too
        seldom. What this changes is estimated from every second frame. Root mean square errors against a grid, with and
        without frames, are in ``bench/results.md``.
        """
        share = check_positive(core, "core")
        if not 0.5 < share < 1:
            raise ValueError(f"core is {core}: pass a membership in (.5, 1), such as 0.8")
        sets = []
        for name, chosen in (("source", source), ("target", target)):
            if not callable(chosen) and check_count(chosen, name, least=0) >= self.n_states:
                raise ValueError(
                    f"{name} is {chosen}, expected a state from 0 to {self.n_states - 1}"
                )
            sets.append(chosen if callable(chosen) else self._core(int(chosen), share))
        if not callable(source) and not callable(target) and source == target:
            raise ValueError(f"source and target are both {source}: pass two states")
        check_columns(self._model, X)
        Z, home = points(
            X, "X", n_features=self._model._material.runs[0].shape[1], other="the fitted X"
        )
        return home.restore(Committor(self._model, *sets)(Z))

    def _core(self, state: int, share: float) -> Callable[[Array], Array]:
        return lambda Z: self.memberships(Z)[:, state] >= share

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
