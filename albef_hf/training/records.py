"""Average losses and speed over the steps between two log records."""

import time

import torch
from accelerate import Accelerator
from transformers.utils import ModelOutput

from ..data.row_errors import SkipReason
from .arguments import TrainingArguments
from .state import TrainingState
from .throughput import FlopCounter, MetricsWindow, peak_flops


class StepRecorder:
    """Collect losses and speed on each process, and average them over steps and processes.

    Args:
        accelerator: Provides the processes.
        args: Options of the run.
        flops: Counts the operations of batches.
    """

    def __init__(self, accelerator: Accelerator, args: TrainingArguments, flops: FlopCounter):
        self.accelerator = accelerator
        self.args = args
        self.flops = flops
        self.window = MetricsWindow(accelerator.device)
        self.loss_names: list[str] = []
        self.losses: list[torch.Tensor] = []  # of the batches accumulated so far

    def add_batch(self, batch: dict[str, torch.Tensor], issues: torch.Tensor) -> None:
        """Count a batch, and the pairs that were skipped or cut for it, by reason."""
        self.window.add_batch(pairs=len(batch["input_ids"]), issues=issues, flops=self.flops.count(batch))

    def add_losses(self, outputs: ModelOutput) -> None:
        """Keep the losses of a forward pass."""
        losses = {name: value for name, value in outputs.items() if name.startswith("loss") or name == "info_nce"}
        self.loss_names = list(losses)
        # Losses are float32 or better, unless the whole model is bfloat16.
        precise = [value.detach().to(torch.promote_types(value.dtype, torch.float32)) for value in losses.values()]
        self.losses.append(torch.stack(precise))

    def mean_losses(self) -> torch.Tensor:
        """Return the mean of the losses over the batches of an optimizer step, (losses,), and forget them."""
        losses = torch.stack(self.losses).mean(0)
        self.losses = []
        return losses

    def add_step(self, losses: torch.Tensor, gradient_norm: torch.Tensor, is_finite: torch.Tensor) -> None:
        """Add an optimizer step to the averages, unless a scalar on the device says that it was skipped."""
        self.window.add_step(torch.cat([losses, gradient_norm.detach().to(losses.dtype).view(1)]), is_finite)

    def finish_record(self, state: TrainingState) -> tuple[dict[str, float], dict[str, float]]:
        """Return averages and rates since the last record, and start a new one; all processes call it together.

        The numbers of pairs, and of those that were skipped, are added to `state.counts`.
        """
        window = self.window
        averages = self.accelerator.reduce(window.average(), "mean").tolist()
        named = dict(zip((*self.loss_names, "gradient_norm"), averages, strict=True))
        device = self.accelerator.device
        totals = torch.cat([window.issues, torch.tensor([window.pairs, window.flops], device=device)])
        *issues, pairs, flops = self.accelerator.reduce(totals, "sum").tolist()
        state.counts.update(
            {reason.name.lower(): int(count) for reason, count in zip(SkipReason, issues, strict=True)}
        )
        state.counts["pairs"] += int(pairs)
        self.window = MetricsWindow(device)
        return named, self._rates(window, pairs, flops)

    def _rates(self, window: MetricsWindow, pairs: float, flops: float) -> dict[str, float]:
        seconds = time.monotonic() - window.start
        flops_per_second = flops / seconds / self.accelerator.num_processes
        rates = {
            "pairs_per_second": pairs / seconds,
            "data_wait_share": window.waited / seconds,
            "tflops_per_second": flops_per_second / 1e12,
        }
        mixed_precision = self.accelerator.mixed_precision
        peak = self.args.peak_tflops * 1e12 or peak_flops(self.accelerator.device, mixed_precision)
        return rates | ({"mfu": flops_per_second / peak} if peak else {})

    def summary(self, record: dict[str, float]) -> dict[str, float]:
        """Return what the progress bar shows of a record."""
        parts = {name.removeprefix("loss_"): record[name] for name in self.loss_names if name.startswith("loss_")}
        return (parts or {"loss": record["loss"]}) | {"pairs_s": record["pairs_per_second"]}
