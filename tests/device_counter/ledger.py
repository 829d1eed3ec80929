"""The ledger: what is asked of the device, counted by kind, and what a stream under capture records."""

from __future__ import annotations

import collections
import contextlib
import traceback
from dataclasses import dataclass, replace
from pathlib import Path

TESTS = Path(__file__).parents[1]
# Launches of one call, read from CuPy's source where it is more than one; library calls are estimates.
COMPOSITE = {
    "argsort": 3,
    "sort": 2,
    "var": 3,
    "std": 4,
    "concatenate": 2,
    "stack": 2,
    "hstack": 2,
    "nonzero": 4,
    "flatnonzero": 4,
    "argwhere": 4,
    "unique": 8,
    "quantile": 12,
    "median": 4,
    "partition": 4,
    "searchsorted": 1,
    "eye": 2,
    "diag": 2,
    "linalg.qr": 8,
    "linalg.eigh": 4,
    "linalg.svd": 6,
    "linalg.solve": 4,
    "linalg.inv": 4,
    "linalg.cholesky": 3,
    "linalg.norm": 2,
    "allclose": 4,
}
VIEWS = {"reshape", "ravel", "transpose", "broadcast_to", "moveaxis", "swapaxes", "expand_dims"}
VIEWS |= {"squeeze", "atleast_1d", "atleast_2d", "diagonal", "empty", "empty_like", "shape", "ndim"}
WAITS = {"nonzero", "flatnonzero", "argwhere", "unique", "allclose"}
# cuSOLVER's return code is read by the host unless cupyx.errstate(linalg="ignore") says not to.
CHECKED = {"qr", "eigh", "eigvalsh", "svd", "solve", "inv", "cholesky", "lstsq", "pinv"}


class Count:
    """What was asked of the device since it was made."""

    def __init__(self):
        self.kinds = collections.Counter()
        self.calls = collections.Counter()  # launches by name
        self.where = collections.Counter()  # (kind, file:line) of synchronisations and copies

    kernels = property(lambda self: self.kinds["kernel"])
    syncs = property(lambda self: self.kinds["sync"])
    copies = property(lambda self: self.kinds["copy"])
    sums = property(lambda self: self.kinds["sum"])

    def __str__(self):
        head = f"{self.kernels} kernels, {self.syncs} syncs, {self.copies} copies, {self.sums} sums"
        sites = [f"  {n:5d} {kind} at {site}" for (kind, site), n in self.where.most_common()]
        calls = ", ".join(f"{name} {n}" for name, n in self.calls.most_common())
        return "\n".join([head, *sites, f"  {calls}"])


@dataclass(frozen=True)
class Ledger:
    counts: tuple[Count, ...] = ()
    checked: bool = True


current = [Ledger()]


def _site():
    for frame in reversed(traceback.extract_stack(limit=25)):
        path = Path(frame.filename)
        if TESTS not in path.parents and ("gpukoop" in path.parts or "kernels" in path.parts):
            return f"{path.parent.name}/{path.name}:{frame.lineno}"
    return "outside"


def note(kind, n=1, name=None):
    """Count ``n`` of a kind, "kernel", "sync", "copy" or "sum"."""
    if kind in ("sync", "copy"):
        refused_in_capture(f"a {kind}")
    site = _site() if kind in ("sync", "copy") and current[0].counts else None
    for count in current[0].counts:
        count.kinds[kind] += n
        if name is not None:
            count.calls[name] += n
        if site is not None:
            count.where[kind, site] += n


def launch(name):
    if name not in VIEWS:
        note("kernel", COMPOSITE.get(name, 1), name)


# What a stream under capture has been asked for: (function without arguments, its result), or None.
tape: list[list | None] = [None]


def recorded(function):
    """Return what a function gives; under capture it is computed, and computed again into the same memory by a replay."""
    result = function()
    if tape[0] is not None:
        tape[0].append((function, result))
    return result


def refused_in_capture(what):
    if tape[0] is not None:
        raise RuntimeError(f"cudaErrorStreamCaptureUnsupported: {what} in a stream under capture")


@contextlib.contextmanager
def counting():
    """Count what happens inside."""
    before, count = current[0], Count()
    current[0] = replace(before, counts=(*before.counts, count))
    try:
        yield count
    finally:
        current[0] = before


@contextlib.contextmanager
def quiet():
    """Count nothing of what happens inside: what runs on the device itself."""
    before = current[0]
    current[0] = Ledger()
    try:
        yield
    finally:
        current[0] = before
