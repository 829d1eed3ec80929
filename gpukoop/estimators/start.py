"""Where the particles of a sample start: near the data, at a normal law, at a mixture of them, or where the user says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpukoop.arrays import Array, like, namespace, native_array, require_finite, to_host
from gpukoop.centring import varying
from gpukoop.estimators.weights import host_weight
from gpukoop.flow.start import drawn_rows, gaussian_mixture, smoothed_bootstrap
from gpukoop.spectrum.coordinates import is_auto
from gpukoop.spectrum.linear_coordinates import LinearCoordinates

# Widths of columns that differ more than so many times are in different units; of the laws of the bench those of three rings
# in a row differ most, 4.4 times, in one unit.
UNITS_RATIO = 5.0


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
    coordinates: Any = "auto",
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
    coordinates : coordinates, None or "auto"
        In which neighbours are sought; "auto" standardises columns of different units.
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
    if is_auto(coordinates):
        # Neighbours along the widest column alone may be strangers: on a banana whose height is in a unit 100 times smaller the
        # left and the right arm are (17 per cent of the start off it, standardised 1).
        X, coordinates = samples, None
        if in_different_units(samples, weight):
            coordinates = LinearCoordinates("standardize").fit(samples, sample_weight=weight)
    if coordinates is None:
        return smoothed_bootstrap(samples, n, rng, weight=weight)
    G = to_host(coordinates.transform(X)).astype(float)
    if coordinates.invertible:  # all of the noise is measured there: columns have no unit
        return coordinates.inverse(smoothed_bootstrap(G, n, rng, weight=weight))
    return smoothed_bootstrap(samples, n, rng, G, weight)


def in_different_units(X: Array, weight: Array | None = None) -> bool:
    """Return whether the widths of columns differ more than five times; those of constant columns say nothing."""
    varies = to_host(varying(X))
    # mean absolute deviations, of numbers below one: neither squares nor sums leave the range
    X = X / max(float(abs(X).max()), np.finfo(X.dtype).tiny)
    if weight is None:
        middle = X.mean(axis=0, dtype=float)
        width = abs(X - middle).mean(axis=0, dtype=float)
    else:
        p = namespace(X).asarray(host_weight(weight))
        middle = p @ X
        width = p @ abs(X - middle)
    width = to_host(width)
    width = width[varies & (width > 0)]
    return bool(len(width) and width.max() > UNITS_RATIO * width.min())
