"""The PTX that comes with the package: complete, equal to what is compiled now, and enough for sums without a compiler."""

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from device_counter import counted_device

from gpukoop.kernels.cuda import archive, engine
from gpukoop.kernels.cuda import program as programs
from gpukoop.kernels.cuda import reduce as reduce_cuda
from gpukoop.kernels.formula.catalogue import Gaussian, Laplace, Riesz
from gpukoop.kernels.formula.profile import trace
from gpukoop.kernels.operation import OPERATIONS

sys.path.append(str(Path(__file__).parents[2]))

from bench import ptx_archive

PROGRAMS = list(ptx_archive.catalogue())
RUN = "run python -m bench.ptx_archive"


@pytest.fixture
def small(monkeypatch):
    """Archives that are read are not remembered."""
    archive._read.cache_clear()
    yield monkeypatch
    archive._read.cache_clear()


@pytest.fixture
def no_compiler(small, tmp_path):
    """A machine without compiled code on its disk, whose compiler refuses."""
    small.setenv("GPUKOOP_CACHE_DIR", str(tmp_path))

    def refuse(program, cc):
        raise AssertionError(f"{program.name} was compiled")

    small.setattr(programs, "compile_ptx", refuse)


def test_it_holds_every_kernel_operation_and_form_up_to_three_features():
    absent = [p.name for p in PROGRAMS if archive.find(p, (9, 0)) is None]
    assert absent == [], f"a frame has changed: {RUN}"
    names = {p.name for p in PROGRAMS}
    for form in ("dot", "difference", "exact"):
        assert f"gaussian_product_{form}_d3_t1_float32" in names
        assert f"gaussian_symmetric_product_{form}_d3_t1_float32" in names
    assert archive.FILE.stat().st_size < 1.5e6


def test_a_comment_costs_no_compiling():
    code = "for r in range(R):  # targets of a thread\n\n    # the long reason\n    a = '#'\n"
    assert archive._code(code) == "for r in range(R):\n    a = '#'"


def test_its_texts_run_on_old_linkers_and_devices():
    for program in PROGRAMS[::17]:
        text = archive.find(program, (8, 0))
        assert text.startswith(".version 7.0\n.target sm_80\n")
        assert re.findall(r"\.entry (\w+)", text) == [program.name]
        assert text.count(".param") >= len(program.specification.arguments)
    assert archive.find(PROGRAMS[0], (7, 5)) is None


# A pack, a product, a gradient of a kernel with a root, a log-sum-exp of two dozen statements.
SAMPLES = (
    "pack_points_difference_exact_d2_float32",
    "gaussian_product_dot_d3_t1_float32",
    "laplace_gradient_difference_d1_t1_float32",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLES)
def test_its_texts_are_what_is_compiled_now(name):
    pytest.importorskip("numba_cuda")
    (program,) = (p for p in PROGRAMS if p.name == name)
    kept, now = archive.find(program, archive.OLDEST), ptx_archive.text(program)
    if ptx_archive.made_by() == ptx_archive.compilers():
        assert kept == now, f"compiled code has changed: {RUN}"
    else:  # another compiler schedules otherwise; the entry and its arguments are the contract
        head = re.compile(r"\.entry [^{]*")
        assert head.search(kept)[0].split() == head.search(now)[0].split()


def test_what_is_not_in_it_is_compiled(no_compiler):
    program = next(p for p in PROGRAMS if p.name == SAMPLES[1])
    other = programs.Program(
        program.specification.__class__(**vars(program.specification) | {"d": 4}),
        program.functions,
        program.kernel,
    )
    assert archive.find(other, (9, 0)) is None
    with pytest.raises(AssertionError, match="was compiled"):
        programs.machine_code(other, (9, 0))


def test_a_changed_frame_is_not_taken_from_it(small, tmp_path):
    folder = tmp_path / "cuda"
    shutil.copytree(archive.HOME, folder)
    small.setattr(archive, "HOME", folder)
    of = {p.name: p for p in PROGRAMS}
    product, gradient = of[SAMPLES[1]], of["gaussian_logsumexp_dot_d3_t1_float32"]
    archive._sources.cache_clear()
    try:
        before = archive.identity(product), archive.identity(gradient)
        path = folder / "pairs" / "sums.py"
        path.write_text(path.read_text().replace("GROUPED = spec.sums == 1", "GROUPED = False"))
        archive._sources.cache_clear()
        after = archive.identity(product), archive.identity(gradient)
    finally:
        archive._sources.cache_clear()
    assert before[0] != after[0]
    assert before[1] == after[1], "the other frame did not change"


def test_the_kernels_functions_decide_and_their_parameters_do_not():
    (program,) = (p for p in PROGRAMS if p.name == SAMPLES[1])

    def identity(kernel):
        how = programs.Functions(trace(kernel), program.functions.operation)
        return archive.identity(programs.Program(program.specification, how, program.kernel))

    assert identity(Gaussian(3.0)) == archive.identity(program)
    assert identity(Laplace(1.0)) != archive.identity(program)


@pytest.mark.parametrize("damage", ["absent", "cut", "noise"])
def test_a_damaged_archive_is_no_archive(damage, small, tmp_path):
    data, path = archive.FILE.read_bytes(), tmp_path / "ptx.zip"
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    if damage == "noise":
        noisy = bytearray(data)
        noisy[200:4000] = bytes(3800)
        path.write_bytes(noisy)
    small.setattr(archive, "FILE", path)
    found = [archive.find(p, (9, 0)) for p in PROGRAMS]
    assert all(text is None or ".entry" in text for text in found)
    assert None in found


class Loaded(list):
    """Machine code in the place of what a device has loaded; a launch does nothing."""

    def function(self, program):
        self.append(programs.machine_code(program, (9, 0)))
        return lambda grid, block, args: None


@pytest.mark.parametrize("kernel", [Gaussian(1.0), Riesz(exponent=0.7)], ids=repr)
def test_sums_of_the_catalogue_need_no_compiler(kernel, no_compiler, monkeypatch):
    pytest.importorskip("cuda.core")
    loaded = Loaded()
    with counted_device() as cupy:
        monkeypatch.setattr(engine.CuPyEngine, "function", lambda self, p: loaded.function(p))
        monkeypatch.setattr(engine, "compute_capability", lambda device: (9, 0))
        monkeypatch.setattr(engine.CuPyEngine, "capacity", lambda self, p: 660)
        monkeypatch.setattr(engine.CuPyEngine, "multiprocessors", lambda self: 132)
        engine.cupy_engine.cache_clear()
        rng = np.random.default_rng(0)
        for op, operation in OPERATIONS.items():
            if operation.log and not kernel.positive:
                continue
            X, V = (cupy.asarray(rng.normal(size=(50, k)).astype("float32")) for k in (3, 1))
            reduce_cuda.reduce(kernel, operation, X, X, V[:, 0] if "logsumexp" in op else V)
    engine.cupy_engine.cache_clear()
    assert len(loaded) >= 6
    assert all(code[:4] == b"\x7fELF" for code in loaded)
