r"""Two-sample tests by permutation: exact level, whatever the law, as long as the clouds are exchangeable.

========  ======================================================================
W         pooled points, shape (N, d), N = n + m; the first n are the first cloud
s         +1/n on the first cloud and -1/m on the second, so that T = -s' D s (energy) or s' K s (MMD^2)
S         s and its permutations, one column each, shape (N, 1 + B)
P         directions of a sliced statistic
========  ======================================================================
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from gpukoop.arrays import Array, is_cupy, like, namespace, points, to_host
from gpukoop.draws import RandomState, check_count, random_generator
from gpukoop.flow.directions import frames, riesz_constant
from gpukoop.kernels.cpu.threads import n_threads, spread
from gpukoop.kernels.formula.catalogue import Energy, Gaussian
from gpukoop.kernels.formula.profile import AbstractKernel
from gpukoop.operator import KernelOperator, check_tol
from gpukoop.scales import median_scale
from gpukoop.verdict.clouds import units

# Up to so many pooled points all pairs are summed: half a second for 1,000 columns on two cores.
LARGEST_EXACT = 2_000
# Beyond so many, the permutations of a subsample stand for all: they set the shape of the null law, not its mean.
LARGEST_PERMUTED = 10_000
PROJECTIONS = 48
# Directions of the largest clouds are fewer: sorting 2 x 10^6 numbers takes .2 s, and few directions suffice there.
SORTED_NUMBERS, FEWEST = 3 * 10**7, 12


@dataclass(frozen=True)
class TwoSampleTest:
    """A statistic between two clouds and how often permuted labels reach it.

    Attributes
    ----------
    statistic : float
        The energy distance, or MMD^2, as :mod:`gpukoop.metrics` defines them (V-statistics).
    p_value : float
        (1 + number of permutations that reach it) / (1 + n_permutations). Under exchangeability
        P(p_value <= a) <= a for every a.
    floor : float
        Mean of the statistic over all relabellings: what two clouds of one law show.
    null : array of shape (n_permutations,)
        The statistic of each permutation.
    method : str
        "pairs", or "slices" with their number, or "pairs, null of a subsample".
    """

    statistic: float
    p_value: float
    floor: float
    null: np.ndarray = field(repr=False)
    method: str

    @property
    def multiple(self) -> float:
        """The statistic in units of its floor: about 1 for two clouds of one law."""
        return self.statistic / self.floor if self.floor > 0 else 0.0


def two_sample_test(
    X: Array,
    Y: Array,
    kernel: AbstractKernel | None = None,
    *,
    statistic: str = "energy",
    n_permutations: int = 999,
    n_projections: int | None = None,
    random_state: RandomState = 0,
    backend: str | None = None,
    tol: float | None = None,
) -> TwoSampleTest:
    r"""Return whether two clouds can be told apart: a distance with its permutation p-value.

    .. math:: T = 2 E|x - y| - E|x - x'| - E|y - y'| \quad\text{or}\quad MMD^2, \qquad
              p = \frac{1 + \#\{b: T_b \ge T\}}{1 + B}

    T_b is the statistic of the b-th random relabelling of the pooled points.

    Parameters
    ----------
    X, Y : arrays of shape (n, d) and (m, d)
        Clouds in the same library and on the same device.
    kernel : kernel, optional
        Of the MMD; ``Gaussian("median")`` by default, the rule taken over both clouds. With ``statistic="energy"``
        leave it out.
    statistic : {"energy", "mmd"}
        A kernel that is not :class:`~gpukoop.Energy` implies "mmd".
    n_permutations : int, default=999
        B; the least p-value is 1 / (1 + B).
    n_projections : int, optional
        Energy: average the distance over so many directions, which is the same distance up to the error of the average.
        By default all pairs up to 2,000 pooled points, then 12 to 48 directions.
    random_state : int, Generator, RandomState or None, default=0
        Permutations and directions.
    backend, tol : optional
        Who sums over pairs and how accurately, as for ``kernel(X, Y)``; with ``tol`` Fourier sums make the MMD of
        large clouds near-linear.

    Returns
    -------
    TwoSampleTest

    Raises
    ------
    ValueError, TypeError
        If the clouds do not fit together or an option is unknown.

    Notes
    -----
    Cost: all pairs, N^2 kernel values times 1 + B columns in one product. Slices: P sorts of N numbers and
    P N B additions. From 10,000 pooled points on (MMD: from 2,000) the permutations of a random subsample give the law of
    T / mean T, whose limit does not depend on N; mean T over all relabellings is exact in any case for the slices and
    scaled by 1/n + 1/m for pairs. Accuracy: the level is exact where all points are permuted.

    References
    ----------
    .. [1] Szekely, Rizzo, "Energy statistics", J. Stat. Plan. Inference 143, 2013. .. [2] Gretton et al., JMLR 13, 2012.
    .. [3] Phipson, Smyth, "Permutation p-values should never be zero", 2010: why 1 is added.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X, Y = rng.normal(size=(200, 2)), rng.normal(size=(150, 2))
    >>> two_sample_test(X, Y).p_value > 0.01, two_sample_test(X, 0.7 * Y).p_value < 0.01
    (True, True)
    """
    X, Y = _clouds(X, Y)
    check_tol(tol)
    B = check_count(n_permutations, "n_permutations")
    if statistic not in ("energy", "mmd"):
        raise ValueError(f"statistic must be 'energy' or 'mmd', got {statistic!r}")
    if kernel is not None and not isinstance(kernel, AbstractKernel):
        raise TypeError(
            f"kernel is {kernel!r}: pass a kernel such as gpukoop.Gaussian(0.5), or None"
        )
    if kernel is not None and kernel != Energy():
        statistic = "mmd"
    rng = random_generator(random_state)
    if statistic == "mmd":
        if n_projections is not None:
            raise ValueError(
                "n_projections= slices the energy distance only: drop it, or pass tol= for large clouds"
            )
        return _by_pairs(
            X, Y, Gaussian("median") if kernel is None else kernel, B, rng, backend, tol
        )
    if n_projections is None and len(X) + len(Y) <= LARGEST_EXACT:
        return _by_pairs(X, Y, Energy(), B, rng, backend, tol)
    if n_projections is not None:
        n_projections = check_count(n_projections, "n_projections")
    return sliced_test(to_host(X), to_host(Y), B, rng, n_projections)


def _clouds(X: Array, Y: Array) -> tuple[Array, Array]:
    X, home = points(X, "X")
    Y, other = points(Y, "Y", n_features=X.shape[1])
    if home.device != other.device:
        raise ValueError(f"X is on {home.device} and Y on {other.device}: move one of them first")
    return X.astype(np.float64, copy=False), Y.astype(np.float64, copy=False)


def labellings(n: int, m: int, B: int, rng: np.random.Generator) -> np.ndarray:
    """Return 1 + B rows of n ones and m zeros, shape (1 + B, n + m), uint8: the clouds as they are, then shuffled."""
    rows = np.zeros((1 + B, n + m), np.uint8)
    rows[:, :n] = 1
    rng.permuted(rows[1:], axis=1, out=rows[1:])
    return rows


def p_value(statistics: np.ndarray) -> float:
    """Return the share of statistics that reach the first one, itself among them; rounding errors count as ties."""
    slack = 1e-9 * abs(float(statistics[0]))
    return float(np.mean(statistics >= statistics[0] - slack))


def _by_pairs(
    X: Array,
    Y: Array,
    kernel: AbstractKernel,
    B: int,
    rng: np.random.Generator,
    backend: str | None,
    tol: float | None,
) -> TwoSampleTest:
    n, m = len(X), len(Y)
    W = namespace(X).concatenate([X, Y])
    kernel = kernel.resolve(lambda rule: median_scale(W))

    def statistics(W: Array, rows: np.ndarray, n: int) -> np.ndarray:
        S = like(np.where(rows.T == 1, 1 / n, -1 / (rows.shape[1] - n)), W)  # (N, 1 + B)
        K = KernelOperator(kernel, W, W, backend=backend, tol=tol)
        return to_host((S * (K @ S)).sum(axis=0))

    if n + m <= LARGEST_EXACT:
        T = statistics(W, labellings(n, m, B, rng), n)
        return _judged(T, "pairs")
    T = statistics(W, labellings(n, m, 0, rng), n)
    part, k = _subsample(n, m, LARGEST_EXACT, rng)
    null = statistics(
        W[like(part, W).astype(int) if is_cupy(W) else part],
        labellings(k, len(part) - k, B, rng),
        k,
    )[1:]
    null = null * (1 / n + 1 / m) / (1 / k + 1 / (len(part) - k))
    return _judged(np.concatenate([T, null]), "pairs, null of a subsample")


def _subsample(n: int, m: int, size: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Return so many of n + m rows, drawn without regard to their cloud, and how many take the first label."""
    rows = rng.choice(n + m, size, replace=False)
    return rows, min(max(round(size * n / (n + m)), 1), size - 1)


def _judged(T: np.ndarray, method: str) -> TwoSampleTest:
    return TwoSampleTest(float(T[0]), p_value(T), float(T[1:].mean()), T[1:], method)


def sliced_test(
    X: np.ndarray,
    Y: np.ndarray,
    B: int,
    rng: np.random.Generator,
    n_projections: int | None = None,
) -> TwoSampleTest:
    """Return the energy test over lines, on the host; see :func:`two_sample_test`."""
    n, m, d = len(X), len(Y), X.shape[1]
    W = np.concatenate([X, Y])
    if n_projections is None:
        n_projections = _projections(d, len(W))
    theta, constant = frames(rng, n_projections, d), riesz_constant(d)
    method = f"slices, {len(theta)} of them"
    if len(W) <= LARGEST_PERMUTED:
        T = constant * _energies(W, theta, labellings(n, m, B, rng), n)
        return _judged(T, method)
    observed, mean = constant * _observed(W, theta, n)
    part, k = _subsample(n, m, LARGEST_PERMUTED, rng)
    null = _energies(W[part], theta, labellings(k, len(part) - k, B, rng)[1:], k)
    return _judged(np.concatenate([[observed], null * mean / null.mean()]), method)


def _projections(d: int, N: int) -> int:
    most = int(np.clip(SORTED_NUMBERS // N, FEWEST, PROJECTIONS))
    return min(most, {2: 16, 3: 24}.get(d, most))  # where directions can be spaced evenly, fewer do


def mean_distance(X: np.ndarray, rng: np.random.Generator) -> float:
    """Return the mean distance of two different points, averaged over lines."""
    m, d = X.shape
    if m < 2:
        return 0.0
    theta = frames(rng, _projections(d, m), d)
    sums = [_pair_sum(X @ direction) for direction in theta]
    return riesz_constant(d) * float(np.mean(sums)) * 2 / (m * (m - 1.0))


def distance_multiple(Z: np.ndarray, X: np.ndarray, rng: np.random.Generator) -> float:
    """Return the energy distance in units of what as many samples of the law of X show; columns by their quartiles in X.

    At least two samples; infinity where they are all equal and a particle is elsewhere.
    """
    X = to_host(points(X, "X")[0]).astype(float)
    Z = to_host(points(Z, "Z", n_features=X.shape[1], other="X")[0]).astype(float)
    if len(X) < 2:
        raise ValueError("X has 1 sample, expected at least 2: one shows no distance")
    middle, spread = units(X)
    kept = spread > 0
    if not kept.any():
        return 1.0 if (Z == X[0]).all() else math.inf
    Z, X = ((A[:, kept] - middle[kept]) / spread[kept] for A in (Z, X))
    W = np.concatenate([Z, X])
    theta = frames(rng, _projections(W.shape[1], len(W)), W.shape[1])
    observed = riesz_constant(W.shape[1]) * _observed(W, theta, len(Z))[0]
    return float(observed / ((1 / len(Z) + 1 / len(X)) * mean_distance(X, rng)))


def _energies(W: np.ndarray, theta: np.ndarray, rows: np.ndarray, n: int) -> np.ndarray:
    """Return the mean over directions of 2 int (F - G)^2 for every labelling, shape (len(rows),)."""
    from gpukoop.verdict.loops import line_energies

    lines = theta @ W.T  # (P, N)
    order = np.argsort(lines, axis=1).astype(np.int32)
    gaps = np.diff(np.take_along_axis(lines, order, axis=1), axis=1)
    energies = np.empty(len(rows))
    parts = min(len(rows), 8 * n_threads())
    edges = [len(rows) * k // parts for k in range(parts + 1)]

    def part(waiting: Iterator[int]) -> None:
        for k in waiting:
            line_energies(order, gaps, rows, n, edges[k], edges[k + 1], energies)

    spread(part, range(parts), n_threads())
    return energies


def _observed(W: np.ndarray, theta: np.ndarray, n: int) -> np.ndarray:
    """Return the energy of the clouds as they are and its mean over all relabellings, averaged over directions, shape (2,).

    Sums over pairs ask for sorted numbers only, not for their places, which are ten times as dear.
    """
    N = len(W)
    m = N - n
    energies = np.empty((len(theta), 2))

    def some(waiting: Iterator[int]) -> None:
        for k in waiting:
            line = W @ theta[k]
            line -= line.mean()  # where the clouds lie costs no digits
            own, other, both = (_pair_sum(part) for part in (line[:n], line[n:], line))
            across = (both - own - other) / (n * m)
            relabelled = (1 / n + 1 / m) * both * 2 / (N * (N - 1))
            energies[k] = 2 * (across - own / n**2 - other / m**2), relabelled

    spread(some, range(len(theta)), n_threads())
    return energies.mean(axis=0)


def _pair_sum(x: np.ndarray) -> float:
    """Return the sum of |x - x'| over all pairs of q numbers: sorted, the k-th counts 2 k - q + 1 times."""
    return float((2.0 * np.arange(len(x)) - (len(x) - 1)) @ np.sort(x))
