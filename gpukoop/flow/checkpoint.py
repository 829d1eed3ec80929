"""Checkpoints: a run killed at any moment continues from its last one and ends with the same bits.

File layout: a magic line, length and SHA-256 of the payload, the payload (an uncompressed .npz). It is written
atomically: the path holds a whole checkpoint or the one before it, never half of one. A truncated or altered file
fails its digest and is refused.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from gpukoop.arrays import like, to_host
from gpukoop.files import file_path, read_sealed, write_sealed
from gpukoop.flow.memory import named, refilled

_MAGIC = b"gpukoop checkpoint 3\n"


class Checkpoint:
    """Reads and writes the state of one run.

    Parameters
    ----------
    path : path
        The file; its folder must exist.
    fingerprint : str
        What this run is (data, settings, start); a checkpoint of another run is refused.
    every : int
        Steps between two writes.
    """

    def __init__(self, path: str | Path, fingerprint: str, every: int) -> None:
        if isinstance(every, bool) or not isinstance(every, int | np.integer) or every < 1:
            raise ValueError(f"checkpoint_every must be an int >= 1, got {every!r}")
        self.path = file_path(path, "checkpoint")
        self.fingerprint = hashlib.sha256(fingerprint.encode()).hexdigest()
        self.every = int(every)

    def begin(self, state: Any, seed: int) -> tuple[Any, dict[str, list[Any]], int]:
        """Return the state to start from; write it at once, so that a bad path shows before hours are spent."""
        if self.path.is_dir():
            raise ValueError(f"checkpoint {self.path} is a folder: name a file in it")
        if not self.path.parent.is_dir():
            raise ValueError(
                f"checkpoint {self.path}: the folder {self.path.parent} does not exist: make it first"
            )
        if self.path.exists():
            return self.read(state)
        # Two copies: the new file is written beside the old one, which is replaced only when it is whole.
        size = 2 * (state.particles.nbytes + sum(a.nbytes for a in named(state.memory).values()))
        free = shutil.disk_usage(self.path.parent).free
        if free < size:
            raise OSError(
                f"checkpoint {self.path}: the disk has {free / 1e6:.0f} MB free, two copies of the state need "
                f"{size / 1e6:.0f} MB: free some space or choose another folder"
            )
        self.write(state, {}, seed)
        return state, {}, seed

    def keep(self, state: Any, history: dict[str, list[Any]], seed: int) -> None:
        """Write if ``every`` steps have passed."""
        if state.iteration % self.every == 0:
            self.write(state, history, seed)

    def write(self, state: Any, history: dict[str, list[Any]], seed: int) -> None:
        """Write the state now."""
        arrays = {"particles": to_host(state.particles)}
        arrays.update({f"memory:{k}": to_host(v) for k, v in named(state.memory).items()})
        arrays.update({f"history:{k}": np.array(v) for k, v in history.items()})
        header = {
            "fingerprint": self.fingerprint,
            "iteration": state.iteration,
            "seed": seed,
        }
        arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]  # its stub reads the names as allow_pickle
        # Sealed by a digest: a flipped bit in the particles would otherwise continue as a slightly different run.
        write_sealed(self.path, _MAGIC, buffer.getvalue())

    def read(self, state: Any) -> tuple[Any, dict[str, list[Any]], int]:
        """Return the stored state in the library and device of ``state``.

        Raises
        ------
        ValueError
            If the file is no checkpoint, is damaged, or belongs to another run; the message names it.
        """
        arrays, header = self._load()
        # Refused rather than continued: the same numbers with another step size are no run that anybody asked for.
        if header["fingerprint"] != self.fingerprint:
            raise ValueError(
                f"checkpoint {self.path} belongs to another run (other data, start, settings or seed): "
                "delete it or give this run another path"
            )
        particles = like(arrays["particles"], state.particles)
        parts: dict[str, dict[str, Any]] = {"memory": {}, "history": {}}
        for key, value in arrays.items():
            kind, colon, name = key.partition(":")
            if colon:
                parts[kind][name] = value
        memory = {k: _at_home(v, state.particles) for k, v in parts["memory"].items()}
        # A converged run measured once more than it stepped; that measurement is made again.
        history = {k: list(v[: header["iteration"]]) for k, v in parts["history"].items()}
        kept = refilled(state.memory, memory)
        restored = type(state)(particles, header["iteration"], kept)
        return restored, history, header["seed"]

    def _load(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        damaged = f"checkpoint {self.path} is damaged or no gpukoop checkpoint: delete it to start the run anew"
        try:
            payload = read_sealed(self.path, _MAGIC)
        except ValueError:
            raise ValueError(damaged) from None
        except OSError as error:
            raise OSError(
                error.errno, f"cannot read checkpoint {self.path}: {error.strerror}"
            ) from error
        try:
            # Without pickle: a checkpoint from elsewhere must not be able to run anything.
            with np.load(io.BytesIO(payload), allow_pickle=False) as stored:
                arrays = {key: stored[key] for key in stored.files}
            header = json.loads(arrays.pop("header").tobytes())
        except (zipfile.BadZipFile, ValueError, KeyError) as error:
            raise ValueError(damaged) from error
        return arrays, header


def _at_home(value: np.ndarray, reference: Any) -> Any:
    """Memory keeps its own dtype; only the library follows the particles."""
    if value.dtype == reference.dtype:
        return like(value, reference)
    return value
