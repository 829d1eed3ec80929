"""Kinetics from trajectories: how slow, between which states, how sure, and does the model predict what it was not told.

``implied_timescales`` and ``cross_validate`` choose a lag and an estimator; a :class:`KineticModel` is fitted with them and
asked by ``chapman_kolmogorov``, ``metastable_states``, ``mode_correlation``, ``forecast`` and ``occupancy``. Every number has
a band, from resampling blocks longer than the slowest timescale (:mod:`gpukoop.kinetics.blocks`).
"""

from __future__ import annotations

from gpukoop.kinetics.chapman import ChapmanKolmogorov, chapman_kolmogorov
from gpukoop.kinetics.forecasts import forecast
from gpukoop.kinetics.model import KineticModel
from gpukoop.kinetics.observables import ModeCorrelation, Occupancy, mode_correlation, occupancy
from gpukoop.kinetics.pcca import pcca
from gpukoop.kinetics.scores import CrossValidation, cross_validate, vamp_score
from gpukoop.kinetics.states import MetastableStates, metastable_states
from gpukoop.kinetics.timescales import ImpliedTimescales, implied_timescales

__all__ = [
    "ChapmanKolmogorov",
    "CrossValidation",
    "ImpliedTimescales",
    "KineticModel",
    "MetastableStates",
    "ModeCorrelation",
    "Occupancy",
    "chapman_kolmogorov",
    "cross_validate",
    "forecast",
    "implied_timescales",
    "metastable_states",
    "mode_correlation",
    "occupancy",
    "pcca",
    "vamp_score",
]
