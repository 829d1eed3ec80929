"""The plan of a CUDA reduction: programs, launches, buffers, and how results are read back.

A plan knows sizes, not data. Every form that may be needed is launched; a device array ``pick`` says which one works, and
the others return at once. So the choice can depend on the data without a round trip to the host.

========== ===========================================================================
part       a term of a kernel under log-sum-exp; otherwise the whole kernel
pass       columns of V that share one exponential
split      sources that one row of blocks visits; partial results are summed in order
========== ===========================================================================
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np

from gpukoop.kernels.arrays import Array
from gpukoop.kernels.cuda.form import forms, slope_parts
from gpukoop.kernels.cuda.functions import Functions
from gpukoop.kernels.cuda.packing import Clouds, Launch, Packing
from gpukoop.kernels.cuda.pairs.grid import CAPACITY, MULTIPROCESSORS, split
from gpukoop.kernels.cuda.pairs.shape import columns, specify
from gpukoop.kernels.cuda.program import Program, label
from gpukoop.kernels.cuda.specification import (
    BLOCK,
    FORMS,
    OWN,
    WIDEST_TILE,
    Finish,
    Specification,
)
from gpukoop.kernels.formula.profile import AbstractKernel, KernelSum, Trace, trace
from gpukoop.kernels.operation import Operation


@dataclass(frozen=True)
class Sizes:
    """What a plan is made for: the operation, the clouds, columns, accuracy, and how the device is filled."""

    operation: Operation
    clouds: Clouds
    t: int
    tol: float | None = None
    only: tuple[str, ...] = FORMS
    block: int = BLOCK
    listed: bool = False
    capacity: int = CAPACITY
    multiprocessors: int = MULTIPROCESSORS


class AbstractPart:
    """Buffers and launches of one trace; ``suffix`` keeps names of several parts apart."""

    def __init__(self, sizes: Sizes, kernel: AbstractKernel, suffix: str) -> None:
        self.sizes, self.suffix = sizes, suffix
        self.label = label(kernel)
        self.trace: Trace = trace(kernel)
        c = sizes.clouds
        self.offered = forms(self.trace, sizes.operation, c.d)
        self.forms = tuple(f for f in self.offered if f in sizes.only) or self.offered[-1:]
        self.functions = Functions(self.trace, sizes.operation)
        self.wide = c.d > WIDEST_TILE
        self.packing = Packing(
            c, self.trace.prescale, self.forms, self.wide, sizes.tol, sizes.block, suffix
        )

    def name(self, base: str) -> str:
        """Return the name of a buffer of this part."""
        return self.packing.name(base)

    def program(self, specification: Specification) -> Program:
        """Return a program over pairs of this part's kernel."""
        return Program(specification, self.functions, self.label)

    def scalar_names(self, form: str) -> tuple[str, ...]:
        """Return the names of the tuple of scalars of one form."""
        own = (f"{name}_{form}" for name in OWN)
        return tuple(f"{name}{self.suffix}" for name in (*own, *self.trace.symbols))

    def scalar_values(self) -> dict[str, np.generic]:
        """Return the numbers of the kernel and of the forms."""
        real, scale = np.dtype(self.sizes.clouds.dtype).type, self.trace.prescale
        operation = self.sizes.operation
        number = slope_parts(self.trace, operation.log)[0] if operation.slope else 0.0
        found: dict[str, np.generic] = {}
        for form in self.forms:
            power = 2 if form == "exact" else 1
            values = (scale**2, 2.0 * number * scale**power, *self.trace.values)
            # Forms hold q in different units, so their constants differ by powers of the scale.
            found |= zip(self.scalar_names(form), map(real, values), strict=True)
        return found


