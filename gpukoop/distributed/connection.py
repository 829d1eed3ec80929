"""A Dask client's connection: whether the workers run what the client runs, whether the scheduler is there, what comes back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

import numpy as np

from gpukoop.kernels.partial_sums import Partial
from gpukoop.kernels.request import Request

# What decides a block: its own code, and the libraries that pickle and compute it.
PACKAGES = ("gpukoop", "numpy", "distributed")
# Seconds between two looks at the connection, and until a lost one counts as gone.
LOOK, PATIENCE = 0.5, 3.0


def require_open(client: Any) -> None:
    """Raise unless a client is connected."""
    if client.status != "running":
        raise ValueError(
            f"the Dask client is {client.status}: make a new one, or leave it with use_cluster(None)"
        )


def require_versions(client: Any) -> None:
    """Raise unless scheduler and workers run the versions of this process: other code would return other numbers.

    Of Python the first two numbers count, of packages all.
    """
    found = client.get_versions(packages=list(PACKAGES))
    here = _versions(found["client"])
    for address, there in found["workers"].items():
        theirs = _versions(there)
        if theirs != here:
            differing = ", ".join(
                f"{name} {theirs[name] or 'missing'} instead of {here[name]}"
                for name in here
                if theirs[name] != here[name]
            )
            raise ValueError(
                f"the Dask worker {address} runs {differing}: install the same versions on every worker"
            )


def _versions(record: Any) -> dict[str, str | None]:
    packages = record["packages"] if isinstance(record, dict) else {}
    python = ".".join(str(packages.get("python")).split(".")[:2])
    return {"python": python, **{name: packages.get(name) for name in PACKAGES}}


def require_scheduler(client: Any) -> None:
    """Wait a little for a connection that is being restored; raise if it is not."""
    deadline = time.monotonic() + PATIENCE
    while client.status == "connecting" and time.monotonic() < deadline:
        time.sleep(LOOK / 10)
    if client.status != "running":
        raise RuntimeError(
            "the Dask scheduler is gone (it ended, or the cluster was closed) and the sum with it: connect a new client, or "
            "leave this one with use_cluster(None)"
        )


def watched(client: Any, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Return what a call of the client returns; raise in seconds if the scheduler is lost while it waits.

    Dask itself waits half a minute for a scheduler that is gone, in whatever it was doing.
    """
    found: Future[Any] = Future()

    def run() -> None:
        try:
            found.set_result(call(*arguments, **options))
        except BaseException as error:  # noqa: BLE001
            found.set_exception(error)

    threading.Thread(target=run, name="gpukoop-dask", daemon=True).start()
    while not wait([found], timeout=LOOK).done:
        require_scheduler(client)
    return found.result()


def result_of(future: Any, client: Any) -> Any:
    """Return the result of a future; raise in seconds if the scheduler is lost while it is waited for.

    ``future.result(timeout=...)`` is no way to look in between: a result that comes as the time ends is an UnboundLocalError in Dask.
    """
    return watched(client, future.result)


def check_partial(request: Request, partial: Partial, rows: int, t: int, d: int) -> None:
    """Raise unless a partial result has the dtype and the shapes of a block of ``rows`` targets."""
    operation = request.operation
    value = (rows,) if operation.log else (rows, t)
    slope = (rows, d) if operation.log else (rows, t, d)
    asked = ((value, operation.value), (slope, operation.slope))
    expected = [(shape, "float64") for shape, wanted in asked if wanted]
    found = [_seen(part) for part in partial[0]] if _is_partial(partial) else type(partial).__name__
    if found != expected:
        raise RuntimeError(
            f"a worker returned {found} for a block of {request}, expected {expected}: do all workers run the same version of "
            "gpukoop?"
        )


def _is_partial(partial: Any) -> bool:
    return isinstance(partial, tuple) and len(partial) == 3 and isinstance(partial[0], tuple)


def _seen(part: Any) -> tuple[Any, str]:
    """Return shape and dtype of a part that may be anything; of what is no plain array of NumPy, its class."""
    if type(part) is not np.ndarray:
        return getattr(part, "shape", None), type(part).__name__
    return part.shape, part.dtype.name
