"""The command line as in a container: nobody's home, a package that cannot be written, no passwd entry, few cores of many."""

import os
import subprocess
import sys

import numpy as np
import pytest

NOBODY = 54_321  # a user that no passwd file knows


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
def run(tmp_path):
    """Return a function that runs a command of gpukoop in a container-like process."""
    if not hasattr(os, "geteuid"):
        pytest.skip("POSIX")
    cores = sorted(os.sched_getaffinity(0))[:2] if hasattr(os, "sched_getaffinity") else []
    work, temporary = (tmp_path / name for name in ("work", "tmp"))
    for folder in (work, temporary):
        folder.mkdir()
    (tmp_path / "file").write_text("")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path / "file" / "home"),  # below a file: even root cannot make it
        "TMPDIR": str(temporary),
        "GPUKOOP_BACKEND": "numba-cpu",
    }

    def begin():
        if cores:
            os.sched_setaffinity(0, cores)
        os.umask(0o077)

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
        except OSError:
            pass
    np.save(work / "X.npy", np.random.default_rng(0).normal(size=(200, 2)))
    (work / "X.npy").chmod(0o644)

    def command(*arguments, home=True):
        return started(how, *arguments, home=home)

    command.work = work
    return command


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
