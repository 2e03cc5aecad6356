"""Running statistics of batch norms, which change in every forward pass, also in one that is not finite."""

from collections.abc import Sequence

import torch

from ..momentum import RUNNING_STATISTICS


class RunningStatistics:
    """Undo what a step that was not finite has done to the statistics of models.

    Args:
        models: Their present statistics are those before the first step.
    """

    def __init__(self, models: Sequence[torch.nn.Module]):
        buffers = [entry for model in models for entry in model.named_buffers()]
        self.buffers = [buffer for name, buffer in buffers if name.endswith(RUNNING_STATISTICS)]
        self.before = [buffer.clone() for buffer in self.buffers]

    @torch.no_grad()
    def end_step(self, is_finite: torch.Tensor) -> None:
        """Keep the statistics if a scalar on the device is true, otherwise return to those before the step."""
        for buffer, before in zip(self.buffers, self.before, strict=True):
            buffer.copy_(torch.where(is_finite, buffer, before))
            before.copy_(buffer)
