"""Static cost of the CUDA code, without a GPU: PTX -> ptxas -> SASS -> issue slots a pair.

Counts, not times. A streaming multiprocessor of Hopper issues 128 lanes a clock, gives 16 special-function results
and 32 shared loads, so a loop of ``slots`` instructions a pair is bounded by min(128 / slots, 16 / mufu, 32 / lds) pairs
a clock. Needs the wheels nvidia-cuda-nvcc and nvidia-cuda-nvdisasm (same CUDA minor version as nvidia-nvvm, or newer).
KeOps' rows are its own generated code, through the same assembler and the same counter (:mod:`bench.keops_cuda`).
"""

from __future__ import annotations

import collections
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bench import keops_cuda
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
# A loop with fewer special functions is the rare branch of a log-sum-exp or a second pass.
FEWEST_MUFU = 4


def tool(name: str) -> str | None:
    """Return the path of ptxas or nvdisasm from the NVIDIA wheels, or from PATH."""
    for root in {sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"]}:
        for hit in Path(root).glob(f"nvidia/*/bin/{name}"):
            return str(hit)
    return shutil.which(name)


def missing() -> str | None:
    """Return why nothing can be counted, or None."""
    absent = [name for name in ("ptxas", "nvdisasm") if tool(name) is None]
    if absent:
        return (
            f"{' and '.join(absent)} not found (pip install nvidia-cuda-nvcc nvidia-cuda-nvdisasm)"
        )
    return None


def assemble(ptx: str, arch: str = "sm_90") -> tuple[str, dict[str, dict[str, int]]]:
    """Return (SASS, {entry: registers, spills, stack}) of a PTX module."""
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder) / "module.ptx", Path(folder) / "module.cubin"
        source.write_text(ptx)
        command = [tool("ptxas") or "ptxas", "-v", f"-arch={arch}", str(source), "-o", str(cubin)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode:
            raise RuntimeError(run.stderr.strip())
        command = [tool("nvdisasm") or "nvdisasm", "-c", str(cubin)]
        sass = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    resources: dict[str, dict[str, int]] = {}
    blocks = re.split(r"Compiling entry function '([\w$]+)'", run.stderr)[1:]
    for entry, text in zip(blocks[::2], blocks[1::2], strict=True):
        resources[entry] = {
            "registers": int(re.search(r"Used (\d+) registers", text)[1]),  # type: ignore[index]
            "spills": sum(map(int, re.findall(r"(\d+) bytes spill", text))),
            "stack": sum(map(int, re.findall(r"(\d+) bytes stack", text))),
        }
    return sass, resources


def opcode(instruction: str) -> str:
    """Return the opcode of an instruction without its predicate and modifiers."""
    return re.sub(r"^@!?U?P\w+\s+", "", instruction).split()[0].split(".")[0]


def functions(sass: str) -> Iterator[tuple[str, dict[str, int], list[str]]]:
    """Yield (entry, labels, instructions) of every function; a label is the index of an instruction."""
    for section in re.split(r"\.section\s+\.text\.", sass)[1:]:
        entry = section.split(",")[0].split()[0].strip('"')
        labels: dict[str, int] = {}
        body: list[str] = []
        for line in section.splitlines():
            if label := re.match(r"\s*(\.L_x_\d+):", line):
                labels[label[1]] = len(body)
            elif instruction := re.search(r"/\*[0-9a-f]+\*/\s+(.*?);", line):
                body.append(instruction[1].strip())
        yield entry, labels, body


def loops(sass: str) -> dict[str, list[list[str]]]:
    """Return {entry: bodies of its backward branches, as opcodes}."""
    found: dict[str, list[list[str]]] = {}
    for entry, labels, body in functions(sass):
        for index, instruction in enumerate(body):
            branch = re.search(r"BRA(?:\.\w+)*\s+.*?`\((\.L_x_\d+)\)", instruction)
            if branch and labels.get(branch[1], index + 1) <= index:
                codes = [opcode(i) for i in body[labels[branch[1]] : index + 1]]
                found.setdefault(entry, []).append(codes)
    return found


def bound(slots: float, mufu: float, lds: float) -> float:
    """Return the pairs a clock that one multiprocessor can reach."""
    return min(128 / slots, 16 / mufu, 32 / lds if lds else 128.0)


def count(ptx: str, mufu: int = 1, fewest: int = FEWEST_MUFU) -> list[dict[str, Any]]:
    """Return the counts of the pair loop of every entry of a module."""
    sass, resources = assemble(ptx)
    rows = []
    for entry, bodies in loops(sass).items():
        main = [b for b in bodies if b.count("MUFU") >= fewest and "LDS" in b]
        if not main:
            continue
        body = min(main, key=lambda b: len(b) / b.count("MUFU"))
        codes = collections.Counter(body)
        pairs = codes["MUFU"] / mufu
        slots, loads = len(body) / pairs, codes["LDS"] / pairs
        rows.append(
            {
                "entry": entry,
                **resources[entry],
                "local": codes["LDL"] + codes["STL"],
                "slots": round(slots, 2),
                "mufu": mufu,
                "lds": round(loads, 2),
                "bound pairs/clk/SM": round(bound(slots, mufu, loads), 1),
            }
        )
    return sorted(rows, key=lambda row: row["slots"])


def count_wide(ptx: str, d: int) -> list[dict[str, Any]]:
    """Return the counts of entries that take many features in chunks: the loop over features and what follows it.

    A multiply-add is one feature of one pair. Staging, which each feature of 128 targets shares, is left out.
    """
    sass, resources = assemble(ptx)
    rows = []
    for entry, bodies in loops(sass).items():
        tiles = [b for b in bodies if "MUFU" in b]
        features = [b for b in bodies if "FFMA" in b and "LDS" in b and "STS" not in b]
        if not tiles or not features:
            continue
        tile = min(tiles, key=len)
        inner = max(features, key=lambda b: b.count("FFMA"))
        chunk = min((b for b in bodies if "FFMA" in b and "STS" in b), key=len)
        pairs = tile.count("MUFU")
        each = inner.count("FFMA")
        slots = d * len(inner) / each + (len(tile) - len(chunk)) / pairs
        loads = d * inner.count("LDS") / each
        rows.append(
            {
                "entry": entry,
                **resources[entry],
                "local": tile.count("LDL") + tile.count("STL"),
                "slots": round(slots, 1),
                "mufu": 1,
                "lds": round(loads, 1),
                "bound pairs/clk/SM": round(bound(slots, 1, loads), 1),
            }
        )
    return sorted(rows, key=lambda row: row["slots"])


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
