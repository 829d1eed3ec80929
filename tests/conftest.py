"""Options and fixtures of the whole suite."""

import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import gpukoop as gk
from gpukoop.backends import BACKENDS


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config, specs):
    # Workers have the cores already: BLAS threads of several that wait for each other cost twice the processor time.
    for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(name, "1")


def pytest_addoption(parser):
    parser.addoption(
        "--require",
        default="",
        metavar="BACKENDS",
        help="comma-separated backends that must run: a skip of one of them becomes a failure",
    )

    parser.addoption(
        "--part",
        default="0/1",
        metavar="K/N",
        help="run the K-th of N parts of what was chosen, by a digest of the names, so that N runs are everything once",
    )


def pytest_collection_modifyitems(config, items):
    part, parts = map(int, config.getoption("--part").split("/"))
    mine = [zlib.crc32(item.nodeid.encode()) % parts == part for item in items]
    config.hook.pytest_deselected(
        items=[i for i, is_mine in zip(items, mine, strict=True) if not is_mine]
    )
    items[:] = [i for i, is_mine in zip(items, mine, strict=True) if is_mine]


@pytest.fixture
def require(request):
    """Return a function that skips unless a backend runs here, in the backend's own words."""
    required = [name.strip() for name in request.config.getoption("--require").split(",")]

    def check(name):
        reason = gk.backends()[name]
        if reason is None:
            return
        if name in required:
            pytest.fail(f"--require {name}: {reason}", pytrace=False)
        pytest.skip(f"{name}: {reason}")

    return check


@pytest.fixture(scope="session")
def compiled_ahead():
    """Compile what most tests of a device need, one process a core: the tests themselves then wait for little."""
    cupy = pytest.importorskip("cupy")
    cc = divmod(int(cupy.cuda.Device(0).compute_capability), 10)
    parts = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    script = str(Path(__file__).with_name("compile_ahead.py"))
    running = [
        subprocess.Popen([sys.executable, script, *map(str, (part, parts, *cc))])
        for part in range(parts)
    ]
    failed = [part for part, process in enumerate(running) if process.wait()]
    assert not failed, f"parts {failed} of {parts} did not compile"


@pytest.fixture
def run_in_simulator(tmp_path):
    """Return a function that runs a program of this folder under Numba's CUDA simulator and fails with its complaints."""
    pytest.importorskip("numba")
    here = Path(__file__).parent

    def run(name):
        environment = os.environ | {
            "NUMBA_ENABLE_CUDASIM": "1",
            "GPUKOOP_CACHE_DIR": str(tmp_path),
            "PYTHONPATH": str(here),
        }
        done = subprocess.run(
            [sys.executable, "-W", "error", str(here / name)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.rstrip().endswith(" 0 failed")

    return run


def pytest_configure(config):
    unknown = set(config.getoption("--require").replace(" ", "").split(",")) - {"", *BACKENDS}
    if unknown:
        raise pytest.UsageError(
            f"--require: unknown backend {', '.join(sorted(unknown))}; known are {', '.join(BACKENDS)}"
        )
