"""What every fit of an estimator does around learning: it says what was chosen, and keeps what was learned if asked to."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

from gpukoop.arrays import native_array
from gpukoop.files import file_path
from gpukoop.flow.identity import identity
from gpukoop.models import read_model, write_model

F = TypeVar("F", bound=Callable[..., Any])

logger = logging.getLogger("gpukoop")


def kept(method: F) -> F:
    """Return a ``fit`` with ``checkpoint=PATH``: it writes what it learned, and the same call later reads it instead."""

    @wraps(method)
    def fit(self: Any, *args: Any, checkpoint: str | Path | None = None, **kwargs: Any) -> Any:
        if checkpoint is None:
            method(self, *args, **kwargs)
        else:
            _continued(method, self, args, kwargs, checkpoint)
        logger.info("%s: %s", type(self).__name__, ", ".join(chosen(self)))
        return self

    return cast(F, fit)


def _continued(method: Any, self: Any, args: Any, kwargs: Any, checkpoint: Any) -> None:
    path, params = file_path(checkpoint, "checkpoint"), self.get_params(deep=False)
    given = {name: _numbers(value) for name, value in kwargs.items()}
    key = identity((type(self).__qualname__, params, [_numbers(value) for value in args], given))
    if path.exists():
        learned = vars(read_model(path, key))
        self.__dict__.update({name: v for name, v in learned.items() if name not in params})
    else:
        method(self, *args, **kwargs)
        write_model(path, self, key)


def _numbers(value: Any) -> Any:
    """Return the names and numbers of a frame, the numbers of an array of any library."""
    if not hasattr(value, "shape"):
        return value
    return [str(name) for name in getattr(value, "columns", ())], native_array(value, "X")[0]


def chosen(estimator: Any) -> Iterator[str]:
    """Yield what a fit has chosen: scale, modes, features, ridge, backend, steps; those that it has."""
    has = vars(estimator)
    spectrum, kernel = has.get("spectrum_"), has.get("kernel_")
    if spectrum is not None:
        yield f"scale {spectrum.scale_:.3g}"
        coordinates = spectrum.coordinates_
        if coordinates is not None:
            yield f"coordinates {getattr(coordinates, 'method', type(coordinates).__name__)}"
    elif kernel is not None:
        yield repr(kernel)
    if "blur_" in has:
        yield f"blur {has['blur_']:.3g}"
    if "eigenvalues_" in has:
        yield f"{len(has['eigenvalues_'])} modes"
    if "n_features_lifted_" in has:
        yield f"{has['n_features_lifted_']} features"
    if "reg_" in has:
        yield f"ridge {has['reg_']:.3g}"
    yield f"backend {estimator.backend_}"
    steps = getattr(estimator, "_steps", None)
    if steps is not None:
        yield f"{steps()} steps"
