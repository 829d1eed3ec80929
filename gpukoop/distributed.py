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
import itertools
import os
import threading
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
from gpukoop.backends import Request
from gpukoop.dispatch import AccuracyWarning, run_here
from gpukoop.kernels.fourier_boxes import candidates

Array = Any

# Pairs worth a task: some 20 ms on a core, against about 1 ms that Dask spends on one.
PAIRS_PER_TASK = 2**25
# More blocks than this serve no cluster and burden the scheduler.
MAX_ROW_BLOCKS, MAX_SOURCE_BLOCKS = 256, 16
# Sources of one block: 2 MB in three dimensions, so that a few blocks lie in a worker's cache and network packets.
SOURCE_BLOCK = 2**18
# Arrays kept on the workers for the next product.
KEPT_ARRAYS = 512
# Rounds of submitting what is missing; each lost worker costs at most one.
ROUNDS = 5


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
        If ``client`` is no client, or a closed one.

    Notes
    -----
    Cost: the exact or fast sum of every block, plus one transfer of each block of points to the workers that need it
    (points and weights are known by their content and sent once). Memory of a worker: its blocks; the (n, m) matrix is never
    formed. Accuracy: that of the backend of the workers, and the sum of partial sums in float64.

    A worker runs one task of ours at a time, with as many threads as Dask gave it (``nthreads``): the loops are parallel
    themselves. Start workers with all the cores of their machine and one process, such as
    ``dask worker ADDRESS --nworkers 1 --nthreads 16``.

    With GPUs: ``pip install dask-cuda``, then ``Client(dask_cuda.LocalCUDACluster())`` starts a worker a GPU and hides the
    others from it; with ``use_backend("numba-cuda")``, or with no choice at all, every block runs on the GPU of its worker.

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
    cluster._require_open()
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

    def _require_open(self) -> None:
        if self.client.status != "running":
            raise ValueError(
                f"the Dask client is {self.client.status}: make a new one, or leave it with use_cluster(None)"
            )

    def run(
        self,
        request: Request,
        name: str,
        source: str,
        X: Array,
        Y: Array,
        V: Array,
        workspace: dict[str, Any],
    ) -> Any:
        """Run a request in blocks; the arguments are those of ``gpukoop.dispatch.run_here``."""
        self._require_open()
        host = [to_host(a) for a in (X, Y, V)]
        rows, columns = blocks(request.n, request.m)
        block = replace(request, library="numpy", device="cpu", boxes=())
        job = _Job(self, block, name, source, host, rows, columns)
        try:
            parts = job.results()
        finally:
            self._forget()
        results = [p[0] for p in parts]
        estimates = [p[1] for p in parts if p[1] is not None]
        if estimates:
            workspace["error_estimate"] = max(estimates)
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
            future = self.client.scatter(array, hash=False)
        self._held[key] = future
        return future

    def drop_lost(self) -> None:
        """Forget arrays that died with their worker."""
        for key, future in list(self._held.items()):
            if future.status != "finished" or not any(self.client.who_has([future]).values()):
                del self._held[key]

    def _forget(self) -> None:
        while len(self._held) > KEPT_ARRAYS:
            self._held.popitem(last=False)


