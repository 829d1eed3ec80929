r"""Two clocks on the path from noise to data, and the frame in which it is learned.

=======  ==========================================================================
t        time of the path x_t = (1-t) x0 + t x1, in [0, 1]
s        time of the clock: s = t (linear), or 1 - t = e^-s (log), in [0, horizon]
r        1 - t, what remains
=======  ==========================================================================
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpukoop.arrays import Array, namespace
from gpukoop.checks import check_length, real_array
from gpukoop.draws import check_positive

# e^-7: the truncation is O(e^-7) before, and O(e^-14) after the last denoising.
LOG_HORIZON = 7.0


@dataclass(frozen=True)
class Clock:
    r"""Time in which the lifted system is autonomous and in which the path is sampled uniformly.

    .. math:: \text{linear: } s = t, \; s \in [0, 1]; \qquad
              \text{log: } 1 - t = e^{-s}, \; s \in [0, T], \; \frac{dt}{ds} = 1 - t

    The window of the log clock is forward invariant, so the eigenvalues of its generator have real parts
    of at most about 0, whereas those of the linear clock may be positive.

    Parameters
    ----------
    name : {"linear", "log"}
    horizon : float, optional
        T; 1 for the linear clock, where it cannot be chosen, 7 for the log clock.
    """

    name: str = "linear"
    horizon: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or self.name not in ("linear", "log"):
            raise ValueError(f"clock must be 'linear' or 'log', got {self.name!r}")
        check_positive(self.horizon, "horizon")
        if self.name == "linear" and self.horizon != 1:
            raise ValueError(
                f"the linear clock ends at 1, got horizon={self.horizon}: leave it out"
            )

    @classmethod
    def named(cls, name: str, horizon: float | None = None) -> Clock:
        """Return the clock of this name."""
        if not isinstance(name, str):
            raise TypeError(f"clock is {name!r}, expected 'linear' or 'log'")
        if name == "linear":
            return cls()
        if name == "log":
            return cls("log", LOG_HORIZON if horizon is None else float(horizon))
        raise ValueError(f"clock must be 'linear' or 'log', got {name!r}")

    @property
    def log(self) -> bool:
        """Whether this is the log clock."""
        return self.name == "log"

    def time(self, s: Any) -> Any:
        """Return t at clock time s; a number or an array."""
        if not self.log:
            return s
        return -math.expm1(-s) if isinstance(s, float | int) else -namespace(s).expm1(-s)

    def clock_time(self, t: float) -> float:
        """Return s at path time t, at most the horizon."""
        if not self.log:
            return float(t)
        return float(min(self.horizon, -np.log1p(-t))) if t < 1 else self.horizon


@dataclass(frozen=True)
class Frame:
    r"""Data moved to mean 0 and unit size, and the path seen from there.

    With y = m + c z and a base N(0, I) in both frames, the paths towards y and towards z are the same curves up to

    .. math:: x_t = t m + a(t)\, w_{t'}, \qquad a(t) = 1 - t + t c, \qquad t' = t c / a(t)

    (put y = m + c z into x_t). One number c for all coordinates makes this exact, so endpoints, inverses and
    trajectories are those of the original data whatever their units.

    Parameters
    ----------
    mean : array of shape (d,)
        m.
    size : float
        c, the root mean square deviation over all coordinates.
    """

    mean: np.ndarray
    size: float

    def __post_init__(self) -> None:
        real_array(self.mean, "mean", (None,))
        check_length(self.size, "size")

    @classmethod
    def of(cls, X: np.ndarray, default: float = 1.0) -> Frame:
        """Return the frame of these points (n, d); points without extent have the default size."""
        mean = X.mean(axis=0)
        with np.errstate(over="ignore"):
            size = float(np.sqrt(((X - mean) ** 2).mean()))
        if not np.isfinite(size):
            raise ValueError(
                "X has coordinates whose squares leave the range of float64: rescale X"
            )
        # Rounding of a constant column is no size.
        floor = 1e-12 * float(np.abs(mean).max(initial=0.0))
        return cls(mean, size if size > floor else default)

    @classmethod
    def identity(cls, n_features: int) -> Frame:
        """Return the frame that changes nothing, in which a given teacher is learned."""
        return cls(np.zeros(n_features), 1.0)

    def inner_time(self, t: float) -> float:
        """Return t' of the path in the frame."""
        return t * self.size / (1 - t + t * self.size)

    def data_inside(self, x: Array) -> Array:
        """Return data points in the frame."""
        xp = namespace(x)
        if x.shape[1:] != self.mean.shape:
            raise ValueError(f"points of shape {x.shape} in a frame of {len(self.mean)} features")
        return (x - xp.asarray(self.mean)) / self.size

    def outside(self, w: Array, t: float) -> Array:
        """Return path points of time t in the units of the data; w is at :meth:`inner_time`."""
        xp = namespace(w)
        return t * xp.asarray(self.mean) + (1 - t + t * self.size) * w
