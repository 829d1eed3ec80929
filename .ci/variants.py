"""Compile every CUDA kernel that the package can launch, offline, for three architectures, and check it statically.

    python .ci/variants.py [--all] [--table FILE] [--jobs N] [--part K/N]

A variant is a kernel, an operation, d, t, a dtype, a form of q and a family: pairs, lists of tiles, symmetric products,
what follows a matrix product. Variants come from the plans that launch them, so nothing is typed twice, and equal texts
are compiled once.

Numba's front end takes nine tenths of the time and gives the same code for every architecture. It runs once a variant;
NVVM then prints PTX for sm_80 and for sm_90, which newer devices take, too, and ptxas assembles sm_80, sm_90 and sm_100
from them. What the archive holds (:mod:`gpukoop.kernels.cuda.archive`) is not compiled: its text is what runs.

Asserted, for every variant and architecture: ptxas takes it; no spills, no stack, no local memory; a block of it fits
on a multiprocessor; no float64 instruction anywhere in a float32 variant; and, in float32, as many special functions a
pair as the formula needs.

**What is left out without --all.** A text is a frame (operation, d, t, dtype, form, length of a record, family) around
the expression of a kernel, which the writer pastes in pair by pair; neither depends on the other. So what is compiled is

- every frame of d = 3, 17 and 100 (few, most and too many features for registers), and with one column of d = 2 and, in
  float32, 1 and 10; with several columns in one form of q only, which columns do not touch;
- every (kernel, operation, dtype, dot form or not) with features in registers, every (kernel, dtype) in chunks;
- lists once an operation and dtype (two statements are others), symmetric products for few features with one column
  and for most with most, and every matrix frame, the kernels in turn;
- what measures, packs and joins for those three d; for others once a dtype, as it loops over features.

What the archive holds is taken first, for it costs no front end. A frame takes a kernel that is not covered yet, else the one
with the longest text; with d = 17, one that wants many
registers. So every statement that a writer can write is compiled. Not seen are the registers of other pairs of a frame
and a kernel: float64 sums have spilled in some of those alone. --all, the complete product, sees them; run it after a
change of tiles or groups.
"""

# ruff: noqa: D103, T201
from __future__ import annotations

import argparse
import collections
import concurrent.futures
import csv
import functools
import gc
import importlib.util
import itertools
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.sass import assemble, functions, loops, missing  # noqa: E402
from gpukoop.cuda import compile_entry, entry_ptx, merge  # noqa: E402
from gpukoop.kernels.cuda import archive  # noqa: E402
from gpukoop.kernels.cuda.matrix.epilogue import Epilogue, epilogue  # noqa: E402
from gpukoop.kernels.cuda.matrix.text import Entry  # noqa: E402
from gpukoop.kernels.cuda.packing import Clouds  # noqa: E402
from gpukoop.kernels.cuda.pairs.plan import AbstractPlan, Plan, Sizes  # noqa: E402
from gpukoop.kernels.cuda.pairs.shape import columns  # noqa: E402
from gpukoop.kernels.cuda.program import NEWEST_PTX, Program  # noqa: E402
from gpukoop.kernels.cuda.specification import BLOCK, DTYPES, Points  # noqa: E402
from gpukoop.kernels.cuda.symmetric.plan import MOST_COLUMNS, SymmetricPlan  # noqa: E402
from gpukoop.kernels.formula.catalogue import CATALOGUE, Gaussian, Matern32, Riesz  # noqa: E402
from gpukoop.kernels.operation import OPERATIONS  # noqa: E402

OPS = tuple(OPERATIONS)

