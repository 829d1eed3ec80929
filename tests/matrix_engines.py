"""The matrix path without a device: products by NumPy, epilogues by NumPy, by Numba's simulator, or by a caller.

Matrix units multiply TF32 numbers exactly and add in float32, so NumPy's float32 product of numbers that are TF32
already (asserted) is what they compute, but for the order of additions.
"""

import fragments
import numpy as np
import outer_products

from gpukoop.kernels.cuda.form import log2_phi
from gpukoop.kernels.cuda.matrix.cublas import AbstractEngine
from gpukoop.kernels.cuda.matrix.epilogue import ROWS, Epilogue
from gpukoop.kernels.cuda.matrix.outer.shape import OuterShape
from gpukoop.kernels.cuda.program import label
from gpukoop.kernels.formula.profile import KernelSum, trace
from gpukoop.kernels.reference import evaluate


class HostEngine(AbstractEngine):
    """Products by NumPy; subclasses launch."""

    xp = np

    def __init__(self):
        self.tensor_products = self.products = self.close = 0
        self.shapes = []

    def pairs(self, program, shape, grid, arguments):
        self.shapes.append(shape)
        emulation = outer_products if isinstance(shape, OuterShape) else fragments
        self.close += emulation.run(program.functions.trace, shape, grid, arguments)

    def inner(self, x, y, out, tensor):
        self.products += 1
        self.tensor_products += tensor
        if tensor:
            for a in (x, y):
                assert a.dtype == np.float32
                assert not (a.view(np.int32) & 0x1FFF).any(), "operands are TF32 numbers"
        np.matmul(x, y.T, out=out)

    def weigh(self, tile, weights, out):
        slices = len(out)
        parts = tile.reshape(len(tile), slices, -1).transpose(1, 0, 2)
        np.matmul(parts, weights.reshape(slices, parts.shape[2], -1), out=out)


class NumPyEngine(HostEngine):
    """The epilogue of one kernel, whole tiles at a time: what the generated code must compute."""

    def __init__(self, kernel):
        super().__init__()
        parts = [kernel, *(KernelSum((term,)) for term in kernel.terms)]
        self.traces = {label(part): trace(part) for part in parts[::-1]}

    def launch(self, entry, blocks, arguments):
        columns = "_columns_" in entry.name
        op = next(o for o in OPS if f"_{o}_matrix" in entry.name)
        dtype = entry.name.rpartition("_")[2]
        spec = Epilogue(op, columns, dtype)
        of = self.traces[entry.name.partition(f"_{op}_matrix")[0]]
        g = dict(zip(spec.arguments(of), arguments, strict=True))
        i0, j0, count, at, d, t, last_i, last_j = (
            int(g[s]) for s in ("i0", "j0", "count", "at", "d", "t", "last_i", "last_j")
        )
        rows, real = blocks * ROWS, np.dtype(dtype).type
        tile = g["tile"][: rows * count].reshape(rows, count)
        norms = g["nx"][i0 : i0 + rows, None] + g["ny"][j0 : j0 + count]
        q = norms - (tile + tile)
        close = q < g["cut"] * norms
        self.close += int(close.sum())
        i, j = np.nonzero(close)
        a, b = g["a"].reshape(-1, d), g["b"].reshape(-1, d)
        difference = a[np.minimum(i0 + i, last_i)] - b[np.minimum(j0 + j, last_j)]
        q[i, j] = g["stretch"] * (difference * difference).sum(axis=1)
        symbols = tuple(g[s] for s in of.symbols)

        def at_q(tree, guard):
            with np.errstate(all="ignore"):
                value = evaluate(tree, q, of.symbols, symbols).astype(real)
            return np.where(q > 0, value, real(0)) if guard else value

        w = g["w"].reshape(-1, t)[j0 : j0 + count]
        factor = real(1)
        if spec.exponent:
            logarithm = w[:, 0] + at_q(log2_phi(of), False)
            top = np.maximum(logarithm.max(axis=1), real(-1e30))
            factor = np.exp2(logarithm - top[:, None])
            g["top"][at : at + rows] = top
            g["sum"][at : at + rows] = factor.sum(axis=1, dtype=float)
        if spec.value:
            value = at_q(of.phi, of.singular)
            if spec.sums:
                g["part"][at : at + rows] = (value * w[:, 0]).sum(axis=1, dtype=float)
            else:
                place = g["values"] if spec.slope else g["tile"]
                place[: rows * count] = value.ravel()
        if spec.slope:
            slope = factor * at_q(
                of.log_slope if spec.exponent else of.dphi, of.kink or of.singular
            )
            tile[:] = np.where(close, real(0), slope)
            weights = np.ones_like(w) if spec.exponent else w
            parts = (slope[i, j, None] * weights[j])[:, :, None] * difference[:, None, :]
            np.add.at(g["close"][: rows * t * d].reshape(rows, t, d), i, parts)


