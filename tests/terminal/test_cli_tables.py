"""The command line on tables: CSV and Parquet in and out, models kept on disk, runs continued, choices said."""

import json
import logging
import os
import subprocess
import sys

import numpy as np
import pytest

import gpukoop as gk
from gpukoop.cli import commands, main
from gpukoop.tables import read_table, table_bytes

NAMES = ["height", "weight"]
KSWGD = ["--components", "4", "--steps", "5", "--seed", "1"]


@pytest.fixture
def frame():
    pandas = pytest.importorskip("pandas")
    X = np.random.default_rng(0).standard_normal((300, 2))
    return pandas.DataFrame(X, columns=NAMES)


def write(frame, path, **options):
    if path.suffix == ".parquet":
        pytest.importorskip("pyarrow")
        frame.to_parquet(path)
    elif path.suffix == ".csv":
        frame.to_csv(path, index=False, float_format="%.17g", **options)
    else:
        np.save(path, frame.to_numpy())
    return str(path)


def read(path):
    import pandas

    return pandas.read_csv(path) if path.suffix == ".csv" else pandas.read_parquet(path)


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_tables_in_and_out_are_the_same_numbers(frame, ending, tmp_path):
    ends = []
    for path in (tmp_path / "X.npy", tmp_path / f"X{ending}"):
        out = tmp_path / f"{path.suffix[1:]}{ending}"
        given = ["sample", "kswgd", "--data", write(frame, path), "--out", str(out)]
        assert main([*given, "--particles", "40", "--quiet", *KSWGD]) == 0
        ends.append(read(out))
    assert list(ends[0].columns) == ["x0", "x1"]  # an array has no names
    assert list(ends[1].columns) == NAMES
    assert np.array_equal(ends[0].to_numpy(), ends[1].to_numpy())


def test_csv_without_names_and_with_text(frame, tmp_path, capsys):
    path, out = tmp_path / "X.csv", tmp_path / "Z.npz"
    write(frame, path, header=False)
    given = ["sample", "mmd", "--data", str(path), "--out", str(out), "--particles", "9", "--quiet"]
    assert main([*given, "--steps", "2"]) == 0
    with np.load(out) as stored:
        assert stored["particles"].shape == (9, 2)
    frame["colour"] = "red"
    write(frame, path)
    assert main(given) == 2
    err = capsys.readouterr().err
    assert "holds 'red' in row 0, column 'colour'" in err
    path.write_text('"no end')
    assert main(given) == 2
    assert "X.csv" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["kswgd", "mmd", "wasserstein", "jko", "koopman"])
def test_a_model_samples_as_the_fit_did(method, frame, tmp_path, capsys):
    data, model = write(frame, tmp_path / "X.csv"), str(tmp_path / "M.model")
    options = {"kswgd": KSWGD, "koopman": ["--seed", "1"]}.get(
        method, ["--steps", "3", "--seed", "1"]
    )
    rest = ["--particles", "20", "--quiet"]
    direct, later = tmp_path / "A.csv", tmp_path / "B.csv"
    assert main(["sample", method, "--data", data, "--out", str(direct), *options, *rest]) == 0
    assert main(["fit", method, "--data", data, "--out", model, "--quiet", *options]) == 0
    seed = ["--seed", "1"]
    assert main(["sample", "--model", model, "--out", str(later), *seed, *rest]) == 0
    assert direct.read_bytes() == later.read_bytes()
    assert capsys.readouterr().err == ""


