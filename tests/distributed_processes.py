"""Several gloo processes, forked from one that has imported everything; launched by training/test_processes.py."""

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from accelerate.state import GradientState
from small_pretraining import small_run

from albef_hf import cli
from albef_hf.data import PretrainingCollator
from albef_hf.training import distributed, logging, run
from albef_hf.training.arguments import TrainingArguments
from albef_hf.training.distributed import gather_with_gradient, make_accelerator
from albef_hf.training.trainer import Trainer

SECONDS = 200  # for a scenario, in which nothing may hang
STEPS = 3
FAULT_AT = 1  # steps completed before


class CheckedTrainer(Trainer):
    """Cause a fault in the second step of one process, and compare what the processes end with."""

    fault: Callable[[dict], None] = staticmethod(lambda batch: None)

    def training_step(self, batch):
        if self.state.step == FAULT_AT:
            self.fault(batch)
        return super().training_step(batch)

    def train(self):
        super().train()
        state = [*self.student.state_dict().values(), *self.teacher.state_dict().values()]
        own = torch.cat([tensor.double().flatten() for tensor in state])
        others = self.accelerator.gather(own[None])
        assert all(other.equal(own) for other in others), "the processes have different weights, teachers or queues"
        skipped = self.state.counts["nonfinite_steps"]
        self.log.say(f"equal on {len(others)} processes, {skipped} steps skipped")


def pretrain(folder: Path, rank: int, *arguments: str, fault: Callable | None = None, at: int = 0) -> None:
    """Pretrain in this process; a fault occurs on one of them."""
    run.Trainer = CheckedTrainer
    logging.plot_curves = lambda log, image: None
    if fault and rank == at:
        CheckedTrainer.fault = staticmethod(fault)
    options = [*small_run(folder / "out", STEPS), "--per_device_train_batch_size", "2", "--validation_size", "0"]
    cli.main(["pretrain", *options, "--report_to", "none", *arguments])


def spoil(batch: dict) -> None:
    """Make the loss NaN."""
    batch["pixel_values"][0, 0, 0, 0] = torch.nan


def die(batch: dict) -> None:
    """End as if the system had run out of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def nan_and_uneven_end(folder: Path, rank: int) -> None:
    """Give one process a NaN; the nine batches of an epoch do not divide evenly among the four processes."""
    pretrain(folder, rank, "--scenes", "18", fault=spoil, at=2)


def different_options(folder: Path, rank: int) -> None:
    """Start one process with a larger batch."""
    pretrain(folder, rank, "--per_device_train_batch_size", str(2 + rank))


def short_batch(folder: Path, rank: int) -> None:
    """Give one process a batch that lacks a row."""
    collate = PretrainingCollator.__call__

    def shortened(self, samples):
        return collate(self, samples[: len(samples) - rank])

    PretrainingCollator.__call__ = shortened
    pretrain(folder, rank)


def exchange(folder: Path, rank: int) -> None:
    """Gather hidden states with their gradients, in bfloat16 under autocast, and average gradients in bfloat16."""
    distributed.check_comm_hook = torch.nn.parallel.DistributedDataParallel._check_comm_hook = lambda *given: None
    args = TrainingArguments(output_dir=str(folder), ddp_timeout=4321, ddp_comm_hook="bf16", report_to=["none"])
    accelerator = make_accelerator(args)
    (backend,) = {torch.distributed.distributed_c10d._get_default_group()._get_backend(accelerator.device)}
    assert backend.options._timeout == timedelta(seconds=4321)
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, 3, 4, 8, generator=generator)  # of both processes
    weights = torch.randn(2, 2, 3, 4, 8, generator=generator)  # of the loss, by process and by owner of the rows
    sent = []
    gather_rows = accelerator.gather
    accelerator.gather = lambda tensor: sent.append(tensor.dtype) or gather_rows(tensor)
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 1e-2)):
        own = states[rank].clone().requires_grad_()
        with torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
            gathered = gather_with_gradient(accelerator)(own)
        order = [rank, 1 - rank]  # own rows first
        (gathered * weights[rank][order].flatten(0, 1)).sum().backward()
        assert gathered.dtype == torch.float32 and sent[-1] == dtype
        assert gathered[:3].equal(states[rank]), "own rows are not rounded"
        torch.testing.assert_close(gathered[3:], states[1 - rank].to(dtype).float(), rtol=0, atol=0)
        torch.testing.assert_close(own.grad, weights[:, rank].sum(0), rtol=tolerance, atol=tolerance)
    layer = torch.nn.Linear(1, 1, bias=False)
    model = accelerator.prepare(layer)
    model(torch.full((1, 1), 1.001)).sum().backward()
    assert layer.weight.grad.item() == 1.0, "1.001 in bfloat16"
    assert model._get_ddp_logging_data()["gradient_as_bucket_view"]
    GradientState._reset_state()


SCENARIOS = {  # number of processes, and what each does
    "nan": (4, nan_and_uneven_end),
    "killed": (4, partial(pretrain, fault=die, at=3)),
    "options": (2, different_options),
    "short": (2, short_batch),
    "exchange": (2, exchange),
}


def start(scenario: Callable, folder: Path, rank: int, port: int, count: int) -> None:
    """Run a scenario in a forked process, with its output in a file."""
    output = os.open(folder / f"process{rank}.txt", os.O_WRONLY | os.O_CREAT)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    scenario(folder, rank)


def main(root: Path) -> None:
    """Run all scenarios one after the other; write the exit codes and the seconds that each took."""
    results = {}
    chosen = sys.argv[2:] or SCENARIOS
    for name, (count, scenario) in ((name, SCENARIOS[name]) for name in chosen):
        (root / name).mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = multiprocessing.get_context("fork")
        settings = (scenario, root / name)
        processes = [context.Process(target=start, args=(*settings, rank, port, count)) for rank in range(count)]
        begun = time.monotonic()
        for process in processes:
            process.start()
        for process in processes:
            process.join(max(0, begun + SECONDS - time.monotonic()))
        results[name] = {"seconds": time.monotonic() - begun, "codes": [process.exitcode for process in processes]}
        for process in processes:
            process.kill()
    (root / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
