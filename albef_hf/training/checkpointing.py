"""Checkpoints of a run; a resumed run is bit-identical to an uninterrupted one.

`OUTPUT_DIR/checkpoints/step_N` is written under a temporary name, flushed to disk and listed with sizes and SHA-256
before it gets its name; older ones are removed afterwards. So the latest named checkpoint is complete whenever the
process is killed. Only safetensors, JSON, and tensors by torch's `weights_only` are read: no pickled code is executed.
"""

import contextlib
import json
import os
import pickle
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from ..utils.files import file_problem, file_record, fsync, is_write_error, remove

CHECKPOINTS = "checkpoints"  # folder in the directory of a run
MANIFEST = "manifest.json"


def random_state() -> dict[str, Any]:
    """Return the state of this process's generators: python, numpy, torch, and its accelerator."""
    kind, keys, *rest = cast(tuple, np.random.get_state())
    devices = {name: module.get_rng_state() for name, module in _accelerators().items()}
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    } | devices


def restore_random_state(state: dict[str, Any]) -> None:
    """Restore what `random_state` returned, for the devices of this process."""
    kind, keys, *rest = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    for name, module in _accelerators().items():
        if state.get(name) is not None:  # earlier versions stored None without a GPU
            module.set_rng_state(state[name])


def _accelerators() -> dict[str, Any]:
    """Return torch's modules of the accelerators that this process uses; asking others would start them."""
    modules: dict[str, Any] = {"cuda": torch.cuda, "xpu": torch.xpu}
    used = {name: module for name, module in modules.items() if module.is_initialized()}
    return used | ({"mps": torch.mps} if torch.backends.mps.is_available() else {})


def save_state(state: dict[str, Any], path: Path) -> None:
    """Write tensors, numbers and texts."""
    torch.save(state, path)


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote.

    Raises:
        ValueError: If the file contains anything else, such as code, which is not executed.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split(".")[0]
        raise ValueError(
            f"{path} contains more than tensors and numbers, and was not loaded ({reason}). Remove its folder."
        ) from None


def process_file(process: int) -> str:
    """Return the name of the file with the state of one process."""
    return f"process_{process}.pt"


