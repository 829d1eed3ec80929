"""The device benches on a stand-in for CuPy: every row is made, errors are small, and nothing waits where it must not."""

import contextlib
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from device_counter import Stream, counted_device, counted_sums

sys.path.append(str(Path(__file__).parents[2]))

from bench import __main__ as bench
from bench import calibrate, cuda_device, cuda_runs, keops_cuda


class Event:
    """An event of the stand-in: it knows when it was recorded."""

    clock = 0.0

    def record(self):
        Event.clock += 1.0
        self.at = Event.clock

    def synchronize(self):
        assert self.at


class Capturing(Stream):
    """A stream that captures a call and replays it."""

    def begin_capture(self):
        self.capturing = True

    def end_capture(self):
        assert self.capturing
        return types.SimpleNamespace(launch=lambda: None)


@pytest.fixture
def cupy():
    with counted_device() as cupy, counted_sums():
        device = cupy.cuda.Device
        attributes = {
            "MultiProcessorCount": 132,
            "ClockRate": 1_980_000,
            "MemoryClockRate": 2_619_000,
        }
        device.attributes = attributes
        about = {"name": b"A card", "totalGlobalMem": 8 * 10**10}
        cupy.cuda.runtime = types.SimpleNamespace(
            getDeviceProperties=lambda _: about,
            driverGetVersion=lambda: 13000,
            runtimeGetVersion=lambda: 13000,
        )
        cupy.cuda.Event, cupy.cuda.Stream = Event, Capturing
        cupy.cuda.get_elapsed_time = lambda start, end: 1e3 * (end.at - start.at)
        cupy.get_default_memory_pool = lambda: types.SimpleNamespace(used_bytes=lambda: 0)
        yield cupy
        del device.attributes


@pytest.fixture
def without_keops(monkeypatch):
    monkeypatch.setattr(keops_cuda, "missing", lambda: "not here")


@pytest.mark.parametrize(
    "case", cuda_device.CASES, ids=lambda c: f"{c.op}-{c.n}-{c.m}-{c.d}-{c.precision}-{c.tol}"
)
def test_every_sum_has_a_row_with_three_times_and_an_error(case, cupy, without_keops, monkeypatch):
    monkeypatch.setattr(cuda_device, "DENSE", 10**6)
    monkeypatch.setattr(cuda_device, "CALLS", 2)
    row = cuda_device.row(cupy, case, smaller=1000)
    assert 400 <= row["n"] <= 1000
    assert row["error"] < (1e-3 if case.tol else 1e-4)
    assert row["kernel s"] == row["call s"] == 1.0
    assert row["host us"] > 0
    assert 1e-7 < row["Tp/s"] <= 1e-6
    known = case.dtype == "float32" and case.precision == "fp32" and case.tol is None
    assert (row["limit Tp/s"] is not None) is known


def test_the_limit_of_small_products_is_that_of_special_functions(cupy):
    two, one, wide = (
        cuda_device.Case("product", 9, m, d) for m, d in ((9, 3), (None, 3), (9, 100))
    )
    rate = 132 * 1.98e9 / 1e12
    assert cuda_device.limit(cupy, two) == pytest.approx(16 * rate)
    assert cuda_device.limit(cupy, one) == pytest.approx(32 * rate)
    assert cuda_device.limit(cupy, wide) == pytest.approx(128 / 103 * rate)


def test_a_call_that_cannot_be_captured_has_no_kernel_time(cupy, monkeypatch):
    def refuse(self):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(Capturing, "end_capture", refuse)
    assert cuda_device.replayed_seconds(cupy, lambda: None) is None


@pytest.mark.parametrize(
    ("op", "widths"),
    [("product", [2]), ("gradient", [3]), ("value_and_gradient", [2, 3]), ("logsumexp", [2])],
)
def test_keops_kernels_are_launched_as_its_binder_does(op, widths, cupy, monkeypatch):
    launched = []

    class Module:
        def load(self, code):
            assert code == b"ptx\0"

        def get_function(self, name):
            return lambda *how: launched.append((name, *how))

    cupy.cuda.function = types.SimpleNamespace(Module=Module)
    monkeypatch.setattr(keops_cuda, "missing", lambda: None)
    monkeypatch.setattr(keops_cuda, "sources", lambda wanted: ["text"] * len(wanted))
    monkeypatch.setattr(keops_cuda, "compile_ptx", lambda text, arch: "ptx")
    monkeypatch.setattr(
        type(cupy.asarray(np.ones(1))), "data", types.SimpleNamespace(ptr=64), raising=False
    )
    t = 1 if op == "logsumexp" else 2
    X, Y, V = (cupy.asarray(np.ones(s, "float32")) for s in ((1000, 3), (500, 3), (500, t)))
    run = keops_cuda.launches(cupy, "Gaussian", op, X, Y, V, 1.0)
    outs = run()
    assert [out.shape for out in outs] == [(1000, w) for w in widths]
    for name, grid, block, (n, m, out, places), shared in launched:
        assert (name, grid, block) == ("GpuConv1DOnDevice", (6, 1, 1), (192, 1, 1))
        assert (n, m, shared) == (1000, 500, 192 * (3 + t) * 4)
        assert len(places) in (4, 5)
        assert out.dtype == "float32"
    assert keops_cuda.launches(cupy, "Matern32", op, X, Y, V, 1.0) is None


