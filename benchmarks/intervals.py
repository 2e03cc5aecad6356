"""Means with 95 % confidence intervals over a few runs, by Student's t."""

import math
import statistics

# 97.5th percentile of Student's t for 1, 2, ... degrees of freedom; more than the table has are taken as its last.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


def interval(numbers: list[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % confidence interval; not a number for fewer than two."""
    if len(numbers) < 2:
        return statistics.fmean(numbers), math.nan
    student = STUDENT[min(len(numbers) - 1, len(STUDENT)) - 1]
    return statistics.fmean(numbers), student * statistics.stdev(numbers) / math.sqrt(len(numbers))


def difference(before: dict[int, float], after: dict[int, float]) -> str:
    """Mean difference of the seeds that both have, bold where its interval excludes zero; empty where none has."""
    pairs = [after[seed] - before[seed] for seed in sorted(before.keys() & after.keys())]
    if not pairs:
        return ""
    mean, half = interval(pairs)
    text = as_text(mean, half, "+")
    return f"**{text}**" if abs(mean) > half > 0 else text


def as_text(mean: float, half: float, sign: str = "") -> str:
    """A mean with its interval, or alone."""
    return f"{mean:{sign}z.1f}" + ("" if math.isnan(half) else f" ± {half:.1f}")
