"""Accuracy of visual entailment: whether an image entails a text, contradicts it, or neither."""

from collections.abc import Sequence
from numbers import Integral

import datasets
import evaluate

# By number, as in the original's `dataset/ve_dataset.py`.
LABELS = ("contradiction", "neutral", "entailment")

DESCRIPTION = """\
Accuracy of visual entailment, as in SNLI-VE: an image entails a text, contradicts it, or neither. With it comes the
accuracy of each label (the share of its texts that are recognised) in percent, and how often each is taken for each.
"""

INPUTS_DESCRIPTION = """
Args:
    predictions: One label for each text: "contradiction", "neutral" or "entailment", or its number 0, 1 or 2.
    references: The right labels, likewise.
    labels: Optional, other names of labels in the order of their numbers.
Returns:
    `accuracy` and `per_label`, from label to accuracy, in percent; `confusion`, from right to predicted label to
    count.
"""

CITATION = """\
@article{xie2019visual,
  title = {Visual Entailment: A Novel Task for Fine-Grained Image Understanding},
  author = {Xie, Ning and Lai, Farley and Doran, Derek and Kadav, Asim},
  journal = {arXiv preprint arXiv:1901.06706},
  year = {2019},
}
"""

Results = dict[str, float | dict[str, float] | dict[str, dict[str, int]]]


def entailment_accuracy(
    predictions: Sequence[int | str], references: Sequence[int | str], labels: Sequence[str] = LABELS
) -> Results:
    """Share of the right labels, over all texts and over the texts of each label, and the table of confusions.

    Args:
        predictions: One label a text, by name or number.
        references: The right labels, likewise; the two may be written differently.
        labels: Names in the order of their numbers. The default is the original's order; SNLI's on the Hub is
            entailment, neutral, contradiction.

    Returns:
        `accuracy` in percent; `per_label`, from label to accuracy in percent, without labels that are never right;
        `confusion`, from right label to predicted label to count.

    Raises:
        ValueError: There is no text, a label is unknown, or lengths differ.
    """
    if len(predictions) == 0:
        raise ValueError("There is nothing to score: give at least one label.")
    if len(references) != len(predictions):
        raise ValueError(
            f"{len(predictions)} predictions but {len(references)} references: give one of each for every "
            "text, in the same order."
        )
    confusion = {truth: dict.fromkeys(labels, 0) for truth in labels}
    for guess, truth in zip(predictions, references, strict=True):
        confusion[_name(truth, labels)][_name(guess, labels)] += 1
    return {
        "accuracy": 100 * sum(confusion[label][label] for label in labels) / len(predictions),
        "per_label": {
            truth: 100 * guesses[truth] / sum(guesses.values())
            for truth, guesses in confusion.items()
            if any(guesses.values())
        },
        "confusion": confusion,
    }


def _name(label: int | str, labels: Sequence[str]) -> str:
    if isinstance(label, Integral) and 0 <= label < len(labels):
        return labels[label]
    if label in labels:
        return str(label)
    known = ", ".join(f"{name} ({number})" for number, name in enumerate(labels))
    raise ValueError(f"A label is {label!r}, known are {known}: leave such texts out, or name others by `labels`.")


class EntailmentAccuracy(evaluate.Metric):
    """`entailment_accuracy` for `evaluate.load`."""

    def _info(self) -> evaluate.MetricInfo:
        kinds = [datasets.Value(kind) for kind in ("string", "int64")]
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS_DESCRIPTION,
            features=[
                datasets.Features({"predictions": guess, "references": truth}) for guess in kinds for truth in kinds
            ],
            reference_urls=["https://arxiv.org/abs/1901.06706", "https://github.com/necla-ml/SNLI-VE"],
        )

    def _infer_feature_from_batch(self, batch: dict[str, Sequence]) -> datasets.Features:
        # Among several kinds of features, the base class chooses by the first item, which an empty list lacks.
        if any(len(column) == 0 for column in batch.values()):
            raise ValueError("There is nothing to score: give at least one prediction and reference.")
        return super()._infer_feature_from_batch(batch)

    def _compute(
        self, predictions: Sequence[int | str], references: Sequence[int | str], labels: Sequence[str] = LABELS
    ) -> Results:
        return entailment_accuracy(predictions, references, labels)
