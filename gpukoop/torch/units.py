"""Clouds in units of a power of two, so that squares of their distances stay in the range of the dtype."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Squares of numbers between 2^-20 and 2^20, and of their differences, are numbers of float32.
NEAR_ONE = 20


def far_from_one(size: float) -> int:
    """Return e so that size / 2^e is near one, 0 where size is: powers of two change no digit."""
    exponent = math.frexp(size)[1]
    return exponent - max(-NEAR_ONE, min(NEAR_ONE, exponent))


def scaled(x: torch.Tensor, exponent: int) -> torch.Tensor:
    """Return x times 2^exponent, in two factors: one may leave the range of the dtype."""
    half = exponent // 2
    return x * 2.0**half * 2.0 ** (exponent - half) if exponent else x


def require_held(value: float, kept: float) -> None:
    """Raise where a number other than 0 became 0 or infinite in the dtype of the points."""
    if not math.isfinite(kept) or (value and not kept):
        raise ValueError(
            "the distance, or a square in it, leaves the range of the dtype of the points: rescale them, or pass them as float64"
        )
