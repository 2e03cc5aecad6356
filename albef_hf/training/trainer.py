"""The training loop: student, momentum teacher and optimizer on Accelerate, one step after the other."""

import contextlib
import json
import math
import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration, skip_first_batches
from accelerate.utils import (
    DistributedType,
    GradientAccumulationPlugin,
    TorchDynamoPlugin,
    broadcast_object_list,
)
from safetensors.torch import load_model, save_model
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.utils import logging

from ..compatibility_albef import enable_activation_checkpointing, follow_umask
from ..data.pairs import Issue
from ..data.sources import SourceOptions
from ..model_card import Evaluation, Training, model_card, on_the_hub, save_card
from ..modeling_albef import AlbefAlignedModel, AlbefTeacherOutput
from ..momentum import MOMENTUM_FILE, MomentumTeacher
from ..utils.files import folder_written_aside, is_write_error, locked, written_aside
from ..utils.options import option, redact, save_options
from .checkpointing import (
    CHECKPOINTS,
    Checkpoints,
    load_state,
    process_file,
    random_state,
    restore_random_state,
    save_state,
    steps_of,
)
from .distributed import gather_with_gradient, share_keys
from .hub_upload import HubPush
from .logging import MATCHING_PRIOR, MODEL, TRACKERS, RunLog, installed_trackers
from .signals import Stopped, StopRequest, chosen, start_undisturbed
from .throughput import FlopCounter, Window, peak_of, relative_distance

logger = logging.get_logger(f"transformers.{__name__}")

RUN_ID = "run_id"  # file in the folder of a run
LOCK = "training.lock"  # file there, locked by the process that trains

# Options that may change when a run goes on, and it is the same run still.
OF_NO_CONSEQUENCE = ("overwrite_output_dir", "output_dir", "resume", "save_", "keep_every", "log_every", "hub_")
OF_NO_CONSEQUENCE += ("report_to", "peak_tflops")
OF_NO_CONSEQUENCE += ("push_to_hub", "num_workers", "max_nonfinite_steps", "max_skipped_share", "image_root")


@dataclass
class TrainingOptions:
    """How to train; the defaults are the paper's pretraining."""

    output_dir: str = option("runs/albef", "folder for the model, the log and the curves")
    overwrite_output_dir: bool = option(False, "replace a model, and checkpoints, that are in the folder already")
    resume: bool = option(False, "go on from the newest whole checkpoint in output_dir, where there is one")
    seed: int = option(42, "seed of weights, data order, augmentation and masking")
    epochs: int = option(30, "passes over the data")
    max_steps: int = option(0, "optimizer steps, instead of epochs; required for streams")
    batch_size: int = option(64, "pairs per process and forward pass; the paper has 64 on each of 8 GPUs")
    gradient_accumulation_steps: int = option(1, "forward passes per optimizer step")
    learning_rate: float = option(1e-4, "highest learning rate; it is not scaled with the batch size")
    min_learning_rate: float = option(1e-5, "learning rate at the end of the cosine")
    warmup_steps: int = option(1000, "steps of linear warm-up")
    warmup_learning_rate: float = option(0.0, "learning rate at the start of the warm-up")
    staircase: bool = option(False, "like the original, hold the rate for an epoch, and for 100 steps of the warm-up")
    weight_decay: float = option(0.02, "AdamW's weight decay; biases and layer norms have none")
    max_grad_norm: float = option(0.0, "clip gradients to this norm; 0 leaves them as they are, like the original")
    alpha: float = option(0.4, "share of the teacher in the targets; 0 turns distillation off")
    alpha_ramp_steps: int = option(-1, "steps in which alpha grows from 0 to its value; -1: the first epoch")
    share_keys: bool = option(
        False,
        "contrast with the pairs of all processes and accumulated batches, as in one large batch; off: the paper",
    )
    share_negatives: bool = option(False, "draw hard negatives from the batches of all processes; off: the paper")
    negative_hardness: float = option(
        1.0,
        "power of the contrast's distribution that negatives are drawn from; 1: the paper, 0: any wrong pair alike",
    )
    momentum: float = option(0.995, "share of itself that the teacher keeps at each step")
    queue_size: int = option(65536, "pairs in the teacher's queue; one that was saved with the model stays as it is")
    teacher_dropout: bool = option(True, "leave the teacher's dropout on, like the original")
    mixed_precision: str = option("no", "no, bf16 or fp16; `accelerate launch` may set it too")
    attention: str = option("sdpa", "sdpa, eager or flash_attention_2; with bf16 on a CPU, eager is the fastest")
    gradient_checkpointing: bool = option(False, "recompute activations instead of storing them")
    torch_compile: bool = option(False, "compile the layers; worth it for runs of more than some minutes")
    num_workers: int = option(4, "processes that load data, per training process")
    log_every: int = option(50, "steps between two records in the log")
    report_to: list[str] = option(["tensorboard"], "where records go too: tensorboard, wandb, trackio, or none")
    peak_tflops: float = option(
        0.0, "10^12 operations per second of a device, for the MFU; 0: a known GPU's data sheet"
    )
    eval_every: int = option(0, "steps between two evaluations; 0: at the end of each epoch")
    save_every: int = option(0, "steps between two checkpoints; 0: with each evaluation, -1: only when asked to stop")
    save_total_limit: int = option(2, "newest checkpoints that are kept, at least 1")
    keep_every: int = option(0, "keep the checkpoints of each so many steps for ever; 0: of none")
    max_skipped_share: float = option(0.1, "stop when more than this share of the pairs read had to be skipped")
    max_nonfinite_steps: int = option(20, "stop after so many steps in a row with a non-finite loss or gradient")
    push_to_hub: bool = option(False, "push the folder to the Hub whenever a model is saved, and at the end")
    hub_model_id: str | None = option(None, "repository to push to, such as you/albef; default: the folder's name")
    hub_private: bool = option(False, "make the repository private, where it does not exist yet")
    hub_tag: str | None = option(None, "tag of what is pushed at the end, such as v1.0")
    hub_teacher: bool = option(False, "push momentum.safetensors too, from which training can go on")

    def __post_init__(self) -> None:
        if self.batch_size < 2:
            raise ValueError(
                f"batch_size is {self.batch_size}: image-text matching needs a negative, so at least 2 pairs a batch."
            )
        self.require_at_least(1, "gradient_accumulation_steps", "epochs", "log_every", "max_nonfinite_steps")
        self.require_at_least(1, "save_total_limit")
        self.require_at_least(0, "queue_size", "num_workers", "max_steps", "eval_every", "warmup_steps")
        self.require_at_least(0, "max_grad_norm", "weight_decay", "keep_every")
        self.require_at_least(-1, "alpha_ramp_steps", "save_every")
        self.require_share("alpha", "momentum", "max_skipped_share", "negative_hardness")
        if not 0 <= self.min_learning_rate <= self.learning_rate or self.learning_rate == 0:
            raise ValueError(
                f"learning_rate is {self.learning_rate} and min_learning_rate {self.min_learning_rate}; "
                "both must be positive, and the first the larger one."
            )
        unknown = [name for name in self.report_to if name not in TRACKERS]
        if len(self.report_to) > 1 and "none" in self.report_to:
            raise ValueError("report_to names none and others: leave out one or the other.")
        if unknown:
            raise ValueError(f"report_to has {unknown[0]!r}; choose of {', '.join(TRACKERS)}.")
        if self.mixed_precision not in ("no", "bf16", "fp16"):
            raise ValueError(f"mixed_precision is {self.mixed_precision!r}; choose no, bf16 or fp16.")

    def require_at_least(self, least: int, *names: str) -> None:
        """Raise a `ValueError` for an option below `least`."""
        for name in names:
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}.")

    def require_share(self, *names: str) -> None:
        """Raise a `ValueError` for an option that is not between 0 and 1."""
        for name in names:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is a share between 0 and 1.")


