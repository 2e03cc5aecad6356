"""Processes of a distributed training: the accelerator, and what they exchange besides gradients."""

import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import (
    DDPCommunicationHookType,
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    KwargsHandler,
    gather_object,
)
from transformers.utils import logging

from ..losses_albef import IGNORED
from ..modeling_albef import Gather
from ..outputs_albef import AlbefTeacherOutput
from .arguments import TrainingArguments
from .compilation import compile_plugin
from .logging import installed_trackers
from .precision import choose_mixed_precision, enable_tf32

# Options that may differ between processes: paths on their nodes, and their workers.
LOCAL_OPTIONS = (
    *("cache_image_states", "dataloader_num_workers", "image_root", "model", "output_dir", "refer_root", "text_model"),
    *("train_files", "validation_files", "vg_root", "vision_model"),
)


def make_accelerator(args: TrainingArguments) -> Accelerator:
    """Return an `Accelerator`, and set the precision in the options where they leave it open."""
    args.mixed_precision = choose_mixed_precision(args)
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        # Accumulation continues across the end of an epoch, where Accelerate would give an incomplete one too little
        # weight.
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=args.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=args.seed),
        dynamo_plugin=compile_plugin() if args.torch_compile else None,
        log_with=installed_trackers(args.report_to) or None,
        project_dir=str(Path(args.output_dir) / "tensorboard"),
        kwargs_handlers=_process_settings(args),
    )
    if args.tf32:
        enable_tf32(accelerator.device)
    check_comm_hook(args, accelerator)
    if not accelerator.is_main_process:  # its warnings would be repeated
        logging.set_verbosity_error()
    return accelerator


def _process_settings(args: TrainingArguments) -> list[KwargsHandler]:
    """Return how processes wait for each other and exchange gradients.

    `static_graph` stays off: it fails with accumulation, which skips the exchange in some backward passes, and saves
    only the search for unused parameters, which is off as well.
    """
    exchange = DistributedDataParallelKwargs(
        gradient_as_bucket_view=True,  # no second copy of the gradients
        comm_hook=DDPCommunicationHookType(args.ddp_comm_hook),
    )
    return [exchange, InitProcessGroupKwargs(backend=None, timeout=timedelta(seconds=args.ddp_timeout))]


def check_comm_hook(args: TrainingArguments, accelerator: Accelerator) -> None:
    """Refuse to exchange gradients in bfloat16 where nothing is exchanged, or torch cannot."""
    if args.ddp_comm_hook == "no":
        return
    if accelerator.num_processes == 1:
        raise ValueError("ddp_comm_hook has no effect on a single process; remove it.")
    if accelerator.device.type not in ("cuda", "xpu"):
        raise ValueError(f"ddp_comm_hook needs GPUs, but the device is {accelerator.device}; remove it.")


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


def check_same_options(args: TrainingArguments, accelerator: Accelerator) -> None:
    """Refuse options that differ between processes, which would wait for each other forever or mix up their rows."""
    everyone = gather_object([{name: value for name, value in vars(args).items() if name not in LOCAL_OPTIONS}])
    for process, other in enumerate(everyone):
        different = [
            f"{name} {everyone[0][name]} and {value}" for name, value in other.items() if everyone[0][name] != value
        ]
        if different:
            raise ValueError(
                f"Processes 0 and {process} have different options ({', '.join(different)}); start all of them with "
                "the same."
            )


def check_batch_size(batch: Mapping[str, torch.Tensor], args: TrainingArguments, accelerator: Accelerator) -> None:
    """Refuse a batch of another size than those of the other processes, since the exchange needs equal sizes.

    Each process compares its own with the option, which is the same everywhere, so that nothing has to be exchanged.
    """
    rows = len(batch["input_ids"])
    if accelerator.num_processes > 1 and rows != args.per_device_train_batch_size:
        raise ValueError(
            f"Process {accelerator.process_index} received a batch of {rows} rows, but per_device_train_batch_size is "
            f"{args.per_device_train_batch_size}: with several processes, all batches must have that size."
        )


class _Gathered(torch.autograd.Function):
    """The rows of all processes; gradients return to the process that each row came from, and are summed there."""

    @staticmethod
    def forward(ctx: Any, accelerator: Accelerator, tensor: torch.Tensor) -> torch.Tensor:
        ctx.rows = len(tensor)
        return accelerator.gather(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, torch.Tensor]:
        # Renamed in torch 2.13.
        reduce_scatter = getattr(distributed, "reduce_scatter_single", None) or distributed.reduce_scatter_tensor
        own = gradient.new_empty(ctx.rows, *gradient.shape[1:])
        reduce_scatter(own, gradient.contiguous())
        return None, own


def gather_with_gradient(accelerator: Accelerator) -> Gather:
    """Return a function that joins a tensor of each process, (batch, ...), to (all, ...), own rows first.

    The second axis is padded with zeros to the longest. Unlike `accelerator.gather`, the function passes gradients
    back: their sum over processes, which DDP's averaging turns into the gradient of one process with all rows. Under
    bfloat16 autocast, hidden states and their gradients travel in bfloat16.
    """
    if accelerator.num_processes == 1:
        return lambda tensor: tensor

    def gather(tensor: torch.Tensor) -> torch.Tensor:
        padded = accelerator.pad_across_processes(tensor, dim=1)
        exchanged = padded.to(_exchange_dtype(padded)).contiguous()
        parts = list(_Gathered.apply(accelerator, exchanged).to(padded.dtype).split(len(padded)))
        parts[accelerator.process_index] = padded  # own rows as they were, if the exchange has rounded them
        own = parts.pop(accelerator.process_index)
        return torch.cat([own, *parts])

    return gather


def _exchange_dtype(tensor: torch.Tensor) -> torch.dtype:
    """Return bfloat16 for (batch, tokens, width) hidden states under an autocast to it, which casts them anyway."""
    kind = tensor.device.type
    is_bfloat16 = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.bfloat16
    return torch.bfloat16 if is_bfloat16 and tensor.ndim == 3 and tensor.is_floating_point() else tensor.dtype


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
