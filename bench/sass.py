"""PTX -> ptxas -> SASS, and what the assembled code costs: loops, opcodes, registers, issue slots a pair. No GPU.

Counts, not times. A streaming multiprocessor of Hopper issues 128 lanes a clock, gives 16 special-function results
and 32 shared loads, so a loop of ``slots`` instructions a pair is bounded by min(128 / slots, 16 / mufu, 32 / lds) pairs
a clock. Needs the wheels nvidia-cuda-nvcc and nvidia-cuda-nvdisasm (same CUDA minor version as nvidia-nvvm, or newer).
"""

from __future__ import annotations

import collections
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
