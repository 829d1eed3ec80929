"""Instructions of tensor cores for Numba-CUDA, copies that do not pass through registers, and the steps of a loop over pairs.

Each is an intrinsic over inline PTX: the compiler knows only what goes in and comes out, so it orders them like arithmetic.
Fragments are those of PTX's ``mma``: with lane = 4 g + t, a lane holds

======= ================================== ==============================================
operand m16n8k16, numbers in pairs         m16n8k8
======= ================================== ==============================================
A       rows g, g + 8; numbers 2t, 2t + 1; rows g, g + 8; number t;
        then both rows at 2t + 8, 2t + 9   then both rows at t + 4
B       column g; numbers 2t, 2t + 1;      column g; number t; then t + 4
        then 2t + 8, 2t + 9
C       rows g, g, g + 8, g + 8; columns 2t, 2t + 1, 2t, 2t + 1 (both shapes)
======= ================================== ==============================================
"""

# mypy: ignore-errors
from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import float32, types
from numba.cuda.extending import intrinsic

from gpukoop.kernels.cuda.device import SIMULATED, device, u
from gpukoop.kernels.cuda.form import log2_phi
from gpukoop.kernels.cuda.functions import CudaPrinter
from gpukoop.kernels.formula.expr import Number
from gpukoop.kernels.formula.profile import Trace

FLOAT, INT, LONG = ir.FloatType(), ir.IntType(32), ir.IntType(64)


def _mma(name):
    """Return mma.sync of a shape: four words of A, two of B, four floats of C to four floats."""
    text = (
        f"mma.sync.aligned.{name} {{$0,$1,$2,$3}}, {{$4,$5,$6,$7}}, {{$8,$9}}, {{$10,$11,$12,$13}};"
    )

    @intrinsic
    def call(typingctx, a0, a1, a2, a3, b0, b1, c0, c1, c2, c3):
        out = types.UniTuple(types.float32, 4)

        def codegen(context, builder, signature, arguments):
            # Without side effects, so that the compiler may schedule it as arithmetic: it moves loads of the next fragment
            # before it.
            kind = ir.FunctionType(ir.LiteralStructType([FLOAT] * 4), [INT] * 6 + [FLOAT] * 4)
            code = ir.InlineAsm(kind, text, "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f")
            result = builder.call(code, arguments)
            parts = [builder.extract_value(result, i) for i in range(4)]
            return context.make_tuple(builder, out, parts)

        return out(*([types.int32] * 6), *([types.float32] * 4)), codegen

    return call


mma_f16 = _mma("m16n8k16.row.col.f32.f16.f16.f32")
mma_tf32 = _mma("m16n8k8.row.col.f32.tf32.tf32.f32")


@intrinsic
def copy16(typingctx, tile, i, source, j):
    """Copy 16 aligned bytes, ``tile[i : i + 4] = source[j : j + 4]``, from device to shared memory; see :func:`arrived`."""

    def codegen(context, builder, signature, arguments):
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        # cp.async wants an address in the shared window; Numba's pointers are generic, so the text converts it.
        to = builder.ptrtoint(builder.gep(array.data, [arguments[1]]), LONG)
        offset = builder.mul(arguments[3], ir.Constant(LONG, 4))
        at = builder.add(builder.ptrtoint(arguments[2], LONG), offset)
        text = (
            "{ .reg .u64 a; .reg .u32 b; cvta.to.shared.u64 a, $0; cvt.u32.u64 b, a; "
            "cp.async.cg.shared.global [b], [$1], 16; }"
        )
        kind = ir.FunctionType(ir.VoidType(), [LONG, LONG])
        builder.call(ir.InlineAsm(kind, text, "l,l,~{memory}", side_effect=True), [to, at])
        return context.get_dummy_value()

    return types.void(tile, types.uint64, source, types.uint64), codegen


@intrinsic
def arrived(typingctx):
    """Wait until the copies of this thread have arrived; a barrier then shows them to the block."""

    def codegen(context, builder, signature, arguments):
        kind = ir.FunctionType(ir.VoidType(), [])
        # All, not a group: one tile is on its way at a time, and the next is asked for only after the barrier that follows.
        builder.call(ir.InlineAsm(kind, "cp.async.wait_all;", "~{memory}", side_effect=True), [])
        return context.get_dummy_value()

    return types.void(), codegen


if SIMULATED:
    # What the instructions do, for frames that use no tensor cores: the simulator runs no PTX, and there a copy has arrived at once.
    def copy16(tile, i, source, j):
        """Copy four numbers."""
        for e in range(4):
            tile[i + e] = source[j + e]

    def arrived():
        """Wait for nothing."""


zero, k1 = float32(0.0), u(1)


@device
def squares(a, b, i, j, d):
    """Return |x_i - y_j|^2 of the points as they came."""
    i, j = i * d, j * d
    end, total = i + d, zero
    while i < end:
        h = a[i] - b[j]
        total += h * h
        i, j = i + k1, j + k1
    return total


def registers(targets: int, width: int = 4) -> tuple[Any, Any]:
    """Return pick and put for rows of registers of ``targets`` groups; an index known only at run time would move them to memory."""
    TARGETS, WIDTH = u(targets), u(width)

    @device
    def pick(numbers, w, row):
        """Return number w of registers; an index known only at run time would move them to memory."""
        found = zero
        for r in range(TARGETS):
            for e in range(row):
                number = numbers[r, e]  # loaded in any case: under a test it would be loaded at w
                found = number if w == r * row + e else found
        return found

    @device
    def put(numbers, w, value):
        """Store number w of registers with ``width`` a row."""
        for r in range(TARGETS):
            for e in range(WIDTH):
                number = numbers[r, e]
                # A select for each register instead of one indexed store: registers have no addresses.
                numbers[r, e] = value if w == r * WIDTH + e else number

    return pick, put


def profile(of: Trace, log: bool, names: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Return phi, dphi (dphi / phi where weights are logarithms) and log2 phi as device functions of (q, s).

    Zero at q = 0 where the kernel says so by definition.
    """
    kink = of.kink or of.singular
    trees = (
        (of.phi, of.singular),
        (of.log_slope if log else of.dphi, kink),
        (log2_phi(of) if log else Number(0.0), False),
    )
    made = []
    for tree, guarded in trees:
        if tree is None:
            raise ValueError("log-sum-exp needs a positive kernel of one term")
        printer = CudaPrinter(of.symbols)
        value = printer.print(tree)
        # By definition zero at q = 0, and by rounding q may be slightly negative there: the test takes both.
        last = f"return {value} if q > zero else zero" if guarded else f"return {value}"
        text, scope = "\n    ".join(["def value(q, s):", *printer.lines, last]), dict(names)
        exec(compile(text, "<profile>", "exec"), scope)
        made.append(device(scope["value"]))
    return made[0], made[1], made[2]
