"""The pages in docs/: their code runs, every public name has an entry, figures come from the record, links lead somewhere."""

import importlib
import inspect
import json
import re
import runpy
import sys
import warnings
from pathlib import Path

import pytest

import gpukoop as gk

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(
    str(path.relative_to(DOCS))
    for path in DOCS.rglob("*.md")
    if not {"_build", "generated", "gallery"} & set(path.relative_to(DOCS).parts)
)
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
WITH_CODE = [page for page in PAGES if BLOCK.search((DOCS / page).read_text())]
GALLERY = sorted((DOCS / "examples").glob("plot_*.py"))


def test_there_is_a_tutorial_for_each_kind_of_user():
    kinds = {"samples", "trajectories", "tables", "tensors", "operators", "clusters"}
    assert {f"tutorials/{kind}.md" for kind in kinds} <= set(WITH_CODE)


NEEDS = {
    "kinetics.md": "matplotlib",
    "methods/koopman.md": "torch",
    "tutorials/tables.md": "pandas",
    "tutorials/tensors.md": "torch",
    "tutorials/clusters.md": "distributed",
}


@pytest.mark.parametrize("page", WITH_CODE)
def test_blocks_of_a_page_run_in_their_order(page, tmp_path, monkeypatch, capsys):
    for name in [NEEDS[page]] if page in NEEDS else []:
        pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    scope = {"__name__": "__main__"}
    for block in BLOCK.findall((DOCS / page).read_text()):
        exec(compile(block, page, "exec"), scope)
    assert capsys.readouterr().out


def entries(folder):
    """Yield the names and objects of the reference, which is written from the public names."""
    sys.path.insert(0, str(DOCS))
    rooms = importlib.import_module("rooms")
    sys.path.remove(str(DOCS))
    rooms.write(folder)
    for page in sorted(folder.glob("*.rst")):
        module = "gpukoop"
        for line in page.read_text().splitlines():
            if "currentmodule::" in line:
                module = line.split()[-1]
            if (name := re.fullmatch(r"   ([\w.]+)", line)) and page.stem != "index":
                thing = gk
                for part in [*module.split(".")[1:], *name[1].split(".")]:
                    thing = getattr(thing, part)
                yield f"{module}.{name[1]}", thing


def test_every_public_name_has_an_entry_in_the_reference(tmp_path):
    listed = {id(thing) for _, thing in entries(tmp_path)}
    for name in gk.__all__:
        thing = getattr(gk, name)
        if not inspect.ismodule(thing):
            assert id(thing) in listed, name
            continue
        for inner in getattr(thing, "__all__", ()):
            part = getattr(thing, inner)
            assert not callable(part) or id(part) in listed, f"{name}.{inner}"


@pytest.mark.parametrize("page", ["project/performance.md", "choose.md", "methods/kinetics.md"])
def test_figures_are_those_of_the_record(page):
    """Every number with three digits or a decimal point stands in bench/results.md as it is."""
    record = set(
        re.findall(r"\d+(?:\.\d+)?(?:e-?\d+)?", (ROOT / "bench" / "results.md").read_text())
    )
    text = re.sub(r"`[^`]*`|\$[^$]*\$|\d+(,000)+|10\^\d", "", (DOCS / page).read_text())
    for figure in re.findall(r"\d+\.\d+(?:e-?\d+)?|\b\d{3,}\b", text):
        assert figure in record or figure.lstrip("0") in record or figure in ("784", "1797"), figure


@pytest.mark.parametrize("page", [*PAGES, "../README.md", "../CONTRIBUTING.md", "../SECURITY.md"])
def test_links_between_pages_lead_somewhere(page):
    path = DOCS / page
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if target.startswith("http"):
            assert re.fullmatch(r"https://[\w.-]+\.\w+(/[^\s]*)?", target), target
        elif not re.search("gallery/|reference/", target):  # written when the pages are built
            assert (path.parent / target.split("#")[0]).exists(), f"{page}: {target}"


def test_the_gallery_is_large_and_each_script_says_what_it_shows():
    assert len(GALLERY) >= 12
    for path in GALLERY:
        text = path.read_text()
        assert re.match(r'"""\n\S.*\n=+\n\n\S', text), path.name
        assert "plt.show()" in text, path.name


@pytest.mark.parametrize("name", ["plot_own_kernel", "plot_regression"])
def test_two_scripts_of_the_gallery_run(name, monkeypatch, capsys):
    """The others run where the pages are built, by .ci/docs."""
    pytest.importorskip("matplotlib").use("agg")
    import matplotlib.pyplot as plt

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="FigureCanvasAgg is non-interactive")
        runpy.run_path(str(DOCS / "examples" / f"{name}.py"), run_name="__main__")
    assert plt.get_fignums()
    plt.close("all")
    assert capsys.readouterr().out


