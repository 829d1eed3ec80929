"""Rates of a device that decide between ways to the same sum."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rates:
    """Pairs a second of a product of three features in float32.

    Attributes
    ----------
    apart : float
        Of two clouds, and of what lists visit: a list costs the loop over pairs nothing.
    once : float
        Ordered pairs of one cloud whose pairs are visited once.
    """

    apart: float
    once: float


# Measured, kernel time: NVIDIA H200, 2026-11-28. Rewritten by bench/calibrate.py --device cuda.
RATES = Rates(apart=2.54e12, once=5.07e12)


def listed_cost(share: float, rates: Rates = RATES) -> float:
    """Return the seconds a pair of sums that visit this share of the pairs through lists."""
    return share / rates.apart


def exact_cost(once: bool, rates: Rates = RATES) -> float:
    """Return the seconds a pair of sums over all pairs, each visited ``once`` or from both sides."""
    return 1.0 / (rates.once if once else rates.apart)
