"""A directive of the site: the options of a dataclass as a table, from the texts that `--help` has."""

import dataclasses
import importlib
import re
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

from albef_hf.utils.command_line import _inherit_help


def default_of(field: dataclasses.Field) -> Any:
    """Return the default of an option."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def cell(value: Any) -> str:
    """Return a default as code, or nothing for one that is empty."""
    return "" if value in (None, "", [], {}) else f"`{value}`"


def help_of(field: dataclasses.Field) -> str:
    """Return the text of `--help` as Markdown in a cell of a table."""
    return re.sub(r"([|*_<\\])", r"\\\1", field.metadata.get("help", "").replace("%%", "%"))


class Options(SphinxDirective):
    """Options that a class adds, or gives another default."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the first line of the class's docstring, and the table."""
        module, _, name = self.arguments[0].rpartition(".")
        kind = getattr(importlib.import_module(module), name)
        _inherit_help(kind)
        own = [field for field in dataclasses.fields(kind) if field.name in vars(kind).get("__annotations__", {})]
        lines = [kind.__doc__.splitlines()[0], "", "| option | default | |", "|---|---|---|"]
        lines += [f"| `--{field.name}` | {cell(default_of(field))} | {help_of(field)} |" for field in own]
        return self.parse_text_to_nodes(StringList(lines[: None if own else 1], source=self.arguments[0]))
