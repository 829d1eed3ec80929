"""The command line as in a container: no home, nothing to write but TMPDIR and the working folder, no passwd entry, few cores."""

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

import gpukoop

NOBODY = 54_321  # a user that no passwd file knows
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1  # of linux/prctl.h and linux/capability.h


# What a process starts with where the user cannot be changed: the passwd file does not know it.
UNKNOWN = """
import pwd, runpy, sys
def getpwuid(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = getpwuid
kind, what, *sys.argv[1:] = sys.argv[1:]
if kind == "-c":
    exec(compile(what, "<string>", "exec"))
else:
    runpy.run_module(what, run_name="__main__")
"""


@pytest.fixture
def box():
    """Yield a folder that another user may look into, with a copy of the package that nobody may write."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        package = root / "site" / "gpukoop"
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(Path(gpukoop.__file__).parent, package, ignore=ignored)
        for work in ("work", "tmp"):
            (root / work).mkdir()
        (root / "file").write_text("")
        for path in (root / "site", *(root / "site").rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        root.chmod(0o555)  # what stands beside TMPDIR cannot be written
        yield root
        for path in (root, root / "site", *(root / "site").rglob("*")):
            path.chmod(0o755)


@pytest.fixture
def run(box):
    """Return a function that runs a command of gpukoop in a container-like process."""
    if not hasattr(os, "geteuid"):
        pytest.skip("POSIX")
    cores = sorted(os.sched_getaffinity(0))[:2] if hasattr(os, "sched_getaffinity") else []
    work, temporary = box / "work", box / "tmp"
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(box / "site"),
        "HOME": str(box / "file" / "home"),  # below a file: even root cannot make it
        "TMPDIR": str(temporary),
        "GPUKOOP_BACKEND": "numba-cpu",
    }

    libc = ctypes.CDLL(None, use_errno=True)

    def begin():
        if cores:
            os.sched_setaffinity(0, cores)
        os.umask(0o077)
        if os.geteuid() == 0 and sys.platform == "linux":
            libc.prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)  # root, but permissions hold

    def nobody():
        begin()
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)

    def started(how, *arguments, home=True):
        env = environment if home else {k: v for k, v in environment.items() if k != "HOME"}
        return subprocess.run(
            [sys.executable, "-c", UNKNOWN, *arguments],
            cwd=work,
            env=env,
            preexec_fn=how,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    how = begin
    if os.geteuid() == 0:
        try:  # root may write into the package: another user, where it can read Python and the package
            os.chown(work, NOBODY, NOBODY)
            os.chown(temporary, NOBODY, NOBODY)
            if started(nobody, "-c", "import gpukoop").returncode == 0:
                how = nobody
        except (OSError, subprocess.SubprocessError):
            pass
        if how is begin:
            os.chown(work, 0, 0)
            os.chown(temporary, 0, 0)
    np.save(work / "X.npy", np.random.default_rng(0).normal(size=(200, 2)))
    (work / "X.npy").chmod(0o644)

    def command(*arguments, home=True):
        return started(how, *arguments, home=home)

    command.work = work
    return command


def test_the_box_is_closed(run, box):
    """Otherwise the other tests here show nothing."""
    code = (
        "import os, sys, gpukoop\n"
        "print(os.path.dirname(gpukoop.__file__))\n"
        "print(len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else 2)\n"
        "for name in sys.argv[1:]:\n"
        "    try: open(name, 'w')\n"
        "    except OSError as error: print(type(error).__name__)\n"
    )
    closed = [
        box / "neighbour",
        box / "site" / "x",
        box / "site" / "gpukoop" / "x",
        box / "file" / "home",
    ]
    done = run("-c", code, *map(str, closed))
    package, cores, *errors = done.stdout.split()
    assert Path(package) == box / "site" / "gpukoop", done.stderr
    assert int(cores) <= 2
    if os.geteuid() == 0 and "PermissionError" not in errors:
        pytest.skip("this root cannot lay down its rights, and no other user can read Python")
    assert errors == ["PermissionError"] * 3 + ["NotADirectoryError"]


@pytest.mark.slow
def test_samples_without_a_home(run):
    for method, backend in (("mmd", ()), ("wasserstein", ()), ("jko", ("--backend", "numba-cpu"))):
        out = run.work / f"{method}.npz"
        arguments = ("--particles", "50", "--steps", "2", "--data", "X.npy", "--out", out.name)
        done = run(
            "-m", "gpukoop.cli", "sample", method, *arguments, *backend, home=method != "mmd"
        )
        assert done.returncode == 0, done.stderr
        assert np.isfinite(np.load(out)["particles"]).all()
        assert "Traceback" not in done.stderr


def test_a_sum_and_the_information_without_a_home(run):
    code = (
        "import numpy as np, gpukoop as gk; X = np.load('X.npy'); "
        "print(float((gk.Gaussian(1.0)(X, backend='numba-cpu') @ np.ones(200)).sum()))"
    )
    done = run("-c", code, home=False)
    X = np.load(run.work / "X.npy")
    squared = ((X[:, None] - X[None]) ** 2).sum(axis=2)
    assert float(done.stdout) == pytest.approx(np.exp(-squared / 2).sum(), rel=1e-12), done.stderr
    info = run("-m", "gpukoop.cli", "info", home=False)
    assert info.returncode == 0, info.stderr
    assert "numba-cpu" in info.stdout
