"""Recall at k of retrieval; `itm_eval` in the original's `Retrieval.py`."""

import math
from collections.abc import Hashable, Sequence
from statistics import fmean

RANKS = (1, 5, 10)


def recall_at(
    predictions: Sequence[Sequence[Hashable]], references: Sequence[Sequence[Hashable]], ranks: Sequence[int] = RANKS
) -> dict[str, float]:
    """Compute the share of queries with a correct candidate among the first k.

    Args:
        predictions: For each query the ids of the candidates, best first; a ranking without a correct candidate counts
            as a miss.
        references: For each query the ids of all correct candidates.
        ranks: The values of k.

    Returns:
        `r1`, `r5` and so on, one for each k, and their mean `r_mean`, in percent.

    Raises:
        ValueError: If there is no query, a query has no correct candidate, lengths differ, or a rank is below 1.
    """
    _check(predictions, references, ranks)
    max_rank = max(ranks)
    positions = [
        next((position for position, candidate in enumerate(ranking[:max_rank]) if candidate in correct), math.inf)
        for ranking, correct in zip(predictions, references, strict=True)
    ]
    recalls = {f"r{rank}": 100 * sum(position < rank for position in positions) / len(positions) for rank in ranks}
    return {**recalls, "r_mean": fmean(recalls.values())}


def retrieval_metrics(
    text_rankings: Sequence[Sequence[Hashable]],
    text_references: Sequence[Sequence[Hashable]],
    image_rankings: Sequence[Sequence[Hashable]],
    image_references: Sequence[Sequence[Hashable]],
) -> dict[str, float]:
    """Compute the recall of both directions, with the names of the original's `itm_eval`.

    Args:
        text_rankings: For each image the ids of the texts, best first.
        text_references: For each image the ids of its texts.
        image_rankings: For each text the ids of the images, best first.
        image_references: For each text the id of its image, in a list.

    Returns:
        `txt_r1`, `txt_r5`, `txt_r10` and `txt_r_mean` of texts retrieved by images, `img_...` of images retrieved by
        texts, and `r_mean`, the mean of the two means, in percent.

    Raises:
        ValueError: As for `recall_at`.
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
            f"{len(predictions)} predictions but {len(references)} references: give one list of correct candidates "
            "for each ranking, in the same order."
        )
    for query, correct in enumerate(references):
        if len(correct) == 0:
            raise ValueError(f"Query {query} has no correct candidate: remove it, or give at least one reference.")
    if len(ranks) == 0 or min(ranks) < 1:
        raise ValueError(f"ranks are {list(ranks)}: give at least one, and none below 1.")
