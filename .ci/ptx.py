"""Execute the emitted PTX on the CPU: results within tolerance, bits independent of the order of threads.

    python .ci/ptx.py FOLDER [K/N]

FOLDER holds the emulator (``ptxcpu.py``); without it the lane is skipped. K/N: every N-th case, from the K-th. Race, bounds and barrier checks are on.

A program that the archive holds runs as the archive has it, since that is what a device gets; others are compiled. Each program
is a module of its own, so that those which measure and pack the points are built once for all cases; the cases in MERGED run
the one text of :func:`gpukoop.cuda.compile_ptx` instead. Every kernel's expressions run in the pair loops, both dtypes; the
other loops take a kernel of each sort: smooth, with a kink, singular, a sum.
"""

# ruff: noqa: D103, T201
import concurrent.futures
import functools
import multiprocessing
import os
import sys
import time
from pathlib import Path

import numpy as np
import ptx_cells
import ptx_matrix
import ptx_mma

HERE = Path(__file__).resolve().parent
OPS = ("product", "gradient", "value_and_gradient", "logsumexp", "logsumexp_and_gradient")
# name of a kernel, op, d, t, dtype
CASES = [
    *(("gaussian", op, 3, 1, "float32") for op in OPS),
    *(("gaussian", op, 17, 1, "float32") for op in OPS[::2]),
    *(("laplace", op, 30, 1, "float32") for op in OPS[::2]),
    *(("gaussian", op, 2, 1, "float64") for op in OPS[2::2]),
    *(("matern32", op, 40, 1, "float64") for op in OPS[2::2]),
    ("gaussian", "product", 1, 1, "float32"),
    ("gaussian", "product", 5, 3, "float32"),
    ("gaussian", "product", 3, 20, "float32"),
    ("inverse_multiquadric", "product", 4, 1, "float32"),
    ("gaussian", "value_and_gradient", 2, 3, "float32"),
]
OTHERS = ["laplace", "matern32", "matern52", "inverse_multiquadric", "rational_quadratic"]
CASES += [(k, OPS[2], 3, 1, "float32") for k in (*OTHERS, "sum")]
# the logarithm of an exponential, of a polynomial beside one, of a power, and of a sum
CASES += [
    (k, OPS[4], 3, 1, "float32") for k in ("laplace", "matern52", "inverse_multiquadric", "sum")
]
CASES += [(k, OPS[2], 3, 1, "float32") for k in ("riesz", "energy")]
# float64 wants every function of the catalogue accurate: rsqrt, log2, exp2, division
CASES += [(k, OPS[2], 2, 1, "float64") for k in (*OTHERS, "riesz", "energy")]
# each pair once: all forms of q, columns that share a plane with coordinates and that do not
CASES += [
    *(("gaussian", "symmetric", d, t, "float32") for d, t in ((2, 1), (3, 1), (10, 1), (3, 4))),
    *((k, "symmetric", 3, 1, "float32") for k in ("laplace", "energy", "sum")),
    *((k, "symmetric", 2, 2, "float64") for k in ("gaussian", "riesz", "sum")),
]
CASES += ptx_cells.CASES + ptx_matrix.CASES + ptx_mma.CASES
MERGED = [
    ("gaussian", "value_and_gradient", 17, 1, "float32"),
    ("gaussian", "logsumexp_and_gradient", 2, 1, "float64"),
    ("gaussian", "symmetric", 10, 1, "float32"),
]
# n, m, spread, shift: one target, one source, a block and one, tight and far clouds (dot and exact forms)
SHAPES = [(1, 300, 1, 0), (150, 1, 1, 0), (129, 300, 1, 100), (150, 300, 0.1, 0), (60, 300, 15, 0)]
# one point, a block of targets and one, three ragged blocks; the last in bands of one row of blocks
ONE_CLOUD = [
    (n, n, spread, 0) for n, spread in ((1, 1), (1025, 1), (300, 0.1), (300, 15), (2200, 1))
]


def kernel_named(name):
    from gpukoop.kernels.formula.catalogue import CATALOGUE, Gaussian, Matern32, Riesz

    special = {"riesz": Riesz(exponent=1.3), "sum": Gaussian(1.0) + 0.5 * Matern32(2.0)}
    return special.get(name) or CATALOGUE[name]()


def pointers(values):
    import ptxcpu

    return [ptxcpu.Ptr(a) if isinstance(a, np.ndarray) else a for a in values]


@functools.cache
def built(program):
    """Return the module of one program, by the text that a device would get."""
    import ptxcpu

    from gpukoop.kernels.cuda import archive
    from gpukoop.kernels.cuda.program import compile_ptx

    text = archive.find(program, (9, 0)) or compile_ptx(program, (9, 0))
    return ptxcpu.Module(text, check=True)


