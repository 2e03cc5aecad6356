"""Checkpoints of a run, from which it goes on as if it had never stopped.

`OUTPUT_DIR/checkpoints/step_N` is written aside, flushed to the disk, listed with sizes and SHA-256, and only then
given its name; older ones go after that. So whatever moment a process is killed at, the newest that has a name is
whole. What is read back is safetensors, JSON, and tensors and numbers by torch's `weights_only`: no pickled code is
ever run.
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
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from ..utils.files import digest, flush, is_write_error, remove

CHECKPOINTS = "checkpoints"  # folder, in that of a run
MANIFEST = "manifest.json"


def random_state() -> dict[str, Any]:
    """State of all generators of this process: python, numpy, torch, and its GPU."""
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Draw from here on what followed `random_state`."""
    kind, keys, *rest = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])


def save_state(state: dict[str, Any], path: Path) -> None:
    """Write tensors, numbers and texts."""
    torch.save(state, path)


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` has written.

    Raises:
        ValueError: If there is more in the file, such as code, none of which is run.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split(".")[0]
        raise ValueError(
            f"{path} holds more than tensors and numbers, and nothing of it was run ({reason}): remove its folder."
        ) from None


def process_file(process: int) -> str:
    """Name of the file that a process has written for itself."""
    return f"process_{process}.pt"


class Checkpoints:
    """The checkpoints of a run; all processes call each method together.

    Args:
        accelerator: Knows the processes. Those of several nodes need a file system that they share.
        folder: Of the run.
        total_limit: How many to keep, the newest ones.
        keep_every: Those of each so many steps are kept for ever; 0: of none.
        say: Takes what there is to say.
    """

    def __init__(
        self, accelerator: Accelerator, folder: Path, total_limit: int, keep_every: int, say: Callable[[str], None]
    ):
        self.accelerator, self.folder, self.say = accelerator, folder / CHECKPOINTS, say
        self.total_limit, self.keep_every = max(total_limit, 1), keep_every

    def save(self, step: int, write: Callable[[Path], None], own: dict[str, Any]) -> bool:
        """Write a checkpoint; one that cannot be written, such as on a full disk, is removed, and the older ones stay.

        Args:
            step: Its number.
            write: Writes into a folder what is the same on all processes; called on the main process.
            own: What each process has for itself; see `save_state`.

        Returns:
            Whether it has been written.
        """
        aside, is_main = self.folder / f".step_{step}.unfinished", self.accelerator.is_main_process

        def write_all() -> None:
            save_state(own, aside / process_file(self.accelerator.process_index))
            if is_main:
                write(aside)

        parts = (lambda: self._begin(aside), None), (write_all, write_all), (lambda: self._finish(aside, step), None)
        for main_part, other_part in parts:
            problems = self._together(main_part if is_main else other_part)
            if problems:
                if is_main:
                    with contextlib.suppress(OSError):
                        remove(aside)
                self.say(f"step {step}: no checkpoint could be written ({problems[0]}); older ones are kept")
                return False
        return True

    def clear(self) -> None:
        """Remove all checkpoints, or a later resume would go on with those of another run."""
        if self.accelerator.is_main_process:
            is_link = self.folder.is_symlink() and self.folder.is_dir()  # to another disk, and it stays one
            for path in list(self.folder.iterdir()) if is_link else [self.folder]:
                with contextlib.suppress(OSError):
                    remove(path)
        self.accelerator.wait_for_everyone()

    def newest(self) -> Path | None:
        """The newest checkpoint that is whole; None where none has ever been finished. Damaged ones are told.

        Raises:
            ValueError: If all of them are damaged, or the newest is of another number of processes.
        """
        found: list[tuple[str | None, str | None]] = [(None, None)]
        if self.accelerator.is_main_process:
            try:
                path = self._newest()
                found = [(path and path.name, None)]
            except ValueError as error:
                found = [(None, str(error))]
        name, problem = broadcast_object_list(found)[0]
        if problem:
            raise ValueError(problem)
        return self.folder / name if name else None

    def _together(self, work: Callable[[], None] | None) -> list[str]:
        """Do this process's part; returns, when all have done theirs, what went wrong on any of them."""
        problem = ""
        try:
            if work:
                work()
        except Exception as error:
            if not is_write_error(error):
                raise
            problem = f"{type(error).__name__}: {error}"
        return [text for text in gather_object([problem]) if text]

    def _begin(self, aside: Path) -> None:
        """An empty folder to write to; what an earlier process has left half done, or half removed, goes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for rest in self.folder.glob(".step_*.unfinished"):
            with contextlib.suppress(OSError):  # only one with the name of the new one would be in the way
                remove(rest)
        aside.mkdir()

    def _finish(self, aside: Path, step: int) -> None:
        """List and flush what has been written, give it its name, and only then remove older ones."""
        write_manifest(aside, step, self.accelerator.num_processes)
        if os.path.lexists(self.folder / f"step_{step}"):  # damaged, or training would not have come here again
            _remove(self.folder / f"step_{step}")
        aside.rename(self.folder / f"step_{step}")
        flush(self.folder)
        self._rotate(step)

    def _rotate(self, step: int) -> None:
        """Remove all but the newest ones; one with a higher number was damaged, as training has passed there again.

        Files and broken links do not count. Of a checkpoint that is a link, the link is removed.
        """
        steps = sorted(step for step in steps_of(self.folder) if (self.folder / f"step_{step}").is_dir())
        kept = set([number for number in steps if number <= step][-self.total_limit :])
        for number in steps:
            if number not in kept and (number > step or not self.keep_every or number % self.keep_every):
                with contextlib.suppress(OSError):  # what cannot be removed now is removed with the next one
                    _remove(self.folder / f"step_{number}")

    def _newest(self) -> Path | None:
        steps, faults = sorted(steps_of(self.folder), reverse=True), []
        for step in steps:
            path = self.folder / f"step_{step}"
            fault = fault_of(path)
            if fault is None:
                _require_processes(path, self.accelerator.num_processes)
                return path
            faults.append(f"{path}: {fault}")
            self.say(f"skipped a damaged checkpoint, {faults[-1]}")
        if steps:
            raise ValueError(
                f"No checkpoint in {self.folder} is whole ({'; '.join(faults)}). Remove that folder to start anew."
            )
        return None


def steps_of(folder: Path) -> list[int]:
    """Numbers of the checkpoints in a folder that have been finished; `step_007` is a name that no run has given."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return [int(name[5:]) for name in names if re.fullmatch(r"step_(0|[1-9][0-9]*)", name)]


def write_manifest(folder: Path, step: int, processes: int) -> None:
    """Flush the files of a folder to the disk, and list them with sizes and SHA-256."""
    version = sys.modules[__package__].__version__
    files = {}
    for path in sorted(folder.iterdir()):
        flush(path)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": digest(path)}
    content = {"step": step, "processes": processes, "albef_hf": version, "files": files}
    (folder / MANIFEST).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    flush(folder / MANIFEST)
    flush(folder)


def fault_of(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, expected in listed.items():
            size = (folder / name).stat().st_size
            if size != expected["bytes"]:
                return f"{name} has {size} bytes instead of {expected['bytes']}"
            if digest(folder / name) != expected["sha256"]:
                return f"the content of {name} is not what was written (SHA-256)"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{MANIFEST} or a file that it lists cannot be read ({type(error).__name__}: {error})"
    return None


def _require_processes(path: Path, processes: int) -> None:
    written = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["processes"]
    if written != processes:
        raise ValueError(
            f"{path} was written by {written} process(es), and this run has {processes}: their random states and "
            f"shares of the data cannot be divided anew. Launch it with {written} process(es), or start another run "
            "from the model in this output_dir, in another one."
        )


def _remove(path: Path) -> None:
    """Remove a checkpoint; what an interrupted removal leaves does not look like one."""
    aside = path.with_name(f".{path.name}.removed.unfinished")
    remove(aside)
    path.rename(aside)
    remove(aside)
