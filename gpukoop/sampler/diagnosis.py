"""The spectral report of a fitted sampler: growth, closure, fidelity of trajectories, stability across seeds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpukoop.arrays import Array, like, to_host
from gpukoop.sampler.expm import ExponentialOverflow, expm_action
from gpukoop.sampler.integration import integrate
from gpukoop.sampler.learning import Learner
from gpukoop.sampler.report import SpectralReport, spectral_report
from gpukoop.sampler.solves import generator, growth_bound, ridge
from gpukoop.sampler.teacher import AbstractTeacher, EmpiricalTeacher

REPORT_TIMES = (0.25, 0.5, 0.75, 1.0)
# Data points whose own field stands for the teacher, and Runge-Kutta steps: error below that of the lift.
EMPIRICAL_POINTS = 2_000
N_STEPS = 100
# The field of single points is stiff at the end; this blur (of data of unit size) is below what the lift resolves.
EMPIRICAL_BLUR = 0.02
N_LEADING = 6


def exact_flow(learner: Learner, data: Array, base: Array) -> np.ndarray:
    """Return the flow of base points at 0 and ``REPORT_TIMES`` in the frame, (5, n, d), by Runge-Kutta steps."""
    field: AbstractTeacher | None = learner.teacher
    if field is None:
        field = EmpiricalTeacher(
            to_host(data[:EMPIRICAL_POINTS]), smooth=EMPIRICAL_BLUR, backend=learner.recipe.backend
        )
    return np.asarray(to_host(integrate(field, base, (0.0, *REPORT_TIMES), n_steps=N_STEPS)))


def fidelity(learner: Learner, data: Array, n: int) -> dict[str, dict[str, float]]:
    """Return root mean square errors at the report times against the exact flow, in the frame.

    Returns
    -------
    dict
        ``trajectory``: of the sampler's states x_t. ``closure``: of all of g(x0, 0) exp(sA) against g(x_t, t), over the entries of
        g; nan where the exponential overflows or there are several slabs.
    """
    rng = np.random.default_rng([learner.seed, 2**33])
    base = rng.standard_normal((n, data.shape[1]))
    exact = exact_flow(learner, data, base)
    evolution = learner.evolutions[None]
    states = evolution.trajectory(like(base, data), np.array(REPORT_TIMES))
    result: dict[str, dict[str, float]] = {"trajectory": {}, "closure": {}}
    stage = learner.single.stages[0]
    lift = stage.lift
    A = None
    if len(learner.lifts) == 1:
        m = learner.pooled()[0]
        A = generator(m, lift, ridge(m, learner.reg))
    start = to_host(lift.lift(like(base, data), 0.0))
    for k, t in enumerate(REPORT_TIMES):
        error = to_host(states[k]) - exact[k + 1]
        result["trajectory"][f"{t:g}"] = float(np.sqrt((error**2).sum(axis=1).mean()))
        value = math.nan
        if A is not None:
            s = lift.clock.clock_time(t)
            arrived = to_host(lift.lift(like(exact[k + 1], data), float(lift.clock.time(s))))
            try:
                moved = expm_action(A.T, start.T, s).T
                value = float(np.sqrt(((moved - arrived) ** 2).mean()))
            except ExponentialOverflow:
                pass
        result["closure"][f"{t:g}"] = value
    return result


def diagnose(
    learner: Learner,
    A: np.ndarray,
    data: Array,
    *,
    others: list[np.ndarray],
    n_trajectories: int,
    certificate: float,
) -> SpectralReport:
    """Return the report of the quotient A[2:, 2:] with what only the sampler knows.

    Parameters
    ----------
    learner : Learner
    A : array of shape (D, D)
        Generator of the first slab.
    data : array of shape (n, d)
        In the frame.
    others : list of complex arrays
        Eigenvalues of refits with other seeds.
    n_trajectories : int
        Base points of the closure residual; 0 leaves it out.
    certificate : float
    """
    m = learner.pooled()[0]
    context: dict[str, Any] = {
        "growth bound": growth_bound(m, ridge(m, learner.reg)),
        "energy ratio": learner.evolutions[None].energy_ratio,
        "certificate": certificate,
        "ridge": learner.reg,
    }
    if n_trajectories:
        context |= fidelity(learner, data, n_trajectories)
    report = spectral_report(A[2:, 2:], **context)
    if others:
        leading = report.eigenvalues[:N_LEADING]
        spread = [max(float(np.abs(o - v).min()) for o in others) for v in leading]
        report.context["spread across seeds"] = {
            f"{v:.3g}": gap for v, gap in zip(leading, spread, strict=True)
        }
    return report
