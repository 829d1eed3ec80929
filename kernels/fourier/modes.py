r"""Boxes, periods and modes of Fourier sums: what a tolerance asks for, from bounds.

The kernel is replaced by a trigonometric polynomial that agrees with it on every difference x - y,

.. math:: k(r) = \sum_{|m_c| \le M_c} b_m\, e^{i h m \cdot r} + error, \qquad h_c = 2 \pi / P_c

in one of two ways, whichever needs fewer modes on a box of widths w:

decaying  P = w + R, R the radius beyond which k < delta: neighbours in the periodic picture do not meet. b is the
          transform itself, h^d / (2 pi)^d khat(h m).
windowed  P = 2 w + 2 c a: k times a window of erf flanks (length a, error erfc(c)) that is 1 on the box; b is the
          discrete transform of its samples. Any smooth kernel, heavy tails included.

Modes: :math:`h_c M_c \ge \Xi` with the integral of khat outside the ball of radius Xi at most delta k(0); for a
gradient, of \|xi\| scale khat. Both are absolute bounds on the error of one pair.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from gpukoop.kernels.arrays import Array
from gpukoop.kernels.formula.profile import AbstractKernel, AbstractRadial, KernelSum, trace
from gpukoop.kernels.reference import evaluate

# 2**25 modes are 256 MB in complex64, and the transform works on up to 8 times as many: more is no longer "extra
# memory", and the exact sum is seldom slower by then.
MAX_MODES = 2**25
# Periods grow in steps of 6 percent, so that the box of a flow may breathe while its grid, coefficients and plans
# stay what they are.
LADDER = 2 ** (1 / 12)
# A kernel that has not decayed within so many scales is treated as one with a heavy tail.
MAX_RADIUS = 60.0
# Where the tail of a transform is integrated: log-spaced radii that hold 1 - 1e-7 of the Laplace kernel.
_RADII = np.geomspace(1e-3, 1e8, 4401)


@dataclass(frozen=True)
class Grid:
    """Periods and numbers of modes, -M..M on every axis; ``window`` is the flank a, 0 for a decaying kernel."""

    periods: tuple[float, ...]
    cutoffs: tuple[int, ...]
    widths: tuple[float, ...]
    window: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Modes per axis; odd, so that the spectrum of a real function is exactly Hermitian."""
        return tuple(2 * M + 1 for M in self.cutoffs)

    @property
    def size(self) -> int:
        """Number of modes."""
        return math.prod(self.shape)


def smallest_scale(kernel: AbstractKernel) -> float:
    """Return the smallest scale of a kernel: the unit of its gradient's error."""
    return min(k.length for _, k in kernel.terms)


def absolute(kernel: AbstractKernel) -> AbstractKernel:
    """Return sum_a |c_a| |k_a|, the kernel itself where that is the same: what errors are relative to."""
    parts = tuple((abs(c) if k.profile.positive else -abs(c), k) for c, k in kernel.terms)
    return kernel if parts == kernel.terms else KernelSum(parts)


@lru_cache(maxsize=512)
def height(kernel: AbstractKernel) -> float:
    """Return sum_a |c_a| phi_a(0)."""
    t = trace(absolute(kernel))
    return float(evaluate(t.phi, np.zeros(1), t.symbols, t.values)[0])


def _relative(kernel: AbstractKernel, r: float) -> float:
    t = trace(absolute(kernel))
    q = np.array([(t.prescale * r) ** 2])
    with np.errstate(under="ignore"):
        return float(evaluate(t.phi, q, t.symbols, t.values)[0]) / height(kernel)


@lru_cache(maxsize=512)
def radius(kernel: AbstractKernel, d: int, delta: float) -> float:
    """Return R such that k(r) <= delta k(0) for r >= R.

    It is inf if that takes more than 60 scales, or if k does not fall like r^-(d + 1) there: its images in d dimensions
    would then add up to more than their nearest ones.
    """
    low, high = 0.0, MAX_RADIUS * max(k.length for _, k in kernel.terms)
    if _relative(kernel, high) > delta:
        return math.inf
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _relative(kernel, middle) > delta else (low, middle)
    steep = _relative(kernel, 2 * high) <= 2.0 ** -(d + 1) * _relative(kernel, high)
    return high if steep else math.inf


@lru_cache(maxsize=256)
def _tail(radial: AbstractRadial, d: int, power: int) -> Array:
    r"""Return the integral of :math:`|\xi|^{power} \hat k` outside each ball of ``_RADII``, scale 1, over (2 pi)^d."""
    if radial.profile.fourier is None:
        raise ValueError(f"{type(radial).__name__} has no Fourier transform in closed form")
    shell = 2 * math.pi ** (d / 2) / math.gamma(d / 2) / (2 * math.pi) ** d
    density = radial.profile.fourier(_RADII, d, *radial.values.values())
    density = np.where(np.isfinite(density), density, 0.0) * shell * _RADII ** (d + power)
    pieces = (density[1:] + density[:-1]) / 2 * np.log(_RADII[1] / _RADII[0])
    rest = density[-1]  # beyond the last radius at least r^-1 more is lost than integrated
    return np.concatenate([np.cumsum(pieces[::-1])[::-1] + rest, [rest]])


@lru_cache(maxsize=512)
def bandwidth(kernel: AbstractKernel, d: int, delta: float, slope: bool) -> float:
    """Return Xi: modes beyond it change a pair by less than delta k(0), or delta k(0) / scale in the gradient."""
    unit = smallest_scale(kernel)
    power = 1 if slope else 0
    lost = np.zeros_like(_RADII)
    for c, k in kernel.terms:
        scale = k.length
        lost += (
            abs(c)
            * (unit / scale) ** power
            * np.interp(np.log(_RADII * scale), np.log(_RADII), _tail(k, d, power))
        )
    below = np.flatnonzero(lost <= delta * height(kernel))
    return float(_RADII[below[0]]) if len(below) else math.inf


