"""Tensor-core programs: what they cost as machine code, and what packing keeps of a number."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from fragments import LANES, halves, matrix_a, matrix_b
from test_cuda_source import check_pure

from gpukoop.kernels.cuda.matrix import packing
from gpukoop.kernels.cuda.matrix.fused import _blocks, fits
from gpukoop.kernels.cuda.matrix.shape import SHARED, SHORT, WIDEST, Shape
from gpukoop.kernels.formula.catalogue import Gaussian, Laplace
from gpukoop.kernels.formula.profile import trace

sys.path.append(str(Path(__file__).parents[2]))

# A program and what 85 % of its bound must reach, in Tp/s.
GOALS = [
    (Shape("product", 100, 2, 0, False), 0.40),
    (Shape("product", 100, 1, 0, False), 1.0),
    (Shape("gradient", 100, 2, 100, True), 0.23),
]


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "goal"), GOALS, ids=lambda a: getattr(a, "label", None))
def test_programs_reach_their_bound_without_spills(shape, goal):
    pytest.importorskip("numba_cuda")
    from bench import cuda_tensor, sass

    if sass.missing() is not None:
        pytest.skip(sass.missing())
    ptx = cuda_tensor.code(shape, (8, 0))
    check_pure(ptx, "float32")
    assert ".atom" not in ptx
    assert "\tred." not in ptx
    for arch in ("sm_80", "sm_90", "sm_100"):
        code, resources = sass.assemble(ptx, arch)
        assert resources[shape.label]["spills"] == resources[shape.label]["stack"] == 0, arch
        assert not re.search(r"\b(LDL|STL)\b", code), arch
        assert "HMMA.16816.F32" in code, arch
        row = cuda_tensor.count(shape, ptx, arch)
        # one instruction for each product, and nothing else takes as long as they do
        assert row["mma"] == pytest.approx(shape.products / 4), arch
        assert row["limit"] == "tensor cores", arch
        assert 0.85 * row["bound Tp/s"] >= goal, arch


def test_two_parts_keep_what_float32_has():
    """22 bits of a coordinate, or 2^-40 of the largest one of its point."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(500, 20)) * 10.0 ** rng.integers(-30, 15, (500, 1))).astype(np.float32)
    x[:, 3] *= np.float32(1e-6)
    x[7] = 0
    parts, scales = packing.split(x, 2, np)
    assert all(np.isfinite(part).all() for part in parts)
    mantissa, _ = np.frexp(scales)
    assert np.all(mantissa == 0.5)  # powers of two
    got = sum(part.astype(float) for part in parts) * scales[:, None].astype(float)
    largest = np.abs(x).max(axis=1, keepdims=True).astype(float)
    assert np.all(np.abs(got - x) <= np.maximum(2.0**-22 * np.abs(x), 2.0**-39 * largest))
    assert np.all(packing.rounded(x, np) == parts[0].astype(np.float32) * scales[:, None])


@pytest.mark.parametrize("parts", [1, 2])
def test_words_lie_where_lanes_look_for_them(parts):
    """Products of unpacked fragments are those of the points: packing against the manual's tables."""
    shape = Shape("product", 37, parts, 0, False)
    rng = np.random.default_rng(1)
    x = rng.integers(-64, 64, (shape.block_targets, 37)).astype(np.float32)
    y = rng.integers(-64, 64, (shape.tile, 37)).astype(np.float32)
    words, xs = packing.targets(x, shape, np)
    zeros = np.zeros(len(y), np.float32)
    tiles = packing.sources(packing.source_points(y, shape, np), zeros, zeros, None, shape, np)
    A = matrix_a(words.reshape(-1, shape.chunks, parts, 32, 4))[:, :, 0]
    points = tiles[:, : shape.groups * shape.group_words[0]]
    B = matrix_b(points.reshape(-1, shape.chunks, 32, parts, 2)[:, :, :, 0])
    dot = np.einsum("Gcrk,Jcks->GrJs", A, B).reshape(len(x), len(y))
    _, ys = packing.split(y, parts, np)
    assert np.array_equal(dot * xs[:, None] * ys, x @ y.T)
    assert halves(words).shape[-1] == 2
    assert len(LANES) == 32


def test_every_shape_fits_a_block():
    for op in ("product", "gradient", "logsumexp", "value_and_gradient"):
        for d in range(16, 257, 8):
            for parts in (1, 2):
                widths = {b.stop - b.start for b in _blocks(d)} if "gradient" in op else {0}
                for width in widths if fits(op, d, 1, parts) else ():
                    shape = Shape(op, d, parts, width, True)
                    assert 2 * 4 * shape.tile_words <= SHARED
                    assert width <= WIDEST
                    assert SHORT % shape.tile == 0
                    registers = 4 * shape.targets * (shape.chunks * parts + shape.columns)
                    assert registers <= 184


def test_blocks_of_right_hand_sides_are_even_and_complete():
    for width in (1, 8, 112, 113, 128, 300):
        blocks = list(_blocks(width))
        assert np.concatenate([np.arange(b.start, b.stop) for b in blocks]).tolist() == list(
            range(width)
        )
        assert max(b.stop - b.start for b in blocks) <= WIDEST


def test_a_kernel_without_logarithm_is_refused_in_words():
    pytest.importorskip("numba_cuda")
    from gpukoop.kernels.cuda.matrix.instructions import profile

    with pytest.raises(ValueError, match="positive kernel of one term"):
        profile(trace(Gaussian(1.0) + Laplace(1.0)), True, {})
