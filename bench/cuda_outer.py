"""Static cost of products in registers of CUDA cores, without a GPU: slots a pair, and the bound that follows on an H200.

Counted on the way on which no pair is close and no reference is raised: whole chunks of features, four features at a time of the
last one, and what a tile of sources costs besides. Copies of the next chunk are in it.
"""

from __future__ import annotations

import itertools
import re
from typing import Any

from bench.cuda_tensor import CLOCK, JUMP, MULTIPROCESSORS, straight
from bench.sass import assemble, functions, missing, opcode
from gpukoop.kernels.cuda.functions import Functions
from gpukoop.kernels.cuda.matrix.outer.shape import CHUNK, EACH, OuterShape
from gpukoop.kernels.cuda.matrix.shape import ceil
from gpukoop.kernels.cuda.program import Program, compile_ptx
from gpukoop.kernels.cuda.specification import FEATURE_STEP
from gpukoop.kernels.formula.catalogue import Gaussian
from gpukoop.kernels.formula.profile import AbstractKernel, trace
from gpukoop.kernels.operation import OPERATIONS

TITLE = "Products in registers of CUDA cores, fp32: slots a pair and bound on an H200 (compiled for sm_90, counted; no GPU)"

SHAPES = [OuterShape(op, close) for op in ("product", "logsumexp") for close in (False, True)]
FEATURES = (32, 64, 100, 256)
PAIRS = EACH * EACH


def code(shape: OuterShape, kernel: AbstractKernel | None = None) -> str:
    """Return the PTX of a kernel's program, a Gaussian's by default, under the label of its shape."""
    of = Functions(trace(kernel or Gaussian(1.0)), OPERATIONS[shape.op])
    return compile_ptx(Program(shape, of), (8, 0))


def counted(sass: str) -> dict[str, int]:
    """Return the slots of a thread: a whole chunk of features, four features of the last one, and a tile besides its chunks."""
    ((_, labels, body),) = functions(sass)
    codes = [opcode(i) for i in body]
    jumps = {i: labels[hit[1]] for i, line in enumerate(body) if (hit := JUMP.search(line))}
    loops = sorted((end - start, start, end) for end, start in jumps.items() if start <= end)

    def loop(*wanted: str) -> tuple[int, int]:
        """Return the shortest loop with all of these instructions."""
        return next((s, e) for _, s, e in loops if all(w in codes[s : e + 1] for w in wanted))

    chunk, tile = loop("LDGSTS", "FFMA"), loop("LDGSTS", "MUFU")
    four = next((s, e) for _, s, e in loops if codes[s : e + 1].count("FFMA") >= 4 * PAIRS)
    # The products of a whole chunk stand in one block without a jump; the way through it is that through its middle.
    inside = [i for i in jumps if chunk[0] <= i <= chunk[1]]
    cuts = {*chunk, *(jumps[i] for i in inside), *(i + 1 for i in inside)}
    ordered = sorted(c for c in cuts if chunk[0] <= c <= chunk[1] + 1)
    block = max(itertools.pairwise(ordered), key=lambda c: codes[slice(*c)].count("FFMA"))
    if codes[slice(*block)].count("FFMA") != CHUNK * PAIRS:
        raise RuntimeError(f"no block of {CHUNK * PAIRS} multiply-adds, but of {block}")
    middle = sum(block) // 2
    way = straight(body, jumps, chunk[0], middle) + straight(body, jumps, middle, chunk[1]) - 1
    before = straight(body, jumps, tile[0], chunk[0])
    return {
        "chunk": way,
        "four": straight(body, jumps, *four),
        "tile": before + straight(body, jumps, chunk[1], tile[1]) - 2,
        "local": len(re.findall(r"\b(?:LDL|STL)\b", sass)),
    }


def slots(found: dict[str, int], d: int) -> float:
    """Return the slots a pair of d features."""
    whole, rest = divmod(d, CHUNK)
    total = whole * found["chunk"] + found["tile"]
    if rest:
        # The last chunk costs what surrounds a whole one's products, and its own products.
        around = found["chunk"] - CHUNK * (PAIRS + EACH // 2)
        total += around + ceil(rest, FEATURE_STEP) * found["four"]
    return total / PAIRS


def bound(each: float) -> float:
    """Return Tp/s at one instruction a clock and scheduler; special functions allow sixteen pairs a clock, more than this."""
    return 128 / each * MULTIPROCESSORS * CLOCK / 1e12


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Return the table; ``quick`` counts one program."""
    reason = missing()
    if reason is not None:
        return [{"case": "all", "skipped": reason}]
    table = []
    for shape in SHAPES[:1] if quick else SHAPES:
        try:
            sass, resources = assemble(code(shape))
        except ImportError as error:
            return [{"case": "all", "skipped": str(error)}]
        found = counted(sass)
        for d in FEATURES:
            each = slots(found, d)
            table.append(
                {
                    "case": f"Gaussian {shape.op} d={d}" + ", close pairs tested" * shape.close,
                    **resources[shape.label],
                    "local": found["local"],
                    "slots": round(each, 1),
                    "slots a feature": round(found["chunk"] / (CHUNK * PAIRS), 3),
                    "bound Tp/s": round(bound(each), 3),
                    "85 %": round(0.85 * bound(each), 3),
                }
            )
    return table


if __name__ == "__main__":
    for line in rows():
        print("  ".join(f"{k} {v}" for k, v in line.items()))
