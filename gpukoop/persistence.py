"""Estimators whose files may be older than some of their parameters."""

from __future__ import annotations

from inspect import Parameter, signature
from typing import Any

from sklearn.base import BaseEstimator

from gpukoop.versions import PARAMETERS, Persistent


class PersistentEstimator(Persistent, BaseEstimator):
    """An estimator whose file may be older than some of its parameters: these are then what they are by default."""

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), PARAMETERS: self._get_param_names()}

    def _changed_parameters(
        self, state: dict[str, Any], names: list[str] | None
    ) -> tuple[dict[str, Any], list[str]]:
        known = signature(type(self).__init__).parameters
        own = [name for name in known if name != "self"]
        missing = {name: known[name].default for name in own if name not in state}
        needed = [name for name, value in missing.items() if value is Parameter.empty]
        if needed:
            raise ValueError(
                f"this {type(self).__name__} was saved before it had the parameter {needed[0]!r}, which has no default: fit it again"
            )
        if names is None:  # what is learned begins or ends with an underscore
            names = [n for n in state if n[0] != "_" != n[-1]]
        return missing, [n for n in names if n not in own]
