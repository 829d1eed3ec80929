"""The launches that make what depends on the points alone (:mod:`gpukoop.kernels.cuda.points`), and their buffers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gpukoop.kernels.cuda.form import limits
from gpukoop.kernels.cuda.program import Program
from gpukoop.kernels.cuda.specification import BLOCK, MEASURED, Points, padded


class Launch(NamedTuple):
    """One launch: entry name, grid, block, bytes of dynamic shared memory, names of the arguments."""

    entry: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int
    args: tuple[str, ...]


@dataclass(frozen=True)
class Clouds:
    """The sizes of two clouds of points, or of one (``same``)."""

    n: int
    m: int
    d: int
    dtype: str
    same: bool


@dataclass(frozen=True)
class Packing:
    """Copies of the points for one pre-scaling, ``forms`` of q and a frame; ``suffix`` tells those of several terms apart."""

    clouds: Clouds
    prescale: float
    forms: tuple[str, ...]
    wide: bool
    tol: float | None
    block: int = BLOCK
    suffix: str = ""

    def name(self, base: str) -> str:
        """Return the name of a buffer; sources that are targets have their buffers."""
        if self.clouds.same:
            base = {"y": "x", "yy": "xx", "Y": "X"}.get(base, base)
        return base if base in ("X", "Y", "n", "m", "more", "blocks") else base + self.suffix

    @property
    def key(self) -> tuple[object, ...]:
        """What makes two packings of the same clouds the same."""
        # Sums of different kernels and operations share a packing: only the pre-scaling and the layout are in the copies.
        return self.prescale, self.forms, self.wide

    def named(self, buffers: dict[str, Any]) -> dict[str, Any]:
        """Return buffers by the names that this packing's launches have for them."""
        return {self.name(k): a for k, a in buffers.items()}

    @property
    def measured(self) -> bool:
        """Whether the points decide anything."""
        # With one form there is nothing to decide and nothing to measure, and a launch is saved.
        return len(self.forms) > 1

    @property
    def points(self) -> int:
        """How many points are copied."""
        return self.clouds.n + (0 if self.clouds.same else self.clouds.m)

    @property
    def blocks(self) -> int:
        """Blocks that measure."""
        return min(MEASURED, -(-self.points // self.block))

    @property
    def programs(self) -> dict[str, Program]:
        """The programs by entry."""
        c, steps = self.clouds, (["measure"] if self.measured else []) + ["pack"]
        forms = {"measure": (), "pack": self.forms}
        of = {s: (s, c.dtype, c.d, forms[s], self.wide and s == "pack", self.block) for s in steps}
        found = (Program(Points(*of[step])) for step in steps)
        return {program.name: program for program in found}

    @property
    def made(self) -> dict[str, tuple[int, str]]:
        """Sizes and dtypes of what is made, by name without suffix."""
        c = self.clouds
        width = padded(c.d) if self.wide else c.d
        found = {"x": (c.n * width, c.dtype), "xx": (c.n if self.wide else 1, c.dtype)}
        if not c.same:
            # One cloud is packed once, and its sources are read through the targets' buffers.
            found |= {"y": (c.m * width, c.dtype), "yy": (c.m if self.wide else 1, c.dtype)}
        return found | {
            "centre": (c.d, "float64"),
            "found": (2 * self.blocks, "float64"),
            "pick": (1, "int32"),
        }

    @property
    def buffers(self) -> dict[str, tuple[int, str]]:
        """Sizes and dtypes of what is made, by name."""
        return self.named(self.made)

    @property
    def scalars(self) -> dict[str, np.generic]:
        """The numbers among the arguments, by name."""
        c = self.clouds
        narrow, near = limits(self.tol, c.m, c.dtype)
        found = {"scale": self.prescale, "narrow": narrow, "near": near}
        sizes = {"n": c.n, "m": c.m, "more": self.points - c.n}
        sizes["blocks"] = self.blocks
        # In float64 whatever the points are: limits are compared with what was measured in float64.
        numbers: dict[str, np.generic] = {self.name(k): np.float64(v) for k, v in found.items()}
        return numbers | {k: np.uint64(v) for k, v in sizes.items()}

    @property
    def launches(self) -> list[Launch]:
        """The launches in order."""
        block = (self.block, 1, 1)
        grids = {"measure": self.blocks, "pack": -(-self.points // self.block)}
        return [
            Launch(
                name,
                (grids[program.specification.step], 1, 1),  # type: ignore[attr-defined]
                block,
                0,
                tuple(self.name(a) for a, _ in program.specification.arguments),
            )
            for name, program in self.programs.items()
        ]