RUNS = {
    "kswgd": lambda cupy: cuda_runs.kswgd(cupy, 300),
    "mmd": lambda cupy: cuda_runs.flow(cupy, "MMD", cuda_runs.gk.MMDFlow(random_state=0), 150, 3),
    "sliced": lambda cupy: cuda_runs.flow(
        cupy,
        "sliced",
        cuda_runs.gk.WassersteinFlow("sliced", n_projections=6, random_state=0),
        150,
        3,
    ),
    "sinkhorn": lambda cupy: cuda_runs.flow(
        cupy, "Sinkhorn", cuda_runs.gk.WassersteinFlow("sinkhorn", random_state=0), 100, 2
    ),
    "jko": lambda cupy: cuda_runs.jko(cupy, "chi2", 60),
    "koopman": lambda cupy: cuda_runs.koopman(cupy, 400),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_every_whole_run_has_a_row(name, cupy, monkeypatch):
    monkeypatch.setattr(cuda_runs, "STEPS", 1)
    with contextlib.suppress(UserWarning):
        row = RUNS[name](cupy)
    assert list(row) == [
        "run",
        "samples",
        "particles",
        "first fit s",
        "fit s",
        "first flow s",
        "step ms",
    ]
    assert all(row[k] > 0 for k in list(row)[1:6])


def test_without_a_device_the_tables_say_why():
    for table in (cuda_device, cuda_runs):
        (row,) = table.rows(True)
        assert "pip install gpukoop[cuda13]" in row["why"] or "CUDA device" in row["why"]


def test_a_record_names_the_card_its_clocks_and_the_versions(cupy, tmp_path, monkeypatch):
    monkeypatch.setattr(
        bench,
        "_table_of_its_own",
        lambda name, quick: {"title": name, "rows": [{"a": 1}], "seconds": 0.0},
    )
    path = tmp_path / "record.json"
    assert bench.run(device="cuda", quick=True, out=path, quiet=True) == 0
    record = json.loads(path.read_text())
    assert list(record["tables"]) == list(bench.CUDA_TABLES)
    assert record["machine"]["card"] == "A card"
    assert record["machine"]["clock MHz"] == "1980 at most, memory 2619"
    for key in ("date", "commit", "driver", "cupy", "numba-cuda", "clocks under way", "numpy"):
        assert record["machine"][key]


def test_copies_are_measured_and_written_where_they_are_used(cupy):
    """The lane of a device: the number goes into the table that dispatch reads, with its card and date, and nothing else changes."""
    rate = calibrate.copy_rate(2**12)
    assert 0 < rate < np.inf
    before = calibrate.TABLE.read_text()
    after = calibrate.with_copy_rate(before, 2.5e10, "A card, 2026-11-28")
    changed = [
        pair
        for pair in zip(before.splitlines(), after.splitlines(), strict=True)
        if len(set(pair)) > 1
    ]
    assert [new for _, new in changed] == [
        "# Host to device and back, bytes a second; measured: A card, 2026-11-28.",
        "COPY_RATE = 2.5e+10",
    ]
    rates = calibrate.DEVICE.read_text()
    found = calibrate.rewritten(rates, calibrate.Rates(1e12, 2e12), "A card, 2026-11-28")
    assert "RATES = Rates(apart=1e+12, once=2e+12)" in found
    fourier = calibrate.FOURIER.read_text()
    rate = calibrate.FourierRate(1e-3, 2e-10, 3e-11, 4e-10, 5e-13, 3.0)
    after = calibrate.with_device_fourier(fourier, rate, "A card, 2026-11-28")
    pairs = zip(fourier.splitlines(), after.splitlines(), strict=True)
    assert [new for old, new in pairs if old != new] == [
        "# Of a device, measured: A card, 2026-11-28. Rewritten by bench/calibrate.py --device cuda.",
        "DEVICE_RATE = FourierRate(start=0.001, point=2e-10, cell=3e-11, mode=4e-10, pair=5e-13, float64=3)",
    ]
    assert "A card, 2026-11-28" in found
    assert len(found.splitlines()) == len(rates.splitlines())
