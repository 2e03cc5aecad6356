"""Accuracy and consistency of judgments whether a statement is true for two images.

The counterpart of `nlvr2/eval/metrics.py` in https://github.com/lil-lab/nlvr, where accuracy is called precision.
"""

from collections.abc import Hashable, Sequence

TRUTHS = {"true": True, "1": True, "false": False, "0": False}


def nlvr2_accuracy(
    predictions: Sequence[bool | int | str],
    references: Sequence[bool | int | str],
    groups: Sequence[Hashable] | None = None,
) -> dict[str, float]:
    """Compute the share of correct judgments, and the share of statements with only correct judgments.

    Args:
        predictions: One judgment per pair of images: a boolean, 0 or 1, or "True" or "False" in any case.
        references: The correct judgments, likewise; both may use different forms.
        groups: Id of the statement of each pair.

    Returns:
        `accuracy`, and with groups also `consistency`, in percent.

    Raises:
        ValueError: If there is no judgment, one is neither true nor false, or lengths differ.
    """
    _check(predictions, {"references": references} | ({} if groups is None else {"groups": groups}))
    correct = [_truth(predicted) == _truth(true) for predicted, true in zip(predictions, references, strict=True)]
    results = {"accuracy": 100 * sum(correct) / len(correct)}
    if groups is not None:
        failed = {group for group, is_correct in zip(groups, correct, strict=True) if not is_correct}
        statements = set(groups)
        results["consistency"] = 100 * len(statements - failed) / len(statements)
    return results


def _truth(judgment: bool | int | str) -> bool:
    try:
        return TRUTHS[str(judgment).strip().lower()]
    except KeyError:
        raise ValueError(f"A judgment is {judgment!r}: use True or False, 1 or 0.") from None


def _check(predictions: Sequence, others: dict[str, Sequence]) -> None:
    if len(predictions) == 0:
        raise ValueError("There is nothing to score: give at least one judgment.")
    for name, values in others.items():
        if len(values) != len(predictions):
            raise ValueError(
                f"{len(predictions)} predictions but {len(values)} {name}: give one of each for every "
                "pair of images, in the same order."
            )
