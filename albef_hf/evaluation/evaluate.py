"""`albef evaluate`: metrics of a pretrained or fine-tuned model on a task, with baselines and every prediction."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from ..configuration_albef import AlbefConfig
from ..processing_albef import AlbefProcessor
from ..training.arguments import FineTuningArguments
from ..training.distributed import make_accelerator
from ..training.model_setup import load_task_model
from ..training.output_folder import LATER_RESULTS, write_metrics, write_results
from ..utils.dtypes import AS_SAVED, dtype_name
from ..utils.progress import log_library_progress
from .match_calibration import require_saved_model, save_calibration, save_reference_texts

if TYPE_CHECKING:
    from ..tasks.base import FineTuningTask


def evaluate(task_class: type["FineTuningTask"], args: FineTuningArguments) -> dict[str, float]:
    """Return the metrics of a model on the validation rows; the main process prints and writes them."""
    log_library_progress()
    calibrates = getattr(args, "calibrate", False)
    if calibrates:
        require_saved_model(args)
    folder = results_folder(args)
    args.output_dir = str(folder)
    args.report_to = ["none"]  # a recipe, or the options of a run, may name trackers
    if args.dtype != "float32":
        if args.mixed_precision not in (None, "no"):  # maybe from a recipe of training
            print(f"dtype {args.dtype} takes the place of mixed_precision {args.mixed_precision}")
        args.mixed_precision = "no"
    accelerator = make_accelerator(args)
    model, processor = load_trained_model(task_class, args)
    task = task_class(args, processor)
    task.fits_calibration = calibrates
    task.normalizes = bool(getattr(args, "reference_files", ()))
    rows = task.validation_rows()
    precision = f"weights in {dtype_name(model.dtype)}, mixed_precision {accelerator.mixed_precision}"
    accelerator.print(f"{_describe(task, rows)}; {precision}")
    metrics, predictions = task.evaluate(model.to(accelerator.device), rows, accelerator)
    metrics |= task.evaluate_exchanged(model, rows, accelerator)
    if accelerator.is_main_process:
        write_results(folder, metrics, predictions)
        task.save_figures(folder, predictions)
        baselines = _baselines(task, rows) if task.metric in metrics else {}  # without answers there are none
        write_metrics(folder, metrics | baselines)
        print(task.format_metrics(metrics, rows))
        for name, value in baselines.items():
            print(f"{name:28s} {value:8.2f}")
        print(f"skipped or cut: {task.row_errors}")
        if task.calibration:
            print(task.calibration.summary)
            save_calibration(Path(args.model), task.calibration.calibration)
            print(_describe_saved(Path(args.model)))
            if task.calibration.reference_texts:
                path = save_reference_texts(folder, task.calibration.reference_texts)
                print(f"the reference texts, for `albef index build --reference_texts`, are in {path}")
        print(f"{len(predictions)} predictions and metrics.json are in {folder}")
    return metrics


def results_folder(args: FineTuningArguments) -> Path:
    """Return the folder of the results; below a model they get their own, since the training left such files there."""
    folder = Path(args.output_dir or args.model)
    if (folder / "config.json").exists():
        return folder / LATER_RESULTS
    return folder if args.output_dir else Path("runs/evaluation")


def load_trained_model(
    task_class: type["FineTuningTask"], args: FineTuningArguments
) -> tuple[PreTrainedModel, AlbefProcessor]:
    """Return the trained head of a task, and the processor, at a resolution and in a dtype.

    Raises:
        ValueError: If some weights of the head are missing, and would be random.
    """
    model, processor, missing = load_task_model(task_class.head, args)
    task_class.check_model(model)
    if missing:
        raise ValueError(
            f"{args.model or 'An untrained model'} has no trained {task_class.head.__name__}: {len(missing)} weights "
            f"are missing, such as {min(missing)}. Fine-tune it with `albef finetune {task_class.training_task()}`, "
            "and evaluate the result."
        )
    saved = AlbefConfig.from_pretrained(args.model).dtype if args.dtype == AS_SAVED else getattr(torch, args.dtype)
    return model.to(saved or torch.float32), processor


def _describe(task: "FineTuningTask", rows: Sequence) -> str:
    saved = (AlbefConfig.from_pretrained(task.args.model).architectures or ["an unknown head"])[0]
    trained = "fine-tuned" if saved == task.head.__name__ else f"{saved}, evaluated without fine-tuning"
    reranked = f", reranking {task.args.rerank_k} candidates of each query" if hasattr(task.args, "rerank_k") else ""
    return f"{task.args.model} ({trained}) on {len(rows)} rows: {task.args.describe_validation_data()}{reranked}"


def _describe_saved(folder: Path) -> str:
    """Return where a calibration was saved, and what to do if the code there does not know it."""
    saved = f"saved in config.json and README.md of {folder}"
    code = folder / "calibration_albef.py"
    if code.exists() and "reference_texts_sha256" not in code.read_text(encoding="utf-8"):
        return (
            f"{saved}; the code there is older than references and may refuse their weight: run `albef renew {folder}`"
        )
    if (folder / "modeling_albef.py").exists() and not code.exists():
        return f"{saved}; the code there is of an earlier release and ignores it: run `albef renew {folder}`"
    return saved


def _baselines(task: "FineTuningTask", rows: Sequence) -> dict[str, float]:
    """Return the baselines; those that are trained need rows to train on."""
    if not task.trains_baselines:
        return task.baselines([], rows)
    if not (task.uses_synthetic_data or task.args.train_files or task.args.dataset):
        print("baselines are not computed; they need rows to train on (train_files or dataset)")
        return {}
    try:
        return task.baselines(task.train_rows(), rows)
    except ValueError as error:  # such as a dataset without that split
        print(f"baselines are not computed; there are no rows to train on: {error}")
        return {}
