"""Local sums in emitted PTX, executed on the CPU by the lane of ptx.py: lists of tiles, real block and tile sizes."""

import time

import numpy as np

# name of a kernel, op, d, t, dtype; with several columns the data have several
CASES = [
    *(("gaussian", f"local {op}", 3, 1, "float32") for op in ("product", "gradient", "logsumexp")),
    ("gaussian", "local value_and_gradient", 2, 1, "float64"),
    ("gaussian", "local product", 3, 4, "float32"),
    ("gaussian", "local value_and_gradient", 2, 4, "float32"),
    ("laplace", "local value_and_gradient", 3, 1, "float32"),
    *(("sum", f"local {op}", 3, 1, "float32") for op in ("value_and_gradient", "logsumexp")),
]
# two blocks and ten tiles, both ragged; tolerances that pick the dot and the difference form
SIZES, TOLERANCES = (1100, 1157), (1e-3, 1e-6)


def run(case, built):
    """Return complaints about one case; ``built(program)`` is the module of a program."""
    import local_sums as local
    import oracle
    import ptxcpu

    from gpukoop.kernels.cuda.packing import Clouds
    from gpukoop.kernels.cuda.pairs import lists as cells_cuda
    from gpukoop.kernels.cuda.pairs.plan import Plan, Sizes
    from gpukoop.kernels.formula.catalogue import Gaussian, Laplace, Matern32
    from gpukoop.kernels.operation import OPERATIONS
    from gpukoop.testing import tolerance

    name, op, d, t, dtype = case
    op = op.removeprefix("local ")
    make = {
        "gaussian": Gaussian,
        "laplace": lambda scale: Laplace(scale / 4),
        "matern32": lambda scale: Matern32(scale / 2),
        "sum": lambda scale: Gaussian(scale) + 0.5 * Matern32(scale / 4),
    }[name]
    started = time.perf_counter()
    local.lower_thresholds(setattr)
    cells_cuda.NEAR = 3
    entries = {}
    for each in dict.fromkeys((op, "product" if "gradient" in op else op)):
        sizes = Sizes(OPERATIONS[each], Clouds(1, 1, d, dtype, False), t, listed=True)
        entries |= {p.name: built(p) for p in Plan(make(1.0), sizes).programs.values()}
    worst, complaints, skipped = 0.0, [], []
    data = [f for f in local.DATA if f is not local.columns]
    # every second set, so that neighbouring cases share them out; several columns have data of their own
    data = (local.columns, local.clusters) if t > 1 else data[CASES.index(case) % 2 :: 2]
    for place in data:
        if op == "logsumexp" and place is local.clusters:
            continue  # the oracle's long double would underflow
        X, Y, V, scale = local.problem(place, *SIZES, d, dtype)
        V = (V if V.shape[1] == t else V * 10.0 ** -np.arange(t)).astype(dtype)
        V = local.logarithms(V).astype(dtype) if op == "logsumexp" else V
        kernel = make(scale)
        exact = getattr(oracle, op)(oracle.terms_of(kernel), X, Y, V)
        exact = exact if isinstance(exact, tuple) else (exact,)
        for tol in TOLERANCES:
            found = []
            for order in (0, 1, 2):

                class Engine:
                    xp = np

                    def run(self, plan, buffers, order=order):
                        for entry, grid, block, shared, args in plan.launches:
                            values = (buffers[a] for a in args)
                            values = [ptxcpu.Ptr(a) if np.ndim(a) else a for a in values]
                            launch = entries[entry][entry].launch
                            launch(grid, block, values, shared=shared, order=order)
                        part = plan.parts[0]
                        visited = int(buffers[part.name("bounds")][-1])
                        skipped.append(visited < part.rows * part.tiles)

                result = local.make_local(kernel, op, X, Y, V, tol, Engine()).run()
                found.append(result if isinstance(result, tuple) else (result,))
            where = f"{' '.join(map(str, case))} {place.__name__} tol={tol}"
            if any(
                a.tobytes() != b.tobytes() for f in found for a, b in zip(found[0], f, strict=True)
            ):
                complaints.append(f"{where}: bits depend on the order of threads")
            bound = tolerance(kernel, X, Y, V, op, tol=tol)
            bound = bound if isinstance(bound, tuple) else (bound,)
            for result, truth, within in zip(found[0], exact, bound, strict=True):
                excess = float(np.max(np.abs(result - truth) / (within + 1e-300)))
                worst = max(worst, excess)
                if not excess <= 1:
                    complaints.append(f"{where}: error is {excess:.3g} times the tolerance")
    if not any(skipped[1::2]):
        complaints.append(f"{' '.join(map(str, case))}: no tile was left out")
    return case, worst, time.perf_counter() - started, complaints
