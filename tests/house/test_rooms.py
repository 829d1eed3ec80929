"""The shape of the house: imports point left, public names are documented, files stay readable, importing is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gpukoop as gk

ROOT = Path(__file__).parents[2]
# In the order in which data walks; a room may import itself and what stands before it. Names are modules or packages.
ROOMS = [
    ["kernels"],
    ["alarm"],
    ["files", "draws", "blas", "arrays", "fusion", "philox"],
    [
        "centring",
        "checks",
        "fitted",
        "lagged",
        "models",
        "persistence",
        "tables",
        "progress",
        "versions",
    ],
    ["scales", "placement"],
    ["config", "backends", "dispatch"],
    ["algebra"],
    ["reductions"],
    ["operator"],
    ["linear"],
    ["parameters"],
    ["spectrum"],
    ["flow"],
    ["maps", "sampler"],
    ["verdict", "kinetics"],
    ["estimators"],
    # around the house: these look at everything, and nothing looks at them
    [
        "baselines",
        "cuda",
        "interop",
        "distributed",
        "rounding",
        "testing",
        "datasets",
        "metrics",
        "plot",
        "torch",
        "generators",
        "synthesis",
        "cli",
    ],
]
RANK = {name: rank for rank, names in enumerate(ROOMS) for name in names}
# Imports that point right, each with its reason.
ALLOWED: dict[tuple[str, str], str] = {
    ("cli", ""): "the command line is a user of the public names"
}
# A file past some 300 lines has two ideas in it.
LONGEST = 330

FILES = sorted(
    path.relative_to(ROOT)
    for folder in ("gpukoop", "kernels")
    for path in (ROOT / folder).rglob("*.py")
)
IDS = [str(path) for path in FILES]


def room(path):
    if path.parts[0] == "kernels":
        return "kernels"
    return path.stem if len(path.parts) == 2 else path.parts[1]


def happens(path):
    """Yield the nodes of a file but for imports under TYPE_CHECKING, which no program performs."""
    waiting = [ast.parse((ROOT / path).read_text())]
    while waiting:
        node = waiting.pop()
        yield node
        typing = isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        waiting += node.orelse if typing else ast.iter_child_nodes(node)


def targets(node):
    """Return the rooms that an import statement enters; "" is the package itself."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        names = [node.module]
        if node.module == "gpukoop":
            names = [f"gpukoop.{alias.name}" for alias in node.names]
    elif (
        isinstance(node, ast.Call)
        and getattr(node.func, "id", getattr(node.func, "attr", "")) == "import_module"
    ):
        names = [a.value for a in node.args if isinstance(a, ast.Constant)]
    else:
        return []
    return [
        name.split(".")[1] if "." in name else ""
        for name in names
        if name.split(".")[0] == "gpukoop"
    ]


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_imports_point_left(path):
    here = room(path)
    if here == "__init__":
        return  # public names: sees everything
    assert here in RANK, f"{path}: give the room {here!r} a place in ROOMS"
    for node in happens(path):
        for target in targets(node):
            if (here, target) in ALLOWED:
                continue
            where = f"{path}:{node.lineno} imports gpukoop.{target}"
            assert target in RANK, f"{where}, which is no room: import the module that has the name"
            assert RANK[target] <= RANK[here], f"{where}, which stands to the right of {here}"


def test_kernels_import_only_kernels():
    for path in FILES:
        if path.parts[0] == "kernels":
            entered = {target for node in happens(path) for target in targets(node)}
            assert entered <= {"kernels"}, path


# Inside kernels/: which folders and ground-floor modules each may import besides itself. Formulas know no backend, and backends
# do not know each other, but for the exact rows that Fourier sums are checked against.
GROUND = {
    "arrays",
    "operation",
    "request",
    "partial_sums",
    "cells",
    "reference",
    "compiled",
    "formula",
}
INSIDE = {
    "arrays": set(),
    "formula": {"arrays"},
    "operation": set(),
    "request": {"arrays", "formula", "operation"},
    "reference": {"arrays", "formula", "operation"},
    "cells": {"arrays", "formula", "operation"},
    "partial_sums": {"arrays", "operation"},
    "compiled": set(),
    "cpu": GROUND,
    "cuda": GROUND,
    "keops": GROUND,
    "fourier": GROUND | {"cpu"},
}
CUDA_GROUND = {"form", "functions", "device", "specification", "program", "packing", "grid"}
CUDA_INSIDE = {
    "pairs": CUDA_GROUND | {"pairs"},
    "symmetric": CUDA_GROUND | {"symmetric", "pairs"},
    "matrix": CUDA_GROUND | {"matrix", "pairs"},
}


def inner_targets(node):
    """Return the modules below gpukoop.kernels that an import statement enters, such as "cuda.pairs.plan"."""
    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gpukoop.kernels"):
        rest = node.module.split(".")[2:]
        return (
            [".".join(rest)] if len(rest) > 1 else [".".join([*rest, a.name]) for a in node.names]
        )
    if isinstance(node, ast.Import):
        return [a.name[16:] for a in node.names if a.name.startswith("gpukoop.kernels.")]
    return []


