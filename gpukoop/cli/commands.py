"""What the commands do: each takes the parsed command line and returns the exit status."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gpukoop.cli.terminal import folder, say, writable

ENDINGS = (".npz", ".npy", ".csv", ".parquet")
PACKAGES = ("numpy", "scipy", "numba", "scikit-learn", "numba-cuda", "pykeops", "finufft", "dask")


def installed(name: str) -> str:
    """Return the version of a distribution."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def demo(arguments: argparse.Namespace) -> int:
    """Make data, fit, move particles, write figure and metrics."""
    from gpukoop.cli.demo import DEMOS, table
    from gpukoop.files import write_atomically
    from gpukoop.tables import table_bytes

    folder(arguments.out)
    plot = _plot()
    verbose = 0 if arguments.quiet else 1
    result = DEMOS[arguments.method](
        arguments.particles,
        seed=arguments.seed,
        verbose=verbose,
        n_frames=40 if arguments.animate else 2,
    )
    text = table(result)
    figure = plot.png(plot.demo(result))
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = [vars(row) for row in result.rows]
    files = {
        "particles.npz": table_bytes(Path("particles.npz"), result.particles, start=result.start),
        "metrics.txt": text.encode(),
        "metrics.json": (
            json.dumps({"rows": rows, "notes": result.notes}, indent=1) + "\n"
        ).encode(),
        "figure.png": figure,
    }
    for name, data in files.items():
        write_atomically(arguments.out / name, data)
    if arguments.animate:
        plot.flow_animation([result.start, *result.frames], arguments.out / "flow.gif")
    if not arguments.quiet:
        say(text)
        say(
            f"written to {arguments.out}: {', '.join(sorted(p.name for p in arguments.out.iterdir()))}"
        )
    return 0


def sample(arguments: argparse.Namespace) -> int:
    """Draw particles from data or from a fitted model, and write them."""
    from gpukoop.arrays import points
    from gpukoop.cli.recipes import check_taken, method_of
    from gpukoop.files import write_atomically
    from gpukoop.tables import require_writer, table_bytes

    if arguments.model is not None and arguments.model.is_dir():
        from gpukoop.cli import training

        _check_fitted(arguments)
        return training.sample(arguments)
    if arguments.label is not None:
        raise ValueError("--label belongs to a folder that `gpukoop train` wrote: pass --model DIR")
    writable(arguments.out, *ENDINGS)
    require_writer(arguments.out)
    plot = None
    if arguments.figure is not None:
        writable(arguments.figure, ".png")
        plot = _plot()
    if arguments.checkpoint is not None:
        writable(arguments.checkpoint)
    _check_distinct(arguments)
    if arguments.model is None:
        flow = fitted(arguments)
    else:
        flow = _read(arguments)
        check_taken(method_of(flow), arguments)
    kept = {} if arguments.checkpoint is None else {"checkpoint": arguments.checkpoint}
    Z, _ = points(flow.sample(arguments.particles, random_state=arguments.seed, **kept), "sample")
    names = getattr(flow, "feature_names_in_", None)
    write_atomically(arguments.out, table_bytes(arguments.out, Z, names))
    if plot is not None:
        data, _ = points(flow.X_, "X")
        write_atomically(arguments.figure, plot.png(plot.particles(Z, data=data)))
    if not arguments.quiet:
        say(f"{len(Z)} particles written to {arguments.out}")
    return 0


def fit(arguments: argparse.Namespace) -> int:
    """Fit an estimator and write it, for ``sample --model``."""
    from gpukoop.models import write_model

    writable(arguments.out, ".model")
    _check_distinct(arguments)
    flow = fitted(arguments)
    write_model(arguments.out, flow)
    if not arguments.quiet:
        say(f"{type(flow).__name__} fitted to {arguments.data}, written to {arguments.out}")
    return 0


def train(arguments: argparse.Namespace) -> int:
    """Train a neural generator and write a folder, for ``sample --model``."""
    from gpukoop.cli import training

    return training.train(arguments)


def fitted(arguments: argparse.Namespace) -> Any:
    """Return the estimator of the command line, fitted to its data."""
    from gpukoop.cli.recipes import estimator

    if arguments.method is None or arguments.data is None:
        raise ValueError("pass METHOD and --data, or --model with a file that `gpukoop fit` wrote")
    flow = estimator(arguments.method, arguments)  # first: it refuses what the method does not take
    X, Y = _pairs(arguments)
    return flow.fit(X) if Y is None else flow.fit(X, successors=Y)


