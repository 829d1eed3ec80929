"""The pair loop of a CUDA reduction for points that fit into registers.

A block stages a tile of source records in shared memory; each thread keeps several targets in registers
and walks the tile, ``group`` sources at a time. Sums have three levels, so that a million sources cost no
digits: a group, a tile, and a compensated running total across tiles. No atomics: every target of every
split has one owner, and the result does not depend on the order of threads.

Differs from the obvious loop (one target a thread, exp of a distance, one accumulator): a shared load serves
4 to 8 targets, an index is an unsigned addition, an exponential is one instruction, a factor that is common
to all pairs is left to the end.

==== ========================= ==== =====================================
r    target of a thread        j    source of a group
k    feature                   a    accumulator: column, or column and feature
==== ========================= ==== =====================================
"""

from __future__ import annotations

from gpukoop.kernels.cuda.form import (
    FORMS,
    absorb_constant,
    gaussian_like,
    log2_phi,
    merged,
    slope_parts,
    smooth,
)
from gpukoop.kernels.cuda.pairs.shape import accumulators, shape
from gpukoop.kernels.cuda.source import CudaPrinter, Spec, Text, tile_range, u
from gpukoop.kernels.formula.expr import Number, mul, substitute
from gpukoop.kernels.formula.profile import Q, Trace

# A log-sum-exp is rescaled when a group exceeds 2**40 times its reference; float32 holds 2**127.
LAG = 2.0**40
# Reference before the first source: finite, so that b = -inf gives 2**-inf = 0 and never inf - inf.
LOWEST = -1e30