@dataclass
class DataOptions(SourceOptions, TrainingOptions):
    """What to train on and to evaluate on, and how texts and pictures are prepared."""

    validation_files: list[str] = option([], "such lists for evaluation, also beside a dataset to train on")
    validation_split: str | None = option(None, "split of the dataset for evaluation")
    scenes: int = option(20000, "number of built-in rows, where no other data is given")
    validation_size: int = option(1000, "pictures, or built-in rows, used for evaluation")
    min_crop_scale: float = option(0.2, "smallest share of a picture that the augmentation keeps")
    randaugment_operations: int = option(2, "operations of RandAugment drawn for each picture")
    max_words: int = option(30, "words of a text that are kept")
    max_tokens: int = option(25, "tokens of a text that are kept")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(1, "max_words", "scenes")
        self.require_at_least(2, "max_tokens")
        self.require_at_least(0, "validation_size", "randaugment_operations")
        self.require_share("min_crop_scale")
        self.require_one_source()

    def data_in_words(self, files: list[str], split: str | None, count: int) -> str:
        """What rows come from, for the model card."""
        if files:
            return f"the rows of {', '.join(Path(redact(file)).name for file in files)}"
        if self.dataset:
            return f"the dataset {redact(self.dataset)}, split {split}"
        return f"{count} built-in rows, pictures of coloured shapes drawn from a seed"

    def training_in_words(self) -> str:
        """What it is trained on."""
        return self.data_in_words(self.train_files, self.split, self.scenes)

    def validation_in_words(self) -> str:
        """What it is evaluated on, which may be held out of what it is trained on."""
        named = self.validation_files or (self.dataset and self.validation_split)
        if not named and self.has_source:
            return f"a part, held out of {self.training_in_words()}"
        return self.data_in_words(self.validation_files, self.validation_split, self.validation_size)

    @property
    def hub_dataset(self) -> str | None:
        """Name of the dataset on the Hub; None for files, and for readers of files such as imagefolder."""
        return on_the_hub(self.dataset) if self.dataset and "/" in self.dataset and not self.data_files else None


