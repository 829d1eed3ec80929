"""The command line when things go wrong: the last resort, streams that close, targets that cannot be written (issue 12)."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

import gpukoop as gk
from gpukoop.cli import main, recipes

POSIX = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX files")


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "X.npy"
    np.save(path, np.random.default_rng(0).standard_normal((60, 2)))
    return path


@pytest.fixture(autouse=True)
def _sums_that_compile_nothing():
    with gk.use_backend("numpy"):
        yield


def sample(data, out, *more, method="mmd"):
    arguments = ["--data", str(data), "--out", str(out), "--particles", "20"]
    steps = [] if method == "koopman" else ["--steps", "2"]
    return main(["sample", method, *arguments, *steps, *more])


@pytest.mark.parametrize("error", ["key", "index", "assertion", "foreign value"])
def test_the_last_resort_is_one_line_with_the_log(data, tmp_path, capsys, monkeypatch, error):
    def fit(X):
        if error == "key":
            {}["a key of nobody"]
        if error == "index":
            [][3]
        if error == "assertion":
            raise AssertionError
        np.ones(3) @ np.ones(4)

    monkeypatch.setattr(
        recipes, "estimator", lambda *_: type("Flow", (), {"fit": staticmethod(fit)})
    )
    assert sample(data, tmp_path / "Z.npz") == 2
    err = capsys.readouterr().err
    assert len(err.strip().splitlines()) == 1
    assert "gpukoop sample failed: " in err
    assert "--debug" in err
    assert "Traceback" not in err
    log = re.search(r"log: (\S+\.log)", err).group(1)
    with open(log) as file:
        text = file.read()
    os.unlink(log)
    assert "gpukoop sample" in text
    assert "Traceback (most recent call last)" in text
    assert not (tmp_path / "Z.npz").exists()
    # asked for, the traceback comes to the terminal, and no log is written
    assert sample(data, tmp_path / "Z.npz", "--debug") == 2
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert ".log" not in err


def test_errors_of_ours_need_no_log(data, tmp_path, capsys):
    np.save(data, np.full((5, 2), np.nan))
    assert sample(data, tmp_path / "Z.npz") == 2
    err = capsys.readouterr().err
    assert len(err.strip().splitlines()) == 1
    assert ".log" not in err
    assert "failed" not in err
    assert sample(data, tmp_path / "Z.npz", "--debug") == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err


@POSIX
def test_the_target_is_checked_before_any_work(data, tmp_path, capsys, monkeypatch):
    def never(*_):
        raise AssertionError("work began before the target was checked")

    monkeypatch.setattr(recipes, "estimator", never)
    locked = tmp_path / "locked"
    locked.mkdir()
    (tmp_path / "folder.npz").mkdir()
    os.mkfifo(tmp_path / "fifo.npz")
    (tmp_path / "old.npz").touch()
    closed = {locked, tmp_path / "old.npz"}
    access = os.access
    monkeypatch.setattr(os, "access", lambda p, mode: p not in closed and access(p, mode))
    for out, words in {
        tmp_path / "nowhere" / "Z.npz": "does not exist",
        tmp_path / "folder.npz": "is a folder",
        tmp_path / "fifo.npz": "ordinary",
        tmp_path / "Z.txt": "ends in .npz",
        locked / "Z.npz": "cannot be written",
        tmp_path / "old.npz": "cannot be written",
    }.items():
        assert sample(data, out) == 2
        err = capsys.readouterr().err
        assert words in err
        assert len(err.strip().splitlines()) == 1


def test_trailing_bytes_are_refused(data, tmp_path, capsys):
    with open(data, "ab") as file:
        file.write(b"\0")
    assert sample(data, tmp_path / "Z.npz") == 2
    assert "more in the file" in capsys.readouterr().err


# Twenty particles that miss the other rows by so much are told of: surviving does not mean silence.
@pytest.mark.filterwarnings("ignore:KSWGD ended off the law")
@pytest.mark.parametrize("size", [1e300, -1e308, 1e160])
@pytest.mark.parametrize("method", ["kswgd", "mmd", "wasserstein", "jko", "koopman"])
def test_a_row_far_out_is_refused_in_words_or_survived(data, tmp_path, capsys, method, size):
    X = np.load(data)
    X[7, 1] = size
    np.save(data, X)
    more = ["--components", "3"] if method == "kswgd" else []
    status = sample(data, tmp_path / "Z.npz", *more, method=method)
    err = capsys.readouterr().err
    assert "Traceback" not in err
    if status == 0:
        with np.load(tmp_path / "Z.npz") as stored:
            assert np.isfinite(stored["particles"]).all()
    else:
        assert status == 2
        assert not re.search(r"\.log|belongs to|takes no", err), err
        assert re.search(r"range|apart|1e|large|scale", err), err
        assert len([line for line in err.splitlines() if "warning" not in line]) == 1


def command(*arguments, **streams):
    code = [sys.executable, "-m", "gpukoop.cli", *arguments]
    return subprocess.run(
        code, stderr=subprocess.PIPE, text=True, timeout=120, check=False, **streams
    )


@POSIX
def test_a_reader_that_leaves_is_no_failure():
    reader, writer = os.pipe()
    os.close(reader)  # as after ``| head -1``
    with os.fdopen(writer, "w") as gone:
        done = command("info", stdout=gone)
    assert done.stderr == ""
    assert done.returncode == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_terminal_does_not_undo_the_work(data, tmp_path):
    out = tmp_path / "Z.npz"
    arguments = ["--data", str(data), "--out", str(out), "--particles", "20", "--steps", "2"]
    with open("/dev/full", "w") as full:
        done = command("sample", "mmd", *arguments, stdout=full)
    assert "Traceback" not in done.stderr
    assert done.returncode == 0, done.stderr
    with np.load(out) as stored:
        assert stored["particles"].shape == (20, 2)


def test_no_file_is_read_and_written_at_once(data, tmp_path, capsys):
    before = data.read_bytes()
    for more, words in (
        ((data,), "--out and --data are one file"),
        ((tmp_path / "z.npz", "--checkpoint", str(data)), "--checkpoint and --data are one file"),
        ((tmp_path / "z.npz", "--checkpoint", str(tmp_path / "z.npz")), "one file"),
        ((tmp_path / "z.npz", "--checkpoint", str(tmp_path / "none" / "c")), "does not exist"),
        ((tmp_path / "z.npz", "--checkpoint", str(tmp_path)), "is a folder"),
    ):
        assert sample(data, *more) == 2
        assert words in capsys.readouterr().err
    assert data.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [data.name]


@POSIX
def test_a_folder_that_cannot_be_made_is_told_before_the_work(tmp_path, capsys, monkeypatch):
    from gpukoop.cli import demo

    monkeypatch.setattr(demo, "DEMOS", {})
    for out in ("/proc/none/such", str(tmp_path / "file" / "below")):
        (tmp_path / "file").write_text("")
        assert main(["demo", "--out", out]) == 2
        assert "cannot be made or written" in capsys.readouterr().err


@POSIX
@pytest.mark.parametrize("stream", ["closed", "ascii", "name"])
def test_what_cannot_be_printed_does_not_undo_the_work(data, tmp_path, stream):
    """Standard output that is closed or lacks a letter, and a name of a file that is no text."""
    name = {"ascii": "é.npz".encode(), "name": b"z\xff.npz"}.get(stream, b"z.npz")
    out = os.fsencode(tmp_path) + b"/" + name
    command = [
        sys.executable,
        "-m",
        "gpukoop.cli",
        "sample",
        "mmd",
        "--steps",
        "2",
        "--particles",
        "5",
    ]
    done = subprocess.run(
        [*command, "--data", data, "--out", out],
        env={**os.environ, **({"PYTHONIOENCODING": "ascii"} if stream == "ascii" else {})},
        preexec_fn=(lambda: os.close(1)) if stream == "closed" else None,
        stderr=subprocess.PIPE,
        stdout=None if stream == "closed" else subprocess.PIPE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert os.path.exists(out)
    assert b"Error" not in done.stderr
