"""What the CUDA backend keeps for one pair of clouds: their copies on the device, and calls that are ready to be made.

An operator holds its points and hands this memory down. Points are taken as they are at its first call: whoever changes
them in place makes a new operator, as flows do in every step.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gpukoop.kernels.arrays import Array
from gpukoop.kernels.operation import Operation


@dataclass
class Memory:
    """The memory of one operator.

    Attributes
    ----------
    calls : dict
        By operation and columns: a function of the weights.
    points : dict
        By pre-scaling, forms and frame: buffers on the device.
    matrix : dict
        What the path of products of matrices measured and chose (gpukoop.kernels.cuda.matrix).
    """

    calls: dict[tuple[Operation, int], Callable[[Array], Any]] = field(default_factory=dict)
    points: dict[tuple[Any, ...], Any] = field(default_factory=dict)
    matrix: dict[str, Any] = field(default_factory=dict)
    lock: Any = field(default_factory=threading.Lock, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing that belongs to this process."""
        return {}

    def __setstate__(self, _: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]
