"""Run the benchmarks and write what they measured.

A module of this folder with ``TITLE`` and ``rows(quick)`` is a table; a row is a dict, its keys are the columns; ``failures(rows)``, if there, names
the bars that are missed, and the run then ends with 1. Peers
that are not installed are rows that say so. Times are never compared between runs: a ratio comes from one run.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gpukoop.files import write_atomically

HERE = Path(__file__).resolve().parent
CPU_TABLES = (
    "cpu_throughput",
    "sweep",
    "spectrum",
    "fourier",
    "distributed",
    "kswgd",
    "million",
    "flows",
    "jko",
    "koopman",
    "fields",
    "kinetics",
    "wells",
    "systems",
    "verdict",
    "truth",
    "bars",
    "unseen",
    "torch",
    "tables",
    "cuda_static",
    "cuda_tensor",
    "cuda_outer",
)
CUDA_TABLES = ("cuda_device", "cuda_runs", "cuda_static", "cuda_tensor", "cuda_outer")


def machine() -> dict[str, str]:
    """Return what a figure must be read with: processor, cores, versions, date, commit."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        text = info.read_text()
        found = [
            line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line
        ]
        name = found[0] if found else name
        if "avx512f" in text:
            name += " (AVX-512)"
        elif "avx2" in text:
            name += " (AVX2)"
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=HERE,
        capture_output=True,
        text=True,
        check=False,
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "machine": f"{name}, {cores} cores",
        "python": platform.python_version(),
        **{
            p: _version(p)
            for p in ("gpukoop", "numpy", "scipy", "numba", "pykeops", "finufft", "geomloss")
        },
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip() or "unknown",
    }


def card() -> dict[str, str]:
    """Return the device of a figure: its name, multiprocessors, clocks, memory, driver and what talks to it."""
    try:
        import cupy
    except ImportError:
        return {"card": "none: CuPy is not installed"}
    runtime, has = cupy.cuda.runtime, cupy.cuda.Device().attributes
    about = runtime.getDeviceProperties(0)
    return {
        "card": about["name"].decode(),
        "multiprocessors": str(has["MultiProcessorCount"]),
        "clock MHz": f"{has['ClockRate'] / 1e3:.0f} at most, memory {has['MemoryClockRate'] / 1e3:.0f}",
        "memory GB": f"{about['totalGlobalMem'] / 1e9:.1f}",
        "driver": str(runtime.driverGetVersion()),
        "runtime": str(runtime.runtimeGetVersion()),
        "clocks under way": _smi(),
        "cupy": cupy.__version__,
        **{p: _version(p) for p in ("numba-cuda", "cuda-core", "nvidia-nvvm", "cufinufft")},
    }


def _smi() -> str:
    """Return what nvidia-smi says of clocks, limits and temperature, or that it is not there."""
    asked = "clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu,persistence_mode"
    command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "nvidia-smi does not answer"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def run(
    *,
    device: str = "cpu",
    quick: bool = False,
    out: Path | None = None,
    quiet: bool = False,
    only: list[str] | None = None,
) -> int:
    """Run the tables and write ``results.json``-like data to ``out`` and, for a full run, ``results.md``."""
    names = only or list(CPU_TABLES if device == "cpu" else CUDA_TABLES)
    about = machine() | (card() if device == "cuda" else {})
    record: dict[str, Any] = {"machine": about, "device": device, "quick": quick, "tables": {}}
    for name in names:
        # A process a table: peak memory is that of the table, and one table's caches do not warm another's.
        table = _table(name, quick) if only else _table_of_its_own(name, quick)
        record["tables"][name] = table
        if not quiet:
            print(
                f"\n{table['title']}  ({table['seconds']:.0f} s)\n{_markdown(table['rows'])}",
                flush=True,
            )
        # After every table: a full run takes half an hour, and what it has measured must not be lost.
        _write(record, out, full=not quick and not only)
    broken = [line for table in record["tables"].values() for line in table.get("broken", [])]
    print(*broken, sep="\n", end="\n" * bool(broken), file=sys.stderr)
    return int(bool(broken))


def _table(name: str, quick: bool) -> dict[str, Any]:
    module = importlib.import_module(f"bench.{name}")
    start = time.perf_counter()
    rows = module.rows(quick)
    took = time.perf_counter() - start
    # a table with bars says which of them were missed; small sizes are no proof
    broken: list[str] = [] if quick else getattr(module, "failures", lambda table: [])(rows)
    return {"title": module.TITLE, "rows": rows, "seconds": round(took, 1), "broken": broken}


def _table_of_its_own(name: str, quick: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.json"
        command = [sys.executable, "-m", "bench", "--only", name, "--out", str(path)]
        done = subprocess.run(
            command + ["--quick"] * quick, cwd=HERE.parent, check=False, stdout=subprocess.DEVNULL
        )
        if not path.exists():  # a broken bar ends in 1 too, and leaves its table
            raise subprocess.CalledProcessError(done.returncode, command)
        table: dict[str, Any] = json.loads(path.read_text())["tables"][name]
    return table


def _write(record: dict[str, Any], out: Path | None, *, full: bool) -> None:
    if out is not None:
        text = json.dumps(record, indent=1, default=_plain) + "\n"
        write_atomically(out, text.encode())
    if full:
        name = "results.md" if record["device"] == "cpu" else "results-cuda.md"
        write_atomically(HERE / name, _results(record).encode())
        _throughput_plot(record)


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    if not math.isfinite(value):
        return str(value)
    if value != 0 and abs(value) < 1e-3:
        return f"{value:.1e}"
    return f"{value:.4g}" if abs(value) < 1e5 else f"{value:.3e}"


def _markdown(rows: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(c)) for c in columns) + " |" for row in rows]
    return "\n".join(lines)


def _results(record: dict[str, Any]) -> str:
    head = ", ".join(f"{k} {v}" if k != "machine" else v for k, v in record["machine"].items())
    parts = [
        "# What was measured",
        f"Written by `gpukoop bench`: {head}. Ratios come from one run each, the sides in turn; first calls "
        "(compilation, plans) stand apart. Errors are relative to sum |v| k, against float64.",
    ]
    for table in record["tables"].values():
        parts += [f"## {table['title']}", _markdown(table["rows"])]
    return "\n\n".join(parts) + "\n"


def _throughput_plot(record: dict[str, Any]) -> None:
    rows = record["tables"].get("sweep", {}).get("rows", [])
    sweep = [r for r in rows if r.get("sweep")]
    if not sweep:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, key in zip(figure.subplots(1, 2, sharey=True), ("n", "d"), strict=True):
        for who in dict.fromkeys(r["who"] for r in sweep):
            points = sorted(
                (r[key], r["Gpairs/s"]) for r in sweep if r["who"] == who and r["sweep"] == key
            )
            if points:
                axis.loglog(*zip(*points, strict=True), marker="o", label=who)
        axis.set_xlabel({"n": "points n = m (d = 3)", "d": "features d (n = m = 10,000)"}[key])
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel("Gpairs/s")
    figure.axes[0].legend()
    figure.savefig(HERE / "throughput.png", dpi=120)


def main() -> int:
    """Parse the command line of ``python -m bench``."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="small sizes, two minutes")
    parser.add_argument("--only", nargs="*", help="names of tables")
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    return run(device=a.device, quick=a.quick, out=a.out, only=a.only)


if __name__ == "__main__":
    sys.exit(main())
