"""What follows a product of matrices on the device: inner products become kernel values, in one generated kernel.

A tile holds x_i . y_j of ``rows`` targets and ``count`` sources. A block of threads owns :data:`ROWS` targets, a thread
every ``block``-th source, so that neighbours read neighbours; norms and weights are loaded once for all rows. Sums go
down a tree in shared memory: no atomics, the same bits in any order of threads.

=================== ====================================================================================
operation           writes
=================== ====================================================================================
product             one column: weighted sums of the tile; more: phi in place, a second product follows
gradient            dphi in place, a second product with the sources follows; with a value both
logsumexp           (reference, sum of 2^(l - reference)) of the tile
... and gradient    the same with the largest l as reference, and 2^(l - reference) dphi / phi in place
=================== ====================================================================================

Close pairs, q < cut (n_x + n_y), would cancel: their q is summed from differences of the numbers as they came.
Such a pair is left out of the second product; the whole block adds its share of the gradient, in order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gpukoop.kernels.cuda.form import log2_phi
from gpukoop.kernels.cuda.matrix.text import LOWEST, CudaPrinter, Entry, Text, module_text, u
from gpukoop.kernels.cuda.program import label
from gpukoop.kernels.cuda.specification import BLOCK
from gpukoop.kernels.formula.expr import Expr
from gpukoop.kernels.formula.profile import AbstractKernel, Trace, trace

# Targets of a block: a norm and a weight of a source are read once for so many pairs.
ROWS = 4
SIZES = ("i0", "j0", "count", "at", "d", "t", "last_i", "last_j")


@dataclass(frozen=True)
class Epilogue:
    """One device function; its text depends on the number of columns only through ``columns``, more than one."""

    op: str
    columns: bool
    dtype: str
    block: int = BLOCK

    @property
    def value(self) -> bool:
        """Whether K @ v is asked for."""
        return self.op in ("product", "value_and_gradient")

    @property
    def slope(self) -> bool:
        """Whether a gradient is asked for."""
        return "gradient" in self.op

    @property
    def exponent(self) -> bool:
        """Whether weights are logarithms."""
        return "logsumexp" in self.op

    @property
    def sums(self) -> bool:
        """Whether row sums of the values are made here."""
        return self.value and not self.columns

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the arrays: tile, norms, points as they came, weights, outputs."""
        names: tuple[str, ...] = ("tile", "nx", "ny", "a", "b", "w")
        names += ("part",) if self.sums else ()
        names += ("top", "sum") if self.exponent else ()
        names += ("values",) if self.value and self.columns and self.slope else ()
        return names + (("close", "correction") if self.slope else ())

    def arguments(self, of: Trace) -> tuple[str, ...]:
        """Return the names of all arguments, in order."""
        return (*self.arrays, *SIZES, "cut", "stretch", *of.symbols)


