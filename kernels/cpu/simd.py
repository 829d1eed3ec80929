r"""exp2, log2, sqrt, rsqrt and reciprocal that LLVM turns into vector code.

The C library's ``exp2f`` is a call, and a loop with a call in it is not vectorised. These functions are
branch-free arithmetic; inlined into a loop over sources they run on 4 to 16 numbers at a time (NEON, AVX2,
AVX-512). Each is compiled with its own flags, which survive inlining: the loops around them need
``reassoc`` to sum in parallel, a polynomial does not, and no function has ``nnan`` or ``ninf``: a NaN
stays a NaN and -inf is a legal weight of log-sum-exp.

The polynomials are minimax in relative error (Lawson iteration in long double), that of exp2 with
p(0) = 1 exactly, so that k(x, x) has no error and a far pair is exactly zero:

=================== ================= =================
function            degree            relative error
=================== ================= =================
exp2, float32       4                 2.8e-6
exp2, float32       5                 9.2e-8
exp2, float64       11                3.4e-18
log2, float32       3 in z^2          6.9e-10
log2, float64       7 in z^2          1.3e-18
=================== ================= =================

and rounding comes on top: about 1e-7 and 2e-16.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import binding as llvm
from llvmlite import ir
from numba import config, njit, types
from numba.extending import intrinsic

_EXP2 = {
    ("float32", 4): (
        1.0,
        0.6931241934031515,
        0.24024098611601824,
        0.05590642467794344,
        0.00958285303842039,
    ),
    ("float32", 5): (
        1.0,
        0.6931469775989928,
        0.24022242085262308,
        0.05550733743497025,
        0.009671512644823741,
        0.0013264727123605004,
    ),
    ("float64", 11): (
        1.0,
        0.6931471805599453,
        0.2402265069591013,
        0.05550410866482008,
        0.009618129107594143,
        0.0013333558146776444,
        0.00015403530457084612,
        1.525273349095932e-05,
        1.3215435296648332e-06,
        1.0178200630390142e-07,
        7.07378061727844e-09,
        4.4345944671270977e-10,
    ),
}
_LOG2 = {
    "float32": (2.8853900797889236, 0.9617988476433199, 0.5767143838264875, 0.43173588223153814),
    "float64": (
        2.8853900817779268,
        0.9617966939259891,
        0.5770780163458442,
        0.41219858577804697,
        0.32059854070130195,
        0.26233407761201016,
        0.2209196140170129,
        0.2135974911944838,
    ),
}
# (bits of the mantissa, exponent bias, bits of the largest mantissa below sqrt(1/2))
_LAYOUT = {"float32": (23, 127, 0x3F3504F3), "float64": (52, 1023, 0x3FE6A09E667F3BCD)}

# A power series under a magic-number rounding would be destroyed by reassoc; these flags are harmless.
_STRICT = {"contract", "nsz"}
_REAL: dict[str, tuple[Any, Any]] = {
    "float32": (np.float32, types.float32),
    "float64": (np.float64, types.float64),
}
_WHOLE: dict[str, tuple[Any, Any]] = {
    "float32": (np.int32, types.int32),
    "float64": (np.int64, types.int64),
}


@intrinsic
def _bits(context: Any, x: Any) -> Any:
    whole: Any = types.int32 if x == types.float32 else types.int64

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(whole.bitwidth))

    return whole(x), emit


def _make_unbits(dtype: str) -> Any:
    real, whole = _REAL[dtype][1], _WHOLE[dtype][1]

    @intrinsic
    def unbits(context: Any, x: Any) -> Any:
        def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            return builder.bitcast(
                args[0], ir.FloatType() if dtype == "float32" else ir.DoubleType()
            )

        return real(whole), emit

    return unbits


@intrinsic
def larger(context: Any, x: Any, y: Any) -> Any:
    """Return the larger number; unlike ``max`` it carries the flags that let LLVM reduce in vectors."""

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        real = args[0].type
        maxnum = builder.module.declare_intrinsic(
            "llvm.maxnum", [real], ir.FunctionType(real, [real, real])
        )
        return builder.call(maxnum, args, fastmath=("nnan", "nsz"))

    return x(x, x), emit


def _horner(coefficients: tuple[float, ...], argument: str) -> str:
    text = ""
    for c in reversed(coefficients):
        # Horner's rule: Estrin's has shorter chains and more operations, and vectors of independent pairs hide the chain
        # already.
        text = f"real({c!r})" if not text else f"real({c!r}) + {argument} * ({text})"
    return text


def _define(text: str, name: str, dtype: str) -> Callable[..., Any]:
    """Compile generated text; the coefficients must be literals for LLVM to fold them."""
    scope: dict[str, Any] = {
        "np": np,
        "bits": _bits,
        "unbits": _make_unbits(dtype),
        "real": _REAL[dtype][0],
        "whole": _WHOLE[dtype][0],
    }
    exec(text, scope)
    # The error model of Python tests divisors with a branch, which forbids vectors.
    return njit(fastmath=_STRICT, error_model="numpy")(scope[name])


def _make_exp2(dtype: str, degree: int) -> Callable[..., Any]:
    """Return exp2: t = n + f, |f| <= 1/2; p(f), then n is added to the exponent bits.

    At the clamp p(0) = 1 has bits that n = -bias turns into 0.0: far pairs are exactly zero.
    """
    mantissa, bias, _ = _LAYOUT[dtype]
    text = f"""
