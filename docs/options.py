"""A directive of the site: the options of a dataclass as a table, from the texts that `--help` has."""

import dataclasses
import importlib
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
    return "" if value in (None, "", [], {}) else f"``{value}``"


class Options(SphinxDirective):
    """Options that a class adds, or gives another default."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the first line of the class's docstring, and the table."""
        module, _, name = self.arguments[0].rpartition(".")
        kind = getattr(importlib.import_module(module), name)
        _inherit_help(kind)
        own = [field for field in dataclasses.fields(kind) if field.name in vars(kind).get("__annotations__", {})]
        lines = [kind.__doc__.splitlines()[0], ""]
        if own:
            lines += [".. list-table::", "   :header-rows: 1", "   :widths: 30 20 50", ""]
            rows = [("option", "default", ""), *((f"``--{f.name}``", cell(default_of(f)), self._help(f)) for f in own)]
            lines += [f"   {'* -' if i == 0 else '  -'} {text}" for row in rows for i, text in enumerate(row)]
        return self.parse_text_to_nodes(StringList(lines, source=self.arguments[0]))

    @staticmethod
    def _help(field: dataclasses.Field) -> str:
        return field.metadata.get("help", "").replace("%%", "%").replace("\\", "\\\\").replace("*", "\\*")
