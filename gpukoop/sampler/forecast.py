r"""A fitted spectrum of a stochastic system as an evolution: forecasts and samples of its law at any lag.

The lift is g = [1, phi_1 .. phi_r], and its generator is known: diag(0, -lambda_1, .., -lambda_r). So any lag costs one
exponential; no step is repeated.

=======  =======================================================
x_l      m samples of the stationary law
G        Gram matrix of the eigenfunctions over them, the identity for a reversible system
=======  =======================================================
"""

from __future__ import annotations

from typing import Any, final

import numpy as np

from gpukoop.arrays import Array, namespace, points, to_host
from gpukoop.checks import real_array
from gpukoop.draws import RandomState, check_count, check_positive, random_generator
from gpukoop.sampler.expm import expm_action
from gpukoop.versions import Persistent


@final
class Relaxation(Persistent):
    r"""Forecasts, and the law of a stochastic system at any lag, from its eigenfunctions.

    .. math:: E[f(X_t) \mid X_0 = z] = \bar f + \sum_k e^{-\lambda_k t} c_k \varphi_k(z), \qquad
              \frac{dp_t}{d\pi} = 1 + \sum_{kl} \varphi_k\, (G^{-1})_{kl}\, e^{-\lambda_l t} E_{p_0}[\varphi_l]

    with c = G^-1 mean(phi (f - mean f)). What the first r modes do not see is missing: at lags short against 1 / lambda_r
    the law is blurred.

    Parameters
    ----------
    spectrum : fitted KernelEDMD, GeneratorEDMD or DiffusionMap
        With real eigenvalues; their unit fixes that of t.
    X : array of shape (m, d), optional
        Samples of the stationary law; the spectrum's sources by default.

    Attributes
    ----------
    eigenvalues : array of shape (r,)
    generator : array of shape (r + 1, r + 1)
        In the lift, the constant first: what ``spectral_report`` and ``expm_action`` take.
    clipped : float
        Share of negative mass that the last :meth:`sample` set to zero; 0 is a sound law.

    References
    ----------
    .. [1] S. Klus et al., Data-driven approximation of the Koopman generator, Physica D 406, 2020, section 2.

    Examples
    --------
    >>> import numpy as np, gpukoop as gk
    >>> X, Y = gk.datasets.ornstein_uhlenbeck(1000, lag_time=0.2, random_state=0, independent=True)
    >>> fitted = gk.spectrum.KernelEDMD(n_components=4, lag_time=0.2, random_state=0).fit(X, successors=Y)
    >>> law = gk.sampler.Relaxation(fitted, X)
    >>> law.sample(500, np.full((1, 1), 1.5), t=0.5, random_state=0).shape
    (500, 1)
    """

    def __init__(self, spectrum: Any, X: Any = None) -> None:
        values = getattr(spectrum, "eigenvalues_", None)
        if values is None:
            raise ValueError(
                f"spectrum is {spectrum!r}, expected a fitted KernelEDMD, GeneratorEDMD or DiffusionMap: call its fit first"
            )
        values = np.asarray(to_host(values))
        if np.iscomplexobj(values) and np.abs(values.imag).max() > 0:
            raise ValueError(
                "spectrum has complex eigenvalues: their eigenfunctions come in pairs that this real lift does not hold; "
                "keep the real ones with n_components="
            )
        if X is None:
            X = getattr(spectrum, "sources_", None)
            if X is None:
                raise ValueError(
                    "this spectrum keeps no samples: pass X, samples of the stationary law"
                )
        self.spectrum = spectrum
        self.X, self._home = points(X, "X")
        self.eigenvalues = values.real.astype(float)
        self.generator = np.diag(np.concatenate([[0.0], -self.eigenvalues]))
        phi = to_host(spectrum.transform(self.X)).astype(float)
        self._mean = phi.mean(axis=0)
        self._phi = phi - self._mean
        self._gram = self._phi.T @ self._phi / len(phi)
        self.clipped = 0.0

    def _decayed(self, c: np.ndarray, t: float) -> np.ndarray:
        t = check_positive(t, "t", zero=True)
        lifted = np.concatenate([np.zeros((1, c.shape[1])), c])
        return expm_action(self.generator, lifted, t)[1:]

    def forecast(self, Z: Any, values: Any, t: float) -> Array:
        """Return E[f(X_t) | X_0 = z] at points z.

        Parameters
        ----------
        Z : array of shape (n, d)
        values : array of shape (m,) or (m, q)
            f at the samples X.
        t : float
            Lag, >= 0.

        Returns
        -------
        array of shape (n,) or (n, q)
            Library and device of Z.
        """
        Z, home = points(Z, "Z", n_features=self.X.shape[1])
        f = real_array(values, "values")
        if f.ndim not in (1, 2) or len(f) != len(self.X):
            raise ValueError(
                f"values has shape {f.shape}, expected ({len(self.X)},) or ({len(self.X)}, q): f at each sample X"
            )
        columns = f if f.ndim == 2 else f[:, None]
        mean = columns.mean(axis=0)
        c = np.linalg.lstsq(self._gram, self._phi.T @ (columns - mean) / len(f), rcond=None)[0]
        xp = namespace(Z)
        phi = self.spectrum.transform(Z) - xp.asarray(self._mean)
        out = xp.asarray(mean) + phi @ xp.asarray(self._decayed(c, t))
        return home.restore((out if f.ndim == 2 else out[:, 0]).astype(Z.dtype))

    def density_ratio(self, start: Any, t: float) -> np.ndarray:
        """Return dp_t/dpi at the samples X, (m,), for particles that start at the rows of ``start``; may be negative."""
        start, _ = points(start, "start", n_features=self.X.shape[1])
        moments = to_host(self.spectrum.transform(start)).astype(float).mean(axis=0) - self._mean
        decayed = self._decayed(moments[:, None], t)
        return 1.0 + (self._phi @ np.linalg.lstsq(self._gram, decayed, rcond=None)[0])[:, 0]

    def sample(
        self, n_samples: int, start: Any, t: float, random_state: RandomState = None
    ) -> Array:
        """Draw from the law at lag t of particles that start at the rows of ``start``.

        Parameters
        ----------
        n_samples : int
        start : array of shape (n, d)
        t : float
        random_state : int, Generator, RandomState or None

        Returns
        -------
        array of shape (n_samples, d)
            Rows of X, drawn with the density ratio as weight; library, device and dtype of X.
        """
        n = check_count(n_samples)
        ratio = self.density_ratio(start, t)
        weight = np.maximum(ratio, 0.0)
        self.clipped = float(np.maximum(-ratio, 0.0).sum() / weight.sum())
        rng = random_generator(random_state)
        chosen = rng.choice(len(weight), n, p=weight / weight.sum())
        return self._home.restore(self.X[namespace(self.X).asarray(chosen)])
