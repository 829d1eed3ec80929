r"""Kernel sums over points of many features: products of matrices, tile by tile, and an epilogue on each tile.

======== ============================ ===================================================================
letter   shape                        meaning
======== ============================ ===================================================================
X, Y     (n, d), (m, d)               targets and sources as they came
x, y     padded                       centred, pre-scaled: q = |x - y|^2
tile     (rows, count)                inner products, then what the epilogue makes of them; one workspace
======== ============================ ===================================================================

Sums of one column are made in the epilogue. Several columns, and gradients, are a second product of the tile with weights; gradients
are x sum_j p_j - sum_j p_j y_j over pairs that are not close, where nothing cancels, and differences for the others. Across tiles
everything is added in float64, in order: results repeat bit for bit. Errors: see ``precision`` and ``choice``. No tile at all have
points that fit into the registers of tensor cores (``fused``), and float32 sums of one column on CUDA cores (``outer``).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpukoop.kernels.arrays import Array
from gpukoop.kernels.cuda.matrix.choice import Choice, choose, measure
from gpukoop.kernels.cuda.matrix.cublas import AbstractEngine
from gpukoop.kernels.cuda.matrix.epilogue import ROWS, Epilogue, epilogue
from gpukoop.kernels.cuda.matrix.fused import Sums, fits
from gpukoop.kernels.cuda.matrix.outer.shape import suits
from gpukoop.kernels.cuda.matrix.outer.sums import OuterSums
from gpukoop.kernels.cuda.matrix.precision import (
    FEWEST_FEATURES,
    Points,
    norms,
    operands,
    prepared,
    round_up,
)
from gpukoop.kernels.cuda.pairs.plan import join
from gpukoop.kernels.cuda.program import label
from gpukoop.kernels.cuda.specification import WIDEST_TILE
from gpukoop.kernels.formula.profile import AbstractKernel, KernelSum, trace

# A tile: 128 MB in float32. Smaller ones would stay in the second-level cache, but then launches cost more than they do.
TARGETS, SOURCES = 4096, 8192
# Sources of one slice of the second product: float32 sums are as long, float64 takes over. Equal addends in sequence
# lose 3.7e-6 over 256, 1.5e-5 over 1024.
STEP = 256
# Columns of one second product (one gradient at least), and numbers of its slices: 256 MB in float32.
WIDTH, PARTS = 512, 2**26


def applies(dtype: str, d: int, precision: str) -> bool:
    """Return whether products of matrices are to be considered.

    Without matrix units a tile costs what it costs to write and read it, 8 bytes a pair: with so few features that
    registers hold the points, the fused loop needs less time than that.
    """
    if precision == "fp32":
        return d > WIDEST_TILE
    return d >= FEWEST_FEATURES and dtype == "float32"


def reduce(
    engine: AbstractEngine,
    kernel: AbstractKernel,
    op: str,
    X: Array,
    Y: Array,
    V: Array,
    *,
    tol: float | None = None,
    precision: str = "fp32",
    memory: dict[str, Any] | None = None,
) -> Any:
    """Return the reduction, or None where differences are the better way.

    Parameters
    ----------
    engine : AbstractEngine
    kernel : AbstractKernel
        With numeric scales.
    op : str
        As in :mod:`gpukoop.kernels.cuda.reduce`.
    X, Y : arrays of shape (n, d) and (m, d)
    V : array of shape (m, t) or (m,)
        Weights; logarithms of them, (m,), for log-sum-exp.
    tol, precision
        Accuracy asked; how points are multiplied.
    memory : dict, optional
        Keeps what was measured and packed of the points, and the :class:`Choice` as "matrix".

    Notes
    -----
    Cost: 2 n m d operations for values, twice that for gradients. Memory beyond the results: copies of the points, one tile
    (two for values and gradients of several columns). Waits for the device once, at the first call of an operator.
    """
    memory = {} if memory is None else memory
    xp = engine.xp
    if "logsumexp" in op and len(kernel.terms) > 1:
        outs = []
        for c, radial in kernel.terms:
            run = _Run(engine, KernelSum(((c, radial),)), op, X, Y, V, memory)
            if run.choose(tol, precision, memory).path != "matrix":
                return None
            outs.append(run.result())
        found = join(outs, xp)
    else:
        run = _Run(engine, kernel, op, X, Y, V, memory)
        if run.choose(tol, precision, memory).path != "matrix":
            return None
        found = run.result()
    order = [found[name] for name in ("value", "slope") if name in found]
    if V.ndim == 1:
        order = [a[:, 0] for a in order]
    return order[0] if len(order) == 1 else tuple(order)


class _Run:
    """One reduction of one trace."""

    def __init__(
        self,
        engine: AbstractEngine,
        kernel: AbstractKernel,
        op: str,
        X: Array,
        Y: Array,
        V: Array,
        memory: dict[Any, Any],
    ) -> None:
        xp = engine.xp
        self.engine, self.kernel, self.op, self.xp = engine, kernel, op, xp
        self.X, self.Y = xp.ascontiguousarray(X), xp.ascontiguousarray(Y)
        (self.n, self.d), self.m = X.shape, len(Y)
        self.real = np.dtype(X.dtype.name).type
        self.trace = trace(kernel)
        self.step = min(STEP, round_up(self.m, engine.block))
        self.memory, scale = memory, self.trace.prescale
        self.x, self.y, self.nx, self.ny = prepared(X, Y, scale, (ROWS, self.step), memory, xp)
        self.V = self.weights(V)
        self.t = self.V.shape[1]
        self.spec = Epilogue(op, self.t > 1, X.dtype.name, engine.block)

    def weights(self, V: Array) -> Array:
        """Return the weights, (m, t), padded so that padded sources weigh nothing."""
        log = "logsumexp" in self.op
        W = V.reshape(self.m, -1)
        fill = -math.inf if log else 0.0
        out = self.xp.full((len(self.y), W.shape[1]), fill, self.x.dtype)
        out[: self.m] = W.astype(float) / math.log(2.0) if log else W
        return out

    def choose(self, tol: float | None, precision: str, memory: dict[str, Any]) -> Choice:
        """Return who computes; what was measured is kept, the numbers are those of this kernel's scale."""
        xp, key = self.xp, f"cloud {self.trace.prescale!r} {precision}"
        nx, ny = self.nx, self.ny
        if key not in memory:
            n, m = self.n, self.m
            memory[key] = measure(self.x[:n], self.y[:m], nx[:n], ny[:m], precision, xp)
        dtype = self.x.dtype.name
        choice = choose(self.kernel, self.op, self.m, self.d, dtype, precision, tol, memory[key])
        memory["matrix"] = self.choice = choice
        self.tensor, self.n_parts = choice.precision != "fp32", 1 + (choice.precision == "3xtf32")
        self.fused = self.tensor and fits(self.op, self.d, self.t, self.n_parts)
        self.outer = not self.tensor and suits(self.op, self.d, self.t, dtype)
        if choice.path == "matrix" and not (self.fused or self.outer):
            self.left = self._points(self.x, nx, 0)
            self.right = self._points(self.y, ny, 1)
        return choice

    def _points(self, x: Array, squares: Array, side: int) -> Points:
        matrix, points = operands(x, self.choice.precision, side, self.xp)
        if points is not x:
            squares = norms(points, self.xp)
        return Points(matrix, points, squares.astype(x.dtype))

    def result(self) -> dict[str, Array]:
        """Return the outputs, (n, t) and (n, t, d), by name."""
        if self.fused or self.outer:
            points = self.X, self.Y, self.x[: self.n], self.y[: self.m], self.V[: self.m]
            named = self.engine, self.trace, label(self.kernel), self.op
            request = *named, *points, self.choice.cut, self.memory
            sums = OuterSums(*request) if self.outer else Sums(*request, self.n_parts)
            with self.engine.scope():
                return sums.result()
        xp, spec, (n, t, d) = self.xp, self.spec, (self.n, self.t, self.d)
        found = {}
        if spec.value or spec.exponent:
            found["value"] = xp.empty((n, t), self.x.dtype)
        if spec.slope:
            found["slope"] = xp.empty((n, t, d), self.x.dtype)
        padded, sources = len(self.x), len(self.y)
        width = max(d + 1, min(t * (d + 1), WIDTH)) if spec.slope else min(t, WIDTH)
        each = max(SOURCES // STEP * width, t * (d + 1) if spec.slope else t)
        self.rows = min(padded, TARGETS, max(ROWS, PARTS // each // ROWS * ROWS))
        self.count = min(sources, SOURCES)
        self.tiles = -(-sources // self.count)
        self.allocate()
        with self.engine.scope():
            for i0 in range(0, padded, self.rows):
                rows = min(self.rows, padded - i0)
                for name, part in self.target_tile(i0, rows).items():
                    found[name][i0 : i0 + rows] = part[: min(rows, n - i0)]
        return found

    def allocate(self) -> None:
        """Allocate what all tiles share."""
        xp, spec, dtype = self.xp, self.spec, self.x.dtype
        self.entry = epilogue(self.kernel, spec, self.engine.simulator)
        size = self.rows * self.count
        self.buffers: dict[str, Array] = {
            "tile": xp.empty(size, dtype),
            "nx": self.left.norms,
            "ny": self.right.norms,
            "a": self.X.ravel(),
            "b": self.Y.ravel(),
            "w": self.V.ravel(),
        }
        for name in spec.arrays:
            if name in ("part", "top", "sum"):
                self.buffers[name] = xp.empty(self.tiles * self.rows, dtype)
            elif name in ("close", "correction"):
                self.buffers[name] = xp.empty(self.rows * self.t * self.d, dtype)
            elif name == "values":
                self.buffers[name] = xp.empty(size, dtype)

    def arguments(self, **sizes: int) -> tuple[Any, ...]:
        """Return the arguments of the epilogue in its order."""
        scalars: dict[str, Any] = {k: np.uint64(v) for k, v in sizes.items()}
        scalars["cut"] = self.real(self.choice.cut)
        scalars["stretch"] = self.real(self.trace.prescale**2)
        scalars |= {
            k: self.real(v) for k, v in zip(self.trace.symbols, self.trace.values, strict=True)
        }
        both = self.buffers | scalars
        return tuple(both[name] for name in self.spec.arguments(self.trace))

    def target_tile(self, i0: int, rows: int) -> dict[str, Array]:
        """Return the outputs of one tile of targets, in float64."""
        xp, spec, d, t = self.xp, self.spec, self.d, self.t
        sums: dict[str, Array] = {}
        moments: Array = 0.0
        close: Array = 0.0
        top = xp.full(rows, -math.inf)
        for name in ("close", "correction") if spec.slope else ():
            self.buffers[name].fill(0)
        for k, j0 in enumerate(range(0, len(self.y), self.count)):
            count = min(self.count, len(self.y) - j0)
            tile = self.buffers["tile"][: rows * count].reshape(rows, count)
            left, right = self.left.matrix[i0 : i0 + rows], self.right.matrix[j0 : j0 + count]
            self.engine.inner(left, right, tile, self.tensor)
            arguments = self.arguments(
                i0=i0, j0=j0, count=count, at=k * self.rows, d=d, t=t,
                last_i=self.n - 1, last_j=self.m - 1,
            )  # fmt: skip
            self.engine.launch(self.entry, rows // ROWS, arguments)
            if spec.slope and spec.exponent:
                # References differ from tile to tile: what was summed is moved to the larger one.
                here = self.buffers["top"][k * self.rows :][:rows].astype(float)
                peak = xp.maximum(top, here)
                old, new = (xp.exp2(a - peak)[:, None, None] for a in (top, here))
                moments = moments * old + self.moments(tile, j0) * new
                close = close * old + self.close(rows) * new
                top = peak
                for name in ("close", "correction"):
                    self.buffers[name].fill(0)
            elif spec.slope:
                moments = moments + self.moments(tile, j0)
            if t > 1 and spec.value:
                name = "values" if spec.slope else "tile"
                values = self.buffers[name][: rows * count].reshape(rows, count)
                part = self.second(values, self.V[j0 : j0 + count])
                sums["value"] = sums.get("value", 0.0) + part
        if spec.sums:
            sums["value"] = self.parts("part", rows).sum(axis=0)[:, None]
        if spec.exponent:
            peaks, totals = self.parts("top", rows), self.parts("sum", rows)
            peak = peaks.max(axis=0)
            total = (totals * xp.exp2(peaks - peak)).sum(axis=0)[:, None]
            with np.errstate(divide="ignore"):
                sums["value"] = math.log(2.0) * (peak[:, None] + xp.log2(total))
        if spec.slope:
            if not spec.exponent:
                close = self.close(rows)
            scale = self.trace.prescale
            x = self.left.points[i0 : i0 + rows, None].astype(float)
            slope = 2 * scale * (x * moments[..., :1] - moments[..., 1:]) + 2 * scale**2 * close
            if spec.exponent:
                slope = xp.where(total > 0, slope[:, 0] / xp.where(total > 0, total, 1), 0)[:, None]
            sums["slope"] = slope
        return sums

    def parts(self, name: str, rows: int) -> Array:
        """Return results of the tiles of sources, (tiles, rows), in float64."""
        return self.buffers[name].reshape(self.tiles, self.rows)[:, :rows].astype(float)

    def close(self, rows: int) -> Array:
        """Return the sums over close pairs, (rows, t, d), in float64."""
        size = rows * self.t * self.d
        return self.buffers["close"][:size].reshape(rows, self.t, self.d).astype(float)

    def moments(self, tile: Array, j0: int) -> Array:
        """Return sum_j p_j v_j and sum_j p_j v_j y_j, (rows, t, 1 + d), in float64."""
        xp, d = self.xp, self.d
        y = self.right.points[j0 : j0 + tile.shape[1]]
        W = xp.ones((len(y), 1), y.dtype) if self.spec.exponent else self.V[j0 : j0 + len(y)]
        some = max(1, WIDTH // (d + 1))
        out = []
        for c in range(0, self.t, some):
            w = W[:, c : c + some]
            both = xp.empty((len(y), w.shape[1], 1 + d), y.dtype)
            # Column 0 sums the weights themselves: with it sum_j p_j and sum_j p_j y_j come from one product.
            both[..., 0] = w
            xp.multiply(w[..., None], y[:, None], out=both[..., 1:])
            part = self.second(tile, both.reshape(len(y), -1))
            out.append(part.reshape(len(part), -1, 1 + d))
        return out[0] if len(out) == 1 else xp.concatenate(out, axis=1)

    def second(self, tile: Array, weights: Array) -> Array:
        """Return tile @ weights: short sums in the dtype of the points, float64 from there."""
        xp, (rows, count), width = self.xp, tile.shape, weights.shape[1]
        parts = []
        some = max(WIDTH, self.d + 1)
        for c in range(0, width, some):
            w = weights[:, c : c + some]
            out = xp.empty((count // self.step, rows, w.shape[1]), tile.dtype)
            self.engine.weigh(tile, w, out)
            parts.append(out.sum(axis=0, dtype=float))
        return parts[0] if len(parts) == 1 else xp.concatenate(parts, axis=1)
