r"""What may be asked of a kernel: five reductions over pairs, described once by what they return.

====================== ===== ===== === =========================================================
operation              value slope log  result
====================== ===== ===== === =========================================================
product                yes   no    no  :math:`p_i = \sum_j k(x_i, y_j) v_j`
gradient               no    yes   no  :math:`\nabla_{x_i} p_i`
value_and_gradient     yes   yes   no  both, in one pass over the pairs
logsumexp              yes   no    yes :math:`L_i = \log \sum_j k(x_i, y_j) e^{b_j}`
logsumexp_and_gradient yes   yes   yes :math:`L_i` and :math:`\nabla_{x_i} L_i`
====================== ===== ===== === =========================================================

Every backend has one function ``reduce(kernel, operation, X, Y, V, *, tol, ...)``. V holds weights, (m, t), or for the
log-sum-exps their logarithms, (m,); the result is :meth:`Operation.result` of a value, (n, t) or (n,), and a slope,
(n, t, d) or (n, d).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Operation:
    """One reduction; ``str(operation)`` is its public name.

    Attributes
    ----------
    name : str
        Name of the operator's method, and of the request in messages.
    value : bool
        Whether the sum itself is a result.
    slope : bool
        Whether its gradient in the targets is a result.
    log : bool
        Whether weights and sums are logarithms.
    """

    name: str
    value: bool
    slope: bool
    log: bool

    def __str__(self) -> str:
        return self.name

    def __hash__(self) -> int:
        # The name says it all, and a string keeps its hash: operations are keys on the path of every call.
        return hash(self.name)

    def result(self, value: Any, slope: Any) -> Any:
        """Return what was asked for: the value, the slope, or the pair of both."""
        if self.value and self.slope:
            return value, slope
        return value if self.value else slope

    def numbers(self, d: int, t: int) -> int:
        """Return how many numbers a target gets, with d features and t columns."""
        return t * (self.value + d * self.slope)


PRODUCT = Operation("product", value=True, slope=False, log=False)
GRADIENT = Operation("gradient", value=False, slope=True, log=False)
VALUE_AND_GRADIENT = Operation("value_and_gradient", value=True, slope=True, log=False)
LOGSUMEXP = Operation("logsumexp", value=True, slope=False, log=True)
LOGSUMEXP_AND_GRADIENT = Operation("logsumexp_and_gradient", value=True, slope=True, log=True)

# By public name, in the order of the table above.
OPERATIONS: dict[str, Operation] = {
    operation.name: operation
    for operation in (PRODUCT, GRADIENT, VALUE_AND_GRADIENT, LOGSUMEXP, LOGSUMEXP_AND_GRADIENT)
}


def as_operation(op: str | Operation) -> Operation:
    """Return the operation of a public name; an operation is returned as it is.

    Raises
    ------
    ValueError
        If there is none of that name.
    """
    if isinstance(op, Operation):
        return op
    if not isinstance(op, str) or op not in OPERATIONS:
        raise ValueError(f"unknown operation {op!r}; known are {', '.join(OPERATIONS)}")
    return OPERATIONS[op]
