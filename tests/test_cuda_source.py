"""The generated CUDA text and its PTX: typed constants, no float64 in float32 code, no local memory."""

import ast
import itertools
import re

import numpy as np
import pytest

import gpukoop as gk
from gpukoop import cuda as gpu
from gpukoop.kernels.cuda.pairs import part as part_cuda
from gpukoop.kernels.cuda.pairs import shape as shape_cuda
from gpukoop.kernels.cuda.pairs import tile as tile_cuda
from gpukoop.kernels.cuda.pairs.plan import Plan
from gpukoop.kernels.cuda.source import OPS
from gpukoop.kernels.formula.catalogue import CATALOGUE, Energy, Gaussian, Matern32, Riesz

KERNELS = {name: make() for name, make in CATALOGUE.items()}
KERNELS |= {"riesz13": Riesz(exponent=1.3), "sum": Gaussian(1.0) + 0.5 * Matern32(2.0)}


def possible(kernel, op):
    return "logsumexp" not in op or kernel.positive


def untyped(source):
    """Return the numeric literals of a generated module that no type was given to."""
    typed, found = set(), {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            found[id(node)] = node.value
        called = isinstance(node, ast.Call) and ast.unparse(node.func)
        if called in ("real", "np.uint64", "cuda.shared.array"):
            typed |= {id(a) for argument in node.args for a in ast.walk(argument)}
        elif isinstance(node, ast.Compare) and ast.unparse(node.left) == "pick[0]":
            typed |= {id(a) for a in ast.walk(node)}
    return [value for key, value in found.items() if key not in typed]


@pytest.mark.parametrize("name", KERNELS)
def test_every_constant_of_the_text_is_typed(name):
    kernel = KERNELS[name]
    sizes = [(2, "float32"), (2, "float64"), (5, "float32"), (40, "float32")]
    for op, (d, dtype) in itertools.product(OPS, sizes):
        if not possible(kernel, op):
            continue
        t = 1 if "logsumexp" in op else 2
        for entry in Plan(kernel, op, 9, 9, d, t, dtype, complete=True).entries():
            assert untyped(entry.source) == [], entry.name


@pytest.fixture
def small(monkeypatch):
    """Compile one pair a loop body: what is pure for one is pure for 32, and thirty times faster."""
    shape = shape_cuda.shape

    def one_pair(trace, spec):
        s = shape(trace, spec)
        return shape_cuda.Shape(1, 1, s.tile, s.record)

    monkeypatch.setattr(tile_cuda, "shape", one_pair)
    monkeypatch.setattr(part_cuda, "shape", one_pair)


@pytest.fixture(scope="module")
def compiler():
    pytest.importorskip("numba_cuda")


def check_pure(ptx, dtype):
    assert "\t.local" not in ptx
    assert not re.search(r"\b(?:ld|st)\.local", ptx)
    if dtype == "float32":
        assert not re.findall(r"\S*\.f64\b[^;]*;", ptx)


@pytest.mark.slow
@pytest.mark.parametrize("op", ["value_and_gradient", "logsumexp_and_gradient"])
@pytest.mark.parametrize("name", KERNELS)
def test_float32_code_has_no_float64_instruction(name, op, small, compiler):
    if possible(KERNELS[name], op):
        check_pure(gpu.compile_ptx(KERNELS[name], op, d=2, form="exact"), "float32")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("op", "d", "t", "dtype"),
    [("product", 3, 1, "float32"), ("product", 17, 3, "float32"), ("logsumexp", 5, 1, "float32"),
     ("logsumexp_and_gradient", 40, 1, "float32"), ("value_and_gradient", 2, 1, "float64")],
)  # fmt: skip
def test_full_code_is_pure_and_names_every_launch(op, d, t, dtype, small, compiler):
    ptx = gpu.compile_ptx(Gaussian(1.0), op, d=d, t=t, dtype=dtype)
    check_pure(ptx, dtype)
    assert ptx.count(".version") == ptx.count(".target") == ptx.count(".address_size") == 1
    entries = re.findall(r"\.entry\s+([\w$]+)", ptx)
    assert len(entries) == len(set(entries))
    plan = gpu.launch_plan(Gaussian(1.0), op, n=50, m=1000, d=d, t=t, dtype=dtype)
    assert {launch.entry for launch in plan.launches} <= set(entries)


def test_the_plan_holds_every_argument_and_splits_the_sources():
    rng = np.random.default_rng(0)
    X, Y, V = rng.normal(size=(50, 3)), rng.normal(size=(5000, 3)), rng.normal(size=(5000, 20))
    for op in OPS:
        v = V[:, 0] if "logsumexp" in op else V
        t = 1 if v.ndim == 1 else 20
        plan = gpu.launch_plan(Gaussian(1.0), op, n=50, m=5000, d=3, t=t, dtype="float64")
        buffers = plan.pack(X, Y, v)
        for entry, grid, block, shared, args in plan.launches:
            assert all(a in buffers for a in args), entry
            assert block[0] == 128
            assert shared == 0
            assert (
                grid[1] > 1 or "sum" in entry or "join" in entry
            )  # few targets: the sources are split


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"kernel": "gaussian"}, TypeError, "kernel must be"),
        ({"op": "matvec"}, ValueError, "op must be one of product"),
        ({"d": 0}, ValueError, "d must be an int >= 1"),
        ({"d": 2.0}, TypeError, "d must be an int >= 1"),
        ({"t": -1}, ValueError, "t must be an int >= 1"),
        ({"dtype": "float16"}, ValueError, "dtype must be float32 or float64"),
        ({"kernel": Energy(), "op": "logsumexp"}, ValueError, "needs a positive kernel"),
        ({"op": "logsumexp", "t": 2}, ValueError, "one column"),
        ({"kernel": Gaussian("median")}, ValueError, "named scale"),
        ({"form": "gram"}, ValueError, "form must be auto"),
        ({"form": "dot", "op": "gradient"}, ValueError, "has no form 'dot'"),
        ({"cc": 90}, TypeError, "cc must be a pair"),
    ],
)
def test_bad_arguments_are_named(arguments, error, words):
    good = {"kernel": Gaussian(1.0), "op": "product", "d": 3} | arguments
    kernel, op = good.pop("kernel"), good.pop("op")
    with pytest.raises(error, match=words):
        gpu.compile_ptx(kernel, op, **good)


def test_without_numba_cuda_the_error_says_how_to_install(monkeypatch):
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install gpukoop\[cuda13\]"):
        gpu.compile_ptx(Gaussian(1.0), "product", d=2)


def test_missing_is_none_or_one_sentence():
    reason = gk.backends()["numba-cuda"]
    assert reason is None or (reason and "\n" not in reason)
