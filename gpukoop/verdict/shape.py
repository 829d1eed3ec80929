"""Lines about the law as a whole: distance, moments of modes nobody has fitted, masses of regions."""

from __future__ import annotations

import warnings

import numpy as np

from gpukoop.blas import one_thread
from gpukoop.kernels.formula.catalogue import Gaussian
from gpukoop.spectrum import DiffusionMap
from gpukoop.verdict.clouds import MOST, Clouds, halves, thinned
from gpukoop.verdict.counts import chi_squared, most_uneven
from gpukoop.verdict.line import Line
from gpukoop.verdict.permutation import labellings, mean_distance, p_value, sliced_test

LEAST = 20
# Samples whose diffusion map gives the modes, their number, and points at which they are averaged.
MODE_SAMPLES, MODES, MODE_POINTS = 400, 32, 4_000
# Regions: a coarse and a fine partition, points that make it, and the fewest points a region is counted with.
REGIONS, REGION_POINTS, FEWEST = (8, 64), 5_000, 16


def distance(clouds: Clouds, B: int, rng: np.random.Generator) -> Line:
    """Return the energy distance to the data as a multiple of what two clouds of one law show."""
    test = sliced_test(clouds.Z, clouds.R, B, rng)
    multiple = _multiple(test.statistic, clouds.Z, clouds.R, rng)
    text = f"the energy distance to the data is {multiple:.2f} times what two sets of samples of these sizes show"
    return Line("distance", test.p_value, text, multiple, 1.0)


def _multiple(statistic: float, Z: np.ndarray, R: np.ndarray, rng: np.random.Generator) -> float:
    """Return an energy distance in units of its mean between samples of the law of R, of the sizes of Z and R."""
    floor = (1 / len(Z) + 1 / len(R)) * mean_distance(thinned(R, MOST, rng), rng)
    return statistic / floor if floor > 0 else (1.0 if statistic == 0 else float("inf"))


def held_out(clouds: Clouds, B: int, rng: np.random.Generator) -> Line | None:
    """Return the same to the samples kept aside, of as many particles as there are data.

    More particles know the law no better than their data do, but would be judged as if they did.
    """
    if clouds.H is None or len(clouds.H) < LEAST:
        return None
    Z = thinned(clouds.Z, len(clouds.X), rng)
    test = sliced_test(Z, clouds.H, B, rng)
    multiple = _multiple(test.statistic, Z, clouds.H, rng)
    text = f"the energy distance to samples kept aside is {multiple:.2f} times what samples of the law show"
    return Line("held out", test.p_value, text, multiple, 1.0)


def modes(clouds: Clouds, B: int, rng: np.random.Generator) -> Line | None:
    """Compare means of eigenfunctions learned from one half of the data with those over the other half."""
    from sklearn.exceptions import ConvergenceWarning

    A, other = halves(clouds.R, rng)
    A = np.unique(thinned(A, MODE_SAMPLES, rng), axis=0)
    if len(A) < 2 * LEAST or len(clouds.Z) < LEAST:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        spectrum = DiffusionMap(
            Gaussian("auto"), n_components=min(MODES, len(A) // 2), random_state=0
        ).fit(A)
    Z, other = thinned(clouds.Z, MODE_POINTS, rng), thinned(other, MODE_POINTS, rng)
    values = spectrum.transform(np.concatenate([Z, other]))
    deviation = values.std(axis=0)
    values = (values - values.mean(axis=0))[:, deviation > 0] / deviation[deviation > 0]
    n, m = len(Z), len(other)
    rows = labellings(n, m, B, rng)
    # the pooled mean is 0, so that sums over the first cloud are means' differences up to a factor
    sums = rows.astype(np.float32) @ values.astype(np.float32)
    p = p_value((sums.astype(float) ** 2).sum(axis=1))
    noise = np.sqrt(1 / n + 1 / m)
    gap = np.abs(sums[0]) * (1 / n + 1 / m)
    largest = float(gap.max(initial=0.0))
    text = (
        f"of {values.shape[1]} modes that no flow was fitted to, the worst moment is off by {largest:.3f}, root mean square "
        f"{np.sqrt(np.mean(gap**2)):.3f}; sampling noise is {noise:.3f}"
    )
    return Line("modes", p, text, largest, float(noise))


def basins(clouds: Clouds, rng: np.random.Generator) -> Line | None:
    """Compare masses of regions, which are clusters of all points together."""
    n, m = len(clouds.Z), len(clouds.R)
    if min(n, m) < LEAST:
        return None
    from scipy.spatial import cKDTree

    pooled = np.concatenate([clouds.Z, clouds.R])
    part = thinned(pooled, REGION_POINTS, rng)
    Z, R = thinned(clouds.Z, MOST, rng), thinned(clouds.R, MOST, rng)
    n, m = len(Z), len(R)
    found = []
    for size in REGIONS:
        size = min(size, (n + m) // (4 * FEWEST), len(np.unique(part, axis=0)))
        if size < 2:
            continue
        tree = cKDTree(_centres(part, size, rng))
        mine, theirs = (np.bincount(tree.query(A)[1], minlength=size) for A in (Z, R))
        total = mine + theirs
        p, worst = most_uneven(mine, total, n, n + m)
        p = 2 * min(p, chi_squared(mine, total, n, n + m, FEWEST, rng))
        found.append((p, mine[worst] / n, theirs[worst] / m, size))
    if not found:
        return None
    p, seen, expected, size = min(found, key=lambda entry: entry[0])
    text = f"of {size} regions the most different one holds {seen:.1%} of the particles and {expected:.1%} of the data"
    return Line("basins", min(1.0, len(found) * p), text, float(seen), float(expected))


def _centres(W: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    from sklearn.cluster import KMeans

    means = KMeans(size, n_init=1, max_iter=4, random_state=int(rng.integers(2**31)))
    with one_thread(W.size), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it may stop early: any partition serves
        return means.fit(W).cluster_centers_
