"""Formulas of the pages and of the reference: each is parsed and set by matplotlib, which knows a part of what MathJax knows."""

import ast
import inspect
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What MathJax and LaTeX write in two ways, or matplotlib does not know: the same formula in matplotlib's words.
SPELLINGS = (
    (r"\\begin\{(?:cases|pmatrix)\}|\\end\{(?:cases|pmatrix)\}", ""),
    (r"\\\\|&", " "),
    (r"\\[tb]?frac\s*(\w)\s*(\w)", r"\\frac{\1}{\2}"),
    (r"\\[td]frac", r"\\frac"),
    (r"\\sqrt\s*(\w|\\\w+)", r"\\sqrt{\1}"),
    (r"\\le(?![a-z])", r"\\leq"),
    (r"\\ge(?![a-z])", r"\\geq"),
    (r"\\[bB]ig+[lr]?(?![a-z])", ""),
    (r"\\(?:text|display)style", ""),
)
DOUBLED = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
SINGLE = re.compile(r"(?<![\\$])\$([^$\n]+?(?:\n[^$\n]+?)?)\$")
ROLE = re.compile(r":math:`([^`]+)`")
DIRECTIVE = re.compile(r"^( *)\.\. math::[ ]*(.*(?:\n(?:\1 +\S.*|[ ]*)$)*)", re.MULTILINE)


def in_markdown(text):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    return DOUBLED.findall(text) + SINGLE.findall(DOUBLED.sub("", text))


def in_docstring(text):
    text = inspect.cleandoc(text)
    return ROLE.findall(text) + [formula for _, formula in DIRECTIVE.findall(text)]


def formulas():
    """Yield the place and the text of each formula."""
    for path in sorted((ROOT / "docs").rglob("*.md")):
        if not {"_build", "generated", "gallery"} & set(path.parts):
            yield from ((path.name, formula) for formula in in_markdown(path.read_text()))
    for folder in ("gpukoop", "kernels", "docs/examples"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                    text = ast.get_docstring(node, clean=False) or ""
                    yield from ((path.name, formula) for formula in in_docstring(text))


def spelt(formula):
    for pattern, words in SPELLINGS:
        formula = re.sub(pattern, words, formula)
    return " ".join(formula.split())


def test_every_formula_can_be_set():
    mathtext = pytest.importorskip("matplotlib.mathtext")
    parser = mathtext.MathTextParser("path")
    found, wrong = set(formulas()), []
    assert len(found) > 200
    for place, formula in sorted(found):
        # a backslash that Python took for its own leaves a tabulator, a bell or a form feed
        if any(ord(letter) < 32 and letter != "\n" for letter in formula):
            wrong.append((place, formula))
            continue
        for part in spelt(formula).split(r"\qquad"):
            try:
                parser.parse(f"${part.strip()}$")
            except (ValueError, RuntimeError) as error:
                wrong.append((place, part, str(error).splitlines()[-1]))
    assert not wrong


@pytest.mark.parametrize("formula", [r"\frac{1}{2", r"x^^2", r"\nosuchsymbol"])
def test_a_broken_formula_is_found(formula):
    mathtext = pytest.importorskip("matplotlib.mathtext")
    with pytest.raises(ValueError, match=r"Expected|Unknown"):
        mathtext.MathTextParser("path").parse(f"${spelt(formula)}$")
