"""Accuracy of visual entailment: whether an image entails a text, contradicts it, or neither."""

from collections.abc import Sequence
from numbers import Integral

# In the order of the original's `dataset/ve_dataset.py`.
LABELS = ("contradiction", "neutral", "entailment")

Results = dict[str, float | dict[str, float] | dict[str, dict[str, int]]]


def entailment_accuracy(
    predictions: Sequence[int | str], references: Sequence[int | str], labels: Sequence[str] = LABELS
) -> Results:
    """Compute the accuracy of all texts and of the texts of each label, and the confusion matrix.

    Args:
        predictions: One label per text, by name or index.
        references: The correct labels, likewise; one may be names and the other indices.
        labels: Names in the order of their indices. The default is the original's order; the order of SNLI on the Hub
            is entailment, neutral, contradiction.

    Returns:
        `accuracy` in percent; `per_label`, from label to accuracy in percent, without labels that no text has;
        `confusion`, from correct label to predicted label to count.

    Raises:
        ValueError: If there is no text, a label is unknown, or lengths differ.
    """
    if len(predictions) == 0:
        raise ValueError("There is nothing to score: give at least one label.")
    if len(references) != len(predictions):
        raise ValueError(
            f"{len(predictions)} predictions but {len(references)} references: give one of each for every "
            "text, in the same order."
        )
    confusion = {label: dict.fromkeys(labels, 0) for label in labels}
    for predicted, correct in zip(predictions, references, strict=True):
        confusion[_name(correct, labels)][_name(predicted, labels)] += 1
    return {
        "accuracy": 100 * sum(confusion[label][label] for label in labels) / len(predictions),
        "per_label": {
            label: 100 * counts[label] / sum(counts.values())
            for label, counts in confusion.items()
            if any(counts.values())
        },
        "confusion": confusion,
    }


def _name(label: int | str, labels: Sequence[str]) -> str:
    if isinstance(label, Integral) and 0 <= int(label) < len(labels):
        return labels[int(label)]
    if label in labels:
        return str(label)
    known = ", ".join(f"{name} ({index})" for index, name in enumerate(labels))
    raise ValueError(f"A label is {label!r}, known are {known}: remove such texts, or pass other names as `labels`.")
