"""Module of `evaluate` for the metric in `scoring.py`."""

from collections.abc import Sequence

import datasets
import evaluate

from .scoring import RANKS, recall_at, retrieval_metrics

__all__ = ["RANKS", "RetrievalRecall", "recall_at", "retrieval_metrics"]

DESCRIPTION = """\
Recall at k of retrieval: the share of queries, in percent, for which a correct candidate is among the first k of the
ranking. If an image has five captions, any of them counts.
"""

INPUTS_DESCRIPTION = """
Args:
    predictions: For each query the ids of the candidates, best first; integers or strings. Lengths may differ.
    references: For each query the ids of all correct candidates, at least one.
    ranks: The values of k, by default 1, 5 and 10.
Returns:
    `r1`, `r5`, `r10` for the values of k, and their mean `r_mean`, in percent.
"""

CITATION = """\
@inproceedings{li2021align,
  title = {Align before Fuse: Vision and Language Representation Learning with Momentum Distillation},
  author = {Li, Junnan and Selvaraju, Ramprasaath R. and Gotmare, Akhilesh Deepak and Joty, Shafiq and Xiong, Caiming
            and Hoi, Steven},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2021},
}
"""


class RetrievalRecall(evaluate.Metric):
    """Provide `recall_at` for `evaluate.load`."""

    def _info(self) -> evaluate.MetricInfo:
        # Strings come first: an empty ranking fits both types, and strings can represent integers too.
        types = [datasets.Sequence(datasets.Value(dtype)) for dtype in ("string", "int64")]
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS_DESCRIPTION,
            features=[datasets.Features({"predictions": ids, "references": ids}) for ids in types],
            reference_urls=["https://arxiv.org/abs/2107.07651", "https://github.com/salesforce/ALBEF"],
        )

    def _infer_feature_from_batch(self, batch: dict[str, Sequence]) -> datasets.Features:
        # The base class chooses the feature type by the first item, which an empty list does not have.
        if any(len(column) == 0 for column in batch.values()):
            raise ValueError("There is nothing to score: give a prediction and a reference for at least one query.")
        return super()._infer_feature_from_batch(batch)

    def _compute(
        self, predictions: Sequence[Sequence], references: Sequence[Sequence], ranks: Sequence[int] = RANKS
    ) -> dict[str, float]:
        return recall_at(predictions, references, ranks)
