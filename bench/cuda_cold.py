"""What a CUDA program costs that is neither kept nor in the archive: processor time of its compilation, and Python calls.

    python -m bench.cuda_cold

Needs Numba-CUDA, no device. Seconds are the best of three, of this process alone: imports (1 s) and what Numba registers at its
first compilation (.5 s) are paid before. Calls do not depend on what else the machine does.
"""

from __future__ import annotations

import cProfile
import pstats
import time
from collections.abc import Iterator
from typing import Any

from gpukoop.kernels.cuda.packing import Clouds
from gpukoop.kernels.cuda.pairs.plan import Plan, Sizes
from gpukoop.kernels.cuda.program import Program, assemble, compile_ptx
from gpukoop.kernels.cuda.symmetric.plan import SymmetricPlan
from gpukoop.kernels.formula.catalogue import Gaussian, Matern52
from gpukoop.kernels.formula.profile import AbstractKernel
from gpukoop.kernels.operation import OPERATIONS

CC = (9, 0)
# Kernel, operation, features, dtype, whether each pair of one cloud is visited once: none of them in the archive.
CASES: tuple[tuple[AbstractKernel, str, int, str, bool], ...] = (
    (Gaussian(1.0), "product", 5, "float32", False),
    (Gaussian(1.0), "product", 4, "float32", True),
    (Gaussian(1.0), "value_and_gradient", 4, "float32", False),
    (Gaussian(1.0), "gradient", 8, "float32", False),
    (Gaussian(1.0), "logsumexp", 4, "float64", False),
    (Matern52(1.0), "product", 4, "float64", False),
    (Gaussian(1.0), "product", 30, "float32", False),
)


def programs() -> Iterator[Program]:
    """Yield the loop over pairs of every case, in its exact form, which all have."""
    for kernel, operation, d, dtype, once in CASES:
        sizes = Sizes(OPERATIONS[operation], Clouds(1, 1, d, dtype, once), 1)
        plan = SymmetricPlan(kernel, sizes) if once else Plan(kernel, sizes)
        yield next(p for p in plan.programs.values() if p.kernel and "_exact_" in p.name)


def rows(rounds: int = 3) -> list[dict[str, Any]]:
    """Return a row a program: seconds of NVVM and its front end, of the linker, and million Python calls."""
    found, some = [], list(programs())
    compile_ptx(some[0], CC)
    for program in some:
        compiling, linking = [], []
        for _ in range(rounds):
            start = time.process_time()
            ptx = compile_ptx(program, CC)
            middle = time.process_time()
            assemble(ptx, CC)
            compiling.append(middle - start)
            linking.append(time.process_time() - middle)
        profile = cProfile.Profile()
        profile.runcall(compile_ptx, program, CC)
        found.append(
            {
                "program": program.name,
                "compile CPU s": min(compiling),
                "link CPU s": min(linking),
                "million calls": pstats.Stats(profile).total_calls / 1e6,
            }
        )
    return found


if __name__ == "__main__":
    for row in rows():
        print("  ".join(f"{v:.2f}" if isinstance(v, float) else v for v in row.values()))
