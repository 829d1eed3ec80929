"""Compiled code on disk: flipped bits, strangers' folders, links, homes that are missing or cannot be written."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from gpukoop.kernels import compiled

pytest.importorskip("numba")
POSIX = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="owners of files are POSIX")


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("GPUKOOP_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_is_kept_is_read(home):
    assert compiled.read("cpu", "a") is None
    assert compiled.keep("cpu", "a", b"payload")
    assert compiled.read("cpu", "a") == b"payload"
    assert [path.name for path in (home / "cpu").iterdir()] == ["a"]
    assert (home / "cpu").stat().st_mode & 0o077 == 0


def test_every_flipped_bit_and_every_cut_is_seen(home):
    whole = bytes(range(40))
    for change in range(72 * 8):
        compiled.keep("cpu", "a", whole)
        path = home / "cpu" / "a"
        data = bytearray(path.read_bytes())
        data[change // 8] ^= 1 << change % 8
        path.write_bytes(data)
        assert compiled.read("cpu", "a") is None
        assert not path.exists()
    for length in range(72):
        compiled.keep("cpu", "a", whole)
        os.truncate(home / "cpu" / "a", length)
        assert compiled.read("cpu", "a") is None


@POSIX
def test_what_others_may_write_is_left_alone(home, caplog):
    compiled.keep("cpu", "a", b"payload")
    (home / "cpu" / "a").chmod(0o666)
    assert compiled.read("cpu", "a") is None
    compiled.keep("cpu", "a", b"payload")
    (home / "cpu").chmod(0o777)
    assert compiled.read("cpu", "a") is None
    assert not compiled.keep("cpu", "b", b"payload")
    assert "others may write there" in caplog.text


@POSIX
def test_links_and_fifos_are_not_followed(home, tmp_path):
    compiled.keep("cpu", "a", b"payload")
    (home / "cpu" / "link").symlink_to(home / "cpu" / "a")
    assert compiled.read("cpu", "link") is None
    os.mkfifo(home / "cpu" / "fifo")
    assert compiled.read("cpu", "fifo") is None
    (home / "cuda").symlink_to(home / "cpu")
    assert compiled.read("cuda", "a") is None
    assert not compiled.keep("cuda", "a", b"other")
    assert compiled.read("cpu", "a") == b"payload"


def test_without_a_home_nothing_is_kept(monkeypatch):
    for name in ("GPUKOOP_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)

    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(compiled.Path, "home", nobody)
    assert compiled.folder() is None
    assert compiled.read("cpu", "a") is None
    assert not compiled.keep("cpu", "a", b"payload")
    monkeypatch.setenv("GPUKOOP_CACHE_DIR", "~nobody-of-that-name/cache")
    monkeypatch.setattr(compiled.Path, "expanduser", lambda self: nobody())
    assert compiled.folder() is None


def test_a_folder_in_the_place_of_a_file_is_nothing(home):
    compiled.keep("cpu", "a", b"payload")
    (home / "cpu" / "b").mkdir()
    assert compiled.read("cpu", "b") is None
    assert not compiled.keep("cpu", "b", b"payload")


FLIPS = textwrap.dedent(
    """
    import sys
    import numpy as np
    from gpukoop.kernels.cpu import module
    from gpukoop.kernels import compiled
    text = sys.argv[1]
    path = next((compiled.folder() / "cpu").iterdir())
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for bit in rng.integers(8 * len(whole), size=200):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << int(bit % 8)
        path.write_bytes(data)
        scope = module.compiled._load.__wrapped__(text, "cpu", module._fingerprint())
        assert scope.run(3.0) == 12.0
        assert sum(scope.run.stats.cache_misses.values()) == 1
        assert path.read_bytes()[:32] == __import__("hashlib").sha256(path.read_bytes()[32:]).digest()
    print("200 flips, 0 wrong")
    """
)
FOURFOLD = "from gpukoop.kernels.cpu.module import jit\n@jit('float64(float64)')\ndef run(x):\n    return 4.0 * x\n"


def run(code, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.slow
def test_flipped_bits_of_machine_code_never_run(home):
    from gpukoop.kernels.cpu import module

    assert module.load(FOURFOLD)(3.0) == 12.0
    done = run(FLIPS, FOURFOLD)
    assert done.returncode == 0, done.stderr
    assert "200 flips, 0 wrong" in done.stdout


FORK = textwrap.dedent(
    """
    import os, sys, threading, time
    import numpy as np
    import gpukoop as gk
    X = np.random.default_rng(0).normal(size=(50, 3))
    def work():
        for d in (2, 3):
            gk.Gaussian(1.0)(X[:, :d], backend="numba-cpu") @ np.ones(50)
    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(float(sys.argv[1]))
    child = os.fork()
    if child == 0:
        out = gk.Matern32(1.0)(X, backend="numba-cpu") @ np.ones(50)
        os._exit(0 if np.isfinite(out).all() else 1)
    print(os.waitpid(child, 0)[1])
    thread.join()
    """
)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("delay", ["0.6"])
def test_fork_while_a_thread_compiles(tmp_path, delay):
    done = run(FORK, delay, GPUKOOP_CACHE_DIR=str(tmp_path))
    assert done.stdout.split() == ["0"], done.stderr


@pytest.mark.parametrize("threads", ["0", "-2", " 0 "])
def test_no_threads_are_refused_in_words(threads):
    code = """
import numpy as np, gpukoop as gk
X = np.zeros((5, 2))
try:
    gk.Gaussian(1.0)(X, backend="numba-cpu") @ np.ones(5)
except ValueError as error:
    print(error)
"""
    done = run(code, NUMBA_NUM_THREADS=threads)
    assert f"NUMBA_NUM_THREADS is {threads.strip()}, expected 1 or more" in done.stdout, done.stderr


@pytest.mark.slow
def test_loops_of_the_package_are_kept_in_the_cache(home):
    code = textwrap.dedent(
        """
        import numpy as np, gpukoop as gk
        X = np.random.default_rng(0).normal(size=(300, 2))
        flow = gk.WassersteinFlow("sliced", n_iter=1, random_state=0).fit(X)
        print(float(flow.transport(X + 1.0).sum()))
        """
    )
    first = run(code)
    assert first.returncode == 0, first.stderr
    kept = {p: p.stat().st_mtime_ns for p in (home / "cpu").iterdir()}
    assert kept
    assert run(code).stdout == first.stdout
    assert {p: p.stat().st_mtime_ns for p in (home / "cpu").iterdir()} == kept
    assert np.isfinite(float(first.stdout))
