"""The CUDA reductions in Numba's simulator: run by test_cuda_simulator.py in a process of its own.

The simulator is switched on by the environment before Numba is imported, so it cannot share a process with the rest
of the suite. Prints one line a failure, and the number of checks last.
"""

import itertools
import sys
import warnings

import numpy as np
import oracle

from gpukoop.kernels.cuda import reduce as reduce_cuda
from gpukoop.kernels.cuda.engine import SIMULATOR_BLOCK, NumbaEngine
from gpukoop.kernels.cuda.packing import Clouds
from gpukoop.kernels.cuda.pairs.plan import Plan, Sizes
from gpukoop.kernels.formula.catalogue import (
    CATALOGUE,
    Gaussian,
    Laplace,
    Matern32,
    RationalQuadratic,
    Riesz,
)
from gpukoop.kernels.operation import LOGSUMEXP_AND_GRADIENT, OPERATIONS, PRODUCT
from gpukoop.testing import tolerance

OPS = ("product", "gradient", "value_and_gradient", "logsumexp", "logsumexp_and_gradient")
KERNELS = [make() for make in CATALOGUE.values()]
KERNELS += [
    Riesz(exponent=1.3),
    RationalQuadratic(0.7, alpha=0.6),
    Gaussian(1.0) + 0.5 * Matern32(2.0),
]


def data(n, m, d, t, dtype, shift, spread=1.0):
    rng = np.random.default_rng(17 * n + m + d)
    X = (rng.normal(size=(n, d)) * spread + shift).astype(dtype)
    Y = (rng.normal(size=(m, d)) * spread + shift).astype(dtype)
    same = min(n, m, 4)
    Y[:same] = X[:same]  # coinciding points: q = 0
    return X, Y, rng.normal(size=(m, t)).astype(dtype)


def check(kernel, op, n, m, d, t, dtype, shift=0.0, spread=1.0, tol=None):
    """Return a complaint, or an empty string."""
    X, Y, V = data(n, m, d, t, dtype, shift, spread)
    if "logsumexp" in op:
        if not kernel.positive:
            return ""
        V = 3 * V[:, 0]
        if m > 3:
            V[1] = -np.inf
    got = reduce_cuda.reduce(kernel, OPERATIONS[op], X, Y, V, tol=tol)
    exact = getattr(oracle, op)(oracle.terms_of(kernel), X, Y, V)
    bound = tolerance(kernel, X, Y, V, op, tol=tol)
    if not isinstance(got, tuple):
        got, exact, bound = (got,), (exact,), (bound,)
    for result, truth, within in zip(got, exact, bound, strict=True):
        if result.shape != truth.shape or result.dtype != dtype:
            return f"{result.shape} {result.dtype} instead of {truth.shape} {dtype}"
        excess = float(np.max(np.abs(result - truth) / (within + 1e-300)))
        if not excess <= 1:
            return f"error is {excess:.3g} times the tolerance"
    return ""


def cases():
    """Every kernel with every operation, then the sizes that hurt."""
    for kernel, op in itertools.product(KERNELS, OPS):
        yield kernel, op, (20, 40, 3, 1, "float32")  # a ragged block, and two tiles
    block = 2 * SIMULATOR_BLOCK + 1
    shapes = [(1, 40, 1, 1), (40, 1, 2, 3), (block, 33, 5, 1), (33, 65, 17, 3), (20, 40, 30, 2)]
    for op, (i, shape) in itertools.product(OPS, enumerate(shapes)):
        kernel = (Gaussian(0.8), Laplace(1.5))[i % 2]
        yield kernel, op, (*shape, "float64" if i % 2 else "float32", 100.0)
    yield (
        KERNELS[-1],
        "product",
        (5, 40, 30, 3, "float32"),
    )  # its symbols beside three columns, wide
    for op in ("product", "logsumexp"):
        yield Gaussian(1.0), op, (33, 65, 4, 1, "float32", 0.0, 0.1, 1e-5)  # dot form
        yield Gaussian(1.0), op, (20, 40, 30, 1, "float32", 0.0, 0.1, 1e-5)  # dot form, wide
        yield Gaussian(1.0), op, (33, 65, 3, 1, "float32", 0.0, 15.0)  # exact form
    for op in OPS:
        yield Matern32(1.0), op, (20, 40, 2, 1, "float64")


def forms():
    """The data decide the form: tight clouds dot, ordinary ones difference, far-flung ones exact."""
    found = []
    for spread, tol in ((0.1, 1e-5), (1.0, None), (100.0, None)):
        X, Y, V = data(70, 90, 3, 1, "float32", 50.0, spread)
        clouds = Clouds(70, 90, 3, "float32", False)
        plan = Plan(Gaussian(1.0), Sizes(PRODUCT, clouds, 1, tol, block=SIMULATOR_BLOCK))
        plan.summing = []  # the points alone
        buffers = plan.pack(X, Y, V)
        NumbaEngine().run(plan, buffers)
        found.append(int(buffers["pick"][0]))
    return "" if found == [0, 1, 2] else f"forms {found} instead of [0, 1, 2]"


def nothing_weighs():
    """All weights exp(-inf): -inf, and a gradient of zero."""
    X, Y, _ = data(5, 6, 2, 1, "float32", 0.0)
    b = np.full(6, -np.inf, np.float32)
    value, slope = reduce_cuda.reduce(Laplace(1.0), LOGSUMEXP_AND_GRADIENT, X, Y, b)
    return "" if np.all(value == -np.inf) and np.all(slope == 0) else f"{value} {slope}"


def nothing_is_silent():
    """A weight that is NaN or infinite reaches every target: the host hears of it later, the result shows it at once."""
    X, Y, V = data(20, 40, 3, 1, "float32", 0.0)
    for kernel, op, bad in itertools.product((Gaussian(1.0), Riesz(1.3)), OPS, (np.nan, np.inf)):
        if "logsumexp" in op and not kernel.positive:
            continue
        v = V.copy()
        v[36] = bad
        v = v[:, 0] if "logsumexp" in op else v
        got = reduce_cuda.reduce(kernel, OPERATIONS[op], X, Y, v)
        values = (
            got[:1] if "logsumexp" in op and isinstance(got, tuple) else got
        )  # a slope of nothing is 0
        for result in values if isinstance(values, tuple) else (values,):
            finite = np.isfinite(result).reshape(len(result), -1).all(1)
            if finite.any():
                return f"{kernel!r} {op}: {finite.sum()} targets do not show a weight of {bad}"
    return ""


def main():
    warnings.simplefilter("error")
    first = (forms(), nothing_weighs(), nothing_is_silent())
    complaints, count = [c for c in first if c], len(first)
    for kernel, op, arguments in cases():
        complaint = check(kernel, op, *arguments)
        count += 1
        if complaint:
            complaints.append(f"{kernel!r} {op} {arguments}: {complaint}")
    sys.stdout.write("\n".join([*complaints, f"{count} checks, {len(complaints)} failed"]) + "\n")
    return bool(complaints)


if __name__ == "__main__":
    sys.exit(main())
