"""Module of `evaluate` for the metric in `scoring.py`."""

from collections.abc import Hashable, Sequence

import datasets
import evaluate

from .scoring import nlvr2_accuracy

__all__ = ["Nlvr2Accuracy", "nlvr2_accuracy"]

DESCRIPTION = """\
NLVR2 asks whether a statement is true for a pair of images, and repeats each statement with several pairs. Accuracy is
the share of pairs that are judged correctly. Consistency is the share of statements that are judged correctly for all
their pairs. Both are in percent.
"""

INPUTS_DESCRIPTION = """
Args:
    predictions: One judgment per pair: True or False, 1 or 0, or "True" or "False" in any case.
    references: The correct judgments, likewise.
    groups: Optional, the statement of each pair or an id of it, the same for all pairs of a statement.
Returns:
    `accuracy`, and with groups also `consistency`, in percent.
"""

CITATION = """\
@inproceedings{suhr2019corpus,
  title = {A Corpus for Reasoning about Natural Language Grounded in Photographs},
  author = {Suhr, Alane and Zhou, Stephanie and Zhang, Ally and Zhang, Iris and Bai, Huajun and Artzi, Yoav},
  booktitle = {Annual Meeting of the Association for Computational Linguistics},
  year = {2019},
}
"""


class Nlvr2Accuracy(evaluate.Metric):
    """Provide `nlvr2_accuracy` for `evaluate.load`."""

    def _info(self) -> evaluate.MetricInfo:
        types = [datasets.Value(dtype) for dtype in ("string", "int64")]  # booleans are integers too
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS_DESCRIPTION,
            features=[
                datasets.Features({"predictions": predicted, "references": correct})
                for predicted in types
                for correct in types
            ],
            reference_urls=["https://lil.nlp.cornell.edu/nlvr/", "https://github.com/lil-lab/nlvr"],
        )

    def _infer_feature_from_batch(self, batch: dict[str, Sequence]) -> datasets.Features:
        # The base class chooses the feature type by the first item, which an empty list does not have.
        if any(len(column) == 0 for column in batch.values()):
            raise ValueError("There is nothing to score: give at least one prediction and reference.")
        return super()._infer_feature_from_batch(batch)

    def _compute(
        self,
        predictions: Sequence[int | str],
        references: Sequence[int | str],
        groups: Sequence[Hashable] | None = None,
    ) -> dict[str, float]:
        return nlvr2_accuracy(predictions, references, groups)
