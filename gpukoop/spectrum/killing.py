r"""Survival of paths that are killed on their way: the Feynman-Kac semigroup in a learned spectrum.

=====  ======================================================================
c      killing rate, a function of the state, per unit of time
t, h   time and step of the splitting
u      probability to survive, as a function of the starting point
Phi    the constant and the eigenfunctions at points, (n, r + 1)
=====  ======================================================================
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpukoop.arrays import Array, to_host

# Steps beside two for each decay of the last mode. The splitting is of second order: 32 steps in place of 16 move u by 2e-4
# on the Ornstein-Uhlenbeck process with c = x^2 / 2 over one unit of time.
LEAST_STEPS, MOST_STEPS = 16, 4_096
# Samples that the inner products are averaged over.
SAMPLES = 50_000


def survival(
    spectrum: Any,
    X: Array,
    Z: Array,
    rate_of_X: np.ndarray,
    rate_of_Z: np.ndarray,
    time: float,
    trusted: np.ndarray | None = None,
) -> np.ndarray:
    r"""Return the probability that a path from each point of Z survives a time, (n,).

    .. math:: u(z) = E_z\, e^{-\int_0^t c(X_s)\, ds} = (e^{-t (L + c)} 1)(z)

    Parameters
    ----------
    spectrum : fitted spectrum
        Of the positive generator L; modes beyond its last are taken to decay as fast as that one, so that the semigroup is
        the identity at t = 0 and exact for modes that are known.
    X : array of shape (m, d)
        Samples of the invariant law.
    Z : array of shape (n, d)
        Starting points.
    rate_of_X, rate_of_Z : arrays of shape (m,) and (n,)
        c there; infinite where a path ends at once, negative where paths multiply.
    time : float
        t, in the unit whose inverse the eigenvalues have.
    trusted : array of bool of shape (r,), optional
        Modes to use.

    Returns
    -------
    ndarray of shape (n,)
        Float64 on the host, between 0 and exp(-t min c).

    Notes
    -----
    Strang splitting, e^{-hc/2} e^{-hL} e^{-hc/2}, with h at most half the decay time of the last mode. Inner products are
    means over X: the error is that of the spectrum and sd / sqrt(m). Cost: one ``transform`` of X and Z, and O((m + n) r) for
    each of 16 + 2 t lambda_r steps.
    """
    if len(X) > SAMPLES:
        chosen = np.linspace(0, len(X) - 1, SAMPLES).astype(int)
        X, rate_of_X = X[chosen], rate_of_X[chosen]
    kept: Any = slice(None) if trusted is None or not trusted.any() else np.asarray(trusted)
    eigenvalues = np.append(0.0, np.asarray(spectrum.eigenvalues_, float)[kept])
    Phi, at_Z = (_with_constant(spectrum.transform(A), kept) for A in (X, Z))
    # learned modes are orthonormal under X up to a few per cent: the pseudo-inverse makes projections of the inner products
    project = np.linalg.pinv(Phi)  # (r + 1, m)
    last = eigenvalues[-1]
    steps = min(MOST_STEPS, LEAST_STEPS + math.ceil(2 * time * last))
    h = time / steps
    rest = math.exp(-h * last)
    decay = np.exp(-h * eigenvalues) - rest
    half_X, half_Z = np.exp(-0.5 * h * rate_of_X), np.exp(-0.5 * h * rate_of_Z)
    f, g = np.ones(len(Phi)), np.ones(len(at_Z))
    for _ in range(steps):
        f, g = half_X * f, half_Z * g
        a = decay * (project @ f)
        f, g = half_X * (rest * f + Phi @ a), half_Z * (rest * g + at_Z @ a)
    # a truncated series may fall a little outside of what any probability obeys
    least = min(rate_of_X.min(), rate_of_Z.min())
    return np.clip(g, 0.0, math.exp(min(-time * least, 700.0)))


def _with_constant(phi: Array, chosen: Any) -> np.ndarray:
    phi = to_host(phi).astype(float)[:, chosen]
    return np.column_stack([np.ones(len(phi)), phi])
