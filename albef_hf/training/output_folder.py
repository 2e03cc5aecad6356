"""The output directory of a run: its lock, what may be in it, and the model that is saved there."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from tqdm.auto import tqdm

from ..model_card import Evaluation, Training, model_card, on_the_hub, save_card
from ..momentum import MOMENTUM_FILE, MomentumTeacher
from ..utils.command_line import save_arguments
from ..utils.files import atomic_write, atomic_write_folder, is_write_error, locked
from ..utils.redaction import redact
from .arguments import DataArguments, TrainingArguments
from .checkpointing import CHECKPOINTS, list_steps
from .distributed import check_processes
from .hub_upload import HubUpload
from .logging import MODEL, RunLog

LOCK = "training.lock"  # file in the output directory, locked by the process that trains
OPTIONS_FILE = "options.yaml"
METRICS_FILE = "metrics.json"
PREDICTIONS_FILE = "predictions.jsonl"
LATER_RESULTS = "evaluation"  # folder in that of a model, for what is measured after the training


@contextlib.contextmanager
def lock_output_dir(args: TrainingArguments, accelerator: Accelerator) -> Iterator[None]:
    """Hold the lock of the output directory, on the main process.

    Raises:
        ValueError: On all processes, if another run holds it or the directory cannot be written to.
    """
    check_processes(accelerator)
    folder = Path(args.output_dir)
    problems = [""]
    with contextlib.ExitStack() as stack:
        if accelerator.is_main_process:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(folder / LOCK))
            except BlockingIOError as error:
                problems = [f"{error}: wait until that training ends, stop it, or set another output_dir."]
            except OSError as error:
                problems = [f"{folder} cannot be written to ({error}); set another output_dir."]
        (problem,) = broadcast_object_list(problems)
        if problem:
            raise ValueError(problem)
        yield


def is_resumed(args: TrainingArguments) -> bool:
    """Return whether a training continues from a checkpoint in its output directory."""
    return args.resume_from_checkpoint and bool(list_steps(Path(args.output_dir) / CHECKPOINTS))


def prepare_output_dir(args: TrainingArguments, accelerator: Accelerator) -> Path:
    """Create the output directory; refuse to overwrite a model unless asked to, or resuming."""
    check_processes(accelerator)
    folder = Path(args.output_dir)
    may_change = args.overwrite_output_dir or is_resumed(args)
    if (folder / "model.safetensors").exists() and not may_change:
        raise ValueError(f"{folder} already holds a model; set another output_dir, or overwrite_output_dir.")
    if list_steps(folder / CHECKPOINTS) and not may_change:
        raise ValueError(
            f"{folder} holds checkpoints of a run; resume_from_checkpoint continues it, overwrite_output_dir replaces "
            "it."
        )
    accelerator.wait_for_everyone()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def start_upload(args: TrainingArguments, accelerator: Accelerator) -> HubUpload | None:
    """Return the upload of the output directory, on the main process, if it is wanted; see `HubUpload` for checks."""
    if not args.push_to_hub or not accelerator.is_main_process:
        return None
    folder = Path(args.output_dir)
    return HubUpload(
        repo_id=args.hub_model_id or folder.resolve().name,
        folder=folder,
        private=args.hub_private_repo,
        tag=args.hub_tag,
        with_teacher=args.hub_teacher,
        say=tqdm.write,
    )


def save_model_folder(
    folder: Path,
    args: TrainingArguments,
    parts: Sequence[Any],
    log: RunLog,
    upload: HubUpload | None = None,
    write_more: Callable[[Path], None] = lambda folder: None,
    what: str = MODEL,
) -> bool:
    """Write everything that `from_pretrained` and further training need, from the main process.

    The new files replace the old ones together. If there is no room for both, they are replaced one part after the
    other, the model first.

    Args:
        folder: Keeps its files if the new ones cannot be written.
        args: Options of the run.
        parts: Objects with `save_pretrained`: the model, then processor and teacher.
        log: Reports what cannot be written.
        upload: Waited for, as it may be uploading the old files.
        write_more: Writes further files that belong to the model.
        what: Name of the model in reports.

    Returns:
        Whether the model was written. Only the main process knows; the others return True. Broadcast it before all
        processes act on it. This function does not, since it is also called after an error on one process.
    """
    if not log.accelerator.is_main_process:
        return True
    if upload:
        upload.wait()
    names = [what, *(f"{type(part).__name__} of {what}" for part in parts[1:])]

    def write(*some: Any) -> None:
        with atomic_write_folder(folder) as temporary:
            for part in some:
                part.save_pretrained(temporary)
            if parts[0] in some:
                save_arguments(args, temporary / OPTIONS_FILE)
                write_more(temporary)

    try:
        write(*parts)
    except Exception as error:
        if not is_write_error(error):
            raise
        for name, part in zip(names, parts, strict=True):
            if log.writer.attempt(name, partial(write, part)):
                continue
            if part is parts[0]:
                return False  # the old teacher belongs to the old model
            if isinstance(part, MomentumTeacher):
                _rename_old_teacher(folder, log)
        return True
    log.writer.forget(*names)
    return True


def _rename_old_teacher(folder: Path, log: RunLog) -> None:
    """Rename a teacher of an older step than the model, so that no training starts from both."""
    renamed = folder / f"older_{MOMENTUM_FILE}"
    with contextlib.suppress(FileNotFoundError):
        (folder / MOMENTUM_FILE).replace(renamed)
        log.say(f"the teacher in {folder} is of an older step than the model; it was renamed to {renamed.name}")


def write_card(
    args: DataArguments,
    upload: HubUpload | None,
    step: int,
    log: RunLog,
    evaluation: Evaluation | None,
    command: str,
    base_models: list[str],
    teacher: MomentumTeacher | None,
    selection: str | None = None,
) -> None:
    """Write the model card of a run; on the main process.

    Args:
        args: Options of the run.
        upload: Provides the name of the repository.
        step: Optimizer steps of the model.
        log: Provides the time that the run took.
        evaluation: What was measured.
        command: Subcommand that reproduces the run.
        base_models: What the run started from.
        teacher: Provides its momentum and queue, which may come from another model.
        selection: How this model was chosen among those of the run, if it is not the last.
    """
    options = redact(vars(args)) | {"mixed_precision": log.accelerator.mixed_precision}
    del options["momentum"]
    del options["queue_size"]
    if teacher:
        options["momentum"] = teacher.momentum
    if teacher and len(teacher.queue.image_features):
        options["queue_size"] = len(teacher.queue.image_features)
    training = Training(
        options=options,
        steps=step,
        seconds=time.monotonic() - log.start,
        processes=log.accelerator.num_processes,
        command=f"accelerate launch -m albef_hf {command} --config {OPTIONS_FILE}",
        data=args.describe_training_data(),
        dataset=hub_dataset(args),
        base_models=base_models,
        kept=selection,
    )
    folder = Path(args.output_dir)
    name = upload.repo_id if upload else str(folder)

    def write() -> None:
        save_card(model_card(folder, name, training, evaluation, upload.left_out if upload else ()), folder)

    log.writer.attempt("the model card", write)


def write_metrics(folder: Path, metrics: dict[str, float]) -> None:
    """Write `metrics.json`; if that fails, the old one stays."""
    with atomic_write(folder / METRICS_FILE) as temporary:
        _write_json(metrics, temporary)


def write_results(folder: Path, metrics: dict[str, float], predictions: list[dict[str, Any]]) -> None:
    """Write `metrics.json` and `predictions.jsonl`; if one of them fails, the old ones stay."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(prediction) + "\n" for prediction in predictions]
    with atomic_write(folder / METRICS_FILE) as new_metrics, atomic_write(folder / PREDICTIONS_FILE) as new_lines:
        _write_json(metrics, new_metrics)
        new_lines.write_text("".join(lines), encoding="utf-8")


def _write_json(content: dict[str, float], path: Path) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def hub_dataset(args: DataArguments) -> str | None:
    """Return the dataset's name on the Hub; None for files, and for readers of files such as imagefolder."""
    return on_the_hub(args.dataset) if args.dataset and "/" in args.dataset and not args.data_files else None


def end_training(accelerator: Accelerator) -> None:
    """End trackers and process group; what a tracker can no longer write is lost."""
    with contextlib.suppress(OSError):
        accelerator.end_training()