def test_options_that_a_model_does_not_take(frame, tmp_path, capsys):
    data, model = write(frame, tmp_path / "X.npy"), str(tmp_path / "M.model")
    assert main(["fit", "koopman", "--data", data, "--out", model, "--quiet"]) == 0
    out = ["--model", model, "--particles", "9", "--out", str(tmp_path / "Z.npy")]
    for more, words in (
        (["kswgd"], "METHOD belongs to fit"),
        (["--data", data], "--data belongs to fit"),
        (["--steps", "3"], "--steps belongs to fit"),
        (["--lag", "3"], "--lag belongs to fit"),
        (["--backend", "numpy"], "--backend belongs to fit"),
        (["--checkpoint", "run.ckpt"], "--checkpoint belongs to kswgd, mmd, wasserstein, jko"),
    ):
        assert main(["sample", *more, *out]) == 2
        assert words in capsys.readouterr().err
    for name, data in (
        ("none", None),
        ("other", b"PK"),
        ("cut", (tmp_path / "M.model").read_bytes()[:500]),
    ):
        path = tmp_path / f"{name}.model"
        if data is not None:
            path.write_bytes(data)
        assert main(["sample", "--model", str(path), *out[2:]]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert main(["sample", *out[2:]]) == 2
    assert "pass METHOD and --data" in capsys.readouterr().err


def test_every_option_goes_to_a_method_that_takes_it(frame, tmp_path, capsys):
    """What TAKERS says is what happens: each option with each method that does not take it is one line."""
    from gpukoop.cli.parser import METHODS
    from gpukoop.cli.recipes import TAKERS

    data = write(frame, tmp_path / "X.npy")
    for name, takers in TAKERS.items():
        for method in set(METHODS) - set(takers):
            option = f"--{name.replace('_', '-')}"
            given = ["sample", method, "--data", data, "--out", str(tmp_path / "Z.npz")]
            assert main([*given, "--particles", "9", option, "1"]) == 2
            assert f"{method} does not take it" in capsys.readouterr().err


def test_checkpoint_continues_to_the_same_bits(frame, tmp_path):
    flow = gk.MMDFlow(n_projections=4, n_iter=20, random_state=0).fit(frame)
    whole = flow.sample(19)
    path = tmp_path / "run.ckpt"
    plain = type(flow).transport

    class Killed(Exception):
        pass

    def transport(self, Z, n_iter=None, callback=None, **options):
        def stop(i, _):
            if i == 12:
                raise Killed

        return plain(self, Z, n_iter, stop, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(flow), "transport", transport)
        with pytest.raises(Killed):
            flow.sample(19, checkpoint=path, checkpoint_every=5)
    assert path.exists()
    assert np.array_equal(flow.sample(19, checkpoint=path), whole)
    flow.set_params(random_state=None)
    with pytest.raises(ValueError, match="pass random_state="):
        flow.sample(19, checkpoint=path)


def test_fit_checkpoint_learns_once(frame, tmp_path, monkeypatch):
    from gpukoop.estimators import spectra

    path = tmp_path / "fit.model"
    first = gk.KSWGD(n_components=4, random_state=0).fit(frame, checkpoint=path)

    def never(*_):
        raise AssertionError("learned twice")

    monkeypatch.setattr(spectra, "spectrum_of", never)
    second = gk.KSWGD(n_components=4, random_state=0).fit(frame, checkpoint=path)
    assert np.array_equal(first.sample(19), second.sample(19))
    assert list(second.feature_names_in_) == NAMES
    with pytest.raises(ValueError, match="holds another fit"):
        gk.KSWGD(n_components=5, random_state=0).fit(frame, checkpoint=path)
    with pytest.raises(ValueError, match="holds another fit"):
        gk.KSWGD(n_components=4, random_state=0).fit(frame + 1.0, checkpoint=path)


def test_info_as_json(capsys):
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["backends"] == gk.backends()
    assert facts["packages"]["numpy"] == np.__version__
    assert facts["devices"][0].startswith("cpu: ")


def test_choices_are_logged_and_shown(frame, tmp_path, caplog, capsys):
    with caplog.at_level(logging.INFO, logger="gpukoop"):
        flow = gk.KSWGD(n_components=4, kernel=gk.Gaussian(0.5), random_state=0).fit(frame)
    assert f"KSWGD: scale 0.5, 4 modes, backend {flow.backend_}, 160 steps" in caplog.text
    data, out = write(frame, tmp_path / "X.npy"), tmp_path / "M.model"
    assert main(["fit", "mmd", "--data", data, "--out", str(out)]) == 0
    err = capsys.readouterr().err
    assert "gpukoop: MMDFlow: " in err
    assert "100 steps" in err
    assert not logging.getLogger("gpukoop").handlers or not main(["info", "--quiet"])
    assert logging.getLogger("gpukoop").level == logging.NOTSET


def test_bench_is_listed_where_it_can_run():
    """A wheel has no bench folder: the command is then unknown, not broken."""
    listed = subprocess.run(
        [sys.executable, "-m", "gpukoop.cli", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert ("bench" in listed) == (commands.repository() is not None)
    hidden = "import gpukoop.cli.commands as c; c.repository = lambda: None; from gpukoop.cli import main; main(['--help'])"
    listed = subprocess.run([sys.executable, "-c", hidden], capture_output=True, text=True).stdout
    assert "sample" in listed
    assert "bench" not in listed


RIGHT = [[1.5, 2.0], [3.0, 4.5]]
CSV = {
    "1.5,2\n3,4.5\n": None,
    "a,b\n1.5,2\n3,4.5\n": ["a", "b"],
    "\ufeffa,b\r\n1.5,2\r\n3,4.5\r\n": ["a", "b"],
    '"a,",b\n1.5,2\n3,4.5\n': ["a,", "b"],
    "a,b\n1.5,2,\n3,4.5,\n": ["a", "b"],
    ",a,b\n0,1.5,2\n1,3,4.5\n": "has no name, like an index",
    "0,1\n1.5,2\n3,4.5\n": "may be names or numbers",
    "0,1,2\n3,4,5\n": "may be names or numbers",
    "a;b\n1.5;2\n": "separated by semicolons",
    "1.5\t2\n3\t4.5\n": "separated by tabs",
    "a,b\n1.5,2\n3,4.5,6\n": "not a readable csv table",
    "": "not a readable csv table",
    "a,b\r1.5,2\r3,4.5\r": "not a readable csv table .new-line character",
}


@pytest.mark.parametrize("text", CSV, ids=range(len(CSV)))
def test_the_first_line_and_the_cells_are_never_guessed(text, tmp_path):
    pytest.importorskip("pandas")
    path = tmp_path / "X.csv"
    path.write_bytes(text.encode())
    expected = CSV[text]
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            read_table(path)
        return
    table = read_table(path)
    np.testing.assert_array_equal(table, RIGHT)
    assert expected is None or list(table.columns) == expected


@pytest.mark.parametrize("cell", ["0x10", '"1,000"', "1+2j", "5%", "1_000", "\u2212 4"])
def test_the_cell_that_is_no_number_is_the_one_that_is_named(cell, tmp_path, capsys):
    """One such cell makes text of its column, and the first row is not at fault."""
    pytest.importorskip("pandas")
    path = tmp_path / "X.csv"
    path.write_text("a,b\n" + "1.5,2\n" * 40 + f"3,{cell}\n" + "2,2\n" * 9, encoding="utf-8")
    given = ["sample", "mmd", "--data", str(path), "--out", str(tmp_path / "Z.npy")]
    assert main([*given, "--particles", "3", "--quiet"]) == 2
    err = capsys.readouterr().err
    assert f"holds {cell.strip(chr(34))!r} in row 40, column 'b'" in err
    assert len(err.splitlines()) == 1


def test_flipped_bits_of_parquet_are_seen(tmp_path):
    """Of what this package wrote: pages have checksums, and they are looked at. Their headers have none: 2 of 20,840 bits pass."""
    pytest.importorskip("pyarrow")
    X = np.random.default_rng(0).normal(size=(60, 2))
    path = tmp_path / "Z.parquet"
    whole = table_bytes(path, X)
    rng = np.random.default_rng(1)
    for bit in rng.integers(8 * len(whole), size=200):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << int(bit % 8)
        path.write_bytes(data)
        try:
            table = read_table(path)
        except ValueError as error:
            assert "Z.parquet" in str(error)  # noqa: PT017
        else:
            np.testing.assert_array_equal(table, X)


@pytest.mark.parametrize("more", [b"x", b"PK", bytes(30)])
def test_bytes_after_an_archive_are_refused(more, tmp_path):
    X = np.random.default_rng(0).normal(size=(5, 2))
    path = tmp_path / "X.npz"
    np.savez(path, X=X)
    np.testing.assert_array_equal(read_table(path), X)
    path.write_bytes(path.read_bytes() + more)
    with pytest.raises(ValueError, match="more in the file than its archive"):
        read_table(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX files")
@pytest.mark.parametrize("ending", [".npy", ".csv", ".parquet"])
def test_what_is_no_file_is_told_in_one_line(ending, tmp_path, capsys):
    pytest.importorskip("pandas")
    loop, fifo, folder = (tmp_path / f"{name}{ending}" for name in ("loop", "fifo", "folder"))
    os.symlink(loop, loop)
    os.mkfifo(fifo)
    folder.mkdir()
    out = ["--out", str(tmp_path / "Z.npz"), "--particles", "3"]
    for path, words in (
        (loop, "no such file"),
        (fifo, "is no ordinary file"),
        (folder, "a folder"),
    ):
        assert main(["sample", "mmd", "--data", str(path), *out]) == 2
        err = capsys.readouterr().err
        assert f"{path}: {words}" in err or f"{path}: is {words}" in err
        assert len(err.splitlines()) == 1


def test_the_names_that_pandas_gives_are_names(tmp_path):
    pandas = pytest.importorskip("pandas")
    X = np.random.default_rng(0).normal(size=(5, 3))
    pandas.DataFrame(X).to_csv(tmp_path / "X.csv", index=False)
    np.testing.assert_array_equal(read_table(tmp_path / "X.csv"), X)