class SimulatorEngine(HostEngine):
    """The generated epilogue and the loop of outer products, thread by thread."""

    simulator = True
    threads = (2, 4)

    def __init__(self, load, block):
        super().__init__()
        self.load, self.block = load, block

    def launch(self, entry, blocks, arguments):
        self.load(entry.name, entry.source)[blocks, self.block](*arguments)

    def pairs(self, program, shape, grid, arguments):
        if not isinstance(shape, OuterShape):
            return super().pairs(program, shape, grid, arguments)
        import sys
        from unittest import mock

        from numba import cuda
        from numba.cuda.simulator.kernelapi import FakeCUDAShared

        def array(memory, shape, dtype, alignment=None):
            # The simulator refuses to hear of alignment; like it, one array for each line of the frame.
            line, fresh = sys._getframe(1).f_lineno, np.full(shape, np.nan, np.float32)
            return memory._allocations.setdefault(
                line, fresh
            )  # at once: these threads are real ones

        self.shapes.append(shape)
        flat = [a.ravel() if isinstance(a, np.ndarray) else a for a in arguments]
        # far pairs overflow on purpose
        with mock.patch.object(FakeCUDAShared, "array", array), np.errstate(all="ignore"):
            cuda.jit(program.build())[grid, shape.threads](*flat)


OPS = ("value_and_gradient", "logsumexp_and_gradient", "product", "gradient", "logsumexp")


def simulate():
    """Run the generated epilogues in Numba's simulator; print a line a failure and the number of checks last."""
    import itertools
    import sys
    import warnings

    import oracle

    from gpukoop.kernels.cuda.engine import SIMULATOR_BLOCK
    from gpukoop.kernels.cuda.matrix import sums as matrix_cuda
    from gpukoop.kernels.cuda.matrix.text import load
    from gpukoop.kernels.formula.catalogue import Gaussian, Laplace, RationalQuadratic
    from gpukoop.testing import tolerance

    warnings.simplefilter("error")
    # three tiles of sources and two of targets, the last ones ragged
    matrix_cuda.SOURCES, matrix_cuda.TARGETS, matrix_cuda.STEP = 32, 12, 32
    kernels = (Gaussian(4.0), Laplace(4.0) + Gaussian(3.0), 0.5 * RationalQuadratic(4.0, alpha=0.7))
    sizes = [(13, 70, 16, 1, "fp32", "float32"), (5, 70, 17, 3, "3xtf32", "float32")]
    sizes += [(5, 70, 16, 1, "fp32", "float64"), (1, 1, 20, 1, "3xtf32", "float32")]
    complaints, count = [], 0
    # every kernel at the first size, one at each other: a case takes a second
    pairs = [(sizes[0], kernel) for kernel in kernels]
    pairs += zip(sizes[1:], kernels, strict=True)
    cases = list(itertools.product(pairs, OPS))
    # outer products: two blocks of targets and three tiles of sources, two chunks of features and a ragged one
    cases += [
        (((19, 70, d, 1, "fp32", "float32"), kernels[d % 2]), op)
        for d in (38, 33)
        for op in OPS[2::2]
    ]
    for ((n, m, d, t, precision, dtype), kernel), op in cases:
        rng = np.random.default_rng(m + d)
        X = (rng.normal(size=(n, d)) + 3).astype(dtype)
        Y = (rng.normal(size=(m, d)) + 3).astype(dtype)
        same = min(n, m, 4)
        Y[:same] = X[:same]
        Y[m // 2] = X[0] + dtype_of(dtype)(1e-3)  # close, but not the same
        V = rng.normal(size=(m, t)).astype(dtype)
        if "logsumexp" in op:
            V = 3 * V[:, 0]
            V[1:2] = -np.inf
        engine = SimulatorEngine(load, SIMULATOR_BLOCK)
        got = matrix_cuda.reduce(engine, kernel, op, X, Y, V, precision=precision)
        if any(isinstance(shape, OuterShape) for shape in engine.shapes) != (d > 24):
            complaints.append(f"{kernel!r} {op} {d}: {engine.shapes} is not the way it should take")
        exact = getattr(oracle, op)(oracle.terms_of(kernel), X, Y, V)
        bound = tolerance(kernel, X, Y, V, op)
        got, exact, bound = (a if isinstance(a, tuple) else (a,) for a in (got, exact, bound))
        count += 1
        for result, truth, within in zip(got, exact, bound, strict=True):
            excess = float(np.max(np.abs(result - truth) / (within + 1e-300)))
            if not excess <= 1 or result.shape != truth.shape or result.dtype != dtype:
                complaints.append(f"{kernel!r} {op} {n} {m} {d} {t} {precision} {dtype}: {excess}")
    sys.stdout.write("\n".join([*complaints, f"{count} checks, {len(complaints)} failed"]) + "\n")
    return bool(complaints)


def dtype_of(name):
    return np.dtype(name).type


if __name__ == "__main__":
    raise SystemExit(simulate())
