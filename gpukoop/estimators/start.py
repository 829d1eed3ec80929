"""Where the particles of a sample start: near the data, at a normal law, at a mixture of them, or where the user says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpukoop.arrays import Array, like, native_array, require_finite, to_host
from gpukoop.estimators.weights import host_weight
from gpukoop.flow.start import drawn_rows, gaussian_mixture, smoothed_bootstrap


def check_init(init: Any) -> None:
    """Raise unless ``init`` says where to start."""
    if not (callable(init) or (isinstance(init, str) and init in ("data", "gaussian", "mixture"))):
        raise ValueError(
            f"init must be 'data', 'gaussian', 'mixture' or a function init(n, rng), got {init!r}"
        )


def drawn_start(
    flow: Any,
    n: int,
    rng: np.random.Generator,
    normal: Callable[[int, np.random.Generator], Array],
    coordinates: Any = None,
) -> Array:
    """Return n particles, (n, d), in the library of the samples of a fitted flow.

    Parameters
    ----------
    flow : estimator
        With ``init`` and ``X_``.
    n : int
    rng : numpy Generator
    normal : callable
        Draws of the normal law of the samples.
    coordinates : coordinates, optional
        In which neighbours are sought.
    """
    init, X, weight = flow.init, flow.X_, host_weight(getattr(flow, "sample_weight_", None))
    if callable(init):
        Z, _ = native_array(init(n, rng), "init(n, rng)")
        if Z.shape != (n, X.shape[1]):
            raise ValueError(f"init(n, rng) returned shape {Z.shape}, expected {(n, X.shape[1])}")
        require_finite(Z, "init(n, rng)")
        return like(Z, X)
    if init == "gaussian":
        return normal(n, rng)
    if init == "mixture":
        rows = slice(None) if weight is None else drawn_rows(weight, len(X), rng)
        return like(gaussian_mixture(to_host(X).astype(float)[rows], n, rng), X)
    return like(near_data(coordinates, X, n, rng, weight), X)


def near_data(
    coordinates: Any, X: Array, n: int, rng: np.random.Generator, weight: np.ndarray | None = None
) -> np.ndarray:
    """Return n particles near the samples, (n, d) on the host; what is near, coordinates say if there are any."""
    samples = to_host(X).astype(float)
    if coordinates is None:
        return smoothed_bootstrap(samples, n, rng, weight=weight)
    G = to_host(coordinates.transform(X)).astype(float)
    if coordinates.invertible:  # all of the noise is measured there: columns have no unit
        return coordinates.inverse(smoothed_bootstrap(G, n, rng, weight=weight))
    return smoothed_bootstrap(samples, n, rng, G, weight)
