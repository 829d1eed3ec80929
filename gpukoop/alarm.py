"""Numbers on a device that are not finite, found without waiting for the device.

The host cannot look at the weights of ``K @ v`` before it queues the sum: it would wait for everything queued before. So one
launch looks at them on the device, and rings: it writes the number of the call into pinned memory of the host. The host reads
that memory, at no cost, when a call begins and when it ends, and whenever it has waited for the device anyhow
(:func:`gpukoop.arrays.to_host`). The error comes with the call itself if the device was done by then, else with the first
look afterwards. With ``CUDA_LAUNCH_BLOCKING=1`` in the environment it always comes with the call.

Until then nothing is silent: a weight that is NaN or infinite reaches every target of its sum, whose result is not finite.
"""

from __future__ import annotations

import threading
from collections import deque
from functools import cache
from itertools import count
from typing import Any

import numpy as np

from gpukoop.kernels.arrays import Array

# One condition: comparisons with NaN are false, and the bounds are the largest finite numbers, or minus infinity where that
# is allowed. Blocks race to write the same word, and any of them may win.
SOURCE = """
extern "C" __global__ void outside(const {real}* x, long long size, {real} lowest, {real} highest, volatile long long* bell, long long call)
{{
    long long step = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < size; i += step)
        if (!(lowest <= x[i] && x[i] <= highest))
            *bell = call;
}}
"""
THREADS, MOST_BLOCKS = 256, 1024
# Calls whose arrays are remembered for a message: more than a device ever has queued between two looks.
REMEMBERED = 4096


class _Bell:
    """One word of pinned memory, which every device of the process can write and the host can read."""

    def __init__(self) -> None:
        import cupy

        # Kept alive with the word. Pinned memory has one address for the host and for all devices.
        self._memory = cupy.cuda.alloc_pinned_memory(8)
        self.word = np.frombuffer(self._memory, np.int64, 1)
        self.word[0] = 0
        self.address = np.uint64(self._memory.ptr)
        self.calls = count(1)
        self.recent: deque[tuple[int, str, tuple[int, ...], Any]] = deque(maxlen=REMEMBERED)
        self.lock = threading.Lock()


_bells: list[_Bell] = []
_making = threading.Lock()


def _bell() -> _Bell:
    if not _bells:
        with _making:
            if not _bells:
                _bells.append(_Bell())
    return _bells[0]


@cache
def _outside(cupy: Any, dtype: np.dtype) -> tuple[Any, dict[bool, Any], Any]:
    """Return the launch for a dtype, its lowest numbers without and with minus infinity, and its highest one."""
    real = dtype.type
    code = SOURCE.format(real={"float32": "float", "float64": "double"}[dtype.name])
    highest = np.finfo(dtype).max
    return cupy.RawKernel(code, "outside"), {False: -highest, True: real(-np.inf)}, highest


def watch(x: Array, name: str, *, infinite: bool = False) -> None:
    """Queue a look at a contiguous CuPy array that must be finite; ``infinite`` allows minus infinity."""
    import cupy

    bell = _bell()
    look, lowest, highest = _outside(cupy, x.dtype)
    call = next(bell.calls)
    bell.recent.append((call, name, x.shape, x.dtype))
    size = x.size
    blocks = min(-(-size // THREADS), MOST_BLOCKS)
    numbers = (x, np.int64(size), lowest[infinite], highest, bell.address, np.int64(call))
    look((blocks,), (THREADS,), numbers)


def listen() -> None:
    """Raise if a device has rung, for the array of the call that it names; each is raised once.

    Raises
    ------
    ValueError
        With the name and the shape of the array.
    """
    if not _bells or not _bells[0].word[0]:
        return
    bell = _bells[0]
    with bell.lock:
        call, bell.word[0] = int(bell.word[0]), 0
    if not call:  # another thread was first
        return
    where = next((about for about in bell.recent if about[0] == call), (call, "v", (), None))
    _, name, shape, dtype = where
    raise ValueError(
        f"{name} contains NaN or inf, or numbers beyond the range of {dtype or 'its dtype'} (shape {shape}, seen on the device, "
        "perhaps some calls ago): the sums that took it are not finite; drop or repair these rows first, and set "
        "CUDA_LAUNCH_BLOCKING=1 to have the error at the call itself"
    )
