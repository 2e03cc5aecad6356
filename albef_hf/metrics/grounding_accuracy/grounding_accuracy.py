"""Accuracy of the boxes that expressions refer to, as `grounding_eval` in the original's `dataset/utils.py`."""

import math
from collections.abc import Sequence

import datasets
import evaluate

DESCRIPTION = """\
Grounding of expressions in images, as in RefCOCO+: the share of the expressions whose predicted box overlaps the true
one with an intersection over union (IoU) of at least 0.5, and the share whose hottest pixel is in the true box; in
percent.
"""

INPUTS_DESCRIPTION = """
Args:
    predictions: One box for each expression: left, top, width and height in pixels.
    references: The true boxes, likewise.
    points: Optional, for each expression the hottest pixel of its heat map, x and y.
    splits: Optional, for each expression the name of its split: "val", "testA" or "testB" in RefCOCO+.
Returns:
    `accuracy`, with points also `pointing`, and with splits `per_split`, the same of each split; in percent.
"""

CITATION = """\
@inproceedings{yu2016modeling,
  title = {Modeling Context in Referring Expressions},
  author = {Yu, Licheng and Poirson, Patrick and Yang, Shan and Berg, Alexander C. and Berg, Tamara L.},
  booktitle = {European Conference on Computer Vision},
  year = {2016},
}
@inproceedings{li2021align,
  title = {Align before Fuse: Vision and Language Representation Learning with Momentum Distillation},
  author = {Li, Junnan and Selvaraju, Ramprasaath R. and Gotmare, Akhilesh Deepak and Joty, Shafiq and Xiong, Caiming
            and Hoi, Steven},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2021},
}
"""

ENOUGH_OVERLAP = 0.5  # an IoU of exactly this much is enough

Box = Sequence[float]  # left, top, width and height in pixels, as in COCO


def box_iou(first: Box, second: Box) -> float:
    """Intersection over union of two boxes, as `computeIoU` in the original's `dataset/utils.py`.

    The original takes boxes for ranges of pixels that include the last one. This cancels out of the areas, but has one
    effect, which is followed here: boxes that share no more than one column or one row of pixels do not intersect, so
    that even equal boxes of one pixel have an IoU of 0.

    Args:
        first: Left, top, width and height in pixels.
        second: Likewise.

    Returns:
        0 to 1.

    Raises:
        ValueError: A box is not four finite numbers, or its size is negative.
    """
    for box in (first, second):
        _check_box(box)
    width, height = (
        min(first[axis] + first[axis + 2], second[axis] + second[axis + 2]) - max(first[axis], second[axis])
        for axis in (0, 1)
    )
    if width <= 1 or height <= 1:
        return 0.0
    intersection = width * height
    return intersection / (first[2] * first[3] + second[2] * second[3] - intersection)


def grounding_accuracy(
    predictions: Sequence[Box],
    references: Sequence[Box],
    points: Sequence[Sequence[float]] | None = None,
    splits: Sequence[str] | None = None,
) -> dict[str, float | dict[str, dict[str, float]]]:
    """Share of the boxes with an IoU of 0.5 or more with the true ones, and of the points inside these.

    Args:
        predictions: One box an expression: left, top, width and height in pixels.
        references: The true boxes, likewise.
        points: The hottest pixel for each expression, x and y. Inside a box means from left to before left + width and
            from top to before top + height.
        splits: The split that each expression belongs to.

    Returns:
        `accuracy`; `pointing` if points are given; `per_split` if splits are given, from split to these; in percent.

    Raises:
        ValueError: There is no expression, a box is not four finite numbers or its size is negative, a point is not
            two finite numbers, or lengths differ.
    """
    optional = {"points": points, "splits": splits}
    given = {name: values for name, values in optional.items() if values is not None}
    _check(predictions, {"references": references, **given})
    right = {
        "accuracy": [box_iou(*boxes) >= ENOUGH_OVERLAP for boxes in zip(predictions, references, strict=True)],
    }
    if points is not None:
        right["pointing"] = [_is_inside(*pair) for pair in zip(points, references, strict=True)]
    results: dict[str, float | dict[str, dict[str, float]]] = {**_shares(right, range(len(predictions)))}
    if splits is not None:
        members: dict[str, list[int]] = {}
        for number, split in enumerate(splits):
            members.setdefault(split, []).append(number)
        results["per_split"] = {split: _shares(right, numbers) for split, numbers in members.items()}
    return results


def _shares(right: dict[str, list[bool]], members: Sequence[int]) -> dict[str, float]:
    return {name: 100 * sum(values[number] for number in members) / len(members) for name, values in right.items()}


def _is_inside(point: Sequence[float], box: Box) -> bool:
    if len(point) != 2 or not all(map(math.isfinite, point)):
        raise ValueError(f"A point is {point}: give x and y in pixels.")
    return all(box[axis] <= point[axis] < box[axis] + box[axis + 2] for axis in (0, 1))


def _check_box(box: Box) -> None:
    if len(box) != 4 or not all(map(math.isfinite, box)):
        raise ValueError(f"A box is {box}: give left, top, width and height in pixels.")
    if min(box[2], box[3]) < 0:
        raise ValueError(
            f"A box is {box}, of negative size: give left, top, width and height; from corners, subtract left and top."
        )


def _check(predictions: Sequence[Box], others: dict[str, Sequence]) -> None:
    if len(predictions) == 0:
        raise ValueError("There is nothing to score: give the box of at least one expression.")
    for name, values in others.items():
        if len(values) != len(predictions):
            raise ValueError(
                f"{len(predictions)} predictions but {len(values)} {name}: give one of each for every "
                "expression, in the same order."
            )


class GroundingAccuracy(evaluate.Metric):
    """`grounding_accuracy` for `evaluate.load`."""

    def _info(self) -> evaluate.MetricInfo:
        box = datasets.Sequence(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": box, "references": box}),
            reference_urls=["https://github.com/lichengunc/refer", "https://github.com/salesforce/ALBEF"],
        )

    def _compute(
        self,
        predictions: Sequence[Box],
        references: Sequence[Box],
        points: Sequence[Sequence[float]] | None = None,
        splits: Sequence[str] | None = None,
    ) -> dict[str, float | dict[str, dict[str, float]]]:
        return grounding_accuracy(predictions, references, points, splits)
