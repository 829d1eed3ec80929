"""The pages for contributors name only what is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("CONTRIBUTING.md", "docs/architecture.md")
PATH = re.compile(r"`([\w.-]+(?:/[\w.-]*)+|[\w-]+\.(?:py|md|toml))(?:::(\w+))?`")


@pytest.mark.parametrize("page", PAGES)
def test_paths_and_names_are_there(page):
    named = PATH.findall((ROOT / page).read_text())
    assert len(named) > 20
    for path, name in named:
        assert (ROOT / path).exists(), path
        if name:
            text = (ROOT / path).read_text()
            assert re.search(rf"^\s*(?:def|class) {name}\b", text, re.MULTILINE), f"{path}::{name}"
