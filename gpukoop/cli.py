"""The command line: ``gpukoop demo``, ``sample``, ``info`` and ``bench``.

Errors are one line on standard error and exit status 2, whatever was raised; ``--debug`` shows the traceback. Nothing is
written before everything it needs has been computed, and files appear whole or not at all.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gpukoop.terminal import (
    complain,
    finish_printing,
    folder,
    say,
    show_warning,
    worded,
    writable,
    write_log,
)

METHODS = ("kswgd", "mmd", "wasserstein", "jko", "koopman")


class _Parser(argparse.ArgumentParser):
    """argparse with the usage left out of errors: one line is enough."""

    def error(self, message: str) -> Any:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show_warning
            status = int(arguments.run(arguments) or 0)
        finish_printing()
        return status
    except KeyboardInterrupt:
        complain("interrupted; nothing was written")
        return 130
    except Exception as error:  # noqa: BLE001
        # The last resort: a user never sees a traceback unasked.
        if arguments.debug:
            traceback.print_exc()
        text = " | ".join(line.strip() for line in str(error).splitlines() if line.strip())
        if not worded(error):
            text = f"{arguments.doing} failed: {type(error).__name__}: {text}"
            if not arguments.debug:
                text += f" (log: {write_log(arguments.doing)}; --debug shows it here)"
        complain(text)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="gpukoop", description="Kernel flows on CPU and GPU.")
    parser.add_argument("--version", action="version", version=f"gpukoop {_version('gpukoop')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--quiet", action="store_true", help="no progress, no summary")
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        sub.set_defaults(run=run, doing=f"gpukoop {name}")
        return sub

    demo = command("demo", _demo, "make data, fit, move particles, write figure and metrics")
    demo.add_argument("--method", choices=[m for m in METHODS if m != "jko"], default="kswgd")
    demo.add_argument("--particles", type=_count, metavar="N", default=20_000)
    demo.add_argument("--out", type=Path, metavar="DIR", default=Path("gpukoop-demo"))
    demo.add_argument("--seed", type=_seed, default=0)
    demo.add_argument("--animate", action="store_true", help="also write the flow as a GIF")

    sample = command("sample", _sample, "learn from a .npy file and write particles to a .npz file")
    sample.add_argument("method", choices=METHODS, metavar="METHOD", help=", ".join(METHODS))
    sample.add_argument("--data", type=Path, required=True, metavar="X.npy")
    sample.add_argument("--successors", type=Path, metavar="Y.npy", help="X one lag later")
    sample.add_argument(
        "--lag", type=_count, metavar="K", help="rows of X are a trajectory: pairs K rows apart"
    )
    sample.add_argument("--lag-time", type=float, help="time of one lag, 1 by default")
    sample.add_argument("--particles", type=_count, required=True, metavar="N")
    sample.add_argument("--out", type=Path, required=True, metavar="Z.npz")
    sample.add_argument("--figure", type=Path, metavar="F.png")
    sample.add_argument("--components", type=_count, help="modes of the spectrum (kswgd)")
    sample.add_argument("--landmarks", type=_count, help="sources of the kernel sums (kswgd)")
    sample.add_argument("--scale", type=_scale, default=None, help="a number, median or auto")
    sample.add_argument("--steps", type=_count, help="number of steps of the flow")
    sample.add_argument("--backend", help="who computes; see gpukoop info")
    sample.add_argument("--tol", type=float, help="relative accuracy of kernel sums")
    sample.add_argument("--seed", type=_seed, default=0)

    command("info", _info, "backends, devices, versions, and why each unusable one is")

    code = command("code", _code, "print what runs for a kernel sum")
    code.add_argument("kernel", help="a kernel by name, such as gaussian")
    code.add_argument("operation", help="product, gradient, value_and_gradient, logsumexp, ...")
    code.add_argument("-d", type=_count, default=3, metavar="D", help="features")
    code.add_argument("-t", type=_count, default=1, metavar="T", help="columns")
    code.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    code.add_argument("--backend", default="numba-cuda")

    bench = command("bench", _bench, "throughput, error and memory beside peers")
    bench.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    bench.add_argument("--short", "--quick", dest="quick", action="store_true", help="two minutes")
    bench.add_argument("--out", type=Path, metavar="results.json")
    return parser


def _count(text: str) -> int:
    return _whole(text, 1)


def _seed(text: str) -> int:
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) < least:
        raise argparse.ArgumentTypeError(f"expected a whole number >= {least}, got {text!r}")
    return int(text)


def _scale(text: str) -> float | str:
    if text in ("median", "auto"):
        return text
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a number, 'median' or 'auto', got {text!r}"
        ) from None


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _demo(arguments: argparse.Namespace) -> int:
    from gpukoop.demo import DEMOS, table
    from gpukoop.files import write_atomically

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
        "particles.npz": _npz(particles=result.particles, start=result.start),
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


def _sample(arguments: argparse.Namespace) -> int:
    from gpukoop.files import write_atomically
    from gpukoop.recipes import estimator

    writable(arguments.out, ".npz")
    plot = None
    if arguments.figure is not None:
        writable(arguments.figure, ".png")
        plot = _plot()
    if arguments.method != "kswgd" and (arguments.successors or arguments.lag):
        raise ValueError(
            f"--successors and --lag belong to kswgd; {arguments.method} learns from samples"
        )
    flow = estimator(arguments.method, arguments)  # first: it refuses what the method does not take
    X, Y = _pairs(arguments)
    flow = flow.fit(X) if Y is None else flow.fit(X, successors=Y)
    Z = flow.sample(arguments.particles, random_state=arguments.seed)
    write_atomically(arguments.out, _npz(particles=Z))
    if plot is not None:
        write_atomically(arguments.figure, plot.png(plot.particles(Z, data=X)))
    if not arguments.quiet:
        say(f"{len(Z)} particles written to {arguments.out}")
    return 0


def _plot() -> Any:
    from gpukoop import plot

    plot.require_matplotlib()
    return plot


def _npz(**arrays: Any) -> bytes:
    import numpy as np

    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _pairs(arguments: argparse.Namespace) -> tuple[Any, Any]:
    from gpukoop.arrays import points
    from gpukoop.files import read_npy

    X, _ = points(read_npy(arguments.data), str(arguments.data))
    if arguments.successors is not None and arguments.lag is not None:
        raise ValueError(
            "--successors and --lag exclude each other: pairs come from one or the other"
        )
    if arguments.successors is not None:
        name = str(arguments.successors)
        Y, _ = points(
            read_npy(arguments.successors), name, n_features=X.shape[1], other=str(arguments.data)
        )
        return X, Y
    if arguments.lag is not None:
        if arguments.lag >= len(X):
            raise ValueError(
                f"--lag {arguments.lag} leaves no pair: {arguments.data} has {len(X)} rows"
            )
        return X[: -arguments.lag], X[arguments.lag :]
    return X, None


def _info(arguments: argparse.Namespace) -> int:
    from gpukoop.backends import BACKENDS

    say(f"gpukoop {_version('gpukoop')}, Python {platform.python_version()}, {platform.platform()}")
    packages = (
        "numpy",
        "scipy",
        "numba",
        "scikit-learn",
        "numba-cuda",
        "pykeops",
        "finufft",
        "dask",
    )
    cupy = next(
        (n for n in ("cupy-cuda13x", "cupy-cuda12x", "cupy") if _version(n) != "not installed"),
        "cupy",
    )
    say("  ".join(f"{name} {_version(name)}" for name in (*packages, cupy)))
    say("backends:")
    for name, backend in BACKENDS.items():
        say(f"  {name:<11} {backend.missing() or 'usable'}")
    say("devices:")
    for line in _devices():
        say(f"  {line}")
    return 0


def _code(arguments: argparse.Namespace) -> int:
    from gpukoop.listing import listing

    a = arguments
    say(listing(a.kernel, a.operation, a.d, a.t, a.dtype, a.backend))
    return 0


def _devices() -> list[str]:
    import os

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


def _bench(arguments: argparse.Namespace) -> int:
    import gpukoop

    root = Path(gpukoop.__file__).resolve().parents[1]
    if not (root / "bench" / "__main__.py").is_file():
        raise ValueError(
            "the benchmarks are part of the repository, not of the installed package: run this from a checkout "
            "installed with pip install -e ."
        )
    sys.path.insert(0, str(root))
    from bench.__main__ import run

    return run(
        device=arguments.device, quick=arguments.quick, out=arguments.out, quiet=arguments.quiet
    )


if __name__ == "__main__":
    raise SystemExit(main())
