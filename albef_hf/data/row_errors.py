"""Rows that cannot be used: the reasons, the error that carries one, and the errors of an evaluation."""

import enum
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

MAX_DETAIL_LENGTH = 300  # characters; an image may be a long base64 text


class SkipReason(enum.IntEnum):
    """What can be wrong with a row. The row is skipped, except for `CAPTION_CUT`."""

    IMAGE_MISSING = 0
    IMAGE_OUTSIDE_ROOT = 1
    IMAGE_BROKEN = 2
    IMAGE_TOO_LARGE = 3
    CAPTION_EMPTY = 4
    LABEL_UNKNOWN = 5
    SHARD_DAMAGED = 6
    CAPTION_CUT = 7


class InvalidSampleError(ValueError):
    """Raised for a row that cannot be used.

    Args:
        reason: Why it cannot be used.
        detail: Which image or text is meant, and what is wrong with it.
    """

    def __init__(self, reason: SkipReason, detail: str):
        detail = detail if len(detail) <= MAX_DETAIL_LENGTH else f"{detail[:MAX_DETAIL_LENGTH]}..."
        super().__init__(reason, detail)  # both, because pickling passes the arguments on
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason.name.lower()}: {self.detail}"


@dataclass
class RowErrors:
    """The rows that an evaluation skipped, and the number of texts that it truncated.

    Args:
        bad: The error of each skipped row, by the index of the row.
        cut: Number of texts that were longer than the model allows.
    """

    bad: dict[int, InvalidSampleError] = field(default_factory=dict)
    cut: int = 0

    @classmethod
    def merge(cls, parts: Iterable["RowErrors"]) -> "RowErrors":
        """Combine the errors of several processes, each of which evaluated other rows."""
        merged = cls()
        for part in parts:
            merged.bad |= part.bad
            merged.cut += part.cut
        return merged

    def counts(self) -> dict[str, float]:
        """Return `rows_left_out`, `rows/...` for each reason, and `rows/text_cut`; entries of 0 are omitted."""
        reasons = Counter(error.reason.name.lower() for error in self.bad.values())
        counts: dict[str, float] = {f"rows/{reason}": count for reason, count in reasons.items()}
        if self.bad:
            counts["rows_left_out"] = len(self.bad)
        if self.cut:
            counts["rows/text_cut"] = self.cut
        return counts

    def __str__(self) -> str:
        """Format each reason with its number of rows and the first of them."""
        first: dict[str, str] = {}
        for index in sorted(self.bad):
            error = self.bad[index]
            first.setdefault(error.reason.name.lower(), f"row {index}: {error.detail}")
        counts = self.counts()
        parts = [f"{reason} {counts[f'rows/{reason}']} (first {example})" for reason, example in first.items()]
        if self.cut:
            parts.append(f"text_cut {self.cut}")
        return ", ".join(parts) or "nothing"
