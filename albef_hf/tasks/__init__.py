"""The tasks, one file each, found by their names; `base*.py` hold what they share."""

import importlib
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import Task

PRETRAINING = "pretraining"


def task_names() -> list[str]:
    """Return the names of the downstream tasks: those of the files in this folder."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    return sorted(name for name in names if name != PRETRAINING and not name.startswith("base"))


def find_task(name: str) -> "type[Task]":
    """Return the task of a name.

    Raises:
        ValueError: If there is none.
    """
    if name not in (PRETRAINING, *task_names()):
        raise ValueError(f"There is no task {name!r}; choose from {', '.join(task_names())}.")
    return importlib.import_module(f".{name}", __name__).TASK


__all__ = ["find_task", "task_names"]