class TileWriter:
    """Write one entry of the first pass."""

    def __init__(self, trace: Trace, spec: Spec) -> None:
        self.trace, self.spec, self.shape = trace, spec, shape(trace, spec)
        self.text = Text()
        self.terms: dict[int, list[str]] = {}
        self.n_sums = accumulators(spec)
        self.merged = spec.exponent and merged(trace)
        self.shift = self.merged and spec.form == "dot"
        # Several sums skip the level of groups: it would cost each of them an addition a group.
        self.direct = self.n_sums > 1
        self.factor = slope_parts(trace, spec.exponent)[1] if spec.slope else Number(1.0)
        self.log2 = log2_phi(trace) if spec.exponent else Number(0.0)
        # Registers hold -q where the profile wants 2**-q, and c + q where it wants nothing but c + q.
        self.negative = not spec.exponent and smooth(trace.phi) and gaussian_like(trace.phi)
        trees = (trace.phi, self.log2, self.factor)
        self.offset = 0.0
        if self.negative:
            trees = tuple(substitute(tree, {Q: mul(-1.0, Q)}) for tree in trees)  # type: ignore[assignment]
        elif not (trace.kink or trace.singular or self.merged):
            self.offset, trees = absorb_constant(trees)  # type: ignore[assignment]
        self.phi, self.log2, self.factor = trees

    def targets(self) -> range:
        """Return the targets of a thread."""
        return range(self.shape.targets)

    def write(self, name: str) -> str:
        """Return the source of the entry."""
        spec, text, s = self.spec, self.text, self.shape
        outs = [f"out_{o}" for o in spec.outputs]
        args = ["x", "s", "pick", *spec.lists, *outs]
        args += [*spec.sizes, *spec.scalars, *self.trace.symbols]
        text.add("@cuda.jit(fastmath=True, cache=True)" if spec.block == 128 else "@cuda.jit")
        text.open(f"def {name}({', '.join(args)}):")
        text.add(f"tile = cuda.shared.array({s.tile * s.record}, real)")
        text.open(f"if pick[0] != {FORMS.index(spec.form)}:")
        text.add("return")
        text.close()
        text.add(
            "tid = uint(cuda.threadIdx.x)",
            f"row = uint(cuda.blockIdx.x) * {u(spec.block * s.targets)} + tid",
            "last = n - k_1",
        )
        self.load_targets()
        text.add(*tile_range(spec))
        text.open("while block < stop:")
        tile = "uint(visits[block])" if spec.listed else "block"
        text.add("cuda.syncthreads()", f"base = {tile} * {u(s.tile * s.record)}")
        text.add("w = tid")
        text.open(f"while w < {u(s.tile * s.record)}:")
        text.add("tile[w] = s[base + w]", f"w = w + {u(spec.block)}")
        text.close()
        text.add("cuda.syncthreads()")
        for r in self.targets():
            text.add(*(f"p{r}_{a} = zero" for a in range(self.n_sums)))
        end, step = u(s.tile * s.record), u(s.group * s.record)
        text.add("i = k_0")
        text.open(f"while i < {end}:")
        if spec.exponent:
            # The loop leaves itself for the rare case, so that the main path is one short body.
            text.open(f"while i < {end}:")
            self.exponent_group()
            text.add(f"i = i + {step}")
            text.close()
            text.open(f"if i < {end}:")
            for r in self.targets():
                self.raise_reference(r)
            text.add(f"i = i + {step}")
            text.close()
        else:
            self.weighted_group()
            text.add(f"i = i + {step}")
        text.close()
        for r in self.targets():
            for a in range(self.n_sums):
                text.add(
                    f"y = plus(p{r}_{a}, -e{r}_{a})",
                    f"z = plus(s{r}_{a}, y)",
                    f"e{r}_{a} = plus(plus(z, -s{r}_{a}), -y)",
                    f"s{r}_{a} = z",
                )
        text.add("block = block + k_1")
        text.close()
        self.store()
        return str(text)

    def load_targets(self) -> None:
        """Write the loads of the targets; rows past the end repeat the last one and are not stored."""
        spec, text = self.spec, self.text
        for r in self.targets():
            text.add(f"i = min(row + {u(r * spec.block)}, last) * {u(spec.d)}")
            loads = [f"x[i + {u(k)}]" for k in range(spec.d)]
            if spec.form == "dot":
                loads = [text.bind(load, "x") for load in loads]
                norm = " + ".join(f"{x} * {x}" for x in loads)
                if self.negative or self.shift:
                    text.add(f"n{r} = -({norm})")
                else:
                    text.add(f"n{r} = real({self.offset!r}) + {norm}")
                loads = [f"-({x} + {x})" for x in loads]
            text.add(*(f"x{r}_{k} = {load}" for k, load in enumerate(loads)))
            if spec.exponent:
                text.add(f"ref{r} = real({LOWEST!r})")
                if self.shift:  # -|x'|^2 - reference, one register
                    text.add(f"low{r} = n{r} - ref{r}")
            text.add(*(f"s{r}_{a} = zero" for a in range(self.n_sums)))
            text.add(*(f"e{r}_{a} = zero" for a in range(self.n_sums)))

    def load_source(self, j: str, offset: int, base: str = "i") -> None:
        """Write the loads of the record at ``base + offset`` into registers named with the suffix ``j``."""
        spec, text = self.spec, self.text
        text.add(*(f"y{j}_{k} = tile[{base} + {u(offset + k)}]" for k in range(spec.d)))
        if not self.shift:
            for c in range(spec.t):
                text.add(f"v{j}_{c} = tile[{base} + {u(offset + spec.d + c)}]")
        if spec.form == "dot":
            text.add(f"b{j} = tile[{base} + {u(offset + spec.d + spec.t)}]")

    def squares(self, r: int, j: str, start: str = "") -> tuple[str, list[str]]:
        """Write what registers hold of q for a pair, or ``start - q``. Return its name and those of x - y."""
        spec, bind = self.spec, self.text.bind
        down = bool(start) or self.negative
        sign = "-" if down else "+"
        offset = f"real({self.offset!r})" if self.offset else ""
        if spec.form == "dot":
            products = "".join(f" {sign} x{r}_{k} * y{j}_{k}" for k in range(spec.d))
            first = f"b{j} + {start}" if start else f"n{r} {sign} b{j}"
            return bind(f"({first}){products}", "q"), []
        h = [bind(f"x{r}_{k} - y{j}_{k}", "h") for k in range(spec.d)]
        first = start or offset
        if spec.form == "exact":
            total = bind(" + ".join(f"{a} * {a}" for a in h), "a")
            if first:
                return bind(f"{first} {sign} stretch * {total}", "q"), h
            return bind(f"-(stretch * {total})" if down else f"stretch * {total}", "q"), h
        chain = f" {sign} ".join(f"{a} * {a}" for a in h)
        if first:
            return bind(f"{first} {sign} {chain}", "q"), h
        return bind(
            f"-({h[0]} * {h[0]}){chain.removeprefix(f'{h[0]} * {h[0]}')}" if down else chain, "q"
        ), h

    def apart(self, q: str, value: str) -> str:
        """Write ``value``, zero where q = 0; return its name."""
        return self.text.bind(f"{value} if {q} {'<' if self.negative else '>'} zero else zero", "m")

    def exponent_of(self, r: int, j: str) -> str:
        """Write log2(exp(b) phi) - reference of a pair; return its name."""
        if self.shift:
            return self.squares(r, j, f"low{r}")[0]
        if self.merged:
            return self.squares(r, j, f"(v{j}_0 - ref{r})")[0]
        q, _ = self.squares(r, j)
        value = self.text.evaluate(CudaPrinter(q, self.spec.dtype), self.log2)
        return self.text.bind(f"(v{j}_0 - ref{r}) + {value}", "z")

    def weighted_group(self) -> None:
        """Write a group of sources with weights: product, gradient or both."""
        spec, text, trace = self.spec, self.text, self.trace
        for j in range(self.shape.group):
            self.load_source(str(j), j * self.shape.record)
            for r in self.targets():
                q, h = self.squares(r, str(j))
                printer = CudaPrinter(q, self.spec.dtype)
                if spec.value:
                    value = text.evaluate(printer, self.phi)
                    if trace.singular:
                        value = self.apart(q, value)
                    for c in range(spec.t):
                        self.accumulate(r, c, f"{value} * v{j}_{c}")
                if spec.slope:
                    slope = text.evaluate(printer, self.factor)
                    if trace.kink or trace.singular:
                        slope = self.apart(q, slope)
                    start = spec.t * spec.value
                    for c in range(spec.t):
                        weight = text.bind(f"{slope} * v{j}_{c}", "w")
                        for k in range(spec.d):
                            self.accumulate(r, start + c * spec.d + k, f"{weight} * {h[k]}")
        if not self.direct:
            for r in self.targets():
                text.add(f"p{r}_0 = plus(p{r}_0, {' + '.join(self.terms.pop(r))})")

    def accumulate(self, r: int, a: int, term: str) -> None:
        """Write one addition, or keep it for the sum of the group."""
        if self.direct:
            self.text.add(f"p{r}_{a} = p{r}_{a} + {term}")
        else:
            self.terms.setdefault(r, []).append(term)

    def exponent_group(self) -> None:
        """Write a group of sources with logarithms of weights.

        One exponential a pair: the running maximum of the textbook is a reference that may lag by 2**40. A
        group that exceeds it leaves the loop and is done again after the reference was raised.
        """
        spec, text, s = self.spec, self.text, self.shape
        for j in range(s.group):
            self.load_source(str(j), j * s.record)
        shares = [
            [text.bind(f"exp2({self.exponent_of(r, str(j))})", "e") for j in range(s.group)]
            for r in self.targets()
        ]
        sums = [text.bind(" + ".join(e), "g") for e in shares]
        text.open(f"if {' + '.join(sums)} > real({LAG!r}):")
        text.add("break")
        text.close()
        for r in self.targets():
            text.add(f"p{r}_0 = plus(p{r}_0, {sums[r]})")
            if spec.slope:
                for j in range(s.group):
                    self.slope_terms(r, str(j), shares[r][j])

    def slope_terms(self, r: int, j: str, weight: str) -> None:
        """Write the additions of one pair to the softmax-weighted slope."""
        text = self.text
        if self.factor == Number(1.0) and not self.trace.kink:
            h = [f"(x{r}_{k} - y{j}_{k})" for k in range(self.spec.d)]
        else:
            q, h = self.squares(r, j)
            slope = text.evaluate(CudaPrinter(q, self.spec.dtype), self.factor)
            if self.trace.kink:
                slope = self.apart(q, slope)
            weight = text.bind(f"{weight} * {slope}", "w")
        text.add(*(f"p{r}_{k + 1} = p{r}_{k + 1} + {weight} * {h[k]}" for k in range(self.spec.d)))

    def raise_reference(self, r: int) -> None:
        """Write the rare branch for one target: new reference, sums rescaled, group added."""
        text = self.text
        end = f"i + {u(self.shape.group)} * step"
        text.add(f"old, top, ref{r}, j = ref{r}, ref{r}, zero, i")
        if self.shift:
            text.add(f"low{r} = n{r}")
        text.open(f"while j < {end}:")
        self.load_source("", 0, "j")
        text.add(f"top = max(top, {self.exponent_of(r, '')})", "j = j + step")
        text.close()
        text.add(f"ref{r} = top")
        if self.shift:
            text.add(f"low{r} = n{r} - top")
        text.add("f = exp2(old - top)")
        for a in range(self.n_sums):
            text.add(*(f"{name}{r}_{a} = {name}{r}_{a} * f" for name in "pse"))
        text.add("j = i")
        text.open(f"while j < {end}:")
        self.load_source("", 0, "j")
        share = text.bind(f"exp2({self.exponent_of(r, '')})", "e")
        text.add(f"p{r}_0 = p{r}_0 + {share}")
        if self.spec.slope:
            self.slope_terms(r, "", share)
        text.add("j = j + step")
        text.close()

    def store(self) -> None:
        """Write the results of this split."""
        spec, text = self.spec, self.text
        for r in self.targets():
            text.add(f"i = row + {u(r * spec.block)}")
            text.open("if i < n:")
            text.add("i = uint(cuda.blockIdx.y) * n + i")
            a = 0
            if spec.exponent:
                text.add(f"out_top[i] = ref{r}", f"out_sum[i] = s{r}_0")
                a = 1
            if spec.value:
                text.add(
                    *(f"out_value[i * {u(spec.t)} + {u(c)}] = s{r}_{c}" for c in range(spec.t))
                )
                a = spec.t
            if spec.slope:
                width = spec.t * spec.d
                text.add(
                    *(
                        f"out_slope[i * {u(width)} + {u(c)}] = factor * s{r}_{a + c}"
                        for c in range(width)
                    )
                )
            text.close()


def tile_source(trace: Trace, spec: Spec, name: str) -> str:
    """Return the source of the first pass for points that fit into registers."""
    return TileWriter(trace, spec).write(name)
