"""KeOps' files on disk: a process killed while writing them must not break the next one."""

import os
import pickle
import subprocess
import sys

import pytest

from gpukoop.kernels.keops import files
from gpukoop.kernels.keops.files import delete_cut_files

ONE_PRODUCT = """
import numpy as np
import gpukoop as gk
X = np.arange(6, dtype=np.float32).reshape(3, 2)
K = gk.KernelOperator(gk.Gaussian(2.0), X, backend="keops")
print(*(K @ np.ones(3, np.float32)))
"""


def run(cache):
    env = os.environ | {"KEOPS_CACHE_FOLDER": str(cache)}
    return subprocess.run(
        [sys.executable, "-c", ONE_PRODUCT], env=env, capture_output=True, text=True, timeout=300
    )


def test_only_cut_files_are_deleted(tmp_path):
    build = tmp_path / "Linux"
    build.mkdir()
    whole = pickle.dumps({"formula": list(range(100))})
    (build / "whole_cache.pkl").write_bytes(whole)
    (build / "cut_cache.pkl").write_bytes(whole[:-20])
    (build / "empty_cache.pkl").touch()
    (build / "empty.so").touch()
    (build / "header.so").write_bytes(b"\x7fELF\x02")
    (build / "elsewhere.so").write_bytes(b"another format")
    deleted = delete_cut_files(tmp_path)
    assert {p.name for p in deleted} == {
        "cut_cache.pkl",
        "empty_cache.pkl",
        "empty.so",
        "header.so",
    }
    assert {p.name for p in build.iterdir()} == {"whole_cache.pkl", "elsewhere.so"}


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="owners of files are POSIX")
def test_the_lock_is_in_a_folder_of_ones_own_and_no_link(tmp_path, monkeypatch):
    monkeypatch.setenv("KEOPS_CACHE_FOLDER", str(tmp_path / "keops"))
    with files._alone("a formula"):
        lock = tmp_path / "keops" / files.LOCK
        assert lock.stat().st_mode & 0o077 == 0
        code = (
            "import fcntl, os, sys, zlib\n"
            "f = os.open(sys.argv[1], os.O_RDWR)\n"
            "try: fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, zlib.crc32(sys.argv[2].encode()))\n"
            "except OSError: print('held')\n"
        )
        for what, found in (("a formula", "held"), ("another", "")):
            done = subprocess.run(
                [sys.executable, "-c", code, str(lock), what], capture_output=True, text=True
            )
            assert done.stdout.strip() == found, done.stderr
    victim = tmp_path / "victim"
    victim.write_text("precious")
    lock.unlink()
    for trap in (lock.symlink_to, lock.hardlink_to):
        trap(victim)
        assert files._lock_file() is None
        with files._alone("a formula"):
            pass
        assert victim.read_text() == "precious"
        lock.unlink()
    os.mkfifo(lock)
    assert files._lock_file() is None
    monkeypatch.setenv("KEOPS_CACHE_FOLDER", str(victim / "below a file"))
    assert files._lock_file() is None


@pytest.mark.slow
def test_a_killed_process_does_not_break_the_next_one(require, tmp_path):
    require("keops")
    first = run(tmp_path)
    assert first.returncode == 0, first.stderr
    lists = sorted(tmp_path.glob("*/*_cache.pkl"))
    libraries = sorted(tmp_path.glob("*/pykeops_cpp_*.so"))
    assert lists
    assert libraries
    lists[0].write_bytes(b"")  # as left by a process killed between open() and write()
    libraries[0].write_bytes(libraries[0].read_bytes()[:1000])  # and by a killed linker
    second = run(tmp_path)
    assert second.returncode == 0, second.stderr
    assert second.stdout == first.stdout
