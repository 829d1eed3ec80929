"""What flows remember from one step to the next: arrays with names, which a checkpoint stores under these names.

A step's :class:`Memory` holds what the step itself needs, and in ``kept`` what its field may start from. A flow whose memory is
another one defines a frozen dataclass of arrays or None, as :mod:`gpukoop.flow.kswgd` does.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from gpukoop.arrays import Array


@dataclass(frozen=True)
class Kept:
    """What a field may start its next evaluation from; None is a cold start.

    Attributes
    ----------
    target : array of shape (n, d), optional
        Where an exact coupling sends each particle.
    own : array of shape (n,), optional
        Sinkhorn's potential of the particles among themselves.
    potential : array of shape (m,), optional
        Sinkhorn's potential on the samples.
    coefficients : array, optional
        Of a witness: alpha of DrMMD, beta of a critic.
    log_density : array of shape (m,), optional
        Of KALE, at the samples.
    """

    target: Array | None = None
    own: Array | None = None
    potential: Array | None = None
    coefficients: Array | None = None
    log_density: Array | None = None

    def for_others(self) -> Kept:
        """Return what serves other particles: the rest belongs to single ones, and means nothing for another batch."""
        # Potentials belong to the samples and stay; the coupling's targets are rows of the batch that has gone.
        return dataclasses.replace(self, target=None, own=None)


@dataclass(frozen=True)
class Memory:
    """What the step of a field needs.

    Attributes
    ----------
    extent : array of shape (1 + d,)
        Width and centre of particles and samples at the start; None where nobody asks.
    centre : array of shape (d,), optional
        The centre where the particles are, once a queued step has moved it there.
    momentum : array of shape (n, d), optional
    parameters : array, optional
        Of the map in training.
    kept : Kept
        What the field may start from.
    """

    extent: Any = None
    centre: Array | None = None
    momentum: Array | None = None
    parameters: Array | None = None
    kept: Kept = field(default_factory=Kept)

    @property
    def width(self) -> float:
        """Width of the clouds at the start; no width, and nothing is near or far."""
        return float("nan") if self.extent is None else float(self.extent[0])

    def for_others(self) -> Memory:
        """Return what serves other particles."""
        return dataclasses.replace(self, momentum=None, kept=self.kept.for_others())


def named(memory: Any, prefix: str = "") -> dict[str, Array]:
    """Return the arrays of a memory by name, those of a memory inside it as "outer.inner"."""
    found: dict[str, Array] = {}
    for part in () if memory is None else dataclasses.fields(memory):
        value = getattr(memory, part.name)
        if dataclasses.is_dataclass(value):
            found |= named(value, f"{prefix}{part.name}.")
        # Absent and not written as an empty array: what a file does not hold is a cold start when it is read.
        elif value is not None:
            found[prefix + part.name] = value
    return found


def refilled(memory: Any, arrays: dict[str, Array], prefix: str = "") -> Any:
    """Return a memory like this one with the arrays that :func:`named` gave; what is not among them is None."""
    if memory is None:
        return None
    found: dict[str, Any] = {}
    for part in dataclasses.fields(memory):
        value = getattr(memory, part.name)
        inner = dataclasses.is_dataclass(value)
        name = prefix + part.name
        found[part.name] = refilled(value, arrays, f"{name}.") if inner else arrays.get(name)
    return dataclasses.replace(memory, **found)
