"""Some rows and columns of an operator that cannot be made of fewer points."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpukoop.algebra.base import AbstractOperator, product
from gpukoop.arrays import Array, namespace


class Selection(AbstractOperator):
    """The lazy sub-operator ``A[rows, columns]``; kernel operators have a cheaper one, on fewer points.

    Parameters
    ----------
    whole : operator
    rows, columns : ndarray of int or None
        None is all.

    Notes
    -----
    A product costs that of the whole operator.
    """

    def __init__(
        self, whole: AbstractOperator, rows: np.ndarray | None, columns: np.ndarray | None
    ) -> None:
        self.whole, self.rows, self.columns = whole, rows, columns
        self.home = whole.home

    def __repr__(self) -> str:
        n, m = self.shape
        return f"Selection({n} x {m} of {self.whole!r})"

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows and columns chosen."""
        n, m = self.whole.shape
        return (
            n if self.rows is None else len(self.rows),
            m if self.columns is None else len(self.columns),
        )

    @property
    def dtype(self) -> np.dtype:
        """That of the whole."""
        return self.whole.dtype

    @property
    def reference(self) -> Array:
        """That of the whole."""
        return self.whole.reference

    @property
    def T(self) -> Selection:
        """The same of the transposed operator."""
        return Selection(self.whole.T, self.columns, self.rows)

    def _apply(self, v: Any) -> Array:
        xp = namespace(v)
        if self.columns is not None:
            spread = xp.zeros((self.whole.shape[1], *v.shape[1:]), dtype=v.dtype)
            # a column chosen twice gets the sum of its two weights
            xp.add.at(spread, xp.asarray(self.columns), v)
            v = spread
        out = product(self.whole, v)
        return out if self.rows is None else out[namespace(out).asarray(self.rows)]
