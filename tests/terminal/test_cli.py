"""The command line: files whole or not at all, errors in one line, exit status 2."""

import json
import subprocess
import sys
import warnings

import numpy as np
import pytest

from gpukoop.cli import main, parser

SAMPLE = ["--particles", "40", "--components", "4", "--steps", "5", "--seed", "1", "--quiet"]


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "X.npy"
    np.save(path, rng.standard_normal((300, 2)))
    return path


def sample(data, tmp_path, *more, method="kswgd"):
    return main(
        ["sample", method, "--data", str(data), "--out", str(tmp_path / "Z.npz"), *SAMPLE, *more]
    )


def test_sample_writes_particles_and_figure(data, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert sample(data, tmp_path, "--figure", str(tmp_path / "F.png")) == 0
    with np.load(tmp_path / "Z.npz") as stored:
        assert stored["particles"].shape == (40, 2)
    assert (tmp_path / "F.png").read_bytes().startswith(b"\x89PNG")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == ""


def test_sample_is_repeatable(data, tmp_path):
    ends = []
    for _ in range(2):
        assert sample(data, tmp_path) == 0
        with np.load(tmp_path / "Z.npz") as stored:
            ends.append(stored["particles"])
    assert (ends[0] == ends[1]).all()


def test_lag_and_successors_agree(data, tmp_path):
    X = np.load(data)
    Y = tmp_path / "Y.npy"
    np.save(data, X[:-2])
    np.save(Y, X[2:])
    assert sample(data, tmp_path, "--successors", str(Y)) == 0
    with np.load(tmp_path / "Z.npz") as stored:
        by_file = stored["particles"]
    np.save(data, X)
    assert sample(data, tmp_path, "--lag", "2") == 0
    with np.load(tmp_path / "Z.npz") as stored:
        assert (stored["particles"] == by_file).all()


def spoil(name):
    good = np.random.default_rng(0).standard_normal((300, 2))

    def write(path):
        if name == "missing":
            path.unlink()
        elif name == "text":
            path.write_text("1 2\n3 4\n")
        elif name == "truncated":
            path.write_bytes(path.read_bytes()[:200])
        elif name == "header":
            path.write_bytes(b"\x93NUMPY\x01\x00\xff\xff{}")
        elif name == "folder":
            path.unlink()
            path.mkdir()
        elif name in ("huge", "vast"):
            shape = {"huge": 10**12, "vast": 10**22}[name]
            header = (
                f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({shape}, 2), }}\n".encode()
            )
            path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
        elif name == "nested":
            path.write_bytes(b"\x93NUMPY\x01\x00" + (9000).to_bytes(2, "little") + b"[" * 9000)
        elif name == "zip":
            np.savez(path.with_suffix(".npz"), X=good, Y=good)
            path.write_bytes(path.with_suffix(".npz").read_bytes())
        else:
            np.save(
                path,
                {
                    "nan": np.where(np.arange(600).reshape(300, 2) == 5, np.nan, good),
                    "line": good[:, 0],
                    "objects": good.astype(object),
                    "strings": good.astype(str),
                    "empty": good[:0],
                    "constant": np.ones((300, 2)),
                }[name],
                allow_pickle=True,
            )

    return write


@pytest.mark.parametrize(
    "name",
    [
        "missing",
        "text",
        "truncated",
        "header",
        "folder",
        "huge",
        "vast",
        "nested",
        "zip",
        "nan",
        "line",
        "objects",
        "strings",
        "empty",
        "constant",
    ],
)
def test_bad_data_is_one_line_and_leaves_no_file(name, data, tmp_path, capsys):
    spoil(name)(data)
    assert sample(data, tmp_path) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.strip().splitlines()) == 1
    assert captured.err.startswith("gpukoop: ")
    if name != "constant":
        assert "X.npy" in captured.err
    assert not [p for p in tmp_path.iterdir() if p.name.startswith((".", "Z"))]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--lag", "300"], "leaves no pair"),
        (["--lag", "1", "--successors", "Y.npy"], "exclude each other"),
        (["--successors", "nowhere.npy"], "no such file"),
        (["--out", "Z.txt"], "ends in .npz or .npy or .csv or .parquet"),
        (["--out", "no/folder/Z.npz"], "does not exist"),
        (["--backend", "cuda"], "unknown backend"),
        (["--scale", "-1"], "scale"),
        (["--tol", "2"], "tol"),
        (["--components", "300"], "n_components"),
    ],
)
def test_bad_options(data, tmp_path, capsys, more, words):
    assert sample(data, tmp_path, *more) == 2
    err = capsys.readouterr().err
    assert words in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["dance"],
        ["sample", "kswgd"],
        ["demo", "--particles", "0"],
        ["demo", "--method", "none"],
        ["demo", "--particles", "²"],
        ["demo", "--seed", "-1"],
    ],
)
def test_bad_command_lines_end_with_status_two(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_unusable_backend_says_why(data, tmp_path, capsys):
    from gpukoop import backends

    reason = backends()["numba-cuda"]
    if reason is None:
        pytest.skip("this machine has a CUDA device")
    assert sample(data, tmp_path, "--backend", "numba-cuda") == 2
    assert reason.split(":")[0] in capsys.readouterr().err


def test_demo_writes_everything(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "demo"
    assert main(["demo", "--particles", "300", "--out", str(out)]) == 0
    assert {p.name for p in out.iterdir()} == {
        "figure.png",
        "metrics.json",
        "metrics.txt",
        "particles.npz",
    }
    with np.load(out / "particles.npz") as stored:
        assert stored["particles"].shape == (300, 2)
        assert np.isfinite(stored["particles"]).all()
    record = json.loads((out / "metrics.json").read_text())
    rows = {row["name"].split(" ")[0]: row for row in record["rows"]}
    assert rows["coverage"]["exact"] == pytest.approx(38.07, abs=0.01)
    assert rows["mean"]["exact"] == pytest.approx(0.8345, abs=1e-4)
    # One trajectory of 1,000 time units knows the weights of the wells to a few percent only.
    assert abs(rows["mean"]["particles"] - 0.8345) < 0.15
    assert rows["MMD"]["iid"][0] > 0
    text = (out / "metrics.txt").read_text()
    assert "iid floor" in text
    assert text.strip() in capsys.readouterr().out


def test_demo_refuses_a_file_as_folder(tmp_path, capsys):
    path = tmp_path / "file"
    path.write_text("")
    assert main(["demo", "--out", str(path)]) == 2
    assert "expected a folder" in capsys.readouterr().err


def test_info_lists_every_backend(capsys):
    from gpukoop import backends

    assert main(["info"]) == 0
    out = capsys.readouterr().out
    for name, reason in backends().items():
        assert name in out
        assert (reason or "usable") in out


def test_installed_command_runs():
    done = subprocess.run(
        [sys.executable, "-m", "gpukoop.cli", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("gpukoop ")


@pytest.mark.filterwarnings("default")
def test_quiet_and_warnings_are_one_line(data, tmp_path, capfd):
    assert sample(data, tmp_path, "--quiet") == 0
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
    assert sample(data, tmp_path, "--components", "250", "--quiet") == 0
    warned = capfd.readouterr().err.splitlines()
    assert len(warned) == 1
    assert warned[0].startswith("gpukoop: warning: ")
    assert warnings.showwarning is not parser.show_warning