def make_accelerator(options: TrainingOptions) -> Accelerator:
    """An `Accelerator` for these options; settings of `accelerate launch` hold where the options leave them open."""
    compile_layers = TorchDynamoPlugin(backend="inductor", use_regional_compilation=True)
    if options.torch_compile:  # student and teacher call each layer with texts and pictures in nine ways, one too many
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 32)
    accelerator = Accelerator(
        mixed_precision=None if options.mixed_precision == "no" else options.mixed_precision,
        # Accumulation goes on across the end of an epoch, where Accelerate would weigh an incomplete one too little.
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=options.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=options.seed),
        dynamo_plugin=compile_layers if options.torch_compile else None,
        log_with=installed_trackers(options.report_to) or None,
        project_dir=str(Path(options.output_dir) / "tensorboard"),
    )
    if not accelerator.is_main_process:  # whose warnings are the same
        logging.set_verbosity_error()
    return accelerator


def start_push(options: TrainingOptions, accelerator: Accelerator) -> HubPush | None:
    """What pushes the output folder, on the main process, where it is wanted; see `HubPush` for what it checks."""
    if not options.push_to_hub or not accelerator.is_main_process:
        return None
    folder = Path(options.output_dir)
    name = options.hub_model_id or folder.resolve().name
    return HubPush(name, folder, options.hub_private, options.hub_tag, options.hub_teacher, say=tqdm.write)


def start_trackers(options: TrainingOptions, accelerator: Accelerator) -> None:
    """Let them know of the run and its settings."""
    settings = {name: redact(v) for name, v in asdict(options).items() if isinstance(v, (int, float, str))}
    folder = Path(options.output_dir)
    note = folder / RUN_ID  # by which a run that goes on is the same one to wandb
    goes_on = options.resume and note.exists()
    run_id = note.read_text(encoding="utf-8") if goes_on else uuid.uuid4().hex
    if accelerator.is_main_process and not goes_on:
        try:
            with written_aside(note) as aside:
                aside.write_text(run_id, encoding="utf-8")
        except OSError as error:
            logger.warning(f"{note} could not be written ({error}): to wandb, a resumed run will be another one.")
    named = {
        "wandb": {"name": folder.name, "dir": str(folder), "id": run_id, "resume": "allow"},
        "trackio": {"name": folder.name, "resume": "allow" if goes_on else "never"},
    }
    try:
        accelerator.init_trackers("albef_hf", config=settings, init_kwargs=named)
    except Exception as error:  # a service raises whatever it likes
        accelerator.trackers = []  # those that were half started cannot be ended
        raise ValueError(
            f"A tracker of report_to ({', '.join(options.report_to)}) did not start: {error}. Log in to it (wandb "
            "login), let it work alone (WANDB_MODE=offline), or leave it out: log.jsonl is written anyway."
        ) from error


def write_card(
    options: DataOptions,
    push: HubPush | None,
    step: int,
    log: RunLog,
    evaluation: Evaluation | None,
    script: str,
    base_models: list[str],
    teacher: MomentumTeacher | None,
    kept: str | None = None,
) -> None:
    """Leave a model card in the folder of a run; on the main process.

    Args:
        options: Of the run.
        push: Knows what the repository is called.
        step: Optimizer steps that the model has seen.
        log: Knows when the run has started.
        evaluation: What was measured.
        script: What repeats the run, but for its options.
        base_models: What the run has started from.
        teacher: Knows its momentum and its queue, which may have come with it.
        kept: Which state of the run this is, in words, where it is not the last.
    """
    given = redact(asdict(options)) | {"mixed_precision": log.accelerator.mixed_precision}
    del given["momentum"], given["queue_size"]
    if teacher:
        given["momentum"] = teacher.momentum
    if teacher and len(teacher.queue.image_features):
        given["queue_size"] = len(teacher.queue.image_features)
    training = Training(
        options=given,
        steps=step,
        seconds=time.monotonic() - log.start,
        processes=log.accelerator.num_processes,
        command=f"accelerate launch {script} --config options.yaml",
        data=options.training_in_words(),
        dataset=options.hub_dataset,
        base_models=base_models,
        kept=kept,
    )
    folder, left_out = Path(options.output_dir), push.left_out if push else ()
    name = push.repo_id if push else str(folder)

    def write() -> None:
        save_card(model_card(folder, name, training, evaluation, left_out), folder)

    log.writer.attempt("the model card", write)


def save_model_folder(
    folder: Path,
    options: TrainingOptions,
    parts: Sequence[Any],
    log: RunLog,
    push: HubPush | None = None,
    also: Callable[[Path], None] = lambda folder: None,
    what: str = MODEL,
) -> bool:
    """Write all that `from_pretrained` and another training need, from the main process.

    The new files replace the old ones together. Where there is no room for all of them beside the old ones, they are
    written one part after the other, the model first.

    Args:
        folder: Keeps the files that it has if the new ones cannot be written.
        options: Of the run.
        parts: Have `save_pretrained`: the model, then processor and teacher.
        log: Reports what cannot be written.
        push: Is waited for, as it may be uploading the old files.
        also: Writes further files that belong to the model.
        what: Name of the model in reports.

    Returns:
        Whether the model is written. Only the main process knows; the others return True. Broadcast it before all of
        them act on it. This function does not, since it is also called after an error on one process.
    """
    if not log.accelerator.is_main_process:
        return True
    if push:
        push.wait()
    names = [what, *(f"{type(part).__name__} of {what}" for part in parts[1:])]

    def write(*some: Any) -> None:
        with folder_written_aside(folder) as aside:
            for part in some:
                part.save_pretrained(aside)
            if parts[0] in some:
                save_options(options, aside / "options.yaml")
                also(aside)

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
                _set_teacher_aside(folder, log)
        return True
    log.writer.forget(*names)
    return True


