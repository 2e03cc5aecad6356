"""Evaluate a model during training and save it: the latest one, or the best so far."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel

from ..model_card import Evaluation
from ..momentum import MomentumTeacher
from .hub_upload import HubUpload
from .logging import MODEL, RunLog
from .lora import merge_lora
from .output_folder import METRICS_FILE, hub_dataset, save_model_folder, write_card, write_metrics, write_results

if TYPE_CHECKING:
    from ..tasks.base import Rows, Task

EXCHANGED = "exchanged_images"  # prefix of metrics that are measured with images exchanged among rows
LAST = "last"  # folder of the last model, in the directory of the best


@dataclass
class SavedModel(ABC):
    """Evaluate a model during training and save it with metrics and card.

    Args:
        task: Evaluates.
        validation: Rows to evaluate on.
        baselines: Metrics to compare with.
        student: The model.
        teacher: Its teacher, if it has one.
        accelerator: Provides the main process, which writes.
        log: Prints messages.
        upload: Uploads the directory, if wanted.
        metrics: Metrics of the model in the directory; with the step that it was saved at, if the best is kept.
    """

    task: "Task"
    validation: "Rows"
    baselines: dict[str, float]
    student: PreTrainedModel
    teacher: MomentumTeacher | None
    accelerator: Accelerator
    log: RunLog
    upload: HubUpload | None
    metrics: dict[str, float] = field(default_factory=dict)

    @abstractmethod
    def evaluate_and_save(self, step: int) -> dict[str, float]:
        """Return the metrics of the model as it is now, and save it if it is to be kept."""

    @abstractmethod
    def save_interrupted(self, step: int) -> None:
        """Save the model after an error, without losing a better one."""

    @abstractmethod
    def finish(self, step: int) -> None:
        """Save and report at the end of a training.

        Raises:
            OSError: If the model could not be written.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return what to remember of earlier evaluations."""
        return {"best": self.metrics}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Restore what `state_dict` returned."""
        self.metrics = state["best"] if state else {}

    @property
    def folder(self) -> Path:
        """Return the directory of the run."""
        return Path(self.task.args.output_dir)

    def save(self, folder: Path, write_more: Callable[[Path], None] = lambda folder: None, what: str = MODEL) -> bool:
        """Write everything that `from_pretrained` and further training need; see `save_model_folder`."""
        args = self.task.args
        student, teacher = self.student, self.teacher
        if args.lora_rank and self.accelerator.is_main_process:
            student = merge_lora(student) if args.lora_merge else student
            teacher = merge_lora(teacher) if teacher else None
        parts = [student, self.task.processor, *([teacher] if teacher else [])]

        def write(temporary: Path) -> None:
            self.task.save_pretrained(temporary)
            write_more(temporary)

        return save_model_folder(folder, args, parts, self.log, self.upload, write, what)

    def write_card(self, step: int, evaluation: Evaluation | None, selection: str | None = None) -> None:
        """Write the model card of a step."""
        args = self.task.args
        write_card(
            args=args,
            upload=self.upload,
            step=step,
            log=self.log,
            evaluation=evaluation,
            command=self.task.command,
            base_models=self.task.base_models(),
            teacher=self.teacher,
            selection=selection,
        )


