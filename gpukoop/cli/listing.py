"""What runs, as text: the code behind one kernel sum (``gpukoop code``)."""

from __future__ import annotations

from gpukoop.backends import BACKENDS, check_name
from gpukoop.kernels.formula.catalogue import CATALOGUE
from gpukoop.kernels.operation import OPERATIONS


def listing(
    kernel: str,
    operation: str,
    d: int,
    t: int = 1,
    dtype: str = "float32",
    backend: str = "numba-cuda",
) -> str:
    """Return the code of a kernel sum for points of d features and t columns of weights.

    Raises
    ------
    ValueError
        If there is no such kernel, operation or backend, or the backend has no code to show.
    """
    if kernel not in CATALOGUE:
        raise ValueError(f"unknown kernel {kernel!r}; known are {', '.join(CATALOGUE)}")
    if operation not in OPERATIONS:
        raise ValueError(f"unknown operation {operation!r}; known are {', '.join(OPERATIONS)}")
    made = CATALOGUE[kernel]()
    if OPERATIONS[operation].log and not made.positive:
        raise ValueError(f"{operation} needs a positive kernel, {kernel} is not")
    chosen = BACKENDS.get(check_name(backend, "--backend"))
    text = None if chosen is None else chosen.code(made, OPERATIONS[operation], d, t, dtype)
    if text is None:
        raise ValueError(
            f"backend {backend!r} writes no code to show; numba-cuda, numba-cpu and keops do"
        )
    return text
