"""Operators side by side and one above the other."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np

from gpukoop.algebra.base import AbstractOperator, placed, product
from gpukoop.arrays import Array, namespace


class Block(AbstractOperator):
    """The lazy block matrix of operators, as ``numpy.block`` and ``scipy.sparse.block_array`` of matrices.

    Parameters
    ----------
    rows : sequence of sequences of operators or None
        Of fitting shapes; None is zero, and needs a neighbour in its row and its column that gives its size.

    Raises
    ------
    ValueError
        If shapes do not fit; the message names the block.

    Examples
    --------
    >>> import numpy as np, gpukoop as gk
    >>> X, Y = np.zeros((3, 1)), np.ones((2, 1))
    >>> k = gk.Gaussian(scale=1.0)
    >>> gk.Block([[k(X), k(X, Y)], [k(Y, X), None]]).shape
    (5, 5)
    """

    def __init__(self, rows: Sequence[Sequence[AbstractOperator | None]]) -> None:
        self.rows = tuple(tuple(row) for row in rows)
        width = {len(row) for row in self.rows}
        if len(width) != 1 or 0 in width:
            raise ValueError(
                f"rows have {sorted(width)} blocks, expected as many in each and at least one"
            )
        flat = [A for row in self.rows for A in row if A is not None]
        for A in flat:
            if not isinstance(A, AbstractOperator):
                raise TypeError(f"a block is {type(A).__name__}, expected a lazy operator or None")
        self.heights = [self._size(row, 0, f"row {i}") for i, row in enumerate(self.rows)]
        columns = zip(*self.rows, strict=True)
        self.widths = [self._size(col, 1, f"column {j}") for j, col in enumerate(columns)]
        self._flat, self._placed = flat, placed(flat)
        self.home = self._placed.home

    @staticmethod
    def _size(line: Sequence[AbstractOperator | None], axis: int, name: str) -> int:
        sizes = {A.shape[axis] for A in line if A is not None}
        if len(sizes) != 1:
            raise ValueError(
                f"{name} of blocks has sizes {sorted(sizes)}, expected one: blocks in a line agree, and None alone has no size"
            )
        return sizes.pop()

    def __repr__(self) -> str:
        return f"Block({[list(row) for row in self.rows]!r})"

    @property
    def shape(self) -> tuple[int, int]:
        """Sums of the blocks' sizes."""
        return sum(self.heights), sum(self.widths)

    @property
    def dtype(self) -> np.dtype:
        """The widest of the blocks'."""
        return np.result_type(*(A.dtype for A in self._flat))

    @property
    def reference(self) -> Array:
        """That of the first block that has points."""
        return self._placed.reference

    @property
    def T(self) -> Block:
        """The transposed blocks."""
        flipped = zip(*self.rows, strict=True)
        return Block([[None if A is None else A.T for A in column] for column in flipped])

    def _apply(self, v: Any) -> Array:
        xp = namespace(v)
        parts = xp.split(v, np.cumsum(self.widths)[:-1].tolist())
        lines = []
        for row in self.rows:
            terms = [product(A, part) for A, part in zip(row, parts, strict=True) if A is not None]
            lines.append(reduce(lambda a, b: a + b, terms))
        return namespace(lines[0]).concatenate(lines)
