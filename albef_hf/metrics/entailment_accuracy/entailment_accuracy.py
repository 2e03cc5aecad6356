"""Module of `evaluate` for the metric in `scoring.py`."""

from collections.abc import Sequence

import datasets
import evaluate

from .scoring import LABELS, Results, entailment_accuracy

__all__ = ["EntailmentAccuracy", "LABELS", "Results", "entailment_accuracy"]

DESCRIPTION = """\
Accuracy of visual entailment, as in SNLI-VE: an image entails a text, contradicts it, or neither. The accuracy of each
label (the share of its texts that are classified correctly) and the confusion matrix are reported too.
"""

INPUTS_DESCRIPTION = """
Args:
    predictions: One label per text: "contradiction", "neutral" or "entailment", or its index 0, 1 or 2.
    references: The correct labels, likewise.
    labels: Optional, other names of the labels in the order of their indices.
Returns:
    `accuracy` and `per_label`, from label to accuracy, in percent; `confusion`, from correct to predicted label to
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


class EntailmentAccuracy(evaluate.Metric):
    """Provide `entailment_accuracy` for `evaluate.load`."""

    def _info(self) -> evaluate.MetricInfo:
        types = [datasets.Value(dtype) for dtype in ("string", "int64")]
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS_DESCRIPTION,
            features=[
                datasets.Features({"predictions": predicted, "references": correct})
                for predicted in types
                for correct in types
            ],
            reference_urls=["https://arxiv.org/abs/1901.06706", "https://github.com/necla-ml/SNLI-VE"],
        )

    def _infer_feature_from_batch(self, batch: dict[str, Sequence]) -> datasets.Features:
        # The base class chooses the feature type by the first item, which an empty list does not have.
        if any(len(column) == 0 for column in batch.values()):
            raise ValueError("There is nothing to score: give at least one prediction and reference.")
        return super()._infer_feature_from_batch(batch)

    def _compute(
        self, predictions: Sequence[int | str], references: Sequence[int | str], labels: Sequence[str] = LABELS
    ) -> Results:
        return entailment_accuracy(predictions, references, labels)
