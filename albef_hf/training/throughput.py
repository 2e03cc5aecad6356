"""Measure throughput: operations, waits for data, sums over the steps between two log records."""

import contextlib
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..data.row_errors import SkipReason
from ..momentum import RUNNING_STATISTICS

# Dense operations per second in half precision (V100 and T4: float16), TF32 and float32, from the makers' data sheets,
# by a part of the name.
PEAKS = {
    "B200": (2.25e15, 1.125e15, 75e12),
    "H200": (989e12, 494.5e12, 67e12),
    "H100 PCIe": (756e12, 378e12, 51e12),
    "H100 NVL": (835e12, 417.5e12, 60e12),
    "H100": (989e12, 494.5e12, 67e12),
    "A100": (312e12, 156e12, 19.5e12),
    "A40": (149.7e12, 74.8e12, 37.4e12),
    "A10": (125e12, 62.5e12, 31.2e12),
    "L40S": (362e12, 183e12, 91.6e12),
    "L4": (121e12, 60e12, 30.3e12),
    "RTX 4090": (165.2e12, 82.6e12, 82.6e12),
    "V100": (125e12, 15.7e12, 15.7e12),  # without TF32
    "T4": (65e12, 8.1e12, 8.1e12),
}

COUNTED_SHAPES = 12  # batch shapes whose operations are counted; those of others are estimated


def peak_flops(device: torch.device, mixed_precision: str) -> float:
    """Return a GPU's nominal operations per second in the precision of a training; 0 if unknown."""
    if device.type != "cuda":
        return 0.0
    name = torch.cuda.get_device_name(device)
    # Whole words only: an RTX A4000 is not an A40, an L40 is not an L4.
    half, tf32, float32 = next((peaks for part, peaks in PEAKS.items() if re.search(rf"\b{part}\b", name)), (0.0,) * 3)
    if mixed_precision != "no":
        return half
    return tf32 if torch.backends.cuda.matmul.allow_tf32 else float32


class FlopCounter:
    """Count the floating-point operations of a training step: matrix products, convolutions and attention.

    A step is one forward pass of the teacher and three of the student, since a backward pass costs two forward
    passes; frozen encoders have none, and what gradient checkpointing recomputes does not count. Operations that torch
    has no formula for are missing: fused attention on a CPU and that of the flash-attention package (4 % of a step at
    the paper's size), and what `gather_negatives` adds.

    The first `COUNTED_SHAPES` batch shapes are counted, each in an extra forward pass without side effects. Nearly
    every batch of question answering has its own shape, so the operations of further shapes are estimated: a linear
    function of the sizes of the inputs is fitted to what was counted. This is approximate where attention grows with
    the square of the length, and because a shape does not tell how many tokens are masked: by at most 4 % for a batch
    of the built-in scenes, with a model so small that the vocabulary dominates, and by less than 1 % on average.

    Args:
        student: The model that is trained.
        teacher: Its teacher, or None.
        alpha: Weight of the teacher in the targets.
        settings: Further arguments of the student.
    """

    def __init__(
        self,
        student: torch.nn.Module,
        teacher: torch.nn.Module | None,
        alpha: float = 0.4,
        settings: Mapping[str, Any] | None = None,
    ):
        self.student = student
        self.teacher = teacher
        self.alpha = alpha
        self.settings = dict(settings or {})
        self.counted: dict[tuple[torch.Size, ...], int] = {}

    def count(self, batch: dict[str, torch.Tensor]) -> int:
        """Return the operations of this process for a batch."""
        shapes = tuple(values.shape for values in batch.values())
        if shapes not in self.counted:
            if len(self.counted) == COUNTED_SHAPES:
                return self._estimate(shapes)
            self.counted[shapes] = self._count(batch)
        return self.counted[shapes]

    def _estimate(self, shapes: tuple[torch.Size, ...]) -> int:
        """Return the value of a linear function of the inputs' sizes that fits what was counted."""
        sizes = torch.tensor([[shape.numel() for shape in known] for known in self.counted], dtype=torch.float64)
        flops = torch.tensor(list(self.counted.values()), dtype=torch.float64)
        scale = sizes.amax(0).clamp(min=1)
        # Sizes depend on each other: "gelsd" takes the smallest of the solutions.
        weights = torch.linalg.lstsq(sizes / scale, flops[:, None], driver="gelsd").solution[:, 0]
        own = torch.tensor([shape.numel() for shape in shapes], dtype=torch.float64)
        return round((own / scale @ weights).item())

    def _count(self, batch: dict[str, torch.Tensor]) -> int:
        device = next(self.student.parameters()).device
        statistics = [b for name, b in self.student.named_buffers() if name.endswith(RUNNING_STATISTICS)]
        before = [buffer.clone() for buffer in statistics]
        devices = [] if device.type == "cpu" else [device]
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"))
            stack.enter_context(torch.no_grad())
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            counter = stack.enter_context(FlopCounterMode(display=False))
            targets: dict[str, Any] = {}
            if self.teacher is not None:
                targets = {"teacher_outputs": self.teacher(**batch, alpha=self.alpha), "alpha": self.alpha}
            teacher_flops = counter.get_total_flops()
            self.student(**batch, **targets, **self.settings)
            for buffer, value in zip(statistics, before, strict=True):
                buffer.copy_(value)
            counts = counter.get_flop_counts()
            names = [f"{type(self.student).__name__}.{name}" for name in getattr(self.student, "frozen_modules", ())]
            frozen_flops = sum(sum(counts[name].values()) for name in names if name in counts)
            return 3 * counter.get_total_flops() - 2 * (teacher_flops + frozen_flops)