def _set_teacher_aside(folder: Path, log: RunLog) -> None:
    """Rename a teacher of an older step than the model, from which a training would go on with both."""
    aside = folder / f"older_{MOMENTUM_FILE}"
    with contextlib.suppress(FileNotFoundError):
        (folder / MOMENTUM_FILE).replace(aside)
        log.say(f"the teacher in {folder} is of an older step than the model: it is called {aside.name} now")


def end_training(accelerator: Accelerator) -> None:
    """End the trackers and the processes' exchange; what a tracker cannot write any more is lost."""
    with contextlib.suppress(OSError):
        accelerator.end_training()


@contextlib.contextmanager
def only_run_in(options: TrainingOptions, accelerator: Accelerator) -> Iterator[None]:
    """Hold the lock of the output folder, on the main process.

    Raises:
        ValueError: On all processes, if another run holds it.
    """
    require_known_processes(accelerator)
    folder, problems = Path(options.output_dir), [""]
    with contextlib.ExitStack() as stack:
        if accelerator.is_main_process:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(folder / LOCK))
            except BlockingIOError as error:
                problems = [f"{error}: wait until that training ends, stop it, or set another output_dir."]
            except OSError as error:
                problems = [f"{folder} cannot be written to ({error}): set another output_dir."]
        (problem,) = broadcast_object_list(problems)
        if problem:
            raise ValueError(problem)
        yield


def prepare_folder(options: TrainingOptions, accelerator: Accelerator) -> Path:
    """The output folder; what is in it stays, unless the options say otherwise or the run goes on with it."""
    require_known_processes(accelerator)
    folder = Path(options.output_dir)
    begun = bool(steps_of(folder / CHECKPOINTS))
    goes_on = options.resume and begun
    if (folder / "model.safetensors").exists() and not (options.overwrite_output_dir or goes_on):
        raise ValueError(f"{folder} holds a model already: set another output_dir, or overwrite_output_dir.")
    if begun and not (options.overwrite_output_dir or goes_on):
        raise ValueError(
            f"{folder} holds checkpoints of a run: resume goes on with it, overwrite_output_dir replaces it."
        )
    accelerator.wait_for_everyone()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def require_known_processes(accelerator: Accelerator) -> None:
    """Refuse processes that know nothing of each other, and ways to share a model that a teacher cannot follow."""
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started != accelerator.num_processes:
        raise ValueError(
            f"{started} processes were started, and each takes itself for one of {accelerator.num_processes}: they "
            "would write over each other's work. Without GPUs, set ACCELERATE_USE_CPU=true for all of them."
        )
    sharded = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
    if accelerator.distributed_type in sharded:
        raise ValueError(
            f"distributed_type is {accelerator.distributed_type.value}: the teacher averages whole weights, so use "
            "MULTI_GPU (DDP), such as train/configs/accelerate/eight_gpus.yaml. Student, teacher and optimizer of the "
            "paper's size take 4.2 GB."
        )


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict]:
    """Two groups for AdamW: vectors and biases without decay, everything else with it.

    As timm's `create_optimizer`, which the original uses: so the temperature, the `[CLS]` token and the learned
    positions decay.
    """
    parameters = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    exempt = [weight for name, weight in parameters if weight.ndim == 1 or name.endswith(".bias")]
    decayed = [weight for name, weight in parameters if not (weight.ndim == 1 or name.endswith(".bias"))]
    return [{"params": exempt, "weight_decay": 0.0}, {"params": decayed, "weight_decay": weight_decay}]


def make_optimizer(student: torch.nn.Module, options: TrainingOptions, device: torch.device) -> torch.optim.AdamW:
    """AdamW, fused where torch has that."""
    groups = parameter_groups(student, options.weight_decay)
    return torch.optim.AdamW(groups, lr=options.learning_rate, fused=device.type in ("cuda", "cpu"))


def alpha_at(step: int, alpha: float, ramp_steps: int) -> float:
    """Share of the teacher at a step: a linear ramp from 0 (the original's `Pretrain.py` ramps over epoch 0)."""
    return alpha * min(1.0, step / ramp_steps) if ramp_steps > 0 else alpha


def learning_rate_at(step: int, options: TrainingOptions, epoch_steps: int, all_steps: int) -> float:
    """Learning rate of a step: linear warm-up, then a cosine.

    As a staircase it is what the original's scripts step through: the warm-up, part of the first epoch, rises every
    100 steps, and the cosine falls at the end of an epoch.

    Args:
        step: Counted from 0.
        options: Say the highest and the lowest rate, and the warm-up.
        epoch_steps: Steps of an epoch.
        all_steps: Steps of the run.
    """
    start, peak, lowest = options.warmup_learning_rate, options.learning_rate, options.min_learning_rate
    warmup = min(options.warmup_steps, all_steps)
    if options.staircase and step < epoch_steps or not options.staircase and step < warmup:
        held = max(step - 1, 0) // 100 * 100 if options.staircase else step
        return start + (peak - start) * min(held / warmup, 1) if warmup else peak
    done = (step - warmup) / max(all_steps - warmup, 1)
    if options.staircase:
        done = step // epoch_steps * epoch_steps / all_steps
    return lowest + (peak - lowest) * (1 + math.cos(math.pi * done)) / 2


