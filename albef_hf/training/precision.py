"""Choose and describe the precision of a training; a GPU that has bfloat16 is not left in float32 by default."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import parse_flag_from_env

from ..utils.devices import accelerator_type, has_bf16
from .arguments import TrainingArguments
from .checkpointing import CHECKPOINTS, list_steps
from .run_checkpoint import PROGRESS_FILE


def choose_mixed_precision(args: TrainingArguments) -> str:
    """Return what the option, the launcher, the resumed run or the device asks for; the first of them that does.

    `accelerate launch` sets "no" by default, so its environment counts only for other values.
    """
    if args.mixed_precision or args.tf32:
        return args.mixed_precision or "no"
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if launched not in ("no", "bf16", "fp16"):
        raise ValueError(f"accelerate launch asks for {launched}; choose no, bf16 or fp16, or set mixed_precision.")
    if launched != "no":
        return launched
    resumed = _options_of_resumed_run(args).get("mixed_precision")
    kind = "cpu" if parse_flag_from_env("ACCELERATE_USE_CPU") else accelerator_type()
    return resumed or ("bf16" if has_bf16(kind) else "no")


def has_tf32(device: torch.device) -> bool:
    """Return whether a GPU multiplies in TF32."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


def enable_tf32(device: torch.device) -> None:
    """Multiply float32 matrices in TF32.

    Raises:
        ValueError: If the device has none.
    """
    if not has_tf32(device):
        raise ValueError(f"tf32 needs an NVIDIA GPU from Ampere on, but the device is {device}; remove it.")
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True


def describe_precision(accelerator: Accelerator) -> str:
    """Return the precision in effect, and the faster one that a GPU in float32 has."""
    device = accelerator.device
    if accelerator.mixed_precision != "no":
        return f"mixed precision {accelerator.mixed_precision}"
    if has_tf32(device) and torch.backends.cuda.matmul.allow_tf32:
        return "float32, multiplied in TF32"
    if device.type not in ("cuda", "xpu"):
        return "float32"
    faster = "--mixed_precision bf16" if has_bf16(device.type) else "--mixed_precision fp16"
    tf32 = ", or --tf32 to keep float32 except in products" if has_tf32(device) else ""
    return f"float32. WARNING: this leaves most of the GPU unused; it is several times as fast with {faster}{tf32}"


def _options_of_resumed_run(args: TrainingArguments) -> dict[str, Any]:
    """Return the options in the latest checkpoint that can be read, if the run resumes; all have one precision."""
    folder = Path(args.output_dir) / CHECKPOINTS
    for step in sorted(list_steps(folder), reverse=True) if args.resume_from_checkpoint else ():
        try:
            return json.loads((folder / f"step_{step}" / PROGRESS_FILE).read_text(encoding="utf-8"))["options"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # damaged, which is reported where it is loaded
    return {}
