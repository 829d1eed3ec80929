r"""The same sums over the workers of a Dask cluster: several machines, or several GPUs.

Targets are cut into blocks of rows and sources into blocks of columns; one task computes one (rows, columns) block with the
backend of its worker, and the partial results of a row are added pairwise, on the workers, in a fixed order. There
is no scheduler here: placing, stealing and repeating tasks is Dask's work.

The blocks depend on n and m only. So the result does not depend on how many workers there are or which of them died, and it
equals that of one machine to rounding.

=== =============== ====================
n   targets         rows of ``X``
m   sources         rows of ``Y``
d   features        columns of both
t   right-hand side columns of ``V``
=== =============== ====================
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import time
import uuid
import warnings
from collections import OrderedDict
from contextvars import Token
from dataclasses import replace
from types import TracebackType
from typing import Any

import numpy as np

from gpukoop import config
from gpukoop.arrays import like, to_host
from gpukoop.dispatch import AccuracyWarning
from gpukoop.distributed.connection import (
    check_partial,
    require_open,
    require_scheduler,
    require_versions,
    result_of,
    watched,
)
from gpukoop.distributed.workers import block_sum
from gpukoop.kernels.arrays import Array
from gpukoop.kernels.partial_sums import blocks, combine
from gpukoop.kernels.request import Request

# Arrays kept on the workers for the next product.
KEPT_ARRAYS = 512
# Rounds of submitting what is missing; each lost worker costs at most one.
ROUNDS = 8
# Seconds before the second round; doubled each time, so that eight rounds outlast the restart of a worker.
FIRST_PAUSE, WORKER_TIMEOUT = 0.1, 60


def use_cluster(client: Any) -> _Cluster | None:
    """Compute products, gradients and log-sum-exps on the workers of a Dask client.

    As a call it holds until ``use_cluster(None)``; as a context manager until the end of the block. Everything that uses
    operators follows: flows, spectra and estimators run unchanged.

    Parameters
    ----------
    client : dask.distributed.Client or None
        A connected client; None goes back to this process.

    Returns
    -------
    context manager
        Entering it is not needed; leaving it restores what was there before.

    Raises
    ------
    ImportError
        If Dask is not installed.
    TypeError, ValueError
        If ``client`` is no client, a closed one, or has workers with other versions of Python, NumPy or this package.
    RuntimeError
        From a later sum, within 5 s, if the scheduler ends or the cluster is closed.

    Notes
    -----
    Cost: the exact or fast sum of every block, plus one transfer of each block of points to the workers that need it
    (points and weights are known by their content and sent once). Memory of a worker: its blocks; the (n, m) matrix is never
    formed. Accuracy: that of the backend of the workers, and the sum of partial sums in float64.

    A worker runs one task of ours at a time, with as many threads as Dask gave it (``nthreads``): the loops are parallel
    themselves. Start workers with all the cores of their machine and one process, such as
    ``dask worker ADDRESS --nworkers 1 --nthreads 16``.

    With GPUs: ``pip install dask-cuda``, then ``Client(dask_cuda.LocalCUDACluster())`` starts a worker a GPU and hides the
    others from it; with ``use_backend("numba-cuda")``, or with no choice at all, every block runs on the GPU of its worker,
    which keeps the points of its blocks there: a second product copies weights in and partial sums out.

    Points and weights cross the network as they are. Where others can listen or connect, let Dask encrypt and authenticate with
    TLS: ``Security(tls_ca_file=..., tls_client_cert=..., tls_client_key=..., require_encryption=True)`` for the client, the
    same with ``tls_scheduler_cert`` and ``tls_worker_cert`` for scheduler and workers, and addresses ``tls://``. Whoever may
    connect to a scheduler can run code on its workers.

    A worker that dies costs the time of its blocks: what it held is sent again and its tasks run elsewhere.

    Examples
    --------
    >>> from dask.distributed import Client  # doctest: +SKIP
    >>> with use_cluster(Client("tcp://scheduler:8786")):  # doctest: +SKIP
    ...     u = K @ v
    """
    if client is None:
        config.cluster.set(None)
        return None
    if importlib.util.find_spec("distributed") is None:
        raise ImportError("Dask is not installed: pip install gpukoop[dask]")
    from distributed import Client

    if not isinstance(client, Client):
        raise TypeError(
            f"client is {type(client).__name__}, expected a dask.distributed.Client: Client() starts one here"
        )
    if client.asynchronous:
        raise TypeError("client is asynchronous: operators need Client(..., asynchronous=False)")
    cluster = _Cluster(client)
    require_open(client)
    require_versions(client)
    cluster.token = config.cluster.set(cluster)
    return cluster


class _Cluster:
    """A client, and the arrays its workers already hold."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.token: Token[Any] | None = None
        self._held: OrderedDict[str, Any] = OrderedDict()

    def __str__(self) -> str:
        return f"{len(self.client.nthreads())} Dask workers"

    def __enter__(self) -> _Cluster:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.token is not None:
            config.cluster.reset(self.token)
            self.token = None
        self._held.clear()

    def run(self, request: Request, name: str, source: str, V: Array) -> Any:
        """Run a request in blocks, on the backend ``name`` that ``source`` wants."""
        require_open(self.client)
        clouds = request.clouds
        if clouds is None:
            raise ValueError(f"{request} has no points: it can be asked about, not run")
        X = clouds.X
        host = [to_host(a) for a in (X, clouds.Y, V)]
        rows, columns = blocks(request.n, request.m)
        block = replace(request, library="numpy", device="cpu", clouds=None)
        job = _Job(self, block, name, source, host, rows, columns)
        try:
            parts = job.results()
        finally:
            self._forget()
        results = [p[0] for p in parts]
        estimates = [p[1] for p in parts if p[1] is not None]
        clouds.error_estimate = max(estimates) if estimates else None
        for words in dict.fromkeys(w for p in parts for w in p[2]):
            warnings.warn(words, AccuracyWarning, stacklevel=5)
        joined = tuple(
            like(np.concatenate(r).astype(request.dtype), X) for r in zip(*results, strict=True)
        )
        return joined if len(joined) > 1 else joined[0]

    def hold(self, array: np.ndarray) -> Any:
        """Return a future of an array on the workers; equal arrays are sent once."""
        array = np.ascontiguousarray(array)
        digest = hashlib.blake2b(array.tobytes(), digest_size=16)
        key = f"{digest.hexdigest()}-{array.shape}-{array.dtype}"
        future = self._held.pop(key, None)
        if future is None or future.status != "finished":
            # Not a key of Dask's own making: a lost array must not be mistaken for its new copy.
            future = watched(self.client, self.client.scatter, array, hash=False)
        self._held[key] = future
        return future

    def drop_lost(self) -> None:
        """Forget arrays that died with their worker."""
        client = self.client
        for key, future in list(self._held.items()):
            lost = future.status != "finished"
            if lost or not any(watched(client, client.who_has, [future]).values()):
                del self._held[key]

    def _forget(self) -> None:
        while len(self._held) > KEPT_ARRAYS:
            self._held.popitem(last=False)


