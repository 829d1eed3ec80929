"""Steps of particles that live elsewhere than where the step is taken: on a manifold, or seen in coordinates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from gpukoop.arrays import Array, is_cupy, like
from gpukoop.flow.loop import Info, State, Step


def in_coordinates(
    step: Step, coordinates: Any, project: Callable[[Array], Array] | None = None
) -> Step:
    """Return the step of particles x whose coordinates g(x) take ``step``: each moves as little as that needs.

    Parameters
    ----------
    step : Step
        Of particles (n, p).
    coordinates : coordinates
        With ``transform`` and ``lift``; see :mod:`gpukoop.spectrum.linear_coordinates`.
    project : callable, optional
        (n, d) -> (n, d), applied after the step.
    """

    def lifted(state: State, rng: np.random.Generator) -> tuple[State, Info]:
        X = state.particles
        G = coordinates.transform(X)
        following, info = step(replace(state, particles=G), rng)
        with np.errstate(invalid="ignore"):
            motion = following.particles - G
        if not is_cupy(X) and not np.isfinite(motion).all():
            # a flow that has run away, which its loop will tell
            return replace(following, particles=np.full_like(X, np.nan)), info
        moved = coordinates.lift(X, motion)
        if project is not None:
            moved = projected(project, moved)
        return replace(following, particles=moved), info

    return lifted


def projected(project: Callable[[Array], Array], Z: Array) -> Array:
    """Return the nearest points of the manifold; raise if ``project`` does not keep the shape."""
    if not is_cupy(Z) and not np.isfinite(Z).all():
        return Z  # a flow that has run away, which its loop will tell
    moved = project(Z)
    if getattr(moved, "shape", None) != Z.shape:
        raise ValueError(
            f"project returned shape {getattr(moved, 'shape', None)}, expected {Z.shape}: it must map (n, d) "
            "points to the nearest points of the manifold"
        )
    moved = like(moved, Z)
    # On a device the host would have to wait; the loop finds it there, ten steps at a time.
    if not is_cupy(Z) and not np.isfinite(moved).all():
        bad = int((~np.isfinite(moved)).any(axis=1).sum())
        raise ValueError(
            f"project returned NaN or inf for {bad} of {len(Z)} finite points: it must map every (n, d) point to the nearest "
            "point of the manifold"
        )
    return moved
