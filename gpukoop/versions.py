"""Objects that say so when they were saved by another version of the package, or before they had all their parameters."""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING, Any

# In what is saved, beside the attributes.
VERSION = "_gpukoop_version"
PARAMETERS = "_gpukoop_parameters"  # their names, which tell them from what a user sets
# In what another version saved, once it is loaded and until it is fitted again.
SAVED_BY = "_saved_by"


class Persistent:
    """An object that learns, for ``pickle`` and ``joblib``: its file knows the version that wrote it."""

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), VERSION: vars(self).get(SAVED_BY, _version())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        names = state.get(PARAMETERS)
        saved = state.get(VERSION, "before 0.2.0")
        state = {
            name: value
            for name, value in state.items()
            if name not in (VERSION, PARAMETERS, SAVED_BY)
        }
        told = [] if saved == _version() else [f"this is {_version()}"]
        missing, gone = self._changed_parameters(state, names)
        if missing:
            told.append("it was without " + ", ".join(f"{k}={v!r}" for k, v in missing.items()))
        if gone:
            told.append(f"{', '.join(gone)} is no parameter any more")
        if told:
            warnings.warn(
                f"{type(self).__name__} was saved by gpukoop {saved}, {'; '.join(told)}: what it learned may be read wrongly. "
                "Fit it again, or load it with the version that saved it",
                UserWarning,
                stacklevel=2,
            )
        self.__dict__.update(missing | state)
        if told:
            self.__dict__[SAVED_BY] = saved

    if not TYPE_CHECKING:  # which would take every name for an attribute

        def __getattr__(self, name: str) -> Any:
            saved = self.__dict__.get(SAVED_BY)
            if saved is None or name.startswith("__") or hasattr(type(self), name):
                return object.__getattribute__(self, name)  # raises what it raised before
            from sklearn.exceptions import NotFittedError  # maps and data sets do without it

            raise NotFittedError(
                f"this {type(self).__name__} was saved by gpukoop {saved}, without {name!r}: fit it again, or load it with the "
                "version that saved it"
            )

    def _changed_parameters(
        self, state: dict[str, Any], names: list[str] | None
    ) -> tuple[dict[str, Any], list[str]]:
        """Return parameters that a state of another version lacks, with what they are by default, and those it has too many.

        ``names`` are those that it was saved with, None where it does not say.
        """
        return {}, []


def _version() -> str:
    return str(sys.modules["gpukoop"].__version__)
