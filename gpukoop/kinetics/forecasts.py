r"""Where the average of an observable goes from a state, by the modes of a model and the observable itself.

Modes hold the slow part of an observable f. Beside 1 and the modes, f is a function of its own, and the operator in their span,

.. math:: G_0 = \langle b b^T \rangle, \quad G_\tau = \langle b(x_t) b(x_{t + \tau})^T \rangle, \quad
          b = (1, \varphi_1, ..., \varphi_r, f),

has eigenvalues mu_k and eigenfunctions psi_k in which f has no rest: the forecast is f(x) at time 0, and what the modes do not
hold decays as it does in the frames.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpukoop.arrays import Array, native_array, points, to_host
from gpukoop.checks import real_array
from gpukoop.fitted import check_columns
from gpukoop.kinetics.blocks import Basis
from gpukoop.kinetics.model import fitted
from gpukoop.kinetics.observables import columns_of, values_of
from gpukoop.lagged import frames
from gpukoop.spectrum.pairs import Moments, pair_moments
from gpukoop.spectrum.trajectory import CHUNK

# Combinations of the modes and an observable of less variance, relative to the largest, are rounding: f is one of the modes' span.
CUT = 1e-10


def forecast(model: Any, observable: Any, X0: Any, times: Any) -> np.ndarray:
    r"""Return the expected value of an observable at later times, given the state now.

    .. math:: E[f(X_t) \mid X_0 = x] = \sum_k \mu_k^{t / \tau} \langle f, \psi_k \rangle\, \psi_k(x)

    Parameters
    ----------
    model : KineticModel
        Fitted.
    observable : callable, or list of arrays of shape (n,) or (n, s)
        f, (n, d) -> (n,) or (n, s); or its values run by run, of which the modes' part is forecast.
    X0 : array of shape (m, d)
        States now.
    times : array of shape (k,)
        At least 0, in the model's unit.

    Returns
    -------
    ndarray of shape (k, m) or (k, m, s)
        On the host. At time 0 a function gives f(X0).

    Notes
    -----
    mu_k and psi_k are those of the modes and f together, see ``gpukoop.kinetics.forecasts``; of values run by run they are the
    model's, and before the fastest mode has decayed the forecast is that of the slow part of f. Times that are shorter than a lag
    are interpolated. Cost of a function: one more pass over the trajectories.
    """
    fitted(model)
    t = real_array(times, "times", (None,))
    if (t < 0).any():
        raise ValueError(
            f"times has {t.min():g}, expected times from 0 on: the model looks forward"
        )
    F = values_of(model, observable)
    phi = to_host(model.transform(X0)).astype(float)
    flat = F.reshape(len(F), -1)
    if callable(observable):
        shift = flat.mean(axis=0)  # digits of f beside a large mean
        out = shift + _with_observable(model, observable, shift, X0, phi, t)
    else:
        w = model.weights()[:, None] / len(F)
        mean = (w * flat).sum(axis=0)
        coefficient = (w * model.phi_).T @ flat  # (r, s)
        decay = _decay(np.exp(-model.lag_time_ / np.maximum(model.timescales_, 1e-300)), t, model)
        out = mean + np.einsum("kr,mr,rs->kms", decay, phi, coefficient, optimize=True)
    return out[:, :, 0] if F.ndim == 1 else out


def _with_observable(
    model: Any, observable: Any, shift: np.ndarray, X0: Any, phi: np.ndarray, t: np.ndarray
) -> np.ndarray:
    """Return the forecast (k, m, s) of f - shift in the span of the modes and one observable after the other."""
    check_columns(model, X0)
    moments = _moments(model, observable, shift)
    C0, Ct = Basis.of([moments], np.eye(len(moments.x))).total()
    r = phi.shape[1]
    now = _values(observable, points(X0, "X0")[0]) - shift
    out = np.empty((len(t), *now.shape))
    for j in range(now.shape[1]):
        own = np.r_[0 : r + 1, r + 1 + j]
        size = np.sqrt(np.maximum(np.diag(C0)[own], np.finfo(float).tiny))
        S, U = np.linalg.eigh(C0[np.ix_(own, own)] / np.outer(size, size))
        kept = S > CUT * S[-1]
        B = U[:, kept] / np.sqrt(S[kept])
        mu, V = np.linalg.eigh(B.T @ (Ct[np.ix_(own, own)] / np.outer(size, size)) @ B)
        mu[-1] = 1.0  # of the constant, which is one of the span
        share = size[-1] * (U[-1, kept] * np.sqrt(S[kept])) @ V  # of f in the eigenfunctions
        b = np.column_stack([np.ones(len(phi)), phi, now[:, j]]) / size
        out[:, :, j] = np.einsum(
            "ke,me,e->km", _decay(mu, t, model), b @ B @ V, share, optimize=True
        )
    return out


def _decay(mu: np.ndarray, t: np.ndarray, model: Any) -> np.ndarray:
    """Return mu^(t / lag), (k, e): what is noise at the lag has decayed from the start on."""
    power = t[:, None] / model.lag_time_
    return np.where(power == 0, 1.0, np.clip(mu, 0.0, 1.0) ** np.where(power == 0, 1.0, power))


def _moments(model: Any, observable: Any, shift: np.ndarray) -> Moments:
    """Return the moments of the modes and the observables less ``shift`` over all pairs of frames."""
    material = model._material
    found = []
    for i, run in enumerate(material.runs):
        for start in range(0, len(run) - model.lag, CHUNK):
            last = min(start + CHUNK, len(run) - model.lag) + model.lag
            chunk = frames(run, start, last, f"trajectories[{i}]", material.seen)
            phi = to_host(model.estimator_.transform(chunk)).astype(float)
            b = np.column_stack([phi, _values(observable, chunk) - shift])
            weight = None
            if model._ratio is not None:
                ratio = model._ratio(material.functions.transform(chunk).astype(float))
                weight = to_host(ratio)[: len(b) - model.lag]
            found.append(pair_moments(b[: -model.lag], b[model.lag :], weight))
            if len(found) > 1:
                found = [found[0] + found[1]]
    return found[0]


def _values(observable: Any, X: Array) -> np.ndarray:
    """Return an observable's values, (n, s)."""
    values = to_host(
        points(
            columns_of(native_array(observable(X), "observable(frames)")[0]), "observable(frames)"
        )[0]
    )
    if len(values) != len(X):
        raise ValueError(
            f"observable gives {len(values)} rows for {len(X)} frames, expected one a frame"
        )
    return values.astype(float)
