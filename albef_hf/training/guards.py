"""Notice a training that goes wrong: non-finite steps, skipped data, a matching loss that stays at its prior."""

import math
from collections import Counter

from ..data.row_errors import SkipReason
from .arguments import TrainingArguments
from .state import TrainingState

# Matching loss of a model that knows only how many pairs match, one in three: where ITM starts.
MATCHING_PRIOR = math.log(3) - 2 / 3 * math.log(2)
MIN_PAIRS = 50  # before the fraction of skipped pairs says anything


def check_nonfinite(state: TrainingState, max_nonfinite_steps: int) -> None:
    """Raise a `RuntimeError` after too many consecutive steps with a non-finite loss or gradient."""
    if state.nonfinite_in_a_row >= max_nonfinite_steps:
        raise RuntimeError(
            f"{state.nonfinite_in_a_row} steps in a row had a non-finite loss or gradient. Lower learning_rate, set "
            "max_grad_norm to 1, or use bf16 instead of fp16. None of these steps changed the weights."
        )


def check_skipped(counts: Counter[str], max_skipped_share: float) -> None:
    """Raise a `RuntimeError` if more than a fraction of the pairs had to be skipped."""
    skipped = sum(counts[reason.name.lower()] for reason in SkipReason if reason is not SkipReason.CAPTION_CUT)
    total = counts["pairs"] + skipped
    if total >= MIN_PAIRS and skipped > max_skipped_share * total:
        raise RuntimeError(
            f"{skipped} of {total} pairs could not be used, more than max_skipped_share={max_skipped_share:g} allows. "
            f"Fix the data or raise that fraction. Reasons: {describe_skipped(counts)}."
        )


def describe_skipped(counts: Counter[str]) -> str:
    """Return how many pairs were skipped or cut, by reason."""
    reasons = [(reason.name.lower(), counts[reason.name.lower()]) for reason in SkipReason]
    return ", ".join(f"{name} {count}" for name, count in reasons if count) or "nothing"


def matching_warning(loss: float, args: TrainingArguments) -> str | None:
    """Return a warning if matching has learned nothing; reranked recall alone does not reveal it."""
    if math.isnan(loss) or loss <= 0.99 * MATCHING_PRIOR:
        return None
    easier = ", or draw easier negatives with hardness_strength 0" if args.hardness_strength > 0 else ""
    return (
        f"matching (ITM) ends no better than it began: its loss is {loss:.3f}, and knowing only that one pair in "
        f"three matches gives {MATCHING_PRIOR:.3f}. Reranking adds little or nothing to contrast. Train longer, start "
        f"from a pretrained model{easier}."
    )