def _check_distinct(arguments: argparse.Namespace) -> None:
    """Raise if a file that is to be written is one that is read, or two of them are one."""
    written = [name for name in ("out", "figure", "checkpoint") if getattr(arguments, name, None)]
    seen: dict[str, str] = {}
    for name in ("data", "successors", "model", *written):
        path = getattr(arguments, name, None)
        if path is None:
            continue
        first = seen.setdefault(os.path.realpath(path), name)
        if first != name and name in written:
            raise ValueError(f"--{name} and --{first} are one file, {path}: name another")


def _read(arguments: argparse.Namespace) -> Any:
    from gpukoop.models import read_model

    _check_fitted(arguments)
    flow = read_model(arguments.model)
    return flow.set_params(verbose=0 if arguments.quiet else 1)


def _check_fitted(arguments: argparse.Namespace) -> None:
    """Raise if an option is given that decides a fit: a model is fitted already."""
    from gpukoop.cli.recipes import FITTING

    for name in ("method", "data", *FITTING):
        if getattr(arguments, name) is not None:
            option = "METHOD" if name == "method" else f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} belongs to fit: the model of --model is fitted already")


def _plot() -> Any:
    from gpukoop import plot

    plot.require_matplotlib()
    return plot


def _pairs(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """Return samples, and successors or None: arrays, or frames whose column names a fit remembers."""
    from gpukoop.arrays import points
    from gpukoop.tables import read_table

    X = read_table(arguments.data)
    native, _ = points(X, str(arguments.data))
    if arguments.successors is not None and arguments.lag is not None:
        raise ValueError(
            "--successors and --lag exclude each other: pairs come from one or the other"
        )
    if arguments.successors is not None:
        Y, name = read_table(arguments.successors), str(arguments.successors)
        points(Y, name, n_features=native.shape[1], other=str(arguments.data))
        return X, Y
    if arguments.lag is not None:
        if arguments.lag >= len(X):
            raise ValueError(
                f"--lag {arguments.lag} leaves no pair: {arguments.data} has {len(X)} rows"
            )
        return X[: -arguments.lag], X[arguments.lag :]
    return X, None


def info(arguments: argparse.Namespace) -> int:
    """Print versions, backends and devices, as text or as JSON."""
    from gpukoop.backends import BACKENDS

    facts = {
        "gpukoop": installed("gpukoop"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": dict(_packages()),
        "backends": {name: backend.missing() for name, backend in BACKENDS.items()},
        "devices": _devices(),
    }
    if arguments.json:
        say(json.dumps(facts, indent=1))
        return 0
    say(f"gpukoop {facts['gpukoop']}, Python {facts['python']}, {facts['platform']}")
    say("  ".join(f"{name} {number or 'not installed'}" for name, number in _packages()))
    say("backends:")
    for name, backend in BACKENDS.items():
        say(f"  {name:<11} {backend.missing() or 'usable'}")
    say("devices:")
    for line in _devices():
        say(f"  {line}")
    return 0


def _packages() -> Iterator[tuple[str, str | None]]:
    cupy = ("cupy-cuda13x", "cupy-cuda12x", "cupy")
    found = next((name for name in cupy if installed(name) != "not installed"), "cupy")
    for name in (*PACKAGES, found):
        number = installed(name)
        yield name, None if number == "not installed" else number


def code(arguments: argparse.Namespace) -> int:
    """Print what runs for a kernel sum."""
    from gpukoop.cli.listing import listing

    a = arguments
    say(listing(a.kernel, a.operation, a.d, a.t, a.dtype, a.backend))
    return 0


def _devices() -> list[str]:
    from gpukoop.backends import BACKENDS

    lines = [
        f"cpu: {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores, {platform.processor() or platform.machine()}"
    ]
    reason = BACKENDS["numba-cuda"].missing()
    if reason is not None:
        return [*lines, f"cuda: none ({reason})"]
    from numba import cuda

    for device in cuda.list_devices():
        name = device.name.decode() if isinstance(device.name, bytes) else device.name
        lines.append(f"cuda:{device.id}: {name}, compute capability {device.compute_capability}")
    return lines


def repository() -> Path | None:
    """Return the checkout that this package runs from, where the benchmarks are; None for an installed wheel."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "bench" / "__main__.py").is_file() else None


def bench(arguments: argparse.Namespace) -> int:
    """Run the benchmarks of the checkout."""
    sys.path.insert(0, str(repository()))
    from bench.__main__ import run

    return run(
        device=arguments.device, quick=arguments.quick, out=arguments.out, quiet=arguments.quiet
    )
