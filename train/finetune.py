"""Fine-tune ALBEF on a downstream task, with a momentum teacher, and evaluate it.

Without data options it trains on what the built-in scenes pose. The defaults are the paper's settings for each task; a
recipe such as train/configs/vqa/scenes.yaml changes them. Give --task first: --task NAME --help lists its options.
"""

import argparse
import os
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

# This folder has an evaluate.py, which would hide the library of that name.
sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).parent.resolve()]

from accelerate import Accelerator
from accelerate.utils import set_seed
from huggingface_hub.errors import StrictDataclassError
from torch.utils.data import DataLoader
from transformers.utils.hub import cached_file

from albef_hf import MomentumTeacher
from albef_hf.data import ImageTextPairs
from albef_hf.finetuning import FineTuningOptions, Rows, Task, load_model, write_results
from albef_hf.modeling_albef import AlbefAlignedModel
from albef_hf.momentum import MOMENTUM_FILE
from albef_hf.options import parse_options, save_options
from albef_hf.run_log import RunLog
from albef_hf.tasks import find_task, task_names
from albef_hf.training import MomentumTraining, make_accelerator, prepare_folder, total_steps

LAST = "last"  # folder of the last state, in that of the best


def main(arguments: list[str]) -> None:
    """Read the options, build everything, train, save."""
    chooser = argparse.ArgumentParser(add_help=False)
    chooser.add_argument("--task", choices=task_names(), required=not {"-h", "--help"} & {*arguments})
    chosen, rest = chooser.parse_known_args(arguments)
    kind = find_task(chosen.task or task_names()[0])
    description = f"{__doc__}\nTasks: {', '.join(task_names())}. These are the options of {kind.name}."
    options = parse_options(kind.options_class, description, rest)
    accelerator = make_accelerator(options)
    try:
        finetune(kind, options, accelerator)
    except (ValueError, RuntimeError, OSError, StrictDataclassError) as error:
        if os.environ.get("ALBEF_TRACEBACK"):
            raise
        sys.exit(f"error: {error}\n(set ALBEF_TRACEBACK=1 to see where it happened)")
    finally:
        accelerator.end_training()


def finetune(kind: type[Task], options: FineTuningOptions, accelerator: Accelerator) -> dict[str, float]:
    """Train and keep the best; returns its metrics."""
    folder = prepare_folder(options, accelerator)
    if accelerator.is_main_process:
        shutil.rmtree(folder / LAST, ignore_errors=True)
    set_seed(options.seed)  # the same on all processes, so that their teachers and queues start alike
    student, processor = load_model(kind, options.model, options.image_size, options.attention)
    teacher = make_teacher(options, student)
    task = kind(options, processor)
    rows, validation = task.train_rows(), task.validation_rows()
    loader = make_loader(task, rows, accelerator)
    steps_per_epoch = max(1, len(loader) // options.gradient_accumulation_steps)
    numbers = {name: value for name, value in asdict(options).items() if isinstance(value, (int, float))}
    accelerator.init_trackers("tensorboard", config=numbers)
    log = RunLog(accelerator, folder, total_steps(options, steps_per_epoch))
    baselines = task.baselines(rows, validation)
    log.say(
        f"{task.name}: {len(rows)} rows to train on, {len(validation)} to evaluate on; without pictures {baselines}"
    )
    best: dict[str, float] = {}

    def evaluate_and_keep(step: int) -> dict[str, float]:
        metrics, predictions = task.evaluate(student, validation, accelerator)
        log.say(f"step {step}: {', '.join(f'{name} {value:.2f}' for name, value in metrics.items())}")
        for prediction in predictions[:3]:
            log.say(f"    {task.show(prediction)}")
        if not best or metrics[task.metric] > best[task.metric]:
            best.clear()
            best.update(metrics | {"step": step})
            save(folder)
            if accelerator.is_main_process:
                write_results(folder, best | baselines, predictions)
        return metrics

    def save(folder: Path) -> None:
        if accelerator.is_main_process:
            for part in (student, processor, *([teacher] if teacher else [])):
                part.save_pretrained(folder)
            save_options(options, folder / "options.yaml")

    set_seed(options.seed, device_specific=True)
    training = MomentumTraining(
        accelerator, options, student, teacher, loader, steps_per_epoch, log, evaluate_and_keep
    )
    try:
        training.run()
    finally:  # an interrupt too: what was learned last is kept beside the best
        if best.get("step") != training.step:
            save(folder / LAST)
        log.close()
    log.say(f"rows skipped or cut: {training.issues_found()}")
    log.say(f"best: {task.metric} {best[task.metric]:.2f} at step {best['step']}; it is in {folder}")
    if best["step"] != training.step:
        log.say(f"the last state, of step {training.step}, is in {folder / LAST}")
    return best


def make_teacher(options: FineTuningOptions, student) -> MomentumTeacher | None:
    """The teacher of the model that training starts from, or a copy of the student; none where it is of no use."""
    needed = options.alpha > 0 or isinstance(student, AlbefAlignedModel)
    if not needed or not hasattr(student, "get_teacher_outputs"):
        return None
    if cached_file(options.model, MOMENTUM_FILE, _raise_exceptions_for_missing_entries=False):
        return MomentumTeacher.from_pretrained(options.model, student, options.momentum)
    return MomentumTeacher(student, options.momentum, options.queue_size)


def make_loader(task: Task, rows: Rows, accelerator: Accelerator) -> DataLoader:
    """Batches of training samples for this process."""
    options = task.options
    needed = options.batch_size * accelerator.num_processes
    if len(rows) < needed:
        raise ValueError(
            f"There are {len(rows)} rows to train on, fewer than the {needed} of one batch on all "
            f"{accelerator.num_processes} processes: lower batch_size, or give more data."
        )
    dataset = ImageTextPairs(rows, task.read, options.seed)
    dataset[0]  # an unreadable source shows here, not in the middle of the first epoch
    loader = DataLoader(
        dataset,
        batch_size=options.batch_size,
        shuffle=True,
        drop_last=True,
        collate_fn=task.collate,
        num_workers=min(options.num_workers, os.cpu_count() or 1),
        pin_memory=accelerator.device.type == "cuda",
    )
    return accelerator.prepare(loader)


if __name__ == "__main__":
    main(sys.argv[1:])
