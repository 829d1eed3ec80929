"""Tables at defaults, and what newcomers wait for: widths and verdicts, exact transport, a Koopman fit of 569 rows."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

TITLE = "Tables at defaults (seconds of one process, all threads)"


def fifty_columns(n: int = 600, d: int = 50, seed: int = 0) -> np.ndarray:
    """Return five factors, one of two clusters, seen through noise in columns from thousandths to ten thousands."""
    rng = np.random.default_rng(seed)
    F = rng.normal(size=(n, 5))
    F[:, 0] = np.where(rng.random(n) < 0.3, -2, 1) + 0.4 * F[:, 0]
    X = F @ rng.normal(size=(5, d)) + 0.7 * rng.normal(size=(n, d))
    X[:, :10] = np.exp(0.3 * X[:, :10])  # skewed, as counts and incomes are
    return X * 10.0 ** rng.uniform(-3, 4, d) + 10.0 ** rng.uniform(-2, 3, d)


def wine() -> np.ndarray:
    """Return 178 wines, 13 columns."""
    from sklearn.datasets import load_wine

    return load_wine().data


def breast_cancer() -> np.ndarray:
    """Return 569 cells, 30 columns."""
    from sklearn.datasets import load_breast_cancer

    return load_breast_cancer().data


TABLES: dict[str, Callable[[], np.ndarray]] = {
    "wine": wine,
    "breast cancer": breast_cancer,
    "fifty columns": fifty_columns,
}


def rows(quick: bool) -> list[dict[str, Any]]:
    """Return a row a table and method, and a row a transport problem."""
    import gpukoop as gk

    found = [judged(gk.KSWGD(random_state=0), name) for name in TABLES]
    if not quick:
        found.append(judged(gk.KoopmanSampler(random_state=0), "breast cancer"))
    sizes = [(300, 301)] if quick else [(300, 301), (400, 450), (800, 900)]
    return found + [transport(n, m) for n, m in sizes]


def judged(model: Any, name: str) -> dict[str, Any]:
    """Fit, draw 2,000 rows, and compare the deviations of columns."""
    X = TABLES[name]()
    start = time.process_time()
    model.fit(X)
    fitted = time.process_time() - start
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Z = model.sample(2_000)
        ratio = Z.std(axis=0) / X.std(axis=0)
        report = model.diagnose(Z)
    return {
        "what": f"{type(model).__name__}, {name}",
        "n": len(X),
        "m or d": X.shape[1],
        "fit s": round(fitted, 2),
        "smallest sd ratio": round(float(ratio.min()), 3),
        "largest sd ratio": round(float(ratio.max()), 3),
        "verdict": "passed" if report.passed else ", ".join(line.name for line in report.failures),
    }


def transport(n: int, m: int) -> dict[str, Any]:
    """Solve one weighted problem by POT's network simplex and, where it is allowed, by the linear programme."""
    from scipy.spatial.distance import cdist

    from gpukoop.flow import plans

    rng = np.random.default_rng(0)
    cost = cdist(rng.normal(size=(n, 2)), rng.normal(size=(m, 2)), "sqeuclidean")
    a, b = rng.random(n), rng.random(m)
    a, b = a / a.sum(), b / b.sum()
    row: dict[str, Any] = {"what": "exact transport, weighted", "n": n, "m or d": m}
    if not plans.has_simplex():
        return {**row, "verdict": "POT is not installed"}
    plans._simplex(cost[:2, :2], np.full(2, 0.5), np.full(2, 0.5))  # imports
    start = time.process_time()
    plan = plans._simplex(cost, a, b)
    row["fit s"] = round(time.process_time() - start, 4)
    if n * m > plans.LARGEST_PROGRAMME:
        return {**row, "verdict": "the programme refuses so many pairs"}
    start = time.process_time()
    other = plans._programme(cost, a, b)
    seconds = time.process_time() - start
    gap = abs(float((plan * cost).sum() / (other * cost).sum()) - 1)
    return {
        **row,
        "programme s": round(seconds, 2),
        "programme / POT": round(seconds / max(row["fit s"], 1e-4)),
        "verdict": f"values agree to {gap:.0e}",
    }
