r"""Source text of the CPU loops: one module per (profile, operation, features, columns, precision).

Generated, because what makes these loops fast must be literal: features and columns are scalar locals,
constants are typed, tile lengths are known. For every tile of sources and group of targets:

=========== ======================================= ==========================================
stage       few of them: in text                    many, or known only at run time
=========== ======================================= ==========================================
distances   d <= 4 or 8: in the loop of the profile a register-blocked loop nest, into a buffer
profile     one loop over the sources of the tile, vectorised by LLVM; the sums are registers
columns     t <= 4: in the loop of the profile      from a buffer, R targets x 4 columns at once
gradient    d t <= 12: in the loop of the profile   from a buffer, a register-blocked loop nest
=========== ======================================= ==========================================

Buffers are R x TILE numbers that stay in the first-level cache. Letters: R targets a group, T columns and W
features as padded, TILE sources. Distances are squares of differences of the coordinates as given, times one
scalar: no cancellation, whatever the offset. Sums run in the dtype of the points inside a tile and in float64
between tiles, so that a million sources cost no digits.
"""

from __future__ import annotations

from gpukoop.kernels.cpu.loops import Loops, block
from gpukoop.kernels.cpu.nests import FEATURE_VECTORS
from gpukoop.kernels.cpu.variant import Arguments, Variant, signature
from gpukoop.kernels.formula.profile import Trace

LN_2 = 0.6931471805599453


def _flush(v: Variant) -> list[str]:
    """Write the float64 sums of one target to the results."""
    if v.log:
        # Without any weight the logarithm is -inf and its gradient zero by definition, not 0 / 0.
        nothing = ["grad[ib + i] = 0.0"] * v.slope
        slope = [
            "grad[ib + i, 0, k] = slope_factor * acc[i, 1 + k] / acc[i, 0]",
        ]
        return [
            *block("if top[i] == -np.inf:", ["out[ib + i, 0] = -np.inf", *nothing]),
            *block(
                "else:",
                [
                    f"out[ib + i, 0] = {LN_2!r} * (top[i] + np.log2(acc[i, 0]))",
                    *(block("for k in range(n_features):", slope) if v.slope else []),
                ],
            ),
        ]
    lines = []
    if v.value:
        lines += block("for c in range(n_columns):", ["out[ib + i, c] = value_factor * acc[i, c]"])
    if v.slope:
        index = f"T * ({int(v.value)} + k) + c"
        write = [f"grad[ib + i, c, k] = slope_factor * acc[i, {index}]"]
        inner = block("for k in range(n_features):", write)
        lines += block("for c in range(n_columns):", inner)
    return lines


def source(trace: Trace, variant: Variant) -> str:
    """Return the text of the module whose ``run`` computes targets ``start`` to ``stop``."""
    v, size = variant, variant.targets * variant.tile
    loops = Loops(trace, variant)
    group = loops.group()
    buffers = [f"{b} = np.empty({size}, real)" for b in sorted(loops.buffers)]
    # Parameters travel as numbers: another scale or exponent is the same compiled code.
    symbols = [f"{name} = P[{a + 1}]" for a, name in enumerate(trace.symbols)]
    log = ["top = np.empty(block, real)"] if v.log else []
    # Tiles come heaviest first with a bound on all that is left: the sum stops when that bound is below tol of what its poorest
    # target has.
    stop_early = [
        "least = acc[0, width - 1]",
        *block("for i in range(1, nb):", ["least = min(least, acc[i, width - 1])"]),
        *block("if left[(ib - start) // block, z] <= tol * least:", ["break"]),
        "tile = visit[(ib - start) // block, z]",
    ]
    over_tiles = f"for {'z' if v.skip else 'tile'} in range(S.shape[0]):"
    tiles = [
        *(stop_early if v.skip else []),
        "Sj = S[tile]",
        f"Vj = Sj[n_features * {v.tile}:]",
        f"nj = min({v.tile}, m - {v.tile} * tile)",
        # Targets inside the tile: it stays in the first-level cache while a block of targets passes over it.
        *block(f"for g in range(0, nb, {v.targets}):", group),
    ]
    blocks = [
        "nb = min(block, stop - ib)",
        "acc[:, :] = 0.0",
        *(["top[:] = -np.inf"] if v.log else []),
        *block(over_tiles, tiles),
        *block("for i in range(nb):", _flush(v)),
    ]
    body = [
        "kappa = P[0]",
        *symbols,
        "W = X.shape[1]",
        # Allocated once a piece of the targets, not once a block.
        "acc = np.empty((block, width), np.float64)",
        *log,
        *buffers,
        *block("for ib in range(start, stop, block):", blocks),
    ]
    real, arguments = v.real, ", ".join(Arguments._fields)
    imports, nests = [], []
    if not v.features:
        imports += ["from gpukoop.kernels.cpu.nests import make_distances"]
        nests += [f"distances = make_distances({real!r}, {v.tile})"]
    # Emitted nests are imported by the generated module, which Numba caches on disk under its own text.
    if v.wide:
        imports += ["from gpukoop.kernels.cpu.nests import make_forces"]
        nests += [f"forces = make_forces({real!r}, {v.tile}, {FEATURE_VECTORS})"]
        nests += [f"forces_rest = make_forces({real!r}, {v.tile}, 1)"]
    return "\n".join(
        [
            f'"""Generated by gpukoop: {v!r}."""',
            "",
            "import numpy as np",
            f"from numpy import {real} as real",
            "",
            "from gpukoop.kernels.cpu.module import jit",
            *imports,
            "from gpukoop.kernels.cpu.simd import larger, sqrt",
            f"from gpukoop.kernels.cpu.simd import exp2_{real}_{v.degree} as exp2",
            *(
                f"from gpukoop.kernels.cpu.simd import {f}_{real} as {f}"
                for f in ("log2", "rsqrt", "reciprocal")
            ),
            *(["", *nests] if nests else []),
            "",
            "",
            # reassoc lets partial sums run in vectors; nnan and ninf are absent on purpose
            f'@jit("{signature(real)}", nogil=True, error_model="numpy",',
            '     fastmath={"reassoc", "contract", "nsz"})',
            *block(f"def run({arguments}):", body),
            "",
        ]
    )
