"""Drift and diffusion of a stochastic differential equation, as users pass them, at blocks of samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpukoop.arrays import Array, is_cupy, like, namespace
from gpukoop.checks import real_array

Coefficient = Any  # a number, an array, or a callable of points


def rows_of(coefficient: Coefficient, X: Array, name: str) -> Callable[[slice], Array]:
    """Return a function that gives the coefficient at a block of the samples, one row each."""

    def checked(value: Any, rows: int) -> Array:
        value = value if is_cupy(value) else real_array(value, name)
        if np.shape(value)[:1] != (rows,):
            raise ValueError(
                f"{name} gives shape {np.shape(value)} for {rows} samples, expected one row a sample"
            )
        value = like(value, X)
        if not bool(namespace(value).isfinite(value).all()):
            raise ValueError(f"{name} gives NaN or inf at some samples")
        return value

    if callable(coefficient):
        return lambda block: checked(coefficient(X[block]), len(X[block]))
    whole = checked(coefficient, len(X))
    return lambda block: whole[block]


def drift_of(coefficient: Coefficient, X: Array) -> Callable[[slice], Array]:
    """Return the drift at blocks of samples, (b, d)."""
    rows = rows_of(coefficient, X, "drift")
    shape = rows(slice(0, 1)).shape
    if shape != (1, X.shape[1]):
        raise ValueError(f"drift gives shape {shape} for one sample, expected (1, {X.shape[1]})")
    return rows


class Diffusivity:
    """a = s s^T / 2 at blocks of samples.

    Parameters
    ----------
    diffusion : None, number, array or callable
        s: None is sqrt(2); (d,) a diagonal, (d, d) a matrix, (n, d) and (n, d, d) one a sample; a callable gives the latter.
    X : array of shape (n, d)

    Attributes
    ----------
    number : float
        a where it is a constant number, else 0.
    """

    def __init__(self, diffusion: Coefficient, X: Array) -> None:
        xp, d = namespace(X), X.shape[1]
        self.number = 0.0
        if isinstance(diffusion, str):
            raise TypeError(
                f"diffusion is {diffusion!r}, expected a number, an array or a function"
            )
        if diffusion is None or (not callable(diffusion) and np.ndim(diffusion) == 0):
            self.number = 1.0 if diffusion is None else float(diffusion) ** 2 / 2
            if not 0 < self.number < np.inf:
                raise ValueError(f"diffusion is {diffusion!r}, expected a finite number > 0")
            constant = self.number * xp.eye(d)
        elif not callable(diffusion) and np.shape(diffusion) in ((d,), (d, d)):
            s = like(diffusion, X)
            constant = xp.diag(s**2 / 2) if s.ndim == 1 else s @ s.T / 2
        else:
            self.at = self._varying(diffusion, X)
            return
        self.at = lambda block: constant

    def _varying(self, diffusion: Coefficient, X: Array) -> Callable[[slice], Array]:
        xp, d = namespace(X), X.shape[1]
        rows = rows_of(diffusion, X, "diffusion")
        shape = rows(slice(0, 1)).shape
        if shape not in ((1,), (1, d), (1, d, d)):
            raise ValueError(
                f"diffusion gives shape {shape} for one sample, expected (1,), (1, {d}) or (1, {d}, {d})"
            )

        def at(block: slice) -> Array:
            s = rows(block)
            if s.ndim < 3:
                s = s.reshape(len(s), -1, 1) * xp.eye(d)
            return s @ s.transpose(0, 2, 1) / 2

        return at

    def __call__(self, block: slice) -> Array:
        """Return a at a block: one (d, d) matrix, or (b, d, d)."""
        return self.at(block)
