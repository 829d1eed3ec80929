"""Scikit-learn interfaces of the flows; no mathematics. Each is imported when it is first asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what __getattr__ finds at run time, for type checkers and editors
    from gpukoop.estimators.jko import JKOFlow
    from gpukoop.estimators.koopman import KoopmanSampler
    from gpukoop.estimators.kswgd import KSWGD
    from gpukoop.estimators.mmd import MMDFlow
    from gpukoop.estimators.wasserstein import WassersteinFlow

_HOMES = {
    "KSWGD": "kswgd",
    "MMDFlow": "mmd",
    "WassersteinFlow": "wasserstein",
    "JKOFlow": "jko",
    "KoopmanSampler": "koopman",
}

__all__ = ["KSWGD", "JKOFlow", "KoopmanSampler", "MMDFlow", "WassersteinFlow"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"gpukoop.estimators.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'gpukoop.estimators' has no attribute {name!r}")
