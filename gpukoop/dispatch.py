"""Who computes a request, and why: argument > context > environment > the cheapest by cost."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from gpukoop.backends import BACKENDS, Request
from gpukoop.config import cluster, wanted_backend

Array = Any


class BackendError(RuntimeError):
    """A chosen backend cannot do it; the message lists every backend with its reason."""


class AccuracyWarning(RuntimeWarning):
    """A sum missed its ``tol``: the result of a chosen backend, or the reason why another one computed it."""


@dataclass(frozen=True)
class Explanation:
    """The ranked table behind a choice: usable backends by cost, then the others with their reason.

    Attributes
    ----------
    backend : str
        Name of the backend that computes.
    source : str
        Who chose it: an argument, a context, the environment or the cost.
    rows : tuple of (name, seconds or None, words)
        Every backend.
    """

    request: Request
    backend: str
    source: str
    rows: tuple[tuple[str, float | None, str], ...]

    def __str__(self) -> str:
        head = f"{self.request}: {self.backend}, chosen by {self.source}"
        return "\n".join([head, *_table(self.rows)])

    __repr__ = __str__


def _table(rows: tuple[tuple[str, float | None, str], ...]) -> list[str]:
    return [f"  {name:<11} {words}" for name, _, words in rows]


def _span(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds:.1g} s"


def rank(request: Request) -> tuple[tuple[str, float | None, str], ...]:
    """Return (name, seconds or None, words) for every backend, cheapest first."""
    usable, unusable = [], []
    for name, backend in BACKENDS.items():
        reason = backend.reason(request)
        if reason is None:
            seconds = backend.seconds(request)
            usable.append((name, seconds, f"usable, about {_span(seconds)}"))
        else:
            unusable.append((name, None, reason))
    return (*sorted(usable, key=lambda row: row[1]), *unusable)


def explain(request: Request, backend: str | None) -> Explanation:
    """Return the choice for a request and the table behind it.

    Raises
    ------
    BackendError
        If a backend chosen by name cannot run it, or none can.
    """
    name, source = wanted_backend(backend)
    workers = cluster.get()
    if workers is not None:
        source = f"{source}, in blocks on {workers}"
    return Explanation(request, _choose(request, name, source), source, rank(request))


def _choose(request: Request, name: str, source: str) -> str:
    if name != "auto":
        if BACKENDS[name].reason(request) is None:
            return name
        head = f"backend {name!r} (from {source}) cannot run {request}:"
        raise BackendError("\n".join([head, *_table(rank(request))]))
    rows = rank(request)
    if rows[0][1] is None:
        raise BackendError("\n".join([f"no backend can run {request}:", *_table(rows)]))
    return rows[0][0]


def run(
    request: Request,
    backend: str | None,
    X: Array,
    Y: Array,
    V: Array,
    workspace: dict[str, Any],
) -> Any:
    """Run a request on the backend that ``explain`` names; arrays are native and valid."""
    name, source = wanted_backend(backend)
    workspace.pop("error_estimate", None)
    workers = cluster.get()
    if workers is not None:
        return workers.run(request, name, source, X, Y, V, workspace)
    return run_here(request, name, source, X, Y, V, workspace)


def run_here(
    request: Request,
    name: str,
    source: str,
    X: Array,
    Y: Array,
    V: Array,
    workspace: dict[str, Any],
) -> Any:
    """Run a request in this process.

    A backend that misses ``tol`` by its own check gives a warning if it was chosen by name; if the cost chose it,
    the cheapest exact backend computes instead, with a warning that says so.
    """
    chosen = _choose(request, name, source)
    result = BACKENDS[chosen].run(request, X, Y, V, workspace)
    words = BACKENDS[chosen].missed(request, workspace)
    if words is None:
        return result
    if name != "auto":
        warnings.warn(f"{words}: loosen tol, or use exact sums", AccuracyWarning, stacklevel=5)
        return result
    other = next((row[0] for row in rank(request) if row[1] is not None and row[0] != chosen), None)
    if other is None:
        warnings.warn(f"{words}, and no other backend can run it", AccuracyWarning, stacklevel=5)
        return result
    warnings.warn(f"{words}: {other} computes it instead", AccuracyWarning, stacklevel=5)
    workspace.pop("error_estimate", None)
    return BACKENDS[other].run(request, X, Y, V, workspace)
