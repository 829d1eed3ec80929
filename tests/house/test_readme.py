"""README says only what runs: its code blocks, its commands, its backends."""

import re
from pathlib import Path

import pytest

import gpukoop as gk

README = (Path(__file__).parents[2] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_there_is_an_example():
    assert BLOCKS


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_python_blocks_run(block, capsys):
    exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out


COMMANDS = re.findall(r"^gpukoop (?:sample|fit|info) .*$", README, re.MULTILINE)


def test_commands_run(tmp_path, monkeypatch, capsys):
    """Every line with data of the command line, in the order in which a reader types them."""
    import numpy as np

    from gpukoop.cli import main

    pandas = pytest.importorskip("pandas")
    assert len(COMMANDS) >= 4
    monkeypatch.chdir(tmp_path)
    X = np.random.default_rng(0).standard_normal((300, 2))
    pandas.DataFrame(X, columns=["height", "weight"]).to_csv("X.csv", index=False)
    for command in COMMANDS:
        assert main([*command.split()[1:], *(["--quiet"] if "info" not in command else [])]) == 0
        if "--out" in command and "Z.csv" in command:
            Z = pandas.read_csv("Z.csv")
            assert Z.shape == (500, 2)
            assert list(Z.columns) == ["height", "weight"]
            Path("Z.csv").unlink()
    assert "backends" in capsys.readouterr().out


def test_the_two_commands_are_those_of_ci_and_of_the_command_line():
    run = Path(__file__).parents[2] / ".ci" / "run"
    commands = re.findall(r"^pip install .*$", README, re.MULTILINE)
    assert len(commands) == 2
    assert commands[0].endswith("gpukoop demo")
    assert "pytest" in commands[1]
    if run.exists():
        assert "grep -m1 '^pip install .*pytest' README.md" in run.read_text()


def test_table_names_every_backend():
    names = re.findall(r"^\| `([a-z-]+)` \|", README.split("## Backends")[1], re.MULTILINE)
    assert set(gk.backends()) == set(names[: len(gk.backends())])


def test_pictures_and_files_are_there():
    root = Path(__file__).parents[2]
    for target in [
        *re.findall(r"\]\(([^)#:]+)\)", README),
        "CHANGELOG.md",
        "bench/results.md",
        "LICENSE",
    ]:
        assert (root / target).is_file(), target
