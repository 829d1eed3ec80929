r"""Nonuniform transforms of real columns: FINUFFT for NumPy arrays, cuFINUFFT for CuPy arrays.

Two real columns travel as one complex column. A sum with a real, even kernel maps u + i v to K u + i K v, and the
spectra of u and v are the Hermitian parts of that of u + i v; so t columns cost t / 2 transforms each way.

Bits repeat: FINUFFT adds the contributions of its threads in the order in which they finish, so sources are cut into
pieces that depend on the sizes only, each transformed by one thread, and added in order. Interpolation at the targets has
no such freedom and uses all threads. cuFINUFFT adds with atomics: on a GPU the last bits may differ from run to run.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpukoop.kernels.arrays import Array, namespace
from gpukoop.kernels.cpu.threads import ending, usable_cores
from gpukoop.kernels.fourier import devices

# Sources of one piece: 3 ms of spreading in one thread, long against a plan; and at least as many as modes.
PIECE = 2**17
MAX_PIECES = 16
# Plans kept for the next product, and the bytes their fine grids may hold together.
MAX_PLANS, MAX_PLAN_BYTES = 48, 2**29
# Columns transformed at once: enough to share the sorting, few enough for memory.
COLUMN_BYTES = 2**27
# Smallest precisions at which FINUFFT does not warn that rounding limits it (measured, 2.5).
FLOOR = {"complex64": 2e-6, "complex128": 1e-13}
# With the low upsampling factor the widest stencil is reached earlier: (precision it is good for, eps to ask for).
# Measured, 2.5: in complex64 all eps below 2e-5 give the same 8 points.
LOW_UPSAMPLING = {"complex64": (5e-6, 2e-5), "complex128": (1e-9, 1e-9)}


def missing(library: str = "numpy") -> str | None:
    """Return why the transforms cannot run here, or None; that of CuPy arrays is loaded to find out."""
    if library == "cupy":
        found = devices.library()
        return found if isinstance(found, str) else None
    if importlib.util.find_spec("finufft") is None:
        return "finufft is not installed (pip install gpukoop[fourier])"
    return None


def n_threads() -> int:
    """Return the number of threads: OMP_NUM_THREADS, by default the cores this process may use; 1 in a forked child."""
    if _forked or ending():
        return 1
    chosen = os.environ.get("OMP_NUM_THREADS", "")
    if chosen.isdigit() and int(chosen) > 0:
        return int(chosen)
    return usable_cores()


@dataclass(frozen=True)
class Setup:
    """What a plan depends on besides its points."""

    shape: tuple[int, ...]
    eps: float
    dtype: str
    upsampling: float

    @property
    def real(self) -> np.dtype:
        """Dtype of coordinates and of the parts of a column."""
        return np.dtype("float32" if self.dtype == "complex64" else "float64")

    @property
    def bytes(self) -> int:
        """Memory of one fine grid."""
        return int(
            np.prod([self.upsampling * s for s in self.shape]) * np.dtype(self.dtype).itemsize
        )


def setup(shape: tuple[int, ...], eps: float, dtype: str, n_points: int) -> Setup:
    """Return the plan parameters for a precision: low upsampling where the grid outweighs the points.

    A larger grid means a longer FFT, a lower factor a wider spreading stencil; so few points on a large grid want 1.25.
    """
    good_for, ask = LOW_UPSAMPLING[dtype]
    # With few points the FFT of the grid is the cost, with many the spreading: 1.25 shrinks the one and widens the stencil of
    # the other.
    if np.prod(shape) > n_points / 2 and eps >= good_for:
        return Setup(shape, max(eps, ask), dtype, 1.25)
    return Setup(shape, max(eps, FLOOR[dtype]), dtype, 2.0)


class Cloud:
    """Points as angles in [-pi, pi), one array per axis; sources in pieces."""

    def __init__(self, angles: list[Array], n_modes: int, *, pieces: bool) -> None:
        self.angles, self.n = angles, len(angles[0])
        self.on_host = namespace(angles[0]) is np
        self.device = nullcontext() if self.on_host else angles[0].device
        count = 1
        if pieces and self.on_host:
            count = max(1, min(MAX_PIECES, self.n // max(PIECE, n_modes)))
        # Pieces are cut by number, not by place: FINUFFT sorts the points of each, and equal pieces end together.
        edges = np.linspace(0, self.n, count + 1).astype(int)
        self.slices = [slice(int(a), int(b)) for a, b in itertools.pairwise(edges)]


class _Plan:
    def __init__(
        self, setup: Setup, kind: int, columns: int, threads: int, queue: tuple[int, int] | None
    ) -> None:
        options: dict[str, Any] = {"upsampfac": setup.upsampling}
        library: Any
        if queue is None:
            library = importlib.import_module("finufft")
            options["nthreads"] = threads
        else:
            library = devices.library()
            # cuFINUFFT has a stream of its own unless told: on CuPy's, nothing need wait for it.
            options |= dict(zip(("gpu_device_id", "gpu_stream"), queue, strict=True))
        sign = -1 if kind == 1 else 1
        self.plan = library.Plan(
            kind, setup.shape, columns, setup.eps, sign, dtype=setup.dtype, **options
        )
        # Weak, or an idle plan would keep the points of an operator that is gone.
        self.owner: weakref.ref[Cloud] | None = None
        self.place: slice | None = None

    def visit(self, cloud: Cloud, place: slice) -> None:
        """Sort the points of a cloud, unless they are those of the last call."""
        if self.owner is None or self.owner() is not cloud or self.place != place:
            self.plan.setpts(*(a[place] for a in cloud.angles))
            self.owner, self.place = weakref.ref(cloud), place


_idle: list[tuple[tuple[Any, ...], _Plan, int]] = []
_lock = threading.Lock()
_forked = False


def _forget_plans() -> None:
    """Drop the plans in a forked child: OpenMP's threads stayed with the parent, and waiting for them never ends."""
    global _lock, _forked
    _lock, _forked = threading.Lock(), True
    _idle.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_plans)


