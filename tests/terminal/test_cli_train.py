"""``gpukoop train``: the folder it writes, Ctrl-C that keeps what was trained, the run that goes on, and samples of the model."""

import json
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from gpukoop import plot
from gpukoop.cli import main
from gpukoop.cli.training import made

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

WRITTEN = {"checkpoint.pt", "metrics.json", "model.pt", "samples.png", "training.png"}
FEW = ["--batch", "32", "--latent", "4", "--seed", "3", "--quiet"]


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    kind = np.arange(600) % 2
    X = rng.integers(0, 60, (600, 8, 8), dtype=np.uint8)
    X[kind == 0, 2:4] += 180
    X[kind == 1, :, 5:7] += 180
    path = tmp_path / "pictures.npz"
    np.savez(path, images=X, labels=np.array(["lies", "stands"])[kind])
    return path


def train(data, out, *more, objective="energy", steps=4):
    given = ["--data", str(data), "--out", str(out), "--objective", objective]
    return main(["train", *given, "--steps", str(steps), *FEW, *more])


@pytest.mark.slow
def test_train_writes_a_folder_and_sample_reads_it(data, tmp_path, capsys):
    out = tmp_path / "run"
    assert train(data, out) == 0
    assert {p.name for p in out.iterdir()} == WRITTEN
    assert all(
        (out / n).read_bytes().startswith(b"\x89PNG") for n in ("samples.png", "training.png")
    )
    facts = json.loads((out / "metrics.json").read_text())
    assert facts["steps"] == facts["steps_asked"] == 4
    assert facts["conditional"]
    assert facts["distance"] > 1
    # 4 steps do not make a generator: far from real images, which are as near as their number allows
    assert facts["convolutions"]["frechet"] > 2 * facts["convolutions"]["frechet_real"] > 0
    assert (
        facts["convolutions"]["kernel_distance"]
        > 3 * facts["convolutions"]["kernel_distance_error"]
    )
    Z, F = tmp_path / "Z.npz", tmp_path / "F.png"
    given = ["sample", "--model", str(out), "--particles", "6", "--quiet"]
    assert main([*given, "--out", str(Z), "--figure", str(F), "--label", "lies"]) == 0
    with np.load(Z) as stored:
        lying = stored["particles"]
    assert lying.shape == (6, 8, 8)
    assert F.read_bytes().startswith(b"\x89PNG")
    assert main([*given, "--out", str(tmp_path / "Z.npy"), "--label", "stands"]) == 0
    assert not np.array_equal(np.load(tmp_path / "Z.npy"), lying)
    assert capsys.readouterr() == ("", "")
    assert main([*given, "--out", str(Z), "--label", "hangs"]) == 2
    assert "'hangs'" in capsys.readouterr().err
    assert main([*given, "--out", str(Z), "--steps", "3"]) == 2
    assert "--steps belongs to fit" in capsys.readouterr().err


