"""Fine-tune ALBEF on a downstream task, with a momentum teacher, and evaluate it.

Without data options it trains on what the built-in scenes pose. The defaults are the paper's settings for each task; a
recipe such as train/configs/vqa/scenes.yaml changes them. Give --task first: --task NAME --help lists its options.
"""

import os

LAUNCHER = os.getppid()  # before the imports, during which it may end

import argparse
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# This folder has an evaluate.py, which would hide the library of that name.
sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).parent.resolve()]

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed
from huggingface_hub.errors import StrictDataclassError
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file

from albef_hf import MomentumTeacher
from albef_hf.data import ImageTextPairs
from albef_hf.model_card import Evaluation
from albef_hf.modeling_albef import AlbefAlignedModel
from albef_hf.momentum import MOMENTUM_FILE
from albef_hf.tasks import find_task, task_names
from albef_hf.tasks.base import EXCHANGED, LATER_RESULTS, FineTuningOptions, Rows, Task, load_model, write_results
from albef_hf.training.hub_upload import HubPush
from albef_hf.training.logging import RunLog
from albef_hf.training.signals import end_with_launcher, leave_signals_to_the_training
from albef_hf.training.trainer import (
    MomentumTraining,
    check_pairing,
    end_training,
    make_accelerator,
    only_run_in,
    prepare_folder,
    save_model_folder,
    start_push,
    start_trackers,
    total_steps,
    write_card,
)
from albef_hf.utils.files import keep_output_from_failing
from albef_hf.utils.options import parse_options, redact
from albef_hf.utils.progress import log_library_progress

LAST = "last"  # folder of the last state, in that of the best


def main(arguments: list[str]) -> None:
    """Read the options, build everything, train, save."""
    end_with_launcher(LAUNCHER)
    chooser = argparse.ArgumentParser(add_help=False)
    chooser.add_argument("--task", choices=task_names(), required=not {"-h", "--help"} & {*arguments})
    chosen, rest = chooser.parse_known_args(arguments)
    kind = find_task(chosen.task or task_names()[0])
    description = f"{__doc__}\nTasks: {', '.join(task_names())}. These are the options of {kind.name}."
    options = parse_options(kind.options_class, description, rest)
    log_library_progress()
    accelerator = make_accelerator(options)
    try:
        with only_run_in(options, accelerator):
            finetune(kind, options, accelerator)
    except (ValueError, RuntimeError, OSError, StrictDataclassError) as error:
        if os.environ.get("ALBEF_TRACEBACK"):
            raise
        sys.exit(f"error: {redact(str(error))}\n(set ALBEF_TRACEBACK=1 to see where it happened)")
    finally:
        end_training(accelerator)