class EpilogueWriter:
    """Write one epilogue. No register is called g0 or c0, as symbols of a trace are."""

    def __init__(self, of: Trace, spec: Epilogue) -> None:
        self.trace, self.spec, self.text = of, spec, Text()

    def write(self, name: str) -> str:
        """Return the source of the entry."""
        spec, text = self.spec, self.text
        rows = range(ROWS)
        text.add("@cuda.jit(fastmath=True, cache=True)")
        text.open(f"def {name}({', '.join(spec.arguments(self.trace))}):")
        if spec.sums or spec.exponent:
            # A number a thread and row: sums leave the block once, down a tree, instead of by atomics in the order of
            # arrival.
            text.add(f"totals = cuda.shared.array({ROWS * spec.block}, real)")
        if spec.exponent:
            text.add(f"peaks = cuda.shared.array({ROWS * spec.block}, real)")
        if spec.slope:
            text.add(f"stash = cuda.shared.array({ROWS * spec.block}, real)")
        text.add("tid = uint(cuda.threadIdx.x)", f"row = uint(cuda.blockIdx.x) * {u(ROWS)}")
        for r in rows:
            # Four rows a block: norm and weight of a source are loaded once for four pairs, and the tile, which is what the
            # launch waits for, is read by neighbouring threads.
            text.add(f"n{r} = nx[i0 + row + {u(r)}]", f"o{r} = (row + {u(r)}) * count")
            text.add(f"s{r}, e{r} = zero, zero")
            if spec.exponent:
                text.add(f"ref{r} = real({LOWEST!r})")
        # The tile is in memory anyway, so it is read twice: the maximum first, then weights that need no rescaling of slopes.
        if spec.op == "logsumexp_and_gradient":
            self.over_sources(self.largest)
            self.reduce(("peaks",))
            text.add(*(f"ref{r} = peaks[{u(r * spec.block)}]" for r in rows))
        self.over_sources(self.online if spec.op == "logsumexp" else self.weigh)
        if spec.sums or spec.exponent:
            self.reduce(("peaks", "totals") if spec.op == "logsumexp" else ("totals",))
            self.store()
        return str(text)

    def over_sources(self, body: Callable[[], None]) -> None:
        """Write a loop over the sources of this thread with q of all rows in registers."""
        spec, text, rows = self.spec, self.text, range(ROWS)
        text.add("j = tid")
        text.open("while j < count:")
        # One load of norm and weight serves four rows; the tile is then the only thing that a pair reads from memory.
        text.add("m = ny[j0 + j]")
        if spec.sums or spec.exponent:
            text.add("v = w[j0 + j]")
        text.add(*(f"dot{r} = tile[o{r} + j]" for r in rows))
        for r in rows:
            text.add(
                # n_x + n_y is kept beside q: what was lost in the difference is measured against it.
                f"z{r} = n{r} + m",
                f"q{r} = z{r} - (dot{r} + dot{r})",
                f"near{r} = q{r} < cut * z{r}",
            )
        # Pairs whose digits cancelled: summed again from the coordinates as they came, all rows of the group together, since a
        # divergent branch costs the warp the same.
        text.open(f"if {' | '.join(f'near{r}' for r in rows)}:")
        text.add(*(f"p{r} = min(i0 + row + {u(r)}, last_i) * d" for r in rows))
        text.add(*(f"dot{r} = zero" for r in rows))
        text.add("k = min(j0 + j, last_j) * d", "end = k + d")
        text.open("while k < end:")
        text.add("y = b[k]")
        for r in rows:
            text.add(f"h = a[p{r}] - y", f"dot{r} = dot{r} + h * h", f"p{r} = p{r} + k_1")
        text.add("k = k + k_1")
        text.close()
        # A select, not a branch: the rows of a group that were not close keep the q of their inner product.
        text.add(*(f"q{r} = stretch * dot{r} if near{r} else q{r}" for r in rows))
        text.close()
        body()
        text.add(f"j = j + {u(spec.block)}")
        text.close()

    def evaluate(self, r: int, tree: Expr | None, guard: bool) -> str:
        """Write the value of an expression in q of row r, zero at q = 0 if ``guard``."""
        if tree is None:
            raise ValueError("log-sum-exp needs a positive kernel of one term")
        # A printer for each row, with names of its own: rows stay independent, so their instructions overlap.
        value = self.text.evaluate(CudaPrinter(f"q{r}", self.spec.dtype), tree)
        return f"({value} if q{r} > zero else zero)" if guard else value

    def add(self, r: int, value: str) -> None:
        """Write a compensated addition to the sum of row r: a tile waits for memory, not for additions."""
        self.text.add(
            # Kahan 1965. `plus` is an addition that fast mathematics may not rearrange; with `+` the correction would be
            # folded to 0.
            f"y = plus({value}, -e{r})",
            f"z = plus(s{r}, y)",
            f"e{r} = plus(plus(z, -s{r}), -y)",
            f"s{r} = z",
        )

    def logarithm(self, r: int) -> None:
        """Write l = log2 of weight and kernel."""
        value = self.evaluate(r, log2_phi(self.trace), False)
        self.text.add(f"l{r} = v + {value}")

    def largest(self) -> None:
        """Write the running maximum of l."""
        for r in range(ROWS):
            self.logarithm(r)
            self.text.add(f"ref{r} = max(ref{r}, l{r})")

    def online(self) -> None:
        """Write one step of the online log-sum-exp; a reference that lags by 2**40 is raised, rarely."""
        text = self.text
        for r in range(ROWS):
            self.logarithm(r)
            # Raising the reference at every new maximum would rescale a logarithm of the sources' number of times; float32
            # holds a lag of 2^40.
            text.open(f"if l{r} - ref{r} > real(40.0):")
            text.add(f"g = exp2(ref{r} - l{r})", f"s{r} = s{r} * g", f"e{r} = e{r} * g")
            text.add(f"ref{r} = l{r}")
            text.close()
            self.add(r, f"exp2(l{r} - ref{r})")

    def weigh(self) -> None:
        """Write sums and what the second product takes."""
        spec, text, of = self.spec, self.text, self.trace
        for r in range(ROWS):
            factor = ""
            if spec.exponent:
                self.logarithm(r)
                text.add(f"a{r} = exp2(l{r} - ref{r})")
                self.add(r, f"a{r}")
                factor = f"a{r} * "
            if spec.value:
                value = self.evaluate(r, of.phi, of.singular)
                if spec.sums:
                    self.add(r, f"{value} * v")
                else:
                    text.add(f"{'values' if spec.slope else 'tile'}[o{r} + j] = {value}")
            if spec.slope:
                tree = of.log_slope if spec.exponent else of.dphi
                slope = self.evaluate(r, tree, of.kink or of.singular)
                text.add(
                    f"w{r} = {factor}{slope}",
                    # The second product reads the tile again: close pairs are left out of it and added as differences.
                    f"tile[o{r} + j] = zero if near{r} else w{r}",
                    f"w{r} = w{r} if near{r} & (q{r} > zero) else zero",
                    f"stash[{u(r * spec.block)} + tid] = w{r}",
                )
        if spec.slope:
            self.close_pairs()

    def close_pairs(self) -> None:
        """Write the gradient of close pairs: found by all, added pair after pair by the whole block, compensated."""
        spec, text = self.spec, self.text
        found = " | ".join(f"(w{r} != zero)" for r in range(ROWS))
        # One vote of the block: usual tiles have no close pair and pay a barrier, no loop.
        text.open(f"if cuda.syncthreads_or(np.int32({found})):")
        text.add("e = k_0")
        text.open(f"while e < {u(ROWS * spec.block)}:")
        text.add("g = stash[e]")
        # All threads read the same word, so all take the same way, and each adds its own features of the pair.
        text.open("if g != zero:")
        text.add(
            f"i = row + e // {u(spec.block)}",
            f"source = j0 + (j - tid) + e % {u(spec.block)}",
            "p = min(i0 + i, last_i) * d",
            "k = min(source, last_j) * d",
            "c = k_0",
        )
        text.open("while c < t:")
        weight = "g" if spec.exponent else "g * w[source * t + c]"
        text.add(f"h = {weight}", "f = tid")
        text.open("while f < d:")
        text.add(
            "o = (i * t + c) * d + f",
            "s = close[o]",
            "y = plus(h * (a[p + f] - b[k + f]), -correction[o])",
            # Compensated in memory: these are the pairs whose digits are worth most, and few enough for it.
            "z = plus(s, y)",
            "correction[o] = plus(plus(z, -s), -y)",
            "close[o] = z",
            f"f = f + {u(spec.block)}",
        )
        text.close()
        text.add("c = c + k_1")
        text.close(2)
        text.add("e = e + k_1")
        text.close()
        text.add("cuda.syncthreads()")
        text.close()

    def reduce(self, names: tuple[str, ...]) -> None:
        """Write the tree over the threads of a block: totals, references, or totals with their references."""
        spec, text = self.spec, self.text
        for r in range(ROWS):
            here = f"{u(r * spec.block)} + tid"
            text.add(*(f"{x}[{here}] = {'ref' if x == 'peaks' else 's'}{r}" for x in names))
        text.add("cuda.syncthreads()")
        # A tree in a fixed order, so that the result does not depend on which warp came first.
        half = spec.block // 2
        while half:
            text.open(f"if tid < {u(half)}:")
            for r in range(ROWS):
                here, there = f"{u(r * spec.block)} + tid", f"{u(r * spec.block + half)} + tid"
                if names == ("totals",):
                    text.add(f"totals[{here}] = totals[{here}] + totals[{there}]")
                elif names == ("peaks",):
                    text.add(f"peaks[{here}] = max(peaks[{here}], peaks[{there}])")
                else:
                    text.add(
                        f"g, h = peaks[{here}], peaks[{there}]",
                        # Two sums with different references: both are brought to the larger one, and neither factor exceeds
                        # one.
                        "z = max(g, h)",
                        f"totals[{here}] = totals[{here}] * exp2(g - z) + totals[{there}] * exp2(h - z)",
                        f"peaks[{here}] = z",
                    )
            text.close()
            text.add("cuda.syncthreads()")
            half //= 2

    def store(self) -> None:
        """Write the results of the tile, one thread a row."""
        text, first = self.text, f"tid * {u(self.spec.block)}"
        # A tile has an entry of its own in `part`, which the host adds up in float64 in the order of tiles.
        text.open(f"if tid < {u(ROWS)}:")
        if self.spec.exponent:
            text.add(
                f"top[at + row + tid] = peaks[{first}]", f"sum[at + row + tid] = totals[{first}]"
            )
        else:
            text.add(f"part[at + row + tid] = totals[{first}]")
        text.close()


def epilogue(kernel: AbstractKernel, spec: Epilogue, simulator: bool = False) -> Entry:
    """Return the device function of an epilogue; it serves any number of features."""
    of = trace(kernel)
    name = f"{label(kernel)}_{spec.op}_matrix{'_columns' if spec.columns else ''}_{spec.dtype}"
    text = module_text(EpilogueWriter(of, spec).write(name), spec.dtype, simulator)
    reals = len(of.symbols) + 2
    kinds = ("array",) * len(spec.arrays) + ("size",) * len(SIZES) + ("real",) * reals
    return Entry(name, text, kinds)
