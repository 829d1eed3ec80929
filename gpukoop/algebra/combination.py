"""Sums of operators, each with a number before it."""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np

from gpukoop.algebra.base import AbstractOperator, Identity, placed, product
from gpukoop.arrays import Array, namespace


class Combination(AbstractOperator):
    r"""The lazy sum :math:`\sum_a c_a A_a`; made by ``+``, ``-``, ``*``.

    Parameters
    ----------
    terms : tuple of (float, operator)
        Of one shape.

    Notes
    -----
    A product costs those of all terms. Kernels on the same points are one term, and one pass, before they come here.
    """

    def __init__(self, terms: tuple[tuple[float, AbstractOperator], ...]) -> None:
        self.terms = terms
        self._placed = placed([A for _, A in terms])
        self.home = self._placed.home

    @classmethod
    def of(cls, terms: list[tuple[float, AbstractOperator]]) -> AbstractOperator:
        """Return the sum with nested sums opened and identities collected."""
        flat: list[tuple[float, AbstractOperator]] = []
        shift, eye = 0.0, None
        for c, term in terms:
            inner = term.terms if isinstance(term, Combination) else ((1.0, term),)
            for b, part in inner:
                if isinstance(part, Identity):
                    shift, eye = shift + c * b, part
                else:
                    flat.append((c * b, part))
        if eye is not None:
            flat.append((shift, eye))
        return cls(tuple(flat))

    def __repr__(self) -> str:
        return " + ".join(f"{A!r}" if c == 1.0 else f"{c:g} * {A!r}" for c, A in self.terms)

    @property
    def shape(self) -> tuple[int, int]:
        """(n, m)."""
        return self.terms[0][1].shape

    @property
    def dtype(self) -> np.dtype:
        """The widest of the terms'."""
        return np.result_type(*(A.dtype for _, A in self.terms))

    @property
    def reference(self) -> Array:
        """That of the first term that has points."""
        return self._placed.reference

    @property
    def T(self) -> Combination:
        """The sum of the transposed terms."""
        return Combination(tuple((c, A.T) for c, A in self.terms))

    def _fused(self, other: AbstractOperator, factor: float = 1.0) -> AbstractOperator | None:
        """Let a kernel join the first term that can take it into its pass."""
        for i, (c, A) in enumerate(self.terms):
            joined = A._fused(other, factor * c)
            if joined is not None:
                rest = [(factor * b, B) for j, (b, B) in enumerate(self.terms) if j != i]
                return Combination.of([(1.0, joined), *rest])
        return None

    def _apply(self, v: Array) -> Array:
        return reduce(
            _sum, (product(A, v) if c == 1.0 else c * product(A, v) for c, A in self.terms)
        )

    def _selected(self, rows: np.ndarray | None, columns: np.ndarray | None) -> AbstractOperator:
        return Combination(tuple((c, A._selected(rows, columns)) for c, A in self.terms))

    def diagonal(self) -> Array:
        """Return the sum of the diagonals."""
        xp = namespace(self.reference)
        return reduce(_sum, (c * xp.asarray(A.diagonal(), dtype=self.dtype) for c, A in self.terms))


def _sum(a: Any, b: Any) -> Any:
    return a + b
