"""How Sphinx builds the documentation: `python -m sphinx -W -b html docs docs/_build`. Warnings are errors."""

import re
import tomllib
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parent.parent
_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project = _PROJECT["name"]
version = release = _PROJECT["version"]
copyright = "the alexnet_jax maintainers"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "AlexNet in JAX"

# Links like data.md#preparation work as they do on the pages of a repository.
myst_heading_anchors = 3
# Single backquotes in docstrings are code, as in Markdown.
default_role = "code"

autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_default_options = {"members": True}
napoleon_numpy_docstring = False
napoleon_use_ivar = True

PAGES = {"README.md": "index", "CONTRIBUTING.md": "contributing", "CHANGELOG.md": "changes"}
"""Files at the root of the repository that are pages of the site, where a page of docs/ has their place."""


def read_page(app: Sphinx, name: str, source: list[str]) -> None:
    """Puts the files at the root into their pages, and makes links between them and docs/ links of the site."""
    for file, page in PAGES.items():
        if page == name:
            text = (ROOT / file).read_text(encoding="utf-8")
            source[0] = re.sub(r"\]\((?!https?:|#)([^)]+)\)", r"](../\1)", text) + source[0].partition("\n")[2]
    source[0] = source[0].replace("](../docs/", "](")
    for file, page in PAGES.items():
        source[0] = source[0].replace(f"](../{file}", f"]({page}.md")


def mark_blocks(app: Sphinx, kind: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Makes what is indented after a colon, as in "one of:", a block that is shown as it stands."""
    for number in range(len(lines) - 2):
        opens = lines[number].endswith(":") and not lines[number].startswith((" ", "."))
        if opens and not lines[number + 1] and lines[number + 2].startswith("  "):
            lines[number] += ":"


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", read_page)
    app.connect("autodoc-process-docstring", mark_blocks, priority=900)  # after napoleon
