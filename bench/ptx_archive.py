"""Write ``gpukoop/kernels/cuda/ptx.zip``: the PTX of the catalogue, which ships with the package.

    python -m bench.ptx_archive [--jobs N]

Needs Numba-CUDA, no device and no driver. Texts that are there already and still fit are kept; a full run takes some eight
minutes on two cores. Run it after a change of a frame (:mod:`gpukoop.kernels.cuda.archive`).
"""

from __future__ import annotations

import argparse
import concurrent.futures
import io
import itertools
import multiprocessing
import re
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import version

from gpukoop.files import write_atomically
from gpukoop.kernels.cuda import archive
from gpukoop.kernels.cuda.packing import Clouds
from gpukoop.kernels.cuda.pairs.plan import AbstractPlan, Plan, Sizes
from gpukoop.kernels.cuda.program import Program, compile_ptx
from gpukoop.kernels.cuda.symmetric.plan import SymmetricPlan
from gpukoop.kernels.formula.catalogue import CATALOGUE, Riesz
from gpukoop.kernels.operation import LOGSUMEXP, OPERATIONS, PRODUCT, VALUE_AND_GRADIENT

# The oldest PTX that knows the oldest devices: the texts use nothing newer, so that older linkers take them, too.
VERSION = "7.0"
# What is held, of every kernel: dtype, operations, features, columns, and whether with products that visit each pair of one cloud
# once. In float32 everything with one column, and the pass of a KSWGD step, which has two; in float64 the sums that are asked
# most: the rest would double the file for calls that few make.
HELD = (
    ("float32", tuple(OPERATIONS.values()), (1, 2, 3), 1, True),
    ("float32", (VALUE_AND_GRADIENT,), (2, 3), 2, False),
    ("float64", (PRODUCT, VALUE_AND_GRADIENT, LOGSUMEXP), (2, 3), 1, False),
)
# Written after as many programs as this, so that a run that is cut off can go on.
CHUNK = 16
MADE_BY = "compilers"


def catalogue() -> Iterator[Program]:
    """Yield every program that the archive is to hold, each once."""
    seen: set[Program] = set()
    for name, make in CATALOGUE.items():
        kernel = Riesz(exponent=1.3) if name == "riesz" else make()
        for dtype, operations, features, t, once in HELD:
            for operation, d in itertools.product(operations, features):
                if operation.log and not kernel.positive:
                    continue
                sizes = Sizes(operation, Clouds(1, 1, d, dtype, False), t)
                plans: list[AbstractPlan] = [Plan(kernel, sizes)]
                if once and operation == PRODUCT:
                    one_cloud = Sizes(operation, Clouds(1, 1, d, dtype, True), t)
                    plans.append(SymmetricPlan(kernel, one_cloud))
                for plan in plans:
                    fresh = [p for p in plan.programs.values() if p not in seen]
                    seen.update(fresh)
                    yield from fresh


def portable(ptx: str) -> str:
    """Return a text without what its compiler adds for itself: comments, counters, variables that nothing reads, its version."""
    ptx = re.sub(r"^\.version .*$", f".version {VERSION}", ptx, flags=re.MULTILINE)
    for i, name in enumerate(dict.fromkeys(re.findall(r"\b_cudapy_smem_\w+", ptx))):
        ptx = re.sub(rf"\b{name}\b", f"tile_{i}", ptx)
    lines = (line.split("//")[0].strip() for line in ptx.splitlines())
    return "\n".join(line for line in lines if line and "NumbaEnv" not in line) + "\n"


def archived(texts: dict[Program, str]) -> bytes:
    """Return the archive of some programs with their texts; the same bytes for the same texts."""
    members: dict[str, list[str]] = {}
    for program in sorted(texts, key=lambda p: p.name):
        members.setdefault(archive.member(program), []).extend(
            (archive.identity(program), texts[program])
        )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_LZMA) as file:
        for name in sorted(members):
            entry = zipfile.ZipInfo(name)  # of 1980: no clock in it
            entry.compress_type = zipfile.ZIP_LZMA
            file.writestr(entry, "\0".join(members[name]))
        file.writestr(zipfile.ZipInfo(MADE_BY), compilers())
    return buffer.getvalue()


def compilers() -> str:
    """Return the versions of what compiles here."""
    return " ".join(f"{name} {version(name)}" for name in ("numba", "numba-cuda", "nvidia-nvvm"))


def made_by() -> str:
    """Return the versions of what compiled the texts of the archive last."""
    with zipfile.ZipFile(archive.FILE) as file:
        return file.read(MADE_BY).decode()


def text(program: Program) -> str:
    """Return the text of a program as the archive holds it."""
    return portable(compile_ptx(program, archive.OLDEST))


def main(arguments: list[str]) -> int:
    """Compile what is missing and write the archive."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args(arguments)
    programs = list(catalogue())
    texts = {p: found for p in programs if (found := archive.find(p, archive.OLDEST))}
    absent = [p for p in programs if p not in texts]
    print(f"{len(programs)} programs, {len(absent)} to be compiled", flush=True)
    # Spawned, not forked: the compiler starts threads.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(options.jobs, context) as pool:
        for i, (program, made) in enumerate(zip(absent, pool.map(text, absent), strict=True), 1):
            texts[program] = made
            if i % CHUNK == 0 or i == len(absent):
                write_atomically(archive.FILE, archived(texts))
                print(f"{i} of {len(absent)}", flush=True)
    if not absent:
        write_atomically(archive.FILE, archived(texts))
    print(f"{archive.FILE.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
