"""Sphinx configuration."""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parent.parent))

import reference_pages
from sphinx.application import Sphinx

import lowrank_opt
from experiments.claims import page as claims

HERE = Path(__file__).parent

project = "lowrank_opt"
author = "the lowrank_opt authors"
copyright = "the lowrank_opt authors"
version = release = installed_version("lowrank_opt")

extensions = [
    "mathml",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
]
# Scripts that run while the pages are built; what they print and draw stands under their code.
sphinx_gallery_conf = {
    "examples_dirs": ["examples/tutorials", "examples/gallery"],
    "gallery_dirs": ["tutorials", "gallery"],
    "filename_pattern": ".*",
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    # Its page of times asks a network for scripts.
    "write_computation_times": False,
    "abort_on_example_error": True,
    "show_memory": False,
    "min_reported_time": 60,
    "remove_config_comments": True,
}
exclude_patterns = ["_build", "examples"]

html_math_renderer = "mathml"
html_theme = "furo"
html_title = "lowrank_opt"
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
# The results of a search would fetch each page, which browsers refuse from a disk.
html_show_search_summary = False

# Single backticks in docstrings name parameters and attributes.
default_role = "code"
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_inherit_docstrings = True
autodoc_class_signature = "mixed"
# Optional accelerators that a machine without a GPU does not have.
autodoc_mock_imports = ["triton"]
python_use_unqualified_type_names = True

napoleon_google_docstring = False
napoleon_numpy_docstring = True
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_preprocess_types = False

# "Tensor, shape (m, r)" in a docstring is no reference to an attribute named shape.
suppress_warnings = ["ref.python"]


def _skip_foreign(
    app: object, what: str, name: str, obj: object, skip: bool, options: object
) -> bool | None:
    """Leave out what scikit-learn generates on its estimators: its text refers to its own pages."""
    return True if name.startswith("set_") and name.endswith("_request") else None


def _claims_alone(app: Sphinx, error: Exception | None) -> None:
    """Write the page of claims once more, as one file without the theme."""
    if error is None and app.builder.format == "html":
        path = Path(app.outdir) / "results" / CLAIMS_ALONE
        path.write_text(claims.html(HERE / "_static"), encoding="utf-8")


def setup(app: Sphinx) -> None:
    """Connect to Sphinx."""
    app.connect("autodoc-skip-member", _skip_foreign)
    app.connect("build-finished", _claims_alone)


reference_pages.write(lowrank_opt, HERE / "reference" / "generated")
CLAIMS_ALONE = "claims-alone.html"
(HERE / "results" / "claims.md").write_text(
    claims.markdown(HERE / "_static", CLAIMS_ALONE), encoding="utf-8"
)
