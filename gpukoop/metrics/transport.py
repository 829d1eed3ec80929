r"""Transport distances between weighted clouds: exact ones, and the debiased entropic divergence with its gradient."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpukoop.arrays import Array, like, namespace, points, to_host
from gpukoop.checks import masses
from gpukoop.draws import check_count, check_positive
from gpukoop.flow.plans import LARGEST_ASSIGNMENT, assignment, exact_plan
from gpukoop.flow.sinkhorn import problem, solve, solve_symmetric, transport_value
from gpukoop.scales import LARGEST_SCALE

Weights = tuple[Array | None, Array | None]


def clouds(X: Array, Y: Array, name: str = "Y") -> tuple[Array, Array]:
    """Return both clouds as valid float64 points with the same features and on the same device."""
    X, home = points(X, "X")
    Y, other = points(Y, name, n_features=X.shape[1])
    if home.device != other.device:
        raise ValueError(
            f"X is on {home.device} and {name} on {other.device}: move one of them first"
        )
    return X.astype(np.float64, copy=False), Y.astype(np.float64, copy=False)


def marginals(pair: Weights | None, X: Array, Y: Array) -> tuple[Array, Array, Array, Array]:
    """Return the points of both clouds that have a weight, and the weights, each scaled to sum 1; uniform where None.

    A point of weight zero is no point: wherever it is, it decides no scale, and its square leaves no range.

    Raises
    ------
    ValueError
        If ``pair`` is not two entries, an array has a wrong length, or weights are negative or all zero.
    """
    if pair is None:
        pair = (None, None)
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ValueError(
            "weights is a pair (a, b) for X and Y, each an array or None: weights=(a, None), say"
        )
    held, found = [], []
    for given, cloud, name in ((pair[0], X, "weights[0]"), (pair[1], Y, "weights[1]")):
        xp = namespace(cloud)
        if given is None:
            held.append(cloud)
            found.append(xp.full(len(cloud), 1 / len(cloud)))
            continue
        w = masses(given, name, len(cloud))
        rows = np.flatnonzero(w)
        held.append(cloud if len(rows) == len(w) else cloud[xp.asarray(rows)])
        found.append(like(w[rows], cloud))
    return held[0], held[1], found[0], found[1]


def wasserstein(X: Array, Y: Array, *, order: int = 2, weights: Weights | None = None) -> float:
    r"""Return the Wasserstein distance of order 1 or 2 between two clouds.

    .. math:: W_p^p = \min_{P \in \Pi(a, b)} \sum_{ij} P_{ij} |x_i - y_j|^p

    Exact: by sorting on the line; by an assignment for equal sizes without weights; else by the network simplex of POT
    where it is installed (``pip install gpukoop[ot]``) or a linear programme.

    Parameters
    ----------
    X, Y : arrays of shape (n, d) and (m, d)
        Clouds in the same library and on the same device; solved on the host.
    order : {1, 2}
        p. The distance itself is returned, in the units of the points, not its power.
    weights : pair of arrays of shape (n,) and (m,), optional
        Weights of the points, >= 0, scaled to sum 1; either may be None for equal weights.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If d > 1 and the problem is too large: 10,000 points for an assignment; 16 million pairs with POT, 250,000
        without it.

    Notes
    -----
    Cost: O((n + m) log(n + m)) on the line, about n^3 time and n m memory otherwise (4 s at n = 4,000).

    References
    ----------
    .. [1] G. Peyre, M. Cuturi, Computational Optimal Transport, arXiv 1803.00567, chapter 3.
    """
    if order not in (1, 2) or isinstance(order, bool):
        raise ValueError(f"order is {order!r}, expected 1 or 2")
    given = weights is not None
    X, Y, a, b = (to_host(A) for A in marginals(weights, *clouds(X, Y)))
    size = _spread(X, Y)
    if size == 0.0:
        return 0.0
    X, Y = X / size, Y / size  # so that squares neither overflow nor vanish
    if X.shape[1] == 1:
        total = quantile_gap(X[:, 0], Y[:, 0], a, b, order)
    else:
        total = _cheapest(X, Y, None if not given else (a, b), order)
    return size * total ** (1 / order)


def _spread(X: np.ndarray, Y: np.ndarray) -> float:
    """Return the largest side of the box around both clouds, which must be a finite number."""
    with np.errstate(over="ignore"):
        sides = np.maximum(X.max(axis=0), Y.max(axis=0)) - np.minimum(X.min(axis=0), Y.min(axis=0))
    size = float(sides.max())
    if not math.isfinite(size):
        raise ValueError("the clouds are farther apart than the largest float: scale them down")
    return size


def _cheapest(
    X: np.ndarray, Y: np.ndarray, pair: tuple[np.ndarray, np.ndarray] | None, order: int
) -> float:
    from scipy.spatial.distance import cdist

    n, m = len(X), len(Y)
    if pair is None and n == m:
        if n > LARGEST_ASSIGNMENT:
            raise ValueError(
                f"the exact distance of {n} and {m} points is an assignment of {n}, the limit is "
                f"{LARGEST_ASSIGNMENT}: pass subsamples, or use sliced_wasserstein"
            )
        cost = cdist(X, Y, "sqeuclidean" if order == 2 else "euclidean")
        return float(cost[np.arange(n), assignment(cost)].mean())
    cost = cdist(X, Y, "sqeuclidean" if order == 2 else "euclidean")
    a, b = pair if pair is not None else (np.full(n, 1 / n), np.full(m, 1 / m))
    return float((exact_plan(cost, a, b) * cost).sum())


def quantile_levels(n: int, m: int) -> np.ndarray:
    """Return the levels i/n and j/m of two clouds of equal weights in their order, as multiples of 1/(n m).

    Quantile functions are steps that are constant in between. Levels that coincide stay, with no width: NumPy's union
    hashes them, and takes a second for a million multiples of one number.
    """
    return np.sort(
        np.concatenate([np.arange(1, n + 1) * m, np.arange(1, m + 1) * n]), kind="stable"
    )


def quantile_gap(x: np.ndarray, y: np.ndarray, a: np.ndarray, b: np.ndarray, order: int) -> float:
    """Return the integral of |Q_x - Q_y|^order over (0, 1) for weighted points on the line."""
    i, j = np.argsort(x, kind="stable"), np.argsort(y, kind="stable")
    x, y = x[i], y[j]
    levels_x, levels_y = np.cumsum(a[i]), np.cumsum(b[j])
    levels_x[-1] = levels_y[-1] = 1.0  # rounding must not leave a sliver without a partner
    levels = np.sort(np.concatenate([levels_x, levels_y]))
    width = np.diff(levels, prepend=0.0)
    # Both quantile functions are constant between the merged levels; the middle of an interval names its steps.
    middle = levels - width / 2
    at_x = x[np.minimum(np.searchsorted(levels_x, middle), len(x) - 1)]
    at_y = y[np.minimum(np.searchsorted(levels_y, middle), len(y) - 1)]
    return float(width @ np.abs(at_x - at_y) ** order)


def sinkhorn_divergence(
    X: Array,
    Y: Array,
    *,
    blur: float,
    weights: Weights | None = None,
    return_gradient: bool = False,
    n_iter: int = 1_000,
    tol: float = 1e-6,
    backend: str | None = None,
) -> Any:
    r"""Return the debiased Sinkhorn divergence of two clouds, and its gradient in X where it is asked for.

    .. math:: S = OT(a, b) - \tfrac12 OT(a, a) - \tfrac12 OT(b, b), \qquad
        \nabla_{x_i} S = a_i \big( T_{aa} x_i - T_{ab} x_i \big)

    OT has the cost |x - y|^2 / 2 and entropy blur^2; T are the barycentric maps of its plans. S is at least zero, zero for
    equal clouds only, W2^2 / 2 as the blur falls and half the squared gap of the means as it grows.

    Parameters
    ----------
    X, Y : arrays of shape (n, d) and (m, d)
        Clouds in the same library and on the same device.
    blur : float
        Length of the entropy, in the units of the points; a tenth of the width is usual.
    weights : pair of arrays of shape (n,) and (m,), optional
        Weights of the points, >= 0, scaled to sum 1; either may be None for equal weights.
    return_gradient : bool
        Whether the gradient in X is returned too.
    n_iter, tol : int and float
        Iterations at the last blur at most, each two passes over n m pairs, and the marginal error they stop at.
    backend : str, optional
        Who computes the log-sum-exps.

    Returns
    -------
    float, or (float, array of shape (n, d))
        The gradient in the library, device and dtype of X.

    Raises
    ------
    ValueError
        If the points, the blur or the weights are not valid.

    Notes
    -----
    Cost: some tens of passes over n m, n^2 and m^2 pairs; O(n + m) memory, no matrix is formed.

    References
    ----------
    .. [1] J. Feydy et al., Interpolating between Optimal Transport and MMD using Sinkhorn Divergences, arXiv 1810.08278.
    """
    native, home = points(X, "X")
    X, Y = clouds(X, Y)
    blur = check_positive(blur, "blur")
    if not 1 / LARGEST_SCALE < blur < LARGEST_SCALE:
        raise ValueError(
            f"blur is {blur:g}, and its square is no finite number: rescale the points"
        )
    check_count(n_iter, "n_iter")
    check_positive(tol, "tol", zero=True)
    whole = X
    X, Y, a, b = marginals(weights, X, Y)
    options: dict[str, Any] = {} if backend is None else {"backend": backend}
    cross, own, other = (
        problem(X, Y, a, b, **options),
        problem(X, X, a, a, **options),
        problem(Y, Y, b, b, **options),
    )
    how: dict[str, Any] = {"n_iter": n_iter, "tol": tol}
    found, mine = solve(cross, blur, **how), solve_symmetric(own, blur, **how)
    theirs = solve_symmetric(other, blur, **how)
    value = float(transport_value(cross, found))
    value -= float(transport_value(own, mine) + transport_value(other, theirs)) / 2
    if not math.isfinite(value):
        raise ValueError(
            f"the divergence is not finite: the clouds are too far apart for blur={blur}; scale them down"
        )
    if not return_gradient:
        return value
    slope = a[:, None] * (own.feasible_map(mine, blur) - cross.feasible_map(found, blur))
    if len(X) < len(whole) and weights is not None:  # points without weight do not matter
        rows = np.flatnonzero(masses(weights[0], "weights[0]", len(whole)))
        every = namespace(X).zeros_like(whole)
        every[namespace(X).asarray(rows)] = slope
        slope = every
    return value, home.restore(like(slope, native))
