"""The compiled loop of sliced permutation tests; importing this file imports Numba."""

from __future__ import annotations

from typing import Any

from numba import njit


# The order of additions may change: a sum in the order of the text waits four cycles for every term.
@njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
def line_energies(
    order: Any, gaps: Any, labels: Any, n: int, start: int, stop: int, energies: Any
) -> None:
    """Write the mean over lines of 2 int (F - G)^2 for the labellings start .. stop.

    ``order`` (P, N) lists the pooled points along each line, ``gaps`` (P, N - 1) the distances between neighbours,
    ``labels`` (B, N) holds 1 for the n points of the first cloud. Along a line F - G changes only at points. Labels are
    added, not asked: a branch on a random bit is mispredicted half of the time.
    """
    P, N = order.shape
    both, down = 1.0 / n + 1.0 / (N - n), 1.0 / (N - n)
    for b in range(start, stop):
        mine = labels[b]
        total = 0.0
        for p in range(P):
            places, widths = order[p], gaps[p]
            count = 0
            for i in range(N - 1):
                count += mine[places[i]]
                level = count * both - (i + 1) * down
                total += level * level * widths[i]
        energies[b] = 2.0 * total / P