def blocks(n: int, m: int) -> tuple[list[slice], list[slice]]:
    """Return slices of targets and of sources: a function of the sizes alone, so that results repeat bit for bit."""
    columns = min(MAX_SOURCE_BLOCKS, -(-m // SOURCE_BLOCK))
    rows = min(n, MAX_ROW_BLOCKS, max(2, n * m // (columns * PAIRS_PER_TASK)))
    return _cut(n, rows), _cut(m, columns)


def _cut(n: int, count: int) -> list[slice]:
    edges = np.linspace(0, n, count + 1).astype(int)
    return [slice(int(a), int(b)) for a, b in itertools.pairwise(edges)]


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

        client = self.cluster.client
        done: dict[int, Any] = {}
        trouble: BaseException | None = None
        for _ in range(ROUNDS):
            missing = [i for i in range(len(self.rows)) if i not in done]
            if not missing:
                break
            futures = self._submit(missing)
            for i, future in zip(missing, futures, strict=True):
                try:
                    done[i] = future.result()
                except (CancelledError, KilledWorker) as error:
                    # Its worker died with data that nobody else had: send them again in the next round.
                    trouble = error
            if trouble is not None and len(done) < len(self.rows):
                self.cluster.drop_lost()
                client.wait_for_workers(1, timeout=60)
        if len(done) < len(self.rows):
            raise RuntimeError(
                f"{len(self.rows) - len(done)} of {len(self.rows)} blocks of {self.request} were lost {ROUNDS} times with "
                "their workers: look into the workers' logs (memory?), or use more and smaller workers"
            ) from trouble
        return [done[i] for i in range(len(self.rows))]

    def _submit(self, missing: list[int]) -> list[Any]:
        hold, submit = self.cluster.hold, self.cluster.client.submit
        sources = [(hold(self.Y[c]), hold(self.V[c])) for c in self.columns]
        job = f"gpukoop-{self.request.op}-{uuid.uuid4().hex}"
        futures = []
        for i in missing:
            X = hold(self.X[self.rows[i]])
            level = [
                submit(
                    block_sum,
                    self.request,
                    self.name,
                    self.source,
                    X,
                    Y,
                    V,
                    os.getpid(),
                    key=f"{job}-{i}-{j}",
                    pure=False,
                )
                for j, (Y, V) in enumerate(sources)
            ]
            depth = 0
            while len(level) > 1:
                depth += 1
                level = [
                    submit(
                        combine,
                        self.request.op,
                        *level[p : p + 2],
                        key=f"{job}-{i}-{depth}-{p}",
                        pure=False,
                    )
                    if p + 1 < len(level)
                    else level[p]
                    for p in range(0, len(level), 2)
                ]
            futures.append(level[0])
        return futures


# -- on the workers -----------------------------------------------------------------------------------

# The loops use every thread the worker has: two of them at once would only get in each other's way.
_one_at_a_time = threading.Lock()

Partial = tuple[tuple[Array, ...], float | None, tuple[str, ...]]


def block_sum(
    request: Request,
    name: str,
    source: str,
    X: np.ndarray,
    Y: np.ndarray,
    V: np.ndarray,
    client_process: int,
) -> Partial:
    """Return one block of a reduction in float64, its error estimate and its warnings; runs on a worker."""
    _share_threads(client_process)
    request = replace(
        request, n=len(X), m=len(Y), boxes=candidates(request.kernel, X, Y, request.tol)
    )
    workspace: dict[str, Any] = {}
    with _one_at_a_time, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", AccuracyWarning)
        result = run_here(request, name, source, X, Y, V, workspace)
    words = tuple(str(w.message) for w in caught if issubclass(w.category, AccuracyWarning))
    parts = result if isinstance(result, tuple) else (result,)
    wide = tuple(np.asarray(p, dtype=float) for p in parts)
    return wide, workspace.get("error_estimate"), words


def _share_threads(client_process: int) -> None:
    """Give the loops the threads of this worker; in the client's own process everything stays as the user set it."""
    from distributed import get_worker

    if os.getpid() == client_process:
        return
    # Set, not defaulted: Dask's nanny starts every worker with OMP_NUM_THREADS=1, whatever nthreads is.
    for name in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ[name] = str(get_worker().state.nthreads)


def combine(op: str, a: Partial, b: Partial) -> Partial:
    """Return the reduction over two blocks of sources from those over each.

    Sums add. Log-sum-exps are combined by logaddexp, their gradients by the softmax weights exp(L_a - L), exp(L_b - L).
    """
    left, right = a[0], b[0]
    if "logsumexp" in op:
        L = np.logaddexp(left[0], right[0])
        parts = (L,)
        if len(left) > 1:
            safe = np.where(L == -np.inf, 0.0, L)
            wa, wb = np.exp(left[0] - safe), np.exp(right[0] - safe)
            parts = L, wa[:, None] * left[1] + wb[:, None] * right[1]
    else:
        parts = tuple(p + q for p, q in zip(left, right, strict=True))
    estimates = [e for e in (a[1], b[1]) if e is not None]
    return parts, max(estimates) if estimates else None, a[2] + b[2]
