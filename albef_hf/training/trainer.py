"""The training loop: student, momentum teacher and optimizer on Accelerate, one step after the other.

`training_step` is the step of the paper. The loop alone knows of processes and time: it gathers what enters the queues
and updates the teacher once per optimizer step.
"""

import contextlib
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from ..compatibility_albef import enable_activation_checkpointing
from ..modeling_albef import AlbefImageTextModel
from ..momentum import MomentumTeacher
from ..outputs_albef import AlbefTeacherOutput
from .arguments import TrainingArguments
from .checkpointing import CHECKPOINTS, Checkpoints, random_state
from .compilation import report_recompile_limit
from .dataloaders import Batch, endless_batches, steps_per_epoch
from .distributed import HostCopy, check_batch_size, gather_keys, gather_with_gradient
from .guards import check_nonfinite, check_skipped, matching_warning
from .logging import RunLog
from .optimization import alpha_at, count_steps, gradient_norm, make_optimizer, make_scheduler, step_if
from .records import StepRecorder
from .run_checkpoint import load_run, write_run
from .running_statistics import RunningStatistics
from .signals import EXIT_CODES, SignalHandler, TrainingInterrupted, first_signal
from .state import TrainingState
from .throughput import FlopCounter, relative_distance
from .weight_casts import WeightCasts

if TYPE_CHECKING:
    from .saved_model import SavedModel

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}  # by mixed_precision


