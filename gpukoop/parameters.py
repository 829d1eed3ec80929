"""What every estimator asks before every verb: parameters that many share, and points that fit what was learned."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from gpukoop.arrays import Array, Home, points
from gpukoop.backends import check_name
from gpukoop.draws import check_count, random_generator
from gpukoop.fitted import check_columns
from gpukoop.operator import check_tol


def check_shared(estimator: Any) -> None:
    """Raise if a parameter that many estimators have is out of range: backend, tol, random_state, verbose."""
    given = estimator.get_params(deep=False)
    if given.get("backend") is not None:
        check_name(given["backend"], "backend=")
    check_tol(given.get("tol"))
    # A generator is not asked for numbers here: each answer would change the next run.
    random_state = given.get("random_state")
    if not isinstance(random_state, np.random.Generator | np.random.RandomState):
        random_generator(random_state)
    verbose = given.get("verbose", 0)
    if not isinstance(verbose, bool | np.bool_):
        check_count(verbose, "verbose", least=0)


def check_points(
    estimator: Any, Z: Any, name: str, size: str = "n_features_in_"
) -> tuple[Array, Home]:
    """Return points that a verb after ``fit`` was given, and their home; the parameters are checked too.

    Parameters
    ----------
    estimator : estimator
        With a method ``_check_parameters``, for ``set_params`` may come between ``fit`` and a verb.
    Z : array of shape (n, d)
    name : str
        What the user calls them.
    size : str
        The fitted attribute that holds d; a latent space of its own has no names of columns.
    """
    check_is_fitted(estimator)
    estimator._check_parameters()
    if size == "n_features_in_" or getattr(estimator, "latent", None) is None:
        check_columns(estimator, Z)
    native, home = points(Z, name)
    expected = getattr(estimator, size)
    if native.shape[1] != expected:
        space = "the X it was fitted to" if size == "n_features_in_" else "its latent space"
        raise ValueError(
            f"{name} has {native.shape[1]} features, but {type(estimator).__name__} is expecting {expected} features "
            f"as input: the columns of {space}"
        )
    return native, home
