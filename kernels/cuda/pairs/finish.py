"""The second pass of a CUDA reduction: partial results of the splits, summed in a fixed order.

Few targets do not fill a device, so the sources are split over blocks. A second entry adds the partial
results in ascending order with compensation: no atomics, hence the same bits at every run.
"""

from __future__ import annotations

import math

from gpukoop.kernels.cuda.source import BLOCK, Text, u

_START = (
    "i = uint(cuda.blockIdx.x) * uint(cuda.blockDim.x) + uint(cuda.threadIdx.x)",
    "k = k_0",
)


def add_compensated(text: Text, value: str) -> None:
    """Write one compensated addition to s."""
    text.add(f"y = plus({value}, -e)", "z = plus(s, y)", "e = plus(plus(z, -s), -y)", "s = z")


def _open(text: Text, name: str, args: str, count: str) -> None:
    text.add("@cuda.jit(fastmath=True, cache=True)")
    text.open(f"def {name}({args}):")
    text.add(*_START)
    text.open(f"if i < {count}:")


def sum_source(name: str) -> str:
    """Return the source of the entry that adds ``splits`` rows of ``width`` numbers."""
    text = Text()
    _open(text, name, "part, out, width, splits", "width")
    text.add("s, e = zero, zero")
    text.open("while k < splits:")
    add_compensated(text, "part[k * width + i]")
    text.add("k = k + k_1")
    text.close()
    text.add("out[i] = s")
    return str(text)


def logsumexp_source(name: str, d: int, slope: bool, feature_major: bool) -> str:
    """Return the source of the entry that joins (reference, sum) pairs, and slopes if asked.

    L = ln 2 (top + log2 sum); the gradient is the quotient of two sums, zero where no source has weight.
    Slopes are (splits, n, d), or (splits, d, n) if ``feature_major``.
    """
    text = Text()
    at = f"(k * {u(d)} + c) * n + i" if feature_major else f"(k * n + i) * {u(d)} + c"
    args = "top, sum, slope, out, gradient" if slope else "top, sum, out"
    _open(text, name, f"{args}, n, splits", "n")
    text.add("m = top[i]")
    text.open("while k < splits:")
    text.add("m = max(m, top[k * n + i])", "k = k + k_1")
    text.close()
    text.add("s, e, k = zero, zero, k_0")
    text.open("while k < splits:")
    text.add("j = k * n + i")
    add_compensated(text, "sum[j] * exp2(top[j] - m)")
    text.add("k = k + k_1")
    text.close()
    text.add(f"out[i] = real({math.log(2.0)!r}) * (m + log2_finish(s))")
    if slope:
        text.add("total = s", "c = k_0")
        text.open(f"while c < {u(d)}:")
        text.add("s, e, k = zero, zero, k_0")
        text.open("while k < splits:")
        text.add("j = k * n + i")
        add_compensated(text, f"slope[{at}] * exp2(top[j] - m)")
        text.add("k = k + k_1")
        text.close()
        text.add(f"gradient[i * {u(d)} + c] = s / total if total > zero else zero")
        text.add("c = c + k_1")
        text.close()
    return str(text)


def blocks(count: int) -> int:
    """Return the blocks that give every one of ``count`` results a thread."""
    return -(-count // BLOCK)
