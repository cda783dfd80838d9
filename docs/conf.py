"""Configuration of the documentation (Sphinx). Build it with ``make docs``; warnings are errors."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors: more threads only wait for each other
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

import farfield

project = "farfield"
author = "The farfield authors"
copyright = f"2026, {author}"  # Sphinx's own name for it
release = version = farfield.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
    "command_reference",
    "configuration_reference",
]
exclude_patterns = [
    "_build",
    "examples",
    "**/GALLERY_HEADER.rst",
    "**/sg_execution_times.rst",
    "sg_execution_times.rst",
]
templates_path = ["_templates"]

html_theme = "furo"
html_title = f"farfield {release}"
html_static_path = ["_static"]
html_theme_options = {"source_directory": "docs/"}

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

default_role = "py:obj"
autodoc_typehints = "none"  # the docstrings give shapes and units
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": False}
autosummary_generate = True
autosummary_ignore_module_all = False
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_attr_annotations = False  # jaxtyping's strings are no types to Sphinx

sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"\.py$",
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "remove_config_comments": True,
    "abort_on_example_error": True,
    "min_reported_time": 1e9,
}
suppress_warnings = ["config.cache"]


def escape_bars(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Let docstrings write |k| for an absolute value, which restructured text would take for a substitution."""
    for index, line in enumerate(lines):
        parts = line.split("``")
        lines[index] = "``".join(part if place % 2 else part.replace("|", "\\|") for place, part in enumerate(parts))


def setup(app: object) -> None:
    """Connect what autodoc needs."""
    app.connect("autodoc-process-docstring", escape_bars)
