"""Batches on their way to the device: upload, normalization, workers and the time spent waiting for them."""

import contextlib
import multiprocessing
import os
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator, DataLoaderConfiguration

from albef_hf.data import Normalization
from albef_hf.training.arguments import TrainingArguments
from albef_hf.training.dataloaders import endless_batches, make_dataloader
from albef_hf.training.state import TrainingState
from albef_hf.training.throughput import MetricsWindow

CPU = torch.device("cpu")
NORMALIZE = Normalization((0.5,) * 3, (0.25,) * 3)


def read(row: int, rng: np.random.Generator) -> dict:
    pixels = torch.full((3, 2, 2), row, dtype=torch.uint8)
    return {"pixel_values": pixels, "draw": int(rng.integers(2**31)), "worker": os.getpid(), "issues": []}


def collate(samples: list[dict]) -> dict[str, torch.Tensor]:
    numbers = {name: torch.tensor([sample[name] for sample in samples]) for name in ("draw", "worker")}
    return numbers | {"pixel_values": torch.stack([sample["pixel_values"] for sample in samples])}


def batches_of(num_workers: int, batches_used: int = 0, epoch: int = 0, count: int = 8) -> list[dict]:
    """Return the next batches, of four in an epoch, with what dropout would draw after each."""
    torch.manual_seed(0)
    args = TrainingArguments(per_device_train_batch_size=2, dataloader_num_workers=num_workers)
    order = DataLoaderConfiguration(use_seedable_sampler=True, data_seed=0)
    loader = make_dataloader(range(8), read, collate, args, Accelerator(cpu=True, dataloader_config=order))
    state = TrainingState(epoch=epoch, batches_used=batches_used, batches_per_epoch=4)
    recorder = SimpleNamespace(window=MetricsWindow(CPU))
    with contextlib.closing(endless_batches(loader, state, recorder, CPU, NORMALIZE)) as batches:
        found = [next(batches) | {"dropout": torch.rand(())} for _ in range(count)]
        assert loader.dataset.epoch == epoch + (batches_used + count - 1) // 4
    return found


def test_workers_live_on_and_change_nothing():
    """They see the epoch change, which changes the draws, and are gone at the end."""
    alone, with_worker = batches_of(0), batches_of(1)
    assert len({int(pid) for batch in with_worker for pid in batch["worker"]} - {os.getpid()}) == 1
    for name in ("pixel_values", "draw", "dropout"):
        assert all(torch.equal(a[name], b[name]) for a, b in zip(alone, with_worker, strict=True)), name
    draws = [int(draw) for batch in with_worker for draw in batch["draw"]]
    assert len(set(draws)) == len(draws) == 16
    assert not multiprocessing.active_children()


def test_a_resumed_epoch_ends_its_workers():
    resumed = batches_of(1, batches_used=2, count=6)
    whole = batches_of(1)
    assert all(torch.equal(a["draw"], b["draw"]) for a, b in zip(resumed, whole[2:], strict=True))
    assert not multiprocessing.active_children()


def test_bytes_are_uploaded_and_normalized_on_the_device():
    batch = batches_of(0, count=1)[0]
    assert batch["pixel_values"].dtype == torch.float32 and batch["pixel_values"].is_contiguous()
    rows = batch["pixel_values"][:, 0, 0, 0].mul(0.25).add(0.5).mul(255).round()
    assert set(rows.tolist()) < set(range(8))


def test_only_waiting_for_data_counts_as_waiting():
    recorder = SimpleNamespace(window=MetricsWindow(CPU))

    def slow_read(row: int, rng: np.random.Generator) -> dict:
        time.sleep(0.02)
        return read(row, rng)

    def slow_upload(pixels: torch.Tensor) -> torch.Tensor:
        time.sleep(0.2)
        return pixels

    args = TrainingArguments(per_device_train_batch_size=2, dataloader_num_workers=0)
    loader = make_dataloader(range(8), slow_read, collate, args, Accelerator(cpu=True))
    normalize = SimpleNamespace(to=lambda device: slow_upload)
    batches = endless_batches(loader, TrainingState(batches_per_epoch=4), recorder, CPU, normalize)
    for _ in range(4):
        next(batches)
        time.sleep(0.1)  # a step
    assert 8 * 0.02 <= recorder.window.waited < 8 * 0.02 + 0.2


@pytest.mark.parametrize(("device", "pinned"), [("cuda", True), ("xpu", True), ("cpu", False), ("mps", False)])
def test_memory_is_pinned_where_uploads_then_need_not_wait(device, pinned):
    accelerator = SimpleNamespace(
        device=torch.device(device), num_processes=1, prepare_data_loader=lambda loader, device_placement: loader
    )
    args = TrainingArguments(per_device_train_batch_size=2, dataloader_num_workers=0)
    assert make_dataloader(range(8), read, collate, args, accelerator).pin_memory == pinned
