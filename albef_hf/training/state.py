"""Progress of a training, as a checkpoint stores it."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from ..utils.redaction import redact
from ..utils.renamed_options import with_present_names
from .arguments import TrainingArguments

# Options that may differ when a run is resumed; it is still bit-identical. A name that ends in "_" is a prefix.
RESUME_SAFE_OPTIONS = (
    "dataloader_num_workers",
    "ddp_timeout",
    "hub_",
    "image_root",
    "keep_every",
    "logging_steps",
    "lora_merge",
    "max_nonfinite_steps",
    "max_skipped_share",
    "output_dir",
    "overwrite_output_dir",
    "peak_tflops",
    "push_to_hub",
    "report_to",
    "resume_from_checkpoint",
    "save_",
)


@dataclass
class TrainingState:
    """Progress of a training.

    Args:
        step: Optimizer steps completed.
        epoch: The present epoch, from 0.
        batches_used: Batches used of the present epoch, per process.
        batches_per_epoch: Batches of an epoch per process; None for a stream.
        nonfinite_in_a_row: Consecutive steps with a non-finite loss or gradient, up to the present one.
        counts: Pairs read, pairs skipped by reason, and steps skipped.
    """

    step: int = 0
    epoch: int = 0
    batches_used: int = 0
    batches_per_epoch: int | None = None
    nonfinite_in_a_row: int = 0
    counts: Counter[str] = field(default_factory=Counter)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON stores it."""
        return vars(self).copy()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state; an epoch that was complete is followed by the next one."""
        self.step = state["step"]
        self.epoch = state["epoch"]
        self.batches_used = state["batches_used"]
        self.nonfinite_in_a_row = state["nonfinite_in_a_row"]
        self.counts = Counter(state["counts"])
        if self.batches_used == self.batches_per_epoch:
            self.next_epoch()

    def next_epoch(self) -> None:
        """Begin the next epoch."""
        self.epoch += 1
        self.batches_used = 0


def changed_options(args: TrainingArguments, defaults: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """Return the options that differ from those a run began with, such as `seed 1 -> 2`.

    Args:
        args: The present options.
        defaults: Of all options, for those that a checkpoint does not know yet.
        before: Options of the checkpoint, maybe under former names.
    """
    before = redact(defaults | with_present_names(before))
    return [
        f"{name} {before[name]} -> {value}"
        for name, value in redact(vars(args)).items()
        if before[name] != value and not _is_resume_safe(name)
    ]


def _is_resume_safe(name: str) -> bool:
    return any(name == safe or safe.endswith("_") and name.startswith(safe) for safe in RESUME_SAFE_OPTIONS)