def finetune(kind: type[Task], options: FineTuningOptions, accelerator: Accelerator) -> dict[str, float]:
    """Train and keep the best; returns its metrics."""
    folder = prepare_folder(options, accelerator)
    push = start_push(options, accelerator)
    set_seed(options.seed)  # the same on all processes, so that their teachers and queues start alike
    student, processor = load_model(kind, options)
    teacher = make_teacher(options, student)
    check_pairing(options, student, teacher)
    task = kind(options, processor)
    rows, validation = task.train_rows(), task.validation_rows()
    loader = make_loader(task, rows, accelerator)
    steps_per_epoch = max(1, len(loader) // options.gradient_accumulation_steps)
    start_trackers(options, accelerator)
    log = RunLog(accelerator, folder, total_steps(options, steps_per_epoch), options.log_every)
    task.check(validation)
    baselines = task.baselines(rows, validation) if accelerator.is_main_process else {}
    log.say(
        f"{task.name}: {len(rows)} rows to train on, {len(validation)} to evaluate on; without pictures {baselines}"
    )
    keeper = Keeper(task, validation, baselines, student, teacher, accelerator, log, push)
    set_seed(options.seed, device_specific=True)
    training = MomentumTraining(
        accelerator, options, student, teacher, loader, steps_per_epoch, log, keeper.evaluate, keeper
    )
    if accelerator.is_main_process:
        for part in (LAST, LATER_RESULTS):  # of a model that is replaced
            shutil.rmtree(folder / part, ignore_errors=True)
    try:
        training.run()
    except (Exception, KeyboardInterrupt):  # what was learned last is kept; one that was Stopped has a checkpoint
        keeper.save_last(training.step)
        raise
    finally:
        log.close()
    keeper.save_last(training.step)
    keeper.finish(training.step)
    log.say(f"rows skipped or cut: {training.issues_found()}")
    return keeper.best


@dataclass
class Keeper:
    """Evaluates now and then, and keeps the best model with its metrics, predictions and card.

    Args:
        task: Evaluates.
        validation: Rows to evaluate on.
        baselines: Metrics to compare with.
        student: The model.
        teacher: Its teacher, if it has one.
        accelerator: Knows the main process, which writes.
        log: Takes what there is to say.
        push: Pushes the folder, where that is wanted.
    """

    task: Task
    validation: Rows
    baselines: dict[str, float]
    student: PreTrainedModel
    teacher: MomentumTeacher | None
    accelerator: Accelerator
    log: RunLog
    push: HubPush | None
    best: dict[str, float] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        """What there is to remember of earlier evaluations."""
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with what `state_dict` has given."""
        self.best = state["best"]

    @property
    def folder(self) -> Path:
        """Where the best model is."""
        return Path(self.task.options.output_dir)

    def evaluate(self, step: int) -> dict[str, float]:
        """Metrics of the model as it is now; if it is the best so far, it is saved."""
        metrics, predictions = self.task.evaluate(self.student, self.validation, self.accelerator)
        self.log.say(f"step {step}: {', '.join(f'{name} {value:.2f}' for name, value in metrics.items())}")
        if metrics.get("rows_left_out") or metrics.get("rows/text_cut"):
            self.log.say(f"    left out or cut: {self.task.findings}")
        for prediction in predictions[:3]:
            self.log.say(f"    {self.task.show(prediction)}")
        if self.best and metrics[self.task.metric] <= self.best[self.task.metric]:
            return metrics
        exchanged = self.task.evaluate_exchanged(self.student, self.validation, self.accelerator)
        for name, value in exchanged.items():
            self.log.say(f"    {name} {value:.2f}")
        best = metrics | exchanged | {"step": step}
        saved = self.save(self.folder, lambda folder: write_results(folder, best | self.baselines, predictions))
        if not broadcast_object_list([saved])[0]:  # `best` decides what all processes do together
            return metrics
        self.best = best
        if self.accelerator.is_main_process:
            self.describe()
        if self.push:
            self.push.start(f"Step {step}: {self.task.metric} {metrics[self.task.metric]:.2f}")
        return metrics

    def save(self, folder: Path, *settings: Any) -> bool:
        """Write all that `from_pretrained` and another training need; see `save_model_folder` for the settings."""
        parts = (self.student, self.task.processor, *([self.teacher] if self.teacher else []))
        return save_model_folder(folder, self.task.options, parts, self.log, self.push, *settings)

    def save_last(self, step: int) -> None:
        """Write the state of a step beside the best, unless it is the best."""
        if self.best.get("step") != step and self.save(self.folder / LAST, lambda folder: None, "the last state"):
            self.log.say(f"the last state, of step {step}, is in {self.folder / LAST}")

    def describe(self, run_steps: int | None = None) -> None:
        """Leave a model card, of a run that has ended where its length is given."""
        task, options = self.task, self.task.options
        exchanged = {name: value for name, value in self.best.items() if name.startswith(EXCHANGED)}
        metrics = {name: value for name, value in self.best.items() if name != "step" and name not in exchanged}
        baselines = self.baselines | exchanged
        evaluation = Evaluation(metrics, task.protocol, options.validation_in_words(), options.hub_dataset, baselines)
        write_card(
            options,
            self.push,
            self.best["step"],
            self.log,
            evaluation,
            f"train/finetune.py --task {task.name}",
            [options.model] if options.model else [],
            self.teacher,
            f"the best by {task.metric} of a run of {run_steps} steps" if run_steps else None,
        )

    def finish(self, step: int) -> None:
        """The last card, the last push."""
        if self.push:
            self.push.wait()
        if self.accelerator.is_main_process and self.best:
            self.describe(step)
        self.log.report_failed_writes()
        if self.push:
            self.push.finish("End of training")
        if self.best:  # empty only where no model could be written, which has ended the main process
            best = f"{self.task.metric} {self.best[self.task.metric]:.2f} at step {self.best['step']}"
            self.log.say(f"best: {best}; it is in {self.folder}")


def make_teacher(options: FineTuningOptions, student) -> MomentumTeacher | None:
    """The teacher of the model that training starts from, or a copy of the student; none where it is of no use."""
    needed = options.alpha > 0 or isinstance(student, AlbefAlignedModel)
    if not needed or not hasattr(student, "get_teacher_outputs"):
        return None
    if options.model and cached_file(options.model, MOMENTUM_FILE, _raise_exceptions_for_missing_entries=False):
        return MomentumTeacher.from_pretrained(options.model, student, options.momentum, options.queue_size)
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
        worker_init_fn=leave_signals_to_the_training,
    )
    return accelerator.prepare(loader)


if __name__ == "__main__":
    keep_output_from_failing()
    main(sys.argv[1:])
