"""What a training shows of itself beside its losses: how busy the machine is, and how far behind the teacher."""

import contextlib
import math
import re
import time
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..data.pairs import Issue

# Dense bfloat16 (V100 and T4: float16) operations per second, in the makers' data sheets, by a part of the name.
PEAKS = {
    "B200": 2.25e15,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "A40": 149.7e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165.2e12,
    "V100": 125e12,
    "T4": 65e12,
}


def peak_of(device: torch.device, mixed_precision: str) -> float:
    """Operations per second that a GPU is sold with, in half precision; 0 where they are not known."""
    if device.type != "cuda" or mixed_precision == "no":
        return 0.0
    name = torch.cuda.get_device_name(device)
    # As a word: an RTX A4000 is no A40, an L40 no L4.
    return next((peak for part, peak in PEAKS.items() if re.search(rf"\b{part}\b", name)), 0.0)


class FlopCounter:
    """Floating-point operations that batches call for: matrix products, convolutions and attention.

    One forward pass of the teacher, and three of the student, since a backward pass takes twice its forward; what
    gradient checkpointing computes again does not count. Each shape of a batch is counted once, in a forward pass of
    its own that leaves no trace. What torch has no formula for is not counted, which is fused attention on a CPU and
    that of the flash-attention package (4 % of a step at the paper's size); nor is what `share_negatives` adds.

    Args:
        student: The model that learns.
        teacher: Its teacher, or None.
    """

    def __init__(self, student: torch.nn.Module, teacher: torch.nn.Module | None):
        self.student, self.teacher = student, teacher
        self.counted: dict[tuple, int] = {}

    def of(self, batch: dict[str, torch.Tensor]) -> int:
        """Operations for a batch, of this process."""
        shape = tuple(tuple(values.shape) for values in batch.values())
        if shape not in self.counted:
            self.counted[shape] = self._count(batch)
        return self.counted[shape]

    def _count(self, batch: dict[str, torch.Tensor]) -> int:
        device = next(self.student.parameters()).device
        generators = [device] if device.type == "cuda" else []
        alone = torch.random.fork_rng(generators), torch.no_grad(), torch.compiler.set_stance("force_eager")
        with contextlib.ExitStack() as stack:
            for part in alone:
                stack.enter_context(part)
            counter = stack.enter_context(FlopCounterMode(display=False))
            heard = {} if self.teacher is None else {"teacher_outputs": self.teacher(**batch), "alpha": 0.5}
            of_teacher = counter.get_total_flops()
            self.student(**batch, **heard)
            return of_teacher + 3 * (counter.get_total_flops() - of_teacher)


@torch.no_grad()
def relative_distance(student: torch.nn.Module, teacher: torch.nn.Module) -> torch.Tensor:
    """Length of the difference of two models' weights, as a share of the length of the student's; a scalar."""
    weights = [weight.detach().float() for weight in student.parameters()]
    differences = torch._foreach_sub(weights, [weight.float() for weight in teacher.parameters()])

    def length(tensors: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(torch._foreach_norm(tensors)).norm()

    return length(differences) / length(weights)


class Window:
    """What has happened since the last record of a training."""

    def __init__(self, device: torch.device) -> None:
        self.start = time.monotonic()
        self.waited = 0.0
        self.pairs = 0
        self.flops = 0
        self.issues = torch.zeros(len(Issue), dtype=torch.long, device=device)
        self.steps = 0
        self.sums = torch.zeros((), device=device)

    def state(self) -> dict[str, Any]:
        """All of it, for a checkpoint."""
        return vars(self) | {"start": time.monotonic() - self.start}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on with what `state` has given."""
        device = self.sums.device
        moved = {name: value.to(device) if torch.is_tensor(value) else value for name, value in state.items()}
        vars(self).update(moved | {"start": time.monotonic() - state["start"]})

    def add(self, values: torch.Tensor) -> None:
        """Add the numbers of a step, without waiting for the device."""
        self.sums = self.sums + values
        self.steps += 1

    def average(self, count: int) -> torch.Tensor:
        """Mean of the steps, of `count` numbers each; not a number where all of them were skipped."""
        return self.sums / self.steps if self.steps else self.sums.new_full((count,), math.nan)
