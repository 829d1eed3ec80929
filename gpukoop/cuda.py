"""The CUDA code of a kernel sum, without a GPU: its PTX text and the plan of its launches.

Two functions look into what ``backend="numba-cuda"`` runs. :func:`compile_ptx` needs Numba-CUDA and no device and
no driver; :func:`launch_plan` needs neither. A program in any language can launch the one with the other.
"""

from __future__ import annotations

import importlib.util
import os
import re
from types import ModuleType
from typing import Any

from gpukoop.kernels.cuda import program as programs
from gpukoop.kernels.cuda.matrix.text import Entry
from gpukoop.kernels.cuda.packing import Clouds, Launch
from gpukoop.kernels.cuda.pairs.plan import AbstractPlan, Plan, Sizes
from gpukoop.kernels.cuda.program import INSTALL, Program
from gpukoop.kernels.cuda.specification import DTYPES, FORMS, WIDEST_TILE
from gpukoop.kernels.cuda.symmetric.plan import SymmetricPlan
from gpukoop.kernels.formula.profile import AbstractKernel
from gpukoop.kernels.operation import OPERATIONS, PRODUCT, Operation

__all__ = ["Launch", "Plan", "compile_ptx", "launch_plan"]


def _check(kernel: Any, op: str | Operation, dtype: Any, sizes: dict[str, Any]) -> str:
    """Return the name of the dtype; raise in words on anything that no code can be made for."""
    if not isinstance(kernel, AbstractKernel):
        raise TypeError(
            f"kernel must be a gpukoop kernel such as Gaussian(1.0), got {type(kernel).__name__}"
        )
    if str(op) not in OPERATIONS:
        raise ValueError(f"op must be one of {', '.join(OPERATIONS)}, got {op!r}")
    if not kernel.resolved:
        raise ValueError(f"{kernel!r} has a named scale: give a number, code is made without data")
    if "logsumexp" in str(op) and not kernel.positive:
        raise ValueError(
            f"{op} needs a positive kernel, {kernel!r} is not: its logarithm does not exist"
        )
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int >= 1, got {value!r}")
        if value < 1:
            raise ValueError(f"{name} must be an int >= 1, got {value}")
    if "logsumexp" in str(op) and sizes["t"] != 1:
        raise ValueError(f"{op} takes one column of weights, got t={sizes['t']}: use t=1")
    name = getattr(dtype, "__name__", None) or getattr(dtype, "name", None) or str(dtype)
    if name not in DTYPES:
        raise ValueError(f"dtype must be float32 or float64, got {dtype!r}")
    return name


def launch_plan(
    kernel: AbstractKernel,
    op: str | Operation,
    *,
    n: int,
    m: int,
    d: int,
    t: int = 1,
    dtype: Any = "float32",
    symmetric: bool = False,
) -> AbstractPlan:
    """Return how the code of :func:`compile_ptx` is launched.

    Parameters
    ----------
    kernel : kernel
        With numeric scales, such as ``Gaussian(0.5)`` or a sum of kernels.
    op : {"product", "gradient", "value_and_gradient", "logsumexp", "logsumexp_and_gradient"}
    n, m, d, t : int
        Targets, sources, features, columns of V.
    dtype : {"float32", "float64"}
    symmetric : bool
        The product with one cloud of points, each pair visited once (:mod:`gpukoop.kernels.cuda.symmetric.plan`): n = m,
        ``pack(X, X, V)``, t <= 4, d <= 24.

    Returns
    -------
    Plan
        ``pack(X, Y, V)`` gives {name: array or scalar}; ``launches`` lists (entry, grid, block, shared, args) with
        args the names in order, of an array its address; ``unpack(buffers)`` gives the result after the launches have
        run. The first two make what depends on the points alone. Launches whose form does not suit the data return at
        once, so all of them are to be run, in order.

    Notes
    -----
    Cost: ``pack`` allocates, and copies what is not contiguous. The sizes decide how the sources are split over blocks; partial
    sums are added in a fixed order, and no result depends on the order of threads.

    Examples
    --------
    >>> import gpukoop as gk
    >>> from gpukoop.cuda import launch_plan
    >>> plan = launch_plan(gk.Gaussian(1.0), "product", n=1000, m=500, d=3)
    >>> [launch.entry for launch in plan.launches][2]
    'gaussian_product_dot_d3_t1_float32'
    """
    name = _check(kernel, op, dtype, {"n": n, "m": m, "d": d, "t": t})
    if symmetric:
        if n != m:
            raise ValueError(f"symmetric needs one cloud of points, n = m, got n={n} and m={m}")
        _check_symmetric(op)
    sizes = Sizes(OPERATIONS[str(op)], Clouds(n, m, d, name, symmetric), t)
    return SymmetricPlan(kernel, sizes) if symmetric else Plan(kernel, sizes)


