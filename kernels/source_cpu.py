r"""Source text of the CPU loops: one module per (profile, operation, features, columns, precision).

Generated, because what makes these loops fast must be literal: features and columns are scalar locals,
constants are typed, tile lengths are known. For every tile of sources and group of targets:

=========== ======================================= ==========================================
stage       few of them: in text                    many, or known only at run time
=========== ======================================= ==========================================
distances   d <= 4 or 8: in the loop of the profile a register-blocked loop nest, into a buffer
profile     one loop over the sources of the tile, vectorised by LLVM; the sums are registers
columns     t <= 4: in the loop of the profile      from a buffer, R targets x 4 columns at once
gradient    d t <= 12: in the loop of the profile   from a buffer, a register-blocked loop nest
=========== ======================================= ==========================================

Buffers are R x TILE numbers that stay in the first-level cache. Letters: R targets a group, T columns and W
features as padded, TILE sources. Distances are squares of differences of the coordinates as given, times one
scalar: no cancellation, whatever the offset. Sums run in the dtype of the points inside a tile and in float64
between tiles, so that a million sources cost no digits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gpukoop.kernels.blocks_cpu import FEATURE_VECTORS, TARGETS, lanes
from gpukoop.kernels.expr import Expr, mul
from gpukoop.kernels.printers import NumbaPrinter
from gpukoop.kernels.profile import Trace
from gpukoop.kernels.simd_cpu import REGISTERS

# Measured (AVX-512): up to here scalars in text beat the buffer; it costs sums less than what has two passes.
MAX_FEATURES = 4
MAX_FEATURES_LONG = 8
MAX_COLUMNS = 4
MAX_SUMS = 12  # running sums of a gradient beside the profile, or the registers run out
COLUMNS = 4 if REGISTERS == 32 else 2  # columns contracted together when t is a run-time number
LANES = 64  # tiles are padded to this: no loop has a remainder
LOG2_E = 1.4426950408889634
LN_2 = 0.6931471805599453


@dataclass(frozen=True)
class Variant:
    """What the text depends on; scales, weights, n and m are arguments of the compiled code.

    Parameters
    ----------
    value, slope : bool
        Sum phi; sum dphi times (x - y).
    log : bool
        Log-sum-exp (and its gradient) instead of sums.
    features : int
        d, or 0: known at run time.
    columns : int
        t, or 0: known at run time.
    real : str
        "float32" or "float64".
    degree : int
        Degree of the polynomial behind exp2.
    tile : int
        Sources a tile.
    skip : bool
        Visit tiles in the order given, until the rest cannot matter (:mod:`gpukoop.kernels.cells`).
    """

    value: bool
    slope: bool
    log: bool
    features: int
    columns: int
    real: str
    degree: int
    tile: int
    skip: bool = False

    @property
    def targets(self) -> int:
        """R: one where nothing is shared; else as many as the registers hold."""
        if self.features and self.columns:
            return 1
        return TARGETS

    @property
    def wide(self) -> bool:
        """Whether the gradient is left to the loop nest over rows of features, padded to :attr:`pad`."""
        return self.slope and self.features == 0 and self.columns == 1

    @property
    def pad(self) -> int:
        """What the features of a target, and of a source by rows, are padded to a multiple of."""
        return lanes(self.real) if self.wide else 1


def choose(value: bool, slope: bool, log: bool, d: int, t: int, real: str, degree: int) -> Variant:
    """Return the variant that serves d features and t columns; few texts serve all sizes."""
    features = d if d <= (MAX_FEATURES_LONG if slope or log else MAX_FEATURES) else 0
    few = features and t <= MAX_COLUMNS and (not slope or t * d <= MAX_SUMS)
    columns = t if few or t == 1 else 0
    # A tile and its buffers fit a first-level cache if the features are few, a second-level cache if not.
    tile = 1024 if features and columns and features + columns <= 6 else 512 if d <= 256 else 128
    if real == "float64":
        tile //= 2
    return Variant(value, slope, log, features, columns, real, degree, tile)


def _block(head: str, body: Iterable[str]) -> list[str]:
    return [head, *(f"    {line}" for line in body)]


class _Writer:
    """Write the text of one variant of one trace."""

    def __init__(self, trace: Trace, variant: Variant) -> None:
        self.trace = trace
        self.v = variant
        self.tile = variant.tile

    # -- expressions -------------------------------------------------------------------------------

    def printed(self, *trees: Expr) -> tuple[list[str], list[str]]:
        """Return (lines, names): the trees as text in q, shared subexpressions bound once."""
        functions = {f: f for f in ("exp2", "log2", "sqrt", "rsqrt", "reciprocal")}
        printer = NumbaPrinter("real", functions)
        names = [printer.print(tree) for tree in trees]
        return printer.lines, names

    def profile(self) -> tuple[list[str], str, str]:
        """Return (lines, phi, dphi) with the pairs q = 0 selected away where they must not count."""
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
        return _block("for j in range(nj):", lines)

    def over_targets(self, lines: Iterable[str]) -> list[str]:
        """Return a loop over the R targets of a group."""
        if self.v.targets == 1:
            return ["i = g", *lines]
        return _block(f"for r in range({self.v.targets}):", ["i = g + r", *lines])

    def rows(self, *buffers: str) -> list[str]:
        """Name the current target's row of each buffer: qb -> q_row."""
        cut = f"[r * {self.tile}:(r + 1) * {self.tile}]" if self.v.targets > 1 else ""
        return [f"{b[0]}_row = {b}{cut}" for b in buffers]

    def coordinates(self, width: int, offset: str = "") -> list[str]:
        """Load coordinates of a target into scalars."""
        return [f"x{k} = X[ib + i, {offset}{k}]" for k in range(width)]

    def distance(self) -> list[str]:
        """Return q, from differences d0, d1, ... or from the buffer."""
        if not self.v.features:
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
            loop.append(f"w = {self.weight(c)}")
            if self.v.value:
                start.append(f"a{c} = real(0.0)")
                loop += [f"p = w * {phi}", f"a{c} += p"]
                end.append(f"acc[i, {self.slot(c)}] += a{c}")
            if self.v.skip:
                start.append("b0 = real(0.0)")
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
        for r in range(self.v.targets):
            loop.append(f"w = {buffer}[{r * self.tile} + j]")
            for c in range(COLUMNS):
                start.append(f"a{r}_{c} = real(0.0)")
                loop.append(f"a{r}_{c} += w * Vc[{c * self.tile} + j]")
                end.append(f"acc[g + {r}, {column} + c + {c}] += a{r}_{c}")
        return _block(
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
            body += _block(
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
        again = self.v.slope and bool(self.printed(log_slope)[0])
        buffers = ["ub"] if self.v.features else ["qb", "ub"] if again else ["qb"]
        first = [
            *self.distance(),
            *lines,
            f"u = {exponent} + {self.weight(0)}",
            f"{buffers[-1][0]}_row[j] = u",
            "h = larger(h, u)",
        ]
        rescale = ["acc[i, :] *= np.exp2(np.float64(top[i]) - np.float64(h))"]
        maximum = [
            *_block("if h > top[i]:", [*_block("if top[i] > -np.inf:", rescale), "top[i] = h"]),
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

    # -- the module --------------------------------------------------------------------------------

    def flush(self) -> list[str]:
        """Write the float64 sums of one target to the results."""
        if self.v.log:
            nothing = ["grad[ib + i] = 0.0"] * self.v.slope
            slope = [
                "grad[ib + i, 0, k] = slope_factor * acc[i, 1 + k] / acc[i, 0]",
            ]
            return [
                *_block("if top[i] == -np.inf:", ["out[ib + i, 0] = -np.inf", *nothing]),
                *_block(
                    "else:",
                    [
                        f"out[ib + i, 0] = {LN_2!r} * (top[i] + np.log2(acc[i, 0]))",
                        *(_block("for k in range(n_features):", slope) if self.v.slope else []),
                    ],
                ),
            ]
        lines = []
        if self.v.value:
            lines += _block(
                "for c in range(n_columns):", ["out[ib + i, c] = value_factor * acc[i, c]"]
            )
        if self.v.slope:
            index = f"T * ({int(self.v.value)} + k) + c"
            write = [f"grad[ib + i, c, k] = slope_factor * acc[i, {index}]"]
            inner = _block("for k in range(n_features):", write)
            lines += _block("for c in range(n_columns):", inner)
        return lines

    def module(self) -> str:
        """Return the whole module."""
        v, size = self.v, self.v.targets * self.tile
        group = self.group()
        text = "\n".join(group)
        buffers = [
            f"{b} = np.empty({size}, real)"
            for b in ("qb", "ub", "kb", "sb", "wb")
            if f"= {b}" in text or f" {b}," in text
        ]
        symbols = [f"{name} = P[{a + 1}]" for a, name in enumerate(self.trace.symbols)]
        log = ["top = np.empty(block, real)"] if v.log else []
        stop_early = [
            "least = acc[0, width - 1]",
            *_block("for i in range(1, nb):", ["least = min(least, acc[i, width - 1])"]),
            *_block("if left[(ib - start) // block, z] <= tol * least:", ["break"]),
            "tile = visit[(ib - start) // block, z]",
        ]
        over_tiles = f"for {'z' if v.skip else 'tile'} in range(S.shape[0]):"
        tiles = [
            *(stop_early if v.skip else []),
            "Sj = S[tile]",
            f"Vj = Sj[n_features * {self.tile}:]",
            f"nj = min({self.tile}, m - {self.tile} * tile)",
            *_block(f"for g in range(0, nb, {v.targets}):", group),
        ]
        blocks = [
            "nb = min(block, stop - ib)",
            "acc[:, :] = 0.0",
            *(["top[:] = -np.inf"] if v.log else []),
            *_block(over_tiles, tiles),
            *_block("for i in range(nb):", self.flush()),
        ]
        body = [
            "kappa = P[0]",
            *symbols,
            "W = X.shape[1]",
            "acc = np.empty((block, width), np.float64)",
            *log,
            *buffers,
            *_block("for ib in range(start, stop, block):", blocks),
        ]
        arguments = (
            "start, stop, block, width, n_features, n_columns, T, m, "
            "value_factor, slope_factor, tol, X, S, Y, P, visit, left, out, grad"
        )
        real = v.real
        kinds = [*["int64"] * 8, *["float64"] * 3, *[f"{real}[:, ::1]"] * 3, f"{real}[::1]"]
        kinds += ["int32[:, ::1]", "float64[:, ::1]", f"{real}[:, ::1]", f"{real}[:, :, ::1]"]
        signature = f"void({', '.join(kinds)})"
        return "\n".join(
            [
                f'"""Generated by gpukoop: {v!r}."""',
                "",
                "import numpy as np",
                "from numba import njit",
                f"from numpy import {real} as real",
                "",
                "from gpukoop.kernels.blocks_cpu import make_distances, make_forces",
                "from gpukoop.kernels.simd_cpu import larger, sqrt",
                f"from gpukoop.kernels.simd_cpu import exp2_{real}_{v.degree} as exp2",
                *(
                    f"from gpukoop.kernels.simd_cpu import {f}_{real} as {f}"
                    for f in ("log2", "rsqrt", "reciprocal")
                ),
                "",
                f"distances = make_distances({real!r}, {self.tile})",
                f"forces = make_forces({real!r}, {self.tile}, {FEATURE_VECTORS})",
                f"forces_rest = make_forces({real!r}, {self.tile}, 1)",
                "",
                "",
                # reassoc lets partial sums run in vectors; nnan and ninf are absent on purpose
                f'@njit("{signature}", nogil=True, cache=True, error_model="numpy",',
                '      fastmath={"reassoc", "contract", "nsz"})',
                *_block(f"def run({arguments}):", body),
                "",
            ]
        )


def source(trace: Trace, variant: Variant) -> str:
    """Return the text of the module whose ``run`` computes targets ``start`` to ``stop``."""
    return _Writer(trace, variant).module()