def _ladder(x: float) -> float:
    return LADDER ** math.ceil(math.log(x) / math.log(LADDER) - 1e-9)


def find_grid(
    kernel: AbstractKernel, widths: tuple[float, ...], delta: float, slope: bool
) -> Grid | None:
    """Return the smaller of the two grids for a box, or None if neither fits MAX_MODES.

    Parameters
    ----------
    kernel : kernel
        With numeric scales; every term has a transform.
    widths : tuple of float
        Extents of the box of targets and sources, one per axis.
    delta : float
        Bound on the error of one pair, relative to k(0).
    slope : bool
        Whether the bound is on the gradient (times scale) too.
    """
    d = len(widths)
    grids = []
    # 3^d - 1 neighbours in the periodic picture; the nearest 2 d of them carry it.
    R = radius(kernel, d, delta / (4 * d))
    Xi = bandwidth(kernel, d, delta / 2, slope)
    if math.isfinite(R):
        periods = tuple(_ladder(w + R) for w in widths)
        grids.append(_grid(periods, widths, Xi, 0.0))
    # erfc(c) <= delta / 4 on every flank, and the window's own spectrum ends at 2 c / a. The flank that minimises
    # (2 w + 2 c a) (Xi + 2 c / a) is a = sqrt(2 w / Xi); not below a scale where w is almost 0.
    c = math.sqrt(math.log(8 * d / delta))
    wide = max((*widths, smallest_scale(kernel)))
    a = math.sqrt(2 * wide / Xi) if math.isfinite(Xi) else 0.0
    if a > 0:
        periods = tuple(_ladder(2 * w + 2 * c * a) for w in widths)
        grids.append(_grid(periods, widths, Xi + 2 * c / a, a))
    grids = [g for g in grids if g.size <= MAX_MODES]
    return min(grids, key=lambda g: g.size) if grids else None


def _grid(periods: tuple[float, ...], widths: tuple[float, ...], Xi: float, window: float) -> Grid:
    # An infinite bandwidth (a kinked kernel's gradient) gives more modes than any limit.
    cutoffs = tuple(math.ceil(min(Xi * P / (2 * math.pi), 2.0**40)) for P in periods)
    return Grid(periods, cutoffs, widths if window else (), window)


def needs(kernel: AbstractKernel, widths: tuple[float, ...], delta: float, slope: bool) -> float:
    """Return how many modes a box would need, for a refusal; inf if no number does."""
    Xi = bandwidth(kernel, len(widths), delta / 2, slope)
    R = min(radius(kernel, len(widths), delta), max(widths))
    return math.prod(2 * Xi * (w + R) / (2 * math.pi) + 1 for w in widths)


@lru_cache(maxsize=8)
def coefficients(kernel: AbstractKernel, grid: Grid) -> Array:
    """Return b as float64 of ``grid.shape``, mode 0 in the middle.

    Kept for the last grids: the steps of a flow use the same ones.
    """
    return _windowed(kernel, grid) if grid.window else _closed(kernel, grid)


def _mirror(octant: Array) -> Array:
    # The kernel is even in every coordinate, so one octant is computed and reflected.
    for axis in range(octant.ndim):
        rest = np.flip(np.take(octant, range(1, octant.shape[axis]), axis), axis)
        octant = np.concatenate([rest, octant], axis)
    return octant


def _radii(steps: list[Array]) -> Array:
    squares = np.zeros([len(s) for s in steps])
    for axis, s in enumerate(steps):
        squares += (s**2).reshape([-1 if a == axis else 1 for a in range(len(steps))])
    return squares


def _closed(kernel: AbstractKernel, grid: Grid) -> Array:
    d = len(grid.periods)
    steps = [
        2 * math.pi / P * np.arange(M + 1.0)
        for P, M in zip(grid.periods, grid.cutoffs, strict=True)
    ]
    xi = np.sqrt(_radii(steps))
    b = np.zeros_like(xi)
    for c, k in kernel.terms:
        transform, scale = k.profile.fourier, k.length
        if transform is None:
            raise ValueError(f"{type(k).__name__} has no Fourier transform in closed form")
        with np.errstate(under="ignore"):
            b += c * scale**d * transform(scale * xi, d, *k.values.values())
    return _mirror(b / math.prod(grid.periods))


def _windowed(kernel: AbstractKernel, grid: Grid) -> Array:
    from scipy.fft import fftn, fftshift, ifftshift
    from scipy.special import erfc

    steps = [
        P / (2 * M + 1) * np.arange(M + 1.0)
        for P, M in zip(grid.periods, grid.cutoffs, strict=True)
    ]
    t = trace(kernel)
    samples = np.zeros([len(s) for s in steps])
    # The periodic function is the windowed kernel and its nearest images: both sides of a flank, 2^d corners.
    for corner in itertools.product((False, True), repeat=len(steps)):
        places = [P - s if c else s for c, s, P in zip(corner, steps, grid.periods, strict=True)]
        part = evaluate(t.phi, _radii(places) * t.prescale**2, t.symbols, t.values)
        for axis, (s, P) in enumerate(zip(places, grid.periods, strict=True)):
            window = erfc((s - P / 2) / grid.window) / 2
            part *= window.reshape([-1 if a == axis else 1 for a in range(len(steps))])
        samples += part
    spectrum = fftshift(fftn(ifftshift(_mirror(samples)))).real
    return spectrum / grid.size
