r"""Random Fourier features of (x, t): cosines whose frequencies are drawn from the kernel's spectral law."""

from __future__ import annotations

import math
from typing import Any, final

import numpy as np

from gpukoop.arrays import Array, namespace
from gpukoop.checks import check_kind
from gpukoop.draws import check_count, check_positive
from gpukoop.sampler.lifting import (
    AbstractFeatures,
    blockwise_product,
    column,
    row_blocks,
    rows_of,
)


@final
class FourierFeatures(AbstractFeatures):
    r"""Random cosines, several scales at once.

    .. math:: \varphi = \sqrt{2/M} \cos(z \Omega + b), \qquad
              \dot\varphi = -\sqrt{2/M} \sin(z \Omega + b) \odot (\dot z\, \Omega)

    Parameters
    ----------
    n_coordinates : int
        d.
    n_features : int
        M.
    scale : float
        Longest length in x; shorter ones down to ``scale / spread`` are drawn log-uniformly.
    time_scale : float
        Length in t.
    rng : numpy Generator
        Frequencies and phases are drawn on the host.
    spread : float
        Ratio of the longest to the shortest length; 1 is a single scale.
    smoothness : float
        nu of a Matern kernel: each frequency is divided by sqrt(chi^2_{2 nu} / 2 nu); inf is a Gaussian, 1/2 Laplace.

    Notes
    -----
    Cost: n M (d + 1) flops and n M cosines, in blocks; no pair of points is formed.

    References
    ----------
    .. [1] A. Rahimi, B. Recht, Random Features for Large-Scale Kernel Machines, NIPS 2007, algorithm 1.
    """

    def __init__(
        self,
        n_coordinates: int,
        n_features: int,
        *,
        scale: float,
        time_scale: float,
        rng: np.random.Generator,
        spread: float = 4.0,
        smoothness: float = math.inf,
    ) -> None:
        n_coordinates = check_count(n_coordinates, "n_coordinates")
        n_features = check_count(n_features, "n_features")
        scale, time_scale = check_positive(scale, "scale"), check_positive(time_scale, "time_scale")
        spread = check_positive(spread, "spread")
        if smoothness != math.inf:
            check_positive(smoothness, "smoothness")
        check_kind(rng, np.random.Generator, "rng")
        frequencies = rng.standard_normal((n_coordinates + 1, n_features))
        if math.isfinite(smoothness):
            frequencies /= np.sqrt(rng.chisquare(2 * smoothness, n_features) / (2 * smoothness))
        with np.errstate(over="ignore"):
            frequencies[:-1] *= spread ** rng.random(n_features) / scale
            frequencies[-1] /= time_scale
        if not np.isfinite(frequencies).all():
            raise ValueError(
                f"scale={scale} over spread={spread} and time_scale={time_scale} give frequencies beyond the range of float64"
            )
        self.frequencies = frequencies  # (d+1, M)
        self.phases = rng.uniform(0.0, 2 * np.pi, n_features)

    @property
    def n_features(self) -> int:
        """M."""
        return len(self.phases)

    def _angles(self, x: Array, t: Any) -> Array:
        xp = namespace(x)
        W = xp.asarray(self.frequencies, dtype=x.dtype)
        return x @ W[:-1] + column(t, x) * W[-1] + xp.asarray(self.phases, dtype=x.dtype)

    def features(self, x: Array, t: Any) -> Array:
        """Return the cosines."""
        xp = namespace(x)
        out = xp.empty((len(x), self.n_features), dtype=x.dtype)
        factor = math.sqrt(2 / self.n_features)
        for rows in row_blocks(len(x), self.n_features, x):
            out[rows] = factor * xp.cos(self._angles(x[rows], rows_of(t, rows)))
        return out

    def features_and_jvp(self, x: Array, t: Any, u: Array) -> tuple[Array, Array]:
        """Return the cosines and their derivative along (u, 1)."""
        xp = namespace(x)
        W = xp.asarray(self.frequencies, dtype=x.dtype)
        phi = xp.empty((len(x), self.n_features), dtype=x.dtype)
        rate = xp.empty_like(phi)
        factor = math.sqrt(2 / self.n_features)
        for rows in row_blocks(len(x), self.n_features, x):
            angles = self._angles(x[rows], rows_of(t, rows))
            phi[rows] = factor * xp.cos(angles)
            rate[rows] = -factor * xp.sin(angles) * (u[rows] @ W[:-1] + W[-1])
        return phi, rate

    def product(self, x: Array, t: Any, P: Array) -> Array:
        """Return the cosines times P, block by block."""
        return blockwise_product(self, x, t, P)