def compile_ptx(
    kernel: AbstractKernel,
    op: str | Operation,
    *,
    d: int,
    t: int = 1,
    dtype: Any = "float32",
    cc: tuple[int, int] = (9, 0),
    form: str = "auto",
    listed: bool = False,
    symmetric: bool = False,
) -> str:
    """Return the PTX of one reduction: one module with every entry that a plan launches.

    Parameters
    ----------
    kernel, op, d, t, dtype
        As in :func:`launch_plan`; the text does not depend on n and m.
    cc : (int, int)
        Compute capability; (9, 0) is an H100.
    form : {"auto", "dot", "difference", "exact"}
        How |x - y|^2 is computed. "auto" holds all forms that the operation has; the data choose when the plan is
        packed. "dot" exists for sums without a gradient of smooth kernels from d = 3 on and is the fastest
        for d > 3, where the cloud is small enough for its rounding. "difference" does not cancel. "exact" also takes
        coordinates that lose digits when they are scaled.
    listed : bool
        The variant whose blocks visit lists of tiles (:mod:`gpukoop.kernels.cuda.pairs.lists`), d <= 24.
    symmetric : bool
        The variant of :func:`launch_plan` that visits each pair of one cloud once.

    Returns
    -------
    str
        PTX. Sums of float32 hold no float64 instruction (packing has a few), and no code uses local memory.

    Raises
    ------
    ImportError
        Numba-CUDA is not installed; the message says how to install it.
    ValueError, TypeError
        An argument that no code can be made for.

    Examples
    --------
    >>> from gpukoop.kernels.formula.catalogue import Gaussian
    >>> ptx = compile_ptx(Gaussian(1.0), "product", d=3)  # doctest: +SKIP
    """
    name = _check(kernel, op, dtype, {"d": d, "t": t})
    if form != "auto" and form not in FORMS:
        raise ValueError(f"form must be auto, {', '.join(FORMS)}, got {form!r}")
    if listed and d > WIDEST_TILE:
        raise ValueError(
            f"listed needs d <= {WIDEST_TILE}, got d={d}: wider points visit every tile"
        )
    if not (isinstance(cc, tuple) and len(cc) == 2 and all(isinstance(i, int) for i in cc)):
        raise TypeError(f"cc must be a pair of ints such as (9, 0), got {cc!r}")
    only = FORMS if form == "auto" else (form,)
    plan: AbstractPlan
    if symmetric:
        if listed:
            raise ValueError("symmetric and listed are different variants: choose one")
        _check_symmetric(op)
    # The text does not depend on the number of points.
    sizes = Sizes(
        OPERATIONS[str(op)], Clouds(1, 1, d, name, symmetric), t, only=only, listed=listed
    )
    plan = SymmetricPlan(kernel, sizes) if symmetric else Plan(kernel, sizes)
    if form != "auto" and any(form not in part.forms for part in plan.parts):
        forms = ", ".join(plan.parts[0].offered)
        raise ValueError(f"{op} of {kernel!r} for d={d} has no form {form!r}: it has {forms}")
    _numba()
    return merge([programs.compile_ptx(program, cc) for program in plan.programs.values()])


def entry_ptx(program: Program, cc: tuple[int, int] = (9, 0)) -> str:
    """Return the PTX of one program under its readable name."""
    _numba()
    return programs.compile_ptx(program, cc)


def _check_symmetric(op: str | Operation) -> None:
    if str(op) != str(PRODUCT):
        raise ValueError(f"symmetric needs op 'product', got {op!r}: other sums are not symmetric")


def _numba() -> ModuleType:
    """Return numba.cuda able to compile, or say what is missing."""
    if importlib.util.find_spec("numba_cuda") is None:
        raise ImportError(f"compiling for CUDA needs numba-cuda: {INSTALL}")
    if os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0"):
        raise RuntimeError("the CUDA simulator does not compile: unset NUMBA_ENABLE_CUDASIM")
    from numba import cuda

    return cuda


def compile_entry(entry: Entry, dtype: str, cc: tuple[int, int] = (9, 0)) -> str:
    """Return the PTX of one device function under its readable name."""
    cuda = _numba()
    from numba import types
    from numba.core.errors import NumbaError
    from numba.cuda.cudadrv.error import NvvmError, NvvmSupportError

    real = types.Array(getattr(types, dtype), 1, "C")
    kinds = {
        "array": real,
        "pick": types.Array(types.int32, 1, "C"),
        "bounds": types.Array(types.uint64, 1, "C"),
        "visits": types.Array(types.uint32, 1, "C"),
        "size": types.uint64,
        "real": getattr(types, dtype),
    }
    scope: dict[str, Any] = {}
    source = re.sub(r"^@cuda\.jit.*\n", "", entry.source, flags=re.MULTILINE)
    exec(compile(source, f"<{entry.name}>", "exec"), scope)
    signature = types.void(*(kinds[k] for k in entry.kinds))
    try:
        ptx, _ = cuda.compile_ptx(scope[entry.name], signature, cc=cc, fastmath=True)
    except (NvvmError, NvvmSupportError, NumbaError) as error:
        text = " ".join(str(error).split())
        raise RuntimeError(
            f"compiling {entry.name} for cc={cc} failed: {text} ({INSTALL})"
        ) from error
    mangled = re.search(r"\.entry\s+([\w$]+)", ptx)
    if mangled is None:
        raise RuntimeError(f"the compiler returned no entry for {entry.name}")
    return ptx.replace(mangled[1], entry.name)


def merge(modules: list[str]) -> str:
    """Return several PTX modules as one: the header once, module variables once."""
    header = re.compile(r"^\.(version|target|address_size)\b.*$", re.MULTILINE)
    head = "\n".join(m[0] for m in header.finditer(modules[0]))
    bodies: list[str] = []
    seen: set[str] = set()
    for number, text in enumerate(modules):
        body = header.sub("", text)
        # Numba's environment variable and a shared tile are module variables: one per module and name.
        for name in dict.fromkeys(
            re.findall(
                r"^\s*\.(?:visible|common|extern|weak|shared|global)[^\n(]*?([\w$]+)(?:\[\w*\])?\s*(?:=[^;]*)?;",
                body,
                re.MULTILINE,
            )
        ):
            if name in seen:
                body = re.sub(rf"(?<![\w$]){re.escape(name)}(?![\w$])", f"{name}_{number}", body)
            seen.add(name)
        lines = (line.split("//")[0].rstrip() for line in body.splitlines())
        bodies.append("\n".join(line for line in lines if line))
    return head + "\n\n" + "\n\n".join(bodies) + "\n"
