"""Former names of public modules, which work for one release with a `FutureWarning`."""

import importlib
import importlib.util
import sys
import warnings
from functools import partial
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType
from typing import Any

# The modules that have what was in a module.
RENAMED_MODULES = {
    "albef_hf.code_renewal": ("albef_hf.conversion.code_renewal",),
    "albef_hf.convert": (
        "albef_hf.conversion.from_original",
        "albef_hf.conversion.to_original",
        "albef_hf.conversion.checkpoints",
    ),
    "albef_hf.distributed": ("albef_hf.training.distributed",),
    "albef_hf.explain": ("albef_hf.heatmaps_albef",),
    "albef_hf.ranking": ("albef_hf.retrieval_albef",),
    "albef_hf.retrieval": ("albef_hf.search.index",),
}
# What `python -m` runs under a former name.
RENAMED_COMMANDS = {
    "albef_hf.code_renewal": "`albef renew`",
    "albef_hf.convert": "`albef convert`",
    "albef_hf.retrieval": "`albef index` and `albef search`",
}


class RenamedModules(MetaPathFinder, Loader):
    """Find modules by their former names; their attributes are those of the present modules."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return how to load a module that was renamed; None for others."""
        return importlib.util.spec_from_loader(fullname, self) if fullname in RENAMED_MODULES else None

    def exec_module(self, module: ModuleType) -> None:
        """Warn, and look up attributes in the present modules."""
        names = RENAMED_MODULES[module.__name__]
        warnings.warn(
            f"{module.__name__} is now {' and '.join(names)}; the old name will be removed in the next release.",
            FutureWarning,
            stacklevel=2,
        )
        vars(module)["__getattr__"] = partial(_find_attribute, module.__name__)

    def get_code(self, fullname: str) -> CodeType | None:
        """Return what `python -m` runs: an error that names the present command, since options were renamed too."""
        command = RENAMED_COMMANDS.get(fullname)
        if command is None:
            return None
        message = f"error: python -m {fullname} is now {command}; --help lists the options"
        return compile(f"raise SystemExit({message!r})", fullname, "exec")


def _find_attribute(former_module: str, name: str) -> Any:
    for module in map(importlib.import_module, RENAMED_MODULES[former_module]):
        if hasattr(module, name):
            return getattr(module, name)
    raise AttributeError(f"module {former_module!r} has no attribute {name!r}")


def install() -> None:
    """Let `import` find the former names."""
    if not any(isinstance(finder, RenamedModules) for finder in sys.meta_path):
        sys.meta_path.append(RenamedModules())
