"""Write and load the files of a checkpoint: weights, optimizer state, progress."""

import json
import time
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_model, save_model

from ..compatibility_albef import follow_umask
from ..utils.redaction import redact
from .arguments import TrainingArguments
from .checkpointing import load_state, process_file, restore_random_state, save_state
from .state import changed_options

if TYPE_CHECKING:
    from .trainer import Trainer

STUDENT_FILE = "student.safetensors"
TEACHER_FILE = "teacher.safetensors"
OPTIMIZER_FILE = "optimizer.pt"
PROGRESS_FILE = "progress.json"


def write_run(trainer: "Trainer", folder: Path) -> None:
    """Write what all processes share."""
    scaler = trainer.accelerator.scaler
    save_model(trainer.student, str(folder / STUDENT_FILE))
    if trainer.unwrapped_teacher is not None:
        save_model(trainer.unwrapped_teacher, str(folder / TEACHER_FILE))
    follow_umask(folder.glob("*.safetensors"))
    optimizer = {"optimizer": trainer.optimizer.state_dict(), "scheduler": trainer.scheduler.state_dict()}
    save_state(optimizer | ({"scaler": scaler.state_dict()} if scaler else {}), folder / OPTIMIZER_FILE)
    progress = trainer.state.state_dict() | {
        "records": trainer.log.records,
        "seconds": time.monotonic() - trainer.log.start,
        "saved_model": trainer.saved_model.state_dict(),
        "options": redact(vars(trainer.args)),
    }
    (folder / PROGRESS_FILE).write_text(json.dumps(progress, indent=2) + "\n", encoding="utf-8")


def load_run(trainer: "Trainer", folder: Path) -> None:
    """Restore a run from a checkpoint.

    Raises:
        ValueError: If the data or the model of the checkpoint differ from those of the run.
    """
    progress = json.loads((folder / PROGRESS_FILE).read_text(encoding="utf-8"))
    if progress["batches_per_epoch"] != trainer.state.batches_per_epoch:
        raise ValueError(
            f"{folder} belongs to a run with {progress['batches_per_epoch']} batches per process and epoch, but this "
            f"one has {trainer.state.batches_per_epoch}; use the data and batch size of "
            f"{folder.parents[1] / 'options.yaml'}."
        )
    _load_weights(trainer, folder)
    process_state = load_state(folder / process_file(trainer.accelerator.process_index))
    trainer.state.load_state_dict(progress)
    # Checkpoints of version 0.1 call it keeper.
    trainer.saved_model.load_state_dict(progress.get("saved_model", progress.get("keeper")))
    trainer.log.begin(progress["records"], progress["seconds"], trainer.state.step)
    changed = changed_options(trainer.args, _defaults(trainer.args), progress["options"])
    note = f", with other options, so not bit-identical to an uninterrupted run: {', '.join(changed)}"
    trainer.log.say(f"resumed from {folder}{note if changed else ''}")
    trainer.recorder.window.load_state_dict(process_state["window"])
    restore_random_state(process_state["random"])


def _load_weights(trainer: "Trainer", folder: Path) -> None:
    """Load student, teacher with its queues, and optimizer."""
    state = load_state(folder / OPTIMIZER_FILE)
    try:
        load_model(trainer.student, folder / STUDENT_FILE)
        if trainer.unwrapped_teacher is not None:
            load_model(trainer.unwrapped_teacher, folder / TEACHER_FILE)
        trainer.optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError, FileNotFoundError) as error:
        raise ValueError(
            f"{folder} does not fit this model ({_shortened(error)}); use the options that the run began with."
        ) from error
    trainer.scheduler.load_state_dict(state["scheduler"])
    scaler = trainer.accelerator.scaler
    if scaler and "scaler" in state:
        scaler.load_state_dict(state["scaler"])


def _shortened(error: Exception) -> str:
    """Return a message of torch with each list of names cut, so that none hides the others."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(line if len(line) < 200 else f"{line[:200]} ..." for line in lines[:6])


def _defaults(args: TrainingArguments) -> dict[str, Any]:
    """Return the default of each option."""
    return {
        field.name: field.default if field.default_factory is MISSING else field.default_factory()
        for field in fields(args)
    }
