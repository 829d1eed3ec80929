r"""Text of what happens to one group of targets and one tile of sources: distances, profile, sums, log-sum-exp.

The first half of :mod:`gpukoop.kernels.cpu.source`, whose table says which stages are in text and which go through buffers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

from gpukoop.kernels.cpu.nests import FEATURE_VECTORS, lanes
from gpukoop.kernels.cpu.simd import REGISTERS
from gpukoop.kernels.cpu.variant import Variant
from gpukoop.kernels.formula.expr import Expr, mul
from gpukoop.kernels.formula.printers import NumbaPrinter
from gpukoop.kernels.formula.profile import Trace

COLUMNS = 4 if REGISTERS == 32 else 2  # columns contracted together when t is a run-time number
LOG2_E = 1.4426950408889634


def block(head: str, body: Iterable[str]) -> list[str]:
    """Return a compound statement: its head, and its body indented."""
    return [head, *(f"    {line}" for line in body)]


@final
class Loops:
    """The text of the loops of one variant of one trace; :meth:`group` is all of it."""

    def __init__(self, trace: Trace, variant: Variant) -> None:
        self.trace = trace
        self.v = variant
        self.tile = variant.tile
        # Buffers that the text reads or writes: whoever writes the function around it allocates them.
        self.buffers: set[str] = set()

    # -- expressions -------------------------------------------------------------------------------

    def printed(self, *trees: Expr) -> tuple[list[str], list[str]]:
        """Return (lines, names): the trees as text in q, shared subexpressions bound once."""
        functions = {f: f for f in ("exp2", "log2", "sqrt", "rsqrt", "reciprocal")}
        functions |= {f: f"np.{f}" for f in ("cos", "sin")}
        printer = NumbaPrinter("real", functions)
        names = [printer.print(tree) for tree in trees]
        return printer.lines, names

    def profile(self) -> tuple[list[str], str, str]:
        """Return (lines, phi, dphi) with the pairs q = 0 selected away where they must not count."""
        # Value and slope are printed together: what they share, a root or an exponential, is bound once for both.
        trees = [self.trace.phi] * self.v.value + [self.trace.dphi] * self.v.slope
        lines, names = self.printed(*trees)
        phi = names[0] if self.v.value else ""
        if phi and self.trace.singular:
            phi = self.nonzero(lines, "phi", phi)
        dphi = names[-1] if self.v.slope else ""
        if dphi and (self.trace.kink or self.trace.singular):
            dphi = self.nonzero(lines, "slope", dphi)
        return lines, phi, dphi

    def nonzero(self, lines: list[str], name: str, value: str) -> str:
        """Select zero at q = 0. Not a branch: what was computed there (inf, NaN) is thrown away."""
        lines.append(f"{name} = {value} if q > real(0.0) else real(0.0)")
        return name

    # -- pieces of loops ---------------------------------------------------------------------------

    def over_sources(self, lines: Iterable[str]) -> list[str]:
        """Return the loop that LLVM vectorises."""
        return block("for j in range(nj):", lines)

    def over_targets(self, lines: Iterable[str]) -> list[str]:
        """Return a loop over the R targets of a group."""
        if self.v.targets == 1:
            return ["i = g", *lines]
        return block(f"for r in range({self.v.targets}):", ["i = g + r", *lines])

    def rows(self, *buffers: str) -> list[str]:
        """Name the current target's row of each buffer: qb -> q_row."""
        self.buffers |= set(buffers)
        cut = f"[r * {self.tile}:(r + 1) * {self.tile}]" if self.v.targets > 1 else ""
        return [f"{b[0]}_row = {b}{cut}" for b in buffers]

    def coordinates(self, width: int, offset: str = "") -> list[str]:
        """Load coordinates of a target into scalars."""
        # In scalars outside the loop over sources: a load inside could not be hoisted past stores that may alias.
        return [f"x{k} = X[ib + i, {offset}{k}]" for k in range(width)]

    def distance(self) -> list[str]:
        """Return q, from differences d0, d1, ... or from the buffer."""
        if not self.v.features:
            # kappa holds what of the scale is no power of two: points scaled by a power of two are exact.
            return ["q = kappa * q_row[j]"]
        features = range(self.v.features)
        squares = " + ".join(f"d{k} * d{k}" for k in features)
        return [
            *(f"d{k} = x{k} - Sj[{k * self.tile} + j]" for k in features),
            f"q = kappa * ({squares})",
        ]

    def weight(self, c: int) -> str:
        """Return the weight of source j in column c."""
        if self.v.features:
            return f"Sj[{(self.v.features + c) * self.tile} + j]"
        return f"Vj[{c * self.tile} + j]"

    def slot(self, c: int, k: int | None = None) -> str:
        """Return the index of a running sum in a row of ``acc``."""
        first = 0 if k is None else self.v.value + k
        return str(self.v.columns * first + c)

    # -- sums --------------------------------------------------------------------------------------

    def target(self) -> list[str]:
        """Profile and sums of one target: everything that fits in one loop."""
        lines, phi, dphi = self.profile()
        columns = self.v.columns
        buffers = ["qb"] * (not self.v.features)
        start, loop, end = self.coordinates(self.v.features), [*self.distance(), *lines], []
        for c in range(columns):
            # Weights follow the coordinates of their tile in memory: one stream of cache lines for both.
            loop.append(f"w = {self.weight(c)}")
            if self.v.value:
                start.append(f"a{c} = real(0.0)")
                loop += [f"p = w * {phi}", f"a{c} += p"]
                # A tile is summed in the dtype of the points, tiles in float64: rounding grows with the length of a tile, not
                # of the cloud, at no visible cost.
                end.append(f"acc[i, {self.slot(c)}] += a{c}")
            if self.v.skip:
                start.append("b0 = real(0.0)")
                # What was collected so far, in absolute values, decides how much the tiles that are left may weigh.
                loop.append("b0 += abs(p)")
                end.append("acc[i, width - 1] += b0")
            if self.v.slope:
                loop.append(f"w *= {dphi}")
            for k in range(self.v.features if self.v.slope else 0):
                start.append(f"g{c}_{k} = real(0.0)")
                loop.append(f"g{c}_{k} += w * d{k}")
                end.append(f"acc[i, {self.slot(c, k)}] += g{c}_{k}")
        if self.v.slope and not (self.v.features and columns):
            buffers.append("sb")
            loop.append(f"s_row[j] = {'w' if columns else dphi}")
        if self.v.value and not columns:
            buffers.append("kb")
            loop.append(f"k_row[j] = {phi}")
        return [*self.rows(*buffers), *start, *self.over_sources(loop), *end]

    def forces(self) -> list[str]:
        """Sum s_row * (x - y) of a group, one column: full blocks of features, then single vectors."""
        width = lanes(self.v.real) * FEATURE_VECTORS
        place = f"X, ib + g, Y, tile * {self.tile}, sb, acc, g"
        last = f"{int(self.v.value)}, nj"
        lines = [f"whole = W // {width} * {width}", f"forces({place}, 0, whole, {last})"]
        return [*lines, f"forces_rest({place}, whole, W, {last})"]

    def contract(self, buffer: str, column: str) -> list[str]:
        """Multiply a buffer of R x TILE numbers by the columns of the tile, COLUMNS at a time."""
        start, loop, end = [], [], []
        # A block of targets times columns in registers, as in a product of matrices: every weight is loaded once for all
        # targets.
        for r in range(self.v.targets):
            loop.append(f"w = {buffer}[{r * self.tile} + j]")
            for c in range(COLUMNS):
                start.append(f"a{r}_{c} = real(0.0)")
                loop.append(f"a{r}_{c} += w * Vc[{c * self.tile} + j]")
                end.append(f"acc[g + {r}, {column} + c + {c}] += a{r}_{c}")
        return block(
            f"for c in range(0, T, {COLUMNS}):",
            [
                f"Vc = Vj[c * {self.tile}:(c + {COLUMNS}) * {self.tile}]",
                *start,
                *self.over_sources(loop),
                *end,
            ],
        )

    def columns(self) -> list[str]:
        """Contract the buffers of a group with any number of columns."""
        body = self.contract("kb", "0") if self.v.value else []
        if self.v.slope:
            fill = [
                *self.rows("sb", "wb"),
                "x0 = X[ib + i, k]",
                *self.over_sources(["w_row[j] = s_row[j] * (x0 - Yk[j])"]),
            ]
            body += block(
                "for k in range(n_features):",
                [
                    f"Yk = Sj[k * {self.tile}:(k + 1) * {self.tile}]",
                    *self.over_targets(fill),
                    *self.contract("wb", f"T * ({int(self.v.value)} + k)"),
                ],
            )
        return body

    # -- log-sum-exp -------------------------------------------------------------------------------

    def log_target(self) -> list[str]:
        """Online maximum: exponents of a tile first, then one exponential a pair relative to the maximum.

        Differs from the textbook recurrence, which takes two exponentials a pair: the exponents wait in a
        buffer, so the maximum of the whole tile is known before the first exponential.
        """
        log_phi, log_slope = self.trace.log_phi, self.trace.log_slope
        if log_phi is None or log_slope is None:
            raise ValueError("log-sum-exp needs one positive radial kernel")
        lines, (exponent,) = self.printed(mul(LOG2_E, log_phi))
        # the exponents take the place of the distances unless the slope reads them again
        # A Gaussian's slope is a constant: its exponents may overwrite the distances.
        again = self.v.slope and bool(self.printed(log_slope)[0])
        buffers = ["ub"] if self.v.features else ["qb", "ub"] if again else ["qb"]
        first = [
            *self.distance(),
            *lines,
            f"u = {exponent} + {self.weight(0)}",
            f"{buffers[-1][0]}_row[j] = u",
            "h = larger(h, u)",
        ]
        # In float64, once a tile at most; a tile whose maximum is not new costs no rescaling.
        rescale = ["acc[i, :] *= np.exp2(np.float64(top[i]) - np.float64(h))"]
        maximum = [
            *block("if h > top[i]:", [*block("if top[i] > -np.inf:", rescale), "top[i] = h"]),
            # Without any weight so far h is 0: exp2(-inf - 0) is 0, while -inf - -inf would be NaN.
            "h = top[i] if top[i] > -np.inf else real(0.0)",
        ]
        start, second, end = (
            ["a0 = real(0.0)"],
            [f"w = exp2({buffers[-1][0]}_row[j] - h)", "a0 += w"],
            [],
        )
        if self.v.slope:
            lines, (slope,) = self.printed(log_slope)
            if self.trace.kink:
                slope = self.nonzero(lines, "slope", slope)
            if self.v.features or again:
                second += self.distance()
            second += [*lines, f"w *= {slope}"]
            for k in range(self.v.features):
                start.append(f"g{k} = real(0.0)")
                second.append(f"g{k} += w * d{k}")
                end.append(f"acc[i, {1 + k}] += g{k}")
            if not self.v.features:
                buffers.append("sb")
                second.append("s_row[j] = w")
        return [
            *self.rows(*buffers),
            *self.coordinates(self.v.features),
            "h = real(-np.inf)",
            *self.over_sources(first),
            *maximum,
            *start,
            *self.over_sources(second),
            "acc[i, 0] += a0",
            *end,
        ]

    def group(self) -> list[str]:
        """Everything that happens to one group of targets and one tile of sources."""
        head = [] if self.v.features else ["distances(X, ib + g, Sj, qb, n_features, nj)"]
        one = self.over_targets(self.log_target() if self.v.log else self.target())
        if not self.v.columns:
            return [*head, *one, *self.columns()]
        return [*head, *one, *(self.forces() if self.v.wide else [])]
