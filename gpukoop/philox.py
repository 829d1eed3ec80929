r"""Normal draws that are functions of their place: the same numbers on the host and on a device, in any order.

========== =======================================================================
e          place of a draw, 0, 1, 2, ...
k0, k1     the key, two words of 32 bits
========== =======================================================================

Philox 4x32-10 turns (e // 2, key) into four words of 32 bits, which are two uniform numbers of 53 bits, and Box and Muller's
formula into two normal ones. :func:`words` and :func:`_formula` are written once: NumPy runs them on arrays, CuPy fuses
them into one launch, Numba compiles them for the host's threads. Integers agree to the bit; log and cos round as their
library does, so draws agree to a few units in the last place of float64 and nearly always exactly once they are float32.

References
----------
.. [1] J. Salmon, M. Moraes, R. Dror, D. Shaw, Parallel random numbers: as easy as 1, 2, 3, SC 2011.
.. [2] G. Box, M. Muller, A note on the generation of random normal deviates, Ann. Math. Statist. 29, 1958.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np

from gpukoop.arrays import Array, is_cupy, namespace

# Multipliers, and what the key grows by in every round.
M0, M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
W0, W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
MASK, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
ZERO, ONE, LEFT, RIGHT = np.uint64(0), np.uint64(1), np.uint64(21), np.uint64(11)
UNIT, TURN = 2.0**-53, 2.0 * math.pi
# Draws that array operations make before compiled loops are worth importing.
FEW = 2**14
CHUNK = 2**16


def words(c0: Any, c1: Any, c2: Any, c3: Any, k0: Any, k1: Any) -> Any:
    """Return the four words of Philox 4x32-10: counter and key are words of 32 bits in uint64."""
    for _ in range(10):
        a, b = c0 * M0, c2 * M1
        c0, c1, c2, c3 = (b >> HALF) ^ c1 ^ k0, b & MASK, (a >> HALF) ^ c3 ^ k1, a & MASK
        k0, k1 = (k0 + W0) & MASK, (k1 + W1) & MASK
    return c0, c1, c2, c3


def _formula(words: Any, sqrt: Any, log: Any, cos: Any) -> Callable[[Any, Any, Any], Any]:
    """Return the draw at place e, in terms of these functions."""

    def draw(e: Any, k0: Any, k1: Any) -> Any:
        pair = e >> ONE
        x0, x1, x2, x3 = words(pair & MASK, pair >> HALF, ZERO, ZERO, k0, k1)
        u = ((x0 << LEFT) ^ (x1 >> RIGHT)) * UNIT + 0.5 * UNIT  # never 0
        v = ((x2 << LEFT) ^ (x3 >> RIGHT)) * UNIT - 0.25 * (e & ONE)
        return sqrt(-2.0 * log(u)) * cos(TURN * v)

    return draw


def places(count: int, reference: Array) -> Array | None:
    """Return the places of so many draws where ``reference`` is on a device, for who draws as many again; None on the host."""
    if not is_cupy(reference):
        return None
    with reference.device:
        return namespace(reference).arange(count, dtype=np.uint64)


def standard_normal(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    reference: Array,
    kept: Array | None = None,
) -> Array:
    """Return standard normal draws in the library, device and dtype of ``reference``.

    Parameters
    ----------
    rng : numpy Generator
        Gives the key, one draw of its stream: the same state means the same numbers on every device and in every dtype.
    shape : tuple of int
    reference : array
    kept : array, optional
        :func:`places` of as many draws, which saves a launch on a device.

    Notes
    -----
    Cost: about 30 ns a number and thread on the host; on a device a launch, one that makes the places, and one that rounds to
    float32. Values reach 8.6.
    """
    key = rng.integers(0, 2**32, 2, dtype=np.uint64)
    count = math.prod(shape)
    xp, dtype = namespace(reference), reference.dtype
    if is_cupy(reference):
        with reference.device:
            drawn = _fused(xp)(places(count, reference) if kept is None else kept, *key)
    elif count <= FEW:
        drawn = _formula(words, np.sqrt, np.log, np.cos)(np.arange(count, dtype=np.uint64), *key)
    else:
        drawn = _filled(np.empty(count, dtype), key)
    return drawn.astype(dtype, copy=False).reshape(shape)


@functools.cache
def _fused(cupy: ModuleType) -> Callable[..., Array]:
    return cupy.fuse(kernel_name="philox")(_formula(words, cupy.sqrt, cupy.log, cupy.cos))


def _filled(out: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Write the draws of all places, by chunks that threads share."""
    from gpukoop.kernels.cpu.threads import n_threads, spread

    fill = _loop()

    def work(starts: Iterator[int]) -> None:
        for start in starts:
            fill(out[start : start + CHUNK], np.uint64(start), key[0], key[1])

    spread(work, range(0, len(out), CHUNK), n_threads())
    return out


@functools.cache
def _loop() -> Callable[..., None]:
    from gpukoop.kernels.cpu.module import jit

    inline = jit(nogil=True)
    draw = inline(_formula(inline(words), math.sqrt, math.log, math.cos))

    def fill(out: Any, first: Any, k0: Any, k1: Any) -> None:
        for i in range(len(out)):
            out[i] = draw(first + np.uint64(i), k0, k1)

    return inline(fill)
