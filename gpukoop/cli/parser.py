"""The command line: ``gpukoop demo``, ``fit``, ``train``, ``sample``, ``info``, ``code`` and, in a checkout, ``bench``.

Errors are one line on standard error and exit status 2, whatever was raised; ``--debug`` shows the traceback. Nothing is
written before everything it needs has been computed, and files appear whole or not at all.
"""

from __future__ import annotations

import argparse
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpukoop.cli import commands
from gpukoop.cli.terminal import (
    complain,
    finish_printing,
    show_choices,
    show_warning,
    worded,
    write_log,
)

# Kinds of tables, told by their ending.
TABLE = ".npy|.npz|.csv|.parquet"
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
            show_choices(not arguments.quiet)
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
    parser.add_argument(
        "--version", action="version", version=f"gpukoop {commands.installed('gpukoop')}"
    )
    names = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub = names.add_parser(name, help=text, description=text)
        sub.add_argument("--quiet", action="store_true", help="no progress, no summary")
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        sub.set_defaults(run=run, doing=f"gpukoop {name}")
        return sub

    demo = command(
        "demo", commands.demo, "make data, fit, move particles, write figure and metrics"
    )
    demo.add_argument("--method", choices=[m for m in METHODS if m != "jko"], default="kswgd")
    demo.add_argument("--particles", type=_count, metavar="N", default=20_000)
    demo.add_argument("--out", type=Path, metavar="DIR", default=Path("gpukoop-demo"))
    demo.add_argument("--seed", type=_seed, default=0)
    demo.add_argument("--animate", action="store_true", help="also write the flow as a GIF")

    fit = command("fit", commands.fit, "learn from a table and write the fitted model")
    fit.add_argument("method", choices=METHODS, metavar="METHOD", help=", ".join(METHODS))
    fit.add_argument("--out", type=Path, required=True, metavar="M.model")
    _add_fitting(fit)
    fit.set_defaults(checkpoint=None)

    train = command(
        "train", commands.train, "train a neural generator on images or a table (needs PyTorch)"
    )
    train.add_argument(
        "--data", type=Path, required=True, help="images (.npz, .npy, IDX, PNGs) or a table"
    )
    train.add_argument("--objective", default="sinkhorn", help="sinkhorn, mmd, energy, drift, ...")
    train.add_argument("--out", type=Path, required=True, metavar="DIR")
    train.add_argument("--steps", type=_count, default=4_800)
    train.add_argument("--batch", type=_count, default=256, help="samples and particles of a step")
    train.add_argument("--latent", type=_count, default=32, help="dimension of the latent points")
    train.add_argument("--persistence", type=_count, default=1, help="optimizer steps a batch")
    train.add_argument("--rate", type=float, default=2e-3, help="learning rate at the start")
    train.add_argument("--device", help="cpu or cuda")
    train.add_argument(
        "--no-labels", action="store_true", help="draw all classes alike; labels serve the features"
    )
    train.add_argument(
        "--classifier", action="store_true", help="score in features of a classifier, too"
    )
    train.add_argument("--seed", type=_seed, default=0)

    sample = command(
        "sample", commands.sample, "learn from a table, or read a model, and write particles"
    )
    sample.add_argument(
        "method", nargs="?", choices=METHODS, metavar="METHOD", help=", ".join(METHODS)
    )
    sample.add_argument(
        "--model",
        type=Path,
        metavar="M.model|DIR",
        help="what fit or train wrote, in place of METHOD --data",
    )
    sample.add_argument("--label", help="of a generator that was trained with labels")
    sample.add_argument("--particles", type=_count, required=True, metavar="N")
    sample.add_argument("--out", type=Path, required=True, metavar=f"Z{TABLE}")
    sample.add_argument("--figure", type=Path, metavar="F.png")
    sample.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="state of the run: repeat to continue"
    )
    _add_fitting(sample)

    info = command(
        "info", commands.info, "backends, devices, versions, and why each unusable one is"
    )
    info.add_argument("--json", action="store_true", help="for programs")

    code = command("code", commands.code, "print what runs for a kernel sum")
    code.add_argument("kernel", help="a kernel by name, such as gaussian")
    code.add_argument("operation", help="product, gradient, value_and_gradient, logsumexp, ...")
    code.add_argument("-d", type=_count, default=3, metavar="D", help="features")
    code.add_argument("-t", type=_count, default=1, metavar="T", help="columns")
    code.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    code.add_argument("--backend", default="numba-cuda")

    if commands.repository() is not None:  # the benchmarks are no part of an installed package
        bench = command("bench", commands.bench, "throughput, error and memory beside peers")
        bench.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
        bench.add_argument(
            "--short", "--quick", dest="quick", action="store_true", help="two minutes"
        )
        bench.add_argument("--out", type=Path, metavar="results.json")
    return parser


def _add_fitting(sub: argparse.ArgumentParser) -> None:
    """Add what decides a fit: the data and the parameters of the method."""
    required = sub.prog.endswith(" fit")
    sub.add_argument("--data", type=Path, required=required, metavar=f"X{TABLE}")
    sub.add_argument("--successors", type=Path, metavar=f"Y{TABLE}", help="X one lag later")
    sub.add_argument(
        "--lag", type=_count, metavar="K", help="rows of X are a trajectory: pairs K rows apart"
    )
    sub.add_argument("--lag-time", type=float, help="time of one lag, 1 by default")
    sub.add_argument("--components", type=_count, help="modes of the spectrum (kswgd)")
    sub.add_argument("--landmarks", type=_count, help="sources of the kernel sums (kswgd)")
    sub.add_argument("--scale", type=_scale, default=None, help="a number, median or auto")
    sub.add_argument("--steps", type=_count, help="number of steps of the flow")
    sub.add_argument("--backend", help="who computes; see gpukoop info")
    sub.add_argument("--tol", type=float, help="relative accuracy of kernel sums")
    sub.add_argument("--seed", type=_seed, default=0)


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
