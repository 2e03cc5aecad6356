"""Options of `albef evaluate`; only light libraries are imported here, so that `--help` is fast."""

from dataclasses import fields
from pathlib import Path
from typing import TypeVar

import yaml

from ..training.arguments import FineTuningArguments, TrainingArguments
from ..utils.command_line import parse_arguments
from ..utils.renamed_options import with_present_names

Arguments = TypeVar("Arguments", bound=FineTuningArguments)

# Options of a training that an evaluation uses, too.
SHARED_OPTIONS = {"attn_implementation", "ddp_timeout", "mixed_precision", "output_dir", "seed", "tf32"}
UNUSED_OPTIONS = {field.name for field in fields(TrainingArguments)} - SHARED_OPTIONS
UNUSED_OPTIONS |= {"fast_resize", "flip_probability", "min_crop_scale", "pad_to_multiple_of", "randaugment_operations"}
UNUSED_OPTIONS |= {"balance_classes", "label_smoothing", "start_matching_from_contrast"}
UNUSED_OPTIONS |= {"labels", "problem_type"}  # an evaluation has those of the model


def parse_evaluation(task: str, kind: type[Arguments], arguments: list[str]) -> Arguments:
    """Parse the options of an evaluation.

    Args:
        task: Name of the task.
        kind: Its options.
        arguments: Command line without the program's name, the command and the task.
    """
    description = (
        f"Evaluate a model on {task}: metrics, baselines and every prediction. The model may be fine-tuned, or "
        "pretrained if it has all weights of the head. Without --output_dir, results go to the folder evaluation in "
        "that of the model."
    )

    def parse(**defaults: int) -> Arguments:
        return parse_arguments(
            kind,
            description,
            arguments,
            prog=f"albef evaluate {task}",
            recipes=task,
            unused=UNUSED_OPTIONS | kind.unused_options,
            defaults={"output_dir": "", **defaults},
        )

    args = parse()
    rerank_k = _rerank_k_of_training(args) if task == "retrieval" else None
    return args if rerank_k is None else parse(rerank_k=rerank_k)


def _rerank_k_of_training(args: FineTuningArguments) -> int | None:
    """Return how many candidates the training of the model reranked, if that is known."""
    if not args.model:
        return None
    from transformers.utils.hub import cached_file

    from ..training.output_folder import OPTIONS_FILE

    path = cached_file(args.model, OPTIONS_FILE, _raise_exceptions_for_missing_entries=False)
    if path is None:
        return None
    options = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    return with_present_names(options).get("rerank_k")