KERNELS: dict[str, Any] = {
    name: Riesz(exponent=1.3) if name == "riesz" else make() for name, make in CATALOGUE.items()
} | {"sum": Gaussian(1.0) + 0.5 * Matern32(2.0)}
FEATURES = (1, 2, 3, 4, 10, 17, 100)
COLUMNS = (1, 3, 4, 16, 64)
# Few, most and too many features for registers; and those whose targets a thread are the same as for more features.
CORNERS = (3, 17, 100)
BETWEEN = {"float32": (4,), "float64": (1, 4, 10)}
LISTED = 3
# Most features in registers: there the kernels that want most registers themselves are compiled (powers in float64).
MOST_FEATURES = 17
HUNGRY = {"float32": ("matern52", "sum"), "float64": ("rational_quadratic", "riesz")}
SYMMETRIC = (2, 3, 10, 17)
SYMMETRIC_CORNERS = ((3, 1), (17, MOST_COLUMNS))
# Architecture, and the compute capability that NVVM prints PTX for, as the package does.
ARCHITECTURES = {f"sm_{a}{b}": min((a, b), NEWEST_PTX) for a, b in ((8, 0), (9, 0), (10, 0))}
# Special functions a pair in float32, counted by hand from the formula: ex2, lg2, sqrt, rsqrt and rcp are one each.
# product, gradient, value_and_gradient, logsumexp, logsumexp_and_gradient
SPECIAL = {
    "gaussian": (1, 1, 1, 1, 1),
    "laplace": (2, 3, 3, 2, 3),  # the gradient wants sqrt and rsqrt of q
    "matern32": (2, 2, 2, 3, 4),  # log(1 + r) is a lg2, its derivative a rcp
    "matern52": (2, 2, 2, 3, 4),
    "inverse_multiquadric": (1, 2, 2, 2, 3),  # f^(-3/2) is printed as rsqrt and rcp
    "rational_quadratic": (2, 2, 3, 2, 3),  # a power is lg2 and ex2; two powers share the lg2
    "riesz": (2, 2, 3),
    "energy": (1, 1, 2),
    "sum": (3, 3, 3),  # a log-sum-exp takes its terms apart
}
# ptxas may compute a few functions twice, or some of the next pass ahead.
SLACK = 0.1
# For sm_100 it takes the reciprocal of the parameter alpha anew for every pair where registers are short.
RECOMPUTED = {("rational_quadratic", "sm_100"): 1}
REGISTERS = 65536
FLOAT64 = re.compile(r"\b(D(ADD|MUL|FMA|SETP|MNMX)\b|[\w.]*\.F64\b|MUFU\.\w*64H)")
LOCAL = re.compile(r"\b(LDL|STL)\b")
# Variants of a PTX module: starting ptxas and nvdisasm costs as much as two variants.
BATCH = 6


@dataclass(frozen=True)
class Variant:
    """One device function and where it comes from.

    ``frame``, ``covers`` and ``always`` decide what is compiled where the product is not complete; ``pairs`` are those
    that the inner loop writes out (0: there is none), ``special`` the special functions that each should take, and
    ``groups`` the passes of that loop through a tile.
    """

    entry: Entry | Program
    dtype: str
    kernel: str
    frame: tuple[Any, ...]
    covers: tuple[Any, ...]
    always: bool
    pairs: int = 0
    special: int = 0
    groups: int = 1


def plans() -> Iterator[tuple[str, str, str, int, str, AbstractPlan]]:
    """Yield (family, kernel, op, d, dtype, plan); t is cut to the columns that share a pass."""
    for (name, kernel), op, d, dtype in itertools.product(KERNELS.items(), OPS, FEATURES, DTYPES):
        if "logsumexp" in op and not kernel.positive:
            continue
        operation, clouds = OPERATIONS[op], Clouds(1, 1, d, dtype, False)
        for t in sorted({columns(operation, d, t, dtype) for t in COLUMNS}):
            yield "pairs", name, op, d, dtype, Plan(kernel, Sizes(operation, clouds, t))
        if d == LISTED:
            plan = Plan(kernel, Sizes(operation, clouds, 1, listed=True))
            yield "listed", name, op, d, dtype, plan
        if op == "product" and d in SYMMETRIC:
            for t in (1, MOST_COLUMNS):
                sizes = Sizes(operation, Clouds(1, 1, d, dtype, True), t)
                yield "symmetric", name, op, d, dtype, SymmetricPlan(kernel, sizes)


def variants() -> list[Variant]:
    """Return every variant once, in a fixed order."""
    found: dict[Any, Variant] = {}

    def add(entry: Entry | Program, *rest: Any) -> None:
        found.setdefault(entry, Variant(entry, *rest))

    for family, name, op, d, dtype, plan in plans():
        for part in plan.parts:
            for program in [*part.packing.programs.values(), part.finish]:
                alike = re.sub(r"_d\d+", "", program.name)
                add(program, dtype, name, (program.name,), (alike,), d in CORNERS)
            for form, program in part.programs.items():
                spec = program.specification
                wide, t = part.wide, spec.t
                usual = "difference" if OPERATIONS[op].slope or d < 3 else "dot"
                covers: tuple[Any, ...] = (name, op, dtype, form == "dot")
                if wide:
                    covers = ("wide", name, dtype)
                if family != "pairs":
                    covers = (family, op, dtype)
                always = d in CORNERS and (wide or t == 1 or form == usual)
                always |= t == 1 and d not in BETWEEN[dtype]
                if family != "pairs":
                    always = family == "symmetric" and (d, t) in SYMMETRIC_CORNERS
                frame = (family, op, d, t, dtype, form)
                kernel = name if len(plan.parts) == 1 else part.label
                special = SPECIAL[kernel][OPS.index(op)] if family == "pairs" and not wide else 0
                groups = spec.tile // spec.group
                pairs = spec.targets * spec.group
                add(program, dtype, kernel, frame, covers, always, pairs, special, groups)
    for (name, kernel), op, dtype, several in itertools.product(
        KERNELS.items(), OPS, DTYPES, (False, True)
    ):
        exponent = "logsumexp" in op
        if exponent and (several or not kernel.positive or len(kernel.terms) > 1):
            continue
        frame = ("matrix", op, dtype, several)
        add(epilogue(kernel, Epilogue(op, several, dtype)), dtype, name, frame, frame, True)
    return list(found.values())


