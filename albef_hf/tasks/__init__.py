"""The tasks, one file each, found by their names; `base*.py` hold what they share, `arguments.py` their options."""

import importlib
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..training.arguments import FineTuningArguments
    from .base import Task

PRETRAINING = "pretraining"
# Tasks that train nothing, and the task that trains their head.
EVALUATION_ONLY = {"caption_scores": "retrieval", "pair_choice": "retrieval", "zero_shot": "retrieval"}


def task_names() -> list[str]:
    """Return the names of the downstream tasks that train a model: those of the files in this folder."""
    return [name for name in evaluation_names() if name not in EVALUATION_ONLY]


def evaluation_names() -> list[str]:
    """Return the names of the downstream tasks, also of those that train nothing."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    return sorted(name for name in names if name not in (PRETRAINING, "arguments") and not name.startswith("base"))


def find_task(name: str) -> "type[Task]":
    """Return the task of a name.

    Raises:
        ValueError: If there is none.
    """
    if name not in (PRETRAINING, *evaluation_names()):
        raise ValueError(f"There is no task {name!r}; choose from {', '.join(evaluation_names())}.")
    return importlib.import_module(f".{name}", __name__).TASK


def find_arguments(name: str) -> "type[FineTuningArguments]":
    """Return the options of a downstream task, without importing the task, which would import torch."""
    from . import arguments

    return getattr(arguments, f"{name.title().replace('_', '')}Arguments")


__all__ = ["evaluation_names", "find_arguments", "find_task", "task_names"]
