"""What runs on a Dask worker: one block of a reduction, its threads, and the points that stay on its device."""

from __future__ import annotations

import os
import threading
import warnings
import weakref
from dataclasses import replace

import numpy as np

from gpukoop.arrays import to_host
from gpukoop.dispatch import AccuracyWarning, choose_named, run_here
from gpukoop.kernels.arrays import Array
from gpukoop.kernels.partial_sums import Partial
from gpukoop.kernels.request import Clouds, Request

# The loops use every thread the worker has: two of them at once would only get in each other's way.
_one_at_a_time = threading.Lock()


def block_sum(
    request: Request,
    name: str,
    source: str,
    client_process: int,
    X: np.ndarray,
    Y: np.ndarray,
    V: np.ndarray,
) -> Partial:
    """Return one block of a reduction in float64, its error estimate and its warnings; runs on a worker."""
    _share_threads(client_process)
    clouds = Clouds(X, Y)
    request = replace(request, n=len(X), m=len(Y), clouds=clouds)
    with _one_at_a_time, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", AccuracyWarning)
        choice = choose_named(request, name, source)
        if choice.backend == "numba-cuda":
            request, V = on_device(request, V)
        result = run_here(request, choice, V)
        clouds = request.clouds or clouds
    words = tuple(str(w.message) for w in caught if issubclass(w.category, AccuracyWarning))
    parts = result if isinstance(result, tuple) else (result,)
    wide = tuple(to_host(p).astype(float) for p in parts)
    return wide, clouds.error_estimate, words


# Blocks of points on the device of this worker, by the identity of those that the worker holds.
device_blocks: dict[int, Array] = {}


def on_device(request: Request, V: np.ndarray) -> tuple[Request, Array]:
    """Return a request with its points on the device, copied there once for as long as the worker holds them, and weights."""
    try:
        import cupy
    except ImportError:  # the backend copies at every call
        return request, V
    if request.clouds is None:
        raise ValueError(f"{request} has no points: it can be asked about, not run")
    placed = []
    for block in (request.clouds.X, request.clouds.Y):
        if id(block) not in device_blocks:
            device_blocks[id(block)] = cupy.asarray(block)
            weakref.finalize(block, device_blocks.pop, id(block), None)
        placed.append(device_blocks[id(block)])
    device = f"cuda:{placed[0].device.id}"
    moved = replace(request, clouds=Clouds(*placed), library="cupy", device=device)
    return moved, cupy.asarray(V)


def _share_threads(client_process: int) -> None:
    """Give the loops the threads of this worker; in the client's own process everything stays as the user set it."""
    from distributed import get_worker

    if os.getpid() == client_process:
        return
    # Set, not defaulted: Dask's nanny starts every worker with OMP_NUM_THREADS=1, whatever nthreads is.
    for name in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ[name] = str(get_worker().state.nthreads)