class Trainer:
    """Train a student with a momentum teacher, or without one.

    A step whose loss or gradient is not finite on any process is skipped on all of them, and changes neither weights
    nor teacher nor queue. The devices decide that among themselves. With a GPU, the host reads it one step later, so
    that it never waits for work of the present step; then it counts and reports the step, or obeys a signal.

    Args:
        accelerator: From `make_accelerator`.
        args: How to train.
        student: The model.
        teacher: Its teacher; None if nothing is distilled and no queue is needed.
        loader: Yields batches with `issues`; prepared.
        log: Receives the records.
        saved_model: Evaluates every `eval_steps` steps and at the end.

    Raises:
        ValueError: If no checkpoint to resume from is complete, or it does not fit.
        RuntimeError: From `train`, after too many non-finite steps in a row or too many skipped pairs.
        TrainingInterrupted: From `train`, after a signal, when a checkpoint has been written.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        args: TrainingArguments,
        student: PreTrainedModel,
        teacher: MomentumTeacher | None,
        loader: DataLoader,
        log: RunLog,
        saved_model: "SavedModel",
    ):
        self.accelerator = accelerator
        self.args = args
        self.student = student
        self.unwrapped_teacher = teacher
        self.loader = loader
        self.log = log
        self.saved_model = saved_model
        self._plan(steps_per_epoch(loader, args))
        self._prepare()
        self.signals = SignalHandler()
        self.flags: HostCopy | None = None  # of the last step: processes whose step was finite, and signals
        self.signal_flags = [0.0] * len(EXIT_CODES)  # of all processes, when flags were read last
        settings = {name: value for name, value in self.forward_settings.items() if name != "gather"}
        self.recorder = StepRecorder(accelerator, args, FlopCounter(student, teacher, args.alpha, settings))
        self.accumulated: list[tuple[Batch, AlbefTeacherOutput | None]] = []  # with gather_keys
        self.queued_features: list[list[torch.Tensor]] = []  # enter the queue with the optimizer step
        self.num_keys = 0  # that a query is contrasted with
        self.queue_steps = 0.0  # that a key stays in the queue
        self.checkpoints = Checkpoints(
            accelerator, Path(args.output_dir), args.save_total_limit, args.keep_every, say=log.say
        )
        self.resumed = args.resume_from_checkpoint and self._resume()
        self.statistics = RunningStatistics([model for model in (student, teacher) if model is not None])

    def _plan(self, epoch_steps: int | None) -> None:
        """Set how many steps there are, and what happens when."""
        args = self.args
        batches_per_epoch = None if epoch_steps is None else len(self.loader)
        self.state = TrainingState(batches_per_epoch=batches_per_epoch)
        self.total_steps = count_steps(args, epoch_steps)
        self.epoch_steps = epoch_steps or max(1, self.total_steps // args.num_train_epochs)
        self.eval_steps = args.eval_steps or self.epoch_steps
        self.save_steps = args.save_steps or self.eval_steps
        self.alpha_ramp_steps = self.epoch_steps if args.alpha_ramp_steps < 0 else args.alpha_ramp_steps

    def _prepare(self) -> None:
        """Wrap models and optimizer for the processes."""
        args = self.args
        if args.gradient_checkpointing:
            enable_activation_checkpointing(self.student)
        self.student.train()
        optimizer = make_optimizer(self.student, args, self.accelerator.device)
        # The student inside DistributedDataParallel, where there are several processes; likewise the teacher.
        self.model, self.optimizer = self.accelerator.prepare(self.student, optimizer)
        dtype = AUTOCAST_DTYPES.get(self.accelerator.mixed_precision)
        # Compiled code casts weights where it reads them.
        self.weight_casts = WeightCasts(self.student, dtype) if dtype and not args.torch_compile else None
        self.teacher = None
        if self.unwrapped_teacher is not None:
            self.unwrapped_teacher.train(args.teacher_dropout)
            if dtype is not None:
                self.unwrapped_teacher.keep_low_precision(dtype)
            self.teacher = self.accelerator.prepare_model(self.unwrapped_teacher, evaluation_mode=True)
        # Not prepared: Accelerate would step it once per process.
        self.scheduler = make_scheduler(optimizer, args, self.epoch_steps, self.total_steps)
        # Benchmarks train without a saved model.
        self.forward_settings: dict[str, Any] = (
            dict(self.saved_model.task.forward_settings) if self.saved_model else {}
        )
        if args.gather_negatives:
            self.forward_settings["gather"] = gather_with_gradient(self.accelerator)
        if args.hardness_strength != 1:
            self.forward_settings["hardness_strength"] = args.hardness_strength
        if args.itm_negatives != 1:
            self.forward_settings["itm_negatives"] = args.itm_negatives
        if args.itm_contrast_weight:
            self.forward_settings["itm_contrast_weight"] = args.itm_contrast_weight

    def train(self) -> None:
        """Train to the end, from the beginning or a checkpoint."""
        if not self.resumed:
            self.log.begin()
            self.checkpoints.clear()  # of an earlier run, now that nothing of this one was refused
        step = self.gathered_keys_step if self.args.gather_keys else self.training_step
        normalize = self.saved_model.task.normalize
        batches = endless_batches(self.loader, self.state, self.recorder, self.accelerator.device, normalize)
        report = report_recompile_limit(self.log.say)
        with self.signals, report, contextlib.closing(batches):  # ends the DataLoader workers
            # A checkpoint is written before the evaluation of its step, which may fail without losing it.
            if self.resumed:
                self._evaluate_if_due()
            while self.state.step < self.total_steps:
                batch = next(batches, None)
                if batch is None:
                    raise RuntimeError(
                        "The data ended before the training did; if it is a stream, it may have too few shards."
                    )
                check_batch_size(batch, self.args, self.accelerator)
                self.recorder.add_batch(batch, issues=batch.pop("issues"))
                if step(batch):
                    self._end_of_step()

    # The step

    def training_step(self, batch: Batch) -> bool:
        """Run one forward and backward pass; return whether it completed an optimizer step."""
        targets = self._teacher_forward(batch)  # EMA copy and queues, no gradient
        return self._student_step(batch, targets)

    def _student_step(self, batch: Batch, targets: AlbefTeacherOutput | None) -> bool:
        with self.accelerator.accumulate(self.model):
            with self.weight_casts.applied() if self.weight_casts else contextlib.nullcontext():
                outputs = self.model(**batch, **self.forward_settings, **self._distillation(targets))  # ITC, ITM, MLM
                self.accelerator.backward(outputs.loss)
            self.recorder.add_losses(outputs)
            if not self.accelerator.sync_gradients:
                return False
            is_finite = self._optimizer_step()  # on the device, which decides what changes; the host does not wait
            self.statistics.end_step(is_finite)
            if isinstance(self.student, AlbefImageTextModel):
                self.student.clamp_temperature()
            self._update_teacher(is_finite)
        self.queued_features = []
        return True

    def _teacher_forward(self, batch: Batch) -> AlbefTeacherOutput | None:
        """Compute the teacher's targets for a batch; its features are kept for the queue."""
        if self.teacher is None:
            return None
        targets = self.teacher(**batch, alpha=self._alpha())
        features = (targets.image_embeds, targets.text_embeds, targets.ids)
        self.queued_features.append([feature for feature in features if feature is not None])
        return targets

    def _distillation(self, targets: AlbefTeacherOutput | None) -> dict[str, Any]:
        """Return the arguments of the student's forward pass that come from the teacher."""
        if targets is None:
            return {}
        if targets.image_embeds is not None and targets.image_queue is not None:
            self.num_keys = len(targets.image_embeds) + len(targets.image_queue)
        return {"teacher_outputs": targets, "alpha": self._alpha()}

    def _alpha(self) -> float:
        return alpha_at(self.state.step, self.args.alpha, self.alpha_ramp_steps)

    def _optimizer_step(self) -> torch.Tensor:
        """Update the student unless a loss or gradient is not finite on any process; return whether all are finite."""
        norm = gradient_norm(self.accelerator, self.model, self.args.max_grad_norm)
        losses = self.recorder.mean_losses()
        finite = (torch.isfinite(losses).all() & torch.isfinite(norm)).float()
        # All processes have to agree on signals too; their flags travel with the one number exchanged anyway.
        flags = [finite.new_full((), flag) for flag in self.signals.flags()]
        flags = self.accelerator.reduce(torch.stack([finite, *flags]), "sum")
        is_finite = flags[0] == self.accelerator.num_processes
        step_if(self.optimizer, is_finite)
        self.optimizer.zero_grad()
        self.scheduler.step()
        self._read_flags()  # of the step before, which the device has completed
        self.state.step += 1
        self.flags = HostCopy(flags)
        self.recorder.add_step(losses, norm, is_finite)
        return is_finite

    def _update_teacher(self, is_finite: torch.Tensor) -> None:
        """Add the teacher's features of this step to the queue, then move the teacher towards the student."""
        if self.teacher is None or self.unwrapped_teacher is None:
            return
        features = [torch.cat(parts) for parts in zip(*self.queued_features, strict=True)]
        if features:
            gathered = self.accelerator.gather(tuple(features))
            self.teacher.enqueue(*gathered, is_finite=is_finite)
            self.queue_steps = len(self.unwrapped_teacher.queue.ids) / len(gathered[0])
        self.teacher.update(self.student, is_finite)

    def gathered_keys_step(self, batch: Batch) -> bool:
        """Run the step once all accumulated batches are there, contrasting each with the keys of all of them."""
        self.accumulated.append((batch, self._teacher_forward(batch)))
        if len(self.accumulated) < self.args.gradient_accumulation_steps:
            return False
        batches = [batch for batch, _ in self.accumulated]
        outputs = [targets for _, targets in self.accumulated if targets is not None]
        self.accumulated = []
        completed = False
        for batch, targets in zip(batches, gather_keys(self.accelerator, outputs), strict=True):
            completed = self._student_step(batch, targets)
        return completed

    # After a step

    def _read_flags(self) -> None:
        """Note signals of all processes, and count the last step if it was not finite; only once for each step."""
        if self.flags is None:
            return
        finite_processes, *self.signal_flags = self.flags.tolist()
        self.flags = None
        healthy = finite_processes == self.accelerator.num_processes
        self.state.nonfinite_in_a_row = 0 if healthy else self.state.nonfinite_in_a_row + 1
        self.state.counts["nonfinite_steps"] += not healthy
        if not healthy:
            self.log.say(f"step {self.state.step}: the loss or a gradient is not finite; the step was skipped")
        check_nonfinite(self.state, self.args.max_nonfinite_steps)

    def _end_of_step(self) -> None:
        """Log, save, stop and evaluate if the step calls for it."""
        step = self.state.step
        is_last = step == self.total_steps
        is_recorded = step % self.args.logging_steps == 0 or is_last
        is_saved = self.save_steps > 0 and (step % self.save_steps == 0 or is_last)
        is_free = self.flags is not None and self.flags.is_here
        if is_free or is_recorded or is_saved or step % self.eval_steps == 0 or first_signal(self.signal_flags):
            self._read_flags()  # before the next step
        received = first_signal(self.signal_flags)
        if is_recorded:
            self._log_record()
        self.log.advance()
        saved = self._save() if received or is_saved else False
        if received:
            hint = "the checkpoint is written, resume_from_checkpoint continues" if saved else "without a checkpoint"
            self.log.say(f"step {step}: stopped by {received.name}; {hint}")
            raise TrainingInterrupted(received)
        self._evaluate_if_due()

    def _evaluate_if_due(self) -> None:
        step = self.state.step
        if step % self.eval_steps and step != self.total_steps:
            return
        start = time.monotonic()
        metrics = self.saved_model.evaluate_and_save(step)
        self.log.write(step, metrics)
        self.recorder.window.exclude(time.monotonic() - start)

    def _log_record(self) -> None:
        """Log the averages since the last record, and check the data and the matching loss."""
        averages, rates = self.recorder.finish_record(self.state)
        record = averages | self._training_stats(averages.get("info_nce")) | rates
        self.log.write(self.state.step, record | self.state.counts)
        self.log.show(**self.recorder.summary(record))
        check_skipped(self.state.counts, self.args.max_skipped_share)
        warning = matching_warning(record.get("loss_itm", 0.0), self.args)
        if warning and self.state.step == self.total_steps:
            self.log.say(warning)

    def _training_stats(self, info_nce: float | None) -> dict[str, float]:
        """Return the present values of schedules, temperature, queue and teacher."""
        rates = self.scheduler.get_last_lr()
        stats: dict[str, float] = {"learning_rate": float(rates[0])}
        for name in ("image_encoder_learning_rate", "text_encoder_learning_rate"):
            if getattr(self.args, name) is not None:
                stats[name] = stats["learning_rate"] * getattr(self.args, name) / self.args.learning_rate
        if self.args.layer_decay < 1:
            stats["lowest_learning_rate"] = float(min(rates))
        if info_nce is not None and self.num_keys and isinstance(self.student, AlbefImageTextModel):
            # A lower bound on the mutual information of image and text, in nats (section 4 of the paper).
            stats["mutual_information_bound"] = math.log(self.num_keys) - info_nce
            stats["temperature"] = self.student.contrastive_head.temperature.item()
        if self.queue_steps:
            stats["queue_age"] = min(self.state.step, math.ceil(self.queue_steps))
        if self.unwrapped_teacher is not None:
            stats["alpha"] = self._alpha()
            stats["teacher_distance"] = relative_distance(self.student, self.unwrapped_teacher.model).item()
        return stats

    def _save(self) -> bool:
        """Write a checkpoint; between two steps no features are queued, so this is complete."""
        start = time.monotonic()
        process_state = {"random": random_state(), "window": self.recorder.window.state_dict()}
        saved = self.checkpoints.save(self.state.step, lambda folder: write_run(self, folder), process_state)
        self.log.writer.forget(CHECKPOINTS)
        if not saved:
            self.log.writer.failed[CHECKPOINTS] = f"step {self.state.step}"
        self.recorder.window.exclude(time.monotonic() - start)
        return saved

    def _resume(self) -> bool:
        """Load the latest checkpoint; return whether there is one."""
        folder = self.checkpoints.latest()
        if folder is not None:
            load_run(self, folder)
        return folder is not None
