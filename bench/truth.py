"""Every law by every method and every baseline at defaults: how far from the law it ends, and whether the verdict says so."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

import gpukoop as gk
from bench.laws import LAWS, REFERENCE, Draw
from gpukoop import baselines, datasets

SIZE = int(os.environ.get("GPUKOOP_BENCH_TRUTH_SIZE", "1000"))
SEEDS = 1
TITLE = (
    f"Truth: {SIZE:,} particles from {SIZE:,} samples at defaults. Energy distance to the law in units of what as many independent draws "
    "show; share off the law (farther from 20,000 draws than 99 per cent of the law: 1 % is exact); CPU seconds; the verdict"
)
PROJECT = {"Mises-Fisher": datasets.project_sphere, "torus": datasets.project_torus}
METHODS: dict[str, Callable[..., Any]] = {
    "KSWGD": gk.KSWGD,
    "MMDFlow": gk.MMDFlow,
    "WassersteinFlow": gk.WassersteinFlow,
    "JKOFlow": gk.JKOFlow,
    "KoopmanSampler": gk.KoopmanSampler,
    "GaussianMixture": baselines.GaussianMixture,
    "KernelDensity": baselines.KernelDensity,
    "Langevin": baselines.Langevin,
    "SVGD": baselines.SVGD,
    "LAWGD": baselines.LAWGD,
}


def rows(quick: bool = False, laws: Any = None) -> list[dict[str, Any]]:
    """Return a row for each law; the last column but the baselines' is the samples' own distance."""
    names = list(LAWS)[:1] if quick else list(LAWS)
    return [_row(name, 200 if quick else SIZE) for name in (laws or names)]


def _row(name: str, n: int) -> dict[str, Any]:
    row: dict[str, Any] = {"law": name}
    for who, method in METHODS.items():
        cells = [_cell(name, who, method, n, seed) for seed in range(SEEDS)]
        row[who] = "; ".join(cells)
    rng = np.random.default_rng([0, 7])
    X, Z = (LAWS[name](n, random_state=rng) for _ in range(2))
    judge = Judge(LAWS[name])
    row["the data"], row["other draws"] = judge(X), judge(Z)
    return row


class Judge:
    """Distance to a law and share of points off it, by 20,000 draws."""

    def __init__(self, law: Draw) -> None:
        rng = np.random.default_rng(5)
        self.draws = law(REFERENCE, random_state=rng)
        self.tree = cKDTree(self.draws)
        fresh = law(5_000, random_state=rng)
        self.far = np.quantile(self.tree.query(fresh, k=[8])[0], 0.99)

    def __call__(self, Z: np.ndarray) -> str:
        """Return the distance in floors and the share off the law in per cent, in words."""
        multiple, off = self.measure(Z)
        return f"{multiple:.2f}, {off:.1f} %"

    def measure(self, Z: np.ndarray) -> tuple[float, float]:
        """Return the distance in floors and the share off the law in per cent."""
        multiple = gk.verdict.distance_multiple(Z, self.draws, np.random.default_rng(0))
        return multiple, 100 * float(np.mean(self.tree.query(Z, k=[8])[0] > self.far))


def _cell(name: str, who: str, method: Callable[..., Any], n: int, seed: int) -> str:
    rng = np.random.default_rng([seed, 7])
    X = LAWS[name](n, random_state=rng)
    options = {"project": PROJECT[name]} if who == "KSWGD" and name in PROJECT else {}
    begin = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = method(random_state=seed, **options).fit(X)
        model._silent = True  # the verdict is asked for below, once, and is not timed
        Z = np.asarray(model.sample(n), float)
        seconds = time.process_time() - begin
        report = gk.diagnose(Z, X)
    said = "ok" if report.passed else report.failures[0].name
    return f"{Judge(LAWS[name])(Z)}, {seconds:.1f} s, {said}"
