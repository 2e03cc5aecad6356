"""Recall of the right candidates among the best of a ranking, as `itm_eval` in the original's `Retrieval.py`."""

import math
from collections.abc import Hashable, Sequence
from statistics import fmean

import datasets
import evaluate

RANKS = (1, 5, 10)

DESCRIPTION = """\
Recall at k of retrieval: the share of the queries, in percent, for which one of the right candidates is among the
first k of the ranking. With five captions an image, any of the five will do.
"""

INPUTS_DESCRIPTION = """
Args:
    predictions: For each query the candidates' ids, best first; whole numbers or strings. Lengths may differ.
    references: For each query the ids of all right candidates, at least one.
    ranks: The k's, 1, 5 and 10 by default.
Returns:
    `r1`, `r5`, `r10` for the k's, and `r_mean`, their mean; in percent.
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


def recall_at(
    predictions: Sequence[Sequence[Hashable]], references: Sequence[Sequence[Hashable]], ranks: Sequence[int] = RANKS
) -> dict[str, float]:
    """Share of the queries with a right candidate among the first k.

    Args:
        predictions: For each query the candidates' ids, best first; a ranking that ends before a right candidate comes
            counts as a miss.
        references: For each query the ids of all right candidates.
        ranks: The k's.

    Returns:
        `r1`, `r5` and so on, one for each k, and their mean `r_mean`; in percent.

    Raises:
        ValueError: There is no query, a query has no right candidate, lengths differ, or a rank is below 1.
    """
    _check(predictions, references, ranks)
    deepest = max(ranks)
    places = [
        next((place for place, candidate in enumerate(ranking[:deepest]) if candidate in right), math.inf)
        for ranking, right in zip(predictions, references, strict=True)
    ]
    recalls = {f"r{rank}": 100 * sum(place < rank for place in places) / len(places) for rank in ranks}
    return {**recalls, "r_mean": fmean(recalls.values())}


def retrieval_metrics(
    text_rankings: Sequence[Sequence[Hashable]],
    text_references: Sequence[Sequence[Hashable]],
    image_rankings: Sequence[Sequence[Hashable]],
    image_references: Sequence[Sequence[Hashable]],
) -> dict[str, float]:
    """Recall in both directions, under the names of the original's `itm_eval`.

    Args:
        text_rankings: For each image the texts' ids, best first.
        text_references: For each image the ids of its texts.
        image_rankings: For each text the images' ids, best first.
        image_references: For each text the id of its image, in a list.

    Returns:
        `txt_r1`, `txt_r5`, `txt_r10` and `txt_r_mean` of the texts found for images, `img_...` of the images found for
        texts, and `r_mean`, the mean of the two means; in percent.

    Raises:
        ValueError: As `recall_at`.
    """
    texts = recall_at(text_rankings, text_references)
    images = recall_at(image_rankings, image_references)
    return {
        **{f"txt_{name}": value for name, value in texts.items()},
        **{f"img_{name}": value for name, value in images.items()},
        "r_mean": fmean([texts["r_mean"], images["r_mean"]]),
    }


def _check(predictions: Sequence, references: Sequence, ranks: Sequence[int]) -> None:
    if len(predictions) == 0:
        raise ValueError("There is nothing to score: give the ranking of at least one query.")
    if len(references) != len(predictions):
        raise ValueError(
            f"{len(predictions)} predictions but {len(references)} references: give one list of right candidates for "
            "each ranking, in the same order."
        )
    for query, right in enumerate(references):
        if len(right) == 0:
            raise ValueError(f"Query {query} has no right candidate: leave it out, or give it at least one reference.")
    if len(ranks) == 0 or min(ranks) < 1:
        raise ValueError(f"ranks are {list(ranks)}: give at least one, and none below 1, the best candidate.")


class RetrievalRecall(evaluate.Metric):
    """`recall_at` for `evaluate.load`."""

    def _info(self) -> evaluate.MetricInfo:
        # Strings come first: a ranking without candidates fits both kinds, and strings hold numbers too.
        kinds = [datasets.Sequence(datasets.Value(kind)) for kind in ("string", "int64")]
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS_DESCRIPTION,
            features=[datasets.Features({"predictions": kind, "references": kind}) for kind in kinds],
            reference_urls=["https://arxiv.org/abs/2107.07651", "https://github.com/salesforce/ALBEF"],
        )

    def _infer_feature_from_batch(self, batch: dict[str, Sequence]) -> datasets.Features:
        # Among several kinds of features, the base class chooses by the first item, which an empty list lacks.
        if any(len(column) == 0 for column in batch.values()):
            raise ValueError("There is nothing to score: give a prediction and a reference for at least one query.")
        return super()._infer_feature_from_batch(batch)

    def _compute(
        self, predictions: Sequence[Sequence], references: Sequence[Sequence], ranks: Sequence[int] = RANKS
    ) -> dict[str, float]:
        return recall_at(predictions, references, ranks)
