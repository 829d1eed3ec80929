"""Scikit-learn faces of the flows; no mathematics. Each is imported when it is first asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "KSWGD": "kswgd",
    "MMDFlow": "mmd",
    "WassersteinFlow": "wasserstein",
    "JKOFlow": "jko",
    "KoopmanSampler": "koopman",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"gpukoop.estimators.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'gpukoop.estimators' has no attribute {name!r}")
