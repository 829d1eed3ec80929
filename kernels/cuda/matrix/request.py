"""What sums without a tile in memory share: their request, points packed once, and how splits of the sources are added."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from gpukoop.kernels.arrays import Array
from gpukoop.kernels.cuda.matrix import packing
from gpukoop.kernels.cuda.matrix.cublas import AbstractEngine
from gpukoop.kernels.formula.profile import Trace

# Blocks that a launch should have: some four waves of two blocks on 132 multiprocessors.
BLOCKS = 1024


@dataclass(frozen=True)
class AbstractSums(ABC):
    """A request: points as they came and centred, pre-scaled ones, weights (m, t), or their logarithms in base two, and ``cut``.

    ``memory`` belongs to these points: what is packed of them is made once.
    """

    engine: AbstractEngine
    trace: Trace
    label: str
    op: str
    X: Array
    Y: Array
    x: Array
    y: Array
    V: Array
    cut: float
    memory: dict[Any, Any]

    @property
    def xp(self) -> ModuleType:
        """The array library."""
        return self.engine.xp

    @abstractmethod
    def result(self) -> dict[str, Array]:
        """Return "value", (n, t), and "slope", (n, t, d), as far as they are asked for, by name."""

    def _kept(self, *key: Any, make: Callable[[], Any]) -> Any:
        """Return what was made of these points, at their pre-scaling, under this key."""
        # The pre-scaling belongs to the kernel: another one is another set of numbers.
        key = (self.trace.prescale, *key)
        if key not in self.memory:
            self.memory[key] = make()
        return self.memory[key]


def pad(x: Array, step: int, xp: ModuleType) -> Array:
    """Return points with copies of the last one, as many as fill blocks."""
    more = packing.padded(len(x), step) - len(x)
    return xp.concatenate([x, xp.repeat(x[-1:], more, axis=0)]) if more else x


def logarithm(totals: Array, peaks: Array, xp: ModuleType) -> Array:
    """Return log2 of sums over splits, (n,), -inf without any weight, from those of each, (splits, n), over 2^peak."""
    # References of splits differ; in float64 from here on, where there are n numbers and not n m.
    peak = peaks.max(axis=0)
    with np.errstate(divide="ignore"):
        return peak + xp.log2((totals * xp.exp2(peaks - peak)).sum(axis=0))
