r"""The step of KSWGD as a queue of launches that no host waits for; :mod:`gpukoop.flow.kswgd` says what it computes.

Beside its three kernel sums a step is eleven small launches, twelve with Langevin noise. What the host would have to decide (a
particle whose sums underflow, moments that have vanished or are no longer finite, the end of the coarse stage) is left in
``Info.doubt``: the loop reads it every few steps, and takes steps in doubt again with the host watching.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpukoop.arrays import Array, like, namespace
from gpukoop.dispatch import warm_up
from gpukoop.fusion import fused
from gpukoop.operator import KernelOperator
from gpukoop.spectrum.ratio import centred, lowest_denominator, quotient_slope


class Modes:
    """What a spectrum gives to every step, made once.

    Attributes
    ----------
    lowest : float
        Denominators up to this have lost digits: they are in doubt.
    centred : array of shape (m, r)
        Psi without its multiples of w, so that no step need take them off.
    columns : array of shape (m, 2)
        Weights of the last pass: the first column is written by every step, the second is w.
    """

    def __init__(self, spectrum: Any, options: dict[str, Any]) -> None:
        self.spectrum, self.options = spectrum, options
        w, Psi = spectrum.w_, spectrum.Psi_
        xp = namespace(w)
        self.lowest = lowest_denominator(w)
        self.inverse = like(1.0 / np.asarray(spectrum.eigenvalues_), w)
        self.centred = centred(Psi, w.astype(float)).astype(w.dtype)
        self.columns = xp.empty((len(w), 2), w.dtype)
        # One buffer for both right-hand sides: column 0 is written by every step, the weights stay.
        self.columns[:, 1] = w
        self.unseen = xp.zeros(len(self.inverse), bool)
        self.warm = False
        self.scale, self.diffusivity = float(spectrum.scale_), float(spectrum.diffusivity_)

    def means(self, Z: Array, seen: Array | None, floor: float | Array) -> Means:
        """Return the moments at Z from two passes, and what they push the particles with."""
        spectrum = self.spectrum
        K = spectrum.kernel_(Z, spectrum.sources_, **self.options)
        if not self.warm:  # the first step compiles on a new machine: all its sums at once
            warm_up([(K, "product", 1), (K.T, "product", 1), (K, "value_and_gradient", 2)])
            self.warm = True
        B = K @ spectrum.w_
        # A far particle weighs nothing here; `_limited` reports it, and the host takes the step again with logarithms.
        p = K.T @ _inverse(B, self.lowest)
        seen = self.unseen if seen is None else seen
        total, share = spectrum.Psi_.T @ p, 1.0 / len(Z)
        return Means(K, B, *_means(total, spectrum.offset_, self.inverse, seen, share, floor))


@dataclass(frozen=True)
class Means:
    """The operator and its denominators B (n,), moments c (r,), those pushed divided by lambda, and which are pushed."""

    K: KernelOperator
    B: Array
    c: Array
    push: Array
    pushed: Array


@fused
def _inverse(xp: Any, B: Any, lowest: float) -> Any:
    return xp.where(B > lowest, 1.0 / B, 0.0 * B)


@fused
def _means(
    xp: Any, total: Any, offset: Any, inverse: Any, seen: Any, share: float, floor: Any
) -> Any:
    c = total * share - offset
    pushed = seen | (xp.abs(c) > floor)
    return c, xp.where(pushed, c * inverse, 0.0 * c), pushed


def _move(value: Any, slope: Any, own: Any, B: Any, time: float, drift: float) -> Any:
    """Return the step of the particles: ``slope`` is that of K q, ``own`` that of K w."""
    # Written once and inlined into two kernels: computing a move twice costs less than a pass over memory that stores it.
    return drift * (own / B) - time * quotient_slope(value, slope, own, B)


@fused
def _squares(xp: Any, value: Any, slope: Any, own: Any, B: Any, time: float, drift: float) -> Any:
    move = _move(value, slope, own, B, time, drift)
    return xp.sum(move * move, axis=1)


@fused
def _following(
    xp: Any,
    Z: Any,
    value: Any,
    slope: Any,
    own: Any,
    B: Any,
    square: Any,
    noise: Any,
    time: float,
    drift: float,
    reach: float,
    spread: float,
) -> Any:
    move = _move(value, slope, own, B, time, drift)
    # Shortened to one scale, as on the host: beyond it the slope says nothing about where the particle goes.
    size = xp.sqrt(square)
    return Z + xp.where(size > reach, move * (reach / size), move) + spread * noise


@fused
def _displacement(xp: Any, Z: Any, following: Any, share: float) -> Any:
    move = following - Z
    return xp.sqrt(xp.sum(move * move * share))


@fused
def _limited(xp: Any, square: Any, B: Any, reach: float, lowest: float, share: float) -> Any:
    """Return the share of steps that are shortened, and at least 2 where a particle is far."""
    # Two numbers without a dtype would be chosen among, and summed, in half precision.
    zero = 0.0 * square
    short = xp.where(xp.sqrt(square) > reach, zero + share, zero)
    return xp.sum(short + xp.where(B > lowest, zero, zero + 2.0))


@fused
def _doubt(xp: Any, limited: Any, square: Any, c: Any, pushed: Any, goal: float) -> Any:
    """Return whether the host must look: a far particle, a moment that is not finite, or none that is left to follow."""
    # One reduction answers all three: a mode counts 1 while it is followed above the goal, 0 below it, and 2 if anything is
    # not as it should be. A square that is NaN or infinite fails its comparison, as does a share with a far particle in it.
    zero = 0.0 * c
    left = xp.where(xp.where(pushed, xp.abs(c), zero) < goal, zero, zero + 1.0)
    return xp.max(xp.where((limited <= 1.5) & (square < math.inf), left, zero + 2.0)) != 1.0


@dataclass(frozen=True)
class Queued:
    """Where a queued step leads, what it measured, whether it is in doubt, and which modes it pushed."""

    particles: Array
    measures: dict[str, Array]
    doubt: Array
    pushed: Array


def queued_step(
    Z: Array,
    modes: Modes,
    coarse: Modes | None,
    seen: Array | None,
    *,
    step_size: float,
    kappa: float,
    noise: Array | float,
    goal: float,
    floor: float | Array,
) -> Queued:
    """Return one step of the particles Z, queued on the device.

    Parameters
    ----------
    Z : array of shape (n, d)
    modes : Modes
        Whose moments are recorded, and followed unless ``coarse`` is given.
    coarse : Modes, optional
        What the particles follow instead.
    seen : array of shape (r,), optional
        Modes pushed before.
    step_size, kappa : float
        LAWGD time of the step, and Langevin time in a unit of it.
    noise : array of shape (n, d), or 0.0
        Standard normal.
    goal : float
        Moments that are followed and all below this are in doubt.
    floor : float or array of shape (r,)
        Moments up to this are not followed, unless they were before; below zero all are, at infinity never.
    """
    share = 1.0 / len(Z)
    found = modes.means(Z, None if coarse is not None else seen, floor)
    active, leading = modes, found
    if coarse is not None:
        active, leading = coarse, coarse.means(Z, seen, floor)
    active.columns[:, 0] = active.centred @ leading.push
    value, slope = leading.K.value_and_gradient(active.columns)
    a, reach, B = active.diffusivity, active.scale, leading.B[:, None]
    motion = value[:, :1], slope[:, 0], slope[:, 1], B
    length = step_size * a, 2 * kappa * a * step_size
    square = _squares(*motion, *length)
    spread = math.sqrt(2 * kappa * a * step_size)
    following = _following(Z, *motion, square[:, None], noise, *length, reach, spread)
    short = _limited(square, leading.B, reach, active.lowest, share)
    dissipation = found.c @ found.c
    measures = {
        "moments": found.c,
        "dissipation": dissipation,
        "displacement": _displacement(Z, following, share),
        "limited": short,
        "far": 0.0,  # or the step is in doubt
    }
    doubt = _doubt(short, dissipation, leading.c, leading.pushed, goal)
    return Queued(following, measures, doubt, leading.pushed)