@pytest.mark.slow
def test_tables_and_data_without_labels(data, tmp_path):
    table = tmp_path / "X.npy"
    np.save(table, np.random.default_rng(0).normal(size=(90, 3)))
    assert train(table, tmp_path / "a", objective="sliced-w2") == 0
    assert "convolutions" not in json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert train(data, tmp_path / "b", "--no-labels", objective="mmd") == 0
    assert not json.loads((tmp_path / "b" / "metrics.json").read_text())["conditional"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--objective", "gan"], "objective is 'gan'"),
        (["--data", "nowhere.npz"], "no such file"),
        (["--batch", "1"], "batch_size"),
        (["--data", "huge.npz"], "rescale the images"),
    ],
)
def test_trouble_is_one_line_and_nothing_is_written(data, tmp_path, capsys, more, words):
    if "huge.npz" in more:
        more = ["--data", str(tmp_path / "huge.npz")]
        np.savez(more[1], images=np.random.default_rng(0).random((40, 8, 8)) * 1e300)
    assert train(data, tmp_path / "run", *more) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_trained_and_the_same_command_goes_on(data, tmp_path):
    """A process of its own gets a signal, twice; then the model samples."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "gpukoop.cli", "train", "--data", str(data), "--out", str(out)]
    command += ["--objective", "energy", "--steps", "1000000", *FEW]
    command.remove("--quiet")  # the bar on standard error says when steps are taken
    steps = []
    for _ in range(2):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        watch = threading.Timer(150, process.kill)
        watch.start()
        shown = b""
        while b"it/s" not in shown and b"s/it" not in shown:
            byte = process.stderr.read(1)
            assert byte, shown
            shown += byte
        process.send_signal(signal.SIGINT)
        said, error = process.communicate()
        watch.cancel()
        assert process.returncode == 130, error
        assert b"Traceback" not in error
        assert b"the same command continues" in said
        assert {p.name for p in out.iterdir()} == WRITTEN
        steps.append(json.loads((out / "metrics.json").read_text())["steps"])
    assert 0 < steps[0] < steps[1] < 1_000_000
    given = ["--particles", "3", "--quiet", "--out", str(tmp_path / "Z.npy")]
    assert main(["sample", "--model", str(out), *given]) == 0
    assert np.isfinite(np.load(tmp_path / "Z.npy")).all()


@pytest.mark.slow
def test_a_stopped_run_ends_with_the_bits_of_one_that_was_not(data, tmp_path, monkeypatch):
    from gpukoop.cli import training

    assert train(data, tmp_path / "whole", steps=30) == 0
    calls = []

    class Stopping(training.Generator):
        def fit(self, X, y=None, *, callback=None, **given):
            def stop(step, g, m):
                callback(step, g, m)
                calls.append(step)
                return step == 13

            return super().fit(X, y, callback=stop, **given)

    Stopping.__qualname__ = "Generator"
    with monkeypatch.context() as patch:
        patch.setattr(training, "Generator", Stopping)
        train(data, tmp_path / "stopped", steps=30)
    assert calls == list(range(14))
    assert train(data, tmp_path / "stopped", steps=30) == 0
    ends = []
    for name in ("whole", "stopped"):
        path = tmp_path / f"{name}.npy"
        main(
            [
                "sample",
                "--model",
                str(tmp_path / name),
                "--particles",
                "5",
                "--out",
                str(path),
                "--quiet",
            ]
        )
        ends.append(np.load(path))
    assert np.array_equal(*ends)


def test_pictures_and_curves():
    figure = plot.pictures(np.random.default_rng(0).random((7, 4, 5)), columns=3)
    assert figure.axes[0].images[0].get_array().shape == (12, 15)
    coloured = plot.pictures(np.zeros((2, 4, 4, 3), np.uint8) + np.uint8(255))
    assert coloured.axes[0].images[0].get_array().min() == 1
    history = {"energy": [3.0, 2.0, 1.0], "seconds": [1.0, 2.0, 3.0]}
    assert len(plot.training(history).axes) == 2
    assert len(plot.training(history | {"step": [1.0, 3.0], "distance": [9.0, 2.0]}).axes) == 4
    for bad, words in (
        (lambda: plot.pictures(np.zeros((3, 4))), "images has shape"),
        (lambda: plot.pictures(np.full((3, 4, 4), np.nan)), "finite"),
        (lambda: plot.training({"energy": [], "seconds": []}), "history is empty"),
        (lambda: plot.training(3), "expected history_"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            bad()


def test_a_refusal_takes_new_parents_away_and_no_others(tmp_path):
    (tmp_path / "mine").mkdir()
    for out in (tmp_path / "a" / "b" / "c", tmp_path / "mine" / "d"):
        with pytest.raises(ValueError, match="refused"), made(out):
            raise ValueError("refused")
    assert [p.name for p in tmp_path.rglob("*")] == ["mine"]
    kept = tmp_path / "a" / "b" / "kept"

    def fail():
        kept.touch()
        raise ValueError("refused")

    with pytest.raises(ValueError, match="refused"), made(kept.parent):
        fail()
    assert kept.exists()
