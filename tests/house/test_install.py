"""The wheel holds everything: built from the sources, installed elsewhere, every module imported."""

import inspect
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command, cwd, **environment):
    result = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, env=environment or None
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build from a copy, so that the sources get no build folder."""
    setuptools = pytest.importorskip("setuptools")
    if int(setuptools.__version__.split(".")[0]) < 77:
        pytest.skip(
            f"setuptools {setuptools.__version__} is older than the 77 that pyproject.toml asks for"
        )
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    for folder in ("gpukoop", "kernels"):
        shutil.copytree(ROOT / folder, source / folder, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation", "--no-index", "-w", str(out)]
    run(*pip, "wheel", *options, str(source), cwd=out)
    return next(out.glob("gpukoop-*.whl"))


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel), cwd=target)
    return target


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Build the source distribution from a copy of what git knows."""
    pytest.importorskip("setuptools")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("no repository: this is an unpacked archive")
    source = tmp_path_factory.mktemp("sdist") / "source"
    for name in listed.stdout.split():
        if (ROOT / name).is_file() and not (ROOT / name).is_symlink():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    (source / "gpukoop" / "kernels").symlink_to("../kernels")
    code = "from setuptools import build_meta; print(build_meta.build_sdist('.'))"
    return source / run(sys.executable, "-c", code, cwd=source).split()[-1], listed.stdout.split()


def test_the_sdist_holds_what_its_tests_need(archive):
    """Unpacked elsewhere, the archive has every file of the repository that a test reads."""
    path, listed = archive
    with tarfile.open(path) as packed:
        inside = {name.partition("/")[2] for name in packed.getnames()}
    needed = {
        name
        for name in listed
        if name.startswith(
            ("tests/", "bench/", "docs/", "kernels/", "gpukoop/", "recipe/", ".github/")
        )
        or name.endswith(".md")
    }
    needed -= {"gpukoop/kernels"}
    assert not needed - inside
    assert {"LICENSE", "pyproject.toml", "CITATION.cff"} <= inside


@pytest.mark.slow
def test_the_unpacked_sdist_installs_and_runs_its_tests(archive, tmp_path):
    """In an empty folder: it is built there, every test can be collected, and some of each kind run on what was installed."""
    with tarfile.open(archive[0]) as packed:
        packed.extractall(tmp_path, filter="data")
    root, site = next(tmp_path.iterdir()), tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-deps"]
    run(*pip, "--no-build-isolation", "--no-index", "--target", str(site), ".", cwd=root)
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
    pytest_here = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    collected = run(*pytest_here, "--collect-only", cwd=root, **environment)
    assert int(re.search(r"(\d+) tests collected", collected).group(1)) > 4_000
    few = ("house/test_readme.py", "operators/test_operator.py")
    done = run(
        *pytest_here,
        *(f"tests/{name}" for name in few),
        "-k",
        "not blocks and not commands_run",
        cwd=root,
        **environment,
    )
    assert re.search(r"\d\d passed", done), done
    where = run(
        sys.executable, "-c", "import gpukoop; print(gpukoop.__file__)", cwd=root, **environment
    )
    assert where.startswith(str(site))


def test_bench_of_a_wheel_is_not_listed(site, tmp_path):
    """The benchmarks are no part of the wheel: the command is unknown there, not broken."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    gpukoop = [sys.executable, "-m", "gpukoop.cli"]
    listed = run(*gpukoop, "--help", cwd=tmp_path, **environment)
    assert "sample" in listed
    assert "bench" not in listed
    asked = subprocess.run([*gpukoop, "bench"], cwd=tmp_path, env=environment, capture_output=True)
    assert asked.returncode == 2
    assert b"invalid choice: 'bench'" in asked.stderr
    assert b"Traceback" not in asked.stderr


def test_a_misspelt_keyword_of_every_estimator_is_in_the_script_that_mypy_checks():
    """.ci/run checks .ci/user.py from the editable install and from the wheel; a new estimator must not be forgotten there."""
    import gpukoop as gk

    script = ROOT / ".ci" / "user.py"
    if not script.exists():
        pytest.skip("an unpacked archive has no CI")
    rooms = [gk, *(room for name in gk.__all__ if inspect.ismodule(room := getattr(gk, name)))]
    found = {
        thing.__name__
        for room in rooms
        for name in getattr(room, "__all__", ())
        if inspect.isclass(thing := getattr(room, name))
        and hasattr(thing, "fit")
        and hasattr(thing, "get_params")
        and not inspect.isabstract(thing)
    }
    assert len(found) >= 18
    checked = set(
        re.findall(
            r"gk\.(?:\w+\.)?(\w+)\(\w+=.*(?:# the fault|# type: ignore\[call-arg\])",
            script.read_text(),
        )
    )
    assert not found - checked


def sources():
    """Return the file of the wheel for each file of the sources."""
    for folder, prefix in (("gpukoop", "gpukoop"), ("kernels", "gpukoop/kernels")):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix == ".py" or path.name in ("py.typed", "ptx.zip"):
                yield f"{prefix}/{path.relative_to(ROOT / folder).as_posix()}"


def test_the_wheel_holds_every_file(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    assert set(sources()) <= inside
    extra = {name for name in inside if not name.startswith("gpukoop")}
    assert not extra, f"the wheel installs {extra} beside the package"


def test_every_module_imports_from_elsewhere(site, tmp_path):
    modules = sorted(
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in sources()
        if name.endswith(".py") and not name.endswith("__main__.py")
    )
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    module = importlib.import_module(name)\n"
        f"    assert module.__file__.startswith({str(site)!r}), module.__file__\n"
        "import numpy, gpukoop\n"
        "print((gpukoop.Gaussian()(numpy.zeros((2, 1)), backend='numpy') @ [1, 1]).tolist())\n"
    )

    environment = {**os.environ, "PYTHONPATH": str(site)}
    assert (
        run(sys.executable, "-c", code, cwd=tmp_path, **environment).split("\n")[-2] == "[2.0, 2.0]"
    )


def test_the_command_is_installed(site):
    assert (site / "bin" / "gpukoop").exists() or (site / "Scripts" / "gpukoop.exe").exists()


def test_kernels_at_the_root_is_refused_in_words():
    result = subprocess.run(
        [sys.executable, "-c", "import kernels"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode != 0
    assert "this folder is the package 'gpukoop.kernels': run 'pip install -e .'" in result.stderr
