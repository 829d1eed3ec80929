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
"""

from __future__ import annotations

from dataclasses import dataclass


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