class LatestModel(SavedModel):
    """Save the model at each evaluation, as pretraining does."""

    def evaluate_and_save(self, step: int) -> dict[str, float]:
        """Save the model, then return its metrics."""
        saved = self.save(self.folder)
        self.accelerator.wait_for_everyone()
        self.metrics, _ = self.task.evaluate(self.student, self.validation, self.accelerator)
        if self.metrics:
            self.log.say(f"step {step}: {self.task.format_metrics(self.metrics, self.validation)}")
        if saved:
            self._describe(step)
        if self.upload:
            self.upload.start(f"Step {step}")
        return self.metrics

    def save_interrupted(self, step: int) -> None:
        """Save the model."""
        if self.save(self.folder):
            self.log.say(f"the model of step {step} is in {self.folder}")

    def finish(self, step: int) -> None:
        """Write metrics and card of the last step, and upload."""
        if MODEL not in self.log.writer.failed:
            self._describe(step)
        self.log.report_failed_writes()
        if self.upload:
            self.upload.finish("End of training")
        self.log.say(f"model, teacher, processor, log and curves are in {self.folder}")

    def _describe(self, step: int) -> None:
        """Write metrics and card, once none of the files is being uploaded."""
        if not self.accelerator.is_main_process:
            return
        if self.upload:
            self.upload.wait()
        self.log.writer.attempt(METRICS_FILE, lambda: write_metrics(self.folder, self.metrics))
        args = self.task.args
        data = f"{len(self.validation)} images: {args.describe_validation_data()}"
        evaluation = Evaluation(self.metrics, self.task.describe_protocol(), data, hub_dataset(args))
        self.write_card(step, evaluation if self.metrics else None)


class BestModel(SavedModel):
    """Save the best model so far, with its predictions; the last one is saved beside it."""

    def evaluate_and_save(self, step: int) -> dict[str, float]:
        """Return the metrics of the model, and save it if it is the best so far."""
        metrics, predictions = self.task.evaluate(self.student, self.validation, self.accelerator)
        self._report(step, metrics, predictions)
        metric = self.task.metric
        if self.metrics and metrics[metric] <= self.metrics[metric]:
            return metrics
        exchanged = self.task.evaluate_exchanged(self.student, self.validation, self.accelerator)
        for name, value in exchanged.items():
            self.log.say(f"    {name} {value:.2f}")
        best = metrics | exchanged | {"step": step}
        saved = self.save(self.folder, lambda folder: write_results(folder, best | self.baselines, predictions))
        if not broadcast_object_list([saved])[0]:  # `metrics` decides what all processes do together
            return metrics
        self.metrics = best
        self._describe()
        if self.upload:
            self.upload.start(f"Step {step}: {metric} {metrics[metric]:.2f}")
        return metrics

    def save_interrupted(self, step: int) -> None:
        """Save the last model beside the best."""
        self._save_last(step)

    def finish(self, step: int) -> None:
        """Save the last model, write the card of the best, and upload."""
        self._save_last(step)
        if self.upload:
            self.upload.wait()
        if self.metrics:
            self._describe(step)
        self.log.report_failed_writes()
        if self.upload:
            self.upload.finish("End of training")
        if self.metrics:  # empty only if no model could be written, which has ended the main process
            best = f"{self.task.metric} {self.metrics[self.task.metric]:.2f} at step {self.metrics['step']}"
            self.log.say(f"best: {best}; it is in {self.folder}")

    def _save_last(self, step: int) -> None:
        """Save the model of a step beside the best, unless it is the best."""
        if self.metrics.get("step") != step and self.save(self.folder / LAST, what="the last model"):
            self.log.say(f"the last model, of step {step}, is in {self.folder / LAST}")

    def _report(self, step: int, metrics: dict[str, float], predictions: list[dict[str, Any]]) -> None:
        self.log.say(f"step {step}: {self.task.format_metrics(metrics, self.validation)}")
        if metrics.get("rows_left_out") or metrics.get("rows/text_cut"):
            self.log.say(f"    skipped or cut: {self.task.row_errors}")
        for prediction in predictions[:3]:
            self.log.say(f"    {self.task.format_prediction(prediction)}")

    def _describe(self, run_steps: int | None = None) -> None:
        """Write the card, of a run that has ended if its length is given."""
        if not self.accelerator.is_main_process:
            return
        args = self.task.args
        exchanged = {name: value for name, value in self.metrics.items() if name.startswith(EXCHANGED)}
        measured = {name: v for name, v in self.metrics.items() if name != "step" and name not in exchanged}
        evaluation = Evaluation(
            measured,
            self.task.describe_protocol(),
            args.describe_validation_data(),
            hub_dataset(args),
            self.baselines | exchanged,
        )
        selection = f"the best by {self.task.metric} of a run of {run_steps} steps" if run_steps else None
        self.write_card(int(self.metrics["step"]), evaluation, selection)