@contextmanager
def _borrow(
    setup: Setup, kind: int, columns: int, cloud: Cloud, place: slice, threads: int
) -> Iterator[Any]:
    """Lend a plan with its points set: one that already holds them, one of the same shape, or a new one.

    On a device a plan belongs to a stream; what is lent works on CuPy's current one of the points' device.
    """
    with cloud.device:
        yield from _lend(setup, kind, columns, cloud, place, threads)


def _lend(
    setup: Setup, kind: int, columns: int, cloud: Cloud, place: slice, threads: int
) -> Iterator[Any]:
    queue = None if cloud.on_host else devices.queue()
    key = setup, kind, columns, threads, queue
    found = None
    with _lock:
        same = [i for i, (k, _, _) in enumerate(_idle) if k == key]
        mine = [
            i
            for i in same
            if (owner := _idle[i][1].owner) and owner() is cloud and _idle[i][1].place == place
        ]
        free = [i for i in same if (owner := _idle[i][1].owner) is None or owner() is None]
        # A plan that holds these points saves sorting them; one that nobody else needs comes next.
        for choice in (mine, free, same):
            if choice:
                found = _idle.pop(choice[0])[1]
                break
    plan = found or _Plan(setup, kind, columns, threads, queue)
    plan.visit(cloud, place)
    yield plan.plan
    # Not in a finally: after an error the plan's state is unknown, and it is dropped.
    with _lock:
        _idle.append((key, plan, setup.bytes * columns))
        while len(_idle) > MAX_PLANS or sum(size for _, _, size in _idle) > MAX_PLAN_BYTES:
            _idle.pop(0)


def release() -> None:
    """Forget all idle plans, and with them their grids and points."""
    with _lock:
        _idle.clear()


