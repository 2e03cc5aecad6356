"""Accuracy and consistency of judgements whether a statement holds for two images.

`nlvr2/eval/metrics.py` of https://github.com/lil-lab/nlvr, where accuracy is called precision.
"""

from collections.abc import Hashable, Sequence

import datasets
import evaluate

DESCRIPTION = """\
NLVR2 asks whether a statement holds for a pair of images, and asks the same of several pairs. Accuracy is the share of
the pairs judged right, consistency the share of the statements that are judged right for all their pairs; in percent.
"""

INPUTS_DESCRIPTION = """
Args:
    predictions: One judgement for each pair: True or False, 1 or 0, or "True" or "False" in any case.
    references: The right judgements, likewise.
    groups: Optional, for each pair its statement, or a name of it, the same for all pairs of a statement.
Returns:
    `accuracy`, and with groups `consistency`; in percent.
"""

CITATION = """\
@inproceedings{suhr2019corpus,
  title = {A Corpus for Reasoning about Natural Language Grounded in Photographs},
  author = {Suhr, Alane and Zhou, Stephanie and Zhang, Ally and Zhang, Iris and Bai, Huajun and Artzi, Yoav},
  booktitle = {Annual Meeting of the Association for Computational Linguistics},
  year = {2019},
}
"""

TRUTHS = {"true": True, "1": True, "false": False, "0": False}


def nlvr2_accuracy(
    predictions: Sequence[bool | int | str],
    references: Sequence[bool | int | str],
    groups: Sequence[Hashable] | None = None,
) -> dict[str, float]:
    """Share of the right judgements, and of the statements all of whose judgements are right.

    Args:
        predictions: One judgement a pair of images: a boolean, 0 or 1, or "True" or "False" in any case.
        references: The right judgements, likewise; the two may be written differently.
        groups: For each pair, what its statement is known by.

    Returns:
        `accuracy`, and `consistency` if groups are given; in percent.

    Raises:
        ValueError: There is no judgement, one is neither true nor false, or lengths differ.
    """
    _check(predictions, {"references": references} | ({} if groups is None else {"groups": groups}))
    right = [_truth(guess) == _truth(truth) for guess, truth in zip(predictions, references, strict=True)]
    results = {"accuracy": 100 * sum(right) / len(right)}
    if groups is not None:
        failed = {group for group, correct in zip(groups, right, strict=True) if not correct}
        statements = set(groups)
        results["consistency"] = 100 * len(statements - failed) / len(statements)
    return results


def _truth(judgement: bool | int | str) -> bool:
    try:
        return TRUTHS[str(judgement).strip().lower()]
    except KeyError:
        raise ValueError(f"A judgement is {judgement!r}: write True or False, 1 or 0.") from None


def _check(predictions: Sequence, others: dict[str, Sequence]) -> None:
    if len(predictions) == 0:
        raise ValueError("There is nothing to score: give at least one judgement.")
    for name, values in others.items():
        if len(values) != len(predictions):
            raise ValueError(
                f"{len(predictions)} predictions but {len(values)} {name}: give one of each for every "
                "pair of images, in the same order."
            )


class Nlvr2Accuracy(evaluate.Metric):
    """`nlvr2_accuracy` for `evaluate.load`."""

    def _info(self) -> evaluate.MetricInfo:
        kinds = [datasets.Value(kind) for kind in ("string", "int64")]  # a boolean is a whole number too
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS_DESCRIPTION,
            features=[
                datasets.Features({"predictions": guess, "references": truth}) for guess in kinds for truth in kinds
            ],
            reference_urls=["https://lil.nlp.cornell.edu/nlvr/", "https://github.com/lil-lab/nlvr"],
        )

    def _infer_feature_from_batch(self, batch: dict[str, Sequence]) -> datasets.Features:
        # Among several kinds of features, the base class chooses by the first item, which an empty list lacks.
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
