"""What the processes of a training share with each other, beside the gradients."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator

from ..modeling_albef import IGNORED, AlbefTeacherOutput, Gather


class _Gathered(torch.autograd.Function):
    """The rows of all processes, each with a gradient that goes to the process it came from."""

    @staticmethod
    def forward(ctx: Any, accelerator: Accelerator, tensor: torch.Tensor) -> torch.Tensor:
        ctx.accelerator, ctx.rows = accelerator, len(tensor)
        return accelerator.gather(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, torch.Tensor]:
        gradients = ctx.accelerator.reduce(gradient.contiguous(), "sum").split(ctx.rows)
        return None, gradients[ctx.accelerator.process_index]


def gather_with_gradient(accelerator: Accelerator) -> Gather:
    """A function that joins a tensor of each process, (batch, ...), to (all, ...), rows of this process first.

    The second axis is padded with zeros to the longest. Unlike `accelerator.gather`, it passes gradients on to the
    process that they belong to: their sum, of which the averaging of DDP makes what one process with all rows has.
    """

    def gather(tensor: torch.Tensor) -> torch.Tensor:
        padded = accelerator.pad_across_processes(tensor, dim=1).contiguous()
        parts = list(_Gathered.apply(accelerator, padded).split(len(tensor)))
        own = parts.pop(accelerator.process_index)
        return torch.cat([own, *parts])

    return gather


def share_keys(accelerator: Accelerator, batches: Sequence[AlbefTeacherOutput]) -> Iterator[AlbefTeacherOutput]:
    """What a teacher said of the batches of a step, each with the features of all the others before its queue.

    So each batch is contrasted with the keys of all batches of all processes, like a single batch that holds all of
    their pairs. Keys have no gradient, so nothing else has to be exchanged, and nothing is computed twice.

    Args:
        accelerator: Knows the processes.
        batches: Of equal size on all processes.
    """
    own = [torch.cat([getattr(batch, name) for batch in batches]) for name in ("image_embeds", "text_embeds")]
    ids = [batch.ids for batch in batches if batch.ids is not None]
    every = accelerator.gather((*own, torch.cat(ids)) if ids else tuple(own))
    end = len(own[0]) * accelerator.process_index
    for batch in batches:
        start, end = end, end + len(batch.image_embeds)
        others = [torch.cat([keys[:start], keys[end:]]) for keys in every]
        other_ids = others[2] if ids else batch.queue_ids.new_full((len(others[0]),), IGNORED)
        queues = {"image_queue": others[0], "text_queue": others[1], "queue_ids": other_ids}
        joined = {name: torch.cat([keys, batch[name].to(keys.dtype)]) for name, keys in queues.items()}
        yield AlbefTeacherOutput(**{**batch, **joined})  # one after the other, since each has a copy of the queue
