"""How Sphinx builds the pages: ``sphinx-build -W --keep-going -b html docs docs/_build``."""

import os
import re
import sys
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("TQDM_DISABLE", "1")

sys.path.insert(0, str(Path(__file__).parent))  # figures.py and rooms.py

import rooms

import gpukoop

rooms.write(Path(__file__).parent / "reference")

project = "gpukoop"
author = "The gpukoop developers"
copyright = author
version = release = gpukoop.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "myst_parser",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
]
source_suffix = {".rst": "restructuredtext", ".md": "markdown"}
exclude_patterns = ["_build", "examples"]
templates_path = ["_templates"]
nitpicky = True  # a reference that leads nowhere is a warning, and -W makes it an error
# Docstrings also speak to readers of the source: names of inner modules have no page.
nitpick_ignore_regex = [
    (
        r"py:.*",
        r"gpukoop\.(algebra|backends|flow|kernels|kinetics\.blocks|operator|spectrum\.[a-z_]+)\b.*",
    ),
    (
        r"py:.*",
        r"gpukoop\.(arrays|dispatch|generators\.objectives|parameters|scales|torch\.sums)\b.*",
    ),
    (r"py:.*", r"(Abstract\w+(\.\w+)?|_\w+|median_scale|blockwise_product)"),
    (
        r"py:func",
        r"\w+",
    ),  # a neighbour in the same file, such as the function that returns a result
    (r"py:.*", r"(numpy|scipy|sklearn|torch|dask|matplotlib)\b.*"),
]

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_typehints = "none"  # types stand in the docstrings, with shapes and units
numpydoc_show_class_members = False
numpydoc_xref_param_type = False
# Every public name has a docstring with a summary, and documents no parameter that it does not have.
numpydoc_validation_checks = {"GL06", "GL07", "GL08", "SS01", "PR02"}

sphinx_gallery_conf = {
    "image_scrapers": ("matplotlib", "figures.returned_figures"),
    "examples_dirs": ["examples"],
    "gallery_dirs": ["gallery"],
    "filename_pattern": r"plot_",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_signature": False,
    "min_reported_time": 0,
    "reset_modules": ("matplotlib",),
}

html_theme = "pydata_sphinx_theme"
html_title = f"gpukoop {release}"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
    "secondary_sidebar_items": ["page-toc"],
}


# What scikit-learn's base classes bring is documented there.
ROUTING = re.compile(r"set_\w+_request|get_metadata_routing|set_output|[gs]et_params|fit_transform")
# Text in which | is no sign of mathematics: literals, roles and references.
QUOTED = re.compile(r"(``.*?``|:[\w:]+:`.*?`|`.*?`_*)")


def skip_inherited(app, what, name, thing, skip, options):
    """Leave out the members that scikit-learn adds to an estimator."""
    return True if ROUTING.fullmatch(name) else None


def keep_norms(app, what, name, thing, options, lines):
    """Let ``|x - y|`` in a docstring be a norm: reStructuredText would look for a substitution of this name."""
    inside = None  # indentation of the directive or literal block that we are in
    for i, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if inside is not None and line.strip() and indent <= inside:
            inside = None
        if inside is None and "|" in line and not line.lstrip().startswith((">>>", "...")):
            parts = QUOTED.split(line)
            lines[i] = "".join(
                part if k % 2 else re.sub(r"(?<!\\)\|", r"\|", part) for k, part in enumerate(parts)
            )
        if inside is None and (
            line.rstrip().endswith("::") or line.lstrip().startswith(".. math::")
        ):
            inside = indent


def setup(app):
    """Connect the two hooks; the second one before numpydoc's, which moves lines."""
    app.connect("autodoc-skip-member", skip_inherited)
    app.connect("autodoc-process-docstring", keep_norms, priority=100)
