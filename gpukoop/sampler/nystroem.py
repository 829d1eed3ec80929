r"""Kernel features at landmarks of the path, whitened.

z = (x / l_x, t / l_t), landmarks u_j likewise, k a radial kernel of scale 1 in these d + 1 coordinates, W the whitening:

.. math:: \varphi(x, t) = k(z, U)\, W, \qquad K_{UU} = Q\, \mathrm{diag}(e)\, Q^T, \quad W = Q e^{-1/2}
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, final

import numpy as np

from gpukoop.arrays import Array, is_cupy, namespace, points, require_finite, to_host, unchecked
from gpukoop.checks import check_kind, check_length, real_array
from gpukoop.fusion import fused
from gpukoop.kernels.formula.catalogue import Gaussian
from gpukoop.kernels.formula.profile import AbstractKernel, trace
from gpukoop.kernels.reference import evaluate
from gpukoop.operator import KernelOperator
from gpukoop.sampler.lifting import AbstractFeatures, column, pair_distances, row_blocks, rows_of

# Directions of the landmarks' kernel matrix below this share of its largest eigenvalue are rounding noise for the moments,
# whose condition is that of the features squared.
WHITENING_CUT = 1e-8


@fused
def _along(xp: ModuleType, slope: Array, own: Array, other: Array, factor: Any) -> Array:
    return factor * slope * (own - other)


@final
class NystroemFeatures(AbstractFeatures):
    r"""Whitened kernel features; the sampler's default dictionary.

    .. math:: \dot k_j = 2 \phi'(s_j)\, (z \cdot \dot z - u_j \cdot \dot z), \qquad s_j = |z - u_j|^2

    Parameters
    ----------
    landmarks : array of shape (M0, d)
        Points of the path, in the units of x.
    times : array of shape (M0,)
        Their times.
    scale, time_scale : float
        l_x in the units of x, l_t in [0, 1].
    kernel : kernel
        Radial, of scale 1 in units of the two scales; Gaussian by default. Kernels with a kink at 0 have no
        derivative there and are refused.
    backend : str, optional
        Who computes the sampling product.

    Attributes
    ----------
    n_features : int
        M <= M0, the directions of the landmarks' kernel matrix that are above rounding.

    Notes
    -----
    Cost: n M0 kernel values and a GEMM with W. :meth:`product` folds W (and, for a Gaussian, time) into the
    weights of the landmarks and is a lazy kernel product with O(n) memory on any backend. The derivative is two
    GEMMs beside the values; it agrees with central differences to 2e-10.
    """

    def __init__(
        self,
        landmarks: Array,
        times: Array,
        *,
        scale: float,
        time_scale: float,
        kernel: AbstractKernel | None = None,
        backend: str | None = None,
    ) -> None:
        if kernel is not None:
            check_kind(kernel, AbstractKernel, "kernel")
        self.kernel = Gaussian(1.0) if kernel is None else kernel.resolve(lambda rule: 1.0)
        if any(radial.profile.kink for _, radial in self.kernel.terms):
            raise ValueError(
                f"{self.kernel!r} has a kink at 0, so its features have no derivative at a landmark: use "
                "Gaussian, Matern32, Matern52, InverseMultiquadric or RationalQuadratic"
            )
        self.scale, self.backend = check_length(scale, "scale"), backend
        self.time_scale = check_length(time_scale, "time_scale")
        landmarks, _ = points(landmarks, "landmarks")
        xp = namespace(landmarks)
        times = times if is_cupy(times) else real_array(times, "times")
        if np.ndim(times) != 1 or len(times) != len(landmarks):
            raise ValueError(
                f"times has shape {np.shape(times)}, expected ({len(landmarks)},): one time a landmark"
            )
        self.landmarks = self._scaled(
            landmarks.astype(float), xp.asarray(times, dtype=float)
        )  # (M0, d+1)
        require_finite(self.landmarks, "landmarks and times over their scales")
        gram = self._values(self.landmarks)[0]
        values, vectors = np.linalg.eigh(to_host(gram))
        kept = values > WHITENING_CUT * values[-1]
        self.whitening = xp.asarray(vectors[:, kept] / np.sqrt(values[kept]))

    @property
    def n_features(self) -> int:
        """M."""
        return int(self.whitening.shape[1])

    def _scaled(self, x: Array, t: Any) -> Array:
        xp = namespace(x)
        return xp.concatenate([x / self.scale, column(t, x) / self.time_scale], axis=1)

    def _values(self, z: Array, zdot: Array | None = None) -> tuple[Array, Array | None]:
        """Return k(z, U) and, given zdot, its derivative along it; (n, M0), dense."""
        formula = trace(self.kernel)
        squared = formula.prescale**2
        q = pair_distances(z, self.landmarks) * squared
        phi = evaluate(formula.phi, q, formula.symbols, formula.values)
        if zdot is None:
            return phi, None
        if formula.log_slope is not None:  # dphi = phi * log_slope spares a second exponential
            slope = phi * evaluate(formula.log_slope, q, formula.symbols, formula.values)
        else:
            slope = evaluate(formula.dphi, q, formula.symbols, formula.values)
        own = (z * zdot).sum(axis=1)[:, None]
        return phi, _along(slope, own, zdot @ self.landmarks.T, 2.0 * squared)

    def features(self, x: Array, t: Any) -> Array:
        """Return k(z, U) W."""
        xp = namespace(x)
        out = xp.empty((len(x), self.n_features), dtype=x.dtype)
        for rows in row_blocks(len(x), len(self.landmarks), x):
            z = self._scaled(x[rows], rows_of(t, rows))
            out[rows] = self._values(z)[0] @ self.whitening
        return out

    def features_and_jvp(self, x: Array, t: Any, u: Array) -> tuple[Array, Array]:
        """Return k(z, U) W and its derivative along (u, 1)."""
        xp = namespace(x)
        phi = xp.empty((len(x), self.n_features), dtype=x.dtype)
        rate = xp.empty_like(phi)
        for rows in row_blocks(len(x), len(self.landmarks), x):
            z = self._scaled(x[rows], rows_of(t, rows))
            zdot = self._scaled(u[rows], 1.0)
            values, slopes = self._values(z, zdot)
            phi[rows], rate[rows] = values @ self.whitening, slopes @ self.whitening
        return phi, rate

    def product(self, x: Array, t: Any, P: Array) -> Array:
        """Return phi(x, t) @ P as a lazy kernel product with the weights W P."""
        xp = namespace(x)
        dtype = x.dtype
        weights = self.whitening @ P.astype(float)
        kernel, z, centres = self.kernel, self._scaled(x.astype(float), t), self.landmarks
        if isinstance(kernel, Gaussian) and np.ndim(t) == 0:
            # k = k_x k_t: at one time for all points k_t belongs to the weights, and a coordinate is saved.
            gap = float(t) / self.time_scale - centres[:, -1]
            weights = xp.exp(-0.5 * gap**2 / kernel.length**2)[:, None] * weights
            z, centres = z[:, :-1], centres[:, :-1]
        # The points of a flow were looked at where they came in.
        with unchecked():
            K = KernelOperator(
                kernel, z.astype(dtype, copy=False), centres.astype(dtype), backend=self.backend
            )
            return K @ weights.astype(dtype)
