"""What every ``fit`` owes its caller: own copies of the samples, the names of their columns, and all of it or nothing."""

from __future__ import annotations

import copy
import sys
from collections import Counter
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import Any, TypeVar, cast

import numpy as np
from sklearn.utils.validation import _check_feature_names

from gpukoop.arrays import Array, Home, is_cupy, points
from gpukoop.versions import SAVED_BY

# Libraries of frames, and what they call the names of columns.
FRAMES = {"pandas": "columns", "polars": "schema"}

# Packages whose lines are not the user's: scikit-learn calls ``fit`` in pipelines and ``fit_transform``.
INNER = {"gpukoop", "sklearn", "joblib"}

F = TypeVar("F", bound=Callable[..., Any])


def outside() -> int:
    """Return the ``stacklevel`` with which a warning of the calling function points at the user's line."""
    frame, level = sys._getframe(1), 1
    while frame.f_globals.get("__name__", "").partition(".")[0] in INNER and frame.f_back:
        frame, level = frame.f_back, level + 1
    return level


def whole(method: F) -> F:
    """Return a ``fit`` that leaves the estimator as it was if it fails: old weights never meet new samples."""

    @wraps(method)
    def fit(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = dict(self.__dict__)
        try:
            done = method(self, *args, **kwargs)
            self.__dict__.pop(SAVED_BY, None)
            return done
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

    return cast(F, fit)


def own_points(x: Any, name: str) -> tuple[Array, Home]:
    """Return checked points in memory of their own, and their home: what the caller writes later changes no fit."""
    native, home = points(x, name)
    shared = not isinstance(x, np.ndarray) or np.may_share_memory(native, x)
    return native.copy() if is_cupy(native) or shared else native, home


def own_part(part: Any) -> Any:
    """Return a copy of what the user may fit anew or write into later; the part itself where it cannot be copied."""
    try:
        return copy.deepcopy(part)
    except (TypeError, RuntimeError, NotImplementedError):  # locks, files, tensors inside a graph
        return part


def remember_columns(estimator: Any, X: Any, *others: Any) -> None:
    """Keep the column names of a frame as ``feature_names_in_``, as scikit-learn does; others of the same fit must have the same."""
    _check_distinct(X)
    _check_feature_names(estimator, X, reset=True)
    library = type(X).__module__.partition(".")[0]
    named = library in FRAMES and hasattr(estimator, "feature_names_in_")
    estimator._frame = library if named else None
    for other in others:
        check_columns(estimator, other)


def framed(method: F) -> F:
    """Return a ``sample`` that answers in a frame with the columns of the one that the estimator was fitted to."""

    @wraps(method)
    def sample(self: Any, *args: Any, **kwargs: Any) -> Any:
        Z = method(self, *args, **kwargs)
        library = getattr(self, "_frame", None)
        if library is None or hasattr(Z, "columns"):
            return Z
        names = {FRAMES[library]: list(self.feature_names_in_)}
        return import_module(library).DataFrame(Z, **names)

    return cast(F, sample)


def check_columns(estimator: Any, X: Any) -> None:
    """Raise if a frame has other columns, or the same in another order, than that given to ``fit``; arrays have no names."""
    if hasattr(X, "columns") and hasattr(estimator, "feature_names_in_"):
        _check_distinct(X)
        _check_feature_names(estimator, X, reset=False)


def _check_distinct(X: Any) -> None:
    """Raise if two columns of a frame have one name: neither can be told by it."""
    columns = getattr(X, "columns", None)
    if columns is None or callable(columns):
        return
    twice = [name for name, times in Counter(columns).items() if times > 1]
    if twice:
        raise ValueError(
            f"two columns of the frame are called {twice[0]!r}: give each its own feature names"
        )
