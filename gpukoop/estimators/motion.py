r"""Whether a flow moved at all, and whether it has arrived: how far its particles went, against how far they had to go.

For directions :math:`\theta` of an orthonormal frame, :math:`W_2^2 \ge \sum_\theta W_2^2(\theta)`, the sum of the distances on
the lines: the particles had to go at least so far. What two halves of the data show of it is sampling.
"""

from __future__ import annotations

import math

import numpy as np

from gpukoop.arrays import Array, to_host

# A flow that moved less than this share of its way has not begun.
BARELY = 0.01
# Points that decide, and quantiles of a line that are compared.
POINTS, QUANTILES = 10_000, 500
# Fewer particles than this show nothing but their sampling error.
LEAST = 100

# Share of particles at the longest step, over the last tenth of a flow, from which on they have not arrived.
HELD = 0.3


def not_arrived(limited: np.ndarray) -> str:
    """Return why a run whose shares of shortened steps are ``limited`` has not arrived, or ""."""
    if not len(limited) or limited[-max(1, len(limited) // 10) :].mean() <= HELD:
        return ""
    return (
        f"has not arrived: at its end {limited[-1]:.0%} of the particles still moved a whole scale of the kernel a step, the most "
        "that is allowed. Raise total_time, start closer to the data, or standardise the columns (coordinates='standardize')."
    )


def were_far(far: np.ndarray) -> str:
    """Return what is to be said of a run with so many particles out of the kernel's reach at every step, or ""."""
    if not len(far) or far.max() == 0:
        return ""
    return (
        f"{int(far.max())} particle(s) were so far from the data that the kernel underflows there; they moved "
        "straight towards the nearest samples. Start closer to the data, or use a larger scale."
    )


def barely_moved(start: Array, end: Array, X: Array) -> str:
    """Return why a run of particles from ``start`` to ``end`` has not begun to reach the samples X, or ""."""
    if len(start) < LEAST or len(X) < LEAST:
        return ""
    rows = slice(None, None, max(1, len(start) // POINTS))
    a, b = (to_host(Z[rows]).astype(float) for Z in (start, end))
    x = to_host(X[:: max(1, len(X) // POINTS)]).astype(float)
    unit = float(np.abs(x - x.mean(axis=0)).max()) or 1.0  # in which no square leaves the range
    a, b, x = (a - x.mean(axis=0)) / unit, (b - x.mean(axis=0)) / unit, (x - x.mean(axis=0)) / unit
    rng = np.random.default_rng(0)
    x = rng.permutation(x)
    frame = np.linalg.qr(rng.standard_normal((x.shape[1], x.shape[1])))[0]
    square = _squares(a, x, frame) - _squares(x[::2], x[1::2], frame)
    if not 0 < square < math.inf:
        return ""
    moved, needed = math.sqrt(((b - a) ** 2).sum(axis=1).mean()), math.sqrt(square)
    if moved >= BARELY * needed:
        return ""
    return (
        f"barely moved: its particles went {unit * moved:.2g} on average, and the samples are at least {unit * needed:.2g} away. "
        "Raise the step (step_size, tau) or their number (n_iter, n_steps, total_time)"
    )


def _squares(a: np.ndarray, b: np.ndarray, frame: np.ndarray) -> float:
    """Return the sum over directions of the squared distance of quantiles."""
    level = (np.arange(QUANTILES) + 0.5) / QUANTILES
    with np.errstate(over="ignore", invalid="ignore"):
        gap = np.quantile(a @ frame, level, axis=0) - np.quantile(b @ frame, level, axis=0)
        return float((gap**2).mean(axis=0).sum())