class Checkpoints:
    """The checkpoints of a run; all processes call each method together.

    Args:
        accelerator: Provides the processes. Several nodes need a file system that they share.
        folder: Directory of the run.
        total_limit: How many of the latest checkpoints to keep.
        keep_every: Checkpoints whose step is a multiple of this are kept, too; 0: none.
        say: Prints a message.
    """

    def __init__(
        self, accelerator: Accelerator, folder: Path, total_limit: int, keep_every: int, say: Callable[[str], None]
    ):
        self.accelerator = accelerator
        self.folder = folder / CHECKPOINTS
        self.total_limit = max(total_limit, 1)
        self.keep_every = keep_every
        self.say = say

    def save(self, step: int, write: Callable[[Path], None], process_state: dict[str, Any]) -> bool:
        """Write a checkpoint; if that fails, as on a full disk, remove it and keep the older ones.

        Args:
            step: Step of the checkpoint.
            write: Writes what all processes share into a folder; called on the main process.
            process_state: State of this process; see `save_state`.

        Returns:
            Whether the checkpoint was written.
        """
        temporary = self.folder / f".step_{step}.unfinished"
        is_main = self.accelerator.is_main_process

        def begin() -> None:
            if is_main:
                self._begin(temporary)

        def write_all() -> None:
            save_state(process_state, temporary / process_file(self.accelerator.process_index))
            if is_main:
                write(temporary)

        def finish() -> None:
            if is_main:
                self._finish(temporary, step)

        for part in (begin, write_all, finish):
            problems = self._run_everywhere(part)
            if problems:
                if is_main:
                    with contextlib.suppress(OSError):
                        remove(temporary)
                self.say(f"step {step}: no checkpoint could be written ({problems[0]}); older ones are kept")
                return False
        return True

    def clear(self) -> None:
        """Remove all checkpoints, which belong to an earlier run that must not be resumed."""
        if self.accelerator.is_main_process:
            is_link = self.folder.is_symlink() and self.folder.is_dir()  # to another disk; the link stays
            for path in list(self.folder.iterdir()) if is_link else [self.folder]:
                with contextlib.suppress(OSError):
                    remove(path)
        self.accelerator.wait_for_everyone()

    def latest(self) -> Path | None:
        """Return the latest complete checkpoint, or None if none was ever finished; report damaged ones.

        Raises:
            ValueError: If all of them are damaged, or the latest belongs to another number of processes.
        """
        result: list[tuple[str | None, str | None]] = [(None, None)]
        if self.accelerator.is_main_process:
            try:
                path = self._latest()
                result = [(path.name if path else None, None)]
            except ValueError as error:
                result = [(None, str(error))]
        name, problem = broadcast_object_list(result)[0]
        if problem:
            raise ValueError(problem)
        return self.folder / name if name else None

    def _run_everywhere(self, work: Callable[[], None]) -> list[str]:
        """Run this process's part and return the write errors of all processes."""
        problem = ""
        try:
            work()
        except Exception as error:
            if not is_write_error(error):
                raise
            problem = f"{type(error).__name__}: {error}"
        return [text for text in gather_object([problem]) if text]

    def _begin(self, temporary: Path) -> None:
        """Create an empty folder; remove what an earlier process left half written or half removed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(".step_*.unfinished"):
            with contextlib.suppress(OSError):  # only one of the same name would be in the way
                remove(leftover)
        temporary.mkdir()

    def _finish(self, temporary: Path, step: int) -> None:
        """List and flush what was written, rename it, and only then remove older checkpoints."""
        write_manifest(temporary, step, self.accelerator.num_processes)
        if os.path.lexists(
            self.folder / f"step_{step}"
        ):  # an intact one would have been resumed from, so this one is damaged
            _remove(self.folder / f"step_{step}")
        temporary.rename(self.folder / f"step_{step}")
        fsync(self.folder)
        self._rotate(step)

    def _rotate(self, step: int) -> None:
        """Remove all but the latest checkpoints; those of later steps were damaged, as training passed here again.

        Files and broken links are ignored. Of a linked checkpoint, only the link is removed.
        """
        steps = sorted(step for step in list_steps(self.folder) if (self.folder / f"step_{step}").is_dir())
        kept = set([other for other in steps if other <= step][-self.total_limit :])
        for other in steps:
            if other not in kept and (other > step or not self.keep_every or other % self.keep_every):
                with contextlib.suppress(OSError):  # the next checkpoint tries again
                    _remove(self.folder / f"step_{other}")

    def _latest(self) -> Path | None:
        steps = sorted(list_steps(self.folder), reverse=True)
        problems = []
        for step in steps:
            path = self.folder / f"step_{step}"
            problem = verify(path)
            if problem is None:
                _require_processes(path, self.accelerator.num_processes)
                return path
            problems.append(f"{path}: {problem}")
            self.say(f"skipped a damaged checkpoint, {problems[-1]}")
        if steps:
            raise ValueError(
                f"No checkpoint in {self.folder} is complete ({'; '.join(problems)}). Remove that folder to start "
                "over."
            )
        return None


def list_steps(folder: Path) -> list[int]:
    """Return the steps of the finished checkpoints in a folder; no run names one `step_007`."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return [int(name[5:]) for name in names if re.fullmatch(r"step_(0|[1-9][0-9]*)", name)]


def write_manifest(folder: Path, step: int, processes: int) -> None:
    """Flush the files of a folder to disk and list them with sizes and SHA-256."""
    version = sys.modules[__package__.split(".")[0]].__version__
    files = {}
    for path in sorted(folder.iterdir()):
        fsync(path)
        files[path.name] = file_record(path)
    content = {"step": step, "processes": processes, "albef_hf": version, "files": files}
    (folder / MANIFEST).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    fsync(folder / MANIFEST)
    fsync(folder)


def verify(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"]
        first = process_file(0)
        if first not in files or manifest["processes"] < 1:
            return f"{MANIFEST} does not list {first}"
        for name, expected in files.items():
            if problem := file_problem(folder / name, expected):
                return problem
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{MANIFEST} or a file that it lists cannot be read ({type(error).__name__}: {error})"
    return None


def _require_processes(path: Path, processes: int) -> None:
    written = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["processes"]
    if written != processes:
        raise ValueError(
            f"{path} was written by {written} process(es), but this run has {processes}; random states and "
            f"data positions are stored per process. Launch {written} process(es), or start a new run, in another "
            "output_dir, from the model in this one."
        )


def _remove(path: Path) -> None:
    """Rename a checkpoint, then remove it, so that a partial removal is not mistaken for a checkpoint."""
    temporary = path.with_name(f".{path.name}.removed.unfinished")
    remove(temporary)
    path.rename(temporary)
    remove(temporary)
