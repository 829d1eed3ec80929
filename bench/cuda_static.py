"""Static cost of the CUDA code, without a GPU: issue slots a pair of every pair loop, with its goal and KeOps beside it.

KeOps' rows are its own generated code, through the same assembler and the same counter (:mod:`bench.keops_cuda`,
:mod:`bench.sass`).
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from typing import Any

from bench import keops_cuda
from bench.sass import assemble, bound, count, count_wide, functions, missing, opcode
from gpukoop.cuda import compile_entry, compile_ptx
from gpukoop.kernels.cuda.matrix.epilogue import Epilogue, epilogue
from gpukoop.kernels.cuda.specification import WIDEST_TILE
from gpukoop.kernels.cuda.symmetric.shape import planes, symmetric_specification
from gpukoop.kernels.formula.catalogue import Gaussian, InverseMultiquadric, Laplace
from gpukoop.kernels.formula.profile import AbstractKernel

TITLE = "CUDA code: issue slots a pair (compiled for sm_90, counted in the SASS; no GPU)"

# (kernel, op, d, t, special functions a pair, goal in slots, KeOps' slots as counted when the goals were set)
CASES: list[tuple[AbstractKernel, str, int, int, int, float | None, float | None]] = [
    (Gaussian(1.0), "product", 2, 1, 1, 7.0, 10.25),
    (Gaussian(1.0), "product", 3, 1, 1, 9.0, 12.5),
    (Gaussian(1.0), "product", 10, 1, 1, 15.0, 30.4),
    (Gaussian(1.0), "value_and_gradient", 3, 1, 1, 13.0, 35.0),
    (Gaussian(1.0), "logsumexp", 3, 1, 1, 10.0, 19.5),
    (Gaussian(1.0), "product", 3, 4, 1, 12.0, 16.3),
    (Gaussian(1.0), "product", 3, 16, 1, 26.0, 35.4),
    (InverseMultiquadric(1.0), "product", 3, 1, 1, 9.0, 11.5),
    (Laplace(1.0), "product", 3, 1, 2, 12.0, 13.5),
    (Gaussian(1.0), "gradient", 3, 1, 1, 13.0, 22.5),
    (Gaussian(1.0), "value_and_gradient", 2, 1, 1, 11.0, None),
    (Gaussian(1.0), "value_and_gradient", 10, 1, 1, 38.0, 107.0),
    (Gaussian(1.0), "logsumexp", 2, 1, 1, 8.0, None),
    (Gaussian(1.0), "logsumexp", 10, 1, 1, 17.0, 39.5),
    (Gaussian(1.0), "logsumexp_and_gradient", 3, 1, 1, 14.0, None),
    (Gaussian(1.0), "gradient", 10, 1, 1, None, 77.0),
    (Gaussian(1.0), "product", 64, 1, 1, None, 205.0),
]
# (d, t) of products with one cloud of points, Gaussian: each pair once, slots for each of its two uses
SYMMETRIC = [(2, 1), (3, 1), (10, 1), (3, 4)]
QUICK = 5


# Columns of the table besides the names and the slots.
SHOWN = ("registers", "spills", "local", "mufu", "lds", "bound pairs/clk/SM")


def case(index: int) -> dict[str, Any]:
    """Return our row: the fastest form, and what the others cost."""
    kernel, op, d, t, mufu, goal, _ = CASES[index]
    ptx = compile_ptx(kernel, op, d=d, t=t)
    counted = count_wide(ptx, d) if d > WIDEST_TILE else count(ptx, mufu)
    best = counted[0]
    forms = {re.search(r"_(dot|difference|exact)_d", r["entry"])[1]: r["slots"] for r in counted}  # type: ignore[index]
    return {
        "case": title(index),
        "who": "gpukoop",
        "slots": best["slots"],
        **{form: forms.get(form, "") for form in ("dot", "difference", "exact")},
        "goal": "" if goal is None else goal,
        "published": "",
        **{k: best[k] for k in SHOWN},
        "counted": "compiled here" + (", without staging" if d > WIDEST_TILE else ""),
    }


def symmetric(d: int, t: int) -> dict[str, Any]:
    """Return the row of a product with one cloud of points; n^2 pairs are counted, as everywhere.

    Lanes read different records, so a load of four numbers is four passes through shared memory, and so is a shuffle one.
    """
    kernel = Gaussian(1.0)
    counted = count(compile_ptx(kernel, "product", d=d, t=t, symmetric=True))
    best = counted[0]
    shape = symmetric_specification("float32", "dot", d, t)
    words = (sum(planes(d + t + 1, "float32")) + t) / shape.targets / 2
    slots, mufu = best["slots"] / 2, best["mufu"] / 2
    forms = {
        re.search(r"_(dot|difference|exact)_d", r["entry"])[1]: r["slots"] / 2 for r in counted
    }  # type: ignore[index]
    return {
        "case": f"Gaussian symmetric product d={d}" + (f" t={t}" if t > 1 else ""),
        "who": "gpukoop",
        "slots": round(slots, 2),
        **{f: round(forms[f], 2) if f in forms else "" for f in ("dot", "difference", "exact")},
        "goal": "",
        "published": "",
        **{k: best[k] for k in ("registers", "spills", "local")},
        "mufu": mufu,
        "lds": round(best["lds"] / 2, 2),
        "bound pairs/clk/SM": round(bound(slots, mufu, words), 1),
        "counted": "compiled here",
    }


def title(index: int) -> str:
    """Return the name of a case."""
    kernel, op, d, t = CASES[index][:4]
    return f"{type(kernel).__name__} {op} d={d}" + (f" t={t}" if t > 1 else "")


def peers(indices: Iterable[int]) -> list[dict[str, Any]]:
    """Return KeOps' rows: its own generated code, compiled here where that can be done, else what was published."""
    needed = {
        i: keops_cuda.passes(type(k).__name__, *CASES[i][1:4]) for i, (k, *_) in enumerate(CASES)
    }
    needed = {i: needed[i] for i in indices if needed[i]}
    reason = keops_cuda.missing()
    texts: list[str] = []
    if reason is None:
        try:
            texts = keops_cuda.sources([p[:2] for passes in needed.values() for p in passes])
        except subprocess.CalledProcessError as error:
            reason = error.stderr.decode().strip().splitlines()[-1]
    rows = []
    for index, passes in needed.items():
        published = CASES[index][6]
        row = {"case": title(index), "who": keops_cuda.name(), "published": published or ""}
        if reason is None:
            counted = [
                count(keops_cuda.compile_ptx(texts.pop(0)), mufu, mufu)[0] for *_, mufu in passes
            ]
            row |= {
                k: sum(c[k] for c in counted) for k in ("slots", "spills", "local", "mufu", "lds")
            }
            row["registers"] = max(c["registers"] for c in counted)
            row["bound pairs/clk/SM"] = round(
                1 / sum(1 / bound(*(c[k] for k in ("slots", "mufu", "lds"))) for c in counted), 1
            )
            row["counted"] = "compiled here" + (", two passes" if len(passes) > 1 else "")
        else:
            row["counted"] = f"published; not compiled here: {reason}"
        rows.append(row)
    return rows


