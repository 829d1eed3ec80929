r"""Source text of the CPU loops: one module per (profile, operation, features, columns, precision).

Generated, because what makes these loops fast must be literal: features and columns are scalar locals,
constants are typed, tile lengths are known. Two shapes of the same sum over tiles of sources:

======= ===================================== =================================================
shape   when                                  loops
======= ===================================== =================================================
direct  d <= 16, few columns                  one loop over the sources of a tile, all in registers
staged  any d, any number of columns          distances -> profile -> contraction, each a loop over
                                              the sources of a tile, through buffers that stay in L1
======= ===================================== =================================================

Letters: R targets are handled together, T columns of weights, D features (a multiple of CHUNK if known only
at run time), TILE sources. Distances are always squares of differences of the coordinates as given, times
one scalar: no cancellation, whatever the offset. Sums run in the dtype of the points inside a tile, in
float64 between tiles, so that a million sources cost no digits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gpukoop.kernels.expr import Expr, mul
from gpukoop.kernels.printers import NumbaPrinter
from gpukoop.kernels.profile import Trace

MAX_FEATURES = 16  # unrolled in text up to here
MAX_COLUMNS = 4
MAX_SUMS = 24  # running sums a target in the direct shape, 32 vector registers at most
CHUNK = 8  # features handled together when d is a run-time number
COLUMNS = 4  # columns contracted together when t is a run-time number
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
    """

    value: bool
    slope: bool
    log: bool
    features: int
    columns: int
    real: str
    degree: int

    @property
    def direct(self) -> bool:
        """Whether one loop does everything."""
        return self.features > 0 and self.columns > 0

    @property
    def targets(self) -> int:
        """R: with few features the loads are hidden anyway, with many sums the registers run out."""
        if not self.direct:
            return 4 if self.columns == 0 and self.features else 2
        sums = self.columns * (self.value + self.features * self.slope)
        return 2 if 4 < self.features and sums <= 4 else 1

    @property
    def tile(self) -> int:
        """Sources a tile: rows of d + t numbers that share the first-level cache with the buffers."""
        rows = self.features + max(self.columns, 1) if self.features else 64
        size = 1024 if rows <= 6 else 512 if rows <= 24 else 256
        return size // 2 if self.real == "float64" else size


def choose(value: bool, slope: bool, log: bool, d: int, t: int, real: str, degree: int) -> Variant:
    """Return the variant that serves d features and t columns; few texts serve all sizes."""
    features = d if d <= MAX_FEATURES else 0
    sums = t * (value + d * slope)
    few = t <= MAX_COLUMNS and sums <= MAX_SUMS and features > 0
    columns = t if few or t == 1 else 0
    return Variant(value, slope, log, features, columns, real, degree)


def _block(head: str, body: Iterable[str]) -> list[str]:
    return [head, *(f"    {line}" for line in body)]


