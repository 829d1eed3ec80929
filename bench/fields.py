"""The stochastic heat equation by KSWGD: variances of its modes from a narrow shifted start, against the closed law."""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np

import gpukoop as gk
from gpukoop import datasets
from gpukoop.spectrum import GeneratorEDMD, LinearCoordinates, Powers

TITLE = (
    "Stochastic heat equation: 1,000 particles from a narrow start one unit off, KSWGD with the powers of 64 principal components "
    "of 4,000 fields"
)


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Return one row a number of cells."""
    return [_row(g, 400 if quick else 4_000) for g in ((16,) if quick else (64, 1_024))]


def _row(g: int, m: int) -> dict[str, Any]:
    answer = datasets.exact("heat_equation", n_cells=g)
    X, _ = datasets.heat_equation(m, random_state=0, n_cells=g, independent=True)
    start = 1.0 + 0.5 * np.random.default_rng(1).standard_normal((min(m, 1_000), g))
    begin = time.process_time()
    p = min(g, 64)
    components = LinearCoordinates("pca", n_components=p).fit(X)
    # in cells the noise of a mode of size sqrt(g) is sqrt(g) times its own
    spectrum = GeneratorEDMD(Powers(components), n_components=2 * p).fit(
        X, diffusion=np.sqrt(2 * g)
    )
    fitted = time.process_time()
    flow = gk.KSWGD(spectrum, step_size=0.1, total_time=12.0).fit(X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Z = flow.transport(start)
    ended = time.process_time()

    def ratios(A: np.ndarray) -> np.ndarray:
        return (A @ answer["modes"] / g).var(axis=0)[:8] / answer["variances"][:8]

    def span(A: np.ndarray) -> str:
        return f"{100 * ratios(A).min():.1f} to {100 * ratios(A).max():.1f}"

    return {
        "cells": g,
        "start: first 8 variances, % of exact": span(start),
        "end": span(Z),
        "the data": span(X),
        "first eigenvalue (1)": float(spectrum.eigenvalues_[0]),
        "steps": flow.n_iter_,
        "fit CPU s": fitted - begin,
        "flow CPU s": ended - fitted,
        "verdict": "passed" if flow.diagnose(Z).passed else "off the law",
    }
