"""cuFINUFFT without a GPU: a library that is missing is found by path or named, and plans work where CuPy works."""

import contextlib
import sys
import threading
import types

import numpy as np
import pytest

import gpukoop as gk
from gpukoop.kernels.fourier import devices, nufft
from gpukoop.kernels.operation import PRODUCT


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with an installed cufinufft that asks its loader for two libraries of CUDA 12."""
    loaded, wheels = [], tmp_path / "nvidia"
    present = types.SimpleNamespace(cufinufft=True, wheels=wheels, loaded=loaded)

    def spec(name):
        if name == "cufinufft":
            return present.cufinufft or None
        return types.SimpleNamespace(submodule_search_locations=[str(wheels)])

    def load(path):
        name = path.rpartition("/")[2]
        if name == path:
            raise OSError(f"{path}: cannot open shared object file")
        loaded.append(name)

    def module(name):
        if name == "cufinufft" and not {"libcudart.so.12", "libcufft.so.11"} <= set(loaded):
            raise ImportError("Could not find cufinufft library in system path")
        return types.ModuleType(name)

    monkeypatch.setattr(devices.importlib.util, "find_spec", spec)
    monkeypatch.setattr(devices.importlib, "import_module", module)
    monkeypatch.setattr(devices.ctypes, "CDLL", load)
    devices.library.cache_clear()
    yield present
    devices.library.cache_clear()


def put(wheels, *libraries):
    for folder, name in libraries:
        (wheels / folder / "lib").mkdir(parents=True)
        (wheels / folder / "lib" / name).touch()


def test_a_machine_without_it_is_told_what_to_install(machine):
    machine.cufinufft = False
    assert nufft.missing("cupy") == "cufinufft is not installed (pip install gpukoop[cuda13])"
    assert machine.loaded == []


def test_on_cuda_13_the_wheels_of_cuda_12_are_loaded_by_path_in_order(machine):
    put(machine.wheels, *devices.CUDA12)
    assert nufft.missing("cupy") is None
    assert machine.loaded == ["libnvJitLink.so.12", "libcudart.so.12", "libcufft.so.11"]


def test_where_it_loads_by_itself_nothing_is_loaded_before(machine, monkeypatch):
    monkeypatch.setattr(devices.importlib, "import_module", types.ModuleType)
    assert nufft.missing("cupy") is None
    assert machine.loaded == []


def test_else_the_libraries_that_are_missing_are_named(machine):
    put(machine.wheels, devices.CUDA12[1])
    assert nufft.missing("cupy") == (
        "cufinufft cannot be loaded: it needs libnvJitLink.so.12, libcufft.so.11 "
        "(pip install nvidia-cuda-runtime-cu12 nvidia-cufft-cu12, or gpukoop[cuda13])"
    )


class Device(contextlib.AbstractContextManager):
    """A device of CuPy's, by number; the current one is on top of the stack."""

    stack = [0]

    def __init__(self, number):
        self.number = number

    def __enter__(self):
        self.stack.append(self.number)

    def __exit__(self, *_):
        self.stack.pop()


class Angles(np.ndarray):
    """Coordinates on device 1."""

    device = Device(1)


@pytest.fixture
def cupy(monkeypatch):
    """A stand-in for CuPy with a current stream, and for cuFINUFFT: plans note where they were made."""
    plans = []

    class Plan:
        def __init__(self, kind, shape, columns, eps, sign, *, dtype, **options):
            plans.append(options | {"kind": kind})

        def setpts(self, *angles):
            self.device = Device.stack[-1]

        def execute(self, data):
            assert self.device == Device.stack[-1] == 1
            return data

    current = types.SimpleNamespace(ptr=7)
    cuda = types.SimpleNamespace(
        get_device_id=lambda: Device.stack[-1], get_current_stream=lambda: current
    )
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(devices, "library", lambda: types.SimpleNamespace(Plan=Plan))
    monkeypatch.setattr(nufft, "namespace", lambda a: object() if isinstance(a, Angles) else np)
    nufft.release()
    yield types.SimpleNamespace(plans=plans, current=current)
    nufft.release()


def test_a_plan_works_on_the_current_stream_of_the_points_device(cupy):
    cloud = nufft.Cloud([np.zeros(5).view(Angles)], 8, pieces=True)
    how = nufft.Setup((8,), 1e-5, "complex64", 2.0), 1, 1, cloud, slice(0, 5), 0
    for stream in (7, 7, 9, 7):
        cupy.current.ptr = stream
        with nufft._borrow(*how) as plan:
            plan.execute(None)
    # One plan a stream: a stream's plan is never lent to another, and is found again.
    assert [(p["gpu_device_id"], p["gpu_stream"]) for p in cupy.plans] == [(1, 7), (1, 9)]
    assert Device.stack == [0]


def test_on_the_host_a_plan_has_threads_and_no_stream(cupy, monkeypatch):
    finufft = pytest.importorskip("finufft")
    seen = []
    monkeypatch.setattr(finufft, "Plan", lambda *args, **options: seen.append(options))
    nufft._Plan(nufft.Setup((8,), 1e-5, "complex64", 2.0), 1, 1, 3, None)
    assert seen == [{"dtype": "complex64", "upsampfac": 2.0, "nthreads": 3}]


def test_sliced_sums_of_a_device_stay_in_the_callers_thread(monkeypatch):
    """CuPy's current stream belongs to a thread: another one would work on the null stream."""
    from gpukoop.kernels.fourier.sliced import sums

    class Space(types.ModuleType):
        def __getattr__(self, name):
            return getattr(np, name)

    threads = []

    def line(x, y, V, value, slope):
        threads.append(threading.get_ident())
        return [(np.zeros((len(x), 1)), None)]

    X = np.ones((4, 2))
    for space, own in ((Space("device"), True), (np, False)):
        threads.clear()
        monkeypatch.setattr(sums, "namespace", lambda _, space=space: space)
        monkeypatch.setattr(sums, "n_threads", lambda: 3)
        theta = np.eye(2)[[0, 1, 0, 1, 0, 1]]
        value = np.zeros((4, 1))
        sums._batch([lambda *a: line(*a)[0]], X, X, np.ones((4, 1)), theta, value, None)
        assert (set(threads) == {threading.get_ident()}) is own
        assert len(threads) == 6


def test_points_on_a_device_cost_the_rates_of_a_device(monkeypatch):
    """What a device takes decides there, for what is asked and for what is planned; the host's rates stay the host's."""
    from dataclasses import replace

    from device_counter import counted_device

    from gpukoop.kernels.fourier import cost
    from gpukoop.kernels.fourier.geometry import Geometry
    from gpukoop.kernels.fourier.reduce import seconds

    fast = cost.FourierRate(*(a / 16 for a in (2e-2, 2e-8, 3e-10, 6e-8, 3e-10)))
    monkeypatch.setattr(cost, "DEVICE_RATE", fast)
    X = np.random.default_rng(0).normal(size=(2_000, 2)).astype("float32")
    here = gk.Gaussian(1.0)(X, tol=1e-4).request(PRODUCT, 1)
    there = replace(here, device="cuda:0", library="cupy")
    assert seconds(there, ()) == pytest.approx(seconds(here, ()) / 16)
    with counted_device() as cupy:
        assert Geometry(cupy.asarray(X), cupy.asarray(X), ()).rate is fast
    assert Geometry(X, X, ()).rate is cost.RATE
