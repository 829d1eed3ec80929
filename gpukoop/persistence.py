"""Estimators that say so when they were saved by another version of the package."""

from __future__ import annotations

import sys
import warnings
from typing import Any

from sklearn.base import BaseEstimator

# In what is saved, beside the attributes.
VERSION = "_gpukoop_version"


class PersistentEstimator(BaseEstimator):
    """An estimator for ``pickle`` and ``joblib`` whose file knows the version that wrote it."""

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), VERSION: _version()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        saved = state.get(VERSION, "before 0.2.0")
        if saved != _version():
            warnings.warn(
                f"{type(self).__name__} was saved by gpukoop {saved}, this is {_version()}: what it learned may be read wrongly. "
                "Fit it again, or load it with the version that saved it",
                UserWarning,
                stacklevel=2,
            )
        super().__setstate__({name: value for name, value in state.items() if name != VERSION})


def _version() -> str:
    return str(sys.modules["gpukoop"].__version__)
