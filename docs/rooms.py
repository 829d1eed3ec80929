"""The pages of the API reference, written from the public names: what is added to ``__all__`` appears by itself."""

import inspect
from pathlib import Path

import gpukoop as gk

# Pages in their order: title, what it is, and the modules whose names at the top of the package stand there.
PAGES = {
    "kernels": (
        "Kernels",
        "A kernel is a value: a formula with numbers. Applied to points it becomes a :class:`~gpukoop.KernelOperator`.\n"
        "Kernels add, multiply and take powers, and each combination is summed in one pass.",
    ),
    "operators": (
        "Operators and backends",
        "Matrices that are never stored, and who computes with them.",
    ),
    "linear": (
        "Linear systems",
        "Solutions, log-determinants and traces of kernel matrices of 10^5 points, and slopes in the scales.",
    ),
    "spectrum": ("Spectra", "Eigenvalues and eigenfunctions of operators and generators."),
    "estimators": (
        "Flows and samplers",
        "The scikit-learn interface: ``fit``, ``sample``, ``transport``, ``score``, ``diagnose``. What all flows share\n"
        "stands at :class:`gpukoop.estimators.base.AbstractFlowEstimator`.",
    ),
    "kinetics": ("Kinetics", "Timescales, states and rates of trajectories, with error bars."),
    "verdict": ("Verdict", "Whether particles are on the law of the data."),
    "metrics": ("Metrics", "Distances between clouds, and the floor that independent draws reach."),
    "datasets": ("Data sets", "Laws and dynamics with known answers."),
    "maps": (
        "Maps and manifolds",
        "Maps with parameters that follow a flow, and projections on manifolds.",
    ),
    "sampler": (
        "Parts of the Koopman sampler",
        "What :class:`gpukoop.KoopmanSampler` is made of.",
    ),
    "generators": ("Neural generators", "Networks trained by a flow; needs the extra ``torch``."),
    "torch": ("PyTorch", "Sums with gradients for PyTorch; needs the extra ``torch``."),
    "baselines": ("Baselines", "What a new method must beat."),
    "plot": ("Figures", "Figures of results; needs the extra ``plot``."),
    "interop": (
        "Trajectories of other packages",
        "mdtraj and MDAnalysis in; needs the extra ``md``.",
    ),
    "distributed": (
        "Clusters",
        "Sums on the workers of a Dask cluster; needs the extra ``dask``.",
    ),
    "cuda": ("CUDA code", "The code that runs on a GPU, without one."),
    "testing": ("Testing", "Tolerances and conformance checks for backends of your own."),
}
HOMES = {"generators": "estimators", "verdict": "verdict", "spectrum": "spectrum"}
HOMES |= {
    "estimators": "estimators",
    "kernels": "kernels",
    "linear": "linear",
    "synthesis": "estimators",
}
BESIDE = {"estimators": ["estimators.base.AbstractFlowEstimator"]}


def rooms():
    """Return the names of the public modules of the package."""
    return [name for name in gk.__all__ if inspect.ismodule(getattr(gk, name))]


def top():
    """Return the names at the top of the package by the page where they stand."""
    pages = {page: [] for page in PAGES}
    for name in gk.__all__:
        thing = getattr(gk, name)
        if not inspect.ismodule(thing):
            room = thing.__module__.split(".")[1]
            pages[HOMES.get(room, "operators")].append(name)
    return {page: names + BESIDE.get(page, []) for page, names in pages.items()}


def inside(room):
    """Return the public classes and functions of a module that stand on no other page."""
    module = getattr(gk, room)
    here = f"gpukoop.{room}"
    own = [name for name, thing in vars(module).items() if getattr(thing, "__module__", "") == here]
    names = []
    for name in getattr(module, "__all__", [name for name in own if name[0] != "_"]):
        thing = getattr(module, name)
        home = getattr(thing, "__module__", here).split(".")[1]
        elsewhere = home != room and home in rooms() and hasattr(getattr(gk, home), name)
        if callable(thing) and not elsewhere and getattr(gk, name, None) is not thing:
            names.append(name)
    return names


def text(page):
    """Return a page of the reference."""
    title, intro = PAGES.get(page, (page.capitalize(), ""))
    parts = [f"{title}\n{'=' * len(title)}\n\n{intro}\n"]
    for module, names in (
        ("gpukoop", top().get(page, [])),
        (page, inside(page) if page in rooms() else []),
    ):
        if module == page and page in rooms():
            parts.append(f"\n.. py:module:: gpukoop.{page}\n.. currentmodule:: gpukoop.{page}\n")
        elif names:
            parts.append("\n.. currentmodule:: gpukoop\n")
        if names:
            parts.append("\n.. autosummary::\n   :toctree: ../generated\n   :nosignatures:\n\n")
            parts += [f"   {name}\n" for name in names]
    return "".join(parts)


def write(folder: Path) -> None:
    """Write all pages and their index, and leave alone those that have not changed: Sphinx reads what is new."""
    folder.mkdir(exist_ok=True)
    pages = [*PAGES, *(room for room in rooms() if room not in PAGES)]
    index = (
        "API reference\n=============\n\n``import gpukoop as gk`` throughout. n targets, m sources, d features, t columns of "
        "weights. Each page gives formula, shapes,\nunits, errors, cost and source. Results live where the points live: "
        "library, device and precision.\n\n.. toctree::\n   :maxdepth: 1\n\n"
    )
    contents = {page: text(page) for page in pages if top().get(page) or page in rooms()}
    contents["index"] = index + "".join(f"   {page}\n" for page in contents)
    for page, content in contents.items():
        path = folder / f"{page}.rst"
        if not path.exists() or path.read_text() != content:
            path.write_text(content)
