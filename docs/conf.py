"""Settings of the site, which `make docs` builds with warnings as errors."""

import configparser
import os
import re
import sys
import textwrap
from pathlib import Path

from sphinx.application import Sphinx

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "docs")]

from options import Options  # noqa: E402

import albef_hf  # noqa: E402

settings = configparser.ConfigParser()
settings.read(REPOSITORY / "setup.cfg", encoding="utf-8")
URL = settings["metadata"]["url"]

project = "albef_hf"
copyright = "the authors of albef_hf, Apache-2.0"
release = version = albef_hf.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
default_role = "code"  # docstrings write `name`, as Markdown does

autodoc_inherit_docstrings = False  # those of transformers are in its own documentation
autodoc_member_order = "bysource"
autodoc_typehints = "description"  # signatures stay short
autodoc_typehints_description_target = "documented_params"
maximum_signature_line_length = 100
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"albef_hf {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"source_repository": URL, "source_branch": "HEAD", "source_directory": "docs/"}

linkcheck_ignore = [rf"{re.escape(URL)}/.*"] if "/you/" in URL else []


def link_repository(app: Sphinx, page: str, source: list[str]) -> None:
    """Let links to files outside `docs` lead to the repository, since the site does not have these files."""
    folder = (REPOSITORY / "docs" / page).parent

    def absolute(match: re.Match) -> str:
        file, *anchor = match[2].split("#")
        path = os.path.relpath((folder / file).resolve(), REPOSITORY)
        return match[0] if path.startswith("docs/") else match[1] + "#".join([f"{URL}/blob/HEAD/{path}", *anchor])

    source[0] = re.sub(r"((?<!!)\[[^\[\]]*\]\()(\.\.?/[^)\s]*)", absolute, source[0])


def convert_fences(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Turn the fenced code of docstrings, which transformers uses, into that of reStructuredText."""

    def block(match: re.Match) -> str:
        body = "".join(f"    {line}\n" for line in match[2].splitlines())
        return f"\n.. code-block:: {match[1] or 'text'}\n\n{textwrap.indent(textwrap.dedent(body), '    ')}\n"

    fence = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
    lines[:] = fence.sub(block, "\n".join(lines)).splitlines()


def setup(app: Sphinx) -> None:
    """Connect what runs during a build."""
    app.add_directive("options", Options)
    app.connect("autodoc-process-docstring", convert_fences, priority=100)  # before napoleon
    app.connect("source-read", link_repository)
