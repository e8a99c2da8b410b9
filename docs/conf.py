"""How Sphinx builds the documentation: `python -m sphinx -W -b html docs docs/_build`. Warnings are errors."""

import tomllib
from pathlib import Path

_PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project = _PROJECT["name"]
version = release = _PROJECT["version"]
copyright = "the alexnet_jax maintainers"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "AlexNet in JAX"

myst_heading_anchors = 3
"""Links like data.md#preparation work as they do on the pages of a repository."""

default_role = "code"
"""Single backquotes in docstrings are code, as in Markdown."""

autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_default_options = {"members": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
