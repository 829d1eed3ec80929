"""Kernel systems of 10^5 points and new rows of tables: processor seconds, iterations, residuals, and how far rows are told apart.

``python -m bench --only systems``. Seconds are those of the process, over all its threads: a limit of 60 s on two cores is 120 of them.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np

import gpukoop as gk

TITLE = "Systems: kernel ridge regression, and new rows of tables"
# What the issue of a kernel ridge regression asks for: residual, and the ratio of iterations without a preconditioner to those with.
RESIDUAL, RATIO, CPU_LIMIT = 1e-6, 5, 120.0


def regression(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return points of a cube of side 4, and a smooth function of them with noise of deviation .1."""
    rng = np.random.default_rng(seed)
    X = rng.uniform(-2, 2, size=(n, 3))
    return X, np.sin(X).sum(axis=1) * X[:, 0] + 0.1 * rng.normal(size=n)


def solve_rows(n: int, scale: float = 0.8, ridge: float = 0.1) -> list[dict[str, Any]]:
    """Solve with the preconditioner, then without it for no more than RATIO times the iterations and one."""
    X, y = regression(n)
    K = gk.Gaussian(scale)(X)
    K @ y  # compilation is no part of the figure
    found = []
    limit = 1_000
    for preconditioner in ("nystroem", None):
        start, wall = time.process_time(), time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the residual is in the row
            _, info = gk.solve(
                K,
                y,
                ridge=ridge,
                preconditioner=preconditioner,
                tol=RESIDUAL,
                max_iter=limit,
                return_info=True,
            )
        row = {"bench": f"solve, n = {n:,}, d = 3", "preconditioner": str(preconditioner)}
        row |= {"iterations": info.n_iter, "by_fourier": info.n_fourier, "at_most": limit}
        row |= {"residual": float(info.residual.max())}
        row |= {"converged": info.converged, "rank": info.rank}
        row |= {"cpu_s": time.process_time() - start, "wall_s": time.perf_counter() - wall}
        found.append(row)
        limit = RATIO * info.n_iter + 1
    return found


def synthesis_rows() -> list[dict[str, Any]]:
    """Return, for three frames, how well a classifier tells new rows from old ones (.5: not at all), names and types kept."""
    from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import cross_val_score

    found = []
    for load in (load_wine, load_breast_cancer, load_diabetes):
        frame = load(as_frame=True).frame
        start = time.process_time()
        new = gk.synthesize(frame, random_state=0)
        seconds = time.process_time() - start
        rows = np.concatenate([frame.to_numpy(float), new.to_numpy(float)])
        label = np.repeat([0, 1], [len(frame), len(new)])
        forest = RandomForestClassifier(200, random_state=0)
        accuracy = cross_val_score(forest, rows, label, cv=5).mean()
        same = list(new.columns) == list(frame.columns) and bool((new.dtypes == frame.dtypes).all())
        row = {"bench": f"synthesize, {load.__name__[5:]}", "rows": len(frame)}
        row |= {"columns": frame.shape[1], "names_and_types_kept": same}
        found.append({**row, "two_sample_accuracy": float(accuracy), "cpu_s": seconds})
    return found


def rows(quick: bool) -> list[dict[str, Any]]:
    """Return all rows; ``quick`` solves with 2,000 points."""
    return solve_rows(2_000 if quick else 100_000) + synthesis_rows()


def failures(table: list[dict[str, Any]]) -> list[str]:
    """Return what the rows do not reach."""
    with_it, without = table[:2]
    wrong = []
    if not with_it["converged"] or with_it["cpu_s"] > CPU_LIMIT:
        wrong.append(f"{with_it['bench']}: {with_it}")
    if without["converged"]:
        wrong.append(
            f"without a preconditioner {without['iterations']} iterations are enough, fewer than {RATIO} times "
            f"{with_it['iterations']}"
        )
    return wrong + [str(row) for row in table[2:] if not row["names_and_types_kept"]]
