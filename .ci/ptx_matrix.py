"""Sums over many features for ``ptx.py``: tensor-core programs whole, epilogues on tiles that NumPy multiplies."""

import time

import numpy as np

OPS = ("product", "gradient", "value_and_gradient", "logsumexp", "logsumexp_and_gradient")
OUTER = [
    ("gaussian", "product", 64),
    ("laplace", "product", 100),
    ("laplace", "logsumexp", 37),
    ("gaussian", "logsumexp", 48),
    ("rational_quadratic", "product", 26),
]
# "matrix", name of a kernel, op, d, t, dtype, precision
CASES = [
    *(("matrix", "gaussian", op, 17, 1, "float32", "3xtf32") for op in OPS),
    ("matrix", "laplace", "product", 40, 11, "float32", "3xtf32"),
    ("matrix", "rational_quadratic", "value_and_gradient", 100, 2, "float32", "3xtf32"),
    ("matrix", "laplace", "logsumexp_and_gradient", 33, 1, "float32", "3xtf32"),
    ("matrix", "gaussian", "product", 300, 1, "float32", "3xtf32"),
    *(("matrix", "laplace", op, 16, 3, "float32", "fp32") for op in OPS[:3]),
    # outer products in registers: whole chunks of features and a ragged last one, with close pairs and without
    *(("matrix", name, op, d, 1, "float32", "fp32") for name, op, d in OUTER),
    *(("matrix", "rational_quadratic", op, 20, 1, "float64", "fp32") for op in OPS[2::2]),
]


def run(case):
    """Return complaints about one epilogue, as ptx.run does."""
    import oracle
    import ptxcpu
    from matrix_engines import HostEngine

    from gpukoop.cuda import compile_entry
    from gpukoop.kernels.cuda.matrix import sums as matrix_cuda
    from gpukoop.kernels.cuda.program import compile_ptx
    from gpukoop.kernels.formula.catalogue import CATALOGUE
    from gpukoop.testing import tolerance

    _, name, op, d, t, dtype, precision = case
    # two tiles of targets, three of sources, the last ones ragged
    matrix_cuda.TARGETS, matrix_cuda.SOURCES, matrix_cuda.STEP = 20, 128, 128
    started, modules = time.perf_counter(), {}

    class Engine(HostEngine):
        def launch(self, entry, blocks, arguments):
            if entry.name not in modules:
                modules[entry.name] = ptxcpu.Module(compile_entry(entry, dtype), check=True)
            launch = modules[entry.name][entry.name].launch
            launch((blocks, 1, 1), (self.block, 1, 1), list(arguments), order=self.order)

        def pairs(self, program, shape, grid, arguments):
            if shape not in modules:
                code = compile_ptx(program, (9, 0))
                modules[shape] = ptxcpu.Module(code, check=True)[program.name]
            flat = [np.ascontiguousarray(a) if isinstance(a, np.ndarray) else a for a in arguments]
            raw = [ptxcpu.Ptr(a) if isinstance(a, np.ndarray) else a for a in flat]
            modules[shape].launch((*grid, 1), (shape.threads, 1, 1), raw, order=self.order)

    kernel, (n, m) = CATALOGUE[name](4.0), (30, 300)
    rng = np.random.default_rng(d)
    X = (rng.normal(size=(n, d)) + 3).astype(dtype)
    Y = (rng.normal(size=(m, d)) + 3).astype(dtype)
    Y[:4] = X[:4]
    Y[5] = X[5] + X.dtype.type(1e-3)  # close, but not the same
    V = rng.normal(size=(m, t)).astype(dtype)
    if "logsumexp" in op:
        V = 3 * V[:, 0]
        V[1] = -np.inf
    found = []
    for order in (0, 1, 2):
        engine = Engine()
        engine.order = order
        result = matrix_cuda.reduce(engine, kernel, op, X, Y, V, precision=precision)
        found.append(result if isinstance(result, tuple) else (result,))
    complaints = []
    if any(a.tobytes() != b.tobytes() for f in found for a, b in zip(found[0], f, strict=True)):
        complaints.append(f"{case}: bits depend on the order of threads")
    exact = getattr(oracle, op)(oracle.terms_of(kernel), X, Y, V)
    bound = tolerance(kernel, X, Y, V, op)
    if not isinstance(exact, tuple):
        exact, bound = (exact,), (bound,)
    worst = 0.0
    for result, truth, within in zip(found[0], exact, bound, strict=True):
        worst = max(worst, float(np.max(np.abs(result - truth) / (within + 1e-300))))
    if not worst <= 1:
        complaints.append(f"{case}: error is {worst:.3g} times the tolerance")
    return case, worst, time.perf_counter() - started, complaints
