"""Sums on a line: a smooth function by a one-dimensional Fourier sum, a distance by sorting."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpukoop.kernels.arrays import Array, namespace
from gpukoop.kernels.formula.profile import AbstractKernel
from gpukoop.kernels.fourier.modes import MAX_MODES, bandwidth, height, smallest_scale
from gpukoop.kernels.fourier.nufft import Cloud, setup, spectra, values

# Truncation and transform are ten times finer than the tolerance of the mean over directions, and never coarser than this.
LINE_ACCURACY = 1e-4
# Range in scales on which f is tabulated to see where it has decayed.
TABLE_SCALES = 256.0


class FourierLine:
    r"""Sums of f(x_i - y_j) v_j and of f', f the slice of a kernel in d dimensions.

    The trapezoidal rule with step h = 2 pi / P turns the cosine integral of f into a periodic function: f plus its copies at
    distance P. So P is the extent of the points plus the radius beyond which f is small.
    """

    def __init__(
        self, kernel: AbstractKernel, d: int, width: float, tol: float, slope: bool, dtype: Any
    ) -> None:
        delta = min(tol / 10, LINE_ACCURACY)
        self.kernel, self.d = kernel, d
        Xi = bandwidth(kernel, d, delta, slope)
        scale = max(k.length for _, k in kernel.terms)
        self.period = width + self._radius(Xi, TABLE_SCALES * scale, delta)
        modes = Xi * self.period / (2 * math.pi)
        if not modes < MAX_MODES / 2:
            raise ValueError(
                f"the scale is too small for the points: slices of {kernel!r} at tol={tol:g} over an extent of "
                f"{width:.3g} need {2 * modes:.1e} Fourier modes, more than {MAX_MODES:.1e}: use exact sums, a larger tol or "
                "a larger scale"
            )
        # Frequencies beyond carry less than delta of the kernel, by the bound of bandwidth.
        M = math.ceil(modes)
        self.b = self._weights(M, self.period)
        self.step = 2 * math.pi / self.period * np.arange(-M, M + 1)
        self.unit = smallest_scale(kernel)
        single = np.dtype(dtype) == np.float32 or delta >= 1e-5
        self.plan = setup(
            (2 * M + 1,), delta, "complex64" if single and delta >= 2e-6 else "complex128", 2**20
        )

    def _weights(self, M: int, period: float) -> Array:
        """Return the coefficients of the periodic f for modes -M..M."""
        h = 2 * math.pi / period
        # The mean mode of a density that vanishes at 0 in d > 1 dimensions: a tiny frequency stands for 0, where u^(d - 1) and
        # the transform would be 0 times inf.
        w = np.maximum(h * np.arange(M + 1.0), 1e-9 * h)
        shell = math.pi * 2 * math.pi ** (self.d / 2) / math.gamma(self.d / 2)
        g = np.zeros_like(w)
        for c, k in self.kernel.terms:
            s = k.length
            transform = k.profile.fourier
            if transform is None:
                raise ValueError(f"{k!r} has no Fourier transform in closed form")
            with np.errstate(under="ignore"):
                u = s * w
                g += c * s * transform(u, self.d, *k.values.values()) * u ** (self.d - 1)
        # The line's transform is the kernel's radial one times the surface of the sphere: its slices then average to the kernel
        # in d dimensions.
        half = g * shell / (2 * math.pi) ** self.d * h / (2 * math.pi)
        return np.concatenate([half[:0:-1], half])

    def _radius(self, Xi: float, extent: float, delta: float) -> float:
        """Return where f, tabulated over ``extent``, falls below delta for good."""
        from scipy.fft import fft, ifftshift

        M = math.ceil(min(Xi * extent / (2 * math.pi), 2.0**20))
        # The slice of a kernel that decays need not: it has tails of the power d. So the period comes from the function itself.
        table = np.abs(fft(ifftshift(self._weights(M, extent))).real[: M + 1])
        large = np.flatnonzero(table > delta * height(self.kernel))
        last = int(large[-1]) if len(large) else 0
        return extent / (2 * M + 1) * (last + 1)

    def __call__(
        self, x: Array, y: Array, V: Array, want_value: bool, want_slope: bool
    ) -> tuple[Array | None, Array | None]:
        """Return sum_j f(x_i - y_j) V_jc and the sum with f', each (n, t) in float64 or None."""
        xp = namespace(x)
        t = V.shape[1]
        # Weights of size one: transforms promise digits relative to the sum of them, and float32 its range.
        size = xp.abs(V).sum(axis=0, dtype=float)
        W = V / xp.where(size == 0, 1.0, size)
        h, real = 2 * math.pi / self.period, self.plan.real
        # Angles near zero have the most digits in float32.
        middle = (float(x.max()) + float(x.min())) / 2
        targets, sources = (
            Cloud([((a - middle) * h).astype(real)], len(self.b), pieces=False) for a in (x, y)
        )
        F = spectra(self.plan, sources, W)
        b = xp.asarray(self.b, dtype=real)
        slope = xp.asarray(1j * self.step * self.unit * self.b, dtype=F.dtype)
        weights = [b] * want_value + [slope] * want_slope
        rows = (F[c] * w for w in weights for c in range(t))
        out = values(self.plan, targets, rows, t * len(weights)).T * 1.0
        value = out[:, :t] * size if want_value else None
        grad = out[:, -t:] * (size / self.unit) if want_slope else None
        return value, grad


class DistanceLine:
    r"""Sums of a \|x_i - y_j\| v_j and of a sign(x_i - y_j) v_j by sorting, exact to rounding.

    With A and B the running sums of v and v y over the sorted sources, sum_j v_j \|x - y_j\| = x (2 A(x) - A) - (2 B(x) - B).
    Sources at x contribute 0 to both.

    References
    ----------
    .. [1] J. Hertrich, C. Wald, F. Altekrueger, P. Hagemann, Generative Sliced MMD Flows with Riesz Kernels,
       arXiv 2305.11463.
    """

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(
        self, x: Array, y: Array, V: Array, want_value: bool, want_slope: bool
    ) -> tuple[Array | None, Array | None]:
        """Return both sums, each (n, t) in float64 or None."""
        xp = namespace(x)
        order = xp.argsort(y)
        y, W = y[order], V[order].astype(float)
        zero = xp.zeros((1, W.shape[1]))
        # In float64: a running sum over a million sources keeps its small ends.
        A = xp.concatenate([zero, xp.cumsum(W, axis=0)])
        # Sorted queries walk through the sources in order: several times faster than random ones.
        walk = xp.argsort(x)
        upper = xp.empty(len(x), dtype=int)
        upper[walk] = xp.searchsorted(y, x[walk], side="right")
        value = grad = None
        if want_value:
            B = xp.concatenate([zero, xp.cumsum(W * y[:, None], axis=0)])
            value = x[:, None] * (2 * A[upper] - A[-1]) - (2 * B[upper] - B[-1])
            value *= self.factor
        if want_slope:
            # Sources at x itself have no sign: half of the sum from the left, half from the right.
            lower = xp.empty(len(x), dtype=int)
            lower[walk] = xp.searchsorted(y, x[walk], side="left")
            grad = self.factor * (A[lower] + A[upper] - A[-1])
        return value, grad