@torch.no_grad()
def relative_distance(student: torch.nn.Module, teacher: torch.nn.Module) -> torch.Tensor:
    """Return the norm of the difference between two models' weights over the norm of the student's, a scalar.

    Weights that are not trained do not count.
    """
    pairs = zip(student.parameters(), teacher.parameters(), strict=True)
    trained = [(weight.detach().float(), other.float()) for weight, other in pairs if weight.requires_grad]
    weights = [weight for weight, _ in trained]
    differences = torch._foreach_sub(weights, [other for _, other in trained])
    return _total_norm(differences) / _total_norm(weights)


def _total_norm(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack(torch._foreach_norm(list(tensors))).norm()


class MetricsWindow:
    """Sums over the steps since the last log record, on this process."""

    def __init__(self, device: torch.device) -> None:
        self.start = time.monotonic()
        self.waited = 0.0
        self.pairs = 0
        self.flops = 0
        self.issues = torch.zeros(len(SkipReason), dtype=torch.long, device=device)
        self.steps = torch.zeros((), dtype=torch.long, device=device)
        self.sums = torch.zeros((), device=device)

    def state_dict(self) -> dict[str, Any]:
        """Return everything, for a checkpoint."""
        return vars(self) | {"start": time.monotonic() - self.start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        device = self.sums.device
        moved = {name: value.to(device) if torch.is_tensor(value) else value for name, value in state.items()}
        vars(self).update(moved | {"start": time.monotonic() - state["start"]})

    def add_batch(self, pairs: int, issues: torch.Tensor, flops: int) -> None:
        """Count a batch."""
        self.pairs += pairs
        self.issues += issues
        self.flops += flops

    def add_step(self, values: torch.Tensor, is_finite: torch.Tensor) -> None:
        """Add the numbers of an optimizer step if they are finite, without waiting for the device."""
        self.sums = self.sums + torch.where(is_finite, values, 0)
        self.steps = self.steps + is_finite

    def exclude(self, seconds: float) -> None:
        """Do not count time spent on evaluation or saving as training time."""
        self.start += seconds

    def average(self) -> torch.Tensor:
        """Return the mean over the steps; NaN if all steps were skipped."""
        return self.sums / self.steps