def modules(case, kernel, op, sizes):
    """Return {name of an entry: the module that has it} for all that a case may launch."""
    import ptxcpu

    from gpukoop.cuda import compile_ptx, launch_plan

    plan = launch_plan(kernel, op, n=1, m=1, **sizes)
    names = [program.name for program in plan.programs.values()]
    if case in MERGED:
        return dict.fromkeys(names, ptxcpu.Module(compile_ptx(kernel, op, **sizes), check=True))
    return {program.name: built(program) for program in plan.programs.values()}


def run(case):
    """Return complaints about one case."""
    if case in ptx_cells.CASES:
        return ptx_cells.run(case, built)
    if case in ptx_matrix.CASES:
        return ptx_matrix.run(case)
    if case in ptx_mma.CASES:
        return ptx_mma.run(case)
    import oracle

    from gpukoop.cuda import launch_plan
    from gpukoop.testing import tolerance

    name, op, d, t, dtype = case
    kernel = kernel_named(name)
    started = time.perf_counter()
    symmetric = op == "symmetric"
    op = "product" if symmetric else op
    sizes = {"d": d, "t": t, "dtype": dtype, "symmetric": symmetric}
    module = modules(case, kernel, op, sizes)
    worst, complaints = 0.0, []
    for n, m, spread, shift in ONE_CLOUD if symmetric else SHAPES:
        rng = np.random.default_rng(n + m + d)
        X = (rng.normal(size=(n, d)) * spread + shift).astype(dtype)
        Y = (rng.normal(size=(m, d)) * spread + shift).astype(dtype)
        same = min(n, m, 4)
        Y[:same] = X[:same]
        if symmetric:
            X[n - n // 2 :][:4] = X[: n // 2][:4]  # q = 0 off the diagonal, too
            Y = X
        V = rng.normal(size=(m, t)).astype(dtype)
        if "logsumexp" in op:
            V = 3 * V[:, 0]
            if spread * d > 50:  # the oracle's long double would underflow
                continue
            if m > 3:
                V[1] = -np.inf
        plan = launch_plan(kernel, op, n=n, m=m, **sizes)
        if symmetric and n > 2000:
            plan.parts[0].partials = 1
        found = []
        for order in (0, 1, 2):  # ascending, descending, shuffled between barriers
            buffers = plan.pack(X, Y, V)
            for entry, grid, block, shared, args in plan.launches:
                values = pointers(buffers[a] for a in args)
                module[entry][entry].launch(grid, block, values, shared=shared, order=order)
            result = plan.unpack(buffers)
            found.append(result if isinstance(result, tuple) else (result,))
        where = f"{name} {case[1]} d={d} t={t} {dtype} n={n} m={m} spread={spread}"
        if any(a.tobytes() != b.tobytes() for f in found for a, b in zip(found[0], f, strict=True)):
            complaints.append(f"{where}: bits depend on the order of threads")
        exact = getattr(oracle, op)(oracle.terms_of(kernel), X, Y, V)
        bound = tolerance(kernel, X, Y, V, op)
        if not isinstance(exact, tuple):
            exact, bound = (exact,), (bound,)
        for result, truth, within in zip(found[0], exact, bound, strict=True):
            excess = float(np.max(np.abs(result - truth) / (within + 1e-300)))
            worst = max(worst, excess)
            if not excess <= 1:
                complaints.append(f"{where}: error is {excess:.3g} times the tolerance")
    return case, worst, time.perf_counter() - started, complaints


def main(arguments):
    folder = Path(arguments[0]).resolve() if arguments else None
    if folder is None or not (folder / "ptxcpu.py").is_file():
        print(f"skipped: no ptxcpu.py in {folder}")
        return 0
    paths = [str(folder), str(HERE.parent / "tests")]
    sys.path[:0] = paths
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])
    part, parts = map(int, arguments[1].split("/")) if len(arguments) > 1 else (0, 1)
    cases = CASES[part::parts]
    failed = 0
    # Spawned, not forked: the compiler starts threads.
    pool = concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("spawn"))
    with pool:
        for case, worst, seconds, complaints in pool.map(run, cases):
            failed += len(complaints)
            print(
                f"{'FAIL' if complaints else 'ok  '} {' '.join(map(str, case))}: {worst:.3f} of the tolerance, {seconds:.0f} s",
                flush=True,
            )
            for complaint in complaints:
                print("     " + complaint)
    print(f"{len(cases)} cases, {failed} complaints")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