def project():
    """Return the table of pyproject.toml."""
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_one_version_everywhere():
    version = project()["version"]
    assert gk.__version__ == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f'set version = "{version}"' in (ROOT / "recipe" / "meta.yaml").read_text()
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_extras_are_those_of_the_table():
    table = (ROOT / "README.md").read_text().split("<!-- extras -->")[1]
    first = re.findall(r"^\| (`[^|]*) \|", table.split("<!-- end of extras -->")[0], re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", "".join(first))) == set(project()["optional-dependencies"])


def test_the_recipe_asks_for_what_the_package_asks_for():
    recipe = (ROOT / "recipe" / "meta.yaml").read_text().split("run:")[1]
    for requirement in project()["dependencies"]:
        name, least = requirement.split(">=")
        assert f"- {name} >={least}\n" in recipe, requirement
    assert f"- python {project()['requires-python']}\n" in recipe


def test_workflows_run_what_the_readme_says():
    command = re.search(
        r'^pip install (-e "\.\[test\]") && (pytest .*)$',
        (ROOT / "README.md").read_text(),
        re.MULTILINE,
    )
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text()
    assert f"pip install {command[1]}" in workflow
    assert command[2] in workflow
    assert "id-token: write" in (ROOT / ".github" / "workflows" / "release.yml").read_text()


def test_the_container_is_built_from_what_there_is():
    lines = re.sub(r"(?m)^#.*\n", "", (ROOT / "Dockerfile").read_text()).splitlines()
    said = [line.split(maxsplit=1) for line in lines if line and not line.startswith(" ")]
    known = {"FROM", "ARG", "COPY", "RUN", "USER", "WORKDIR", "ENTRYPOINT", "CMD"}
    assert {word for word, _ in said} <= known
    given = dict(said)
    extras = re.findall(r"EXTRAS=(\S+)", (ROOT / "Dockerfile").read_text())
    assert extras
    assert {name for part in extras for name in part.split(",")} <= set(
        project()["optional-dependencies"]
    )
    image = re.fullmatch(r"python:(\d+\.\d+)-slim", given["FROM"])
    assert f"Programming Language :: Python :: {image[1]}" in project()["classifiers"]
    (command,) = json.loads(given["ENTRYPOINT"])
    assert command in project()["scripts"]
    assert json.loads(given["CMD"]) == ["info"]


def test_workflows_and_recipe_are_yaml():
    yaml = pytest.importorskip("yaml")
    for path in sorted((ROOT / ".github" / "workflows").glob("*.yml")):
        workflow = yaml.safe_load(path.read_text())
        assert True in workflow or "on" in workflow  # YAML 1.1 reads "on" as a truth value
        for job in workflow["jobs"].values():
            assert job["runs-on"]
            assert all(("uses" in step) != ("run" in step) for step in job["steps"]), path
            scripts = [word for step in job["steps"] for word in step.get("run", "").split()]
            assert all((ROOT / word).is_file() for word in scripts if word.startswith(".ci/"))
    text = (ROOT / "recipe" / "meta.yaml").read_text()
    recipe = re.sub(r"\{\{ *(\w+) *\}\}", r"\1", re.sub(r"\{%.*%\}", "", text))
    recipe = yaml.safe_load(recipe)
    scripts = [f"{name} = {place}" for name, place in project()["scripts"].items()]
    assert recipe["build"]["entry_points"] == scripts
    assert recipe["about"]["license"] == project()["license"]


SECTION = re.compile(
    r"^ *(Parameters|Attributes|Returns|Yields)\n *-+\n(.*?)(?=^ *\w+\n *-{3,}\n|\Z)", re.M | re.S
)
# Their files are full, and their first lines say it.
BRIEF = {"gpukoop.backends", "gpukoop.verdict.distance_multiple"}


def test_every_parameter_and_result_is_documented(tmp_path):
    missing = []
    for name, thing in entries(tmp_path):
        if name in BRIEF or (inspect.isclass(thing) and issubclass(thing, Exception)):
            continue
        sections = dict(SECTION.findall(thing.__doc__ or ""))
        text = sections.get("Parameters", "") + sections.get("Attributes", "")
        function = inspect.isfunction(thing)
        # results, and parts of the sampler, are made by the package: what a reader needs are their attributes
        told = "Attributes" in sections and "Parameters" not in sections
        result = not function and (issubclass(thing, tuple) or told)
        made = result or (not function and name.split(".")[1] in ("sampler", "cuda", "kinetics"))
        if not made:
            for parameter in inspect.signature(thing).parameters:
                named = rf"^ *(?:[\w*]+, )*\**{parameter}\b"
                if parameter not in ("args", "kwargs") and not re.search(named, text, re.M):
                    missing.append(f"{name}: {parameter}")
        says = (thing.__doc__ or "").startswith(
            ("Return ", "Write ")
        )  # a first line that is enough
        if function and not says and not {"Returns", "Yields"} & set(sections):
            if inspect.signature(thing).return_annotation not in (None, "None"):
                missing.append(f"{name}: what it returns")
    assert not missing, missing
