r"""Where the average of an observable goes from a state, by the modes of a model and what they do not hold of the observable.

Modes hold the slow part of an observable f. Its rest r = f - <f> - sum_k <f, phi_k> phi_k decays faster or is what the modes are
wrong by; how fast it goes is read from the frames, by its own correlation at the lag:

.. math:: \rho = \langle r(x_t)\, r(x_{t + \tau}) \rangle / \langle r^2 \rangle
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

# A rest of less variance, relative to that of f, is rounding.
CUT = 1e-12


def forecast(model: Any, observable: Any, X0: Any, times: Any) -> np.ndarray:
    r"""Return the expected value of an observable at later times, given the state now.

    .. math:: E[f(X_t) \mid X_0 = x] = \langle f \rangle + \sum_k e^{-t / t_k} \langle f, \varphi_k \rangle\, \varphi_k(x)
              + \rho^{t / \tau} r(x)

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
    r is what the modes do not hold of f, and rho its correlation at the lag, see ``gpukoop.kinetics.forecasts``; values run by run
    do not say what r is at X0, and before the fastest mode has decayed their forecast is that of the slow part of f. Cost of a
    function: one more pass over the trajectories.
    """
    fitted(model)
    t = real_array(times, "times", (None,))
    if (t < 0).any():
        raise ValueError(
            f"times has {t.min():g}, expected times from 0 on: the model looks forward"
        )
    F = values_of(model, observable, "observable")
    check_columns(model, X0)
    points(X0, "X0", n_features=model._material.runs[0].shape[1], other="the fitted trajectories")
    phi = to_host(model.transform(X0)).astype(float)
    flat = F.reshape(len(F), -1)
    shift = flat.mean(axis=0)  # digits of f beside a large mean
    if callable(observable):
        rest = _values(observable, points(X0, "X0")[0]) - shift
        part, rho = _parts(model, observable, shift)
        rest -= part[0] + phi @ part[1:]
    else:
        w = model.weights()[:, None] / len(F)
        part = np.concatenate(
            [[(w * (flat - shift)).sum(axis=0)], (w * model.phi_).T @ (flat - shift)]
        )
        rest, rho = np.zeros((len(phi), flat.shape[1])), np.zeros(flat.shape[1])
    with np.errstate(divide="ignore"):
        decay = np.exp(
            -np.divide(
                t[:, None],
                model.timescales_,
                where=t[:, None] > 0,
                out=np.zeros((len(t), phi.shape[1])),
            )
        )
    out = shift + part[0] + np.einsum("kr,mr,rs->kms", decay, phi, part[1:], optimize=True)
    out += rest * rho ** (t[:, None, None] / model.lag_time_)
    return out[:, :, 0] if F.ndim == 1 else out


def _parts(model: Any, observable: Any, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return f - shift in 1 and the modes, (1 + r, s), and the correlation of the rest at the lag, (s,)."""
    moments = _moments(model, observable, shift)
    C0, Ct = Basis.of([moments], np.eye(len(moments.x))).total()
    q = len(C0) - len(shift)
    part = np.linalg.solve(C0[:q, :q], C0[:q, q:])
    rest = np.concatenate([-part, np.eye(len(shift))])
    now, later = (np.einsum("is,ij,js->s", rest, C, rest) for C in (C0, Ct))
    known = now > CUT * np.diag(C0)[q:]
    return part, np.clip(np.where(known, later / np.where(known, now, 1.0), 0.0), 0.0, 1.0)


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