def exp2(t):
    t = real({-float(bias)}) if t < real({-float(bias)}) else t
    n = np.rint(t)
    f = t - n
    p = {_horner(_EXP2[dtype, degree], "f")}
    return unbits(whole(bits(p) + (whole(n) << whole({mantissa}))))
"""
    return _define(text, "exp2", dtype)


def _make_log2(dtype: str) -> Callable[..., Any]:
    """Return log2: x = 2^e m, sqrt(1/2) < m <= sqrt 2; odd polynomial of z = (m - 1)/(m + 1).

    Numba adds int32 as int64, hence the ``whole`` around every step.
    Zero and denormal numbers give -1e30: finite, so that 0 times it is not NaN, and exp2 of it is zero.
    """
    mantissa, _, root = _LAYOUT[dtype]
    tiny = float(np.finfo(dtype).tiny)
    text = f"""
def log2(x):
    b = bits(x)
    e = whole(whole(b - whole({root})) >> whole({mantissa}))
    m = unbits(whole(b - (e << whole({mantissa}))))
    z = (m - real(1.0)) / (m + real(1.0))
    w = z * z
    r = real(e) + z * ({_horner(_LOG2[dtype], "w")})
    return r if x >= real({tiny!r}) else real(-1e30)
"""
    return _define(text, "log2", dtype)


exp2_float32_4 = _make_exp2("float32", 4)
exp2_float32_5 = _make_exp2("float32", 5)
exp2_float64_11 = _make_exp2("float64", 11)
log2_float32 = _make_log2("float32")
log2_float64 = _make_log2("float64")


@njit(fastmath=_STRICT)
def sqrt(x):  # type: ignore[no-untyped-def]  # noqa: D103
    return math.sqrt(x)


# afn and arcp let LLVM use the hardware's estimate and a Newton step, 2.4 times as fast as vsqrt and vdiv on
# AVX-512 and accurate to 1 ulp; at x = 0 that may be NaN instead of inf: the loops select zero there.
@njit(fastmath={"contract", "nsz", "reassoc", "arcp", "afn"}, error_model="numpy")
def rsqrt_float32(x):  # type: ignore[no-untyped-def]  # noqa: D103
    return np.float32(1.0) / math.sqrt(x)


@njit(fastmath=_STRICT, error_model="numpy")
def rsqrt_float64(x):  # type: ignore[no-untyped-def]  # noqa: D103
    return np.float64(1.0) / math.sqrt(x)


# The Python error model tests for division by zero with a branch, which forbids vectors: numpy's does not.
@njit(fastmath=_STRICT, error_model="numpy")
def reciprocal_float32(x):  # type: ignore[no-untyped-def]  # noqa: D103
    return np.float32(1.0) / x


@njit(fastmath=_STRICT, error_model="numpy")
def reciprocal_float64(x):  # type: ignore[no-untyped-def]  # noqa: D103
    return np.float64(1.0) / x


def target_features() -> str:
    """Return the features code is compiled for, "+avx2,-sse4a,...": the host's, or NUMBA_CPU_FEATURES."""
    chosen = config.CPU_FEATURES  # type: ignore[attr-defined]  # set while numba starts
    return str(chosen) if chosen is not None else str(llvm.get_host_cpu_features().flatten())


def _register() -> tuple[int, int]:
    """Return (bytes of a vector register, number of them)."""
    features = set(target_features().split(","))
    if "+avx512f" in features:
        # Registers decide how many sums a nest keeps.
        return 64, 32
    if "+avx" in features:
        return 32, 16
    return 16, 32 if "+neon" in features else 16


REGISTER_BYTES, REGISTERS = _register()

# Degree of exp2 by precision: exact (rounding), and for a tolerance that the shorter one meets.
EXACT_DEGREE = {"float32": 5, "float64": 11}