def _length(variant: Variant) -> int:
    """Return how much there is to compile besides the frame."""
    if isinstance(variant.entry, Program):
        of = variant.entry.functions
        return len(of.source) if of is not None else 0
    return len(variant.entry.source)


@functools.cache
def archived(program: Program) -> bool:
    """Return whether the archive has the text of a program for every architecture."""
    return all(archive.find(program, cc) for cc in ARCHITECTURES.values())


def ready(variant: Variant) -> bool:
    """Return whether a variant needs no front end."""
    return isinstance(variant.entry, Program) and archived(variant.entry)


def covering(everything: list[Variant]) -> list[Variant]:
    """Return variants with every frame that is always compiled, and everything that is to be covered."""
    frames: dict[tuple[Any, ...], list[Variant]] = {}
    for variant in everything:
        if variant.always:
            frames.setdefault(variant.frame, []).append(variant)
    covered: set[tuple[Any, ...]] = set()
    used: collections.Counter[tuple[str, str]] = collections.Counter()
    chosen = []
    for frame, choices in frames.items():
        new = [v for v in choices if v.covers not in covered]
        if frame[0] == "pairs" and frame[2] == MOST_FEATURES:
            new = [v for v in choices if v.kernel in HUNGRY[v.dtype]]
        # Kernels in turn within a family, the longest text first.
        best = min(
            new or choices, key=lambda v: (not ready(v), used[frame[0], v.kernel], -_length(v))
        )
        chosen.append(best)
        covered.add(best.covers)
        if frame[0] in ("matrix", "symmetric"):
            used[frame[0], best.kernel] += 1
    for variant in sorted(everything, key=lambda v: not ready(v)):
        if variant.covers not in covered:
            chosen.append(variant)
            covered.add(variant.covers)
    return chosen


def summary(rows: list[dict[str, Any]]) -> None:
    """Print how many registers the variants take."""
    for arch, dtype in itertools.product(ARCHITECTURES, DTYPES):
        some = [r for r in rows if (r["arch"], r["dtype"]) == (arch, dtype)]
        if some:
            most = max(some, key=lambda r: r["registers"])
            print(
                f"{arch} {dtype}: {len(some)} variants, at most {most['registers']} registers ({most['entry']})"
            )


def compile_both(variant: Variant) -> dict[tuple[int, int], str]:
    """Return the PTX for every compute capability: the archive's, or from one run of Numba's front end."""
    if isinstance(variant.entry, Program):
        texts = {cc: archive.find(variant.entry, cc) for cc in set(ARCHITECTURES.values())}
        if all(texts.values()):
            return {cc: text for cc, text in texts.items() if text is not None}
    from numba.cuda.codegen import CUDACodeLibrary

    printed: dict[tuple[int, int], str] = {}
    usual = CUDACodeLibrary.get_asm_strs

    def every(self: Any, cc: tuple[int, int] | None = None) -> list[str]:
        printed.update((other, usual(self, other)[0]) for other in set(ARCHITECTURES.values()))
        return [printed[cc]] if cc else usual(self, cc)

    CUDACodeLibrary.get_asm_strs = every
    try:
        if isinstance(variant.entry, Program):
            entry_ptx(variant.entry, ARCHITECTURES["sm_80"])
        else:
            compile_entry(variant.entry, variant.dtype, cc=ARCHITECTURES["sm_80"])
    finally:
        CUDACodeLibrary.get_asm_strs = usual
    name = variant.entry.name
    return {
        cc: ptx.replace(re.search(r"\.entry\s+([\w$]+)", ptx)[1], name)  # type: ignore[index]
        for cc, ptx in printed.items()
    }


def check(batch: list[Variant]) -> list[dict[str, Any]]:
    """Return a row for each variant and architecture; its "complaints" are empty if it holds."""
    gc.disable()  # the front end allocates without end and little of it is garbage: a quarter of the time
    try:
        return assembled(batch)
    except (RuntimeError, TypeError) as error:  # of Numba, NVVM or ptxas: which variant is it?
        if len(batch) > 1:
            return [row for v in batch for row in check([v])]
        row = {"kernel": batch[0].kernel, "entry": batch[0].entry.name, "dtype": batch[0].dtype}
        return [row | {"arch": "", "registers": 0, "complaints": str(error)}]
    finally:
        gc.collect()


