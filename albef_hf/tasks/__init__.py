"""The downstream tasks, one file each, found by their names."""

import importlib
import pkgutil

from .base import Task


def task_names() -> list[str]:
    """Names of the tasks there are: those of the files in this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find_task(name: str) -> type[Task]:
    """The task of a name.

    Raises:
        ValueError: If there is none.
    """
    if name not in task_names():
        raise ValueError(f"There is no task {name!r}; there are {', '.join(task_names())}.")
    return importlib.import_module(f".{name}", __name__).TASK


__all__ = ["find_task", "task_names"]
