"""Self-test of the PTX emulator's ``mma`` for ``ptx.py``: products against NumPy's, and faults that it must see.

Fragments are laid out here lane by lane from the manual's tables; a planted fault is a fragment in a wrong place, rounding that is left out,
or a warp that is not whole. A test that did not see them would prove nothing of the programs that the lane runs.
"""

import time

import numpy as np

CASES = [("mma", kind) for kind in ("f16", "tf32")]
LANES = np.arange(32)
G, T = LANES >> 2, LANES & 3
# name: m16n8 k, numbers a word, places (row, column) of the words of A, and rows of those of B
KINDS = {
    "f16": (16, 2, [(0, 0), (8, 0), (0, 8), (8, 8)], [0, 8]),
    "tf32": (8, 1, [(0, 0), (8, 0), (0, 4), (8, 4)], [0, 4]),
}


def program(kind, divergent):
    """Return PTX of one warp that loads fragments, multiplies and stores; ``divergent``: half of the warp only."""
    k, _, _, _ = KINDS[kind]
    types = {"f16": "f32.f16.f16.f32", "tf32": "f32.tf32.tf32.f32"}[kind]
    loads = [
        f"ld.global.u32 %r{i + 1}, [%rd{1 + (i > 3)}+{4 * (i - 4 * (i > 3))}];" for i in range(6)
    ]
    stores = [f"st.global.f32 [%rd3+{4 * i}], %f{i + 1};" for i in range(4)]
    skip = ["setp.gt.u32 %p1, %r7, 15;", "@%p1 bra DONE;"] if divergent else []
    lines = [
        ".version 8.0", ".target sm_80", ".address_size 64",
        f".visible .entry multiply_{kind}(.param .u64 a, .param .u64 b, .param .u64 c)", "{",
        ".reg .b32 %r<9>;", ".reg .f32 %f<9>;", ".reg .b64 %rd<8>;", ".reg .pred %p<2>;",
        "ld.param.u64 %rd4, [a];", "ld.param.u64 %rd5, [b];", "ld.param.u64 %rd6, [c];",
        "mov.u32 %r7, %tid.x;", "mul.wide.u32 %rd7, %r7, 16;", "add.u64 %rd1, %rd4, %rd7;", "add.u64 %rd3, %rd6, %rd7;",
        "mul.wide.u32 %rd7, %r7, 8;", "add.u64 %rd2, %rd5, %rd7;",
        *skip, *loads, "mov.f32 %f5, 0f00000000;",
        f"mma.sync.aligned.m16n8k{k}.row.col.{types} {{%f1,%f2,%f3,%f4}}, {{%r1,%r2,%r3,%r4}}, {{%r5,%r6}}, {{%f5,%f5,%f5,%f5}};",
        *stores, "DONE:", "ret;", "}",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def words(kind, numbers):
    """Return 32-bit words of numbers (..., each a word)."""
    if kind == "tf32":
        return np.ascontiguousarray(numbers[..., 0].astype(np.float32)).view(np.int32)
    return np.ascontiguousarray(numbers.astype(np.float16)).view(np.int32)[..., 0]


def fragments(kind, A, B):
    """Return the words of A (32, 4) and of B (32, 2), from the manual's tables."""
    _, each, places, rows = KINDS[kind]
    of = np.arange(each)
    a = [A[(G + r)[:, None], c + (each * T)[:, None] + of] for r, c in places]
    b = [B[r + (each * T)[:, None] + of, G[:, None]] for r in rows]
    return words(kind, np.stack(a, axis=1)), words(kind, np.stack(b, axis=1))


def product(module, kind, a, b):
    """Return what a warp stores, (16, 8), read back by the manual's table of C."""
    import ptxcpu

    out = np.full((32, 4), np.nan, np.float32)
    pointers = [ptxcpu.Ptr(np.ascontiguousarray(w)) for w in (a, b)] + [ptxcpu.Ptr(out)]
    module[f"multiply_{kind}"].launch((1, 1, 1), (32, 1, 1), pointers)
    C = np.empty((16, 8), np.float32)
    for i in range(4):
        C[G + 8 * (i >> 1), 2 * T + (i & 1)] = out[:, i]
    return C


def run(case):
    """Return complaints, as ptx.run does."""
    import ptxcpu

    _, kind = case
    started, complaints = time.perf_counter(), []
    module = ptxcpu.Module(program(kind, False), check=True)
    rng = np.random.default_rng(0)
    # small whole numbers: exact in both formats and in every order of additions
    A = rng.integers(-9, 10, (16, KINDS[kind][0])).astype(np.float32)
    B = rng.integers(-9, 10, (KINDS[kind][0], 8)).astype(np.float32)
    a, b = fragments(kind, A, B)
    if not np.array_equal(product(module, kind, a, b), A @ B):
        complaints.append(f"{case}: not the product")
    planted = {
        "words 1 and 2 of A in each other's place": (a[:, [0, 2, 1, 3]], b),
        "words of B in each other's place": (a, b[:, ::-1]),
        "two lanes of A in each other's place": (a[np.r_[1, 0, 2:32]], b),
        "rows of lanes taken for columns": (a[8 * T + G], b),
        "a lane of B twice": (a, b[np.r_[0, 0, 2:32]]),
    }
    for name, (left, right) in planted.items():
        if np.array_equal(product(module, kind, left, right), A @ B):
            complaints.append(f"{case}: not seen: {name}")
    try:
        product(ptxcpu.Module(program(kind, True), check=True), kind, a, b)
        complaints.append(f"{case}: half a warp multiplied")
    except ptxcpu.LaunchError:
        pass
    if kind == "tf32":
        # The unit cuts off the 13 low bits, so what is not rounded before is another number: the emulator must do so, too.
        long = A + np.float32(2.0**-11) * np.sign(A) * (A != 0)
        found = product(module, kind, *fragments(kind, long, B))
        cut = (long.view(np.int32) & np.int32(-(1 << 13))).view(np.float32)
        if not np.allclose(found, cut @ B, rtol=1e-6, atol=1e-6):
            complaints.append(f"{case}: low bits of a TF32 number were not cut off")
    return case, 0.0, time.perf_counter() - started, complaints
