"""Static cost of the tensor-core programs, without a GPU: instructions a pair, and the bound that follows on an H200.

A multiprocessor of Hopper issues 128 lanes a clock, gives 16 special-function results and 128 bytes of shared memory, and, by
``mma.sync``, 1024 multiply-adds of 16-bit numbers or 512 of TF32: the rate of an A100, half of what its data sheet has for
``wgmma``. So an ``mma`` (m16n8k16, or m16n8k8 of TF32) takes two clocks for its 128 pairs, and

    pairs a clock <= min(128 / slots, 16 / special functions, 16 / products, 16384 targets / bytes of a group of sources)

with products counted a pair and lane: four pairs a lane and ``mma``. Slots are those of the way through a tile of sources on which no
pair is close and no reference is raised, with what stages the next tile.
"""

from __future__ import annotations

import re
from typing import Any

from bench.sass import assemble, functions, missing, opcode
from gpukoop.kernels.cuda.functions import Functions
from gpukoop.kernels.cuda.matrix.shape import THREADS, Shape, ceil
from gpukoop.kernels.cuda.program import Program, compile_ptx
from gpukoop.kernels.formula.catalogue import Gaussian
from gpukoop.kernels.formula.profile import trace
from gpukoop.kernels.operation import OPERATIONS

TITLE = (
    "Tensor cores: instructions a pair and bound on an H200 (compiled for sm_90, counted; no GPU)"
)

# A jump and its label; for sm_80 the assembler leaves some loops by a call that never returns.
JUMP = re.compile(r"(?:BRA|CALL\.REL\.NOINC)(?:\.\w+)*\s+.*?`\((\.L_x_\d+)\)")
# Multiprocessors and clock of an H200 SXM, as under load.
MULTIPROCESSORS, CLOCK = 132, 1.98e9
PARTS = {"3xtf32": 2, "tf32": 1}
# op, features, precision, columns
CASES = [
    *(("product", d, p, 1) for d in (16, 32, 64, 100, 128) for p in PARTS),
    *(("product", 100, p, 16) for p in PARTS),
    *((op, 100, p, 1) for op in ("value_and_gradient", "logsumexp") for p in PARTS),
    ("product", 256, "3xtf32", 1),
]


def shape(op: str, d: int, precision: str, t: int) -> Shape:
    """Return the program of a case; gradients test for close pairs always, sums of a small cloud never."""
    slope = "gradient" in op
    return Shape(op, d, PARTS[precision], d if slope else t if t > 1 else 0, slope)


def code(of: Shape, cc: tuple[int, int] = (9, 0)) -> str:
    """Return the PTX of a Gaussian's program under the label of its shape."""
    functions = Functions(trace(Gaussian(1.0)), OPERATIONS[of.op])
    return compile_ptx(Program(of, functions), cc)


def straight(body: list[str], jumps: dict[int, int], first: int, last: int) -> int:
    """Return the instructions of the shortest way from ``first`` to ``last``: rare branches are jumped over."""
    found = {first: 1}
    reached = [first]
    for at in reached:  # breadth first: the compiler may place a block anywhere
        if at == last:
            break
        ways = [] if re.match(r"BRA(\.\w+)*\s+`|EXIT", body[at]) else [at + 1]
        for to in [*ways, *([jumps[at]] if at in jumps else [])]:
            if to not in found and to < len(body):
                found[to] = found[at] + 1
                reached.append(to)
    return found[last]


def count(of: Shape, ptx: str, arch: str = "sm_90", mufu: int = 1) -> dict[str, Any]:
    """Return what a program costs a pair, and its registers and spills."""
    sass, resources = assemble(ptx, arch)
    ((_, labels, body),) = functions(sass)
    codes = [opcode(i) for i in body]
    jumps = {
        index: labels[found[1]]
        for index, instruction in enumerate(body)
        if (found := JUMP.search(instruction))
    }
    loops = sorted((end - start, start, end) for end, start in jumps.items() if start <= end)
    inner = [(s, e) for _, s, e in loops if "HMMA" in codes[s : e + 1]]
    (group, group_end), (tile, tile_end) = (
        inner[0],
        next((s, e) for s, e in inner if "LDGSTS" in codes[s : e + 1]),
    )
    stages = [
        (s, e)
        for _, s, e in loops
        if tile <= s <= e < tile_end
        and "LDGSTS" in codes[s : e + 1]
        and "HMMA" not in codes[s : e + 1]
    ]
    products = codes[group : group_end + 1].count("HMMA")
    pairs = 4 * products / of.products
    slots = straight(body, jumps, group, group_end) / pairs
    whole = straight(body, jumps, tile, tile_end)
    if (group, group_end) != (tile, tile_end):
        whole -= straight(body, jumps, group, group_end)
    else:
        slots = 0.0
    copied = [codes[s : e + 1].count("LDGSTS") for s, e in stages]
    if stages:
        again = ceil(of.tile_words, 4 * THREADS * copied[0])
        whole += again * (stages[0][1] - stages[0][0] + 1)
    slots += whole / (4 * of.targets * of.groups)
    each = products / pairs
    limits = {
        "issue": 128 / slots,
        "special functions": 16 / mufu,
        "tensor cores": 16 / each,
        "shared memory": 128 * 128 * of.targets / (4 * sum(of.group_words)),
    }
    limit = min(limits, key=lambda name: limits[name])
    return {
        **resources[of.label],
        "local": codes.count("LDL") + codes.count("STL"),
        "slots": round(slots, 2),
        "mma": round(each, 2),
        "mufu": mufu,
        "limit": limit,
        "bound pairs/clk/SM": round(limits[limit], 2),
        "bound Tp/s": round(limits[limit] * MULTIPROCESSORS * CLOCK / 1e12, 3),
    }


def row(op: str, d: int, precision: str, t: int) -> dict[str, Any]:
    """Return a row of the table."""
    of = shape(op, d, precision, t)
    return {
        "case": f"Gaussian {op} d={d}" + (f" t={t}" if t > 1 else "") + f" by {precision}",
        "who": "gpukoop",
        **count(of, code(of)),
        "counted": "compiled here",
    }


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Return the table; ``quick`` counts the first rows only."""
    reason = missing()
    if reason is not None:
        return [{"case": "all", "skipped": reason}]
    try:
        return [row(*case) for case in (CASES[:2] if quick else CASES)]
    except ImportError as error:
        return [{"case": "all", "skipped": str(error)}]


if __name__ == "__main__":
    for each in rows():
        print("  ".join(f"{k} {v}" for k, v in each.items()))
