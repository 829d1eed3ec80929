"""Every command line of README and the pages runs as it stands there: none is written that nobody has tried."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

import gpukoop as gk
from gpukoop.cli import main
from gpukoop.cli.parser import METHODS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = r"gpukoop ((?:sample|fit|train|demo|info|code|bench)\b"
# A line of a block, and code in a sentence, which may go over the end of a line.
COMMANDS = (
    re.compile(rf"(?:^|&& ){NAMES}[^\n`#&]*)", re.MULTILINE),
    re.compile(rf"`{NAMES}[^`#&]*)`"),
)
# What stands for something that the reader chooses, and options that keep a try short.
CHOICES = {"METHOD": METHODS, "N": ("20",), "X": ("X.npy",)}
SHORT = {"demo": ["--particles", "200"], "train": ["--steps", "2", "--latent", "4"]}
# An option that is named, not a command: it needs the data and the folder of one.
NAMED = {"train --no-labels": "train --no-labels --data animals28.npz --out named"}


def examples():
    """Yield (page, command) of every page, one for each of what is written as alternatives."""
    for page in PAGES:
        if {"_build", "generated", "gallery"} & set(page.parts):
            continue
        text = page.read_text(encoding="utf-8")
        for found in (command for kind in COMMANDS for command in kind.findall(text)):
            words = NAMED.get(found.strip(), found).split()
            alternatives = [CHOICES.get(word, tuple(word.split("|"))) for word in words]
            for chosen in itertools.product(*alternatives):
                yield page.name, " ".join(chosen)


EXAMPLES = sorted(set(examples()))
SLOW = ("demo", "train", "sample koopman", "bench")


def test_there_are_examples_of_every_command():
    commands = {command.split()[0] for _, command in EXAMPLES}
    assert {"sample", "fit", "train", "demo", "info", "code"} <= commands
    assert {page for page, _ in EXAMPLES} >= {
        "README.md",
        "CONTRIBUTING.md",
        "install.md",
        "tables.md",
    }


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Enter a folder with the files that the examples read."""
    pandas = pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    X = rng.standard_normal((300, 2))
    np.save("X.npy", X)
    pandas.DataFrame(X, columns=["height", "weight"]).to_csv("X.csv", index=False)
    kind = np.arange(200) % 2
    pictures = rng.integers(0, 60, (200, 28, 28), dtype=np.uint8)
    pictures[kind == 0, 4:9] += 180
    np.savez("animals28.npz", images=pictures, labels=np.array(["cat", "dog"])[kind])
    with gk.use_backend("numpy"):
        assert main(["fit", "mmd", "--data", "X.csv", "--out", "X.model", "--quiet"]) == 0
    return tmp_path


@pytest.mark.parametrize(
    ("page", "command"),
    [
        pytest.param(
            *e, marks=pytest.mark.slow if e[1].startswith(SLOW) else (), id=f"{e[0]}: {e[1]}"
        )
        for e in EXAMPLES
    ],
)
@pytest.mark.filterwarnings("ignore")  # shortened runs warn, as they should
def test_a_command_of_the_pages_runs(page, command, folder, capsys):
    name, *rest = command.split()
    for command_name, package in (
        ("demo", "matplotlib"),
        ("train", "torch"),
        ("train", "matplotlib"),
    ):
        if name == command_name:
            pytest.importorskip(package)
    before = {p.name for p in folder.iterdir()}
    assert main([name, *rest, *SHORT.get(name, [])]) == 0, capsys.readouterr().err
    if "--out" in rest:
        assert (folder / rest[rest.index("--out") + 1]).exists()
    elif name == "demo":
        assert {p.name for p in folder.iterdir()} - before == {"gpukoop-demo"}
    else:
        assert len(capsys.readouterr().out) > 50
