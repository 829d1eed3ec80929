"""One request: everything that a choice of backend may depend on, and the points it is asked of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

from gpukoop.kernels.arrays import Array
from gpukoop.kernels.formula.profile import AbstractKernel
from gpukoop.kernels.operation import Operation

Memory = TypeVar("Memory")


@dataclass(eq=False)
class Clouds:
    """Targets and sources of an operator, and what is remembered of them from one call to the next.

    Attributes
    ----------
    X, Y : arrays of shape (n, d) and (m, d)
        Native and valid.
    error_estimate : float or None
        Of the last reduction; None after an exact one.
    choices : dict
        The backend that was chosen, by operation, columns and who was wanted.
    """

    X: Array
    Y: Array
    error_estimate: float | None = None
    choices: dict[tuple[Operation, int, str], str] = field(default_factory=dict, repr=False)
    _memories: dict[type, Any] = field(default_factory=dict, repr=False)

    def memory(self, kind: type[Memory]) -> Memory:
        """Return what a backend keeps here: one object of its own class, made empty when first asked for."""
        # By class: a backend that is given another's memory would read what it did not write.
        found = self._memories.get(kind)
        if found is None:
            found = self._memories.setdefault(kind, kind())
        return found


@dataclass(frozen=True)
class Request:
    """Everything a choice of backend may depend on.

    Attributes
    ----------
    operation : Operation
    kernel : kernel
        With numeric scales.
    n, m, d, t : int
        Targets, sources, features, columns.
    dtype, library, device : str
        Of the points, as in "float32", "numpy", "cpu".
    tol : float or None
        Accuracy asked; None is rounding accuracy.
    precision : str
        How products of points are multiplied.
    clouds : Clouds, optional
        The points; None in a question that is asked before there are any, which cannot run.
    """

    operation: Operation
    kernel: AbstractKernel
    n: int
    m: int
    d: int
    t: int
    dtype: str
    library: str
    device: str
    tol: float | None
    precision: str = "fp32"
    clouds: Clouds | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        return (
            f"{self.operation} for {self.n} x {self.m} points in {self.d} dimension{'s' * (self.d > 1)} "
            f"({self.dtype}, {self.library} on {self.device})"
        )