# One H100 SXM, from its data sheet: multiprocessors, clock, bytes a second, and multiply-adds a second of float32 and TF32.
H100 = {"sm": 132, "clock": 1.755e9, "bytes": 3.35e12, "fp32": 33.5e12, "tf32": 247e12}
# d, precision: what goes through tiles in memory; bench/cuda_tensor.py has the programs on tensor cores
MATRIX = [
    (32, "fp32"),
    (100, "fp32"),
    (784, "fp32"),
    (784, "3xtf32"),
]


def epilogue_slots() -> tuple[float, dict[str, int]]:
    """Return the slots a pair of the loop of a Gaussian's epilogue where no pair is close, and its registers."""
    entry = epilogue(Gaussian(1.0), Epilogue("product", False, "float32"))
    sass, resources = assemble(compile_entry(entry, "float32"))
    ((_, labels, body),) = functions(sass)
    jumps = {}
    for index, instruction in enumerate(body):
        branch = re.search(r"BRA(?:\.\w+)*\s+.*?`\((\.L_x_\d+)\)", instruction)
        if branch:
            jumps[index] = labels[branch[1]]
    exponentials = [i for i, instruction in enumerate(body) if opcode(instruction) == "MUFU"]
    end = min(i for i, to in jumps.items() if to <= exponentials[0] <= exponentials[-1] < i)
    at, slots = jumps[end], 0
    while at <= end:
        slots += 1
        forward = (
            at + 1 < jumps.get(at, 0) <= exponentials[0]
        )  # over the differences of close pairs
        at = jumps[at] if forward else at + 1
    return slots / len(exponentials), resources[entry.name]


def matrix(d: int, precision: str) -> dict[str, Any]:
    """Return the derived bound of a product by matrices: the tile is multiplied and written, then read by the epilogue."""
    slots, resources = epilogue_slots()
    products = d * (3 if precision == "3xtf32" else 1)
    multiply = max(products / H100["fp32" if precision == "fp32" else "tf32"], 4 / H100["bytes"])
    read = max(1 / (H100["sm"] * H100["clock"] * bound(slots, 1, 0)), 4 / H100["bytes"])
    return {
        "case": f"Gaussian product d={d} by {precision} tiles, epilogue",
        "slots": round(slots, 2),
        "mufu": 1,
        "registers": resources["registers"],
        "spills": resources["spills"],
        "derived bound Tp/s": round(1e-12 / (multiply + read), 3),
    }


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Return the table, KeOps below ours; ``quick`` counts the first rows only."""
    reason = missing()
    if reason is not None:
        return [{"case": "all", "skipped": reason}]
    indices = range(QUICK if quick else len(CASES))
    try:
        ours = [case(i) for i in indices]
    except ImportError as error:
        return [{"case": "all", "skipped": str(error)}]
    theirs = {row["case"]: row for row in peers(indices)}
    found = [row for mine in ours for row in (mine, theirs.get(mine["case"])) if row is not None]
    found += [symmetric(d, t) for d, t in (SYMMETRIC[:1] if quick else SYMMETRIC)]
    return found + [matrix(d, precision) for d, precision in (MATRIX[:1] if quick else MATRIX)]


if __name__ == "__main__":
    for row in rows():
        print("  ".join(f"{k} {v}" for k, v in row.items()))
