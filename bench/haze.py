"""What any test sees of 5 per cent of haze on laws that fill their box: the verdict beside tests that permute labels and classifiers."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse, stats
from scipy.spatial import cKDTree
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

import gpukoop as gk
from bench.laws import LAWS, haze
from bench.unseen import UNSEEN

SIZE, RUNS, LEVEL, PERMUTATIONS = 2_000, 12, 0.02, 499
TITLE = f"Haze: of {RUNS} clouds of {SIZE:,} particles, 5 % of them uniform in the box, how many a test rejects at {LEVEL}"


def _square(n: int, random_state: Any = None) -> np.ndarray:
    return np.random.default_rng(random_state).random((n, 2))


def _tilted(n: int, random_state: Any = None) -> np.ndarray:
    rng = np.random.default_rng(random_state)
    return np.column_stack([np.sqrt(rng.random(n)), rng.random(n)])


BOXES = {
    "uniform square": _square,
    "density 2 x on the square": _tilted,
    "quadruple well": LAWS["quadruple well"],
    "beta(.4, .6), squared": UNSEEN["beta(.4, .6), squared"],
    "needle in a disc": LAWS["needle in a disc"],
    "square with a hole": UNSEEN["square with a hole"],
    "checkerboard": LAWS["checkerboard"],
}


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Return a row for each law."""
    LAWS.update(BOXES)
    runs = 1 if quick else RUNS
    table = []
    for name in list(BOXES)[: 1 if quick else None]:
        found = [_p_values(name, np.random.default_rng([seed, 31])) for seed in range(runs)]
        seen = {test: sum(p[test] < LEVEL for p in found) for test in found[0]}
        table.append({"law": name, **seen})
    return table


def _p_values(name: str, rng: np.random.Generator) -> dict[str, float]:
    X = LAWS[name](SIZE, random_state=rng)
    Z = haze(name, SIZE, rng, X)
    report = gk.diagnose(Z, X)
    kernel = gk.Gaussian(0.15 * float(np.std(X)))
    mmd = gk.metrics.two_sample_test(Z, X, kernel, n_permutations=PERMUTATIONS)
    trees = HistGradientBoostingClassifier(max_iter=40, max_leaf_nodes=15)
    return {
        "verdict": min(report.adjusted.values()),
        "energy": report["distance"].p_value,
        "MMD": mmd.p_value,
        **{f"kNN {k}": _labels(Z, X, k, rng, squared=False) for k in (1, 5, 20, 80)},
        **{f"ratio {k}": _labels(Z, X, k, rng, squared=True) for k in (20, 80)},
        "trees": _classifier(Z, X, trees),
        "classifier, 50": _classifier(Z, X, KNeighborsClassifier(50)),
    }


def _labels(Z: np.ndarray, X: np.ndarray, k: int, rng: np.random.Generator, squared: bool) -> float:
    """Return the p-value of neighbours of one's own label, or of squared sums of labels near every point, by permuted labels."""
    W, own = np.concatenate([Z, X]), int(not squared)
    near = cKDTree(W).query(W, k=k + own)[1].reshape(len(W), -1)[:, own:]
    graph = sparse.csr_matrix(
        (np.ones(near.size), near.ravel(), np.arange(0, near.size + 1, k)), shape=(len(W),) * 2
    )
    label = np.where(np.arange(len(W)) < len(Z), 1.0, -1.0)
    labels = np.tile(label, (PERMUTATIONS + 1, 1))
    rng.permuted(labels[1:], axis=1, out=labels[1:])
    sums = graph @ labels.T
    statistic = (sums**2 if squared else labels.T * sums).sum(axis=0)
    return float(np.mean(statistic >= statistic[0] - 1e-9))


def _classifier(Z: np.ndarray, X: np.ndarray, model: Any) -> float:
    """Return the p-value of particles having larger held-out scores than samples, by their ranks."""
    W, mine = np.concatenate([Z, X]), np.arange(len(Z) + len(X)) < len(Z)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    score = cross_val_predict(model, W, mine, cv=folds, method="predict_proba")[:, 1]
    return float(stats.mannwhitneyu(score[mine], score[~mine], alternative="greater").pvalue)
