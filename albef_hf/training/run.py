"""Run a training: build model, data and trainer from the options, train, save.

Pretraining is a task like the others; a task says what differs (see `albef_hf.tasks.base.Task`).
"""

import shutil
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from accelerate.utils import set_seed
from transformers import PreTrainedModel

from ..modeling_albef import AlbefImageTextModel
from ..momentum import MomentumTeacher
from ..processing_albef import AlbefProcessor
from ..utils.progress import log_library_progress
from .arguments import TrainingArguments
from .dataloaders import steps_per_epoch
from .distributed import check_same_options, make_accelerator
from .guards import describe_skipped
from .image_states import load_image_states
from .logging import RunLog, start_trackers
from .lora import add_lora
from .model_setup import freeze_encoders, make_teacher
from .optimization import count_steps
from .output_folder import LATER_RESULTS, end_training, is_resumed, lock_output_dir, prepare_output_dir, start_upload
from .precision import describe_precision
from .saved_model import LAST
from .trainer import Trainer

if TYPE_CHECKING:
    from ..tasks.base import Task


def run(task_class: type["Task"], args: Any) -> dict[str, float]:
    """Train a task with the lock of the output directory; return the metrics of the model that is kept."""
    log_library_progress()
    accelerator = make_accelerator(args)
    try:
        with lock_output_dir(args, accelerator):
            return train(task_class, args, accelerator)
    finally:
        end_training(accelerator)


def train(task_class: type["Task"], args: Any, accelerator: Accelerator) -> dict[str, float]:
    """Build student, teacher, data and log, train, and save; return the metrics of the model that is kept."""
    check_same_options(args, accelerator)
    folder = prepare_output_dir(args, accelerator)
    upload = start_upload(args, accelerator)
    set_seed(args.seed)  # the same on all processes, so that their teachers and queues start alike
    student, teacher, processor = load_models(task_class, args)
    task = task_class(args, processor)
    rows, validation = task.load_rows(accelerator)
    prepare(task, student, teacher, rows, accelerator)
    loader = task.train_dataloader(rows, accelerator)
    task.check_validation(validation)
    start_trackers(args, accelerator)
    total_steps = count_steps(args, steps_per_epoch(loader, args))
    log = RunLog(accelerator, folder, total_steps, args.logging_steps)
    drop_calibration(student, log)
    baselines = task.baselines(rows, validation) if accelerator.is_main_process else {}
    saved_model = task.saved_model_class(
        task=task,
        validation=validation,
        baselines=baselines,
        student=student,
        teacher=teacher,
        accelerator=accelerator,
        log=log,
        upload=upload,
    )
    log.say(describe_run(task, student, teacher, total_steps, steps_per_epoch(loader, args), accelerator))
    log.say(task.describe_data(rows, validation, baselines))
    set_seed(args.seed, device_specific=True)  # from here on dropout and negatives differ between processes
    trainer = Trainer(accelerator, args, student, teacher, loader, log, saved_model)
    if accelerator.is_main_process:
        for name in (LAST,) if trainer.resumed else (LAST, LATER_RESULTS):  # of a model that is replaced
            shutil.rmtree(folder / name, ignore_errors=True)
    try:
        trainer.train()
    except (Exception, KeyboardInterrupt):  # keep what was learned; after TrainingInterrupted there is a checkpoint
        saved_model.save_interrupted(trainer.state.step)
        raise
    finally:
        log.close()
    log.say(f"rows skipped or cut: {describe_skipped(trainer.state.counts)}")
    saved_model.finish(trainer.state.step)
    accelerator.wait_for_everyone()  # a scheduler may end all processes soon after the first one has ended
    return saved_model.metrics


def load_models(task_class: type["Task"], args: Any) -> tuple[PreTrainedModel, MomentumTeacher | None, AlbefProcessor]:
    """Return student, teacher and processor; what is frozen is shared by both, and LoRA is added to both."""
    student, processor = task_class.load_model(args)
    freeze_encoders(student, args)
    teacher = make_teacher(args, student)
    if args.lora_rank:
        add_lora(student, teacher, args)
    check_contrastive_options(args, student, has_teacher=teacher is not None)
    return student, teacher, processor


def prepare(
    task: "Task", student: PreTrainedModel, teacher: MomentumTeacher | None, rows: Any, accelerator: Accelerator
) -> None:
    """Compute the states of images if they are cached, and let the task change the models of a new training."""
    if task.args.cache_image_states:
        task.image_states = load_image_states(task, student, rows, accelerator)
    if not is_resumed(task.args):
        task.prepare_model(student, teacher, rows, accelerator)


def drop_calibration(student: PreTrainedModel, log: RunLog) -> None:
    """Remove the calibration of a model whose weights are about to change."""
    if student.config.match_calibration is not None:
        student.config.match_calibration = None
        log.say(
            "the calibration of the initial model does not hold after further training and was dropped; "
            "`albef evaluate retrieval --calibrate` fits another one"
        )


def check_contrastive_options(args: TrainingArguments, student: object, has_teacher: bool) -> None:
    """Refuse options of keys and negatives for a model without them.

    Raises:
        ValueError: If such an option would have no effect.
    """
    given = [name for name in ("gather_keys", "gather_negatives", "itm_contrast_weight") if getattr(args, name)]
    given += [name for name in ("hardness_strength", "itm_negatives") if getattr(args, name) != 1]
    if given and not isinstance(student, AlbefImageTextModel):
        raise ValueError(
            f"{' and '.join(given)}: {type(student).__name__} has no contrastive loss; these options are for "
            "pretraining, retrieval and grounding."
        )
    if args.gather_keys and not has_teacher:
        raise ValueError("gather_keys gathers the features of the teacher, which this training does not have.")


def describe_run(
    task: "Task",
    student: PreTrainedModel,
    teacher: MomentumTeacher | None,
    total_steps: int,
    epoch_steps: int | None,
    accelerator: Accelerator,
) -> str:
    """Return model and length of a training, in a few lines."""
    args = task.args
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * accelerator.num_processes
    epochs = f" ({total_steps / epoch_steps:.3g} epochs)" if epoch_steps else ""
    trained = student.num_parameters(only_trainable=True)
    frozen = student.num_parameters() - trained
    parts = f" ({trained / 1e6:.1f} trained, {frozen / 1e6:.1f} frozen)" if frozen else ""
    memory = "no teacher"
    if teacher is not None:
        queue = len(teacher.queue.image_features)
        size = "that shares what is frozen" if teacher.shared else "of the same size"
        memory = f"teacher {size}, {f'queue of {queue} pairs' if queue else 'no queue'}"
    return (
        f"{task.name}: {student.num_parameters() / 1e6:.1f} million parameters{parts}, {memory}\n"
        f"{total_steps} steps{epochs} of {per_step} rows: {args.per_device_train_batch_size} on each of "
        f"{accelerator.num_processes} process(es), {args.gradient_accumulation_steps} accumulated; "
        f"everything goes to {args.output_dir}\n"
        f"precision: {describe_precision(accelerator)}"
    )