def assembled(batch: list[Variant]) -> list[dict[str, Any]]:
    """Return the rows of :func:`check` from one PTX module an architecture."""
    texts = [compile_both(v) for v in batch]
    by_name = {f"v{i}": v for i, v in enumerate(batch)}
    rows = []
    for arch, cc in ARCHITECTURES.items():
        # Variants of one name (sums of different kernels) would clash in a module.
        renamed = [
            re.sub(rf"(?<![\w$]){v.entry.name}(?![\w$])", f"v{i}", text[cc])
            for i, (v, text) in enumerate(zip(batch, texts, strict=True))
        ]
        sass, resources = assemble(merge(renamed), arch)
        bodies = loops(sass)
        codes = {name: code for name, _, code in functions(sass)}
        for name, v in by_name.items():
            row = {"kernel": v.kernel, "entry": v.entry.name, "dtype": v.dtype, "arch": arch}
            row |= resources[name] | measure(v, codes[name], bodies.get(name, []))
            rows.append(row | {"complaints": "; ".join(complaints(v, row))})
    return rows


def measure(variant: Variant, code: list[str], bodies: list[list[str]]) -> dict[str, Any]:
    """Return what is counted in the instructions of one function."""
    double = [i for i in code if FLOAT64.search(i)]
    local = [i for i in code if LOCAL.search(i)]
    least = variant.pairs * max(1, variant.special)
    main = [b for b in bodies if b.count("MUFU") >= least > 0]
    loop = min(main, key=len) if main else max(bodies, key=lambda b: b.count("MUFU"), default=[])
    special = loop.count("MUFU") / variant.pairs if variant.pairs else 0.0
    return {
        "instructions": len(code),
        "float64": len(double),
        "local": len(local),
        "mufu": round(special, 3),
    }


def complaints(variant: Variant, row: dict[str, Any]) -> list[str]:
    """Return what is wrong with a row."""
    wrong = [f"{row[k]} {k}" for k in ("spills", "stack", "local") if row[k]]
    if row["registers"] * BLOCK > REGISTERS:
        wrong.append(f"a block needs {row['registers'] * BLOCK} registers")
    # What measures and packs the points does so in float64.
    spec = variant.entry.specification if isinstance(variant.entry, Program) else None
    if variant.dtype == "float32" and row["float64"] and not isinstance(spec, Points):
        wrong.append(f"{row['float64']} float64 instructions")
    if variant.dtype == "float32" and variant.special:
        most = variant.special * (1 + SLACK) + RECOMPUTED.get((variant.kernel, row["arch"]), 0)
        seen = row["mufu"]
        if seen > most:  # ptxas writes out the loop over a tile, wholly, or not at all
            seen /= variant.groups
        if not variant.special <= seen <= most:
            wrong.append(f"{row['mufu']} special functions a pair instead of {variant.special}")
    return wrong


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--all", action="store_true", help="the complete product")
    parser.add_argument("--table", help="write a row a variant and architecture (CSV)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--part", default="0/1", metavar="K/N", help="every N-th, from the K-th")
    options = parser.parse_args(arguments)
    part, parts = map(int, options.part.split("/"))
    reason = missing()
    if reason is None and importlib.util.find_spec("numba_cuda") is None:
        reason = "numba-cuda is not installed"
    if reason is not None:
        print(f"skipped: {reason}")
        return 0
    everything = variants()
    chosen = everything if options.all else covering(everything)
    print(
        f"{len(everything)} variants of different text, {len(chosen)} to compile, part {options.part}"
    )
    order = sorted(chosen, key=lambda v: -_length(v))[part::parts]
    batches = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
    started, rows = time.perf_counter(), []
    # Spawned, not forked: the compiler starts threads.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(options.jobs, context) as pool:
        for found in pool.map(check, batches):
            rows += found
            for row in found:
                if row["complaints"]:
                    print(
                        "FAIL",
                        *(row[k] for k in ("kernel", "entry", "arch", "complaints")),
                        flush=True,
                    )
            if options.table:
                with open(options.table, "w", newline="") as file:
                    writer = csv.DictWriter(file, rows[0])
                    writer.writeheader()
                    writer.writerows(rows)
    summary(rows)
    failed = sum(bool(row["complaints"]) for row in rows)
    print(f"{len(rows)} assembled, {failed} complaints, {time.perf_counter() - started:.0f} s")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
