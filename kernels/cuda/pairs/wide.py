"""The pair loop of a CUDA reduction for many features: distances first, chunk by chunk, then the sums.

A thread keeps the squared distances of 2 targets to 16 sources in registers while the features pass through
shared memory in chunks. Features of the targets are read from global memory, feature by feature, so that
neighbouring threads read neighbouring numbers. The gradient goes through the features a second time with the
weights in registers and adds to its results in memory, compensated, once every 16 sources.

Every target of every split has one owner: no atomics, the same bits in any order of threads.
"""

from __future__ import annotations

from gpukoop.kernels.cuda.form import FORMS, log2_phi, merged, slope_parts
from gpukoop.kernels.cuda.pairs.shape import CHUNK, SOURCES, TARGETS, wide_shape
from gpukoop.kernels.cuda.pairs.tile import LOWEST
from gpukoop.kernels.cuda.source import CudaPrinter, Spec, Text, u
from gpukoop.kernels.formula.expr import Number
from gpukoop.kernels.formula.profile import Trace


class WideWriter:
    """Write one entry of the first pass for many features."""

    def __init__(self, trace: Trace, spec: Spec) -> None:
        self.trace, self.spec, self.shape = trace, spec, wide_shape(trace, spec)
        self.text = Text()
        self.shift = spec.exponent and merged(trace) and spec.form == "dot"
        self.factor = slope_parts(trace, spec)[1] if spec.slope else Number(1.0)
        self.n_values = 1 if spec.exponent else spec.t * spec.value

    def write(self, name: str) -> str:
        """Return the source of the entry."""
        spec, text, s = self.spec, self.text, self.shape
        outs = [f"out_{o}" for o in spec.outputs]
        args = ["x", "s", "pick", *outs, *spec.scratch, *spec.sizes]
        args += [*spec.scalars, *self.trace.symbols]
        extra = s.record - spec.d
        text.add("@cuda.jit(fastmath=True, cache=True)")
        text.open(f"def {name}({', '.join(args)}):")
        text.add(f"tile = cuda.shared.array({CHUNK * SOURCES}, real)")
        text.add(f"weights = cuda.shared.array({extra * SOURCES}, real)")
        text.open(f"if pick[0] != {FORMS.index(spec.form)}:")
        text.add("return")
        text.close()
        text.add(
            "tid = uint(cuda.threadIdx.x)",
            f"row = uint(cuda.blockIdx.x) * {u(spec.block * TARGETS)} + tid",
            "last = n - k_1",
            f"at = uint(cuda.blockIdx.y) * {u(spec.d)}",
        )
        for r in range(TARGETS):
            text.add(f"own{r} = row + {u(r * spec.block)}", f"i{r} = min(own{r}, last)")
            text.add(*(f"s{r}_{a} = zero" for a in range(self.n_values)))
            text.add(*(f"e{r}_{a} = zero" for a in range(self.n_values)))
            if spec.exponent:
                text.add(f"ref{r} = real({LOWEST!r})")
            if spec.form == "dot":
                self.over_features(
                    f"n{r} = n{r} + x[f * n + i{r}] * x[f * n + i{r}]", f"n{r} = zero"
                )
            if spec.slope:
                self.over_slopes(r, "out_slope[o] = zero", "correction[o] = zero")
        text.add("block = uint(cuda.blockIdx.y) * per", "stop = min(block + per, tiles)")
        text.open("while block < stop:")
        text.add(f"base = block * {u(s.record * SOURCES)}")
        self.distances()
        (self.exponents if spec.exponent else self.sums)()
        if spec.slope:
            self.slopes()
        text.add("block = block + k_1")
        text.close()
        self.store()
        return str(text)

    def over_features(self, statement: str, start: str) -> None:
        """Write a loop over all features."""
        self.text.add(start, "f = k_0")
        self.text.open(f"while f < {u(self.spec.d)}:")
        self.text.add(statement, "f = f + k_1")
        self.text.close()

    def over_slopes(self, r: int, *statements: str) -> None:
        """Write a loop over the gradient of one target in memory, at o; only its owner does this."""
        self.text.open(f"if own{r} < n:")
        self.text.add("f = k_0")
        self.text.open(f"while f < {u(self.spec.d)}:")
        self.text.add(f"o = (at + f) * n + own{r}", *statements, "f = f + k_1")
        self.text.close(2)

    def open_chunks(self, weights: bool) -> None:
        """Write the staging of one chunk and open the loop over its features."""
        text = self.text
        text.add("c = k_0")
        text.open(f"while c < {u(self.spec.d)}:")
        text.add(f"end = min(c + {u(CHUNK)}, {u(self.spec.d)})", "cuda.syncthreads()")
        text.add("w = tid")
        text.open(f"while w < (end - c) * {u(SOURCES)}:")
        text.add(f"tile[w] = s[base + c * {u(SOURCES)} + w]", f"w = w + {u(self.spec.block)}")
        text.close()
        if weights:
            extra = (self.shape.record - self.spec.d) * SOURCES
            text.open("if c == k_0:")
            text.add("w = tid")
            text.open(f"while w < {u(extra)}:")
            text.add(
                f"weights[w] = s[base + {u(self.spec.d * SOURCES)} + w]",
                f"w = w + {u(self.spec.block)}",
            )
            text.close(2)
        text.add("cuda.syncthreads()", "f, k = c, k_0")
        text.open("while f < end:")
        text.add(*(f"x{r} = x[f * n + i{r}]" for r in range(TARGETS)))

    def close_chunks(self) -> None:
        """Close what :meth:`open_chunks` opened."""
        self.text.add("f = f + k_1", f"k = k + {u(SOURCES)}")
        self.text.close()
        self.text.add("c = end")
        self.text.close()

    def distances(self) -> None:
        """Write q of all pairs of the tile, in registers q{r}_{j}."""
        spec, text = self.spec, self.text
        pairs = [(r, j) for r in range(TARGETS) for j in range(SOURCES)]
        text.add(*(f"q{r}_{j} = zero" for r, j in pairs))
        self.open_chunks(weights=True)
        for j in range(SOURCES):
            text.add(f"y = tile[k + {u(j)}]")
            for r in range(TARGETS):
                if spec.form == "dot":
                    text.add(f"q{r}_{j} = q{r}_{j} + x{r} * y")
                else:
                    text.add(f"h = x{r} - y", f"q{r}_{j} = q{r}_{j} + h * h")
        self.close_chunks()
        for r, j in pairs:
            if spec.form == "exact":
                text.add(f"q{r}_{j} = stretch * q{r}_{j}")
            elif not self.shift:
                bias = f"weights[{u(spec.t * SOURCES + j)}]"
                text.add(f"q{r}_{j} = ({bias} + n{r}) - (q{r}_{j} + q{r}_{j})")

    def guarded(self, value: str, q: str, guard: bool) -> str:
        """Return ``value``, or a name for it that is zero where q = 0."""
        if not guard:
            return value
        self.text.add(f"m = {value} if {q} > zero else zero")
        return "m"

    def add(self, name: str, value: str) -> None:
        """Write a compensated addition to s{name}."""
        self.text.add(
            f"y = plus({value}, -e{name})",
            f"z = plus(s{name}, y)",
            f"e{name} = plus(plus(z, -s{name}), -y)",
            f"s{name} = z",
        )

    def sums(self) -> None:
        """Write the weighted sums of the tile, and the weights of the gradient into q{r}_{j}."""
        spec, text, trace = self.spec, self.text, self.trace
        for r in range(TARGETS):
            for j in range(SOURCES):
                q, printer = f"q{r}_{j}", CudaPrinter(f"q{r}_{j}", spec.dtype)
                if spec.value:
                    value = text.evaluate(printer, trace.phi)
                    value = self.guarded(value, q, trace.singular)
                    for c in range(spec.t):
                        term = f"{value} * weights[{u(c * SOURCES + j)}]"
                        # not g{c}: a sum of kernels has symbols of that name
                        text.add(f"t{c} = {term}" if j == 0 else f"t{c} = t{c} + {term}")
                if spec.slope:
                    slope = text.evaluate(printer, self.factor)
                    slope = self.guarded(slope, q, trace.kink or trace.singular)
                    text.add(f"q{r}_{j} = {slope} * weights[{u(j)}]")
            for c in range(self.n_values):
                self.add(f"{r}_{c}", f"t{c}")

    def exponents(self) -> None:
        """Write the log-sum-exp of the tile; a reference that lags by 2**40 is raised, rarely."""
        spec, text = self.spec, self.text
        for r in range(TARGETS):
            for j in range(SOURCES):
                q = f"q{r}_{j}"
                if self.shift:
                    bias = f"weights[{u(spec.t * SOURCES + j)}]"
                    text.add(f"l{j} = ({bias} - n{r}) + ({q} + {q})")
                else:
                    value = text.evaluate(CudaPrinter(q, self.spec.dtype), log2_phi(self.trace))
                    text.add(f"l{j} = weights[{u(j)}] + {value}")
                text.add("top = l0" if j == 0 else f"top = max(top, l{j})")
            text.open(f"if top - ref{r} > real(40.0):")
            text.add(f"g = exp2(ref{r} - top)", f"ref{r} = top")
            text.add(f"s{r}_0 = s{r}_0 * g", f"e{r}_0 = e{r}_0 * g")
            if spec.slope:
                self.over_slopes(
                    r, "out_slope[o] = out_slope[o] * g", "correction[o] = correction[o] * g"
                )
            text.close()
            for j in range(SOURCES):
                text.add(f"a = exp2(l{j} - ref{r})", "g = a" if j == 0 else "g = g + a")
                if spec.slope:
                    q = f"q{r}_{j}"
                    slope = text.evaluate(CudaPrinter(q, self.spec.dtype), self.factor)
                    text.add(f"{q} = a * {self.guarded(slope, q, self.trace.kink)}")
            self.add(f"{r}_0", "g")

    def slopes(self) -> None:
        """Write the second sweep over the features: sum_j w_j (x - y_j) is added in memory."""
        text = self.text
        self.open_chunks(weights=False)
        for j in range(SOURCES):
            text.add(f"y = tile[k + {u(j)}]")
            for r in range(TARGETS):
                term = f"q{r}_{j} * (x{r} - y)"
                text.add(f"a{r} = {term}" if j == 0 else f"a{r} = a{r} + {term}")
        for r in range(TARGETS):
            text.open(f"if own{r} < n:")
            text.add(
                f"o = (at + f) * n + own{r}",
                "b = out_slope[o]",
                f"y = plus(a{r}, -correction[o])",
                "z = plus(b, y)",
                "correction[o] = plus(plus(z, -b), -y)",
                "out_slope[o] = z",
            )
            text.close()
        self.close_chunks()

    def store(self) -> None:
        """Write the results of this split."""
        spec, text = self.spec, self.text
        for r in range(TARGETS):
            if spec.slope:
                self.over_slopes(r, "out_slope[o] = factor * out_slope[o]")
            text.open(f"if own{r} < n:")
            text.add(f"i = uint(cuda.blockIdx.y) * n + own{r}")
            if spec.exponent:
                text.add(f"out_top[i] = ref{r}", f"out_sum[i] = s{r}_0")
            if spec.value:
                text.add(
                    *(f"out_value[i * {u(spec.t)} + {u(c)}] = s{r}_{c}" for c in range(spec.t))
                )
            text.close()


def wide_source(trace: Trace, spec: Spec, name: str) -> str:
    """Return the source of the first pass for many features."""
    return WideWriter(trace, spec).write(name)