def columns_at_once(setup: Setup, n: int) -> int:
    """Return how many complex columns one call transforms."""
    size = np.dtype(setup.dtype).itemsize * (n + int(np.prod(setup.shape))) + setup.bytes
    return max(1, min(16, COLUMN_BYTES // size))


def spectra(setup: Setup, cloud: Cloud, V: Array) -> Array:
    r"""Return :math:`\hat v_{rm} = \sum_j v_{jr} e^{-i m \cdot \theta_j}` for real columns, (t, \*shape), Hermitian."""
    xp = namespace(V)
    t = V.shape[1]
    out = xp.empty((t, *setup.shape), setup.dtype)
    step = 2 * columns_at_once(setup, cloud.n)
    for start in range(0, t, step):
        block = V[:, start : start + step]
        packed = _pack(block.T, setup)
        mixed = _type1(setup, cloud, packed)
        for p in range(len(packed)):
            r = start + 2 * p
            if r + 1 >= t:
                out[r] = mixed[p]  # the imaginary part was zero: Hermitian to rounding
                continue
            # Two real columns travel as one complex one; the transform of a real column is Hermitian, so its mirror image takes
            # the two apart again.
            mirror = xp.conj(mixed[p][(slice(None, None, -1),) * len(setup.shape)])
            out[r] = (mixed[p] + mirror) / 2
            out[r + 1] = (mixed[p] - mirror) / 2j
    return out


def _pack(rows: Array, setup: Setup) -> Array:
    """Return real rows two by two as complex rows."""
    xp = namespace(rows)
    packed = xp.zeros(((len(rows) + 1) // 2, *rows.shape[1:]), setup.dtype)
    # Half the transforms for the same columns, in every direction of this module.
    packed.real = rows[0::2]
    packed.imag[: len(rows) // 2] = rows[1::2]
    return packed


def _type1(setup: Setup, cloud: Cloud, columns: Array) -> Array:
    # Parallel over pieces rather than inside a transform: a thread spreads into a grid of its own, and grids are added in a
    # fixed order.
    one_thread = len(cloud.slices) > 1 or cloud.on_host

    def piece(place: slice) -> Array:
        with _borrow(setup, 1, len(columns), cloud, place, 1 if one_thread else 0) as plan:
            data = namespace(columns).ascontiguousarray(columns[:, place])
            return plan.execute(data if len(columns) > 1 else data[0])

    workers = min(n_threads(), len(cloud.slices))
    if workers == 1:
        total = None
        for place in cloud.slices:
            part = piece(place)
            total = part if total is None else total + part
    else:
        with ThreadPoolExecutor(workers) as pool:
            total = None
            # Added in the order of the pieces, not in that in which they end: the same bits at every run.
            for part in pool.map(piece, cloud.slices):  # in the order of the pieces
                total = part if total is None else total + part
    return namespace(columns).reshape(total, (len(columns), *setup.shape))


def values(setup: Setup, cloud: Cloud, rows: Iterator[Array], count: int) -> Array:
    r"""Return :math:`\sum_m \hat u_{rm} e^{i m \cdot \theta_i}` of Hermitian spectra, (count, n) real.

    ``rows`` yields the spectra one at a time, so that those of a gradient never lie in memory together.
    """
    step = 2 * columns_at_once(setup, cloud.n)
    out: Array = None
    done = 0
    while done < count:
        size = min(step, count - done)
        packed: Array = None
        for r in range(size):
            row = next(rows)
            if packed is None:
                xp = namespace(row)
                packed = xp.zeros(((size + 1) // 2, *setup.shape), setup.dtype)
            if r % 2:
                # The values of Hermitian spectra are real: one real part and one imaginary part carry two results.
                packed[r // 2] += 1j * row
            else:
                packed[r // 2] = row
        threads = n_threads() if cloud.on_host else 0
        with _borrow(setup, 2, len(packed), cloud, cloud.slices[0], threads) as plan:
            got = plan.execute(packed if len(packed) > 1 else packed[0])
        got = got.reshape(len(packed), cloud.n)
        if out is None:
            out = xp.empty((count, cloud.n), setup.real)
        out[done : done + size : 2] = got.real
        out[done + 1 : done + size : 2] = got.imag[: size // 2]
        done += size
    return out
