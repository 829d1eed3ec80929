"""Arithmetic of lazy operators: sums, multiples, sub-operators, blocks. See :class:`AbstractOperator`."""

from gpukoop.algebra.base import AbstractOperator, Identity
from gpukoop.algebra.block import Block
from gpukoop.algebra.combination import Combination
from gpukoop.algebra.selection import Selection

__all__ = ["AbstractOperator", "Block", "Combination", "Identity", "Selection"]
