"""What was wrong with the rows of an evaluation: counted, and told with an example."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from .pairs import BadSampleError


@dataclass
class Findings:
    """Rows that were left out, each with the reason, and how many texts were cut.

    Args:
        bad: What is wrong with each row that was left out, by its number.
        cut: How many texts were longer than the model takes.
    """

    bad: dict[int, BadSampleError] = field(default_factory=dict)
    cut: int = 0

    @classmethod
    def together(cls, parts: Iterable["Findings"]) -> "Findings":
        """What several processes have found in different rows."""
        whole = cls()
        for part in parts:
            whole.bad |= part.bad
            whole.cut += part.cut
        return whole

    def counts(self) -> dict[str, float]:
        """`rows_left_out`, and `rows/...` with how many of them for which reason; nothing where nothing was wrong."""
        reasons = Counter(error.issue.name.lower() for error in self.bad.values())
        counts = {f"rows/{reason}": count for reason, count in reasons.items()}
        counts |= {"rows_left_out": len(self.bad)} if self.bad else {}
        return counts | ({"rows/text_cut": self.cut} if self.cut else {})

    def __str__(self) -> str:
        """Each reason with the number of its rows and the first of them."""
        firsts: dict[str, str] = {}
        for number in sorted(self.bad):
            error = self.bad[number]
            firsts.setdefault(error.issue.name.lower(), f"row {number}: {error.detail}")
        counts = self.counts()
        told = [f"{reason} {counts[f'rows/{reason}']} (first {first})" for reason, first in firsts.items()]
        return ", ".join(told + ([f"text_cut {self.cut}"] if self.cut else [])) or "nothing"
