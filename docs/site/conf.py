"""The documentation as a site: Sphinx over the Markdown pages as they lie in the repository, and over docstrings.

The source folder is the repository itself, so that every relative link of a page holds on the site, too; links to files
that are no pages become downloads. Everything is local: no font, script or inventory is fetched.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mplug_triton import __version__  # noqa: E402

project = "mPLUG on Triton"
author = "The mPLUG-on-Triton authors"
project_copyright = author
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
root_doc = "docs/site/contents"
include_patterns = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "examples/README.md",
    "checkpoints/demo/README.md",
    "docs/*.md",
    "docs/models/*.md",
    "docs/site/*.md",
]

myst_heading_anchors = 4  # those that GitHub gives headings, which links of the pages name
suppress_warnings = [
    "myst.header",  # pages that begin below a first-level heading
    "toc.not_included",  # a page that contents.md does not list is found by links and by the search
]

default_role = "code"  # docstrings are written as Markdown is: `name` is code
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "undoc-members": True}
python_display_short_literal_types = True

html_theme = "furo"
html_title = f"{project} {version}"
html_additional_pages = {"index": "index.html"}
templates_path = ["templates"]
html_show_sphinx = False
html_copy_source = False
copybutton_prompt_text = "$ "


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", indented_blocks_are_code)


def indented_blocks_are_code(
    app: Sphinx, what: str, name: str, documented: object, options: object, lines: list[str]
) -> None:
    """Mark indented examples as code: in our docstrings they are written as Markdown has them, without `::`."""
    marked: list[str] = []
    for line in lines:
        before = next((earlier for earlier in reversed(marked) if earlier.strip()), "")
        begins = line.startswith("    ") and (not marked or not marked[-1].strip()) and not before.startswith("    ")
        if begins and not before.endswith("::"):
            marked += ["::", ""]
        marked.append(line)
    lines[:] = marked