class _Writer:
    """Write the text of one variant of one trace."""

    def __init__(self, trace: Trace, variant: Variant) -> None:
        self.trace = trace
        self.v = variant
        self.rows = range(variant.targets)
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
        dphi = names[-1] if self.v.slope else ""
        # A select, not a branch: whatever was computed at q = 0 (inf, NaN) is thrown away.
        if phi and self.trace.singular:
            lines.append(f"phi = {phi} if q > real(0.0) else real(0.0)")
            phi = "phi"
        return lines, phi, self.guard(lines, dphi)

    def guard(self, lines: list[str], slope: str) -> str:
        """Select zero slope at q = 0 if the profile has a kink there."""
        if not slope or not (self.trace.kink or self.trace.singular):
            return slope
        lines.append(f"slope = {slope} if q > real(0.0) else real(0.0)")
        return "slope"

    # -- distances ---------------------------------------------------------------------------------

    def load(self, width: int, offset: str = "") -> list[str]:
        """Load coordinates of the R targets into scalars."""
        return [f"x{r}_{k} = X[ib + g + {r}, {offset}{k}]" for r in self.rows for k in range(width)]

    def differences(self, r: int, width: int, source: str = "Sj") -> list[str]:
        """Return d0, d1, ... between target r and source j."""
        return [f"d{k} = x{r}_{k} - {source}[{k * self.tile} + j]" for k in range(width)]

    def distance(self, r: int) -> list[str]:
        """Return q for target r, from scalars or from the buffer."""
        if self.v.features == 0:
            return [f"q = kappa * qb[{r * self.tile} + j]"]
        squares = " + ".join(f"d{k} * d{k}" for k in range(self.v.features))
        return [*self.differences(r, self.v.features), f"q = kappa * ({squares})"]

    def distances(self) -> list[str]:
        """Fill qb with squared distances, CHUNK features at a time (d known at run time)."""
        squares = " + ".join(f"d{k} * d{k}" for k in range(CHUNK))
        first, later = [], []
        for r in self.rows:
            lines = self.differences(r, CHUNK, "Sc")
            first += [*lines, f"qb[{r * self.tile} + j] = {squares}"]
            later += [*lines, f"qb[{r * self.tile} + j] += {squares}"]
        return _block(
            f"for c in range(0, D, {CHUNK}):",
            [
                f"Sc = Sj[c * {self.tile}:(c + {CHUNK}) * {self.tile}]",
                *self.load(CHUNK, "c + "),
                *_block("if c == 0:", _block("for j in range(nj):", first)),
                *_block("else:", _block("for j in range(nj):", later)),
            ],
        )

    def weight(self, c: int) -> str:
        """Return the weight of source j in column c."""
        if self.v.features == 0:
            return f"Sj[(D + {c}) * {self.tile} + j]"
        return f"Sj[{(self.v.features + c) * self.tile} + j]"

    # -- sums --------------------------------------------------------------------------------------

    def direct(self) -> list[str]:
        """One loop over the tile, every running sum in a register."""
        d, t = range(self.v.features), range(self.v.columns)
        lines, phi, dphi = self.profile()
        start, loop, end = self.load(self.v.features), [], []
        for r in self.rows:
            loop += [*self.distance(r), *lines]
            for c in t:
                loop.append(f"w = {self.weight(c)}")
                if self.v.value:
                    start.append(f"a{r}_{c} = real(0.0)")
                    loop.append(f"a{r}_{c} += w * {phi}")
                    end.append(f"acc[g + {r}, {c}] += a{r}_{c}")
                if self.v.slope:
                    loop.append(f"w *= {dphi}")
                    for k in d:
                        column = self.v.columns * (self.v.value + k) + c
                        start.append(f"g{r}_{c}_{k} = real(0.0)")
                        loop.append(f"g{r}_{c}_{k} += w * d{k}")
                        end.append(f"acc[g + {r}, {column}] += g{r}_{c}_{k}")
        return [*start, *_block("for j in range(nj):", loop), *end]

    def staged(self) -> list[str]:
        """Distances, profile and contraction one after the other."""
        lines, phi, dphi = self.profile()
        start, loop, end = self.load(self.v.features), [], []
        one = self.v.columns == 1
        for r in self.rows:
            loop += [*self.distance(r), *lines]
            if one:
                loop.append(f"w = {self.weight(0)}")
            if self.v.value and one:
                start.append(f"a{r} = real(0.0)")
                loop.append(f"a{r} += w * {phi}")
                end.append(f"acc[g + {r}, 0] += a{r}")
            elif self.v.value:
                loop.append(f"kb[{r * self.tile} + j] = {phi}")
            if self.v.slope:
                weighted = f"w * {dphi}" if one else dphi
                loop.append(f"sb[{r * self.tile} + j] = {weighted}")
        body = [*self.head(), *start, *_block("for j in range(nj):", loop), *end]
        if one:
            return body + (self.forces() if self.v.slope else [])
        if self.v.value:
            body += self.contract("kb", "0")
        if self.v.slope:
            offsets = [r * self.tile for r in self.rows]
            fill = [f"wb[{o} + j] = sb[{o} + j] * (x{r}_0 - Yk[j])" for r, o in enumerate(offsets)]
            body += _block(
                "for k in range(n_features):",
                [
                    f"Yk = Sj[k * {self.tile}:(k + 1) * {self.tile}]",
                    *self.load(1, "k + "),
                    *_block("for j in range(nj):", fill),
                    *self.contract("wb", f"T * ({int(self.v.value)} + k)"),
                ],
            )
        return body

    def head(self) -> list[str]:
        """Fill the distance buffer if the features are not unrolled."""
        return [] if self.v.features else self.distances()

    def contract(self, buffer: str, column: str) -> list[str]:
        """Multiply a buffer of R x TILE numbers by the columns of the tile, COLUMNS at a time."""
        start, loop, end = [], [], []
        for r in self.rows:
            loop.append(f"w = {buffer}[{r * self.tile} + j]")
            for c in range(COLUMNS):
                start.append(f"a{r}_{c} = real(0.0)")
                loop.append(f"a{r}_{c} += w * Vc[{c * self.tile} + j]")
                end.append(f"acc[g + {r}, {column} + c + {c}] += a{r}_{c}")
        return _block(
            f"for c in range(0, T, {COLUMNS}):",
            [
                f"Vc = Sj[(D + c) * {self.tile}:(D + c + {COLUMNS}) * {self.tile}]",
                *start,
                *_block("for j in range(nj):", loop),
                *end,
            ],
        )

    def forces(self) -> list[str]:
        """Sum sb * (x - y), CHUNK features at a time, one column."""
        start, loop, end = self.load(CHUNK, "c + "), [], []
        for r in self.rows:
            loop.append(f"w = sb[{r * self.tile} + j]")
            for k in range(CHUNK):
                start.append(f"g{r}_{k} = real(0.0)")
                loop.append(f"g{r}_{k} += w * (x{r}_{k} - Sc[{k * self.tile} + j])")
                end.append(f"acc[g + {r}, {int(self.v.value)} + c + {k}] += g{r}_{k}")
        return _block(
            f"for c in range(0, D, {CHUNK}):",
            [
                f"Sc = Sj[c * {self.tile}:(c + {CHUNK}) * {self.tile}]",
                *start,
                *_block("for j in range(nj):", loop),
                *end,
            ],
        )

    # -- log-sum-exp -------------------------------------------------------------------------------

    def logarithmic(self) -> list[str]:
        """Online maximum: exponents of a tile first, then one exponential a pair relative to the maximum.

        Differs from the textbook recurrence, which takes two exponentials a pair: the exponents wait in a
        buffer, so the maximum of the whole tile is known before the first exponential.
        """
        log_phi, log_slope = self.trace.log_phi, self.trace.log_slope
        if log_phi is None or log_slope is None:
            raise ValueError("log-sum-exp needs one positive radial kernel")
        lines, (exponent,) = self.printed(mul(LOG2_E, log_phi))
        first: list[str] = []
        start, raise_maximum = self.load(self.v.features), []
        for r in self.rows:
            start.append(f"h{r} = real(-np.inf)")
            first += [
                *self.distance(r),
                *lines,
                f"u = {exponent} + {self.weight(0)}",
                f"ub[{r * self.tile} + j] = u",
                f"h{r} = larger(h{r}, u)",
            ]
            raise_maximum += [
                *_block(
                    f"if h{r} > top[g + {r}]:",
                    [
                        *_block(
                            f"if top[g + {r}] > -np.inf:",
                            [f"acc[g + {r}, :] *= np.exp2(np.float64(top[g + {r}]) - h{r})"],
                        ),
                        f"top[g + {r}] = h{r}",
                    ],
                ),
                f"h{r} = top[g + {r}] if top[g + {r}] > -np.inf else real(0.0)",
            ]
        lines, (slope,) = self.printed(log_slope)
        slope = self.guard(lines, slope)
        second, sums, end = [], [], []
        for r in self.rows:
            sums.append(f"a{r} = real(0.0)")
            second += [f"w = exp2(ub[{r * self.tile} + j] - h{r})", f"a{r} += w"]
            end.append(f"acc[g + {r}, 0] += a{r}")
            if self.v.slope:
                second += [*self.distance(r), *lines, f"w *= {slope}"]
                if self.v.features == 0:
                    second.append(f"sb[{r * self.tile} + j] = w")
                for k in range(self.v.features):
                    sums.append(f"g{r}_{k} = real(0.0)")
                    second.append(f"g{r}_{k} += w * d{k}")
                    end.append(f"acc[g + {r}, {1 + k}] += g{r}_{k}")
        body = [
            *self.head(),
            *start,
            *_block("for j in range(nj):", first),
            *raise_maximum,
            *sums,
            *_block("for j in range(nj):", second),
            *end,
        ]
        return body + (self.forces() if self.v.slope and not self.v.features else [])

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
        group = self.logarithmic() if v.log else self.direct() if v.direct else self.staged()
        text = "\n".join(group)
        buffers = [
            f"{b} = np.empty({size}, real)"
            for b in ("qb", "ub", "kb", "sb", "wb")
            if f"{b}[" in text
        ]
        symbols = [f"{name} = P[{a + 1}]" for a, name in enumerate(self.trace.symbols)]
        log = ["top = np.empty(block, real)"] if v.log else []
        tiles = [
            "Sj = S[tile]",
            f"nj = min({self.tile}, m - {self.tile} * tile)",
            *_block(f"for g in range(0, nb, {v.targets}):", group),
        ]
        blocks = [
            "nb = min(block, stop - ib)",
            "acc[:, :] = 0.0",
            *(["top[:] = -np.inf"] if v.log else []),
            *_block("for tile in range(S.shape[0]):", tiles),
            *_block("for i in range(nb):", self.flush()),
        ]
        body = [
            "kappa = P[0]",
            *symbols,
            "D = X.shape[1]",
            "acc = np.empty((block, width), np.float64)",
            *log,
            *buffers,
            *_block("for ib in range(start, stop, block):", blocks),
        ]
        arguments = (
            "start, stop, block, width, n_features, n_columns, T, m, "
            "value_factor, slope_factor, X, S, P, out, grad"
        )
        real = v.real
        signature = (
            f"void({', '.join(['int64'] * 8)}, float64, float64, {real}[:, ::1], {real}[:, ::1], "
            f"{real}[::1], {real}[:, ::1], {real}[:, :, ::1])"
        )
        return "\n".join(
            [
                f'"""Generated by gpukoop: {v!r}."""',
                "",
                "import numpy as np",
                "from numba import njit",
                f"from numpy import {real} as real",
                "",
                "from gpukoop.kernels.simd_cpu import larger, sqrt",
                f"from gpukoop.kernels.simd_cpu import exp2_{real}_{v.degree} as exp2",
                *(
                    f"from gpukoop.kernels.simd_cpu import {f}_{real} as {f}"
                    for f in ("log2", "rsqrt", "reciprocal")
                ),
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
