"""The CUDA programs and their PTX: typed constants, no float64 in float32 code, no local memory, found by key."""

import ast
import cProfile
import gc
import itertools
import pstats
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import gpukoop as gk
from gpukoop import cuda as gpu
from gpukoop.kernels.cuda import device as cuda_device
from gpukoop.kernels.cuda import program as programs
from gpukoop.kernels.cuda import reduce as reduce_cuda
from gpukoop.kernels.cuda.device import pruned
from gpukoop.kernels.cuda.functions import Functions
from gpukoop.kernels.cuda.packing import Clouds
from gpukoop.kernels.cuda.pairs import plan as plan_cuda
from gpukoop.kernels.cuda.pairs.plan import Plan, Sizes
from gpukoop.kernels.formula.catalogue import CATALOGUE, Energy, Gaussian, Matern32, Riesz
from gpukoop.kernels.formula.profile import trace
from gpukoop.kernels.operation import OPERATIONS, PRODUCT

sys.path.append(str(Path(__file__).parents[2]))

from bench import ptx_archive

OPS = tuple(OPERATIONS)
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


def test_every_constant_of_a_profile_is_typed():
    for kernel, operation in itertools.product(KERNELS.values(), OPERATIONS.values()):
        for term in kernel.terms if operation.log else [(1.0, kernel)]:
            if possible(kernel, str(operation)):
                source = Functions(trace(term[1]), operation).source
                places = re.sub(r"s\[\d+\]", "s", source)  # an index needs no type
                assert untyped(places) == [], source


@pytest.fixture
def small(monkeypatch):
    """Compile one pair a loop body: what is pure for one is pure for 32, and much faster."""
    specify = plan_cuda.specify

    def one_pair(*args):
        found = specify(*args)
        return found if found.family == "wide" else replace(found, targets=1, group=1)

    monkeypatch.setattr(plan_cuda, "specify", one_pair)


@pytest.fixture(scope="module")
def compiler():
    pytest.importorskip("numba_cuda")


def check_pure(ptx, dtype):
    """Registers hold everything; the centre of a cloud alone is in float64, and what packs the points."""
    loops = [e for e in re.split(r"(?=\.visible \.entry)", ptx)[1:] if "_points_" not in e[:80]]
    assert loops
    for text in loops:
        assert "\t.local" not in text
        assert not re.search(r"\b(?:ld|st)\.local", text)
        if dtype == "float32":
            assert not re.findall(r"\S*\.f64\b[^;]*;", text)


@pytest.mark.slow
@pytest.mark.parametrize("op", ["value_and_gradient", "logsumexp_and_gradient"])
@pytest.mark.parametrize("name", KERNELS)
def test_float32_code_has_no_float64_instruction(name, op, small, compiler):
    if possible(KERNELS[name], op):
        sizes = Sizes(OPERATIONS[op], Clouds(1, 1, 2, "float32", False), 1, only=("exact",))
        for part in Plan(KERNELS[name], sizes).parts:
            check_pure(gpu.entry_ptx(part.programs["exact"]), "float32")


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
            second = entry.startswith(("add", "join", "measure", "pack"))
            assert grid[1] > 1 or second  # few targets: the sources are split


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


# -- programs -------------------------------------------------------------------------------------------
def product_program(kernel=None, d=3, **how):
    sizes = Sizes(PRODUCT, Clouds(9, 9, d, "float32", False), 1, **how)
    plan = Plan(kernel or Gaussian(1.0), sizes)
    return next(p for p in plan.programs.values() if "_product_exact_" in p.name)


def test_programs_are_equal_by_what_decides_their_code():
    same = product_program(), product_program(Gaussian(7.0)), product_program(tol=1e-3)
    assert len(set(same)) == 1, "scales and tolerances are no part of the code"
    others = product_program(d=2), product_program(Matern32(1.0)), product_program(listed=True)
    assert len({*same, *others}) == 4
    digests = [programs.digest(p, cc) for p in (same[0], *others) for cc in ((8, 0), (9, 0))]
    assert len(set(digests)) == 8
    assert programs.digest(same[0], (9, 0)) == programs.digest(same[1], (9, 0))


def test_machine_code_is_compiled_once_and_read_from_disk(monkeypatch, tmp_path, compiler, small):
    monkeypatch.setenv("GPUKOOP_CACHE_DIR", str(tmp_path))
    program, cc = product_program(d=1), (8, 0)
    assert not programs.kept(program, cc)
    code = programs.machine_code(program, cc)
    monkeypatch.setattr(programs, "compile_ptx", None)
    assert programs.kept(program, cc)
    assert programs.machine_code(product_program(d=1), cc) == code
    (file,) = (tmp_path / "cuda").iterdir()
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert not programs.kept(program, cc)


def test_a_plan_is_made_once_for_equal_kernels_and_sizes():
    sizes = Sizes(PRODUCT, Clouds(900, 90, 2, "float32", False), 1)
    assert reduce_cuda.make_plan(Gaussian(2.0), sizes) is reduce_cuda.make_plan(
        Gaussian(2.0), replace(sizes)
    )


@pytest.mark.parametrize("t", [1, 2, 3, 5, 7, 9, 16, 17, 40])
@pytest.mark.parametrize("op", ["product", "gradient", "value_and_gradient"])
@pytest.mark.parametrize("d", [1, 3, 17, 40])
def test_columns_are_rounded_to_a_few_and_all_are_covered(op, d, t):
    part = Plan(Gaussian(1.0), Sizes(OPERATIONS[op], Clouds(9, 9, d, "float64", False), t)).parts[0]
    assert part.passes * part.pass_columns >= t
    assert (part.passes - 1) * part.pass_columns < t
    widest = plan_cuda.columns(OPERATIONS[op], d, 10**6, "float64")
    assert part.pass_columns in (1, 2, 4, 8, 16, widest)


def test_of_a_choice_between_constants_only_what_is_taken_is_left():
    TAKEN, WIDTH, table = False, np.uint64(4), {"a": 1}

    def frame(x):
        if TAKEN:
            x += 100
        else:
            x += 1 if WIDTH >= 4 else 50
        if TAKEN or WIDTH > 2:
            x += 2
        if x > 10 and not TAKEN:  # of the argument: it stays
            x += table["a"]
        return x

    short = pruned(frame)
    assert [short(x) for x in (0, 10)] == [frame(x) for x in (0, 10)] == [3, 14]
    assert {100, 50}.isdisjoint(short.__code__.co_consts)
    assert short.__code__.co_filename == __file__
    lines = {line for *_, line in short.__code__.co_lines() if line}
    assert lines <= {line for *_, line in frame.__code__.co_lines() if line}


def test_a_function_without_source_is_left_to_the_compiler():
    scope = {}
    exec("def frame(x):\n    return x + 1", scope)
    assert pruned(scope["frame"]) is scope["frame"]


@pytest.mark.slow
def test_a_cold_variant_asks_the_compiler_little(compiler, monkeypatch):
    """Python calls of the front end, which time is proportional to; 3.0 million without pruning and remembered answers."""
    program = product_program(d=5)
    programs.compile_ptx(program, (9, 0))  # imports and registries, once a process
    profile = cProfile.Profile()
    texts = [ptx_archive.portable(profile.runcall(programs.compile_ptx, program, (9, 0)))]
    assert pstats.Stats(profile).total_calls < 2.2e6
    assert gc.isenabled()
    monkeypatch.setattr(cuda_device, "pruned", lambda function: function)
    texts.append(ptx_archive.portable(programs.compile_ptx(program, (9, 0))))
    assert texts[0] == texts[1], "another text without pruning"