class Part(AbstractPart):
    """The one-sided sums of one trace."""

    def __init__(self, sizes: Sizes, kernel: AbstractKernel, suffix: str = "") -> None:
        super().__init__(sizes, kernel, suffix)
        c, operation = sizes.clouds, sizes.operation
        self.pass_columns = columns(operation, c.d, sizes.t, c.dtype)
        self.passes = -(-sizes.t // self.pass_columns)
        # In chunks the terms of a sum of kernels together are as long as a power.
        heavy = self.functions.heavy or (self.wide and len(kernel.terms) > 1)
        how = c.d, self.pass_columns, sizes.block, sizes.listed, heavy
        self.programs = {
            form: self.program(specify(operation, c.dtype, form, *how)) for form in self.forms
        }
        self.shape = specify(operation, c.dtype, self.forms[-1], *how)
        self.finish = Program(Finish(operation, c.dtype, c.d, self.wide))
        self.rows_of_block = sizes.block * self.shape.targets
        self.rows = -(-c.n // self.rows_of_block)
        self.tiles = -(-c.m // self.shape.tile)
        # Lists differ in length: that of targets far from everything has all tiles. Short pieces even them out.
        capacity = sizes.capacity * (16 if sizes.listed else 1)
        shared = None if sizes.listed else sizes.multiprocessors
        self.per, self.splits = split(self.rows, self.tiles, capacity, shared)

    @property
    def finishes(self) -> bool:
        """Whether a second pass is needed: splits are joined, logarithms taken, slopes of wide frames turned."""
        operation = self.sizes.operation
        return operation.log or self.splits > 1 or (self.wide and operation.slope)

    @cached_property
    def results(self) -> dict[str, int]:
        """The outputs and their numbers a target."""
        operation, t, d = self.sizes.operation, self.sizes.t, self.sizes.clouds.d
        found = {"value": t} if operation.value else {}
        return found | ({"slope": t * d} if operation.slope else {})

    @property
    def buffers(self) -> dict[str, tuple[int, str]]:
        """Sizes and dtypes of outputs and partial results, by name."""
        c, dtype = self.sizes.clouds, self.sizes.clouds.dtype
        widths = dict(self.results)
        if self.finishes:
            # Partial results take O(n splits) memory: atomics would save it and lose the order of additions.
            widths |= {f"part_{o}": self.splits * width for o, width in self.results.items()}
        if self.sizes.operation.log:
            widths["part_top"] = self.splits
        if self.wide and self.sizes.operation.slope:
            widths["correction"] = self.splits * c.d
        return {self.name(o): (c.n * width, dtype) for o, width in widths.items()}

    @property
    def scalars(self) -> dict[str, np.generic]:
        """The numbers among the arguments, by name."""
        sizes = {"per": self.per, "tiles": self.tiles, "splits": self.splits}
        found: dict[str, np.generic] = {self.name(k): np.uint64(v) for k, v in sizes.items()}
        found["columns"] = np.uint64(self.sizes.t)
        for i in range(self.passes):
            found[f"column_{i}"] = np.uint64(i * self.pass_columns)
        return found | self.scalar_values()

    def _args(self, program: Program, known: dict[str, str]) -> tuple[str, ...]:
        """Return the buffers of a program's arguments: those in ``known``, of their own names, or one that is never used."""
        available = {*self.buffers, *self.packing.buffers, *self.scalars, "n", "m", "v"}
        available |= {self.name(o) for o in ("bounds", "visits") if self.sizes.listed}
        args: list[str] = []
        for argument, kind in program.specification.arguments:
            if kind == "scalars":
                args += self.scalar_names(program.specification.form)  # type: ignore[attr-defined]
                continue
            shared = known.get(argument, argument)
            own = shared if shared in available else self.name(shared)
            args.append(own if own in available else f"unused_{kind}")
        return tuple(args)

    @property
    def launches(self) -> list[Launch]:
        """The launches in order."""
        r, found = self.sizes, []
        partial = {o: f"part_{o}" for o in ("top", "value", "slope")} if self.finishes else {}
        for i in range(self.passes):
            for program in self.programs.values():
                args = self._args(program, partial | {"column": f"column_{i}"})
                found.append(
                    Launch(program.name, (self.rows, self.splits, 1), (r.block, 1, 1), 0, args)
                )
        if self.finishes:
            known = {f"{o}_part": f"part_{o}" for o in ("top", "value", "slope")}
            count = r.clouds.n * (1 if r.operation.log else sum(self.results.values()))
            args = self._args(self.finish, known)
            found.append(
                Launch(self.finish.name, (-(-count // BLOCK), 1, 1), (BLOCK, 1, 1), 0, args)
            )
        return found

    def all_programs(self) -> list[Program]:
        """Return every program that sizes may need, the pair loops first."""
        return [*self.programs.values(), self.finish]

    @cached_property
    def shapes(self) -> list[tuple[str, str, tuple[int, ...]]]:
        """Outputs: what they are, their buffers, their shapes (n, t) and (n, t, d)."""
        n, t, d = self.sizes.clouds.n, self.sizes.t, self.sizes.clouds.d
        shapes = {"value": (n, t), "slope": (n, t, d)}
        return [(o, self.name(o), shapes[o]) for o in self.results]

    def read(self, buffers: dict[str, Array]) -> dict[str, Array]:
        """Return the outputs as arrays."""
        return {o: buffers[name].reshape(shape) for o, name, shape in self.shapes}


class AbstractPlan:
    """How one reduction of given sizes runs on a CUDA device.

    Attributes
    ----------
    launches : list of Launch
        In order: (entry, grid, block, shared, args), ``args`` the names of the buffers.
    """

    parts: list[Any]
    sizes: Sizes

    @cached_property
    def programs(self) -> dict[str, Program]:
        """The programs of the launches, by entry."""
        found: dict[str, Program] = {}
        for part in self.parts:
            found |= part.packing.programs | {p.name: p for p in part.all_programs()}
        return found

    @cached_property
    def packing(self) -> list[Launch]:
        """The launches that depend on the points alone."""
        return [launch for part in self.parts for launch in part.packing.launches]

    @cached_property
    def summing(self) -> list[Launch]:
        """The launches that depend on the weights."""
        return [launch for part in self.parts for launch in part.launches]

    @property
    def launches(self) -> list[Launch]:
        """All launches in order."""
        return [*self.packing, *self.summing]

    @cached_property
    def scalars(self) -> dict[str, np.generic]:
        """The numbers among the arguments, by name."""
        found: dict[str, np.generic] = {}
        for part in self.parts:
            found |= part.packing.scalars | part.scalars
        return found

    @cached_property
    def kept(self) -> dict[str, tuple[int, str]]:
        """Sizes and dtypes of what depends on the points alone."""
        found: dict[str, tuple[int, str]] = {}
        for part in self.parts:
            found |= part.packing.buffers
        return found

    @cached_property
    def fresh(self) -> dict[str, tuple[int, str]]:
        """Sizes and dtypes of outputs and partial results."""
        found: dict[str, tuple[int, str]] = {}
        for part in self.parts:
            found |= part.buffers
        return found

    @cached_property
    def unused(self) -> dict[str, tuple[int, str]]:
        """Buffers of one number for arguments that a launch does not use."""
        names = {a for launch in self.launches for a in launch.args if a.startswith("unused_")}
        kinds = {name: name.removeprefix("unused_") for name in names}
        return {a: (1, self.sizes.clouds.dtype if k == "real" else k) for a, k in kinds.items()}

    def pack(self, X: Array, Y: Array, V: Array, xp: ModuleType = np) -> dict[str, Array]:
        """Return the buffers and scalars of all launches by name.

        Parameters
        ----------
        X, Y : arrays of shape (n, d) and (m, d)
            The same object where the plan has one cloud.
        V : array of shape (m,) or (m, t)
            Weights; logarithms of them for log-sum-exp.
        """
        dtype = self.sizes.clouds.dtype
        points = {"X": X, "v": V} if self.sizes.clouds.same else {"X": X, "Y": Y, "v": V}
        given = {k: xp.ascontiguousarray(a, dtype).ravel() for k, a in points.items()}
        sizes = (self.kept | self.fresh | self.unused).items()
        return self.scalars | given | {name: xp.empty(*size) for name, size in sizes}

    def unpack(self, buffers: dict[str, Array], xp: ModuleType = np, vector: bool = False) -> Any:
        """Return the result: (n, t) and (n, t, d), without t if ``vector`` or under a log-sum-exp."""
        outs = [part.read(buffers) for part in self.parts]
        found = join(outs, xp) if len(outs) > 1 else outs[0]
        if vector or self.sizes.operation.log:
            found = {o: a[:, 0] for o, a in found.items()}
        order = [found[o] for o in ("value", "slope") if o in found]
        return order[0] if len(order) == 1 else tuple(order)


class Plan(AbstractPlan):
    """One-sided sums: every target visits every source, or those that a list names."""

    def __init__(self, kernel: AbstractKernel, sizes: Sizes) -> None:
        self.sizes = sizes
        # A sum of kernels has no logarithm in closed form: its terms are separate sums, joined in the logarithm.
        if sizes.operation.log and len(kernel.terms) > 1:
            terms = enumerate(kernel.terms)
            self.parts = [Part(sizes, KernelSum(((c, k),)), f"_{i}") for i, (c, k) in terms]
        else:
            self.parts = [Part(sizes, kernel)]


def join(outs: list[dict[str, Array]], xp: ModuleType) -> dict[str, Array]:
    """Return the log-sum-exp of a sum of kernels from those of its terms."""
    values = xp.stack([o["value"] for o in outs])  # (parts, n, 1)
    # -inf everywhere is shifted by nothing: -inf minus itself is NaN.
    top = values.max(axis=0)
    top = xp.where(top == -math.inf, 0.0, top).astype(values.dtype)
    shares = xp.exp(values - top)
    total = shares.sum(axis=0)
    with np.errstate(divide="ignore"):
        found = {"value": top + xp.log(total)}
    if "slope" in outs[0]:
        slopes = xp.stack([o["slope"] for o in outs])  # (parts, n, 1, d)
        total = xp.where(total == 0, 1.0, total).astype(values.dtype)
        found["slope"] = (shares[..., None] * slopes).sum(axis=0) / total[..., None]
    return found
