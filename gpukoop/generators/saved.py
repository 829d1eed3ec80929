"""Files of a training and of a trained generator: tensors, numbers and strings only, written whole, read without running code."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpukoop.files import file_path, read_sealed, write_sealed
from gpukoop.generators.networks import library

if TYPE_CHECKING:
    from gpukoop.generators.training import Training

CHECKPOINT, MODEL = "gpukoop generator checkpoint 1", "gpukoop generator 1"
_DAMAGED = (
    RuntimeError,
    ValueError,
    KeyError,
    EOFError,
    OSError,
    AttributeError,
    pickle.UnpicklingError,
)
# What a loaded generator needs to sample, beside its parameters.
KEPT = ("shape_", "range_", "n_features_in_", "classes_", "varies_", "centre_", "width_", "n_iter_")
# And of a table: the names of its columns, and the library of frames.
NAMED = ("feature_names_in_", "_frame")


def dump(kind: str, content: dict[str, Any], path: Path) -> None:
    """Write a dictionary of tensors, numbers, strings and containers of them."""
    buffer = io.BytesIO()
    library().save({"kind": kind, **content}, buffer)
    write_sealed(path, f"{kind}\n".encode(), buffer.getvalue())


def load(kind: str, path: Path) -> dict[str, Any]:
    """Return what :func:`dump` wrote; raise ValueError if the file is damaged or of another kind."""
    what = kind.rsplit(" ", 1)[0]
    try:
        payload = read_sealed(path, f"{kind}\n".encode())
        content = library().load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        if content["kind"] != kind:
            raise ValueError(f"it is a {content['kind']}")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; expected a {what}") from None
    except _DAMAGED as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{path} is no readable {what}: {reason}") from None
    return dict(content)


class Saved:
    """The checkpoint of one training.

    Parameters
    ----------
    path : path
    identity : str
        What decides the training; a checkpoint of another one is refused.
    every : int
        Steps between two writes.
    """

    def __init__(self, path: str | Path, identity: str, every: int) -> None:
        self.path = file_path(path, "checkpoint")
        self.identity, self.every = identity, every
        if self.path.is_dir() or not self.path.parent.is_dir():
            raise ValueError(
                f"checkpoint {self.path}: expected the name of a file in a folder that exists"
            )

    def begin(self, training: Training) -> dict[str, list[float]]:
        """Restore the training and return its history; write the file at once where there is none, so that a bad path shows."""
        if not self.path.exists():
            self.write(training, {})
            return {}
        content = load(CHECKPOINT, self.path)
        if content["identity"] != self.identity:
            raise ValueError(
                f"{self.path} is the checkpoint of another training (other data, settings or network): "
                "choose another file, or delete it to start anew"
            )
        training.restore(content["training"])
        return {name: values.tolist() for name, values in content["history"].items()}

    def write(self, training: Training, history: dict[str, list[float]]) -> None:
        """Write the present state."""
        tensor = library().tensor
        kept = {name: tensor(values, dtype=library().float64) for name, values in history.items()}
        content = {"identity": self.identity, "training": training.state(), "history": kept}
        dump(CHECKPOINT, content, self.path)


def write(path: Path, generator: Any) -> None:
    """Write a fitted generator."""
    parameters = {
        name: value
        for name, value in generator.get_params(deep=False).items()
        if value is None or isinstance(value, str | int | float | bool | tuple)
    }
    fitted = {name: _plain(getattr(generator, name)) for name in KEPT}
    if getattr(generator, "_frame", None) is not None:
        fitted |= {name: _plain(getattr(generator, name)) for name in NAMED}
    shares = generator._source.shares
    content = {
        "parameters": parameters,
        "fitted": fitted,
        "shares": _plain(shares),
        "network": generator.network_.state_dict(),
        "own_network": generator.network is not None,
    }
    dump(MODEL, content, path)


def read(path: Path, made: Any, network: Any) -> Any:
    """Return a generator that samples, from a file of :func:`write`."""
    content = load(MODEL, path)
    if content["own_network"] and network is None:
        raise ValueError(
            f"{path} was trained with a network of its own: pass the same module, Generator.load(path, network=...)"
        )
    generator = made(**{**content["parameters"], "network": network})
    content["fitted"].setdefault("varies_", [True])  # a file from before constant columns were kept
    for name, value in content["fitted"].items():
        setattr(generator, name, np.asarray(value) if isinstance(value, list) else value)
    generator._loaded(content["network"], content["shares"])
    return generator


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value
