"""Programs that are known to be needed are compiled side by side, and before the first sum waits for them."""

import time

import numpy as np
import pytest
from device_counter import counted_device

import gpukoop as gk
from gpukoop import dispatch
from gpukoop.backends import BACKENDS
from gpukoop.kernels.cuda import engine
from gpukoop.kernels.cuda import program as programs
from gpukoop.kernels.cuda import reduce as reduce_cuda
from gpukoop.kernels.cuda.specification import Finish
from gpukoop.kernels.operation import GRADIENT, LOGSUMEXP, PRODUCT, VALUE_AND_GRADIENT

CC = (9, 0)
# Second passes in float64: they compile in a fifth of a second, and no archive holds them.
SMALL = [
    programs.Program(Finish(operation, "float64", 5, False))
    for operation in (PRODUCT, GRADIENT, VALUE_AND_GRADIENT, LOGSUMEXP)
]


@pytest.fixture
def empty(monkeypatch, tmp_path):
    """A machine with nothing compiled on its disk, and more than one core."""
    pytest.importorskip("numba_cuda")
    monkeypatch.setenv("GPUKOOP_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(programs.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    return monkeypatch


@pytest.mark.slow
def test_several_programs_are_compiled_by_several_processes(empty):
    here, usual = [], programs.machine_code

    def later(program, cc):
        """This process waits for the other one to have compiled something."""
        end = time.monotonic() + 120
        while not any(programs.kept(p, cc) for p in SMALL) and time.monotonic() < end:
            time.sleep(0.05)
        here.append(program)
        return usual(program, cc)

    empty.setattr(programs, "machine_code", later)
    programs.compile_together(SMALL, CC)
    assert all(programs.kept(p, CC) for p in SMALL)
    assert 1 <= len(here) < len(SMALL)


@pytest.mark.slow
def test_a_process_that_dies_leaves_its_program_to_the_one_that_needs_it(empty):
    empty.setattr(programs, "_WORKER", "raise SystemExit(1)")
    programs.compile_together(SMALL, CC)
    assert sum(not programs.kept(p, CC) for p in SMALL) <= 1
    assert all(programs.machine_code(p, CC)[:4] == b"\x7fELF" for p in SMALL)


@pytest.mark.parametrize("why", ["few", "no home", "frozen"])
def test_alone_where_others_would_not_help(why, empty):
    compiled = []
    empty.setattr(programs, "machine_code", lambda program, cc: compiled.append(program))
    empty.setattr(programs.subprocess, "Popen", None)
    if why == "no home":
        empty.setattr(programs, "folder", lambda: None)
    if why == "frozen":
        empty.setattr(programs.sys, "frozen", True, raising=False)
    wanted = SMALL[:2] if why == "few" else SMALL
    programs.compile_together([*wanted, *wanted], CC)
    assert sorted(p.name for p in compiled) == sorted(p.name for p in wanted)


def test_what_is_kept_is_not_compiled(empty):
    empty.setattr(programs, "kept", lambda program, cc: True)
    empty.setattr(programs, "machine_code", None)
    programs.compile_together(SMALL, CC)


def test_sums_are_warmed_up_without_a_launch(monkeypatch):
    together = []
    monkeypatch.setattr(
        reduce_cuda, "compile_together", lambda some, cc: together.append((some, cc))
    )
    monkeypatch.setattr(reduce_cuda, "compute_capability", lambda device: CC)
    monkeypatch.setattr(engine.CuPyEngine, "function", None)
    monkeypatch.setattr(type(BACKENDS["numba-cuda"]), "missing", lambda self: None)
    with counted_device() as cupy:
        X, Y = (cupy.asarray(np.ones((n, 4), "float32")) for n in (300, 200))
        K = gk.Gaussian(1.0)(X, Y, backend="numba-cuda")
        with cupy.counting() as count:
            dispatch.warm_up([(K, "product", 1), (K.T, "product", 1), (K, "value_and_gradient", 2)])
        assert (count.kernels, count.syncs) == (0, 0)
    ((some, cc),) = together
    names = {p.name for p in some}
    assert cc == CC
    assert "gaussian_product_dot_d4_t1_float32" in names
    assert "gaussian_value_and_gradient_difference_d4_t2_float32" in names
    assert {"measure_points_d4_float32", "add_product_float32"} <= names


def test_host_backends_have_nothing_to_warm_up():
    K = gk.Gaussian(1.0)(np.ones((30, 4), "float32"), backend="numpy")
    dispatch.warm_up([(K, "product", 1)])
