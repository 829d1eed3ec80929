"""Who computes a request, and why: argument > context > environment > the cheapest by cost."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from gpukoop.backends import BACKENDS
from gpukoop.config import cluster, wanted_backend
from gpukoop.kernels.arrays import Array
from gpukoop.kernels.operation import as_operation
from gpukoop.kernels.request import Request


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
    way : str
        What that backend will do where it has several ways: visit each pair once, leave out cells of sources, multiply
        matrices. "" where it has one.
    """

    request: Request
    backend: str
    source: str
    rows: tuple[tuple[str, float | None, str], ...]
    way: str = ""

    def __str__(self) -> str:
        head = f"{self.request}: {self.backend}, chosen by {self.source}"
        if self.way:
            head = f"{head}; {self.way}"
        return "\n".join([head, *_table(self.rows)])

    __repr__ = __str__


class Choice(NamedTuple):
    """Who computes, who was wanted ("auto" leaves it to the cost), and who said so."""

    backend: str
    wanted: str
    source: str


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
    # Blocks on a cluster go through the same backends, each on its worker: who computes does not change, only where.
    choice, workers = choose(request, backend), cluster.get()
    source = choice.source if workers is None else f"{choice.source}, in blocks on {workers}"
    way = BACKENDS[choice.backend].way(request)
    return Explanation(request, choice.backend, source, rank(request), way)


def _choose(request: Request, name: str, source: str) -> str:
    # A name never falls back: who asks for a GPU by name and silently gets a CPU would look for the lost factor elsewhere.
    if name != "auto":
        if BACKENDS[name].reason(request) is None:
            return name
        head = f"backend {name!r} (from {source}) cannot run {request}:"
        raise BackendError("\n".join([head, *_table(rank(request))]))
    rows = rank(request)
    # Usable backends come first in the table, so its first row without a cost means that there is none.
    if rows[0][1] is None:
        raise BackendError("\n".join([f"no backend can run {request}:", *_table(rows)]))
    return rows[0][0]


def choose(request: Request, backend: str | None) -> Choice:
    """Return who computes a request: looked up where the same was asked of the same points before.

    Raises
    ------
    BackendError
        If a backend chosen by name cannot run it, or none can.
    """
    return choose_named(request, *wanted_backend(backend))


def choose_named(request: Request, name: str, source: str) -> Choice:
    """Return who computes a request for which ``source`` wants the backend ``name``, or "auto"."""
    clouds = request.clouds
    if clouds is None:
        return Choice(_choose(request, name, source), name, source)
    # The choice depends on the points and the question, not on the weights: it is kept with the points, and a warm product asks
    # nobody.
    key = request.operation, request.t, name
    chosen = clouds.choices.get(key)
    if chosen is None:
        # setdefault, since two threads with one operator may ask at once and must go the same way.
        chosen = clouds.choices.setdefault(key, _choose(request, name, source))
    return Choice(chosen, name, source)


def warm_up(sums: Iterable[tuple[Any, str, int]]) -> None:
    """Let what some sums will need be compiled side by side, where compiling takes long; nothing is computed.

    Parameters
    ----------
    sums : iterable of (operator, operation, columns)
        Kernel operators and what will be asked of them, such as ``(K, "product", 1)``.
    """
    wanted: dict[str, list[Request]] = {}
    for K, operation, t in sums:
        request = K.request(as_operation(operation), t)
        # By backend, so that all that is missing is compiled in one go, side by side.
        wanted.setdefault(choose(request, K.backend).backend, []).append(request)
    for name, requests in wanted.items():
        BACKENDS[name].warm_up(requests)


def run(request: Request, backend: str | None, V: Array) -> Any:
    """Run a request on the backend that ``explain`` names; points and weights are native and valid."""
    workers = cluster.get()
    if workers is not None:
        return workers.run(request, *wanted_backend(backend), V)
    return run_here(request, choose(request, backend), V)


def run_here(request: Request, choice: Choice, V: Array) -> Any:
    """Run a request in this process; the error estimate of the result is left with its points.

    A backend that misses ``tol`` by its own check gives a warning if it was chosen by name; if the cost chose it,
    the cheapest exact backend computes instead, with a warning that says so.
    """
    clouds, chosen = request.clouds, BACKENDS[choice.backend]
    if clouds is None:
        raise ValueError(f"{request} has no points: it can be asked about, not run")
    # Before the run: a sum that fails must not leave the estimate of the one before.
    clouds.error_estimate = None
    result = chosen.run(request, V)
    clouds.error_estimate = chosen.error_estimate(clouds)
    if clouds.error_estimate is None:
        return result
    words = chosen.missed(request, clouds.error_estimate)
    if words is None:
        return result
    # Chosen by name: the result stays what was asked for, with a warning. Chosen by cost, the promise of tol is kept by
    # somebody else.
    if choice.wanted != "auto":
        warnings.warn(f"{words}: loosen tol, or use exact sums", AccuracyWarning, stacklevel=5)
        return result
    names = (row[0] for row in rank(request) if row[1] is not None)
    other = next((name for name in names if name != chosen.name), None)
    if other is None:
        warnings.warn(f"{words}, and no other backend can run it", AccuracyWarning, stacklevel=5)
        return result
    warnings.warn(f"{words}: {other} computes it instead", AccuracyWarning, stacklevel=5)
    result = BACKENDS[other].run(request, V)
    clouds.error_estimate = BACKENDS[other].error_estimate(clouds)
    return result
