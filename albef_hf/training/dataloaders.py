"""Batches for a training: loaders for rows, shards and streams, and the order of epochs across a resume."""

import os
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import datasets
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import send_to_device
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader

from ..data import ImageTextPairs, ImageTextStream, Normalization, ShardOrder, Shards
from .arguments import TrainingArguments
from .checkpointing import random_state, restore_random_state
from .records import StepRecorder
from .signals import block_signals_until_first_batch, ignore_signals
from .state import TrainingState

Batch = dict[str, torch.Tensor]
PINNED_DEVICES = ("cuda", "xpu")  # whose uploads from pinned memory do not wait


def make_dataloader(
    rows: Any, read: Callable, collate: Callable, args: TrainingArguments, accelerator: Accelerator
) -> DataLoader:
    """Return the batches of this process, on the CPU, with pixels of 0 to 255; `endless_batches` uploads them.

    Args:
        rows: A sequence of rows, `Shards`, or a stream (`datasets.IterableDataset`).
        read: Turns a row and a random generator into a sample.
        collate: Turns samples into a batch.
        args: Options of the run.
        accelerator: Provides the processes.

    Raises:
        ValueError: If there are fewer rows than one batch on all processes needs, or none can be read.
    """
    settings: dict[str, Any] = {
        "batch_size": args.per_device_train_batch_size,
        "collate_fn": collate,
        "num_workers": min(args.dataloader_num_workers, os.cpu_count() or 1),
        "pin_memory": accelerator.device.type in PINNED_DEVICES,
        "worker_init_fn": ignore_signals,
    }
    if isinstance(rows, datasets.IterableDataset):
        return _stream_loader(rows, read, args, accelerator, settings)
    settings["persistent_workers"] = settings["num_workers"] > 0
    needed = args.per_device_train_batch_size * accelerator.num_processes
    if len(rows) < needed:
        raise ValueError(
            f"There are {len(rows)} rows to train on, but one batch on all {accelerator.num_processes} processes "
            f"needs {needed}; lower per_device_train_batch_size, or provide more data."
        )
    dataset = ImageTextPairs(rows, read, args.seed)
    dataset[0]  # an unreadable source is noticed here, not in the middle of the first epoch
    if isinstance(rows, Shards):
        order = ShardOrder(rows.bounds, args.seed, accelerator.process_index, accelerator.num_processes)
        return _without_sharding(DataLoader(dataset, sampler=order, drop_last=True, **settings), accelerator)
    loader = DataLoader(dataset, shuffle=True, drop_last=True, **settings)
    return accelerator.prepare_data_loader(loader, device_placement=False)


def steps_per_epoch(loader: DataLoader, args: TrainingArguments) -> int | None:
    """Return the optimizer steps of an epoch; None for a stream."""
    if isinstance(loader.dataset, ImageTextStream):
        return None
    return max(1, len(loader) // args.gradient_accumulation_steps)


def _stream_loader(
    rows: datasets.IterableDataset,
    read: Callable,
    args: TrainingArguments,
    accelerator: Accelerator,
    settings: dict[str, Any],
) -> DataLoader:
    """Return batches of this process's part of a stream."""
    rows = rows.shuffle(seed=args.seed, buffer_size=1000)
    rows = split_dataset_by_node(rows, accelerator.process_index, accelerator.num_processes)
    stream = ImageTextStream(rows, read, args.seed, accelerator.process_index)
    if next(iter(stream), None) is None:
        raise ValueError("The stream holds no pairs for this process; provide at least as many shards as processes.")
    return _without_sharding(DataLoader(stream, **settings), accelerator)


def _without_sharding(loader: DataLoader, accelerator: Accelerator) -> DataLoader:
    """Prepare a loader that reads only this process's part already."""
    return prepare_data_loader(
        loader, accelerator.device, num_processes=1, process_index=0, put_on_device=False, dispatch_batches=False
    )


def endless_batches(
    loader: Any, state: TrainingState, recorder: StepRecorder, device: torch.device, normalize: Normalization
) -> Generator[Batch]:
    """Yield the batches of one epoch after the other on the device, starting where `state` is.

    Args:
        loader: From `make_dataloader`, prepared by Accelerate.
        state: Counts the epochs and batches.
        recorder: Counts the time spent waiting for data.
        device: Where the batches go.
        normalize: Normalizes pixels, on the device, so that bytes travel there instead of floats.
    """
    normalize = normalize.to(device)
    try:
        while True:
            batches = block_signals_until_first_batch(_epoch_batches(loader, state))
            for batch in _timed(batches, recorder):
                state.batches_used += 1
                batch = send_to_device(batch, device, non_blocking=loader.pin_memory)
                yield batch | {"pixel_values": normalize(batch["pixel_values"])}
            if state.batches_used == 0:
                return
            state.next_epoch()
    finally:
        _end_workers(loader)


def _epoch_batches(loader: Any, state: TrainingState) -> Iterator[Batch]:
    """Yield the batches of the epoch that `state` is in, as they come from the loader."""
    loader.set_epoch(state.epoch)
    if hasattr(loader.dataset, "set_epoch"):  # Accelerate does not call it when it shards the sampler
        loader.dataset.set_epoch(state.epoch)
    if not state.batches_used:
        if loader.base_dataloader._iterator is not None:  # with the workers of the last epoch
            torch.empty((), dtype=torch.int64).random_()  # a new iterator draws a seed
        yield from loader
        return
    before: dict[str, Any] | None = random_state()
    rest = skip_first_batches(loader, state.batches_used)  # resumed in the middle of an epoch
    try:
        for batch in rest:
            if before:  # a new iterator draws a seed, which the run drew before it was interrupted
                restore_random_state(before)
                before = None
            yield batch
    finally:
        _end_workers(rest)


def _end_workers(loader: Any) -> None:
    """End persistent workers now; they ignore the signal by which Python would end them."""
    loader.base_dataloader._iterator = None


def _timed(batches: Iterator[Batch], recorder: StepRecorder) -> Iterator[Batch]:
    """Yield the same batches; what they take to arrive, without their upload, is time spent waiting for data."""
    while True:
        start = time.monotonic()
        batch = next(batches, None)
        recorder.window.waited += time.monotonic() - start
        if batch is None:
            return
        yield batch