def check_pairing(options: TrainingOptions, student: PreTrainedModel, teacher: MomentumTeacher | None) -> None:
    """Refuse options of keys and negatives where there are none."""
    given = [name for name in ("share_keys", "share_negatives") if getattr(options, name)]
    given += ["negative_hardness"] if options.negative_hardness != 1 else []
    if given and not isinstance(student, AlbefAlignedModel):
        raise ValueError(
            f"{' and '.join(given)}: these are for pretraining, retrieval and grounding; {type(student).__name__} "
            "contrasts nothing: leave them out."
        )
    if options.share_keys and teacher is None:
        raise ValueError("share_keys shares the features of the teacher, and this training has none: leave it out.")


class MomentumTraining:
    """Trains a student with a momentum teacher, or without one.

    The loop alone knows of processes and of time: it gathers what the queue takes in, and calls the teacher's update
    once per optimizer step. A step whose loss or gradient is not finite on any process is skipped on all of them, and
    reaches neither weights nor teacher nor queue.

    Args:
        accelerator: From `make_accelerator`.
        options: How to train.
        student: The model.
        teacher: Its teacher; None where nothing is distilled and no queue is needed.
        loader: Yields batches with `issues`; prepared.
        steps_per_epoch: Optimizer steps of an epoch, or None for a stream.
        log: Takes the records.
        evaluate: Called with the step now and then, and at the end; returns metrics.
        keeper: What the evaluation remembers of earlier ones, with `state_dict` and `load_state_dict` as JSON has it;
            None where it remembers nothing.

    Raises:
        ValueError: If no checkpoint to go on from is whole, or it does not fit.
        RuntimeError: From `run`, after too many non-finite steps in a row or too many skipped pairs.
        Stopped: From `run`, when a signal has asked for it and a checkpoint has been written.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        options: TrainingOptions,
        student: PreTrainedModel,
        teacher: MomentumTeacher | None,
        loader: DataLoader,
        steps_per_epoch: int | None,
        log: RunLog,
        evaluate: Callable[[int], dict[str, float]],
        keeper: Any = None,
    ):
        self.accelerator, self.options, self.log, self.evaluate = accelerator, options, log, evaluate
        self.loader, self.student, self.keeper = loader, student, keeper
        self.total_steps = total_steps(options, steps_per_epoch)
        epoch_steps = steps_per_epoch or max(1, self.total_steps // options.epochs)
        self.eval_every = options.eval_every or epoch_steps
        self.alpha_ramp_steps = epoch_steps if options.alpha_ramp_steps < 0 else options.alpha_ramp_steps
        if options.gradient_checkpointing:
            enable_activation_checkpointing(student)
        student.train()
        optimizer = make_optimizer(student, options, accelerator.device)
        self.model, self.optimizer = accelerator.prepare(student, optimizer)
        self.teacher = self.plain_teacher = teacher
        if teacher is not None:
            self.teacher = accelerator.prepare_model(teacher.train(options.teacher_dropout), evaluation_mode=True)
        # Not prepared: Accelerate would step it once per process.
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: learning_rate_at(step, options, epoch_steps, self.total_steps) / options.learning_rate,
        )
        self.step = self.epoch = 0
        self.batches_used = 0  # of the epoch
        self.batches_per_epoch = None if steps_per_epoch is None else len(loader)
        self.stop, self.votes = StopRequest(), [0.0]
        self.keys, self.queue_steps = 0, 0.0  # of a query, and the steps that a key stays in the queue
        self.flops = FlopCounter(student, teacher)
        self.nonfinite_in_a_row = 0
        self.counts: Counter[str] = Counter()
        self.waiting: list[tuple] = []  # batches and what the teacher said of them
        self.pending: list[list[torch.Tensor]] = []
        self.loss_names: list[str] = []
        self.micro_losses: list[torch.Tensor] = []
        self.window = Window(accelerator.device)
        folder, kept = Path(options.output_dir), (options.save_total_limit, options.keep_every)
        self.checkpoints = Checkpoints(accelerator, folder, *kept, say=lambda text: self.log.say(text))
        self.goes_on = options.resume and self._resume()

    def run(self) -> dict[str, float]:
        """Train to the end, from the beginning or a checkpoint; returns the metrics of the last evaluation."""
        if not self.goes_on:
            self.log.begin()
            self.checkpoints.clear()  # of an earlier run, now that nothing of this one has been refused
        with self.stop, contextlib.closing(self._batches()) as batches:  # ends the processes that load data
            # A checkpoint is written before the evaluation of its step, so that no fault in this one can cost it.
            metrics = self._evaluate_if_due() if self.goes_on else {}
            while self.step < self.total_steps:
                batch = next(batches, None)
                if batch is None:
                    raise RuntimeError(
                        "The data ended before the training did; if it is a stream, it may have too few shards."
                    )
                if self.learn(batch):
                    metrics = self._end_of_step() or metrics
        return metrics

    def _end_of_step(self) -> dict[str, float]:
        """Record, save, stop and evaluate, as far as the step calls for it; returns new metrics."""
        is_last, asked = self.step == self.total_steps, chosen(self.votes)
        if self.step % self.options.log_every == 0 or is_last:
            self._record()
        self.log.advance()
        save_every = self.options.save_every or self.eval_every
        saved = False
        if asked or save_every > 0 and (self.step % save_every == 0 or is_last):
            saved = self._save()
        if asked:
            hint = "the checkpoint is written, resume goes on from it" if saved else "without a checkpoint"
            self.log.say(f"step {self.step}: stopped by {asked.name}; {hint}")
            raise Stopped(asked)
        return self._evaluate_if_due()

    def _evaluate_if_due(self) -> dict[str, float]:
        if self.step % self.eval_every and self.step != self.total_steps:
            return {}
        start = time.monotonic()
        metrics = self.evaluate(self.step)
        self.log.write(self.step, metrics)
        self.window.start += time.monotonic() - start  # so that it does not count as slow training
        return metrics

    def _save(self) -> bool:
        """Write a checkpoint; between two steps nothing is pending, so this is all there is."""
        start = time.monotonic()
        own = {"random": random_state(), "window": self.window.state()}
        saved = self.checkpoints.save(self.step, self._write, own)
        self.log.writer.forget(CHECKPOINTS)
        if not saved:
            self.log.writer.failed[CHECKPOINTS] = f"step {self.step}"
        self.window.start += time.monotonic() - start
        return saved

    def _write(self, folder: Path) -> None:
        """Write what is the same on all processes."""
        scaler = self.accelerator.scaler
        save_model(self.student, str(folder / "student.safetensors"))
        if self.plain_teacher is not None:
            save_model(self.plain_teacher, str(folder / "teacher.safetensors"))
        follow_umask(folder.glob("*.safetensors"))
        state = {"optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict()}
        save_state(state | ({"scaler": scaler.state_dict()} if scaler else {}), folder / "optimizer.pt")
        progress = {
            "step": self.step,
            "epoch": self.epoch,
            "batches_used": self.batches_used,
            "batches_per_epoch": self.batches_per_epoch,
            "nonfinite_in_a_row": self.nonfinite_in_a_row,
            "counts": self.counts,
            "records": self.log.records,
            "seconds": time.monotonic() - self.log.start,
            "keeper": self.keeper.state_dict() if self.keeper else None,
            "options": redact(asdict(self.options)),
        }
        (folder / "progress.json").write_text(json.dumps(progress, indent=2) + "\n", encoding="utf-8")

    def _resume(self) -> bool:
        """Go on from the newest checkpoint; returns whether there is one."""
        newest = self.checkpoints.newest()
        if newest:
            self._load(newest)
        return newest is not None

    def _load(self, folder: Path) -> None:
        """Be where a checkpoint was written."""
        progress = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
        if progress["batches_per_epoch"] != self.batches_per_epoch:
            raise ValueError(
                f"{folder} is of a run with {progress['batches_per_epoch']} batches per process and epoch, this one "
                f"has {self.batches_per_epoch}: give the data and batch_size of {folder.parents[1] / 'options.yaml'}."
            )
        self._load_weights(folder)
        own = load_state(folder / process_file(self.accelerator.process_index))
        self.step, self.epoch, self.batches_used = (progress[name] for name in ("step", "epoch", "batches_used"))
        if self.batches_used == self.batches_per_epoch:  # nothing is left of it
            self.epoch, self.batches_used = self.epoch + 1, 0
        self.nonfinite_in_a_row, self.counts = progress["nonfinite_in_a_row"], Counter(progress["counts"])
        if self.keeper:
            self.keeper.load_state_dict(progress["keeper"])
        self.log.begin(progress["records"], progress["seconds"], self.step)
        self.log.say(f"goes on from {folder}{self._other_options(progress['options'])}")
        self.window.load_state(own["window"])
        restore_random_state(own["random"])

    def _load_weights(self, folder: Path) -> None:
        """Student, teacher with its queues, and what the optimizer knows of them."""
        state, scaler = load_state(folder / "optimizer.pt"), self.accelerator.scaler
        try:
            load_model(self.student, folder / "student.safetensors")
            if self.plain_teacher is not None:
                load_model(self.plain_teacher, folder / "teacher.safetensors")
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, FileNotFoundError) as error:
            raise ValueError(
                f"{folder} does not fit this model ({_shortened(error)}): give the options that the run began with."
            ) from error
        self.scheduler.load_state_dict(state["scheduler"])
        if scaler and "scaler" in state:
            scaler.load_state_dict(state["scaler"])

    def _other_options(self, before: dict[str, Any]) -> str:
        """What is no longer as it was when the run began, in words."""
        now = redact(json.loads(json.dumps(asdict(self.options))))
        before = redact(_defaults(self.options) | before)  # a checkpoint may be older than an option
        changed = [
            f"{name} {before[name]} -> {value}"
            for name, value in now.items()
            if before[name] != value and not name.startswith(OF_NO_CONSEQUENCE)
        ]
        return f", with other options, so not as if it had never stopped: {', '.join(changed)}" if changed else ""

    def learn(self, batch: dict[str, torch.Tensor]) -> bool:
        """Learn from a batch; returns whether that has completed an optimizer step, or only been accumulated."""
        self.window.issues += batch.pop("issues")
        self.window.pairs += len(batch["input_ids"])
        self.window.flops += self.flops.of(batch)
        self.waiting.append((batch, self._listen(batch)))
        if self.options.share_keys and len(self.waiting) < self.options.gradient_accumulation_steps:
            return False
        batches, targets = zip(*self.waiting, strict=True)
        if self.options.share_keys:
            targets = share_keys(self.accelerator, targets)
        for some, heard in zip(batches, targets, strict=True):
            with self.accelerator.accumulate(self.model):
                self._forward_backward(some, heard)
                if self.accelerator.sync_gradients:
                    self._optimizer_step()
        self.waiting = []
        return self.accelerator.sync_gradients

    def _batches(self) -> Iterator[dict[str, torch.Tensor]]:
        """Batches of one epoch after the other; the time spent waiting for them is kept."""
        while True:
            self.loader.set_epoch(self.epoch)
            if hasattr(self.loader.dataset, "set_epoch"):  # which Accelerate forgets where it shards the sampler
                self.loader.dataset.set_epoch(self.epoch)
            loader, before = self.loader, None
            if self.batches_used:  # the run goes on in the middle of an epoch
                loader, before = skip_first_batches(loader, self.batches_used), random_state()
            batches, start = start_undisturbed(iter(loader)), time.monotonic()
            for batch in batches:
                if before:  # an iterator draws a number when it starts, which the run has drawn before it was stopped
                    restore_random_state(before)
                    before = None
                self.window.waited += time.monotonic() - start
                self.batches_used += 1
                yield batch
                start = time.monotonic()
            if self.batches_used == 0:
                return
            self.epoch, self.batches_used = self.epoch + 1, 0

    def _listen(self, batch: dict[str, torch.Tensor]) -> AlbefTeacherOutput | None:
        """What the teacher says of a batch; its features are kept for the queue."""
        if self.teacher is None:
            return None
        targets = self.teacher(**batch)
        features = (targets.image_embeds, targets.text_embeds, targets.ids)
        self.pending.append([feature for feature in features if feature is not None])
        return targets

    def _forward_backward(self, batch: dict[str, torch.Tensor], targets: AlbefTeacherOutput | None) -> None:
        """One forward and backward pass of the student."""
        settings = {"gather": gather_with_gradient(self.accelerator)} if self.options.share_negatives else {}
        if self.options.negative_hardness != 1:
            settings |= {"negative_hardness": self.options.negative_hardness}
        if targets is not None:
            settings |= {"teacher_outputs": targets}
            settings |= {"alpha": alpha_at(self.step, self.options.alpha, self.alpha_ramp_steps)}
            self.keys = 0 if targets.image_embeds is None else len(targets.image_embeds) + len(targets.image_queue)
        outputs = self.model(**batch, **settings)
        self.accelerator.backward(outputs.loss)
        losses = {name: value for name, value in outputs.items() if name.startswith("loss") or name == "info_nce"}
        self.loss_names = list(losses)
        # The losses themselves are float32 or better; a model that is bfloat16 as a whole is the exception.
        precise = [value.detach().to(torch.promote_types(value.dtype, torch.float32)) for value in losses.values()]
        self.micro_losses.append(torch.stack(precise))

    def _optimizer_step(self) -> None:
        """Update student, teacher and queue, unless something is not finite."""
        limit = self.options.max_grad_norm or math.inf
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), limit)
        losses = torch.stack(self.micro_losses).mean(0)
        finite = torch.isfinite(losses).all() & torch.isfinite(norm)
        # All have to agree on signals too, and do so in the one exchange of numbers that there is anyway.
        told = torch.cat([finite.float().view(1), torch.tensor(self.stop.votes(), device=finite.device)])
        count, *self.votes = self.accelerator.reduce(told, "sum").tolist()
        healthy = count == self.accelerator.num_processes
        if healthy or self.accelerator.scaler is not None:  # a gradient scaler has to see an overflow to learn of it
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        self.step += 1
        if healthy:
            self._follow()
            self.window.add(torch.cat([losses, norm.detach().to(losses.dtype).view(1)]))
        self._watch_nonfinite(healthy)
        self.pending, self.micro_losses = [], []

    def _follow(self) -> None:
        """What comes after a step of the student: clamp, queue, average."""
        if hasattr(self.student, "clamp_temperature"):
            self.student.clamp_temperature()
        if self.teacher is None:
            return
        features = [torch.cat(parts) for parts in zip(*self.pending, strict=True)]
        if features:
            gathered = self.accelerator.gather(tuple(features))
            self.teacher.enqueue(*gathered)
            self.queue_steps = len(self.plain_teacher.queue.ids) / len(gathered[0])
        self.teacher.update(self.student)

    def _watch_nonfinite(self, healthy: bool) -> None:
        self.nonfinite_in_a_row = 0 if healthy else self.nonfinite_in_a_row + 1
        self.counts["nonfinite_steps"] += not healthy
        if not healthy:
            self.log.say(f"step {self.step}: the loss or a gradient is not finite; the step is skipped")
        if self.nonfinite_in_a_row >= self.options.max_nonfinite_steps:
            raise RuntimeError(
                f"{self.nonfinite_in_a_row} steps in a row had a non-finite loss or gradient. Lower learning_rate, "
                "set max_grad_norm to 1, or use bf16 instead of fp16. None of these steps has reached the weights."
            )

    def _record(self) -> None:
        """Average the window over steps and processes, log it, and see whether too many pairs were bad."""
        window, reduce = self.window, self.accelerator.reduce
        device = self.accelerator.device
        totals = torch.cat([window.issues, torch.tensor([window.pairs, window.flops], device=device)])
        *issues, pairs, flops = reduce(totals, "sum").tolist()
        self.counts.update({issue.name.lower(): int(count) for issue, count in zip(Issue, issues, strict=True)})
        self.counts["pairs"] += int(pairs)
        averages = reduce(window.average(len(self.loss_names) + 1), "mean").tolist()
        seconds = time.monotonic() - window.start
        record = dict(zip((*self.loss_names, "gradient_norm"), averages, strict=True))
        record |= self._state_of_learning(record.get("info_nce"))
        record |= {"pairs_per_second": pairs / seconds, "data_wait_share": window.waited / seconds}
        peak = self.options.peak_tflops * 1e12 or peak_of(device, self.accelerator.mixed_precision)
        rate = flops / seconds / self.accelerator.num_processes
        record |= {"tflops_per_second": rate / 1e12} | ({"mfu": rate / peak} if peak else {})
        self.log.write(self.step, record | self.counts)
        shown = {name.removeprefix("loss_"): record[name] for name in self.loss_names if name.startswith("loss_")}
        self.log.show(**(shown or {"loss": record["loss"]}), pairs_s=record["pairs_per_second"])
        self.window = Window(device)
        self._watch_skipped()
        if self.step == self.total_steps:
            self._watch_matching(record.get("loss_itm", 0.0))

    def _state_of_learning(self, info_nce: float | None) -> dict[str, float]:
        """Where the schedules, the temperature, the queue and the teacher are."""
        state = {"learning_rate": self.scheduler.get_last_lr()[0]}
        if self.keys:
            state["mutual_information_bound"] = math.log(self.keys) - info_nce
            state["temperature"] = self.student.contrastive_head.temperature.item()
        if self.queue_steps:
            state["queue_age"] = min(self.step, math.ceil(self.queue_steps))
        if self.teacher is not None:
            state["alpha"] = alpha_at(self.step, self.options.alpha, self.alpha_ramp_steps)
            state["teacher_distance"] = relative_distance(self.student, self.plain_teacher.model).item()
        return state

    def _watch_skipped(self) -> None:
        skipped = sum(self.counts[issue.name.lower()] for issue in Issue if issue is not Issue.CAPTION_CUT)
        read = self.counts["pairs"] + skipped
        if read >= 50 and skipped > self.options.max_skipped_share * read:
            raise RuntimeError(
                f"{skipped} of {read} pairs could not be used, more than "
                f"max_skipped_share={self.options.max_skipped_share:g} allows: mend the data, or raise the share. "
                f"What was found: {self.issues_found()}."
            )

    def _watch_matching(self, loss: float) -> None:
        """Tell at the end of a matching that has learned nothing, which its recalls hide among those of contrast."""
        if loss > 0.99 * MATCHING_PRIOR:
            hard = self.options.negative_hardness > 0
            easier = ", or let it learn more from easier negatives, with negative_hardness 0" if hard else ""
            self.log.say(
                f"matching (ITM) ends no better than it began: its loss is {loss:.3f}, and {MATCHING_PRIOR:.3f} is "
                "that of knowing only that one pair in three is right. Reranking adds little or nothing to contrast. "
                f"Train for longer, start from a model that knows more{easier}."
            )

    def issues_found(self) -> str:
        """How many pairs were skipped or cut, by reason."""
        found = [(issue.name.lower(), self.counts[issue.name.lower()]) for issue in Issue]
        return ", ".join(f"{name} {count}" for name, count in found if count) or "nothing"


def _shortened(error: Exception) -> str:
    """Return a message of torch in which each list of names is cut, so that none of them hides the others."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(line if len(line) < 200 else f"{line[:200]} ..." for line in lines[:6])


def _defaults(options: TrainingOptions) -> dict[str, Any]:
    """What each option is where it is not given."""
    return {
        field.name: field.default if field.default_factory is MISSING else field.default_factory()
        for field in fields(options)
    }


def total_steps(options: TrainingOptions, steps_per_epoch: int | None) -> int:
    """Optimizer steps of a run."""
    if options.max_steps:
        return options.max_steps
    if steps_per_epoch is None:
        raise ValueError("A stream has no length: set max_steps.")
    return options.epochs * steps_per_epoch