class _Job:
    """One reduction on the cluster: submits what is missing until all rows are there."""

    def __init__(
        self,
        cluster: _Cluster,
        request: Request,
        name: str,
        source: str,
        arrays: list[np.ndarray],
        rows: list[slice],
        columns: list[slice],
    ) -> None:
        self.cluster, self.request, self.name, self.source = cluster, request, name, source
        self.X, self.Y, self.V = arrays
        self.rows, self.columns = rows, columns

    def results(self) -> list[Any]:
        """Return one partial result per block of rows, in order."""
        from distributed import CancelledError, KilledWorker
        from distributed import TimeoutError as Late

        done: dict[int, Any] = {}
        trouble: BaseException | None = None
        for attempt in range(ROUNDS):
            missing = [i for i in range(len(self.rows)) if i not in done]
            if not missing:
                break
            if attempt:
                self._recover(attempt)
            try:
                futures = self._submit(missing)
            except (Late, OSError) as error:
                # The data went to a worker that had just died; the scheduler will know in a moment.
                trouble = error
                continue
            for i, future in zip(missing, futures, strict=True):
                try:
                    part = result_of(future, self.cluster.client)
                    rows = self.rows[i].stop - self.rows[i].start
                    check_partial(self.request, part, rows, self.V.shape[1], self.X.shape[1])
                    done[i] = part
                except (CancelledError, KilledWorker, OSError) as error:
                    # Its worker died with data that nobody else had: they are sent again in the next round.
                    trouble = error
        if len(done) < len(self.rows):
            raise RuntimeError(
                f"{len(self.rows) - len(done)} of {len(self.rows)} blocks of {self.request} were lost {ROUNDS} times with "
                "their workers: look into the workers' logs (memory?), or use more and smaller workers"
            ) from trouble
        return [done[i] for i in range(len(self.rows))]

    def _recover(self, attempt: int) -> None:
        """Wait for a worker, and forget the arrays that died with another."""
        from distributed import TimeoutError as Late

        client = self.cluster.client
        require_scheduler(client)
        time.sleep(FIRST_PAUSE * 2 ** (attempt - 1))
        try:
            watched(client, client.wait_for_workers, 1, timeout=WORKER_TIMEOUT)
        except (Late, OSError, RuntimeError) as error:
            require_scheduler(client)
            if not isinstance(error, Late):
                raise
            raise RuntimeError(
                f"the Dask cluster has had no worker for {WORKER_TIMEOUT} s: start one, or leave it with "
                "use_cluster(None)"
            ) from None
        self.cluster.drop_lost()

    def _submit(self, missing: list[int]) -> list[Any]:
        hold, job = self.cluster.hold, f"gpukoop-{self.request.operation}-{uuid.uuid4().hex}"

        def submit(label: str, function: Any, *arguments: Any) -> Any:
            key = f"{job}-{label}"
            return self.cluster.client.submit(function, *arguments, key=key, pure=False)

        how = self.request, self.name, self.source, os.getpid()
        sources = [(hold(self.Y[c]), hold(self.V[c])) for c in self.columns]
        futures = []
        for i in missing:
            X, depth = hold(self.X[self.rows[i]]), 0
            level = [submit(f"{i}-{j}", block_sum, *how, X, *s) for j, s in enumerate(sources)]
            while len(level) > 1:
                depth += 1
                pairs = [level[p : p + 2] for p in range(0, len(level), 2)]
                level = [
                    submit(f"{i}-{depth}-{p}", combine, self.request.operation, *pair)
                    if len(pair) == 2
                    else pair[0]
                    for p, pair in enumerate(pairs)
                ]
            futures.append(level[0])
        return futures
