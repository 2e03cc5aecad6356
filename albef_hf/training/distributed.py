"""Processes of a distributed training: the accelerator, and what they exchange besides gradients."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import DistributedType, GradientAccumulationPlugin
from transformers.utils import logging

from ..losses_albef import IGNORED
from ..modeling_albef import Gather
from ..outputs_albef import AlbefTeacherOutput
from .arguments import TrainingArguments
from .compilation import compile_plugin
from .logging import installed_trackers


def make_accelerator(args: TrainingArguments) -> Accelerator:
    """Return an `Accelerator`; the environment of `accelerate launch` applies where the options leave it open."""
    accelerator = Accelerator(
        mixed_precision=None if args.mixed_precision == "no" else args.mixed_precision,
        # Accumulation continues across the end of an epoch, where Accelerate would give an incomplete one too little
        # weight.
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=args.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        dataloader_config=DataLoaderConfiguration(
            use_seedable_sampler=True,
            data_seed=args.seed,
            non_blocking=not torch.backends.mps.is_available(),  # which may copy memory that was freed meanwhile
        ),
        dynamo_plugin=compile_plugin() if args.torch_compile else None,
        log_with=installed_trackers(args.report_to) or None,
        project_dir=str(Path(args.output_dir) / "tensorboard"),
    )
    if not accelerator.is_main_process:  # its warnings would be repeated
        logging.set_verbosity_error()
    return accelerator


class HostCopy:
    """A tensor on its way from a device to the host, which can be read later without waiting for all other work.

    Args:
        tensor: The tensor; `tolist` returns its present values.
    """

    def __init__(self, tensor: torch.Tensor):
        has_events = tensor.device.type in ("cuda", "xpu")
        self.values = tensor.to("cpu", non_blocking=has_events)  # to pinned memory
        self.arrival = torch.Event(tensor.device) if has_events else None
        if self.arrival is not None:
            self.arrival.record()

    @property
    def is_here(self) -> bool:
        """Whether the values can be read without waiting."""
        return self.arrival is None

    def tolist(self) -> list[float]:
        """Return the values, after waiting for them."""
        if self.arrival is not None:
            self.arrival.synchronize()
        return self.values.tolist()


def check_processes(accelerator: Accelerator) -> None:
    """Refuse processes that do not know each other, and sharded models, which a teacher cannot follow."""
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started != accelerator.num_processes:
        raise ValueError(
            f"WORLD_SIZE is {started} but Accelerate sees {accelerator.num_processes} process(es): each would train "
            "alone and overwrite the other's output. Without GPUs, set ACCELERATE_USE_CPU=true for all of them."
        )
    sharded = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
    if accelerator.distributed_type in sharded:
        raise ValueError(
            f"distributed_type is {accelerator.distributed_type.value}, but the teacher averages unsharded weights. "
            "Use MULTI_GPU (DDP), such as train/accelerate/eight_gpus.yaml; student, teacher and optimizer of the "
            "paper's size take 4.2 GB."
        )


class _Gathered(torch.autograd.Function):
    """The rows of all processes; gradients return to the process that each row came from."""

    @staticmethod
    def forward(ctx: Any, accelerator: Accelerator, tensor: torch.Tensor) -> torch.Tensor:
        ctx.accelerator = accelerator
        ctx.rows = len(tensor)
        return accelerator.gather(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, torch.Tensor]:
        gradients = ctx.accelerator.reduce(gradient.contiguous(), "sum").split(ctx.rows)
        return None, gradients[ctx.accelerator.process_index]


def gather_with_gradient(accelerator: Accelerator) -> Gather:
    """Return a function that joins a tensor of each process, (batch, ...), to (all, ...), own rows first.

    The second axis is padded with zeros to the longest. Unlike `accelerator.gather`, the function passes gradients
    back: their sum over processes, which DDP's averaging turns into the gradient of one process with all rows.
    """

    def gather(tensor: torch.Tensor) -> torch.Tensor:
        padded = accelerator.pad_across_processes(tensor, dim=1).contiguous()
        parts = list(_Gathered.apply(accelerator, padded).split(len(tensor)))
        own = parts.pop(accelerator.process_index)
        return torch.cat([own, *parts])

    return gather


def gather_keys(accelerator: Accelerator, outputs: Sequence[AlbefTeacherOutput]) -> Iterator[AlbefTeacherOutput]:
    """Yield the teacher's outputs of the batches of a step, each with the features of all others before its queue.

    Each batch is then contrasted with the keys of all batches of all processes, like one batch of all their pairs.
    Keys have no gradient, so nothing else has to be exchanged, and nothing is computed twice.

    Args:
        accelerator: Provides the processes.
        outputs: Of batches of equal size on all processes.
    """
    own = [torch.cat([getattr(output, name) for output in outputs]) for name in ("image_embeds", "text_embeds")]
    ids = [output.ids for output in outputs if output.ids is not None]
    gathered = accelerator.gather((*own, torch.cat(ids)) if ids else tuple(own))
    end = len(own[0]) * accelerator.process_index
    for output in outputs:
        start = end
        end = start + len(output["image_embeds"])
        others = [torch.cat([keys[:start], keys[end:]]) for keys in gathered]
        other_ids = others[2] if ids else output["queue_ids"].new_full((len(others[0]),), IGNORED)
        extra = {"image_queue": others[0], "text_queue": others[1], "queue_ids": other_ids}
        queues = {name: torch.cat([keys, output[name].to(keys.dtype)]) for name, keys in extra.items()}
        yield AlbefTeacherOutput(**{**output, **queues})  # one at a time, since each holds a copy of the queue
