"""One trace of a CUDA reduction: its device functions, launches and buffers.

========== ===========================================================================
part       a term of a kernel under log-sum-exp; otherwise the whole kernel
chunk      columns of V that share one pass
split      sources that one row of blocks visits; partial results are summed in order
========== ===========================================================================
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from gpukoop.kernels.cuda.form import FORMS, forms, merged, slope_parts
from gpukoop.kernels.cuda.pairs.finish import blocks, logsumexp_source, sum_source
from gpukoop.kernels.cuda.pairs.shape import Shape, shape, wide_shape
from gpukoop.kernels.cuda.pairs.tile import tile_source
from gpukoop.kernels.cuda.pairs.wide import wide_source
from gpukoop.kernels.cuda.source import (
    BLOCK,
    WIDEST_COLUMNS,
    WIDEST_TILE,
    Spec,
    entry_name,
    label,
    module_text,
)
from gpukoop.kernels.formula.profile import AbstractKernel, Trace, trace

Array = Any

# Blocks that fill the largest devices about twice; fewer are made up for by splitting the sources.
FULL = 512
# Half-width of the cloud, in pre-scaled units, up to which scaled coordinates lose nothing that the sum does
# not lose anyway; see `Part.pick`.
NARROW = 16.0


class Launch(NamedTuple):
    """One launch: entry name, grid, block, bytes of dynamic shared memory, names of the arguments."""

    entry: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int
    args: tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """One device function: its module text and its argument kinds.

    "array", "pick", "bounds", "visits", "size" or "real".
    """

    name: str
    source: str
    kinds: tuple[str, ...]


def columns(op: str, d: int, t: int, dtype: str) -> int:
    """Return how many columns share one pass."""
    if "logsumexp" in op:
        return 1
    most = WIDEST_COLUMNS
    if op != "product":
        most = max(1, 24 // (d + 1))
    if d > WIDEST_TILE:
        # beside 32 squared distances; in float64 both take two registers, and its functions many more
        most = (8 if dtype == "float32" else 3) if op == "product" else 1
    passes = -(-t // most)
    return -(-t // passes)


@dataclass(frozen=True)
class Sizes:
    """What a plan is asked for; ``complete`` lists the second pass even where these sizes need none."""

    op: str
    n: int
    m: int
    d: int
    t: int
    dtype: str
    tol: float | None = None
    block: int = BLOCK
    simulator: bool = False
    complete: bool = False
    listed: bool = False


class Part:
    """One trace with its buffers and launches; ``suffix`` keeps names of several parts apart."""

    def __init__(
        self, plan: Sizes, kernel: AbstractKernel, suffix: str, only: tuple[str, ...]
    ) -> None:
        self.plan, self.suffix = plan, suffix
        self.label = label(kernel)
        self.trace: Trace = trace(kernel)
        self.offered = offered = forms(self.trace, plan.op, plan.d)
        self.forms = tuple(f for f in offered if f in only) or offered[-1:]
        self.chunk = columns(plan.op, plan.d, plan.t, plan.dtype)
        self.chunks = -(-plan.t // self.chunk)
        self.specs = {
            f: Spec(plan.op, plan.d, self.chunk, plan.dtype, f, plan.block, plan.listed)
            for f in self.forms
        }
        self.spec = self.specs[self.forms[-1]]
        shaper = wide_shape if self.spec.wide else shape
        self.shape: Shape = shaper(self.trace, self.spec)
        self.rows_of_block = plan.block * self.shape.targets
        self.tiles = -(-plan.m // self.shape.tile)
        self.rows = -(-plan.n // self.rows_of_block)
        # Lists differ in length: that of targets far from everything has all tiles. Short pieces even them out.
        wanted = FULL * (8 if plan.listed else 1)
        self.per = -(-self.tiles // min(self.tiles, max(1, wanted // self.rows), 65535))
        self.splits = -(-self.tiles // self.per)
        self.bias = "dot" in offered
        self.merged = self.spec.exponent and merged(self.trace)

    def name(self, base: str, chunk: int | None = None) -> str:
        """Return the name of a buffer."""
        tail = f"_{chunk}" if chunk is not None and self.chunks > 1 else ""
        return base + self.suffix + tail

    @cached_property
    def widths(self) -> dict[str, int]:
        """Numbers a target of every first-pass output."""
        sizes = {"top": 1, "sum": 1, "value": self.chunk, "slope": self.chunk * self.plan.d}
        return {o: sizes[o] for o in self.spec.outputs}

    @property
    def finishes(self) -> bool:
        """Whether a second pass is needed."""
        return self.spec.exponent or self.splits > 1

    def results(self) -> dict[str, int]:
        """Return the final outputs and their numbers a target."""
        if not self.spec.exponent:
            return self.widths
        return {"value": 1} | ({"slope": self.plan.d} if self.spec.slope else {})

    # -- device functions -----------------------------------------------------------------------
    def entries(self) -> list[Entry]:
        """Return the device functions of this part, the pair loops first."""
        found: list[Entry] = []

        def add(name: str, body: str, kinds: tuple[str, ...]) -> None:
            text = module_text(body, self.plan.dtype, self.plan.simulator)
            found.append(Entry(name, text, kinds))

        for spec in self.specs.values():
            name = entry_name(self.label, spec)
            write = wide_source if spec.wide else tile_source
            kinds = (
                *("array", "array", "pick", *spec.lists),
                *("array" for _ in spec.outputs),
                *("array" for _ in spec.scratch),
                *("size" for _ in spec.sizes),
                *("real" for _ in (*spec.scalars, *self.trace.symbols)),
            )
            add(name, write(self.trace, spec, name), kinds)
        if self.spec.exponent:
            name = self.finish_name
            text = logsumexp_source(name, self.plan.d, self.spec.slope, self.spec.wide)
            arrays = 5 if self.spec.slope else 3
            add(name, text, ("array",) * arrays + ("size", "size"))
        elif self.finishes or self.plan.complete:
            text = sum_source(self.finish_name)
            add(self.finish_name, text, ("array", "array", "size", "size"))
        return found

    @property
    def finish_name(self) -> str:
        """Name of the second pass."""
        if self.spec.exponent:
            slope = f"_and_gradient_d{self.plan.d}" if self.spec.slope else ""
            return f"join_logsumexp{slope}_{self.plan.dtype}"
        return f"sum_splits_{self.plan.dtype}"

    def launches(self) -> list[Launch]:
        """Return the launches in order."""
        p, found = self.plan, []
        block = (p.block, 1, 1)
        for c in range(self.chunks):
            for form, spec in self.specs.items():
                partial = "part" if self.finishes else "out"
                args = [self.name("x"), self.name("s", c), self.name("pick")]
                args += [self.name(o) for o in spec.lists]
                args += [self.name(f"{partial}_{o}", c) for o in spec.outputs]
                args += [self.name(o, c) for o in spec.scratch]
                args += [s if s == "n" else self.name(s) for s in spec.sizes]
                args += [self.name(f"{s}_{form}" if s == "factor" else s) for s in spec.scalars]
                args += [self.name(s) for s in self.trace.symbols]
                grid = (self.rows, self.splits, 1)
                found.append(Launch(entry_name(self.label, spec), grid, block, 0, tuple(args)))
            if self.spec.exponent:
                args = [self.name(f"part_{o}", c) for o in self.spec.outputs]
                args += [self.name(f"out_{o}", c) for o in self.results()]
                args += ["n", self.name("splits")]
                found.append(
                    Launch(self.finish_name, (blocks(p.n), 1, 1), (BLOCK, 1, 1), 0, tuple(args))
                )
            elif self.finishes:
                for o, width in self.widths.items():
                    args = [self.name(f"part_{o}", c), self.name(f"out_{o}", c)]
                    args += [self.name(f"width_{o}"), self.name("splits")]
                    grid = (blocks(p.n * width), 1, 1)
                    found.append(Launch(self.finish_name, grid, (BLOCK, 1, 1), 0, tuple(args)))
        return found

    # -- data -----------------------------------------------------------------------------------
    def pick(self, half: Array, far: Array, xp: ModuleType) -> Array:
        """Return the index of the form for a cloud of half-width ``half`` with squared radius ``far`` (scaled).

        The dot form errs by at most ln 2 * 2 eps * far relative to the kernel; it is taken below the accuracy
        asked. Scaling rounds a coordinate by eps half / 2: unseen next to the rounding of a sum of m terms
        when half < sqrt(m) / 2.
        """
        eps = float(np.finfo(self.plan.dtype).eps)
        asked = max(self.plan.tol or 0.0, 8 * eps)
        narrow = min(NARROW, 0.5 * math.sqrt(self.plan.m))
        chosen = FORMS.index("exact")
        if "difference" in self.forms:
            chosen = xp.where(half <= narrow, FORMS.index("difference"), chosen)
        if "dot" in self.forms:
            chosen = xp.where(2 * math.log(2.0) * eps * far <= asked, FORMS.index("dot"), chosen)
        only = FORMS.index(self.forms[0]) if len(self.forms) == 1 else chosen
        return xp.asarray(only, dtype=xp.int32).reshape(1)

    def pack(self, X: Array, Y: Array, V: Array, xp: ModuleType) -> dict[str, Array]:
        """Return the buffers of this part; X, Y in float64, V (m, t) in float64."""
        p, dtype = self.plan, xp.dtype(self.plan.dtype)
        scale = self.trace.prescale
        lowest = xp.minimum(X.min(axis=0), Y.min(axis=0))
        highest = xp.maximum(X.max(axis=0), Y.max(axis=0))
        centre = lowest + (highest - lowest) / 2
        half = scale * (highest - lowest).max() / 2
        far = scale**2 * xp.maximum(
            ((X - centre) ** 2).sum(1).max(), ((Y - centre) ** 2).sum(1).max()
        )
        pick = self.pick(half, far, xp)
        # The exact form takes the numbers as they came: (x - 0) * 1 is x.
        exact = pick == FORMS.index("exact")
        origin = xp.where(exact, 0.0, centre)
        stretch = xp.where(exact, 1.0, scale)
        x = ((X - origin) * stretch).astype(dtype)
        y = ((Y - origin) * stretch).astype(dtype)
        out: dict[str, Array] = {
            self.name("x"): self.order_targets(x, xp),
            self.name("pick"): pick,
            self.name("per"): np.uint64(self.per),
            self.name("tiles"): np.uint64(self.tiles),
            self.name("splits"): np.uint64(self.splits),
            self.name("step"): np.uint64(self.shape.record),
        }
        real = np.dtype(p.dtype).type
        for name, value in zip(self.trace.symbols, self.trace.values, strict=True):
            out[self.name(name)] = real(value)
        if self.spec.slope:
            number = slope_parts(self.trace, self.spec.exponent)[0]
            for form in self.forms:
                power = 2 if form == "exact" else 1
                out[self.name(f"factor_{form}")] = real(2.0 * number * scale**power)
        if "stretch" in self.spec.scalars:
            out[self.name("stretch")] = real(scale**2)
        V = V / math.log(2.0) if self.spec.exponent else V
        for c in range(self.chunks):
            weights = V[:, c * self.chunk : (c + 1) * self.chunk]
            out[self.name("s", c)] = self.records(y, weights, xp)
            for o, width in self.widths.items():
                if self.finishes:
                    out[self.name(f"part_{o}", c)] = xp.empty(self.splits * p.n * width, dtype)
            for o, width in self.results().items():
                out[self.name(f"out_{o}", c)] = xp.empty(p.n * width, dtype)
                out[self.name(f"width_{o}")] = np.uint64(p.n * width)
            for o in self.spec.scratch:
                out[self.name(o, c)] = xp.zeros(self.splits * p.n * p.d, dtype)
        return out

    def order_targets(self, x: Array, xp: ModuleType) -> Array:
        """Return the targets in the order in which threads read them."""
        return xp.ascontiguousarray(x.T if self.spec.wide else x).ravel()

    def records(self, y: Array, weights: Array, xp: ModuleType) -> Array:
        """Return the records of the sources, padded with copies of the last source that have no weight."""
        m, d = y.shape
        t, s = self.chunk, self.shape
        table = xp.zeros((self.tiles * s.tile, s.record), y.dtype)
        table[:m, :d] = y
        table[m:, :d] = y[-1]
        table[:m, d : d + weights.shape[1]] = weights
        if self.spec.exponent:
            table[m:, d] = -math.inf
        if self.bias:
            norm = (y.astype(float) ** 2).sum(1)
            table[:m, d + t] = weights[:, 0] - norm if self.merged else norm
            table[m:, d + t] = -math.inf if self.merged else norm[-1]
        if (
            self.spec.wide
        ):  # tiles of features first: a thread reads one feature of all sources of a tile
            table = table.reshape(self.tiles, s.tile, s.record).transpose(0, 2, 1)
        return xp.ascontiguousarray(table).ravel()

    def unpack(self, buffers: dict[str, Array], xp: ModuleType) -> dict[str, Array]:
        """Return the outputs as arrays (n, t) and (n, t, d)."""
        n, d, t = self.plan.n, self.plan.d, self.plan.t
        found = {}
        for o in self.results():
            tail = (d,) if o == "slope" else ()
            pieces = [buffers[self.name(f"out_{o}", c)] for c in range(self.chunks)]
            if (
                o == "slope" and self.spec.wide and not self.spec.exponent
            ):  # (d, n), one column a pass
                pieces = [a.reshape(d, n).T for a in pieces]
            pieces = [a.reshape(n, self.chunk, *tail) for a in pieces]
            whole = pieces[0] if len(pieces) == 1 else xp.concatenate(pieces, axis=1)
            found[o] = xp.ascontiguousarray(whole[:, :t])
        return found
