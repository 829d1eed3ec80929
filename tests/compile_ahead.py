"""Compile what the tests of a device need, many programs side by side: python compile_ahead.py PART PARTS MAJOR MINOR.

Numba compiles one program at a time in a process, half a second to three each, and a device has 16 cores: so the GPU lane
starts this in as many processes, each takes its part, and the tests find the code on disk.
"""

import itertools
import sys

from gpukoop.kernels.cuda.packing import Clouds
from gpukoop.kernels.cuda.pairs.plan import Sizes
from gpukoop.kernels.cuda.program import machine_code
from gpukoop.kernels.cuda.reduce import make_plan
from gpukoop.kernels.formula.catalogue import CATALOGUE, Gaussian, Matern32
from gpukoop.kernels.operation import OPERATIONS

# What most tests ask for; what a test needs beyond is compiled when it asks.
FEW = 300
MANY = 40_000


def requests():
    """Yield (kernel, sizes): the conformance tests' catalogue, and the Gaussian and the distance of estimators."""
    catalogue = [make() for make in CATALOGUE.values()] + [Gaussian(1.0) + 0.5 * Matern32(2.0)]
    both = ("float32", "float64")
    shapes = [(1, 1), (2, 3), (3, 1), (17, 3), (50, 2)]
    for kernel, op, (d, t), dtype in itertools.product(
        catalogue, OPERATIONS.values(), shapes, both
    ):
        if not op.log or (kernel.positive and t == 1):
            yield kernel, Sizes(op, Clouds(FEW, FEW, d, dtype, False), t)
    for name, dtype, t in itertools.product(("gaussian", "energy"), both, (1, 2)):
        for op, n in itertools.product(OPERATIONS.values(), (FEW, MANY)):
            kernel = CATALOGUE[name]()
            if not op.log or (kernel.positive and t == 1):
                yield kernel, Sizes(op, Clouds(n, n, 2, dtype, True), t)
                yield kernel, Sizes(op, Clouds(n, n, 3, dtype, True), t)


def programs(wanted):
    """Return the programs of requests, each once, in one order."""
    found = {}
    for kernel, sizes in wanted:
        for part in make_plan(kernel, sizes).parts:
            for program in (*part.packing.programs.values(), *part.programs.values()):
                found.setdefault(repr(program.key), program)
    return list(found.values())


def main(part, parts, *cc):
    for program in programs(requests())[part::parts]:
        machine_code(program, cc)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