KERNELS = [path for path in FILES if path.parts[0] == "kernels" and len(path.parts) > 1]


@pytest.mark.parametrize("path", KERNELS, ids=[str(path) for path in KERNELS])
def test_rooms_inside_kernels(path):
    here = path.with_suffix("").parts[1:]
    if here[0] == "__init__":
        return
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        for target in inner_targets(node):
            there = target.split(".")
            where = f"{path}:{node.lineno} imports {target}"
            assert there[0] in INSIDE[here[0]] | {here[0]}, where
            if here[0] == there[0] == "cuda" and here[1] in CUDA_INSIDE:
                assert there[1] in CUDA_INSIDE[here[1]], where


def test_rooms_hold_few_files():
    for folder in {path.parent for path in KERNELS}:
        assert len(list((ROOT / folder).glob("*.py"))) <= 12, f"{folder} is two rooms"


def test_packages_are_listed():
    text = (ROOT / "pyproject.toml").read_text()
    for folder in {path.parent for path in FILES}:
        parts = ("gpukoop", *folder.parts) if folder.parts[0] == "kernels" else folder.parts
        assert f'"{".".join(parts)}"' in text, (
            f"{folder} is missing from packages in pyproject.toml"
        )


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_files_stay_short(path):
    lines = len((ROOT / path).read_text().splitlines())
    assert lines <= LONGEST, f"{path} has {lines} lines: split it by idea"


def test_most_files_are_much_shorter():
    lengths = sorted(len((ROOT / path).read_text().splitlines()) for path in FILES)
    assert lengths[len(lengths) // 2] < 180


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_public_things_are_documented(path):
    text = (ROOT / path).read_text()
    lines, tree = text.splitlines(), ast.parse(text)
    assert ast.get_docstring(tree), f"{path} has no module docstring"
    stack = list(tree.body)
    while stack:
        node = stack.pop()
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            overload = any(getattr(d, "id", "") == "overload" for d in node.decorator_list)
            excused = overload or "noqa: D1" in lines[node.lineno - 1]
            assert excused or ast.get_docstring(node), (
                f"{path}:{node.lineno} {node.name} has no docstring"
            )
            if isinstance(node, ast.ClassDef):
                stack.extend(node.body)


def test_checks_of_ci_find_what_they_import():
    """CI puts tests/ on the path and no folder in it: helpers stand there, and test files move with their rooms."""
    inside = {path.stem for path in (ROOT / "tests").glob("*/*.py")}
    for path in (ROOT / ".ci").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [getattr(node, "module", None)] if isinstance(node, ast.ImportFrom) else []
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else names
            lost = inside & {name.split(".")[0] for name in names}
            assert not lost, f"{path.name}:{node.lineno} imports {lost}"


def test_what_is_the_same_stands_once():
    """An array has one name for the type checker, and no function is written twice."""
    homes, bodies = [], {}
    for path in FILES:
        for node in ast.parse((ROOT / path).read_text()).body:
            named = getattr(node, "target", None) or (getattr(node, "targets", None) or [None])[0]
            if getattr(named, "id", None) == "Array":
                homes.append(str(path))
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                same = ast.dump(node.args), ast.dump(ast.Module(body, []))
                bodies.setdefault((node.name, *same), []).append(f"{path}:{node.lineno}")
    assert homes == ["kernels/arrays.py"]
    twice = [places for places in bodies.values() if len(places) > 1]
    assert not twice, twice


@pytest.mark.parametrize("name", gk.__all__)
def test_public_names_exist_and_say_what_they_are(name):
    thing = getattr(gk, name)
    assert thing.__doc__
    assert thing.__doc__.strip()
    assert name in dir(gk)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="module 'gpukoop' has no attribute 'Gausian'"):
        _ = gk.Gausian


def run(code):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    ).stdout.split()


def test_importing_is_light():
    """What costs time or touches a GPU is imported when it is first used: half a second is spent on NumPy and SciPy."""
    loaded = run(
        "import sys, gpukoop; "
        "print(*{name.split('.')[0] for name in sys.modules if not name.startswith('_')} - set(sys.stdlib_module_names))"
    )
    third_party = {
        name for name in loaded if "editable" not in name and not name.startswith("distutils")
    }
    assert third_party <= {"gpukoop", "numpy", "scipy", "cython_runtime"}, third_party


def test_a_first_product_needs_no_gpu_library():
    loaded = run(
        "import sys, numpy, gpukoop; gpukoop.Gaussian()(numpy.ones((2, 1)), backend='numpy') @ [1, 1]; "
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    assert not {"cupy", "pykeops", "torch", "matplotlib", "numba", "jax"} & set(loaded)
